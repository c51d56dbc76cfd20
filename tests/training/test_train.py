"""A training run: what it leaves behind, and that an interrupted one ends where it would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from device.errors import UserError
from training import settings as settings_file
from training import train
from training.dataset import DatasetSettings, TrainingStream
from training.network import NetworkSettings, build_step
from training.quantize import load_step
from training.revision import git_revision
from training.settings import TrainingSettings
from training.train import Run

KNOWN = (
    "base, limit, limit_twin, mean, original, original_drawn, original_network, smoke, twin, voids"
)
"""Settings files, as a missing one is answered."""

ORIGINAL = """architecture = "original"
[dataset]
chunk = 30
read_at = [29]
stream_fraction = 0.0
"""


class Interrupted(Exception):
    """Stands in for a power cut."""


def weights(path: Path, settings: TrainingSettings) -> list[np.ndarray]:
    step = build_step(settings.network, 32, 32)
    step.load_weights(path)
    return [keras.ops.convert_to_numpy(v) for v in step.variables]


def largest_difference(one: list[np.ndarray], two: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, two, strict=True))


def test_a_run_leaves_all_that_says_how_it_came_about(tiny_run: Path, tiny_settings: Path) -> None:
    """Catches a run that cannot be repeated: settings, command, seed or revision not written."""
    settings = settings_file.load(str(tiny_settings))
    assert (
        TrainingSettings.model_validate_json((tiny_run / "settings.json").read_text()) == settings
    )
    about = json.loads((tiny_run / "run.json").read_text())
    assert about["command"].startswith("python -m training ")
    assert about["settings_given"] == str(tiny_settings)
    assert about["seed"] == 3
    assert about["git_revision"] == git_revision()
    assert about["backend"] == keras.backend.backend()
    assert not list(tiny_run.glob("*.tmp*"))


def test_the_log_holds_curves_and_pictures_of_every_checkpoint(tiny_run: Path) -> None:
    """Catches a log without pictures, or with epochs where updates are meant."""
    log = EventAccumulator(str(tiny_run / "tensorboard"), size_guidance={"images": 0})
    log.Reload()
    for tag in ("loss", "psnr_db", "told_psnr_db", "mean_db"):
        assert [event.step for event in log.Scalars(tag)] == [2, 4, 6, 8]
        assert np.isfinite([event.value for event in log.Scalars(tag)]).all()
    assert len(log.Tags()["images"]) == 3  # as many as there are validation stacks
    for tag in log.Tags()["images"]:
        events = log.Images(tag)
        assert [event.step for event in events] == [2, 4, 6, 8]
        assert (events[0].height, events[0].width) == (64, 3 * 64)


def test_the_best_weights_are_those_of_the_best_validation(tiny_run: Path) -> None:
    """Catches keeping the worst, or the last, and a note of another score than the log's."""
    log = EventAccumulator(str(tiny_run / "tensorboard"))
    log.Reload()
    scores = {event.step: event.value for event in log.Scalars("psnr_db")}
    best = json.loads((tiny_run / "best.json").read_text())
    assert best["validation_db"] == pytest.approx(max(scores.values()), abs=1e-4)
    assert scores[best["updates"]] == max(scores.values())
    settings = TrainingSettings.model_validate_json((tiny_run / "settings.json").read_text())
    same = largest_difference(
        weights(tiny_run / "best.weights.h5", settings),
        weights(tiny_run / "final.weights.h5", settings),
    )
    assert (same == 0) == (best["updates"] == 8)


def test_weights_are_learned(tiny_run: Path) -> None:
    """Catches an optimizer that does nothing: every layer's weights have moved."""
    _, settings = load_step(tiny_run, "final")
    network = train.make_network(settings)
    begun = [keras.ops.convert_to_numpy(v) for v in network.step.variables]
    ended = weights(tiny_run / "final.weights.h5", settings)
    for a, b in zip(begun, ended, strict=True):
        assert np.abs(a - b).max() > 1e-6


