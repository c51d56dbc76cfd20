"""Training, as a person would run it.

A run lives in a folder: the settings as given and as resolved, the git revision, the command, the
TensorBoard log, the last checkpoint and the best weights. A run that was interrupted goes on from
its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from device.errors import UserError
from device.files import whole_or_nothing, write_text
from training import baselines
from training import settings as settings_file
from training.dataset import TrainingStream, validation_set
from training.example import Example
from training.loss import loss_with
from training.metrics import psnr_db
from training.network import Step, Unrolled, build_step, take_over
from training.revision import git_revision
from training.settings import TrainingSettings
from training.tensorboard import TensorBoardLog
from training.windows import BUILDERS, Windows

log = logging.getLogger(__name__)

Network = Unrolled | Windows


class Run:
    """A run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "settings.json"
        self.about = folder / "run.json"
        self.checkpoint = folder / "checkpoint.npz"
        self.best = folder / "best.weights.h5"
        self.of_best = folder / "best.json"
        self.final = folder / "final.weights.h5"
        self.log = folder / "tensorboard"

    def begin(self, given: str, settings: TrainingSettings) -> None:
        """Write down what is run; refuse a folder that holds another run.

        Raises
        ------
        UserError
            The folder was begun with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        resolved = settings.model_dump_json(indent=2)
        if self.settings.exists() and self._begun_with() != settings:
            raise UserError(
                f"{self.folder} holds a run with other settings: name another folder with --run."
            )
        write_text(self.settings, resolved)
        command = "python -m training " + shlex.join(sys.argv[1:])
        about = {"command": command, "settings_given": given, "seed": settings.seed}
        about |= {"git_revision": git_revision(), "backend": keras.backend.backend()}
        if not self.about.exists():
            write_text(self.about, json.dumps(about, indent=2))

    def refuse_if_begun(self) -> None:
        """Refuse a folder with a run in it, for what does not go on where it stopped.

        Raises
        ------
        UserError
            A run was begun there.
        """
        if self.about.exists():
            raise UserError(f"{self.folder} holds a run: name another folder with --run.")

    def note_initial(self, weights: Path, made_by: dict[str, Any]) -> None:
        """Write down which weights the run begins with, and what they were made by."""
        about = json.loads(self.about.read_text())
        checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
        about["initial"] = made_by | {"weights_sha256": checksum}
        write_text(self.about, json.dumps(about, indent=2))

    def _begun_with(self) -> TrainingSettings | None:
        """Settings of the run in this folder; None where they cannot be read."""
        try:
            return settings_file.of_run(self.folder)
        except ValueError:
            return None


def save_checkpoint(network: Network, path: Path) -> None:
    """Write all variables of network and optimizer, carried state included, atomically."""
    values = [keras.ops.convert_to_numpy(v) for v in _variables(network)]
    with whole_or_nothing(path) as beside, beside.open("wb") as file:
        np.savez(file, *values)


def load_checkpoint(network: Network, path: Path) -> int:
    """Restore what `save_checkpoint` wrote; returns the number of updates made so far."""
    with np.load(path) as values:
        for variable, name in zip(_variables(network), values.files, strict=True):
            variable.assign(values[name])
    return int(keras.ops.convert_to_numpy(network.optimizer.iterations))


def _variables(network: Network) -> list[Any]:
    return [*network.variables, *network.optimizer.variables]


def make_network(settings: TrainingSettings) -> Network:
    """Build and compile the network to be trained, weights drawn from the run's seed."""
    keras.utils.set_random_seed(settings.seed)
    with computing_in(settings.precision):
        network = _built(settings)
    compile_to_learn(network, settings)
    network(_shapes(settings))
    network.optimizer.build(network.trainable_variables)
    return network


