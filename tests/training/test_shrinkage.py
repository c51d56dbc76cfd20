"""What is found from the whole image, and trusted less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import settings as settings_file
from training import shrinkage
from training.__main__ import main
from training.example import make_example
from training.forward_model import ForwardModelSettings
from training.network import NetworkSettings, Step, build_step
from training.settings import TrainingSettings
from training.shrinkage import Shrinkable, Windows
from training.train import Run


@pytest.fixture
def step() -> Step:
    """One whose image depends on what is found from the whole of it."""
    step = build_step(NetworkSettings(estimates=4), 32, 32)
    rng = np.random.default_rng(1)
    for weights in step.weights:
        if not np.any(weights):
            weights.assign(rng.normal(0, 0.3, weights.shape))
    return step


@pytest.fixture
def windows(step: Step) -> Windows:
    """Three windows, of their first six frames."""
    model = ForwardModelSettings()
    examples = [
        make_example(model, 30, 32, False, (1, 2, k), psf_told_fraction=1.0) for k in range(3)
    ]
    return Windows(step, [replace(e, frames=e.frames[:6], means=e.means[:6]) for e in examples])


def logits_of(windows: Windows) -> np.ndarray:
    """Of every window, (3, 4)."""
    found = []
    for group, h in zip(windows.groups, windows.states, strict=True):
        mean, psf = windows._inputs(group, told=False)
        found.append(windows.step.whole_image_logits(mean, h, psf, shrinkage.as_int8))
    return np.concatenate([np.asarray(each) for each in found])


def test_a_window_ends_in_the_step_s_own_state_and_image(step, windows, monkeypatch) -> None:
    """Against the step, frame by frame and one by one, nothing rounded. Mutations: the mean of the
    first window for all; frames of another order; the PSF's width told to the blind."""
    monkeypatch.setattr(shrinkage, "BATCH", 2)
    monkeypatch.setattr(shrinkage, "as_int8", lambda x, limits: x)
    examples = [e for group in windows.groups for e in group]
    again = Windows(step, examples)
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
    before, usual = logits_of(windows), windows.usual_logits()
    np.testing.assert_allclose(usual, np.median(before, axis=0), rtol=1e-5)
    network = Shrinkable(step, TrainingSettings(), weights, {})
    for part in (0.25, 1.0, 0.0):
        network.shrink(part, usual)
        expected = usual + (1 - part) * (before - usual)
        np.testing.assert_allclose(logits_of(windows), expected, atol=1e-4)


def test_the_command_leaves_a_run_and_says_what_it_gives(
    tiny_run: Path, tiny_settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mutations: an origin that is not written down; a run that is written over; weights that are
    not shrunk, or by another part."""
    wide = tmp_path / "wide.toml"
    wide.write_text(tiny_settings.read_text().replace("[network]", "[network]\nestimates = 4"))
    first, run = tmp_path / "first", tmp_path / "shrunk"
    settings = settings_file.load(str(wide))
    Run(first).begin(str(wide), settings)
    build_step(settings.network, 32, 32).save_weights(first / "best.weights.h5")
    (first / "best.json").write_text('{"updates": 7}')
    words = ["shrinkage", "--initial", str(first), "--run", str(run)]
    assert main([*words, "--shrinkage", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "| 0 |" in said
    assert "| 0.3 |" in said
    about = json.loads((run / "run.json").read_text())
    assert about["initial"]["settings_given"] == str(wide)
    best = json.loads((run / "best.json").read_text())
    assert (best["shrinkage"], best["updates"]) == (0.3, 7)
    assert best["mean_db"] > 10
    outer = {}
    for folder in (first, run):
        network = build_step(shrinkage.weights_and_origin(folder)[2].network, 32, 32)
        network.load_weights(folder / "best.weights.h5")
        outer[folder] = np.asarray(network.whole_image.outer)
    np.testing.assert_allclose(outer[run], 0.7 * outer[first], rtol=1e-5)
    elsewhere = ["--run", str(tmp_path / "other")]
    for wrong, problem in (
        ([], "holds a run"),
        ([*elsewhere, "--shrinkage", "1.2"], "--shrinkage is 1.2; give a number from 0 to 1"),
        ([*elsewhere, "--initial", str(tmp_path / "none")], "holds no weights"),
        ([*elsewhere, "--initial", str(tiny_run)], "finds nothing from the whole image"),
    ):
        assert main([*words, *wrong]) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
