"""What usually goes wrong with a quantized recurrent step, done on purpose: each must be found.

The mutants are made of the shipped int8 file, or of the host's side of it. Two checks look at each:
the golden windows, as `learn2sofi check --accuracy` does on a device, and a *movie*: a stream over
two golden stacks one after the other, whose images on the way are compared with the float32 form's,
and their mean with the shipped file's. The good step, and what leaves it as it is, passes both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from device import golden
from device.model import MODELS_DIR, Normalization, Step, load_step, newest_model
from device.reconstructor import reconstruct_stream
from training.inspection import WatchedStep, activations, ends_of_outputs
from training.narrowing import operator_names
from training.network import LOWEST, USUAL

PATH = newest_model(MODELS_DIR)
CONTENT = PATH.read_bytes()
MOVIE_AT = (9, 19, 29, 39, 49, 59)
MOVIE_FIDELITY_DB = 30.0
"""int8 is some 40 dB like float32 and a movie of other frames below 25."""

MOVIE_BIAS = 0.003
"""Of an image's standard deviation: how far its mean may lie from the shipped file's. A host that
rounds moves it by 0.0003, half an int8 step cut off every frame and mean by 0.0046 and more, and a
step of the correction by 0.046."""

Order = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Mutant:
    """A step that is wrong, or the order in which a step is given the frames."""

    step: Step
    order: Order = np.arange


# --- checks ---------------------------------------------------------------------------------------


def found_by_golden_windows(mutant: Mutant) -> bool:
    """Whether the device's own check finds something wrong."""
    entry = mutant.step.manifest.golden
    assert entry is not None
    expected = entry.figures["int8"]
    windows = golden.load((MODELS_DIR / entry.file).read_bytes())
    findings = [
        golden._finding(
            mutant.step, window.name, measured(mutant, window, mode), expected[window.name][mode]
        )
        for window in windows
        for mode in ("window", "stream")
    ]
    return not all(finding.good for finding in findings)


def measured(mutant: Mutant, window: golden.GoldenWindow, mode: str) -> golden.Found:
    frames = window.frames[mutant.order(len(window.frames))]
    given = golden.GoldenWindow(window.name, frames, window.truth, window.float32)
    return golden.measure(mutant.step, given, mode)


def movie(step: Step, frames: np.ndarray) -> list[np.ndarray]:
    """Images of a stream at some of its frames."""
    images = [result.image for result in reconstruct_stream(step, frames)]
    return [images[at] for at in MOVIE_AT]


def found_by_the_movie(mutant: Mutant) -> bool:
    """Whether the stream over a specimen that is replaced is unlike the float32 form's, or lies
    beside the shipped file's."""
    windows = golden.load((MODELS_DIR / mutant.step.manifest.golden.file).read_bytes())
    frames = np.concatenate([windows[0].frames, windows[1].frames])  # (60, H, W)
    float32 = movie(load_step(PATH.with_name(PATH.name.replace("int8", "float32"))), frames)
    shipped = movie(load_step(PATH), frames)
    images = movie(mutant.step, frames[mutant.order(len(frames))])
    likeness = min(golden.fidelity_db(*pair) for pair in zip(images, float32, strict=True))
    bias = max(
        abs(np.mean(image - own)) / np.std(own) for image, own in zip(images, shipped, strict=True)
    )
    return not (likeness > MOVIE_FIDELITY_DB and bias < MOVIE_BIAS)


def found(mutant: Mutant) -> bool:
    return found_by_golden_windows(mutant) or found_by_the_movie(mutant)


# --- mutants --------------------------------------------------------------------------------------


class Handed(WatchedStep):
    """A host that does something to what goes into the step and what comes out."""

    def __init__(
        self,
        into: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict,
        out: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict,
    ) -> None:
        super().__init__(load_step(PATH))
        self._into, self._out = into, out

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        return self._out(super().run(self._into(inputs)))


def off_by_one(name: str) -> Step:
    """An output is taken off its int8 by a zero point that is one too small."""
    return moved(name, ends_of_outputs(CONTENT, "step")[name].step)


def moved(name: str, step: float) -> Step:
    """An output has so much more everywhere."""
    return Handed(out=lambda outputs: outputs | {name: outputs[name] + np.float32(step)})


