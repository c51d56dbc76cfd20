"""What int8 costs, and whether a stream stays what it was: tables, plots, and figures as JSON.

Four questions to the pair of a release:

- On each frozen test stack, how much PSNR and SSIM does int8 lose, as a window and as a stream?
- In which tensor does the noise arise, and how much of the state lies at the ends of int8?
- Does a stream over a specimen that stays drift away from a window of the same last frames?
- How good is a stream 30 frames after its specimen was replaced or moved, and what is left of the
  old one after 60, without a reset and with the daemon's own?
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device.errors import UserError
from device.files import write_text
from device.model import MODELS_DIR, Step, load_step
from training import drift, evaluate, frozen, simulators, trials
from training.golden import golden_stacks
from training.inspection import CountingStep, Saturation, ends_of_outputs, signal_to_noise_db
from training.reports import save_figure, save_json, table
from training.scenes import KINDS, draw_scene

log = logging.getLogger(__name__)

FORMS = ("float32", "int8")
FRAMES = 30_000
RELEASE_FRAMES = 3_000  # of a release, so that it takes minutes
SCENE_PX = 64
SEED = 20_062  # first word; scene and purpose are the next

Content = dict[str, Any]


# ------------------------------------------------------------------------------------ frozen stacks


def frozen_losses(scores: Iterable[evaluate.Score]) -> Content:
    """Compare int8 with float32 stack by stack.

    Parameters
    ----------
    scores : iterable of Score
        Of the methods ``FORM, MODE``; others are left out.

    Returns
    -------
    dict
        Mode to ``psnr_db`` and ``ssim``, each with ``mean``, ``worst``, ``worst_stack`` and
        ``stacks``; int8 less float32, so that a loss is negative.
    """
    by_method: dict[str, dict[int, evaluate.Score]] = {}
    for score in scores:
        by_method.setdefault(score.method, {})[score.stack_id] = score
    names = {recipe.stack_id: recipe.name for recipe in frozen.recipes()}
    modes = [m.partition(", ")[2] for m in by_method if m.startswith("int8, ")]
    return {
        mode: {
            what: _loss(
                {
                    names[stack]: getattr(score, what) - getattr(twins[stack], what)
                    for stack, score in by_method[f"int8, {mode}"].items()
                }
            )
            for what in ("psnr_db", "ssim")
        }
        for mode in modes
        for twins in [by_method[f"float32, {mode}"]]
    }


def _loss(differences: Mapping[str, float]) -> Content:
    worst = min(differences, key=lambda name: differences[name])
    return {
        "mean": float(np.mean(list(differences.values()))),
        "worst": differences[worst],
        "worst_stack": worst,
        "stacks": dict(differences),
    }


def score_frozen(
    steps: Mapping[str, Step],
    cache: Path | None = frozen.DEFAULT_CACHE,
    chosen: Sequence[frozen.Recipe] | None = None,
) -> list[evaluate.Score]:
    """Score both forms, without the baselines, on the frozen stacks."""
    scores: list[evaluate.Score] = []
    for stack in frozen.load_all(max(evaluate.STREAM_FRAMES), cache, chosen):
        images = evaluate.model_images(steps, stack.frames, evaluate.STREAM_FRAMES)
        scores += evaluate.score(stack, images)
    return scores


# ------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Job:
    """All that is done with one kind of scene; a process of its own may do it."""

    kind: str
    files: Mapping[str, Path]
    frames: int


@dataclass(frozen=True)
class JobResult:
    """What a `Job` found; saturation by form's state output, over the whole stream."""

    drifts: list[drift.Drift]
    responses: list[drift.StepResponse]
    saturation: dict[str, Saturation]


def do(job: Job) -> JobResult:
    """Play the scenes of a kind to both forms."""
    steps = {form: load_step(path) for form, path in job.files.items()}
    counting = _counting(steps["int8"], job.files["int8"])
    watched = {**steps, "int8": counting}
    place = list(KINDS).index(job.kind)
    scene = draw_scene(job.kind, SCENE_PX, np.random.default_rng((SEED, place, 0)))
    other = draw_scene(job.kind, SCENE_PX, np.random.default_rng((SEED, place, 1)))
    after = {"replaced": other, "moved": scene.moved(drift.MOVED_PX)}
    rng = np.random.default_rng((SEED, place, 2))
    drifts = drift.drift(job.kind, scene, watched, job.frames, rng)
    counted = dict(counting.counts)
    rng = np.random.default_rng((SEED, place, 3))  # whatever the length of the stream was
    responses = [
        each
        for change in drift.CHANGES
        for each in drift.step_response(job.kind, change, (scene, after[change]), steps, rng)
    ]
    return JobResult(drifts, responses, counted)


