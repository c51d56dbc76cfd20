"""Write models/: the pair of steps, all that goes with it, and what it is compared with."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
from ai_edge_litert import schema_py_generated as schema

from device.errors import UserError
from device.model import EMBEDDED_NAME, MODELS_DIR, path_of_manifest
from device.output_filter import OutputFilterSettings
from training import (
    accuracy,
    calibration,
    evaluate,
    lattice,
    location,
    model_card,
    resolution,
    speed,
    sweeps,
)
from training import settings as settings_file
from training.forward_model import WINDOW
from training.golden import add_golden
from training.narrowing import packed
from training.network import SIZE_MULTIPLE, UPSAMPLING, NetworkSettings
from training.quantize import SIGNATURE, SIZE_PX, conversion, load_converted
from training.recurrence import recurrence

log = logging.getLogger(__name__)

FORMS = ("int8", "float32")
SMALL_NETWORKS = ("psf_width", "expected_error")
"""Commands that train what comes beside the pair, and their options here."""
TWIN, ORIGINAL = "twin", "original_network"
"""Folders beside the pair, of the networks that were trained to be compared with it."""
OF_TWIN = (".json", ".settings.json", ".weights.h5", "-int8.tflite", "-float32.tflite")
OF_ORIGINAL = ("run.json", "settings.json", "best.json", "best.weights.h5")
CHECKSUMS = "SHA256SUMS"
OF_RELEASE = (
    *("learn2sofi-*", "MODEL_CARD.md", f"{TWIN}/learn2sofi-*", f"{TWIN}/{CHECKSUMS}"),
    *(f"{ORIGINAL}/{name}" for name in (*OF_ORIGINAL, CHECKSUMS)),
)
"""What a release writes into its folder, and the next one removes."""
VERSION = re.compile(r"\d+(\.\d+)*")


def manifest(run: Path, version: str) -> dict[str, Any]:
    """Say what a host must know to use the run's model; the part that goes into the file itself."""
    settings = settings_file.of_run(run)
    return {
        "format": 1,
        "name": "learn2sofi",
        "version": version,
        "signature": SIGNATURE,
        "frames": WINDOW,
        "upsampling": UPSAMPLING,
        "size_multiple": SIZE_MULTIPLE,
        "inputs": _inputs(settings.network),
        "outputs": _outputs(settings.network),
        "state": {"h": "h_out", "c": "c_out"},
        "normalization": asdict(settings.dataset.normalization),
        "output_filter": asdict(OutputFilterSettings()),
        "psf_sigma_px": list(settings.forward_model.psf_sigma_px),
        "pixel_size_nm": None,
        "training": _provenance(run),
    }


def _tensor(shape: tuple[int, ...], meaning: str) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": "float32", "meaning": meaning}


def _state_shape(network: NetworkSettings) -> tuple[int, ...]:
    return (1, *network.state_shape(SIZE_PX, SIZE_PX))


def _inputs(network: NetworkSettings) -> dict[str, Any]:
    frame, state = (1, SIZE_PX, SIZE_PX, 1), _state_shape(network)
    mean = "normalized mean of the window, or (stream) of the last 30 frames at most"
    return {
        "frame": _tensor(frame, "normalized frame"),
        "mean": _tensor(frame, mean),
        "psf_sigma_px": _tensor((1, 1), "sigma of the PSF in px; 0 where it is not known"),
        "h": _tensor(state, "state, zeros to begin with"),
        "c": _tensor(state, "cell state, zeros to begin with; within -1 and 1"),
    }


def _outputs(network: NetworkSettings) -> dict[str, Any]:
    image = (1, UPSAMPLING * SIZE_PX, UPSAMPLING * SIZE_PX, 1)
    state = _state_shape(network)
    return {
        "image": _tensor(image, "normalized reconstruction; times the scale: ADU above background"),
        "h_out": _tensor(state, "state for the next step"),
        "c_out": _tensor(state, "cell state for the next step"),
    }


