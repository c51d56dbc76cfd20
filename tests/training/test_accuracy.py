"""The accuracy report: what it measures is what it says, on steps whose behaviour is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from device.errors import UserError
from device.model import MODELS_DIR, Manifest, Step, load_step, newest_model
from device.reconstructor import constant_inputs, reconstruct_window
from training import accuracy, drift, frozen, inspection, scenes
from training.__main__ import main
from training.evaluate import Score
from training.inspection import CountingStep, Ends, Saturation
from training.narrowing import narrowed
from training.optics import image_formation
from training.settings import TrainingSettings

MEMORY = 0.97


class LeakyStep(Step):
    """Its image is a running average of the frames with a memory that is known, or the mean."""

    psf_width = None
    expected_error = None

    def __init__(self, memory: float = MEMORY) -> None:
        frame = {"shape": (1, 64, 64, 1)}
        fields = {
            "format": 1,
            "name": "leaky",
            "version": "1",
            "signature": "step",
            "frames": 30,
            "upsampling": 2,
            "size_multiple": 1,
            "inputs": {"frame": frame, "mean": frame, "h": frame, "weight": frame},
            "outputs": {"image": {"shape": (1, 128, 128, 1)}, "h_out": frame, "weight_out": frame},
            "state": {"h": "h_out", "weight": "weight_out"},
            "normalization": {
                "background_percentile": 5,
                "scale_percentile": 99.5,
                "min_contrast_sem": 3,
            },
            "psf_sigma_px": (1.0, 3.0),
        }
        self.manifest = Manifest.model_validate(fields)
        self.name = self.sha256 = "leaky"
        self.memory = memory

    def resize(self, height: int, width: int) -> None:
        self._size = (height, width)

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        h = self.memory * inputs["h"] + (1 - self.memory) * inputs["frame"]
        weight = self.memory * inputs["weight"] + (1 - self.memory)
        image = (h / weight).repeat(2, axis=1).repeat(2, axis=2)
        return {"image": image, "h_out": h, "weight_out": weight}


class ForgetfulStep(LeakyStep):
    """Its image is the mean of the last frames: a stream that is a window."""

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        image = inputs["mean"].repeat(2, axis=1).repeat(2, axis=2)
        return {"image": image, "h_out": inputs["h"], "weight_out": inputs["weight"]}


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def scene() -> scenes.Scene:
    return scenes.draw_scene("filaments, blinking", 64, rng())


# --- scenes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_a_scene_fluctuates_about_its_image_and_stays(kind):
    """Mutations: bleaching or a walk away (the last frames dimmer), strengths left out of the mean,
    photons per output px, a fluctuation that is none."""
    scene = scenes.draw_scene(kind, 64, rng())
    series = scene.frames(rng(2))
    frames = np.stack([next(series) for _ in range(600)]).astype(np.float64)
    sensor = scenes.SENSOR
    light = image_formation(scene.brightness, scenes.PSF_SIGMA_PX, scenes.MARGIN_PX, scene.shape)
    expected = sensor.offset_adu + sensor.adu_per_photon() * (
        scene.photons * light + scenes.BACKGROUND_PHOTONS
    )
    bright = expected > np.percentile(expected, 80)
    # 600 frames that fluctuate by their own mean and are correlated over few: some percent.
    assert frames.mean(0)[bright].mean() == pytest.approx(expected[bright].mean(), rel=0.05)
    early, late = (part[:, bright].mean() for part in (frames[:300], frames[300:]))
    assert late == pytest.approx(early, rel=0.08)
    noise = expected - sensor.offset_adu + sensor.read_noise_e**2  # shot noise, gain 1
    assert np.median((frames.var(0) / noise)[bright]) > 1.2


def test_a_moved_scene_is_the_same_further_right(scene):
    """Mutations: output px for camera px, along y, brightness moved and the emitters not."""
    moved = scene.moved(5)
    np.testing.assert_allclose(moved.truth()[:, 10:], scene.truth()[:, :-10], rtol=1e-5, atol=1e-3)
    fluctuation = scene.fluctuation
    mean = np.bincount(
        moved.site, moved.strength * fluctuation.on_fraction, moved.brightness.size
    ).reshape(moved.brightness.shape)
    np.testing.assert_allclose(mean, moved.brightness, rtol=1e-5)


def test_the_truth_lies_on_the_frames(scene):
    """Mutation: the margin not cut off, or the grid shifted by an output px.

    Binned to camera px it correlates best with the mean image where it lies, not a px beside.
    """
    light = image_formation(scene.brightness, scenes.PSF_SIGMA_PX, scenes.MARGIN_PX, scene.shape)
    truth = scene.truth()

    def likeness(dy: int, dx: int) -> float:
        shifted = np.roll(truth, (dy, dx), (0, 1)).reshape(64, 2, 64, 2).mean((1, 3))
        return float(np.corrcoef(shifted[2:-2, 2:-2].ravel(), light[2:-2, 2:-2].ravel())[0, 1])

    others = [likeness(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    assert likeness(0, 0) > max(others)


# --- drift and change -----------------------------------------------------------------------------


def test_where_a_stream_is_looked_at():
    """Mutations: a checkpoint beyond the end; repeats that overlap or reach before the start."""
    assert drift.looked_at(30) == {30: 30}
    at = drift.looked_at(3_000)
    assert [at[n] for n in (30, 300, 270, 3_000, 2_790)] == [30, 300, 300, 3_000, 3_000]
    assert set(at.values()) == {30, 300, 3_000}
    assert len(at) == 1 + 2 * drift.REPEATS


def test_a_stream_that_gains_and_one_that_is_a_window_are_told_apart(scene):
    """Mutations: the window scored with carried state; stream and window exchanged; another truth.

    The mean of the last 30 frames is the same in both modes. A memory of 200 frames is at 30 frames
    what the window is, and later averages over more of them; the blur, which is most of the error,
    leaves 0.05 to 1 dB to be gained.
    """
    steps = {"float32": LeakyStep(0.995), "int8": ForgetfulStep()}
    found = drift.drift("s", scene, steps, 300, rng(3))
    score = {(each.form, each.mode, each.frames): each.psnr_db for each in found}
    assert len(score) == 8
    for frames in (30, 300):
        assert score["int8", "stream", frames] == pytest.approx(score["int8", "window", frames])
    assert score["float32", "stream", 30] == pytest.approx(score["float32", "window", 30], abs=0.3)
    gain = score["float32", "stream", 300] - score["float32", "window", 300]
    assert 0.05 < gain < 1.0


@pytest.mark.parametrize("change", ["replaced", "moved"])
def test_a_ghost_is_as_strong_as_the_memory(scene, change):
    """Mutations: the ghost not normalized; the new truth not fitted along; a snapshot a frame off
    by tens; the control not taken off.

    What is left after 60 frames of a memory of 0.97 is 0.97^60 = 0.16. The stream's own
    normalization changes with the scene, which is worth a quarter of it either way.
    """
    other = scenes.draw_scene("filaments, blinking", 64, rng(7))
    after = {"replaced": other, "moved": scene.moved(5)}[change]
    steps = {"float32": LeakyStep(), "int8": ForgetfulStep()}
    found = drift.step_response("s", change, (scene, after), steps, rng(4))
    leaky, forgetful = found
    assert leaky.ghost == pytest.approx(MEMORY**60, rel=0.25)
    assert leaky.stream_db < leaky.window_db - 0.5  # 0.97^30 is 0.4: it haunts
    assert forgetful.ghost == pytest.approx(0, abs=1e-6)
    assert forgetful.stream_db == pytest.approx(forgetful.window_db, abs=1e-6)


def test_the_daemons_stream_begins_anew_where_the_specimen_is_another(scene):
    """Mutations: a watch that resets the stream that nobody resets; one that is never asked; a
    ghost of the one for the other's.
    """
    other = scenes.draw_scene("filaments, blinking", 64, rng(7))
    steps = {"float32": LeakyStep()}
    (replaced,) = drift.step_response("s", "replaced", (scene, other), steps, rng(4))
    assert replaced.daemon_db > replaced.stream_db + 0.5
    assert replaced.daemon_db == pytest.approx(replaced.window_db, abs=0.5)  # of fewer frames
    assert replaced.ghost > 0.1
    assert replaced.daemon_ghost == pytest.approx(0, abs=0.02)  # it has never seen the old one


def test_a_ghost_is_the_old_detail_alone():
    """Mutation: correlation for the coefficient; a shared structure counted as a ghost."""
    own, old = rng().random((2, 64, 64))
    assert drift.ghost(own + 0.25 * old + 3.0, own, old) == pytest.approx(0.25, abs=1e-9)
    assert drift.ghost(0.5 * own, own, old + own) == pytest.approx(0.0, abs=1e-9)


# --- inside ---------------------------------------------------------------------------------------


def test_values_at_the_ends_are_counted():
    """Mutations: the neighbours of the ends counted; the ends exchanged."""
    ends = Ends(low=-1.28, high=1.27, step=0.01)
    values = np.array([-1.28, -1.28, -1.27, 0.0, 1.26, 1.27], np.float32)
    assert ends.count(values) == Saturation(low=2, high=1, values=6)
    assert Saturation(2, 1, 6).shares() == {"low": 2 / 6, "high": 1 / 6}


@pytest.fixture(scope="module")
def pair() -> tuple[dict[str, Path], dict[str, Step]]:
    int8 = newest_model(MODELS_DIR)
    files = {"int8": int8, "float32": int8.with_name(int8.name.replace("int8", "float32"))}
    return files, {form: load_step(path) for form, path in files.items()}


def test_the_ends_are_those_of_the_file(pair):
    """Mutations: scale or zero point of another tensor; -128 and 127 exchanged.

    Nothing that the file gives is beyond the ends, and all of it is a whole number of steps.
    """
    files, steps = pair
    ends = inspection.ends_of_outputs(files["int8"].read_bytes(), "step")
    # The image is added up in float.
    assert set(ends) == set(steps["int8"].manifest.outputs) - {"image"}
    assert inspection.ends_of_outputs(files["float32"].read_bytes(), "step") == {}
    recording = inspection.RecordingStep(steps["int8"])
    recording.resize(32, 32)
    inputs = (
        recording.zero_state()
        | constant_inputs(steps["int8"])
        | {
            name: rng().gamma(0.5, 2.0, (1, 32, 32, 1)).astype(np.float32)
            for name in ("frame", "mean")
        }
    )
    counting = CountingStep(recording, ends)
    outputs = counting.run(inputs)
    for name, end in ends.items():
        values = outputs[name]
        number = (values - end.low) / end.step
        np.testing.assert_allclose(number, np.rint(number), atol=0.01)
        assert (number.min(), number.max()) >= (-0.01, 0) and number.max() < 255.01
        at_ends = np.mean((np.rint(number) == 0) | (np.rint(number) == 255))
        assert sum(counting.counts[name].shares().values()) == pytest.approx(at_ends)


def test_the_frames_noise_is_that_of_rounding(pair, scene, monkeypatch):
    """Mutations: the difference squared of other tensors, noise over signal, one form twice.

    Rounding to steps of s has the power s^2 / 12. What is clipped beside, and the few values that
    a frame has, are worth 1 dB.
    """
    files, steps = pair
    for each in steps.values():
        monkeypatch.setattr(each, "psf_width", None)
    series = scene.frames(rng(5))
    frames = np.stack([next(series) for _ in range(30)])
    found, unmatched = inspection.signal_to_noise_db(files, steps, [frames])
    calls = inspection._some(steps["float32"], frames)
    scaling = reconstruct_window(steps["float32"], frames).scaling
    for call, k in zip(calls, (9, 19, 29), strict=True):
        np.testing.assert_allclose(call["frame"][0, ..., 0], scaling.normalize(frames[k]))
    power = np.mean([np.mean(np.square(call["frame"], dtype=np.float64)) for call in calls])
    step = input_step(files["int8"], "frame")
    assert found["frame"] == pytest.approx(10 * np.log10(power / (step**2 / 12)), abs=1.0)
    assert {"mean", *steps["int8"].manifest.state.values(), "image"} <= set(found)
    # The PSF, which is not told, its features, what they change, and the mean's interpolation in
    # float have none.
    exact = {name for name, db in found.items() if db == np.inf}
    assert "psf_sigma_px" in exact
    assert len([name for name in exact if "modulation" not in name and "psf" not in name]) <= 2
    assert all(0 < db < 80 for name, db in found.items() if name not in exact), found
    assert len(unmatched) < len(found)
    same = dict.fromkeys(files, files["float32"]), dict.fromkeys(steps, steps["float32"])
    assert set(inspection.signal_to_noise_db(*same, [frames])[0].values()) == {np.inf}


def input_step(path: Path, name: str) -> float:
    """Scale that an int8 file quantizes an input by."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    names = inspection.activations(path.read_bytes(), "step")
    (index,) = [index for index, each in names.items() if each == name]
    (details,) = [d for d in interpreter.get_tensor_details() if d["index"] == index]
    return float(details["quantization"][0])


