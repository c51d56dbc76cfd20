"""The original's network is the original's, learns from our data, and its image is its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from device.errors import UserError
from training import original, quantize, train, windows
from training import settings as settings_file
from training.dataset import validation_set
from training.train import Run

SETTINGS = """
seed = 3
updates = 2
epoch_updates = 1
architecture = "original"
[dataset]
batch = 2
size_px = 16
chunk = 30
read_at = [29]
stream_fraction = 0.0
validation_stacks = 3
workers = 0
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates of the original's network, as the command makes them."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "tiny.toml").write_text(SETTINGS)
    settings = settings_file.load(str(folder / "tiny.toml"))
    made = Run(folder / "run")
    made.begin("tiny", settings)
    train.train(settings, made)
    return made.folder


def test_it_has_the_originals_parameters() -> None:
    """Catches another number of filters, another kernel, a missing layer or bias."""
    model = original.original(16, 20, frames=2, batch=1)
    assert model.count_params() == 12_321
    assert model.output_shape == (1, 32, 40, 1)


def test_unrolled_it_is_the_same() -> None:
    """Catches a form that is timed and another that is trained."""
    loop, chain = (original.original(8, 8, frames=4, unroll=unroll) for unroll in (False, True))
    chain.set_weights(loop.get_weights())
    stack = np.random.default_rng(0).random((1, 4, 8, 8, 1), np.float32)
    np.testing.assert_allclose(np.array(loop(stack)), np.array(chain(stack)), atol=1e-6)


def test_hard_sigmoid_is_the_one_the_original_was_trained_with() -> None:
    """Catches Keras 3's own, of slope 1/6."""
    x = np.array([-3.0, -1.0, 0.0, 1.0, 3.0], np.float32)
    np.testing.assert_allclose(original.hard_sigmoid(x), [0.0, 0.3, 0.5, 0.7, 1.0], atol=1e-6)


def test_it_learns(run: Path) -> None:
    """Catches weights that no gradient reaches: those of the cell, say, behind a stopped one."""
    settings = train.TrainingSettings.model_validate_json((run / "settings.json").read_text())
    network = train.make_network(settings)
    before = [np.array(v) for v in network.step.trainable_variables]
    network.step.load_weights(run / "final.weights.h5")
    for name, old in zip(network.step.trainable_variables, before, strict=True):
        assert np.abs(np.array(name) - old).max() > 0, name.path


def test_the_method_is_what_was_validated(run: Path) -> None:
    """Catches another normalization, frames in another order, and a gain that was left out.

    On TensorFlow's kernels a batch of one is summed up in another order than a batch of two.
    """
    settings = train.TrainingSettings.model_validate_json((run / "settings.json").read_text())
    network = train.make_network(settings)
    network.step.load_weights(run / "best.weights.h5")
    example = validation_set(settings.forward_model, settings.dataset, settings.seed)[0]
    validated = train.Validation(settings).images(network)[0]

    frames = 700.0 * example.frames + 300.0  # in counts: the method normalizes them again
    image = windows.load_method(run, "original")(frames)
    scale = 700.0 * example.unit / example.scales[-1]
    np.testing.assert_allclose(image / scale, validated, atol=2e-3 * np.abs(validated).max())


def test_any_number_of_frames_of_any_size(run: Path) -> None:
    """Catches a network that takes nothing but what it was trained on."""
    frames = np.random.default_rng(0).random((15, 12, 20)) + 100
    assert windows.load_method(run, "original")(frames).shape == (24, 40)


def test_runs_are_told_apart(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Catches a traceback, and weights of one network that are put into another."""
    with pytest.raises(UserError, match="no run of the original's"):
        windows.load_method(tiny_run, "original")
    with pytest.raises(UserError, match="of the architecture original: name one of ours"):
        quantize.load_step(run)
    with pytest.raises(UserError, match="train first"):
        windows.load_method(tmp_path, "original")
    for name, content in (("best.weights.h5", b"cut"), ("settings.json", b"{}}")):
        damaged = tmp_path / name
        shutil.copytree(run, damaged)
        (damaged / name).write_bytes(content)
        with pytest.raises(UserError, match="no best weights of the original's"):
            windows.load_method(damaged, "original")
    best = json.loads((run / "best.json").read_text())
    assert best["validation_db"] == best["validation_told_db"]  # it is told nothing
