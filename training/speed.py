"""How much faster one int8 step is than a window of the original's architecture.

Time does not depend on the weights, so that the original's are random here. It becomes a float32
TFLite file and runs in the same runtime as the step, on one thread, in turns with it. What is
compared is CPU time: on one thread it is the time on an idle machine, and it does not count what
others do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from device.benchmark import step_call
from device.model import MODELS_DIR, load_step, newest_model
from training.original import SIZE_PX, original
from training.reports import save_json

FRAMES = 30
ROUNDS = 15
STEPS = 20  # to one window of the original, which takes so much longer
ASKED = 180.0


def converted(model: keras.Model) -> bytes:
    """Convert a Keras model to TFLite, float32. Needs Keras on its TensorFlow backend."""
    import tensorflow as tf

    spec = tf.TensorSpec(model.inputs[0].shape, tf.float32)
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", model.call, input_signature=[spec])
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serve"])
        return bytes(converter.convert())


def window_call(content: bytes) -> Callable[[], np.ndarray]:
    """Run a TFLite file of one input and one output on random numbers, one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    into, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    stack = np.random.default_rng(0).random(into["shape"], np.float32)

    def call() -> np.ndarray:
        interpreter.set_tensor(into["index"], stack)
        interpreter.invoke()
        return interpreter.get_tensor(out["index"])

    return call


def in_turns(window: Callable[[], object], step: Callable[[], object]) -> tuple[float, float]:
    """Call a window once and a step `STEPS` times, again and again; medians in ms of CPU time."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (window, step):
        call()  # the first allocates
    for _ in range(ROUNDS):
        times[0].append(_cpu_ms(window))
        times[1].extend(_cpu_ms(step) for _ in range(STEPS))
    return statistics.median(times[0]), statistics.median(times[1])


def _cpu_ms(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def measure(model: Path | None = None, size_px: int = SIZE_PX) -> dict[str, Any]:
    """Time both; the default model is the newest int8 one."""
    step = load_step(model or newest_model(MODELS_DIR), threads=1)
    window = window_call(converted(original(size_px, size_px, FRAMES, batch=1, unroll=True)))
    original_ms, step_ms = in_turns(window, step_call(step, (size_px, size_px)))
    return {
        "model": step.name,
        "runtime": step.runtime,
        "size_px": size_px,
        "threads": 1,
        "original_window_cpu_ms": round(original_ms, 3),
        "step_cpu_ms": round(step_ms, 4),
        "original_over_step": round(original_ms / step_ms, 1),
    }


SECTION = """
### Speed

One step of `{model}` at {size_px} x {size_px} px takes {step_cpu_ms:.2f} ms, the window of the
original's architecture {original_window_cpu_ms:.0f} ms: **{original_over_step:.0f} times** as long
({asked:.0f} was asked for). CPU time, medians, one thread, same runtime and run; the machine that
wrote this card (`python -m training speed`).
"""


def section(content: dict[str, Any]) -> str:
    """Write the model card's section, Markdown."""
    return SECTION.format(asked=ASKED, **content)


def report(content: dict[str, Any], folder: Path) -> None:
    """Write ``speed.json`` into a folder."""
    save_json(folder / "speed.json", content)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training speed``."""
    parser.add_argument("--model", type=Path, metavar="FILE", help="default: the newest int8 step")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder to write")


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training speed``."""
    args.out.mkdir(parents=True, exist_ok=True)
    content = measure(args.model)
    report(content, args.out)
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
    return 0
