"""models/: a pair that the device takes, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from device import expected_error
from device.expected_error import ErrorEstimator
from device.model import embedded_manifest, load_step
from device.output_filter import OutputFilterSettings
from device.psf_width import FEATURES, PsfWidthEstimator
from device.reconstructor import constant_inputs
from training import evaluate, frozen, lattice, location, quantize, resolution, speed, sweeps
from training.__main__ import main
from training.evaluate import Score, summarized
from training.model_card import condensed, render_card
from training.network import build_step
from training.release import further, manifest
from training.release import sha256 as release_sha256
from training.settings import TrainingSettings
from training.train import load_network


def release(run: Path, version: str, folder: Path) -> int:
    """Without the evaluation on the frozen stacks, which takes minutes and has tests of its own."""
    options = ["--run", str(run), "--version", version, "--models", str(folder)]
    return main(["release", *options, "--no-evaluation"])


@pytest.fixture(scope="module")
def models(quantized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that held version 0.0.9 before 0.1.0 was released into it."""
    folder = tmp_path_factory.mktemp("release") / "models"
    assert release(quantized_run, "0.0.9", folder) == 0
    (folder / "MODEL_CARD.md").write_text("of 0.0.9")
    (folder / "notes.txt").write_text("the user's own")
    assert release(quantized_run, "0.1.0", folder) == 0
    return folder


def test_what_finds_the_psfs_width_goes_with_the_model(quantized_run: Path, tmp_path: Path) -> None:
    """Mutations: a manifest that does not name it; one inside the files that does, and cannot know
    its checksum; a folder that holds none."""
    run, folder = tmp_path / "psf_width", tmp_path / "models"
    run.mkdir()
    nothing = np.zeros(FEATURES, np.float32)
    kernels = [np.zeros((1, *shape), np.float32) for shape in ((FEATURES, 3), (3, 3), (3, 2))]
    biases = [np.zeros((1, n), np.float32) for n in (3, 3, 2)]
    estimator = PsfWidthEstimator(nothing, nothing + 1, tuple(kernels), tuple(biases))
    (run / "psf_width.npz").write_bytes(estimator.save())
    (run / "psf_width.json").write_text(json.dumps({"stacks": 5}))
    options = ["--run", str(quantized_run), "--version", "0.1.0", "--models", str(folder)]
    words = ["release", *options, "--no-evaluation", "--psf-width"]
    assert main([*words, str(run)]) == 0
    step = load_step(folder / "learn2sofi-0.1.0-int8.tflite")
    assert step.psf_width is not None
    frames = gaussian_filter(np.random.default_rng(0).random((30, 32, 32)), (0, 1.5, 1.5))
    assert step.psf_width.estimate(frames).sigma_px == 1.0
    beside = folder / "learn2sofi-0.1.0.psf_width.json"
    assert json.loads(beside.read_text()) == {"stacks": 5}
    assert main([*words, str(tmp_path)]) == 2


def test_what_says_the_error_goes_with_the_model(quantized_run, tmp_path, capsys) -> None:
    """Mutations: under the other's name in the manifest; a folder that holds none; one that was
    trained on another model's images."""
    run, folder = tmp_path / "expected_error", tmp_path / "models"
    run.mkdir()
    nothing = np.zeros(expected_error.FEATURES, np.float32)
    shapes = ((expected_error.FEATURES, 3), (3, 3), (3, 1))
    kernels = tuple(np.zeros(shape, np.float32) for shape in shapes)
    said = np.log(0.1 + expected_error.FLOOR)
    biases = tuple(np.full(n, said, np.float32) for n in (3, 3, 1))
    estimator = ErrorEstimator(nothing, nothing + 1, kernels, biases)
    (run / "expected_error.npz").write_bytes(estimator.save())
    (run / "expected_error.json").write_text(json.dumps({"stacks": 7}))
    options = ["--run", str(quantized_run), "--version", "0.1.0", "--models", str(folder)]
    words = ["release", *options, "--no-evaluation", "--expected-error"]
    assert main([*words, str(run)]) == 0
    step = load_step(folder / "learn2sofi-0.1.0-int8.tflite")
    assert step.psf_width is None
    image = np.ones((32, 32), np.float32)
    said = step.expected_error.estimate(image, image[::2, ::2], image[::2, ::2], None)
    np.testing.assert_allclose(said, 0.1, rtol=1e-5)
    beside = folder / "learn2sofi-0.1.0.expected_error.json"
    assert json.loads(beside.read_text()) == {"stacks": 7}
    assert main([*words, str(tmp_path)]) == 2
    (run / "expected_error.json").write_text(json.dumps({"training": {"seed": 99}}))
    assert main([*words, str(run)]) == 2
    assert "another model's images" in capsys.readouterr().err


