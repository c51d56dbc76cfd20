"""The network without our step's limits learns, asks for no order, and is its own twin."""

from __future__ import annotations

from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from device.errors import UserError
from training import settings as settings_file
from training import train
from training.dataset import TrainingStream
from training.limit import limit
from training.train import Run

FRAMES = 30
SETTINGS = """
seed = 3
updates = 4
epoch_updates = 4
warmup_updates = 0
learning_rate = 3e-4
architecture = "limit"
[dataset]
batch = 1
size_px = 16
chunk = 30
read_at = [29]
stream_fraction = 0.0
workers = 0
"""


def settings_of(folder: Path, text: str = SETTINGS) -> train.TrainingSettings:
    (folder / "limit.toml").write_text(text)
    return settings_file.load(str(folder / "limit.toml"))


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """For frames of 16 x 16 px, with no weight at 0."""
    keras.utils.set_random_seed(5)
    made, rng = limit(16, 16, FRAMES), np.random.default_rng(5)
    for variable in made.weights:
        noise = rng.normal(0, 0.05, variable.shape).astype(np.float32)
        variable.assign(np.asarray(variable) + noise)
    return made


@pytest.fixture(scope="module")
def stacks() -> np.ndarray:
    """Two stacks of different brightness, (2, T, H, W, 1)."""
    stacks = np.random.default_rng(6).gamma(0.5, 1.0, (2, FRAMES, 16, 16, 1))
    return (stacks * np.array([1.0, 0.4])[:, None, None, None, None]).astype(np.float32)


def images(network: keras.Model, stacks: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(network(stacks))[..., 0]


def test_on_one_copy_of_the_mean_it_is_what_it_is_on_many(
    network: keras.Model, stacks: np.ndarray
) -> None:
    """Catches a sum over the frames, and what is put together of several stacks: the twin is
    trained on one copy."""
    mean = stacks.mean(axis=1, keepdims=True)
    twin = limit(16, 16, 1)
    twin.set_weights(network.get_weights())
    of_one, of_many = images(twin, mean), images(network, np.repeat(mean, FRAMES, axis=1))
    np.testing.assert_allclose(of_one, of_many, atol=1e-5 * of_many.max())
    assert np.abs(images(network, stacks) - of_many).max() > 0.01 * of_many.max()


def test_the_order_of_the_frames_changes_nothing(network: keras.Model, stacks: np.ndarray) -> None:
    """Catches a frame that is told its place, and frames that are given to another stack."""
    rng = np.random.default_rng(7)
    as_shown, shuffled = images(network, stacks), images(network, rng.permuted(stacks, axis=1))
    assert np.abs(as_shown - shuffled).max() > 1e-3
    shuffled = images(network, stacks[:, rng.permutation(FRAMES)])
    np.testing.assert_allclose(as_shown, shuffled, atol=1e-5 * as_shown.max())


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_as_it_begins_it_is_the_mean_interpolated(precision: str, stacks: np.ndarray) -> None:
    """Catches a grid that is half a pixel beside, light below 0, and a mean, or what will be added
    to it, that 16 bits round."""
    with train.computing_in(precision):
        untrained = limit(16, 16, FRAMES)
    assert untrained.get_layer("change").compute_dtype == "float32"
    stacks = stacks - np.float32(0.5)
    for image, mean in zip(images(untrained, stacks), stacks.mean(axis=1), strict=True):
        enlarged = cv2.resize(mean, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        assert enlarged.min() < 0
        np.testing.assert_allclose(image, np.maximum(enlarged, 0), atol=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    """Catches weights that no gradient reaches, and another network under this name."""
    settings = settings_of(tmp_path)
    network = train.make_network(settings)
    assert network.step.count_params() == limit(16, 16, 1).count_params()
    before = [np.array(v) for v in network.step.trainable_variables]
    inputs, truth = TrainingStream(settings.forward_model, settings.dataset, 3, 1)[0]
    losses = [float(network.train_on_batch(inputs, truth)) for _ in range(settings.updates)]
    assert losses[-1] < losses[0] - 0.05
    for variable, old in zip(network.step.trainable_variables, before, strict=True):
        assert np.abs(np.array(variable) - old).max() > 0, variable.path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("chunk = 30\nread_at = [29]", "chunk = 15\nread_at = [14]", "chunk must be 30"),
        ("chunk = 30\nread_at = [29]", "copies = 2\nchunk = 1\nread_at = [0]", "chunk must be 2"),
        ("read_at = [29]", "read_at = [14, 29]", r"read_at \[29\]"),
        ("stream_fraction = 0.0", "stream_fraction = 0.5", "stream_fraction 0"),
        ("workers = 0", "workers = 0\n[network]\nfilters = 8", "leave .network. out"),
    ],
)
def test_settings_that_are_not_its_own_are_refused(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    """Catches a window that is not whole, and a setting of our step that is passed over."""
    assert old in SETTINGS
    with pytest.raises(UserError, match=f"architecture limit.*{words}"):
        settings_of(tmp_path, SETTINGS.replace(old, new))


def test_it_begins_with_random_weights(tmp_path: Path) -> None:
    """Mutation: `--initial` is passed over, or named the original's in the answer."""
    settings, run = settings_of(tmp_path), Run(tmp_path / "run")
    run.begin("limit", settings)
    with pytest.raises(UserError, match=r"architecture limit.*random weights: leave --initial out"):
        train.train(settings, run, initial=tmp_path)
