"""What is found from the whole image, and trusted less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from training import settings as settings_file
from training import shrinkage
from training.__main__ import main
from training.example import make_example
from training.forward_model import ForwardModelSettings
from training.network import NetworkSettings, Step, build_step
from training.settings import TrainingSettings
from training.shrinkage import PlayedWindows, shrink
from training.train import Run, Trained, Validation, load_network


def telling(settings: NetworkSettings) -> Step:
    """Make a step whose image depends on what it finds from the whole of a window."""
    keras.utils.set_random_seed(1)
    step = build_step(settings, 32, 32)
    rng = np.random.default_rng(1)
    for weights in step.weights:
        if not np.any(weights):
            weights.assign(rng.normal(0, 0.3, weights.shape))
    step.whole_image.inner.assign(30 * step.whole_image.inner)
    step.whole_image.inner_bias.assign(np.ones(step.whole_image.inner_bias.shape))
    return step


@pytest.fixture
def step() -> Step:
    """One of them."""
    return telling(NetworkSettings(estimates=4))


@pytest.fixture
def windows(step: Step) -> PlayedWindows:
    """Three windows, of their first six frames."""
    model = ForwardModelSettings()
    examples = [
        make_example(model, 30, 32, False, (1, 2, k), psf_told_fraction=1.0) for k in range(3)
    ]
    return PlayedWindows(
        step, [replace(e, frames=e.frames[:6], means=e.means[:6]) for e in examples]
    )


def test_a_window_ends_in_the_step_s_own_state_and_image(step, windows, monkeypatch) -> None:
    """Against the step, frame by frame and one by one, nothing rounded. Mutations: the mean of the
    first window for all; frames of another order; the PSF's width told to the blind."""
    monkeypatch.setattr(shrinkage, "BATCH", 2)
    monkeypatch.setattr(shrinkage, "as_int8", lambda x, limits: x)
    examples = [e for group in windows.groups for e in group]
    again = PlayedWindows(step, examples)
    assert [len(group) for group in again.groups] == [2, 1]
    for told in (False, True):
        for example, image in zip(examples, again.images(told), strict=True):
            h = c = np.zeros((1, *step.state_shape(32, 32)), np.float32)
            psf = np.full((1, 1), example.psf_sigma_px * told, np.float32)
            for frame, mean in zip(example.frames, example.means, strict=True):
                inputs = {"frame": frame[None, ..., None], "mean": mean[None, ..., None]}
                inputs |= {"psf_sigma_px": psf, "h": h, "c": c}
                made = step.call(inputs, limited=False)
                h, c = made["h_out"], made["c_out"]
            expected = np.asarray(made["image"])[0, ..., 0]
            np.testing.assert_allclose(image, expected, atol=1e-4)


def test_logits_come_nearer_to_what_they_usually_are(step, windows, tmp_path) -> None:
    """Mutations: nearer to 0; the bias left as it was; shrunk twice; 1 leaves them."""
    weights = tmp_path / "own.weights.h5"
    step.save_weights(weights)
    before = windows.logits()
    usual = np.median(before, axis=0)
    assert np.ptp(before, axis=0).max() > 0.5
    network = Trained(step, TrainingSettings(), weights, {})
    for part in (0.25, 1.0, 0.0):
        shrink(network, part, usual)
        expected = usual + (1 - part) * (before - usual)
        np.testing.assert_allclose(windows.logits(), expected, atol=1e-4)


@pytest.fixture
def first(tiny_settings: Path, tmp_path: Path, step: Step) -> Path:
    """A run of such a network."""
    wide = tmp_path / "wide.toml"
    text = tiny_settings.read_text().replace("[network]", "[network]\nestimates = 4")
    wide.write_text(text.replace("head_layers = 1", "head_layers = 3"))
    settings = settings_file.load(str(wide))
    run = Run(tmp_path / "first")
    run.begin(str(wide), settings)
    made = telling(settings.network)
    modulation = made.modulations[-1].kernel
    modulation.assign(5 * modulation)
    made.save_weights(run.best)
    run.of_best.write_text('{"updates": 7}')
    return run.folder


def test_the_command_leaves_a_run_and_says_what_it_gives(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mutations: an origin that is not written down; a run that is written over; weights that are
    not shrunk, or by another part; one line's scores for all; blind and told mixed up."""
    run = tmp_path / "shrunk"
    words = ["shrinkage", "--initial", str(first), "--run", str(run)]
    assert main([*words, "--shrinkage", "0.3"]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["| 0", "| 0.2", "| 0.3", "| 0.4", "| 0.6", "| 0.8"]
    about = json.loads((run / "run.json").read_text())
    assert (
        about["settings_given"]
        == about["initial"]["settings_given"]
        == str(first.parent / "wide.toml")
    )
    best = json.loads((run / "best.json").read_text())
    assert (best["shrinkage"], best["updates"]) == (0.3, 7)
    assert best["mean_db"] > 10
    before, after = load_network(first), load_network(run)
    played = PlayedWindows(before.step, Validation(before.settings).told)
    usual, old = np.median(played.logits(), axis=0), before.step.whole_image
    validation = Validation(after.settings)
    for network, place in ((before, 0), (after, 2)):
        windows = PlayedWindows(network.step, validation.told)
        scores = [validation.score_db(windows.images(told)) for told in (False, True)]
        assert lines[place][1:] == [f"{scores[0]:.2f}", f"{scores[1]:.2f} |"]
    assert scores == pytest.approx([best["validation_db"], best["validation_told_db"]], abs=1e-4)
    assert lines[0][1:] != lines[5][1:]
    new = after.step.whole_image
    np.testing.assert_allclose(new.outer, 0.7 * np.asarray(old.outer), rtol=1e-5)
    bias = 0.7 * np.asarray(old.outer_bias) + 0.3 * usual
    np.testing.assert_allclose(new.outer_bias, bias, atol=1e-5)


def test_what_cannot_be_shrunk_is_said(
    first: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mutations: a run that is written over; another network's estimates taken for granted."""
    other = ["--run", str(tmp_path / "other")]
    words = ["shrinkage", "--initial", str(first), *other]
    for wrong, problem in (
        (["--run", str(first)], "holds a run"),
        (["--shrinkage", "1.2"], "--shrinkage is 1.2; give a number from 0 to 1"),
        (["--initial", str(tmp_path / "none")], "holds no weights of this network"),
        (["--initial", str(tiny_run)], "finds nothing from the whole image"),
    ):
        assert main([*words, *wrong]) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
