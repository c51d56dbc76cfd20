"""A head that learns on, on the states that the int8 cell makes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from device.model import load_step
from training import head, readings
from training import settings as settings_file
from training.__main__ import main
from training.example import Example, make_example
from training.head import HIDDEN_STEP, Head, Readings, batch_of
from training.network import MEAN_RANGE, build_step
from training.readings import Player, Reading
from training.settings import TrainingSettings
from training.train import Run


@pytest.fixture(scope="module")
def manifest(quantized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the tiny run."""
    folder = tmp_path_factory.mktemp("released")
    options = ["--run", str(quantized_run), "--version", "0.1", "--models", str(folder)]
    assert main(["release", *options, "--no-evaluation"]) == 0
    return folder / "learn2sofi-0.1.json"


def own_settings(manifest: Path) -> TrainingSettings:
    """Load what the tiny run was trained with."""
    return settings_file.of_file(manifest.with_suffix(".settings.json"))


@pytest.fixture
def player(manifest: Path) -> Player:
    """One that plays its int8 step."""
    settings = own_settings(manifest)
    file = manifest.with_name("learn2sofi-0.1-int8.tflite")
    return Player(
        file, HIDDEN_STEP, [settings.forward_model], 32, 0.5, settings.dataset.normalization
    )


def window(player: Player, number: int = 0) -> Example:
    """Make a window ready, with its PSF told."""
    told = {"psf_told_fraction": 1.0}
    return make_example(player.models[0], 30, 32, False, (1, 2, number), **told)


def weights_of(step: keras.Model) -> dict[str, np.ndarray]:
    """Name all variables of a network, whatever that is called."""
    return {v.path.partition("/")[2]: keras.ops.convert_to_numpy(v) for v in step.variables}


def test_a_head_makes_of_a_reading_what_the_step_makes_of_the_frames(manifest, player) -> None:
    """Mutations: the state before the frame instead of that after it; another frame's mean; a state
    in other units; the cell state instead of the output."""
    (step, *_), file = head.released(manifest, own_settings(manifest))
    rng = np.random.default_rng(1)  # eight updates from nothing would be rounded away
    step.correction.kernel.assign(rng.normal(0, 0.3, step.correction.kernel.shape))
    example = window(player)
    network = load_step(file)
    network.resize(32, 32)
    state = network.zero_state()
    for frame, mean in zip(example.frames, example.means, strict=True):
        images = {"frame": frame[None, :, :, None], "mean": mean[None, :, :, None]}
        inputs = {key: np.ascontiguousarray(each) for key, each in images.items()}
        made = network.run(inputs | {"psf_sigma_px": np.zeros((1, 1), np.float32)} | state)
        state = {name: made[out] for name, out in network.manifest.state.items()}
    (reading,) = player.readings(example, [29])
    np.testing.assert_allclose(reading.h * HIDDEN_STEP, state["h"][0], atol=1e-6)
    assert np.abs(reading.h).max() > 2
    inputs, truth = batch_of([reading], np.array([False]))
    mean = np.clip(example.means[-1], *MEAN_RANGE)[None, :, :, None]
    expected = step.read(mean, state["h"], np.zeros((1, 1), np.float32))
    gain = example.scales[-1] / example.unit
    image = np.asarray(Head(step)(inputs))[0, 0] / gain
    assert np.abs(image - np.asarray(expected)[0, :, :, 0]).mean() < 0.03  # int8's steps
    np.testing.assert_allclose(truth[0, 0], example.truth, atol=1e-3)


def test_a_stream_is_read_with_its_own_mean_brightness_and_truth(player) -> None:
    """Mutations: the last frame's mean, brightness or truth for all; frames counted from 1."""
    model, normalization = player.models[0], player.normalization
    example = make_example(model, 60, 32, True, (1, 2, 3), normalization, changes=True)
    found = player.readings(example, [29, 44])
    assert not np.array_equal(example.truth_at(29), example.truth_at(44))
    for reading, frame in zip(found, (29, 44), strict=True):
        np.testing.assert_allclose(reading.mean, example.means[frame], atol=2e-3)
        np.testing.assert_allclose(reading.truth, example.truth_at(frame), atol=1e-3)
        assert reading.gain == pytest.approx(example.scales[frame] / example.unit)


def test_a_seed_is_a_stack_and_windows_are_read_turned_too(player, monkeypatch) -> None:
    """Mutations: turned frames with a truth that is not; a stream where copies are to be played;
    mirrored instead of turned, which would tell nothing new."""
    monkeypatch.setattr(readings, "STREAMS", 0.0)
    monkeypatch.setattr(readings, "HALF_WAY", 0.0)
    as_it_is, turned = player.stack((3, 6, 1))
    np.testing.assert_array_equal(turned.truth, np.rot90(as_it_is.truth))
    np.testing.assert_array_equal(turned.mean, np.rot90(as_it_is.mean))
    again = player.stack((3, 6, 1))
    np.testing.assert_array_equal(again[1].h, turned.h)
    monkeypatch.setattr(readings, "STREAMS", 1.0)
    streamed = player.stack((3, 6, 1))
    assert len(streamed) == 2
    assert not np.array_equal(streamed[0].mean, streamed[1].mean)


