"""The benchmark's figures; not its speed."""

import json

import pytest

from device import benchmark as module
from device import cli


@pytest.fixture(autouse=True)
def few_calls(monkeypatch):
    monkeypatch.setattr(module, "ROUNDS", 2)
    monkeypatch.setattr(module, "CALLS", 1)


def test_figures_of_both_forms(tmp_path, capsys):
    """Mutation: one form timed twice, the ratio upside down, or the file not what was printed."""
    path = tmp_path / "benchmark.json"
    assert cli.main(["benchmark", "--size", "32", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert json.loads(capsys.readouterr().out) == figures
    assert set(figures["step_ms"]) == set(figures["frame_ms"]) == {"int8", "float32"}
    assert len(set(figures["models"].values())) == 2
    ratio = figures["step_ms"]["float32"] / figures["step_ms"]["int8"]
    assert figures["float32_over_int8"] == pytest.approx(ratio, rel=0.1)  # rounding of short times


@pytest.mark.parametrize(
    "wrong",
    [
        ["--size", "8"],
        ["--threads", "0"],
        ["--model", "none.tflite"],
        ["--size", "16", "--json", "no-such-folder/b.json"],
    ],
)
def test_wrong_input_is_one_sentence(wrong, capsys):
    """Mutation: an unchecked option, which would end in a traceback."""
    assert cli.main(["benchmark", *wrong]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
