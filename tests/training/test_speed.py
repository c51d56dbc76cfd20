"""The original's architecture is the original's; the ratio is what was timed. Not its size."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from training import speed


def test_it_has_the_originals_parameters() -> None:
    """Catches another number of filters, another kernel, a missing layer or bias."""
    model = speed.original(frames=2, size_px=16)
    assert model.count_params() == 12_321
    assert model.output_shape == (1, 32, 32, 1)


def test_hard_sigmoid_is_the_one_the_original_was_trained_with() -> None:
    """Catches Keras 3's own, of slope 1/6."""
    x = np.array([-3.0, -1.0, 0.0, 1.0, 3.0], np.float32)
    np.testing.assert_allclose(speed.hard_sigmoid(x), [0.0, 0.3, 0.5, 0.7, 1.0], atol=1e-6)


def test_the_file_computes_what_the_network_does() -> None:
    """Catches a file that leaves frames out, and is fast for it; 1e-5 is float32's rounding."""
    model = speed.original(frames=3, size_px=16)
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

    small = speed.original
    monkeypatch.setattr(speed, "ROUNDS", 2)
    monkeypatch.setattr(speed, "original", lambda size_px: small(frames=2, size_px=size_px))
    monkeypatch.setattr(speed, "SIZE_PX", 16)
    monkeypatch.setattr(speed, "measure", lambda model, run=speed.measure: run(model, 16))
    assert speed.main(argparse.Namespace(model=None, out=tmp_path / "new")) == 0
    content = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert json.loads(capsys.readouterr().out) == content
    assert content["model"].endswith("int8") and content["threads"] == 1
    ratio = content["original_window_cpu_ms"] / content["step_cpu_ms"]
    assert content["original_over_step"] == pytest.approx(ratio, rel=0.05)  # rounding
    assert f"{content['original_over_step']:.0f} times" in speed.section(content)