def _provenance(run: Path) -> dict[str, Any]:
    about = json.loads((run / "run.json").read_text())
    about["settings_sha256"] = sha256(run / "settings.json")
    about |= conversion(run)
    if about["weights"] == "best":
        about |= json.loads((run / "best.json").read_text())
    return about


def embed(model: bytes, content: dict[str, Any]) -> bytes:
    """Write a manifest into a TFLite file as its metadata ``learn2sofi_manifest``."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    buffer = schema.BufferT()
    buffer.data = list(json.dumps(content).encode())
    entry = schema.MetadataT()
    entry.name, entry.buffer = EMBEDDED_NAME.encode(), len(parsed.buffers)
    parsed.buffers.append(buffer)
    parsed.metadata = [*(parsed.metadata or []), entry]
    return packed(parsed)


def sha256(path: Path) -> str:
    """Return a file's checksum, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_pair(run: Path, version: str, folder: Path) -> Path:
    """Write both forms, the manifest, the weights and the run's settings; returns the manifest.

    Raises
    ------
    UserError
        The run has not been quantized, or the version is not numbers and dots.
    """
    _check_complete(run, version)
    stem = f"learn2sofi-{version}"
    content = manifest(run, version)
    files = {}
    for form in FORMS:
        source, path = run / f"{form}.tflite", folder / f"{stem}-{form}.tflite"
        path.write_bytes(embed(source.read_bytes(), content))
        files[form] = file_entry(path)
    (folder / f"{stem}.json").write_text(json.dumps(content | {"files": files}, indent=2) + "\n")
    load_converted(run).save_weights(folder / f"{stem}.weights.h5")
    shutil.copyfile(run / "settings.json", folder / f"{stem}.settings.json")
    return folder / f"{stem}.json"


def add_recurrences(manifest_path: Path) -> None:
    """Write what carries each form's state on beside it, and into the manifest."""
    content = json.loads(manifest_path.read_text())
    content["recurrences"] = {}
    for form, entry in content["files"].items():
        whole = manifest_path.with_name(entry["file"])
        path = whole.with_suffix(".recurrence.tflite")
        path.write_bytes(recurrence(whole.read_bytes(), content["state"].values()))
        content["recurrences"][form] = file_entry(path)
    manifest_path.write_text(json.dumps(content, indent=2) + "\n")


def add_small_networks(manifest_path: Path, run: Path, command: str) -> None:
    """Copy what a command trained beside the pair, and name it in the manifest.

    Parameters
    ----------
    manifest_path : Path
        Of the pair.
    run : Path
        The command's folder.
    command : str
        ``psf_width`` or ``expected_error``: the name of its files, too.

    Raises
    ------
    UserError
        The folder is not one that the command wrote, or it judges another model.
    """
    path = manifest_path.with_suffix(f".{command}.npz")
    content = json.loads(manifest_path.read_text())
    try:
        shutil.copyfile(run / f"{command}.npz", path)
        shutil.copyfile(run / f"{command}.json", path.with_suffix(".json"))
    except OSError as error:
        raise UserError(
            f"{run} holds no {command}.npz: make it with `python -m training {command}`."
        ) from error
    of = json.loads(path.with_suffix(".json").read_text()).get("training", content["training"])
    if of != content["training"]:
        raise UserError(
            f"{run} was trained on another model's images: train it on a first release of this one."
        )
    content[command] = file_entry(path)
    manifest_path.write_text(json.dumps(content, indent=2) + "\n")


def compared_files(twin: Path | None, original: Path | None) -> dict[str, list[Path]]:
    """Name the files of what a release is compared with: enough to score it and to train it on.

    Parameters
    ----------
    twin, original : Path or None
        As `training.evaluate.trained_methods` takes them.

    Returns
    -------
    dict
        Folder beside the pair to the files that go into it.

    Raises
    ------
    UserError
        One of them is missing.
    """
    found = {}
    if twin is not None:
        manifest_path = path_of_manifest(twin)
        found[TWIN] = [manifest_path.with_name(manifest_path.stem + end) for end in OF_TWIN]
    if original is not None:
        found[ORIGINAL] = [original / name for name in OF_ORIGINAL]
    for path in (path for files in found.values() for path in files):
        if not path.exists():
            raise UserError(
                f"{path} is missing: name the twin in the folder of its release, and a run of the "
                "original's architecture that is trained."
            )
    return found


