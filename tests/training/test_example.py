"""What the network is trained on is what the device feeds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from device.camera import Frame
from device.normalize import NormalizationSettings, measure
from device.reconstructor import reconstruct_stream, reconstruct_window
from device.ring_buffer import RingBuffer
from training.example import Example, make_example, normalized, running_mean, truth_in_its_unit
from training.forward_model import ForwardModelSettings, simulate


class Recorder:
    """Stands in for the device's step and keeps what it is fed."""

    psf_width = None
    expected_error = None

    def __init__(self) -> None:
        normalization = SimpleNamespace(settings=NormalizationSettings)
        self.manifest = SimpleNamespace(
            normalization=normalization,
            takes_psf=False,
            output_filter=None,
            inputs={"frame": None, "mean": None, "h": None},
            state={"h": "h_out"},
            frames=30,
            upsampling=2,
            size_multiple=2,
        )
        self.fed: list[dict[str, np.ndarray]] = []

    def resize(self, height: int, width: int) -> None:
        self.size = (height, width)

    def zero_state(self) -> dict[str, np.ndarray]:
        return {"h": np.zeros(1, np.float32)}

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        self.fed.append(inputs)
        height, width = self.size
        return {"image": np.ones((1, 2 * height, 2 * width, 1), np.float32), "h_out": inputs["h"]}


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """A stack longer than the window, (47, 32, 34)."""
    return simulate(ForwardModelSettings(), 47, (32, 34), np.random.default_rng(3)).frames


def test_a_stream_is_normalized_as_the_device_does_it(frames: np.ndarray) -> None:
    """Frame by frame, bit by bit. Catches a window of 29 or 31, statistics of frames to come, and
    another formula on either side."""
    recorder: Any = Recorder()
    results = list(reconstruct_stream(recorder, frames))
    shown, means, scales = normalized(frames, stream=True)
    assert shown.dtype == means.dtype == scales.dtype == np.float32
    np.testing.assert_array_equal(shown, [fed["frame"][0, :, :, 0] for fed in recorder.fed])
    np.testing.assert_array_equal(means, [fed["mean"][0, :, :, 0] for fed in recorder.fed])
    # The device restores an image of ones to its scale.
    np.testing.assert_array_equal(scales, [result.image[5, 5] for result in results])


def test_a_window_is_normalized_as_the_device_does_it(frames: np.ndarray) -> None:
    """Catches statistics of a part of the window, or running ones."""
    recorder: Any = Recorder()
    result = reconstruct_window(recorder, frames[:30])
    shown, means, scales = normalized(frames[:30], stream=False)
    assert len(recorder.fed) == 60
    for fed, upright, mean in zip(recorder.fed[:30], shown, means, strict=True):
        np.testing.assert_array_equal(upright, fed["frame"][0, :, :, 0])
        np.testing.assert_array_equal(mean, fed["mean"][0, :, :, 0])
    for fed, upright in zip(recorder.fed[30:], shown, strict=True):
        np.testing.assert_array_equal(upright.T, fed["frame"][0, :, :, 0])
    np.testing.assert_array_equal(scales, np.float32(result.scaling.scale))


def test_running_means_are_those_of_the_ring_buffer(frames: np.ndarray) -> None:
    """Catches a mean whose rounding piles up, or which starts with zeros."""
    buffer = RingBuffer(30, (32, 34), np.uint16)
    means = running_mean(frames)
    for index, frame in enumerate(frames):
        buffer.push(Frame(frame, index, index))
        np.testing.assert_array_equal(means[index], buffer.mean())


@pytest.mark.parametrize("stream", [True, False])
def test_a_constant_stack_is_all_zeros_not_nan(stream: bool) -> None:
    """Catches a division by a scale of 0, here and in the gain later on."""
    shown, means, scales = normalized(np.full((6, 16, 16), 7, np.uint16), stream)
    assert not shown.any()
    assert not means.any()
    assert np.all(scales == 1)


def test_truth_is_in_units_of_its_999th_permille_and_never_clipped() -> None:
    """Catches peaks cut flat, a unit that the brightest pixel sets where there is no need, and one
    of 0."""
    truth = np.zeros((100, 100), np.float32)
    truth[:10] = 4.0
    truth[0, 0] = 5.0
    scaled, unit = truth_in_its_unit(truth)
    assert unit == pytest.approx(4.0)
    truth[0, 0] = 1000.0
    scaled, unit = truth_in_its_unit(truth)
    np.testing.assert_allclose(scaled * unit, truth, rtol=1e-6)
    assert scaled.max() == pytest.approx(1.5)
    assert np.isfinite(truth_in_its_unit(np.zeros((8, 8)))[0]).all()