def _counting(step: Step, path: Path) -> CountingStep:
    ends = ends_of_outputs(path.read_bytes(), step.manifest.signature)
    return CountingStep(step, {name: ends[name] for name in step.manifest.state.values()})


def play(files: Mapping[str, Path], frames: int, workers: int) -> list[JobResult]:
    """Do the job of every kind of scene, in so many processes; 0 is in this one."""
    jobs = [Job(kind, files, frames) for kind in KINDS]
    pool = simulators.start(workers)
    if pool is None:
        return [do(job) for job in jobs]
    with pool:
        return list(pool.map(do, jobs))


# ------------------------------------------------------------------------------------------- report


def measure(
    models: Path, frames: int, workers: int, scores: Sequence[evaluate.Score] | None = None
) -> Content:
    """Answer all questions for the pair in a folder.

    Parameters
    ----------
    models : Path
        Folder of the pair and its manifest.
    frames : int
        Length of the longest stream.
    workers : int
        Processes that play scenes.
    scores : sequence of Score, optional
        Of ``FORM, MODE`` on the frozen stacks, where they are known already.
    """
    files = dict(zip(FORMS, _pair(models), strict=True))
    steps = {form: load_step(path) for form, path in files.items()}
    stacks = [frames_ for frames_, _ in golden_stacks().values()]
    tensors, unmatched = signal_to_noise_db(files, steps, stacks)
    results = play(files, frames, workers)
    return {
        "models": {step.name: step.sha256 for step in steps.values()},
        "frozen_version": frozen.VERSION,
        "frozen": frozen_losses(score_frozen(steps) if scores is None else scores),
        "tensors_snr_db": tensors,
        "tensors_without_twin": unmatched,
        "saturation": _summed(results),
        "drift": [asdict(each) for result in results for each in result.drifts],
        "step_response": [asdict(each) for result in results for each in result.responses],
    }


def _pair(models: Path) -> list[Path]:
    found = {path.name.rpartition("-")[2]: path for path in evaluate.default_models(models)}
    missing = [form for form in FORMS if f"{form}.tflite" not in found]
    if missing:
        raise UserError(
            f"{models} holds no {missing[0]} form of the newest model, and both are compared: "
            "name the folder of a release with --models."
        )
    return [found[f"{form}.tflite"] for form in FORMS]


def _summed(results: Sequence[JobResult]) -> Content:
    total: dict[str, Saturation] = {}
    for result in results:
        for name, counted in result.saturation.items():
            total.setdefault(name, Saturation()).add(counted)
    return {name: counted.shares() for name, counted in total.items()}


def drift_rows(content: Content) -> list[tuple[int, dict[str, float]]]:
    """Frames to PSNR of ``FORM, MODE``, mean over the scenes, dB."""
    table: dict[int, dict[str, list[float]]] = {}
    for each in content["drift"]:
        cells = table.setdefault(each["frames"], {})
        cells.setdefault(f"{each['form']}, {each['mode']}", []).append(each["psnr_db"])
    return [
        (frames, {column: float(np.mean(values)) for column, values in cells.items()})
        for frames, cells in sorted(table.items())
    ]


def short_tables(content: Content) -> str:
    """Lay out all but the single stacks, scenes and tensors; Markdown."""
    return f"{loss_table(content)}\n{stream_tables(content)}"


def stream_tables(content: Content) -> str:
    """Lay out drift, step response and saturation; Markdown."""
    parts = (_drift_table(content), _response_table(content), _saturation_line(content))
    return "\n".join(parts) + "\n"


def loss_table(content: Content) -> str:
    """Lay out what int8 loses against float32, mode by mode; Markdown."""
    rows = []
    for mode, losses in content["frozen"].items():
        psnr, ssim = losses["psnr_db"], losses["ssim"]
        rows.append(
            [mode, f"{psnr['mean']:+.3f}", f"{psnr['worst']:+.3f} ({psnr['worst_stack']})"]
            + [f"{ssim['mean']:+.4f}", f"{ssim['worst']:+.4f} ({ssim['worst_stack']})"]
        )
    head = ["int8 less float32", "PSNR, dB, mean", "worst stack", "SSIM, mean", "worst stack"]
    return table(head, rows)


