"""One form after another: Keras -> unrolled -> float TFLite -> int8 TFLite, step by step.

Each rung is compared with the one above on the same series with carried state. A tiny network with
random weights is enough: what breaks a rung breaks it there too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from training import network, quantize
from training import settings as settings_file
from training.example import Example, make_example
from training.forward_model import ForwardModelSettings
from training.narrowing import narrowed
from training.network import (
    FRAME_RANGE,
    MEAN_RANGE,
    NetworkSettings,
    Step,
    Unrolled,
    as_int8,
    build_step,
)

SIZE = quantize.SIZE_PX
FRAMES = 30
NETWORK = NetworkSettings(head_filters=4, head_layers=1)
BASE = settings_file.load("base")
STACKS = BASE.forward_model.model_copy(update={"leaves_fraction": 0.0, "haze_probability": 0.4})
"""To calibrate on: the bounds below are for some that no change of the training's moves."""
SETTINGS = BASE.model_copy(update={"network": NETWORK, "forward_model": STACKS})
PSF = np.array([[1.5]], np.float32)
SPREAD = 0.12  # of the weights: larger ones make a state that is chaotic, rounded or not
Series = dict[str, np.ndarray]
"""Of each output of the step its value at every frame, (T, ...)."""


@pytest.fixture(scope="module")
def step() -> Step:
    """A step whose every weight is random but the fixed interpolation's.

    Small enough for a state within its range, large enough for a correction that matters.
    """
    step = build_step(SETTINGS.network, SIZE, SIZE)
    rng = np.random.default_rng(1)
    for variable in step.trainable_variables:
        if "upsampling" not in variable.path:
            variable.assign(rng.normal(0, SPREAD, variable.shape).astype(np.float32))
    return step


@pytest.fixture(scope="module")
def example() -> Example:
    """A stack that calibration does not see, in the steps and the range that int8 has for it."""
    example = make_example(ForwardModelSettings(), FRAMES, SIZE, False, (1, 7, 0))
    frames, means = (
        keras.ops.convert_to_numpy(as_int8(images, limits)).clip(*limits)
        for images, limits in ((example.frames, FRAME_RANGE), (example.means, MEAN_RANGE))
    )
    return Example(frames, means, example.scales, example.truth, example.unit)


def played(run: object, example: Example) -> Series:
    """Run a step over the stack with carried state, the PSF told."""
    assert callable(run)
    state = {name: np.zeros((1, *NETWORK.state_shape(SIZE, SIZE)), np.float32) for name in "hc"}
    outputs: list[Series] = []
    for frame, mean in zip(example.frames, example.means, strict=True):
        images = {"frame": frame[None, :, :, None], "mean": mean[None, :, :, None]}
        inputs = images | {"psf_sigma_px": PSF} | state
        result = {name: np.asarray(value) for name, value in run(inputs).items()}
        state = {"h": result["h_out"], "c": result["c_out"]}
        outputs.append(result)
    return {name: np.stack([o[name] for o in outputs]) for name in outputs[0]}


def tflite(content: bytes) -> object:
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner("step")
    return lambda inputs: runner(**inputs)


@pytest.fixture(scope="module")
def by_keras(step: Step, example: Example) -> Series:
    """The top rung."""
    return played(step, example)


@pytest.fixture(scope="module")
def by_float(step: Step, example: Example) -> Series:
    """The float32 file."""
    return played(tflite(quantize.convert(step)), example)


@pytest.fixture(scope="module")
def by_int8(step: Step, example: Example) -> Series:
    """The int8 file, calibrated on four stacks, with its ranges set as a release has them."""
    wide = quantize.convert(step, quantize.representative_set(step, SETTINGS, 4))
    content = narrowed(wide, SETTINGS.network)
    quantize.check_int8(content)
    return played(tflite(content), example)


def rms(values: np.ndarray) -> np.ndarray:
    """Root mean square at every frame, (T,)."""
    return np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=tuple(range(1, values.ndim))))