def keep_compared(folder: Path, files: Mapping[str, list[Path]]) -> None:
    """Copy `compared_files` into the folder of a pair, with their checksums."""
    for name, paths in files.items():
        (folder / name).mkdir()
        for path in paths:
            shutil.copyfile(path, folder / name / path.name)
        write_checksums(folder / name, "*")


def file_entry(path: Path) -> dict[str, Any]:
    """Describe a file as a manifest does."""
    return {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}


def _check_complete(run: Path, version: str) -> None:
    """Refuse before anything is written."""
    if not VERSION.fullmatch(version):
        raise UserError(f"The version {version!r} is not like 0.1.0: give numbers and dots.")
    needed = ("settings.json", "run.json", "best.json", "quantized.json")
    for name in (*needed, *(f"{form}.tflite" for form in FORMS)):
        if not (run / name).exists():
            raise UserError(
                f"{run / name} is missing: name a trained run, and quantize it first with "
                f"`python -m training quantize --run {run}`."
            )


def evaluate_pair(
    manifest_path: Path,
    folder: Path,
    measured: Path | None,
    frames: int,
    trained: evaluate.Methods | None = None,
    compared: Mapping[str, list[Path]] | None = None,
) -> None:
    """Score both forms; write what the card needs beside the manifest.

    Parameters
    ----------
    manifest_path : Path
        Of the pair.
    folder : Path
        Where the whole tables and the pictures go.
    measured : Path or None
        A measured stack to judge the pair on.
    frames : int
        Length of the longest stream, see `training.accuracy`.
    trained : dict of str to callable, optional
        Networks to compare with, see `training.evaluate.trained_methods`.
    compared : mapping of str to list of Path, optional
        Their files, see `compared_files`; it is noted which they were.
    """
    named = json.loads(manifest_path.read_text())
    files = {form: manifest_path.with_name(each["file"]) for form, each in named["files"].items()}
    steps = evaluate.load_steps(list(files.values()))
    folder.mkdir(parents=True, exist_ok=True)
    cache = evaluate.frozen.DEFAULT_CACHE
    evaluate.report_frozen(steps, folder, evaluate.STREAM_FRAMES, cache, trained)
    judged = None
    if measured is not None:
        evaluate.report_measured(steps, folder, measured, trained)
        judged = json.loads((folder / "measured.json").read_text())
    content = model_card.condensed(json.loads((folder / "frozen.json").read_text()), judged)
    content |= further(files, folder, measured, "expected_error" in named)
    scores = accuracy.own_scores(folder / "frozen.json")
    found = accuracy.measure(manifest_path.parent, frames, os.cpu_count() or 1, scores)
    accuracy.report(found, folder)
    content["accuracy"] = accuracy.condensed(found)
    content["compared"] = {
        kind: {path.name: sha256(path) for path in paths}
        for kind, paths in (compared or {}).items()
    }
    path = manifest_path.with_suffix(".evaluation.json")
    path.write_text(json.dumps(content, indent=None) + "\n")
    for name in model_card.PICTURES:
        shutil.copyfile(folder / f"{name}.png", manifest_path.with_suffix(f".{name}.png"))


def further(
    files: Mapping[str, Path], folder: Path, measured: Path | None, tells_error: bool = False
) -> dict[str, Any]:
    """Measure resolution, sweeps, lattice, location, speed and the expected error, if it is said.

    Their reports go into a folder, too.

    Returns
    -------
    dict
        Name of the measurement to what it found.
    """
    models, workers = list(files.values()), os.cpu_count() or 1
    found: dict[str, Any] = {
        "resolution": resolution.measure(models, resolution.TRIALS, workers),
        "sweeps": sweeps.measure(models, sweeps.STACKS, workers),
        "lattice": lattice.measure(models, workers, measured),
        "location": location.measure(models, location.EMITTERS, workers),
        "speed": speed.measure(files["int8"]),
    }
    modules = [resolution, sweeps, lattice, location, speed]
    if tells_error:
        found["calibration"] = calibration.measure(files["int8"])
        modules.append(calibration)
    for module in modules:
        module.report(found[module.__name__.rpartition(".")[2]], folder)
    return found


