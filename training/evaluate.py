"""One table: every method and every form of the model on the frozen test stacks.

Also, with ``--measured``, what can be said about a measured stack, where there is no truth.
Writes Markdown, JSON and one picture per set of stacks into a folder.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from device.errors import UserError
from device.files import write_text
from device.model import MODELS_DIR, ModelError, Step, load_step, newest_model
from device.normalize import measure
from device.reconstructor import reconstruct_stream, reconstruct_window
from device.stack import open_stack
from training import baselines, frozen, metrics
from training.baselines import REFERENCE
from training.frozen import FrozenStack, Recipe
from training.pictures import Images, Panels, panel_methods, save_panel
from training.reports import save_json, table

log = logging.getLogger(__name__)

Methods = dict[str, baselines.Method]

STREAM_FRAMES = (30, 120)
FORMS = ("float32", "int8")
TWIN = "twin, trained on copies of the mean"
ORIGINAL = "original's architecture, trained on our data"

GROUPS: dict[str, Callable[[Recipe], bool]] = {
    "thin": lambda recipe: recipe.kind == "thin",
    "thin, blinking": lambda recipe: recipe.kind == "thin" and recipe.fluctuation == "blinking",
    "thin, speckle": lambda recipe: recipe.kind == "thin" and recipe.fluctuation == "speckle",
    "thin, unseen": lambda recipe: recipe.kind == "thin" and recipe.unseen,
    "continuous": lambda recipe: recipe.kind == "continuous",
    "continuous, blinking": lambda recipe: (
        recipe.kind == "continuous" and recipe.fluctuation == "blinking"
    ),
    "continuous, speckle": lambda recipe: (
        recipe.kind == "continuous" and recipe.fluctuation == "speckle"
    ),
    "continuous, unseen": lambda recipe: recipe.kind == "continuous" and recipe.unseen,
}
KINDS = ("thin", "continuous")


@dataclass(frozen=True, slots=True)
class Score:
    """One method on one stack.

    Attributes
    ----------
    stack_id : int
        Of the frozen stack.
    method : str
        Name of the method or of the model's form and mode.
    psnr_db, ssim, nrmse : float
        As in `training.metrics`.
    """

    stack_id: int
    method: str
    psnr_db: float
    ssim: float
    nrmse: float


@dataclass(frozen=True, slots=True)
class Row:
    """One method over a group of stacks.

    Attributes
    ----------
    method, group : str
        What was scored on what.
    stacks : int
        Number of stacks in the group.
    psnr_db, ssim, nrmse : float
        Means over the stacks.
    gain_db, worst_gain_db : float
        Mean and smallest difference of the PSNR to that of the bicubic mean of the same stack.
    """

    method: str
    group: str
    stacks: int
    psnr_db: float
    ssim: float
    nrmse: float
    gain_db: float
    worst_gain_db: float


# ----------------------------------------------------------------------------------- frozen stacks


def stream_images(step: Step, frames: np.ndarray, at_frames: Sequence[int]) -> dict[int, Any]:
    """Reconstruct frame by frame and keep the images after so many frames.

    Parameters
    ----------
    step : Step
        The model.
    frames : ndarray
        (T, H, W) in ADU.
    at_frames : sequence of int
        Numbers of frames, from 1 to T.

    Returns
    -------
    dict of int to ndarray
        Number of frames to image (2H, 2W).
    """
    results = reconstruct_stream(step, islice(frames, max(at_frames)))
    return {
        count: result.image for count, result in enumerate(results, start=1) if count in at_frames
    }


def model_images(
    steps: Mapping[str, Step], frames: np.ndarray, stream_frames: Sequence[int]
) -> Images:
    """Reconstruct with every model, as a window of the first 30 frames and as a stream."""
    images = {}
    for name, step in steps.items():
        images[f"{name}, window"] = reconstruct_window(step, frames[: frozen.FRAMES]).image
        if stream_frames:
            stream = stream_images(step, frames, stream_frames)
            images |= {f"{name}, stream {count}": image for count, image in stream.items()}
    return images


def told_images(steps: Mapping[str, Step], window: np.ndarray, psf_sigma_px: float) -> Images:
    """Reconstruct a window with every model that takes the PSF's width, and is told it."""
    return {
        f"{name}, window, PSF told": reconstruct_window(step, window, psf_sigma_px).image
        for name, step in steps.items()
        if step.manifest.takes_psf
    }