def test_a_twin_plays_copies_of_a_window_s_mean(player, monkeypatch) -> None:
    """Mutations: a stream; frames instead of copies; the mean of as many frames as there are
    copies."""
    monkeypatch.setattr(readings, "STREAMS", 1.0)
    monkeypatch.setattr(readings, "HALF_WAY", 0.0)
    examples = []

    def noted(*given, **told):
        examples.append(make_example(*given, **told))
        return examples[-1]

    monkeypatch.setattr(readings, "make_example", noted)
    assert len(replace(player, copies=4).stack((3, 6, 1))) == 2
    (example,) = examples
    assert example.frames.shape[0] == 4
    assert np.ptp(example.frames, axis=0).max() == 0
    whole = make_example(player.models[0], 30, 32, False, (3, 6, 1), player.normalization, 4)
    np.testing.assert_array_equal(example.means[-1], whole.means[-1])


def test_other_settings_have_their_share(player, monkeypatch) -> None:
    """Mutations: the others in all of the stacks, or in none."""
    drawn = []

    def noted(model, *_, **__):
        drawn.append(model)
        raise InterruptedError

    monkeypatch.setattr(readings, "make_example", noted)
    other = player.models[0].model_copy(update={"photons": (1.0, 2.0)})
    both = replace(player, models=[player.models[0], other])
    for number in range(200):
        for each in (player, both):
            with pytest.raises(InterruptedError):
                each.stack((1, 6, number))
    assert drawn[::2] == [player.models[0]] * 200
    assert 15 <= drawn[1::2].count(other) <= 50
    drawn.clear()
    for number in range(20):
        with pytest.raises(InterruptedError):
            replace(both, also_part=1.0).stack((1, 6, number))
    assert drawn == [other] * 20


def readings_of(numbers: range) -> list[Reading]:
    """Make some that can be told apart."""
    small = np.zeros((2, 2), np.float16)
    return [Reading(small, np.zeros((1, 1, 4), np.int8), 1.5, float(n), small) for n in numbers]


def test_every_reading_is_taken_once_before_any_is_taken_again() -> None:
    """Mutations: the same batches in every epoch; drawn with repetition; always told, or never."""
    data = Readings(readings_of(range(40)), 4, 0.5, seed=1)
    gains, told = [], []
    for _ in range(5):
        for index in range(len(data)):
            inputs, truth = data[index]
            gains += list(inputs["gain"][:, 0])
            told += list(inputs["psf_sigma_px"][:, 0])
            assert truth.shape == (16, 1, 2, 2)
        data.on_epoch_end()
    assert len(gains) == 320
    for turn in range(8):
        assert sorted(gains[40 * turn : 40 * turn + 40]) == list(range(40))
    assert gains[:40] != gains[40:80]
    assert set(told) == {0.0, 1.5}
    assert 100 < told.count(1.5) < 220


def test_the_command_plays_what_it_is_told_to(
    manifest, tiny_settings, tmp_path, monkeypatch
) -> None:
    """Mutations: a twin that is fed frames; the other settings left out; the release's data."""
    played = []

    def noted(*given, **told):
        played.append(Player(*given, **told))
        raise InterruptedError

    monkeypatch.setattr(head, "Player", noted)
    twin = tmp_path / "twin.toml"
    copies = "[dataset]\ncopies = 5\nstream_fraction = 0.0"
    fed = tiny_settings.read_text().replace("[dataset]", copies)
    twin.write_text(fed + "\n[forward_model]\nphotons = [20.0, 30.0]\n")
    words = ["head", "--initial", str(manifest), "--settings", str(twin)]
    words += ["--run", str(tmp_path / "run"), "--also", "original_drawn", "--also-part", "0.3"]
    with pytest.raises(InterruptedError):
        main(words)
    (player,) = played
    assert (player.copies, player.also_part) == (5, 0.3)
    assert [model.photons for model in player.models] == [(20.0, 30.0), (100.0, 100.0)]
    assert player.file == manifest.with_name("learn2sofi-0.1-int8.tflite")