# --- the report -----------------------------------------------------------------------------------


def test_losses_are_int8_less_float32_with_the_worst_named():
    """Mutations: the sign turned, the best named, modes mixed, other methods taken in."""
    scores = [
        Score(0, "float32, window", 30.0, 0.9, 0.1),
        Score(1, "float32, window", 20.0, 0.8, 0.1),
        Score(0, "int8, window", 29.9, 0.89, 0.1),
        Score(1, "int8, window", 19.0, 0.81, 0.1),
        Score(0, "int8, stream 30", 31.0, 0.9, 0.1),
        Score(0, "float32, stream 30", 30.0, 0.9, 0.1),
        Score(0, "mean (bicubic)", 1.0, 0.1, 0.1),
    ]
    losses = accuracy.frozen_losses(scores)
    names = [recipe.name for recipe in frozen.recipes()]
    assert set(losses) == {"window", "stream 30"}
    psnr, ssim = losses["window"]["psnr_db"], losses["window"]["ssim"]
    assert psnr["mean"] == pytest.approx(-0.55)
    assert (psnr["worst"], psnr["worst_stack"]) == (pytest.approx(-1.0), names[1])
    assert (ssim["worst"], ssim["worst_stack"]) == (pytest.approx(-0.01), names[0])
    assert losses["stream 30"]["psnr_db"]["mean"] == pytest.approx(1.0)


