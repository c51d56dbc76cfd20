"""Networks over whole windows, which ours is compared with: how they are trained, and used.

They are fed frames that are normalized as ours are, of stacks from the same forward model, and
trained with the same loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from device.errors import UserError
from training import settings as settings_file
from training.example import normalized
from training.limit import limit
from training.original import original

BUILDERS: dict[str, Callable[..., keras.Model]] = {"original": original, "limit": limit}
"""Architecture to what builds it for (height, width, frames=T, batch=B)."""
NAMES = {"original": "the original's architecture", "limit": "the network without limits"}


class Windows(keras.Model):
    """Such a network, to be trained on windows; takes and returns what `Unrolled` does.

    Of the inputs it reads `frames`, (B, T, H, W), and `gain`, (B, 1). Output (B, 1, 2H, 2W).
    """

    carried: tuple[keras.Variable, ...] = ()
    """Nothing is carried from a window to the next."""

    def __init__(self, step: keras.Model) -> None:
        super().__init__(dtype="float32")
        self.step = step

    def call(self, inputs: dict[str, Any]) -> Any:
        """Reconstruct the windows."""
        image = self.step(inputs["frames"][..., None])[..., 0]  # (B, 2H, 2W)
        return image[:, None] * inputs["gain"][:, :, None, None]


def load_method(run: Path, architecture: str) -> Callable[[np.ndarray], np.ndarray]:
    """Load a run of an architecture as a method: frames (T, H, W) to an image (2H, 2W), ADU.

    One that was trained on copies of the mean is fed such.

    Raises
    ------
    UserError
        The folder is not that of such a run, or holds no weights yet.
    """
    build, name = BUILDERS[architecture], NAMES[architecture]
    try:
        settings = settings_file.of_run(run)
        if settings.architecture != architecture:
            raise UserError(f"{run} is no run of {name}: name such a run.")
        trained = build(16, 16, frames=1)
        trained.load_weights(run / "best.weights.h5")
    except (OSError, ValueError) as error:
        raise UserError(f"{run} holds no best weights of {name}: train first.") from error
    data = settings.dataset

    @cache
    def network(frames: int, height: int, width: int) -> keras.Model:
        built = build(height, width, frames=frames)
        built.set_weights(trained.get_weights())
        return built

    def image(frames: np.ndarray) -> np.ndarray:
        prepared, means, scales = normalized(frames, False, data.normalization)
        shown = means[: data.copies] if data.copies else prepared
        made = network(*shown.shape)(shown[None, ..., None], training=False)
        return scales[-1] * ops.convert_to_numpy(made)[0, ..., 0]

    return image
