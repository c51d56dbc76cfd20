"""Write the golden windows that a device checks its own accuracy with (`device.golden`).

Short stacks of the training's own simulator: what is compared is two forms of one network on the
same frames, so that no test set is spent on it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np

from device.files import whole_or_nothing, write_text
from device.golden import GoldenWindow, measure, reconstructed, save
from device.model import MODELS_DIR, Step, load_step, newest_model
from device.reconstructor import Mode
from training.forward_model import WINDOW, ForwardModelSettings, simulate
from training.metrics import normalized_truth

log = logging.getLogger(__name__)

SIZE_PX = 64
SEED = 20_061  # first word; the kind's place is the second
KINDS: dict[str, dict[str, float]] = {
    "thin, blinking": {"thin_fraction": 1.0, "blinking_fraction": 1.0},
    "thin, speckle": {"thin_fraction": 1.0, "blinking_fraction": 0.0},
    "continuous, speckle": {"thin_fraction": 0.0, "blinking_fraction": 0.0},
}
FORMS = ("int8",)


def golden_stacks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Simulate one stack of each kind.

    Returns
    -------
    dict of str to (ndarray, ndarray)
        Kind to frames (30, 64, 64) uint16 and truth (128, 128) float32 in the PSNR's unit.
    """
    stacks = {}
    for place, (kind, chosen) in enumerate(KINDS.items()):
        # 12 bits and no more: what lies in the bits above is noise that does not compress.
        settings = ForwardModelSettings(
            both_fraction=0.0,
            bleaching_fraction=0.0,
            photons=(100.0, 400.0),
            bit_depths=(12,),
            **chosen,
        )
        rng = np.random.default_rng((SEED, place))
        stack = simulate(settings, WINDOW, (SIZE_PX, SIZE_PX), rng)
        stacks[kind] = stack.frames, normalized_truth(stack.truth).astype(np.float32)
    return stacks


def golden_windows(float32: Step) -> list[GoldenWindow]:
    """Reconstruct the golden stacks with the float32 form, in both modes."""
    return [
        GoldenWindow(
            kind, frames, truth, {m: reconstructed(float32, frames, m) for m in get_args(Mode)}
        )
        for kind, (frames, truth) in golden_stacks().items()
    ]


def figures(step: Step, windows: list[GoldenWindow]) -> dict[str, dict[str, dict[str, float]]]:
    """Measure a form on the golden windows: window to mode to what a device is to find."""
    return {
        window.name: {
            mode: {k: round(v, 4) for k, v in measure(step, window, mode)._asdict().items()}
            for mode in get_args(Mode)
        }
        for window in windows
    }


def add_golden(manifest_path: Path) -> None:
    """Write the golden file beside a pair, and its entry into their manifest.

    Parameters
    ----------
    manifest_path : Path
        The pair's manifest; the pair lies beside it.
    """
    manifest: dict[str, Any] = json.loads(manifest_path.read_text())
    steps = {form: load_step(manifest_path.with_name(f["file"])) for form, f in _files(manifest)}
    windows = golden_windows(steps["float32"])
    content = save(windows)
    path = manifest_path.with_suffix(".golden.npz")
    with whole_or_nothing(path) as beside:
        beside.write_bytes(content)
    manifest["golden"] = {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "figures": {form: figures(steps[form], windows) for form in FORMS},
    }
    write_text(manifest_path, json.dumps(manifest, indent=2) + "\n")
    log.info("%s: %d bytes", path.name, len(content))


def _files(manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(manifest["files"].items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training golden``."""
    parser.add_argument("--models", type=Path, default=MODELS_DIR, help="folder of the pair")


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training golden``: renew the golden file of a pair that is there."""
    from training.release import write_checksums

    path = newest_model(arguments.models)
    add_golden(path.with_name(path.name.replace("-int8.tflite", ".json")))
    write_checksums(arguments.models)
    return 0