def test_an_interrupted_run_ends_where_the_unbroken_one_ends(
    tiny_run: Path,
    tiny_settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut off at the second of four checkpoints, resumed in a fresh network: the same weights.

    Catches optimizer moments, the learning rate's place or the carried state left out of the
    checkpoint, batches that begin anew or are off by one, and one epoch too many or too few. With
    one thread not a bit differs; 2e-5 leaves room for another order of summation in more of them.
    The least of these faults moves weights by a tenth of the learning rate, 2e-4.
    """
    settings = settings_file.load(str(tiny_settings))
    run = Run(tmp_path / "cut")
    run.begin(str(tiny_settings), settings)
    saved: list[int] = []

    def save_and_stop(network: train.Unrolled, path: Path) -> None:
        genuine(network, path)
        saved.append(1)
        if len(saved) == 2:
            raise Interrupted

    genuine = train.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(train, "save_checkpoint", save_and_stop)
        with pytest.raises(Interrupted):
            train.train(settings, run)
    assert not run.final.exists()
    keras.utils.set_random_seed(99)
    train.train(settings, run)

    ended, expected = (weights(p, settings) for p in (run.final, tiny_run / "final.weights.h5"))
    assert largest_difference(ended, expected) < 2e-5
    cut, whole = (np.load(p / "checkpoint.npz") for p in (run.folder, tiny_run))
    assert cut.files == whole.files
    for name in cut.files:
        np.testing.assert_allclose(cut[name], whole[name], atol=5e-5)


def test_a_finished_run_stays_as_it_is(tiny_run: Path, tiny_settings: Path) -> None:
    """Catches training that goes on beyond its end when the command is given again."""
    settings = settings_file.load(str(tiny_settings))
    before = weights(tiny_run / "final.weights.h5", settings)
    train.train(settings, Run(tiny_run))
    assert largest_difference(before, weights(tiny_run / "final.weights.h5", settings)) == 0
    network = train.make_network(settings)
    assert train.load_checkpoint(network, tiny_run / "checkpoint.npz") == 8


def test_the_checkpoint_holds_the_carried_state(tiny_run: Path, tiny_settings: Path) -> None:
    """Catches a state that is saved as zeros, or as validation left it.

    With validation's windows of three fresh stacks the state of both places would be that of the
    third; the batches played so far give another.
    """
    settings = settings_file.load(str(tiny_settings))
    network = train.make_network(settings)
    train.load_checkpoint(network, tiny_run / "checkpoint.npz")
    h = keras.ops.convert_to_numpy(network.h)
    assert np.abs(h).max() > 1e-3
    kept = [h, keras.ops.convert_to_numpy(network.c)]
    validation = train.Validation(settings)
    images = validation.images(network)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(network.h), kept[0])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(network.c), kept[1])
    assert [image.shape for image in images] == [(64, 64)] * 3


def test_validation_is_blind_and_told_on_the_same_stacks(tiny_settings: Path) -> None:
    """Catches a network that is told the width where it is to be blind, or never is."""
    settings = settings_file.load(str(tiny_settings))
    validation = train.Validation(settings)
    assert [e.psf_sigma_px for e in validation.examples] == [0.0] * 3
    for told, blind in zip(validation.told, validation.examples, strict=True):
        assert 0.7 < told.psf_sigma_px < 3.6  # drawn from 0.8 to 3.2, and told with an error
        np.testing.assert_array_equal(told.frames, blind.frames)
    network = train.make_network(settings)
    rng = np.random.default_rng(1)  # eight updates from nothing would be rounded away
    for layer in (*network.step.modulations, network.step.correction):
        layer.kernel.assign(rng.normal(0, 0.3, layer.kernel.shape))
    images = [np.array(validation.images(network, told)) for told in (False, True)]
    assert np.abs(images[0] - images[1]).max() > 0.01


def test_validation_does_not_depend_on_what_was_played_before(
    tiny_run: Path, tiny_settings: Path
) -> None:
    """Catches windows that begin from the training's carried state or from one another's."""
    settings = settings_file.load(str(tiny_settings))
    network = train.make_network(settings)
    train.load_checkpoint(network, tiny_run / "checkpoint.npz")
    validation = train.Validation(settings)
    one = validation.images(network)
    network.h.assign(np.ones(network.h.shape))
    network.c.assign(-np.ones(network.c.shape))
    validation.examples.reverse()
    two = validation.images(network)[::-1]
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    tmp_path: Path, tiny_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches writing over the only checkpoint, which a full disk or a power cut would destroy."""
    network = train.make_network(settings_file.load(str(tiny_settings)))
    path = tmp_path / "checkpoint.npz"
    train.save_checkpoint(network, path)
    before = path.read_bytes()

    def half_written(file: BinaryIO, *_: object) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half_written)
    with pytest.raises(OSError, match="No space"):
        train.save_checkpoint(network, path)
    assert path.read_bytes() == before