def _drift_table(content: Content) -> str:
    rows = drift_rows(content)
    columns = [f"{form}, {mode}" for form in FORMS for mode in ("stream", "window")]
    head = ["frames of a specimen that stays", *(f"{column}, dB" for column in columns)]
    body = [[f"{frames:,}", *(f"{cells[c]:.2f}" for c in columns)] for frames, cells in rows]
    return table(head, body)


def _response_table(content: Content) -> str:
    head = ["after a change"]
    for player in ("stream", "daemon's"):
        head += [f"{player} less window, 30 frames later, dB", "worst"]
        head += [f"{player} ghost, 60 frames later", "worst"]
    rows = []
    for change in drift.CHANGES:
        for form in FORMS:
            mine = [
                each
                for each in content["step_response"]
                if (each["change"], each["form"]) == (change, form)
            ]
            row = [f"{change}, {form}"]
            for decibels, ghost in (("stream_db", "ghost"), ("daemon_db", "daemon_ghost")):
                lags = [each[decibels] - each["window_db"] for each in mine]
                ghosts = [abs(each[ghost]) for each in mine]
                row += [f"{np.mean(lags):+.2f}", f"{min(lags):+.2f}"]
                row += [f"{np.mean(ghosts):.1%}", f"{max(ghosts):.1%}"]
            rows.append(row)
    return table(head, rows)


def _saturation_line(content: Content) -> str:
    shares = [
        f"`{name}` {each['low']:.2%} at -128 and {each['high']:.2%} at 127"
        for name, each in content["saturation"].items()
    ]
    return f"Of the state's values, over those streams: {'; '.join(shares)}."


def render(content: Content) -> str:
    """Write the whole report, Markdown."""
    title = "# Accuracy of " + " and ".join(content["models"]) + "\n"
    if not content.get("narrowed", True):
        title += "\nThe int8 form was converted anew *without* narrowing its ranges.\n"
    scenes = table(
        ["scene", "change", "form", "stream, dB", "window, dB", "the daemon's, dB"]
        + ["ghost", "the daemon's ghost"],
        (
            [r["scene"], r["change"], r["form"]]
            + [f"{r[name]:.2f}" for name in ("stream_db", "window_db", "daemon_db")]
            + [f"{r[name]:+.1%}" for name in ("ghost", "daemon_ghost")]
            for r in content["step_response"]
        ),
    )
    tensors = table(
        ["tensor, worst first", "signal to noise, dB"],
        (
            [f"`{name}`", f"{db:.1f}"]
            for name, db in sorted(content["tensors_snr_db"].items(), key=lambda item: item[1])
        ),
    )
    losses = table(
        ["stack", *content["frozen"]],
        (
            [name, *(f"{each['psnr_db']['stacks'][name]:+.3f}" for each in _modes(content))]
            for name in next(iter(_modes(content)))["psnr_db"]["stacks"]
        ),
    )
    sections = (
        ("In short", short_tables(content)),
        ("After a change of scene, one by one", scenes),
        ("Noise within one step, tensor by tensor", tensors),
        ("int8 less float32 on the frozen stacks, PSNR in dB", losses),
    )
    return "\n".join([title, *(f"## {name}\n\n{text}" for name, text in sections)])


def _modes(content: Content) -> list[Content]:
    return list(content["frozen"].values())


def save_plot(path: Path, content: Content) -> None:
    """Draw drift, losses by stack and noise by tensor into one PNG."""
    from matplotlib.figure import Figure  # slow, and only this needs it

    figure = Figure(figsize=(15, 5), layout="constrained")
    long, stacks, tensors = figure.subplots(1, 3)
    rows = drift_rows(content)
    for column in rows[0][1]:
        style = "-" if "stream" in column else "--"
        colour = "C0" if "float32" in column else "C1"
        values = [cells[column] for _, cells in rows]
        long.semilogx([f for f, _ in rows], values, style, color=colour, marker="o", label=column)
    long.set(xlabel="frames", ylabel="PSNR, dB", title="a specimen that stays")
    long.legend()
    for mode, losses in content["frozen"].items():
        stacks.plot(sorted(losses["psnr_db"]["stacks"].values()), label=mode)
    stacks.set(xlabel="frozen stacks, sorted", ylabel="dB", title="PSNR, int8 less float32")
    stacks.legend()
    noise = dict(sorted(content["tensors_snr_db"].items(), key=lambda item: -item[1]))
    tensors.barh([name.partition(";")[0] for name in _distinct(noise)], list(noise.values()))
    tensors.set(xlabel="dB", title="signal to noise of int8 within one step")
    tensors.tick_params(axis="y", labelsize=6)
    save_figure(path, figure)


