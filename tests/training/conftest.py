"""A training run as small as it can be, made once for all that look at one; other networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from training.__main__ import main
from training.network import NetworkSettings, Step, build_step

# No processes of its own, 4 checkpoints of 2 updates each.
TINY = """
seed = 3
updates = 8
epoch_updates = 2
learning_rate = 2e-3
warmup_updates = 2
clip_norm = 1.0

[network]
filters = 4
products = 4
head_filters = 4
head_layers = 1

[dataset]
batch = 2
size_px = 32
chunk = 5
read_at = [4]
stream_chunks = [2, 8]
validation_stacks = 3
workers = 0
"""


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file of the tiny run."""
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, trained to its end by the command line; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--settings", str(tiny_settings), "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def quantized_run(tiny_run: Path) -> Path:
    """The tiny run with both TFLite files beside its weights."""
    assert main(["quantize", "--run", str(tiny_run), "--stacks", "2"]) == 0
    return tiny_run


@pytest.fixture
def telling() -> Callable[[NetworkSettings], Step]:
    """Makes steps whose image depends on what they find from the whole of a window."""

    def made(settings: NetworkSettings) -> Step:
        keras.utils.set_random_seed(1)
        step = build_step(settings, 32, 32)
        rng = np.random.default_rng(1)
        for weights in step.weights:
            if not np.any(weights):
                weights.assign(rng.normal(0, 0.3, weights.shape))
        step.whole_image.inner.assign(30 * step.whole_image.inner)
        step.whole_image.inner_bias.assign(np.ones(step.whole_image.inner_bias.shape))
        return step

    return made
