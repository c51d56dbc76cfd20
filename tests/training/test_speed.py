"""What is timed is the original's network; the ratio is what was timed. Not its size."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from training import speed
from training.original import original


def test_the_file_computes_what_the_network_does() -> None:
    """Catches a file that leaves frames out, and is fast for it; 1e-5 is float32's rounding."""
    model = original(16, 16, frames=3, batch=1, unroll=True)
    call = speed.window_call(speed.converted(model))
    stack = np.random.default_rng(0).random((1, 3, 16, 16, 1), np.float32)
    expected = np.array(model(stack))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(call(), expected, atol=1e-5)


def spin(seconds: float) -> None:
    """Take CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_times_are_cpu_times_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches both times exchanged, sums for medians, and sleep (another's turn) counted."""
    monkeypatch.setattr(speed, "ROUNDS", 3)
    monkeypatch.setattr(speed, "STEPS", 2)
    window, step = speed.in_turns(lambda: spin(0.02), lambda: (spin(0.002), time.sleep(0.02)))
    assert window == pytest.approx(20.0, rel=0.3)
    assert step == pytest.approx(2.0, rel=0.5)


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a ratio upside down, a float32 step, and a section that does not fit its content."""
    import argparse

    def few_frames(height: int, width: int, frames: int, **options: Any) -> keras.Model:
        assert frames == 30
        return original(height, width, 15, **options)  # so many that tenths of the ratio are fine

    monkeypatch.setattr(speed, "ROUNDS", 2)
    monkeypatch.setattr(speed, "original", few_frames)
    monkeypatch.setattr(speed, "measure", lambda model, run=speed.measure: run(model, 16))
    assert speed.main(argparse.Namespace(model=None, out=tmp_path / "new")) == 0
    content = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert json.loads(capsys.readouterr().out) == content
    assert content["model"].endswith("int8") and content["threads"] == 1
    ratio = content["original_window_cpu_ms"] / content["step_cpu_ms"]
    assert content["original_over_step"] == pytest.approx(ratio, rel=0.05)  # rounding
    assert f"{content['original_over_step']:.0f} times" in speed.section(content)
