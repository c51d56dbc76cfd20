"""Whether the error that is expected of each pixel is the one it has, on the frozen stacks.

What says the expected error (`device.expected_error`) was trained on simulated stacks of the
training's forward model. The frozen stacks come from other code, with specimens that were never
seen, so that an error that is expected too small shows here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from device.errors import UserError
from device.model import MODELS_DIR, load_step, newest_model
from device.reconstructor import reconstruct_window
from training.example import judged_pixels
from training.frozen import DEFAULT_CACHE, FRAMES, load_all
from training.reports import save_json, table

PIXELS = 4000  # of each stack
DECILES = 10

Content = dict[str, Any]
Groups = list[tuple[float, float]]


def deciles(expected: np.ndarray, errors: np.ndarray) -> Groups:
    """Compare expected with actual errors: the rms of both in each tenth, by the expected."""
    groups = np.array_split(np.argsort(expected), DECILES)
    return [(_rms(expected[group]), _rms(errors[group])) for group in groups]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def decile_table(found: dict[str, Groups]) -> str:
    """Lay out what `deciles` found of each kind of pixels, in percent, Markdown."""
    head = ["tenth of the pixels, by the expected error", *(str(k + 1) for k in range(DECILES))]
    rows = []
    for kind, groups in found.items():
        for name, values in zip(("expected", "actual"), zip(*groups, strict=True), strict=True):
            rows.append([f"{kind}: {name}, %", *(f"{100 * value:.1f}" for value in values)])
    return table(head, rows)


def measure(model: Path | None = None, cache: Path = DEFAULT_CACHE) -> Content:
    """Judge the expected errors of a model's windows; default is the newest int8 one.

    Returns
    -------
    dict
        ``model``; ``deciles``: kind of stack to the expected and actual errors of each tenth of
        the pixels taken, normalized; ``stacks``: of each stack its kind and both over its pixels.

    Raises
    ------
    UserError
        The model does not say how far it may be off.
    """
    step = load_step(model or newest_model(MODELS_DIR))
    estimator = step.expected_error
    if estimator is None:
        raise UserError(f"{step.name} does not say how far it may be off: name one that does.")
    pixels: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    of_stacks = []
    for stack in load_all(FRAMES, cache):
        result = reconstruct_window(step, stack.frames)
        number, kind = stack.recipe.stack_id, stack.recipe.kind
        found, errors = judged_pixels(result, stack.target, PIXELS, number)
        expected = estimator.of_features(found)
        pixels.setdefault(kind, []).append((expected, errors))
        of_stacks.append([kind, round(_rms(expected), 4), round(_rms(errors), 4)])
    joined = {kind: map(np.concatenate, zip(*pairs, strict=True)) for kind, pairs in pixels.items()}
    found_deciles = {kind: deciles(*pair) for kind, pair in joined.items()}
    return {"model": step.sha256, "deciles": found_deciles, "stacks": of_stacks}


SECTION = """
### How far an image may be off

`reconstruct --error`, the page (*Error*) and `/snapshot.tif?view=error` say one standard error of
each pixel, as simulated stacks taught a small network (`device/expected_error.py`). On the frozen
stacks, {pixels} pixels of each, in percent of what is normalized to 1 (about the image's 99.5th
percentile); the root mean square of what was expected, and of image less truth. Stack by stack the
actual error is {median:.2f} times the expected one (median; from {low:.2f} to {high:.2f}); the two
have a rank correlation of {correlation:.2f} (`python -m training calibration`). Windows of {frames}
frames are judged; a stream is told what a window would be off by, fewer frames nothing.

{deciles}"""


def section(content: Content) -> str:
    """Write the model card's section, Markdown."""
    expected, actual = np.array([each[1:] for each in content["stacks"]], float).T
    ratios = actual / expected
    return SECTION.format(
        pixels=PIXELS,
        frames=FRAMES,
        median=np.median(ratios),
        low=ratios.min(),
        high=ratios.max(),
        correlation=stats.spearmanr(expected, actual).statistic,
        deciles=decile_table(content["deciles"]),
    )


def report(content: Content, folder: Path) -> None:
    """Write ``calibration.json`` into a folder."""
    save_json(folder / "calibration.json", content)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training calibration``."""
    parser.add_argument("--model", type=Path, metavar="FILE", help="default: the newest int8 step")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder to write")


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training calibration``."""
    args.out.mkdir(parents=True, exist_ok=True)
    content = measure(args.model)
    report(content, args.out)
    sys.stdout.write(section(content))
    return 0