def test_the_old_version_is_gone_and_the_rest_stays(models: Path) -> None:
    """Catches two models in one folder, and a release that cleans too well."""
    assert sorted(path.name for path in models.iterdir()) == [
        "SHA256SUMS",
        "learn2sofi-0.1.0-float32.recurrence.tflite",
        "learn2sofi-0.1.0-float32.tflite",
        "learn2sofi-0.1.0-int8.recurrence.tflite",
        "learn2sofi-0.1.0-int8.tflite",
        "learn2sofi-0.1.0.golden.npz",
        "learn2sofi-0.1.0.json",
        "learn2sofi-0.1.0.settings.json",
        "learn2sofi-0.1.0.weights.h5",
        "notes.txt",
    ]
    assert not list(models.parent.glob(".models-*"))  # where it was put together


def test_what_it_is_compared_with_lies_beside_it(
    quantized_run, tmp_path, monkeypatch, capsys
) -> None:
    """Mutations: a twin that cannot be loaded, or not be trained on; the networks of the release
    before beside, or instead of, none; the user's own files removed; half a release written."""
    monkeypatch.setattr(evaluate, "trained_methods", lambda *_: {})
    twins, run = tmp_path / "twins", tmp_path / "original"
    run.mkdir()
    for name in ("run.json", "settings.json", "best.weights.h5", "checkpoint.npz"):
        (run / name).write_text(name)
    folder = tmp_path / "models"
    words = ["release", "--run", str(quantized_run), "--models", str(folder), "--no-evaluation"]
    assert main([*words, "--version", "0.1", "--original", str(run)]) == 2
    assert "best.json is missing" in capsys.readouterr().err
    assert not folder.exists()
    (run / "best.json").write_text("best.json")
    twin, original = folder / "twin", folder / "original_network"
    for version in ("0.1", "0.2"):
        assert release(quantized_run, version, twins / version) == 0
        compared = ["--twin", str(twins / version / f"learn2sofi-{version}-float32.tflite")]
        assert main([*words, "--version", version, *compared, "--original", str(run)]) == 0
        for form in ("int8", "float32"):
            loaded = load_step(twin / f"learn2sofi-{version}-{form}.tflite")
            assert loaded.manifest.version == version
        assert load_network(twin / f"learn2sofi-{version}.json").step.weights
        assert sorted(path.name for path in original.iterdir()) == [
            *("SHA256SUMS", "best.json", "best.weights.h5", "run.json", "settings.json")
        ]
        assert len(list(twin.iterdir())) == 6
    (twin / "notes.txt").write_text("the user's own")
    assert main([*words, "--version", "0.3"]) == 0
    assert [path.name for path in twin.iterdir()] == ["notes.txt"]
    assert not list(original.iterdir())


