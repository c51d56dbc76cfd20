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
from device.expected_error import FLOOR, PART
from device.model import MODELS_DIR, load_step, newest_model
from device.reconstructor import reconstruct_window
from training.example import judged_pixels
from training.frozen import DEFAULT_CACHE, FRAMES, load_all
from training.reports import save_json, table

PIXELS = 4000  # of each stack
DECILES = 10

Content = dict[str, Any]
Groups = list[tuple[float, float, float]]


def deciles(expected: np.ndarray, errors: np.ndarray) -> Groups:
    """Compare expected with actual errors, in each tenth of the pixels by the expected.

    Returns
    -------
    list of tuple of float
        Median of what was expected; the error that `PART` of the pixels are within; the part of
        them that is within what was expected.
    """
    off = np.abs(errors)
    groups = np.array_split(np.argsort(expected), DECILES)
    return [
        (
            float(np.median(expected[group])),
            float(np.quantile(off[group], PART)),
            float(np.mean(off[group] <= expected[group] + FLOOR)),
        )
        for group in groups
    ]


def decile_table(found: dict[str, Groups]) -> str:
    """Lay out what `deciles` found of each kind of pixels, in percent, Markdown."""
    head = ["tenth of the pixels, by the expected error", *(str(k + 1) for k in range(DECILES))]
    rows = []
    for kind, groups in found.items():
        expected, actual, within = np.array(groups).T
        rows.append([f"{kind}: expected, %", *(f"{100 * value:.1f}" for value in expected)])
        rows.append([f"{kind}: actual, %", *(f"{100 * value:.1f}" for value in actual)])
        rows.append([f"{kind}: pixels within", *(f"{value:.0%}" for value in within)])
    return table(head, rows)


def measure(model: Path | None = None, cache: Path = DEFAULT_CACHE) -> Content:
    """Judge the expected errors of a model's windows; default is the newest int8 one.

    Returns
    -------
    dict
        ``model``; ``deciles``: kind of stack to what `deciles` says of the pixels taken;
        ``stacks``: of each stack its kind, the means of what was expected and of the error's size,
        both normalized, and the part of its pixels that is within.

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
        off = np.abs(errors)
        found_here = expected.mean(), off.mean(), np.mean(off <= expected + FLOOR)
        of_stacks.append([kind, *(round(float(each), 4) for each in found_here)])
    joined = {kind: map(np.concatenate, zip(*pairs, strict=True)) for kind, pairs in pixels.items()}
    found_deciles = {kind: deciles(*pair) for kind, pair in joined.items()}
    return {"model": step.sha256, "deciles": found_deciles, "stacks": of_stacks}


SECTION = """
### How far an image may be off

`reconstruct --error`, the page (*Error*) and `/snapshot.tif?view=error` say of each pixel within
which error {part:.0%} of such pixels are, as simulated stacks taught a small network
(`device/expected_error.py`). On the frozen stacks, {pixels} pixels of each, in percent of what is
normalized to 1 (about the image's 99.5th percentile); *actual* is the error that {part:.0%} are
within. Stack by stack {median:.0%} of the pixels are within what was expected (median; from
{low:.0%} to {high:.0%}); the mean of what was expected and the mean error of the stacks have a rank
correlation of {correlation:.2f} (`python -m training calibration`). Windows of {frames} frames are
judged; for a stream it is what a window would be off by, which is played twice and so a little
better, and with fewer frames none is given.
Errors below {floor:.1%} are not told apart: they are given as 0, and count as within.

{deciles}"""


def section(content: Content) -> str:
    """Write the model card's section, Markdown."""
    expected, actual, within = np.array([each[1:] for each in content["stacks"]], float).T
    return SECTION.format(
        part=PART,
        pixels=PIXELS,
        frames=FRAMES,
        floor=FLOOR,
        median=np.median(within),
        low=within.min(),
        high=within.max(),
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