def test_keras_takes_each_batch_once_and_in_order(tiny_settings: Path) -> None:
    """The stream counts for itself; Keras must not look ahead beyond an epoch nor begin anew.

    Catches a Keras that peeks at more or fewer batches than `TrainingStream` says, or that makes
    its iterator twice an epoch: 2 for the shapes, then 2 epochs of 3.
    """
    settings = settings_file.load(str(tiny_settings))
    asked: list[int] = []

    class Counting(TrainingStream):
        def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
            asked.append(index)
            return super().__getitem__(index)

    data = Counting(settings.forward_model, settings.dataset, 1, epoch_length=3)
    train.make_network(settings).fit(data, epochs=2, shuffle=False, verbose=0)
    assert asked == [0, 1, *range(3), *range(3)]


def test_other_settings_in_the_same_folder_are_refused(tiny_run: Path) -> None:
    """Catches a checkpoint that goes on under settings it was not made with."""
    before = (tiny_run / "settings.json").read_text()
    with pytest.raises(UserError, match="other settings.*--run"):
        Run(tiny_run).begin("smoke", settings_file.load("smoke"))
    assert (tiny_run / "settings.json").read_text() == before


def test_a_run_of_before_goes_on_where_a_setting_is_new(tiny_run: Path, tmp_path: Path) -> None:
    """Catches a comparison of texts: a setting that is new, at its default, changes nothing."""
    content = json.loads((tiny_run / "settings.json").read_text())
    del content["precision"]
    (tmp_path / "settings.json").write_text(json.dumps(content))
    Run(tmp_path).begin("tiny", TrainingSettings.model_validate(content))
    assert json.loads((tmp_path / "settings.json").read_text())["precision"] == "float32"


@pytest.mark.parametrize("architecture", ["step", "original"])
def test_mixed_precision_is_for_the_layers_alone(architecture: str) -> None:
    """Catches weights in 16 bits, a last layer in 16 or others in 32, and a policy that lingers.

    bfloat16 has 8 bits of mantissa: images differ, by less than what a few roundings make.
    """
    chunk = 30 if architecture == "original" else 3
    small = DatasetSettings(
        batch=2, size_px=16, chunk=chunk, read_at=(chunk - 1,), stream_fraction=0, workers=0
    )
    settings = TrainingSettings(architecture=architecture, dataset=small)
    mixed = train.make_network(settings.model_copy(update={"precision": "mixed_bfloat16"}))
    plain = train.make_network(settings)
    assert keras.config.dtype_policy().name == "float32"
    computed = {layer.name: layer.compute_dtype for layer in mixed.step.layers}
    last = "correction" if architecture == "step" else mixed.step.layers[-1].name
    assert computed.pop(last) == "float32"
    assert set(computed.values()) == {"bfloat16"}
    assert {str(v.dtype) for v in mixed.step.weights} == {"float32"}
    if architecture == "step":
        for network in (mixed, plain):  # it begins with none, and the image is the mean then
            kernel = network.step.correction.kernel
            kernel.assign(np.full(kernel.shape, 0.01))
    inputs, _ = TrainingStream(settings.forward_model, small, 1, epoch_length=1)[0]
    coarse, fine = (network.predict_on_batch(inputs) for network in (mixed, plain))
    assert coarse.dtype == np.float32
    difference = np.abs(coarse - fine).max() / fine.std()
    assert 1e-5 < difference < 0.1


def test_a_run_in_mixed_precision_learns(tmp_path: Path, tiny_settings: Path) -> None:
    """Catches a gradient that 16 bits lose."""
    text = 'precision = "mixed_bfloat16"\n' + tiny_settings.read_text()
    (tmp_path / "mixed.toml").write_text(text)
    settings = settings_file.load(str(tmp_path / "mixed.toml"))
    network = train.make_network(settings)
    assert network.step.head_mean.compute_dtype == "bfloat16"
    before = [np.asarray(v) for v in network.step.trainable_variables]
    data = TrainingStream(settings.forward_model, settings.dataset, settings.seed, 3)
    network.fit(data, epochs=1, shuffle=False, verbose=0)
    for variable, old in zip(network.step.trainable_variables, before, strict=True):
        changed = np.abs(np.asarray(variable) - old).max()
        assert np.isfinite(changed)
        assert changed > 0 or "modulation" in variable.path  # of widths that no stack has


