"""Golden windows: what a device checks the accuracy of its own int8 steps with.

Beside the model lies a file of short simulated stacks, each with its truth and with the images that
the float32 form made of it where the model was released. The manifest says how far from them the
int8 form's images were there. Another processor or another runtime rounds here and there to the
other side, which changes these figures in their second decimal; a wrong zero point, a frame left
out or a state mixed up changes them by far more than the tolerances here.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np

from device.check import Finding
from device.model import GoldenFigures, GoldenFile, ModelError, Step
from device.reconstructor import Mode, reconstruct_stream, reconstruct_window

LOST_TOLERANCE_DB = 0.2
"""How far the PSNR lost may be from what it was at the release, either way.

Runtimes round differently: tflite-runtime 2.14 was seen 0.16 dB from ai-edge-litert on a window
that loses 0.6 dB.
"""

FIDELITY_TOLERANCE_DB = 4.0
"""How far the PSNR against the float32 image may be from what it was at the release, either way.

4 dB is 2.5 times or two fifths of the power of the int8 form's own error. tflite-runtime 2.14 was
seen 3.3 dB from ai-edge-litert, on Arm, on a window that is otherwise 50 dB like its float32 image:
what its rounding adds is not averaged away where a window is played twice.
"""


@dataclass(frozen=True, slots=True)
class GoldenWindow:
    """One stack of the golden file.

    Attributes
    ----------
    name : str
        What it shows.
    frames : ndarray
        (T, H, W) uint16, ADU.
    truth : ndarray
        (2H, 2W) float32; over its 99.9th percentile, clipped to 0..1.5.
    float32 : dict of str to ndarray
        Mode to the float32 form's image after the last frame, (2H, 2W) float32, ADU.
    """

    name: str
    frames: np.ndarray
    truth: np.ndarray
    float32: dict[Mode, np.ndarray]


class Found(NamedTuple):
    """What `measure` finds: the figures of `device.model.GoldenFigures`, finite or not."""

    lost_db: float
    fidelity_db: float


def save(windows: list[GoldenWindow]) -> bytes:
    """Write windows as a compressed npz: the content of a golden file."""
    arrays: dict[str, Any] = {}
    for window in windows:
        arrays[f"{window.name}/frames"] = window.frames
        arrays[f"{window.name}/truth"] = window.truth
        for mode, image in window.float32.items():
            arrays[f"{window.name}/{mode}"] = image
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def load(content: bytes) -> list[GoldenWindow]:
    """Read what `save` wrote.

    Raises
    ------
    ModelError
        It is no such file.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = dict.fromkeys(key.partition("/")[0] for key in arrays)
            return [
                GoldenWindow(
                    name,
                    arrays[f"{name}/frames"],
                    arrays[f"{name}/truth"],
                    {mode: arrays[f"{name}/{mode}"] for mode in get_args(Mode)},
                )
                for name in names
            ]
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(
            "the golden file is not one (expected stacks with their truth and their images): "
            "copy the release again"
        ) from error


def examine(step: Step) -> list[Finding]:
    """Reconstruct the golden windows and compare with what was found at the release.

    Parameters
    ----------
    step : Step
        The form of the model to look at; not to be used elsewhere meanwhile.

    Returns
    -------
    list of Finding
        One for each window in each mode.

    Raises
    ------
    ModelError
        The model came without golden windows, or without figures of this form, or the file is not
        what the manifest says.
    """
    golden = step.manifest.golden
    if golden is None or step.form not in golden.figures:
        raise ModelError(
            f"the model {step.name} came without golden windows for this form; expected them "
            "beside an int8 file of a release; name such a file with --model"
        )
    expected = golden.figures[step.form]
    return [
        _finding(step, f"{window.name}, {mode}", measure(step, window, mode), figures)
        for window in load(_checked_content(step, golden))
        for mode in get_args(Mode)
        for figures in [expected[window.name][mode]]
    ]


def measure(step: Step, window: GoldenWindow, mode: Mode) -> Found:
    """Reconstruct a golden window and compare with its truth and the float32 image."""
    image, reference = reconstructed(step, window.frames, mode), window.float32[mode]
    return Found(
        lost_db=psnr_db(reference, window.truth) - psnr_db(image, window.truth),
        fidelity_db=fidelity_db(image, reference),
    )


def reconstructed(step: Step, frames: np.ndarray, mode: Mode) -> np.ndarray:
    """Reconstruct the image after the last frame, (2H, 2W) float32, ADU above background."""
    if mode == "window":
        return reconstruct_window(step, frames).image
    return deque(reconstruct_stream(step, frames), maxlen=1)[0].image


def psnr_db(image: np.ndarray, truth: np.ndarray) -> float:
    """PSNR of an image after the least-squares affine fit to the truth; the peak is the truth's.

    Parameters
    ----------
    image, truth : ndarray
        Of one shape; the truth as in `GoldenWindow`.
    """
    x, y = (a.astype(np.float64) - a.mean(dtype=np.float64) for a in (image, truth))
    power = float(np.sum(x * x))
    slope = float(np.sum(x * y)) / power if power > 0 else 0.0
    return _db(float(truth.max()), float(np.mean((slope * x - y) ** 2)))


def fidelity_db(image: np.ndarray, reference: np.ndarray) -> float:
    """PSNR of an image against a reference as they are; the peak is the reference's."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return _db(float(reference.max()), error)


def _db(peak: float, squared_error: float) -> float:
    if squared_error == 0:
        return float("inf")
    return float(10 * np.log10(peak**2 / squared_error))


def _finding(step: Step, what: str, found: Found, expected: GoldenFigures) -> Finding:
    lost = abs(found.lost_db - expected.lost_db)
    fidelity = abs(found.fidelity_db - expected.fidelity_db)
    text = (
        f"{what}: {found.lost_db:+.3f} dB lost from float32 to {step.form} (at the release "
        f"{expected.lost_db:+.3f}), {found.fidelity_db:.1f} dB like it ({expected.fidelity_db:.1f})"
    )
    # Not below the tolerance is how NaN comes here too.
    if lost <= LOST_TOLERANCE_DB and fidelity <= FIDELITY_TOLERANCE_DB:
        return Finding(True, text)
    return Finding(
        False,
        f"{text}; within {LOST_TOLERANCE_DB} and {FIDELITY_TOLERANCE_DB:g} dB of the release is "
        f"expected: copy the release again, or run it with another runtime than {step.runtime}",
    )


def _checked_content(step: Step, golden: GoldenFile) -> bytes:
    path = step.folder / golden.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"the golden file {path} cannot be read ({error.strerror or error}); expected it "
            "beside the model: copy the release again"
        ) from error
    if hashlib.sha256(content).hexdigest() != golden.sha256:
        raise ModelError(
            f"the golden file {path} is not what the manifest says; expected the checksum "
            f"{golden.sha256[:12]}...: copy the release again"
        )
    return content