def _distinct(names: Iterable[str]) -> list[str]:
    """Make names differ in what stands before a semicolon, as bars of one name would be one."""
    return [f"{name.partition(';')[0]}{' ' * place}" for place, name in enumerate(names)]


def condensed(content: Content) -> Content:
    """Bring the report to what the card needs and the repository keeps."""
    kept = {name: value for name, value in content.items() if not name.startswith("tensors_")}
    kept["frozen"] = {
        mode: {
            what: {name: value for name, value in figures.items() if name != "stacks"}
            for what, figures in loss.items()
        }
        for mode, loss in content["frozen"].items()
    }
    return dict(_rounded(kept))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 7) if isinstance(value, float) else value


def own_scores(frozen_json: Path) -> list[evaluate.Score]:
    """Read the scores of the model's forms that `training.evaluate` wrote, as ``FORM, MODE``."""
    content = json.loads(frozen_json.read_text())
    forms = {name: name.rpartition("-")[2] for name in content["models"]}
    found = []
    for fields in content["scores"]:
        name, _, mode = fields["method"].partition(", ")
        if name in forms:
            found.append(evaluate.Score(**fields | {"method": f"{forms[name]}, {mode}"}))
    return found


def report(content: Content, folder: Path) -> None:
    """Write ``accuracy.json``, ``accuracy.md`` and ``accuracy.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "accuracy.json", content)
    write_text(folder / "accuracy.md", render(content))
    save_plot(folder / "accuracy.png", content)


# ------------------------------------------------------------------------------------- command line


def without_narrowing(models: Path, folder: Path) -> Path:
    """Convert the released weights to int8 anew, without narrowing; returns the pair's folder.

    Needs Keras on its TensorFlow backend, and a minute or two for the calibration.

    Parameters
    ----------
    models : Path
        Folder of a release: manifest, weights, settings.
    folder : Path
        Where to write a pair that differs from the released one in this alone.
    """
    from training import quantize, release
    from training.network import build_step
    from training.settings import TrainingSettings

    path = _pair(models)[FORMS.index("int8")]
    stem = path.name.removesuffix("-int8.tflite")
    fields = json.loads((models / f"{stem}.json").read_text())
    text = (models / f"{stem}.settings.json").read_text()
    settings = TrainingSettings.model_validate_json(text)
    step = build_step(settings.network, quantize.SIZE_PX, quantize.SIZE_PX)
    step.load_weights(models / f"{stem}.weights.h5")
    stacks = fields["training"]["calibration_stacks"]
    model = quantize.convert_rounded(step, quantize.representative_set(step, settings, stacks))
    entries = fields.pop("files")
    for name in ("golden", "recurrences"):
        fields.pop(name, None)
    contents = {form: (models / entry["file"]).read_bytes() for form, entry in entries.items()}
    contents["int8"] = release.embed(model, fields)
    for form, content in contents.items():
        target = folder / entries[form]["file"]
        target.write_bytes(content)
        entries[form] = release.file_entry(target)
    (folder / f"{stem}.json").write_text(json.dumps(fields | {"files": entries}))
    release.add_recurrences(folder / f"{stem}.json")
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training accuracy``."""
    parser.add_argument("--models", type=Path, default=MODELS_DIR, help="folder of the pair")
    parser.add_argument(
        "--frames",
        type=int,
        default=FRAMES,
        metavar="N",
        help="length of the longest stream (default: 30000)",
    )
    parser.add_argument(
        "--without-narrowing",
        action="store_true",
        help="convert the released weights anew, to see what narrowing the ranges gives",
    )
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"), help="folder to write")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; 0 is only this one"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training accuracy``."""
    if args.frames < drift.CHECKPOINTS[0]:
        raise UserError(f"--frames is {args.frames}; a window of 30 is the least: give more.")
    trials.check_workers(args)
    args.out.mkdir(parents=True, exist_ok=True)  # what is in its way is told before the hours
    with tempfile.TemporaryDirectory() as folder:
        models = args.models
        if args.without_narrowing:
            models = without_narrowing(models, Path(folder))
        content = measure(models, args.frames, args.workers)
    content["narrowed"] = not args.without_narrowing
    report(content, args.out)
    sys.stdout.write(short_tables(content))
    return 0