@pytest.mark.parametrize("name", sorted(p.stem for p in settings_file.FOLDER.glob("*.toml")))
def test_shipped_settings_are_whole(name: str) -> None:
    """Catches a settings file that no longer fits its classes."""
    settings = settings_file.load(name)
    assert settings.updates % settings.epoch_updates == 0
    assert settings.dataset.read_at[-1] == settings.dataset.chunk - 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("updates = 0", "updates"),
        ("updates = 10\nepoch_updates = 4", "epoch_updates"),
        ("[network]\nfilters = -1", "network: filters"),
        ("[network]\npsf_knots_px = [1.0, 1.0]", "psf_knots_px must ascend"),
        ("[dataset]\nchunk = 7", "dataset.*chunk"),
        ("[forward_model]\nphotons = [9, 1]", "forward_model.*photons"),
        ("learning_rat = 1", "learning_rat"),
        ('architecture = "original"', "trained on windows: chunk must be 30"),
        (ORIGINAL + "[network]\nfilters = 8", "leave .network. out"),
        ("updates =", "not TOML"),
        ("# \udcff", "not TOML"),
    ],
)
def test_a_bad_settings_file_is_refused_with_a_sentence(
    text: str, words: str, tmp_path: Path
) -> None:
    """Catches a setting that is ignored, and an error that does not say where it is."""
    path = tmp_path / "bad.toml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=words) as error:
        settings_file.load(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_settings_file_is_refused_with_the_known_names(tmp_path: Path) -> None:
    """Catches a default that is taken silently."""
    with pytest.raises(UserError, match=KNOWN):
        settings_file.load(str(tmp_path / "none.toml"))


def test_a_run_can_begin_with_anothers_weights(
    tiny_settings: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """Mutations: weights not loaded (the start is then random), or the record left out."""
    settings = settings_file.load(str(tiny_settings))
    run = Run(tmp_path / "second")
    run.begin("tiny", settings)
    network = train.make_network(settings)
    train.initialize(network, run, tiny_run)
    other = load_step(tiny_run)[0]
    for mine, given in zip(network.step.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(given))
    initial = json.loads(run.about.read_text())["initial"]
    assert initial["seed"] == settings.seed
    assert len(initial["weights_sha256"]) == 64


def test_a_run_can_begin_with_a_released_model(
    tiny_settings: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """Named by its manifest. Mutation: the record of how that model was trained is lost."""
    settings = settings_file.load(str(tiny_settings))
    origin = {"command": "python -m training train", "seed": 7}
    manifest = tmp_path / "learn2sofi-9.9.9.json"
    manifest.write_text(json.dumps({"training": origin}))
    weights = manifest.with_name("learn2sofi-9.9.9.weights.h5")
    weights.write_bytes((tiny_run / "best.weights.h5").read_bytes())
    beside = manifest.with_name("learn2sofi-9.9.9.settings.json")
    beside.write_bytes((tiny_run / "settings.json").read_bytes())
    run = Run(tmp_path / "second")
    run.begin("tiny", settings)
    network = train.make_network(settings)
    train.initialize(network, run, manifest)
    for mine, given in zip(network.step.weights, load_step(tiny_run)[0].weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(given))
    initial = json.loads(run.about.read_text())["initial"]
    assert {name: initial[name] for name in origin} == origin


def test_weights_of_another_network_are_refused(
    tiny_settings: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """Mutation: the error of the file's library instead of a sentence."""
    settings = settings_file.load(str(tiny_settings))
    larger = settings.model_copy(update={"network": NetworkSettings(filters=8, products=4)})
    run = Run(tmp_path / "second")
    run.begin("tiny", larger)
    network = train.make_network(larger)
    for place in (tiny_run, tmp_path, tmp_path / "missing.json"):
        with pytest.raises(UserError, match="holds no weights of this network"):
            train.initialize(network, run, place)