@pytest.mark.parametrize("weights", ["best", "final"])
def test_a_card_can_be_written_of_every_release(
    weights: str, quantized_run: Path, tmp_path: Path
) -> None:
    """Catches a field of the run that the card does not know, or wants and does not find."""
    run = tmp_path / "run"
    shutil.copytree(quantized_run, run)
    about = json.loads((run / "quantized.json").read_text())
    (run / "quantized.json").write_text(json.dumps(about | {"weights": weights}))
    content = manifest(run, "0.1.0")
    assert content["output_filter"] == asdict(OutputFilterSettings())
    files = {form: {"file": f"m-{form}.tflite", "bytes": 1234} for form in ("int8", "float32")}
    methods = ["mean (bicubic)", "m-float32, window", "m-int8, window"]
    recipe = frozen.recipes()[0]
    scores = [Score(recipe.stack_id, name, 20.0 + k, 0.5, 0.1) for k, name in enumerate(methods)]
    evaluation = condensed(
        {
            "generator": "g",
            "frozen_version": 1,
            "models": {"m-float32": "aa", "m-int8": "bb"},
            "stacks": [],
            "rows": [asdict(row) for row in summarized(scores, [recipe])],
            "scores": [asdict(score) for score in scores],
        },
        None,
    )
    response = {"scene": "s", "change": "moved", "form": "int8", "stream_db": 20.0}
    responses = [
        response
        | {"window_db": 20.5, "daemon_db": 20.25, "ghost": 0.015, "daemon_ghost": 0.005}
        | {"form": form, "change": change}
        for form in ("float32", "int8")
        for change in ("moved", "replaced")
    ]
    drifts = [
        {"frames": 30_000, "form": form, "mode": mode, "psnr_db": 25.25}
        for form in ("float32", "int8")
        for mode in ("stream", "window")
    ]
    assert "| window | +1.000 | +1.000 |" in render_card(content | {"files": files}, evaluation, 1)
    loss = {"mean": -0.02, "worst": -0.25, "worst_stack": "7-rings"}
    evaluation["accuracy"] = {
        "frozen": {"window": {"psnr_db": loss, "ssim": loss | {"worst_stack": "9-rods"}}},
        "drift": drifts,
        "step_response": responses,
        "saturation": {"c_out": {"low": 0.01, "high": 0.02}},
    }
    card = render_card(content | {"files": files}, evaluation, 39080)
    assert "| 30,000 | 25.25 | 25.25 | 25.25 | 25.25 |" in card
    assert "| moved, int8 | -0.50 | -0.50 | 1.5% | 1.5% | -0.25 | -0.25 | 0.5% | 0.5% |" in card
    assert "`c_out` 1.00% at -128 and 2.00% at 127" in card
    assert "39,080" in card
    assert "| window | -0.020 | -0.250 (7-rings) | -0.0200 | -0.2500 (9-rods) |" in card
    assert ("the best of all validations" in card) == (weights == "best")


@pytest.mark.parametrize("form", ["int8", "float32"])
def test_the_device_takes_both_forms(form: str, models: Path, quantized_run: Path) -> None:
    """Catches a manifest that the device refuses, or that is not the one inside the file."""
    step = load_step(models / f"learn2sofi-0.1.0-{form}.tflite", threads=1)
    manifest = step.manifest
    assert (manifest.version, manifest.frames, manifest.upsampling) == ("0.1.0", 30, 2)
    settings = TrainingSettings.model_validate_json((quantized_run / "settings.json").read_text())
    assert manifest.psf_sigma_px == settings.forward_model.psf_sigma_px
    assert manifest.training["seed"] == settings.seed
    assert (
        manifest.training["validation_db"]
        == json.loads((quantized_run / "best.json").read_text())["validation_db"]
    )
    step.resize(48, 34)
    frame = np.random.default_rng(1).random((1, 48, 34, 1), np.float32)
    blind = constant_inputs(step)
    outputs = step.run({"frame": frame, "mean": frame, **blind, **step.zero_state()})
    assert outputs["image"].shape == (1, 96, 68, 1)
    assert np.isfinite(outputs["image"]).all()