def test_the_scores_of_an_evaluation_are_taken_over(tmp_path):
    """Mutation: the baselines taken for forms, or two forms for one."""
    fields = {"stack_id": 0, "psnr_db": 1.0, "ssim": 0.5, "nrmse": 0.1}
    methods = ["a-1.0-int8, window", "a-1.0-float32, stream 30", "RL blind, 20"]
    content = {
        "models": {"a-1.0-int8": "aa", "a-1.0-float32": "bb"},
        "scores": [fields | {"method": method} for method in methods],
    }
    path = tmp_path / "frozen.json"
    path.write_text(json.dumps(content))
    found = [score.method for score in accuracy.own_scores(path)]
    assert found == ["int8, window", "float32, stream 30"]


@pytest.fixture(scope="module")
def released(quantized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as a release."""
    folder = tmp_path_factory.mktemp("accuracy") / "models"
    options = ["--run", str(quantized_run), "--version", "0.1.0", "--models", str(folder)]
    assert main(["release", *options, "--no-evaluation"]) == 0
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One scene and two frozen stacks in place of all."""
    chosen = [frozen.recipes()[3], frozen.recipes()[33]]
    whole = accuracy.score_frozen
    monkeypatch.setattr(accuracy, "score_frozen", lambda steps: whole(steps, None, chosen))
    monkeypatch.setattr(accuracy, "KINDS", {k: scenes.KINDS[k] for k in ["filaments, blinking"]})


@pytest.mark.usefixtures("quick")
def test_the_command_writes_table_plot_and_figures(released, tmp_path, capsys):
    """Mutations: one of the three not written; a section of the report left out."""
    options = ["--models", str(released), "--frames", "60", "--workers", "0"]
    assert main(["accuracy", *options, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "accuracy.json").read_text())
    assert list(content["models"]) == ["learn2sofi-0.1.0-float32", "learn2sofi-0.1.0-int8"]
    assert set(content["frozen"]) == {"window", "stream 30", "stream 120"}
    assert {each["frames"] for each in content["drift"]} == {30}
    assert {each["change"] for each in content["step_response"]} == {"replaced", "moved"}
    assert set(content["saturation"]) == {"h_out", "c_out"}
    assert content["narrowed"] is True
    page, said = (tmp_path / "accuracy.md").read_text(), capsys.readouterr().out
    assert said in page
    assert "learn2sofi-0.1.0-int8" in page
    for tensor in content["tensors_snr_db"]:
        assert f"`{tensor}`" in page
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    short = accuracy.condensed(content)
    assert accuracy.short_tables(short) == said
    assert "stacks" not in json.dumps(short["frozen"])


def test_without_narrowing_is_the_released_network_with_its_ranges_as_they_were(released, tmp_path):
    """Mutations: the narrowed file copied or narrowed again; other weights; a pair that the device
    refuses.

    The weights are enlarged, so that there are ranges to narrow.
    """
    wide_release, folder = tmp_path / "models", tmp_path / "without"
    shutil.copytree(released, wide_release)
    folder.mkdir()
    (weights,) = wide_release.glob("*.weights.h5")
    enlarge(weights, 6.0)
    accuracy.without_narrowing(wide_release, folder)
    name = newest_model(released).name
    wide = (folder / name).read_bytes()
    (settings,) = released.glob("*.settings.json")
    network = TrainingSettings.model_validate_json(settings.read_text()).network
    assert scales(wide) != scales(narrowed(wide, network))
    assert max(scales(wide)) > 2 * max(scales((released / name).read_bytes()))
    steps = [load_step(each / name) for each in (folder, released)]
    assert steps[0].manifest.training == steps[1].manifest.training
    twin = name.replace("int8", "float32")
    assert load_step(folder / twin).sha256 == load_step(released / twin).sha256


def enlarge(weights: Path, factor: float) -> None:
    """Multiply all numbers of a weights file."""
    with h5py.File(weights, "r+") as file:
        found: list[h5py.Dataset] = []
        file.visititems(lambda _, x: found.append(x) if isinstance(x, h5py.Dataset) else None)
        for dataset in found:
            dataset[...] = factor * dataset[...]


def scales(content: bytes) -> list[float]:
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
    tensors = [tensor for tensor in graph.tensors if tensor.type == schema.TensorType.INT8]
    return [float(tensor.quantization.scale[0]) for tensor in tensors]


def test_half_a_pair_is_refused(released, tmp_path):
    """Mutation: KeyError for a folder with the int8 form alone."""
    path = newest_model(released)
    (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="float32 form"):
        accuracy.measure(tmp_path, 30, 0)


@pytest.mark.parametrize("options", [["--frames", "29"], ["--workers", "-1"]])
def test_numbers_out_of_range_are_refused(options, capsys):
    """Mutation: a stream without a checkpoint dies of max() of nothing."""
    assert main(["accuracy", *options]) == 2
    assert "give" in capsys.readouterr().err