def found_psf(steps: Mapping[str, Step], window: np.ndarray) -> float:
    """Width of the PSF, px, that the models find in a window themselves, or the blind methods'.

    It is what was found, not the somewhat smaller width that the network is told.
    """
    for step in steps.values():
        if step.psf_width is not None:
            settings = step.manifest.normalization.settings()
            frames = measure(window.mean(axis=0), settings=settings).normalize(window)
            if (found := step.psf_width.estimate(frames)) and found.told_px:
                return found.sigma_px
    return baselines.BLIND_SIGMA_PX


def copies_of_the_mean(frames: np.ndarray, count: int) -> np.ndarray:
    """Repeat the mean of frames, (T, H, W), so many times, (count, H, W) float32."""
    mean = frames.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.broadcast_to(mean, (count, *mean.shape))


def without_fluctuation(frames: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Take from a window, (T, H, W), what only its fluctuation tells.

    Returns
    -------
    dict of str to ndarray
        ``copies of the mean``, and ``shuffled in time``: each pixel's own series in another order,
        so that its mean and variance stay and the correlation with its neighbours goes.
    """
    return {
        "copies of the mean": copies_of_the_mean(frames, len(frames)),
        "shuffled in time": rng.permuted(frames, axis=0),
    }


def ablation_images(steps: Mapping[str, Step], window: np.ndarray) -> Images:
    """Reconstruct a window that has lost its fluctuation, with every float model."""
    changed = without_fluctuation(window, np.random.default_rng(0))
    return {
        f"{name}, window, {change}": reconstruct_window(step, frames).image
        for name, step in steps.items()
        if not name.endswith("int8")
        for change, frames in changed.items()
    }


def trained_methods(twin: Path | None = None, original: Path | None = None) -> Methods:
    """Load the networks that were trained to be compared with; those that are named.

    Parameters
    ----------
    twin : Path, optional
        The .tflite file of the network that was trained on copies of the mean, and is fed such. It
        is as large as ours, and was trained as long: what ours gains over it is what the
        fluctuation gives.
    original : Path, optional
        The run's folder of the original's architecture, trained on our data.

    Raises
    ------
    ModelError, UserError
        The file or the folder holds no such network.
    """
    methods: Methods = {}
    if twin is not None:
        methods[TWIN] = partial(twin_image, load_step(twin))
    if original is not None:
        from training.windows import load_method  # Keras, which nothing else here needs

        methods[ORIGINAL] = load_method(original, "original")
    return methods


def twin_image(twin: Step, frames: np.ndarray) -> np.ndarray:
    """Feed the twin as it was trained: a whole window of copies of the mean of all the frames.

    Few frames make a noisy mean, not a short window; of a stream it sees the mean of the whole.
    """
    copies = copies_of_the_mean(frames, twin.manifest.frames)
    return reconstruct_window(twin, copies).image


def stack_images(
    stack: FrozenStack,
    steps: Mapping[str, Step],
    stream_frames: Sequence[int] = STREAM_FRAMES,
    trained: Methods | None = None,
) -> Images:
    """Reconstruct one stack with every method; baselines see its first 30 frames.

    Parameters
    ----------
    stack : FrozenStack
        At least as many frames as the largest of `stream_frames`.
    steps : mapping of str to Step
        The model's forms by name.
    stream_frames : sequence of int
        Numbers of frames after which the stream mode is scored; may be empty.
    trained : dict of str to callable, optional
        Networks to compare with, see `trained_methods`.

    Returns
    -------
    dict of str to ndarray
        Method to image (2H, 2W).
    """
    known = baselines.informed_methods(stack.recipe.psf_sigma_px)
    window = stack.frames[: frozen.FRAMES]  # (30, H, W)
    methods = baselines.methods() | known | (trained or {})
    methods |= baselines.informed_methods(found_psf(steps, window), "RL found sigma")
    images = {name: method(window) for name, method in methods.items()}
    images |= model_images(steps, stack.frames, stream_frames)
    images |= told_images(steps, window, stack.recipe.psf_sigma_px)
    return images | ablation_images(steps, window)


def score(stack: FrozenStack, images: Images) -> list[Score]:
    """Score the images of one stack against its truth."""
    return [
        Score(
            stack.recipe.stack_id,
            method,
            metrics.psnr_db(image, stack.target),
            metrics.ssim(image, stack.target),
            metrics.nrmse(image, stack.target),
        )
        for method, image in images.items()
    ]


def summarized(scores: Sequence[Score], recipes: Iterable[Recipe]) -> list[Row]:
    """Bring the scores of single stacks to one row per method and group.

    Parameters
    ----------
    scores : sequence of Score
        Of any stacks and methods; each stack with the bicubic mean among its methods.
    recipes : iterable of Recipe
        Of these stacks at least.

    Returns
    -------
    list of Row
        In the order of the methods; groups without stacks are left out.
    """
    reference = {each.stack_id: each.psnr_db for each in scores if each.method == REFERENCE}
    by_id = {recipe.stack_id: recipe for recipe in recipes}
    rows = []
    for method in dict.fromkeys(each.method for each in scores):
        mine = [each for each in scores if each.method == method]
        for group, belongs in GROUPS.items():
            members = [each for each in mine if belongs(by_id[each.stack_id])]
            if members:
                rows.append(_row(method, group, members, reference))
    return rows


def _row(method: str, group: str, members: Sequence[Score], reference: Mapping[int, float]) -> Row:
    gains = [each.psnr_db - reference[each.stack_id] for each in members]
    return Row(
        method=method,
        group=group,
        stacks=len(members),
        psnr_db=float(np.mean([each.psnr_db for each in members])),
        ssim=float(np.mean([each.ssim for each in members])),
        nrmse=float(np.mean([each.nrmse for each in members])),
        gain_db=float(np.mean(gains)),
        worst_gain_db=float(np.min(gains)),
    )


def evaluate_frozen(
    steps: Mapping[str, Step],
    stream_frames: Sequence[int] = STREAM_FRAMES,
    cache: Path | None = frozen.DEFAULT_CACHE,
    chosen: Sequence[Recipe] | None = None,
    keep: Callable[[FrozenStack, Images], None] = lambda stack, images: None,
    trained: Methods | None = None,
) -> list[Score]:
    """Score every method on the frozen stacks.

    Parameters
    ----------
    steps : mapping of str to Step
        The model's forms by name; may be empty.
    stream_frames : sequence of int
        See `stack_images`.
    cache : Path or None
        Where the stacks are kept between runs.
    chosen : sequence of Recipe, optional
        Some of the stacks; default all.
    keep : callable
        Called with each stack and its images, to keep what a picture needs.
    trained : dict of str to callable, optional
        Networks to compare with, see `trained_methods`.

    Returns
    -------
    list of Score
        One per stack and method.
    """
    frames = max(frozen.FRAMES, *stream_frames, 1) if steps else frozen.FRAMES
    scores: list[Score] = []
    for stack in frozen.load_all(frames, cache, chosen):
        images = stack_images(stack, steps, stream_frames, trained)
        scores += score(stack, images)
        keep(stack, images)
        log.info("%s is scored", stack.recipe.name)
    return scores


def markdown(rows: Sequence[Row]) -> str:
    """Lay the rows out: PSNR in every group, then the worst stack and the SSIM of each kind."""
    found = {(row.method, row.group): row for row in rows}
    groups = [group for group in GROUPS if any(row.group == group for row in rows)]
    kinds = [kind for kind in KINDS if kind in groups]
    head = [f"{group} ({found[REFERENCE, group].stacks})" for group in groups]
    head += [f"worst gain, {kind}" for kind in kinds] + [f"SSIM, {kind}" for kind in kinds]
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        cells = [f"{found[method, group].psnr_db:.2f}" for group in groups]
        cells += [f"{found[method, kind].worst_gain_db:+.2f}" for kind in kinds]
        cells += [f"{found[method, kind].ssim:.3f}" for kind in kinds]
        lines.append([method, *cells])
    return table(["PSNR, dB", *head], lines)


# ---------------------------------------------------------------------------------- measured stacks


def measured_scores(frames: np.ndarray, method: baselines.Method) -> dict[str, float]:
    """Judge a method on a stack without truth.

    Parameters
    ----------
    frames : ndarray
        (T, H, W) in ADU, at least 4 frames.
    method : callable
        Frames to image (2H, 2W).

    Returns
    -------
    dict of str to float
        ``rsp``, ``rse_adu``, ``odd_even``, ``sharpness`` (absolute; quoted relative to the
        bicubic mean's by `measured_table`), ``frc_cutoff_per_px`` (cycles per output px).
    """
    widefield = frames.mean(axis=0, dtype=np.float64)
    whole, even, odd = (method(part) for part in (frames, frames[0::2], frames[1::2]))
    side = min(whole.shape)
    return {
        "rsp": metrics.rsp(widefield, whole),
        "rse_adu": metrics.rse(widefield, whole),
        "odd_even": metrics.odd_even(odd, even),
        "sharpness": metrics.sharpness(odd, even),
        "frc_cutoff_per_px": metrics.frc_cutoff(odd[:side, :side], even[:side, :side]),
    }


def measured_methods(steps: Mapping[str, Step], trained: Methods | None = None) -> Methods:
    """All methods that need no truth, the model's forms in window mode among them."""
    ours: Methods = {
        f"{name}, window": partial(_window_image, step) for name, step in steps.items()
    }
    return baselines.methods() | (trained or {}) | ours


def _window_image(step: Step, frames: np.ndarray) -> np.ndarray:
    return reconstruct_window(step, frames).image


def measured_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Lay the scores of `measured_scores` out, S relative to the bicubic mean's."""
    head = ["measured", "RSP", "RSE, ADU", "odd/even", "S / S(mean)", "FRC, cycles/px"]
    lines = []
    reference = scores[REFERENCE]["sharpness"]
    for method, each in scores.items():
        relative = each["sharpness"] / reference if reference else float("nan")
        cells = [f"{each['rsp']:.3f}", f"{each['rse_adu']:.3g}", f"{each['odd_even']:.3f}"]
        cells += [f"{relative:.2f}", f"{each['frc_cutoff_per_px']:.3f}"]
        lines.append([method, *cells])
    return table(head, lines)


def read_window(path: Path) -> np.ndarray:
    """Read the last 30 frames of a measured stack, (T, H, W).

    Raises
    ------
    UserError
        The stack cannot be read, or has fewer than 4 frames: its odd and its even frames are
        reconstructed apart.
    """
    with open_stack(path) as stack:
        count = stack.shape[0]
        if count < 4:
            raise UserError(f"{path} has {count} frames; at least 4 are needed: give a longer one.")
        return np.stack([stack.read(i) for i in range(max(0, count - frozen.FRAMES), count)])


# ------------------------------------------------------------------------------------- command line


def default_models(folder: Path = MODELS_DIR) -> list[Path]:
    """Find the newest model's forms; empty where there is none."""
    try:
        newest = newest_model(folder)
    except ModelError:
        log.warning("no model is in %s: only the baselines are scored", folder)
        return []
    forms = [newest.with_name(newest.name.replace("-int8.", f"-{form}.")) for form in FORMS]
    return [path for path in forms if path.exists()]


def load_steps(paths: Sequence[Path]) -> dict[str, Step]:
    """Load models by their file names without ending.

    Raises
    ------
    UserError
        Two files have the same name, so that the table could not tell them apart.
    ModelError
        A model cannot be used.
    """
    steps = [load_step(path) for path in paths]
    if len({step.name for step in steps}) < len(steps):
        raise UserError("Two of the models have the same file name; rename one of them.")
    return {step.name: step for step in steps}


def report_frozen(
    steps: Mapping[str, Step],
    folder: Path,
    stream_frames: Sequence[int],
    cache: Path | None,
    trained: Methods | None = None,
) -> str:
    """Score the frozen stacks; write ``frozen.json``, ``frozen.md`` and pictures into a folder."""
    panels = Panels(steps)
    scores = evaluate_frozen(steps, stream_frames, cache, keep=panels.keep, trained=trained)
    rows = summarized(scores, frozen.recipes())
    content = {
        "generator": frozen.version_key(),
        "frozen_version": frozen.VERSION,
        "models": {name: step.sha256 for name, step in steps.items()},
        "rows": [asdict(row) for row in rows],
        "stacks": [asdict(recipe) for recipe in frozen.recipes()],
        "scores": [asdict(each) for each in scores],
    }
    save_json(folder / "frozen.json", content)
    text = markdown(rows)
    write_text(folder / "frozen.md", f"Frozen test set {frozen.version_key()}.\n\n{text}")
    panels.save(folder)
    return text


def report_measured(
    steps: Mapping[str, Step],
    folder: Path,
    path: Path,
    trained: Methods | None = None,
) -> str:
    """Judge a measured stack; write ``measured.json``, ``measured.md`` and a picture."""
    frames = read_window(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    methods = measured_methods(steps, trained)
    scores = {name: measured_scores(frames, method) for name, method in methods.items()}
    content = {
        "file": path.name,
        "sha256": sha256,
        "frames": len(frames),
        "models": {name: step.sha256 for name, step in steps.items()},
        "scores": scores,
    }
    save_json(folder / "measured.json", content)
    text = measured_table(scores)
    title = f"{path.name}, {len(frames)} frames, SHA-256 {sha256}.\n\n"
    write_text(folder / "measured.md", title + text)
    shown = {name: methods[name](frames) for name in panel_methods(steps)}
    save_panel(folder / "panel-measured.png", {path.name: shown})
    return title + text


def _frame_count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= frozen.MAX_FRAMES:
        raise argparse.ArgumentTypeError(f"{count} is not between 1 and {frozen.MAX_FRAMES}")
    return count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training evaluate``."""
    add_model_argument(parser)
    parser.add_argument(
        "--stream-frames",
        type=_frame_count,
        nargs="*",
        default=list(STREAM_FRAMES),
        metavar="N",
        help="score the stream mode after so many frames (default: 30 120)",
    )
    parser.add_argument("--measured", type=Path, metavar="FILE", help="judge this stack instead")
    add_trained_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder to write")
    parser.add_argument(
        "--cache", type=Path, default=frozen.DEFAULT_CACHE, help="where frozen stacks are kept"
    )


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Declare which models are measured; `default_models` where none is named."""
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        metavar="FILE",
        help=".tflite file, may be repeated; default: both forms of the newest in models/",
    )


def add_trained_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which networks were trained to be compared with."""
    add_twin_argument(parser)
    parser.add_argument(
        "--original",
        type=Path,
        metavar="RUN",
        help="run of the original's architecture on our data (settings original_network): that in "
        "models/original_network, for one",
    )


def add_twin_argument(parser: argparse.ArgumentParser) -> None:
    """Declare which model is the twin."""
    parser.add_argument(
        "--twin",
        type=Path,
        metavar="FILE",
        help="float32 .tflite file of the twin that was trained on copies of the mean: that in "
        "models/twin, for one",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training evaluate``."""
    steps = load_steps(default_models() if args.model is None else args.model)
    if args.measured is not None:
        open_stack(args.measured).close()  # refused before a folder is made
    trained = trained_methods(args.twin, args.original)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.measured is not None:
        sys.stdout.write(report_measured(steps, args.out, args.measured, trained))
    else:
        sys.stdout.write(report_frozen(steps, args.out, args.stream_frames, args.cache, trained))
    return 0