def test_the_series_is_worth_comparing(by_keras: Series) -> None:
    """Catches a series without life, on which every rung would hold: the state must move, and the
    image must be more than the interpolated mean, which is the same at every frame."""
    assert rms(by_keras["c_out"]).min() > 0.02
    assert rms(np.diff(by_keras["c_out"], axis=0)).min() > 1e-3
    assert rms(np.diff(by_keras["image"], axis=0)).min() > 1e-3


def test_unrolled_is_the_step(
    step: Step, example: Example, by_keras: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the rounding to int8's steps, which is training's alone.

    Catches another order of update and image in training than in use. float32: 1e-5.
    """
    monkeypatch.setattr(network, "straight_through", network.exact)
    monkeypatch.setattr(network, "as_int8", network.exact)
    chunk = 10
    unrolled = Unrolled(step, 1, (SIZE, SIZE), tuple(range(chunk)))
    images = []
    for k in range(FRAMES // chunk):
        inputs = {
            "frames": example.frames[None, k * chunk : (k + 1) * chunk],
            "means": example.means[None, k * chunk : (k + 1) * chunk],
            "psf_sigma_px": PSF,
            "fresh": np.array([k == 0], np.float32),
            "gain": np.ones((1, chunk), np.float32),
        }
        images += list(keras.ops.convert_to_numpy(unrolled(inputs))[0])
    np.testing.assert_allclose(images, by_keras["image"][:, 0, :, :, 0], atol=5e-5)


@pytest.mark.parametrize("name", ["image", "h_out", "c_out"])
def test_the_float_file_is_the_step(name: str, by_keras: Series, by_float: Series) -> None:
    """Catches swapped state tensors, weights in another order, and float16 weights (1e-3).

    Values are of order 1, and rounding in another order of summation stays below 1e-4 of that even
    after 30 steps, because the cell forgets.
    """
    np.testing.assert_allclose(by_float[name], by_keras[name], atol=1e-4)


def test_the_float_file_has_the_limits_of_the_head(step: Step, example: Example) -> None:
    """Of sums that go beyond them, as those of bright points do. Catches a file without the limits
    that training shows, which is another network than the one that was trained."""
    bright = build_step(step.settings, SIZE, SIZE)
    bright.set_weights(step.get_weights())
    bright.scale_head(40)
    begin = replace(example, frames=example.frames[:3], means=example.means[:3])
    by_file = played(tflite(quantize.convert(bright)), begin)["image"]
    by_step = played(bright, begin)["image"]
    without = played(partial(bright, limited=False), begin)["image"]
    np.testing.assert_allclose(by_file, by_step, atol=2e-4)
    assert np.abs(by_step - without).max() > 0.01


@pytest.mark.parametrize(("name", "low", "high"), [("image", 0.015, 0.1), ("c_out", 0.04, 0.4)])
def test_the_int8_file_is_near_the_float_file_at_every_step(
    name: str, low: float, high: float, by_float: Series, by_int8: Series
) -> None:
    """Catches a tensor whose scale is off, a state that drifts, and a file that is not int8 at all.

    Relative to the signal's own root mean square. Measured: 0.08 to 0.14 for the cell, whose random
    weights of 16 channels add up the roundings of frame, products and state (with four other stacks
    to calibrate on, 0.27 to 0.32), and less for the image. Float has 1e-6.
    """
    error = rms(by_int8[name] - by_float[name]) / rms(by_float[name])  # (T,)
    assert low < error.min()
    assert error.max() < high


def test_int8_errors_do_not_pile_up(by_float: Series, by_int8: Series) -> None:
    """Catches a carried state that runs away: relative to the state, which still grows, the last
    ten frames are no worse than the ten before by more than a half, and the mean over pixels has an
    offset that does not grow. A steady one is what the coarse steps of the head's constants make
    in a network of random weights."""
    error = rms(by_int8["c_out"] - by_float["c_out"]) / rms(by_float["c_out"])
    assert error[20:].mean() < 1.5 * error[10:20].mean()
    offset = np.mean(by_int8["image"] - by_float["image"], axis=(1, 2, 3, 4))
    scale = rms(by_float["image"]).max()
    assert np.ptp(offset) < 0.005 * scale  # measured: 0.0024
    assert np.abs(offset).max() < 0.05 * scale  # measured: 0.032