def compile_to_learn(network: keras.Model, settings: TrainingSettings, **averaging: Any) -> None:
    """Compile with the settings' loss, and Adam at their rate, rising first and then falling.

    Parameters
    ----------
    network : Model
        With truth and output as the loss takes them.
    settings : TrainingSettings
        Of the run.
    **averaging
        What the optimizer is told of an average of the weights; without, it makes none.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        settings.learning_rate / 100,
        max(1, settings.updates - settings.warmup_updates),
        alpha=0.01,
        warmup_target=settings.learning_rate,
        warmup_steps=settings.warmup_updates,
    )
    optimizer = keras.optimizers.Adam(schedule, global_clipnorm=settings.clip_norm, **averaging)
    # XLA runs convolutions on a CPU slower than TensorFlow's own kernels; JAX knows nothing else.
    compiled = keras.backend.backend() == "jax"
    loss = loss_with(settings.coarse_weight)
    network.compile(optimizer=optimizer, loss=loss, jit_compile=compiled)


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Let layers that are made within compute in this precision (a Keras dtype policy)."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _built(settings: TrainingSettings) -> Network:
    data, shape = settings.dataset, (settings.dataset.size_px,) * 2
    if settings.architecture != "step":
        build = BUILDERS[settings.architecture]
        return Windows(build(*shape, frames=data.chunk, batch=data.batch))
    return Unrolled(build_step(settings.network, *shape), data.batch, shape, data.read_at)


def _shapes(settings: TrainingSettings) -> dict[str, keras.KerasTensor]:
    """Tell the network its inputs without any values: on a GPU, nothing is compiled for them."""
    data = settings.dataset
    frames = (data.batch, data.chunk, data.size_px, data.size_px)
    read = (data.batch, len(data.read_at))
    shapes = {"frames": frames, "means": frames, "psf_sigma_px": (data.batch, 1)}
    shapes |= {"fresh": (data.batch,), "gain": read}
    return {name: keras.KerasTensor(shape, "float32") for name, shape in shapes.items()}


class Validation:
    """Windows of other specimens, reconstructed as the device would."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.data = settings.dataset
        self.told = validation_set(settings.forward_model, self.data, settings.seed)
        self.examples = [replace(e, psf_sigma_px=0.0) for e in self.told]  # blind
        self.mean_db = self.score_db([baselines.mean(e.means) for e in self.examples])

    def images(self, network: Network, told: bool = False) -> list[np.ndarray]:
        """Reconstruct every window, each (2H, 2W); the carried state is put back afterwards.

        Blind, or with the PSF's width told.
        """
        examples = self.told if told else self.examples
        kept = [keras.ops.convert_to_numpy(v) for v in network.carried]
        size, images = self.data.batch, []
        for start in range(0, len(examples), size):
            group = examples[start : start + size]
            images += list(self._window(network, group))[: len(group)]
        for variable, value in zip(network.carried, kept, strict=True):
            variable.assign(value)
        return images

    def score_db(self, images: list[np.ndarray]) -> float:
        """Mean PSNR of such images, (2H, 2W) each."""
        pairs = zip(self.examples, images, strict=True)
        return float(np.mean([psnr_db(image, example.truth) for example, image in pairs]))

    def _window(self, network: Network, group: list[Example]) -> np.ndarray:
        filled = group + [group[-1]] * (self.data.batch - len(group))
        for k in range(self.data.window // self.data.chunk):
            chunks = [e.chunk(k, self.data.chunk, self.data.read_at)[0] for e in filled]
            inputs = {key: np.stack([chunk[key] for chunk in chunks]) for key in chunks[0]}
            images = network.predict_on_batch(inputs)  # (B, n, 2H, 2W)
        return np.asarray(images)[:, -1]


class Report(keras.callbacks.Callback):
    """After every epoch: validate, log, keep the best weights and, where asked, the checkpoint."""

    def __init__(self, run: Run, validation: Validation, checkpoints: bool = True) -> None:
        super().__init__()
        self.run, self.validation, self.checkpoints = run, validation, checkpoints
        self.board = TensorBoardLog(run.log)
        self.best_db = self._best_so_far()

    def _best_so_far(self) -> float:
        path = self.run.of_best
        return json.loads(path.read_text())["validation_db"] if path.exists() else -np.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Validate and save."""
        updates = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        images = self.validation.images(self.model)
        db = self.validation.score_db(images)
        told_db = self.validation.score_db(self.validation.images(self.model, told=True))
        log.info(
            "%d updates: loss %.3f, validation %.2f dB, PSF told %.2f dB (bicubic mean %.2f dB)",
            updates, (logs or {})["loss"], db, told_db, self.validation.mean_db,
        )  # fmt: skip
        scores = {"psnr_db": db, "told_psnr_db": told_db, "mean_db": self.validation.mean_db}
        self.board.scalars(updates, {"loss": (logs or {})["loss"]} | scores)
        self._pictures(updates, images)
        best = {"updates": updates, "validation_db": db, "validation_told_db": told_db}
        self._keep(best | {"mean_db": self.validation.mean_db})

    def _pictures(self, updates: int, images: list[np.ndarray]) -> None:
        for k, (example, image) in enumerate(
            zip(self.validation.examples[:6], images, strict=False)
        ):
            gain = example.scales[-1] / example.unit
            row = [baselines.mean(example.means) * gain, image, example.truth]
            self.board.picture(updates, f"{k}: mean, reconstruction, truth", np.hstack(row))

    def _keep(self, found: dict[str, float]) -> None:
        if found["validation_db"] > self.best_db:
            self.best_db = found["validation_db"]
            beside = self.run.best.with_name("best.tmp.weights.h5")
            self.model.step.save_weights(beside)
            beside.replace(self.run.best)
            write_text(self.run.of_best, json.dumps(found))
        if self.checkpoints:
            save_checkpoint(self.model, self.run.checkpoint)


def train(settings: TrainingSettings, run: Run, initial: Path | None = None) -> None:
    """Train to the end of the settings' updates, from the last checkpoint where there is one."""
    network = make_network(settings)
    if initial is not None:
        initialize(network, run, initial)
    done = load_checkpoint(network, run.checkpoint) if run.checkpoint.exists() else 0
    data = TrainingStream(
        settings.forward_model, settings.dataset, settings.seed, settings.epoch_updates, done
    )
    report = Report(run, Validation(settings))
    try:
        network.fit(
            data,
            initial_epoch=done // settings.epoch_updates,
            epochs=settings.updates // settings.epoch_updates,
            shuffle=False,
            verbose=1 if sys.stderr.isatty() else 0,
            callbacks=[report],
        )
    finally:
        data.close()
        report.board.close()
    network.step.save_weights(run.final)


def initialize(network: Network, run: Run, initial: Path) -> None:
    """Begin with the best weights of another run, or of a release, and write down which.

    Raises
    ------
    UserError
        There are no weights of this network, or it is not our step.
    """
    if not isinstance(network, Unrolled):
        raise UserError(
            f"The architecture {settings_file.of_run(run.folder).architecture} begins with random "
            "weights: leave --initial out."
        )
    found = load_network(initial)
    try:
        take_over(network.step, found.step)
    except ValueError as error:
        raise _no_weights(initial) from error
    run.note_initial(found.weights, found.made_by)


class Trained(NamedTuple):
    """A network that was trained, and where it comes from."""

    step: Step
    settings: TrainingSettings
    weights: Path
    made_by: dict[str, Any]


def load_network(initial: Path) -> Trained:
    """Load the network of a run's folder (its best weights), or of a released model's manifest.

    Raises
    ------
    UserError
        There is none, or not of ours.
    """
    try:
        weights, made_by, settings = _weights_and_origin(initial)
        step = build_step(settings.network)
        step.load_weights(weights)
    except (OSError, ValueError, KeyError) as error:
        raise _no_weights(initial) from error
    return Trained(step, settings, weights, made_by)


def _no_weights(initial: Path) -> UserError:
    return UserError(
        f"{initial} holds no weights of this network: name a run's folder, or the manifest of "
        "a released model."
    )


def _weights_and_origin(initial: Path) -> tuple[Path, dict[str, Any], TrainingSettings]:
    """Find weights, origin and settings of a run, or of a released model beside its manifest."""
    if initial.suffix == ".json":
        settings = settings_file.of_file(initial.with_suffix(".settings.json"))
        about = json.loads(initial.read_text())["training"]
        return initial.with_suffix(".weights.h5"), about, settings
    run = Run(initial)
    about = json.loads(run.about.read_text()) | json.loads(run.of_best.read_text())
    return run.best, about, settings_file.of_run(initial)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training train``."""
    parser.add_argument("--settings", default="base", help="name or TOML file (default: base)")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/SETTINGS)")
    parser.add_argument(
        "--initial", type=Path, metavar="RUN",
        help="begin with the weights of this run, or of a released model (its manifest, .json)",
    )  # fmt: skip


def keep_memory() -> None:
    """Let glibc keep what it was given, instead of returning it after every operation.

    On a CPU the large short-lived tensors of back-propagation are otherwise mapped and unmapped
    thousands of times a second, which halves the speed.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of mallopt(3)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def share_devices(batch: int) -> None:
    """Give each of several devices a part of every batch; Keras distributes on JAX alone.

    Raises
    ------
    UserError
        The batch cannot be shared evenly.
    """
    devices = keras.distribution.list_devices() if keras.backend.backend() == "jax" else []
    if len(devices) < 2:
        return
    if batch % len(devices):
        raise UserError(
            f"The batch of {batch} cannot be shared by {len(devices)} devices: set batch to a "
            "multiple, or hide some (CUDA_VISIBLE_DEVICES)."
        )
    shared = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    keras.distribution.set_distribution(shared)
    log.info("each of %d devices takes %d of %d", len(devices), batch // len(devices), batch)


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training train``."""
    keep_memory()
    settings = settings_file.load(arguments.settings)
    share_devices(settings.dataset.batch)
    run = Run(arguments.run or Path("runs") / Path(arguments.settings).stem)
    run.begin(arguments.settings, settings)
    train(settings, run, arguments.initial)
    return 0