def test_the_command_draws_the_stacks_and_scales_the_head_as_told(
    manifest, tiny_settings, tmp_path, monkeypatch
) -> None:
    """Mutations: the same stacks whatever is asked; a head as it was; a cell that is scaled."""
    drawn, given = [], []
    monkeypatch.setattr(
        head.simulators, "collected", lambda _, seeds, __: drawn.extend(seeds) or []
    )
    monkeypatch.setattr(head, "train", lambda step, *_: given.append(weights_of(step)))
    words = ["head", "--initial", str(manifest), "--settings", str(tiny_settings)]
    words += ["--first", "5", "--stacks", "8", "--head-gain", "2", "--workers", "0"]
    assert main([*words, "--run", str(tmp_path / "run")]) == 0
    assert drawn == [(3, head.HEAD, number) for number in range(5, 13)]
    (step, *_), _ = head.released(manifest, own_settings(manifest))
    before = weights_of(step)
    (after,) = given
    np.testing.assert_allclose(after["head_mean/kernel"], 2 * before["head_mean/kernel"])
    for name in before:
        if name.startswith(head.CELL):
            np.testing.assert_array_equal(after[name], before[name])


def trained(manifest: Path, player: Player, run: Path) -> tuple[dict, dict]:
    """Train for a few updates; returns the weights before and those that are kept."""
    settings = own_settings(manifest)
    (step, *_), _ = head.released(manifest, settings)
    before = weights_of(step)
    validation = head.WindowValidation(settings, player)
    report = head.Report(Run(run), validation, checkpoints=False)
    found = player.readings(window(player), [29])
    head.train(step, found, 12, settings, report)
    kept = build_step(settings.network, 32, 32)
    kept.load_weights(run / "best.weights.h5")
    return before, weights_of(kept)


def test_the_cell_stays_as_it_is(manifest, player, tmp_path, monkeypatch) -> None:
    """Mutations: the cell trained, too; a head that is not."""
    monkeypatch.setattr(head, "WARMUP", 1)
    monkeypatch.setattr(head, "AVERAGED", 0.1)
    before, after = trained(manifest, player, tmp_path)
    changed = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    assert not any(name.startswith(head.CELL) for name in changed)
    assert {"correction/kernel", "head_mean/kernel", "head_hidden/kernel"} <= changed
    assert not (tmp_path / "checkpoint.npz").exists()


def test_an_average_is_kept(manifest, player, tmp_path, monkeypatch) -> None:
    """Mutation: the last weights, which an average that never moves would not be."""
    monkeypatch.setattr(head, "WARMUP", 1)
    monkeypatch.setattr(head, "AVERAGED", 1.0)
    before, after = trained(manifest, player, tmp_path)
    for name, value in after.items():
        np.testing.assert_allclose(value, before[name], atol=5e-5, err_msg=name)


def test_the_command_leaves_a_run_that_is_quantized_like_any(
    manifest, tiny_settings, tmp_path, monkeypatch, capsys
) -> None:
    """Mutations: an origin that is not written down; a run that is written over; a network that is
    another than the settings'."""
    run = tmp_path / "head"
    words = ["head", "--initial", str(manifest), "--workers", "0", "--run", str(run)]
    words += ["--settings", str(tiny_settings)]
    sized = ["--stacks", "8", "--updates", "12"]
    assert main([*words, *sized, "--also", str(tiny_settings)]) == 0
    about = json.loads((run / "run.json").read_text())
    assert about["initial"]["settings_given"] == str(tiny_settings)
    assert len(about["initial"]["weights_sha256"]) == 64
    assert json.loads((run / "best.json").read_text())["updates"] > 0
    assert main(["quantize", "--run", str(run), "--stacks", "1", "--head-gain", "1"]) == 0
    assert main([*words, *sized]) == 2
    assert "holds a run" in capsys.readouterr().err
    elsewhere = ["--run", str(tmp_path / "other")]
    alone = tmp_path / "alone.json"
    alone.write_bytes(manifest.read_bytes())
    for wrong, said in (
        (["--stacks", "7"], "--stacks is 7; it must be 8 or more"),
        (["--updates", "11"], "--updates is 11; it must be 12 or more"),
        (["--first", "-1"], "--first is -1; it must be 0 or more"),
        (["--head-gain", "0"], "--head-gain is 0; a number above 0 is needed"),
        (["--initial", str(run / "run.json")], "is not the manifest of a release"),
        (["--initial", str(alone)], "the int8 file must lie beside its manifest"),
        (["--initial", str(tmp_path / "none.json")], "is not the manifest of a release"),
        (["--settings", "base"], "has another network than the settings"),
        (["--also", "nothing"], "No settings at nothing"),
        (["--also-part", "1.5"], "--also-part is 1.5; give a number from 0 to 1"),
        (["--also-part", "0.5"], "--also-part is a part of nothing"),
    ):
        assert main([*words, *sized, *elsewhere, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_processes_that_play_load_no_keras() -> None:
    """Mutation: a player beside the training: every process would hold a TensorFlow."""
    said = "import sys, training.readings; sys.exit('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], check=False).returncode == 0