def input_scale(name: str) -> float:
    (index,) = [i for i, each in activations(CONTENT, "step").items() if each == name]
    details = {each["index"]: each for each in Interpreter(str(PATH)).get_tensor_details()}
    return float(details[index]["quantization"][0])


def by_integers(to_integer: Callable[[np.ndarray], np.ndarray]) -> Step:
    """A host that brings frame and mean to whole int8 steps itself, in its own way."""
    scales = {name: input_scale(name) for name in ("frame", "mean")}

    def into(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = {n: (s * to_integer(inputs[n] / s)).astype(np.float32) for n, s in scales.items()}
        return inputs | own

    return Handed(into=into)


def edited(edit: Callable[[object], None]) -> Step:
    """The file with something changed in it."""
    parsed = schema.ModelT.InitFromPackedBuf(CONTENT, 0)
    edit(parsed)
    builder = flatbuffers.Builder(len(CONTENT) + 65536)
    builder.Finish(parsed.Pack(builder), b"TFL3")
    whole = load_step(PATH)
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
    return Step(whole.manifest, interpreter, whole.name, whole.sha256, psf_width=whole.psf_width)


def cut_weights(parsed: object) -> None:
    """Cut instead of rounded, a weight is a step nearer to zero in every second case."""
    rng = np.random.default_rng(3)
    names, graph = operator_names(parsed), parsed.subgraphs[0]
    kernels = {
        graph.tensors[op.inputs[1]].buffer
        for op in graph.operators
        if names[op.opcodeIndex] in ("CONV_2D", "DEPTHWISE_CONV_2D")
    }
    for buffer in (parsed.buffers[index] for index in kernels):
        values = np.frombuffer(bytes(buffer.data), np.int8)
        cut = values - np.sign(values) * rng.integers(0, 2, values.shape)
        buffer.data = cut.astype(np.int8).view(np.uint8)


def swapped(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return inputs | {"h": inputs["c"], "c": inputs["h"]}


class Late(Handed):
    """Hands back the state of the step before the last: what a host does that mixes its buffers."""

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        outputs = super().run(inputs)
        state = self.manifest.state
        if any(inputs[name].any() for name in state):  # not a window's first step
            outputs |= {out: inputs[name] for name, out in state.items() if self._odd}
        self._odd = not self._odd
        return outputs

    _odd = False


class Forgetting(Handed):
    """Starts every step from zero."""

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        return super().run(
            inputs | {name: np.zeros_like(inputs[name]) for name in self.manifest.state}
        )


def by_the_extremes() -> Step:
    """Normalized by minimum and maximum, as the original was."""
    step = Handed()
    numbers = Normalization(background_percentile=0, scale_percentile=100, min_contrast_sem=3)
    step.manifest = step.manifest.model_copy(update={"normalization": numbers})
    return step


def shuffled(count: int) -> np.ndarray:
    return np.random.default_rng(1).permutation(count)


MUTANTS: dict[str, Callable[[], Mutant]] = {
    "wrong zero point of c": lambda: Mutant(off_by_one("c_out")),
    # The image is added up in float; its int8 part is the correction.
    "wrong zero point of the correction": lambda: Mutant(moved("image", (USUAL - LOWEST) / 255)),
    "truncation instead of rounding, frames": lambda: Mutant(by_integers(np.floor)),
    "truncation instead of rounding, weights": lambda: Mutant(edited(cut_weights)),
    "shuffled frames": lambda: Mutant(load_step(PATH), shuffled),
    "swapped h and c": lambda: Mutant(Handed(into=swapped)),
    "stale state": lambda: Mutant(Late()),
    "no state": lambda: Mutant(Forgetting()),
    "wrong normalization": lambda: Mutant(by_the_extremes()),
}

GOOD: dict[str, Callable[[], Mutant]] = {
    "as shipped": lambda: Mutant(load_step(PATH)),
    "through the host's hands": lambda: Mutant(Handed()),
    "rounded by the host": lambda: Mutant(by_integers(np.rint)),
    "written anew": lambda: Mutant(edited(lambda parsed: None)),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_good_passes(name: str) -> None:
    """Mutation: a check that finds fault with everything, by which every mutant would die."""
    good = GOOD[name]()
    assert not found_by_golden_windows(good)
    assert not found_by_the_movie(good)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_found(name: str) -> None:
    """Mutation: the one it is called after."""
    assert found(MUTANTS[name]())