def test_the_manifest_inside_is_the_one_beside_less_its_files(models: Path) -> None:
    """Catches two manifests that drift apart."""
    beside = json.loads((models / "learn2sofi-0.1.0.json").read_text())
    files, golden, parts = (beside.pop(name) for name in ("files", "golden", "recurrences"))
    assert golden["sha256"] == release_sha256(models / golden["file"])
    assert set(files) == set(parts) == {"int8", "float32"}
    for entry in parts.values():
        assert entry["sha256"] == release_sha256(models / entry["file"])
    for entry in files.values():
        content = (models / entry["file"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        inside = embedded_manifest(content)
        assert inside is not None
        assert json.loads(inside) == beside


def test_checksums_are_those_of_the_files(models: Path) -> None:
    """In the form of sha256sum: catches a file left out, and one written after its checksum."""
    lines = (models / "SHA256SUMS").read_text().splitlines()
    sums = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    assert set(sums) == {path.name for path in models.glob("learn2sofi-*")}
    for name, checksum in sums.items():
        assert hashlib.sha256((models / name).read_bytes()).hexdigest() == checksum


def test_embedding_changes_nothing_that_is_computed(models: Path, quantized_run: Path) -> None:
    """Catches a file damaged by writing it anew: same output bit by bit, as the runtime sees it."""
    from ai_edge_litert.interpreter import Interpreter

    rng, outputs = np.random.default_rng(2), []
    inputs = {
        "frame": rng.random((1, 128, 128, 1), np.float32),
        "mean": rng.random((1, 128, 128, 1), np.float32),
    }
    released = models / "learn2sofi-0.1.0-int8.tflite"
    for name, spec in load_step(released).manifest.inputs.items():
        inputs.setdefault(name, np.zeros(spec.shape, np.float32))
    for path in (quantized_run / "int8.tflite", released):
        interpreter = Interpreter(str(path), num_threads=1)
        outputs.append(interpreter.get_signature_runner("step")(**inputs))
    for name, value in outputs[0].items():
        np.testing.assert_array_equal(value, outputs[1][name])


def test_the_weights_released_are_those_that_were_converted(
    quantized_run: Path, tmp_path: Path
) -> None:
    """Catches the best weights beside files made from the final ones, and their score."""
    run = tmp_path / "run"
    shutil.copytree(quantized_run, run)
    about = {"weights": "final", "calibration_stacks": 2, "head_gain": 2.0}
    (run / "quantized.json").write_text(json.dumps(about))
    assert release(run, "0.1.0", tmp_path / "models") == 0
    step, settings = quantize.load_step(run, "final")
    released = build_step(settings.network, 16, 16)
    released.load_weights(tmp_path / "models" / "learn2sofi-0.1.0.weights.h5")
    np.testing.assert_array_equal(released.gates_frame.kernel, step.gates_frame.kernel)
    np.testing.assert_allclose(released.head_mean.kernel, 2 * step.head_mean.kernel)
    training = json.loads((tmp_path / "models" / "learn2sofi-0.1.0.json").read_text())["training"]
    assert training["weights"] == "final"
    assert "validation_db" not in training


@pytest.mark.parametrize("missing", ["float32.tflite", "int8.tflite", "best.json", "run.json"])
def test_what_is_not_complete_is_refused_before_anything_is_written(
    missing: str, quantized_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches one form of the new version beside both of the old."""
    run, folder = tmp_path / "run", tmp_path / "models"
    shutil.copytree(quantized_run, run)
    (run / missing).unlink()
    assert release(run, "0.2.0", folder) == 2
    assert missing in capsys.readouterr().err
    assert not folder.exists()


def test_the_card_is_measured_of_the_pair_that_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a measurement left out, the shipped model measured in its place, a lost report."""
    files = {form: tmp_path / f"learn2sofi-9.0-{form}.tflite" for form in ("int8", "float32")}
    measured, seen, reported = tmp_path / "stack.tif", [], []
    for module in (resolution, sweeps, lattice, location, speed):

        def measure(models: object, *options: object, module: ModuleType = module) -> str:
            seen.append((module, models, options))
            return module.__name__

        monkeypatch.setattr(module, "measure", measure)
        monkeypatch.setattr(module, "report", lambda content, folder: reported.append(content))
    found = further(files, tmp_path, measured)
    names = ("resolution", "sweeps", "lattice", "location", "speed")
    assert found == {name: f"training.{name}" for name in names}
    assert reported == list(found.values())
    assert [models for _, models, _ in seen] == [list(files.values())] * 4 + [files["int8"]]
    assert measured in seen[2][2]
