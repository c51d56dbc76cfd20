"""Training on JAX, where several devices share a batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from device.errors import UserError
from training import train
from training.quantize import load_step

ON_CPU = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}


def train_on(devices: int, settings: Path, initial: Path, run: Path) -> str:
    """Train on so many devices in a process of its own; returns what it said."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    words = ["--settings", str(settings), "--initial", str(initial), "--run", str(run)]
    done = subprocess.run(
        [sys.executable, "-m", "training", "train", *words],
        env=os.environ | ON_CPU | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def change(run: Path, initial: Path) -> np.ndarray:
    """What a run made of its first weights, all in a row."""
    steps = [load_step(folder, which)[0] for folder, which in ((run, "final"), (initial, "best"))]
    after, before = (np.concatenate([np.ravel(v) for v in step.weights]) for step in steps)
    return after - before


def test_two_devices_end_where_one_ends(
    tiny_settings: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """On JAX, from the same weights on the same batches.

    Mutations: a device that sees the other's part of the batch, gradients that are not averaged,
    state that is not carried from chunk to chunk. Adam divides by what a gradient usually is, so
    that rounding shows where it is next to nothing.
    """
    said = train_on(2, tiny_settings, tiny_run, tmp_path / "two")
    assert "each of 2 devices takes 1 of 2" in said
    assert "devices" not in train_on(1, tiny_settings, tiny_run, tmp_path / "one")
    one, two = (change(tmp_path / name, tiny_run) for name in ("one", "two"))
    assert np.linalg.norm(one) > 0.01
    assert np.linalg.norm(one - two) < 0.02 * np.linalg.norm(one)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a part of the batch that no device sees."""
    monkeypatch.setattr(train.keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(train.keras.distribution, "list_devices", lambda: ["gpu:0", "gpu:1"])
    with pytest.raises(UserError, match="batch of 3 cannot be shared by 2 devices"):
        train.share_devices(3)
