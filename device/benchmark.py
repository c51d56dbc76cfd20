"""``learn2sofi benchmark``: how long the model's forms take here.

Forms are timed in turns, a few calls each, so that whatever else the machine does meets them alike;
what travels from machine to machine is the ratio of the medians, not the milliseconds.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from device.camera import Frame
from device.expected_error import ErrorEstimator
from device.model import MODELS_DIR, ModelError, Step, load_step, newest_model
from device.reconstructor import (
    LOOKED_AT_EVERY,
    RENEWED_AFTER,
    Reconstructor,
    constant_inputs,
    padded_size,
)
from device.ring_buffer import RingBuffer

ROUNDS = 50
CALLS = LOOKED_AT_EVERY  # of which one is a frame with the second step that every fourth has
_FORMS = ("int8", "float32")


def benchmark(
    model: Path | None = None, size: tuple[int, int] = (128, 128), threads: int = 1
) -> dict[str, object]:
    """Time one step of each form, and a frame's whole way in stream mode.

    Parameters
    ----------
    model : Path, optional
        A form of the model; default is the newest. The other forms lie beside it.
    size : (int, int)
        Height and width of the frame in px.
    threads : int
        Of the runtime.

    Returns
    -------
    dict
        ``machine``, ``size_px``, ``threads``; ``step_ms``, ``carried_ms`` and ``frame_ms``, medians
        by form, of a step, of one without an image, and of what a frame of a long stream takes:
        the watch for another scene, statistics, normalization, the step, the younger state's, a
        fourth of one to see what repeats, and the filter; ``error_ms``, the same of saying how far
        an image may be off, where the model does; ``float32_over_int8``, the ratio of the steps'
        medians.

    Raises
    ------
    ModelError
        There is no such model.
    """
    steps = _forms(model or newest_model(MODELS_DIR), threads)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for form, step in steps.items():
        calls["frame_ms", form] = _frame_call(step, size)
        calls["step_ms", form] = step_call(step, size)
        calls["carried_ms", form] = step_call(step, size, image=False)
        if step.expected_error is not None:
            calls["error_ms", form] = _error_call(step, step.expected_error, size)
    medians = _in_turns(calls)
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "size_px": list(size),
        "threads": threads,
        "models": {form: step.name for form, step in steps.items()},
    }
    for what, form in calls:
        result.setdefault(what, {})[form] = round(medians[what, form], 4)
    if len(steps) == len(_FORMS):
        ratio = medians["step_ms", "float32"] / medians["step_ms", "int8"]
        result["float32_over_int8"] = round(ratio, 2)
    return result


def _forms(path: Path, threads: int) -> dict[str, Step]:
    stem, _, given = path.stem.rpartition("-")
    beside = {form: path.with_name(f"{stem}-{form}.tflite") for form in _FORMS}
    found = {form: load_step(p, threads) for form, p in beside.items() if p.exists()}
    if not found:
        raise ModelError(f"{path} ({given}) is not there: name a .tflite file of a model pair")
    return found


def step_call(step: Step, size: tuple[int, int], image: bool = True) -> Callable[[], object]:
    """Make one step on the same inputs, at the size that frames of `size` are padded to."""
    rng = np.random.default_rng(0)
    padded = padded_size(step, size)
    step.resize(*padded)
    inputs = step.zero_state() | constant_inputs(step)
    for name in step.manifest.inputs.keys() - inputs.keys():  # frame, mean, previous
        inputs[name] = rng.random((1, *padded, 1), np.float32)
    return lambda: step.run(inputs, image)


def _error_call(
    step: Step, estimator: ErrorEstimator, size: tuple[int, int]
) -> Callable[[], object]:
    """Say the error of an image of noise, which takes as long as any."""
    rng, upsampling = np.random.default_rng(0), step.manifest.upsampling
    mean, std = rng.random((2, *size), np.float32)
    image = rng.random((upsampling * size[0], upsampling * size[1]), np.float32)
    return lambda: estimator.estimate(image, mean, std, None)


def _frame_call(step: Step, size: tuple[int, int]) -> Callable[[], object]:
    """A frame's way from the buffer to the image, in a stream as old as it costs most."""
    rng = np.random.default_rng(0)
    arrays = rng.poisson(50, (8, *size)).astype(np.uint16)
    arrays[:, size[0] // 4 : size[0] // 2] += 200
    buffer = RingBuffer(step.manifest.frames, size, arrays.dtype)
    reconstructor = Reconstructor(step, "stream")
    count = 0

    def push() -> object:
        nonlocal count
        frame = Frame(arrays[count % len(arrays)], count * 10_000_000, count)
        count += 1
        if change := reconstructor.scene_changed(frame.array):
            buffer.keep_last(change.shown)
        buffer.push(frame)
        return reconstructor.push(frame, buffer)

    for _ in range(RENEWED_AFTER):
        push()
    return push


def _in_turns(calls: dict[tuple[str, str], Callable[[], object]]) -> dict[tuple[str, str], float]:
    """Call everything in turns; medians over the rounds in ms."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()  # the first allocates
    for _ in range(ROUNDS):
        for key, call in calls.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[key].append(1e3 * (time.perf_counter() - start) / CALLS)
    return {key: statistics.median(values) for key, values in times.items()}
