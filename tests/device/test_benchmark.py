"""The benchmark's figures; not its speed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from device import benchmark as module
from device import cli
from device.model import load_step
from device.reconstructor import LOOKED_AT_EVERY


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
    for what in ("step_ms", "carried_ms", "frame_ms", "error_ms"):
        assert set(figures[what]) == {"int8", "float32"}
    assert len(set(figures["models"].values())) == 2
    ratio = figures["step_ms"]["float32"] / figures["step_ms"]["int8"]
    assert figures["float32_over_int8"] == pytest.approx(ratio, rel=0.1)  # rounding of short times


def test_a_frame_has_all_steps_of_a_long_stream(monkeypatch):
    """Mutation: a young stream's, which has neither a younger state nor a look now and then."""
    step, made = load_step(), []
    run = step.run
    monkeypatch.setattr(step, "run", lambda *given, **named: made.append(0) or run(*given, **named))
    push = module._frame_call(step, (32, 32))
    for _ in range(LOOKED_AT_EVERY):  # until all are in step
        push()
    made.clear()
    for _ in range(4 * LOOKED_AT_EVERY):
        push()
    assert len(made) == 4 * (2 * LOOKED_AT_EVERY + 1)


def test_a_size_that_is_no_multiple_is_padded(capsys):
    """Mutation: the size is given to the step as it is, which refuses it."""
    assert cli.main(["benchmark", "--size", "17"]) == 0
    assert json.loads(capsys.readouterr().out)["size_px"] == [17, 17]


class AskingStep:
    """Declares every input that the device can fill; remembers what it was given."""

    manifest = SimpleNamespace(
        size_multiple=4,
        takes_psf=True,
        psf_sigma_px=(1.0, 2.0),
        state={"h": "h_out"},
        inputs={
            name: SimpleNamespace(shape=shape)
            for name, shape in {
                **dict.fromkeys(("frame", "mean", "previous"), (1, 32, 32, 1)),
                "psf_sigma_px": (1, 1),
                "h": (1, 2),
            }.items()
        },
    )

    def resize(self, height, width):
        self.size = height, width

    def zero_state(self):
        return {"h": np.zeros((1, 2), np.float32)}

    def run(self, inputs, image=True):
        self.shapes = {name: array.shape for name, array in inputs.items()}


def test_every_input_is_filled():
    """Mutation: only frame and mean, so that a model of another kind ends in a KeyError."""
    step = AskingStep()
    module.step_call(step, (17, 21))()
    image = (1, 20, 24, 1)
    assert step.size == (20, 24)
    assert step.shapes == {
        **dict.fromkeys(("frame", "mean", "previous"), image),
        "psf_sigma_px": (1, 1),
        "h": (1, 2),
    }


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