def write_card(folder: Path) -> None:
    """Write the card of the model in a folder."""
    about, evaluation = model_card.load(folder)
    weights = parameters(folder / f"{about['name']}-{about['version']}.weights.h5")
    (folder / "MODEL_CARD.md").write_text(model_card.render_card(about, evaluation, weights))


def publish(staging: Path, models: Path) -> None:
    """Move a whole release into a folder, then remove what was there of the one before."""
    new = {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()}
    for name in sorted(new):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
    for name in sorted(new):
        (staging / name).replace(models / name)
    for pattern in OF_RELEASE:
        for path in models.glob(pattern):
            if path.relative_to(models) not in new:
                path.unlink()


def update_readme(models: Path) -> None:
    """Write the README's figures, where the folder is the repository's own."""
    readme = models.parent / "README.md"
    if readme.exists():
        _, evaluation = model_card.load(models)
        model_card.replace_block(readme, "scores", model_card.render_summary(evaluation))


def parameters(weights: Path) -> int:
    """Count the numbers in a Keras weights file."""
    total = 0

    def add(_: str, item: object) -> None:
        nonlocal total
        if isinstance(item, h5py.Dataset):
            total += item.size

    with h5py.File(weights) as file:
        file.visititems(add)
    return total


def write_checksums(folder: Path, pattern: str = "learn2sofi-*") -> None:
    """Write SHA256SUMS over a folder's files of a pattern, as ``sha256sum --check`` reads it."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(folder.glob(pattern))]
    (folder / CHECKSUMS).write_text("".join(lines))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training release``."""
    parser.add_argument("--run", type=Path, default=Path("runs/base"), help="folder of the run")
    parser.add_argument("--version", required=True, help="such as 0.1.0")
    parser.add_argument("--models", type=Path, default=MODELS_DIR, help="folder to write")
    parser.add_argument(
        "--psf-width", type=Path, metavar="RUN",
        help="folder of `python -m training psf_width`; without it the model is blind where it is "
        "not told the PSF's width",
    )  # fmt: skip
    parser.add_argument(
        "--expected-error", type=Path, metavar="RUN",
        help="folder of `python -m training expected_error`; without it nobody is told how far an "
        "image may be off",
    )  # fmt: skip
    parser.add_argument("--measured", type=Path, help="a measured stack to judge the model on too")
    evaluate.add_trained_arguments(parser)
    parser.add_argument("--evaluation", type=Path, default=Path("out/evaluation"), metavar="DIR")
    parser.add_argument(
        "--accuracy-frames",
        type=int,
        default=accuracy.RELEASE_FRAMES,
        metavar="N",
        help="longest stream in the card (default: 3000; `accuracy` plays 30000, minutes longer)",
    )
    parser.add_argument("--no-evaluation", action="store_true", help="write no card: for trying")


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training release``: all of it, or nothing."""
    trained = evaluate.trained_methods(arguments.twin, arguments.original)
    compared = compared_files(arguments.twin, arguments.original)
    models = arguments.models.resolve()
    models.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models.parent, prefix=".models-") as folder:
        staging = Path(folder)
        path = write_pair(arguments.run, arguments.version, staging)
        add_recurrences(path)
        for command in SMALL_NETWORKS:
            if (run := getattr(arguments, command)) is not None:
                add_small_networks(path, run, command)
        add_golden(path)
        keep_compared(staging, compared)
        if not arguments.no_evaluation:
            evaluate_pair(
                *(path, arguments.evaluation, arguments.measured, arguments.accuracy_frames),
                trained,
                compared,
            )
            write_card(staging)
        write_checksums(staging)
        publish(staging, models)
    if not arguments.no_evaluation:
        update_readme(models)
    log.info("%s is written", models / path.name)
    return 0