def test_chunks_are_cut_in_order_and_only_the_first_is_fresh() -> None:
    """Catches an overlap, a state that is reset at every chunk, and gains of other frames."""
    rng = np.random.default_rng(1)
    shown, means = rng.random((2, 12, 16, 16), np.float32)
    scales = np.arange(1, 13, dtype=np.float32)
    example = Example(shown, means, scales, rng.random((32, 32), np.float32), unit=2.0)
    for k in range(3):
        inputs, truth = example.chunk(k, 4, (1, 3))
        np.testing.assert_array_equal(inputs["frames"], shown[4 * k : 4 * k + 4])
        np.testing.assert_array_equal(inputs["means"], means[4 * k : 4 * k + 4])
        assert inputs["fresh"] == (k == 0)
        np.testing.assert_allclose(inputs["gain"], [(4 * k + 2) / 2, (4 * k + 4) / 2])
        assert truth.shape == (2, 32, 32)
        np.testing.assert_array_equal(truth, [example.truth] * 2)


def test_gain_brings_the_mean_to_the_truths_unit() -> None:
    """Normalized brightness times gain is brightness in units of the truth.

    Catches a gain that is inverted or lacks the scale, both off by its square, some 1e4. The PSF
    takes a thin specimen's mean to a tenth of the truth at least, and an area's leaves it near 1;
    bursts of few emitters and bleaching add a factor of two either way.
    """
    for number in range(6):
        example = make_example(ForwardModelSettings(), 30, 64, False, (1, 9, number))
        gain = example.chunk(0, 30, (29,))[0]["gain"][0]
        assert 0.03 < np.percentile(example.means[0], 99.5) * gain < 3


def test_a_seed_is_an_example() -> None:
    """Catches randomness from elsewhere, and a normalization other than `measure`'s."""
    settings = ForwardModelSettings()
    a, b, c = (make_example(settings, 5, 16, True, (1, 0, n)) for n in (4, 4, 5))
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.truth, b.truth)
    assert not np.array_equal(a.frames, c.frames)
    stack = simulate(settings, 5, (16, 16), np.random.default_rng((1, 0, 4)))
    scaling = measure(stack.frames.mean(axis=0))
    assert a.scales[-1] == pytest.approx(scaling.scale, rel=1e-6)


@pytest.mark.parametrize("symmetry", range(8))
def test_turning_turns_frames_and_truth_alike(symmetry: int) -> None:
    """The truth, binned, stays where the frames show it. Catches one of the three left as it is."""
    example = make_example(ForwardModelSettings(), 30, 32, False, (4,))
    turned = example.turned(symmetry)
    binned = turned.truth.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    original = example.truth.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    expected = np.corrcoef(original.ravel(), example.means[0].ravel())[0, 1]
    for images in (turned.means[0], turned.frames.mean(axis=0)):
        assert np.corrcoef(binned.ravel(), images.ravel())[0, 1] == pytest.approx(
            expected, abs=1e-4
        )
    assert np.array_equal(turned.truth, example.truth) == (symmetry == 0)
    others = [example.turned(other).truth for other in range(8) if other != symmetry]
    assert not any(np.array_equal(turned.truth, other) for other in others)


CHANGING = {"frames": 80, "size_px": 32, "stream": True, "changes": True}


def test_after_a_change_the_truth_goes_over_in_30_frames() -> None:
    """As the mean of the last 30 frames does. Catches a truth that changes at once or not at all,
    and one that is off by a frame."""
    truth, former = np.full((4, 4), 3.0, np.float32), np.ones((4, 4), np.float32)
    frames = np.zeros((60, 2, 2), np.float32)
    example = Example(frames, frames, np.ones(60, np.float32), truth, 1.0, former, change_at=20)
    seen = [float(example.truth_at(k)[0, 0]) for k in range(60)]
    shown = np.where(np.arange(60) < 20, 1.0, 3.0)[:, None, None]
    np.testing.assert_allclose(seen, running_mean(np.pad(shown, [(29, 0), (0, 0), (0, 0)], "edge"))
                               [29:, 0, 0], rtol=1e-6)  # fmt: skip


@pytest.mark.parametrize("number", range(6))
def test_frames_and_truth_change_together(number: int) -> None:
    """The mean of the frames before and after resembles its own truth more than the other's.

    Catches truths that are swapped, cut elsewhere than the frames, or turned another way.
    """
    model = ForwardModelSettings(photons=(400.0, 800.0), psf_sigma_px=(0.8, 1.2))
    example = make_example(model, seed=(5, number), **CHANGING)
    at = example.change_at
    assert example.former is not None
    assert 20 <= at < 40
    assert example.frames.shape == (80, 32, 32)
    means = [example.frames[:at].mean(axis=0), example.frames[at:].mean(axis=0)]
    binned = [t.reshape(32, 2, 32, 2).mean(axis=(1, 3)) for t in (example.former, example.truth)]
    alike = np.corrcoef([each.ravel() for each in (*means, *binned)])[:2, 2:]
    assert alike[0, 0] > alike[0, 1]
    assert alike[1, 1] > alike[1, 0]


def test_a_change_is_turned_with_the_rest() -> None:
    """Catches a former truth that is left as it was."""
    example = make_example(ForwardModelSettings(), seed=(5, 1), **CHANGING)
    turned = example.turned(5)
    assert example.former is not None
    assert turned.former is not None
    np.testing.assert_array_equal(turned.truth_at(0), turned.former)
    np.testing.assert_array_equal(turned.former, np.rot90(example.former[:, ::-1]))
