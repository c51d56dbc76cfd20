"""The ring buffer against numpy on the frames that it should hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.camera import Frame
from device.ring_buffer import RingBuffer, missed_between

SHAPE = (5, 7)
DTYPES = ("uint8", "uint16", "float32")


def _frames(count: int, dtype: str, seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    top = 255 if dtype == "uint8" else 65535
    stack = rng.integers(0, top, (count, *SHAPE), endpoint=True).astype(dtype)
    return [Frame(array, 1_000 * index, index) for index, array in enumerate(stack)]


def _filled(frames: list[Frame], capacity: int) -> RingBuffer:
    buffer = RingBuffer(capacity, SHAPE, frames[0].array.dtype)
    for frame in frames:
        buffer.push(frame)
    return buffer


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), capacity=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_it_holds_the_last_frames_in_order_and_knows_their_statistics(dtype, count, capacity, seed):
    """Mutations: order by slot instead of age; the leaving frame stays in a sum; n of capacity."""
    frames = _frames(count, dtype, seed)
    buffer = _filled(frames, capacity)
    held = np.stack([frame.array for frame in frames[-capacity:]])  # (n, H, W)
    assert len(buffer) == len(held)
    assert buffer.timestamps_ns == tuple(f.timestamp_ns for f in frames[-capacity:])
    np.testing.assert_array_equal(buffer.frames(), held)
    # float32 results of sums that are exact (or float64): one rounding, 2**-24 relative.
    np.testing.assert_allclose(buffer.mean(), held.mean(0, dtype=np.float64), rtol=1.2e-7)
    # The difference of squares near 1e10 loses at most some 1e-16 x 1e10 in float64.
    np.testing.assert_allclose(buffer.std(), held.std(0, dtype=np.float64), rtol=2e-7, atol=2e-3)


def test_integer_sums_are_exact_at_the_top_of_the_range():
    """Mutation: sums kept in float32, or squares in 32 bits: both overflow or round here."""
    bright = Frame(np.full(SHAPE, 65535, np.uint16), 0, 0)
    dimmer = Frame(np.full(SHAPE, 65534, np.uint16), 1, 1)
    buffer = _filled([bright] * 29 + [dimmer], 30)
    np.testing.assert_allclose(buffer.std(), np.sqrt(29) / 30, rtol=1e-6)  # float32 rounding
    for _ in range(30):
        buffer.push(bright)
    assert not buffer.std().any()  # exactly none is left of the one that was dimmer


def test_float_sums_forget_what_left():
    """Mutation: without the renewal a frame of 1e12 leaves its rounding in the sums for good."""
    flash = Frame(np.full(SHAPE, 1e12, np.float32), 0, 0)
    dim = [Frame(np.full(SHAPE, value, np.float32), 1, 1) for value in (0.25, 0.75)]
    buffer = _filled([flash, *dim * 4], 4)
    np.testing.assert_array_equal(buffer.mean(), 0.5)  # binary fractions: exact
    np.testing.assert_array_equal(buffer.std(), 0.25)


def test_every_push_renews_its_share():
    """Mutations: all rows at once (a push that holds up everybody), or a row left out for ever."""
    shape = (10, 3)  # no multiple of the capacity
    buffer = RingBuffer(4, shape, np.float32)
    flash, dark, bright = (np.full(shape, value, np.float32) for value in (1e12, 0.25, 0.75))
    for array in (flash, dark, bright, dark):
        buffer.push(Frame(array, 0, 0))
    renewed = []
    for array in (bright, dark, bright, dark):
        buffer.push(Frame(array, 0, 0))
        renewed.append(int((buffer.std() == 0.25).all(axis=1).sum()))
    assert renewed == [2, 5, 7, 10]


def test_a_copy_of_the_sums_stays_as_it_is():
    """Mutation: the sums themselves are handed out, and change under who computes with them."""
    frames = _frames(3, "uint16")
    buffer = _filled(frames[:2], 2)
    sums, expected = buffer.sums(), buffer.std()
    buffer.push(frames[2])
    np.testing.assert_array_equal(sums.std(), expected)


def test_the_mean_is_kept_and_nobody_can_change_it():
    """Mutation: the kept mean is not dropped at the next push, or is handed out writable."""
    frames = _frames(2, "uint16")
    buffer = _filled(frames[:1], 4)
    first = buffer.mean()
    assert buffer.mean() is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    buffer.push(frames[1])
    assert (buffer.mean() != first).any()


def test_frames_are_copies():
    """Mutation: views into the ring, which the next push overwrites."""
    frames = _frames(3, "uint8")
    buffer = _filled(frames[:2], 2)
    before = buffer.frames()
    buffer.push(frames[2])
    np.testing.assert_array_equal(before[0], frames[0].array)


def test_clear_forgets_everything():
    """Mutation: clear leaves a sum, a timestamp or the write position behind."""
    frames = _frames(5, "uint16")
    buffer = _filled(frames, 3)
    buffer.clear()
    assert len(buffer) == 0
    assert buffer.span_ms == 0
    assert buffer.standard_error() == 0
    buffer.push(frames[0])
    np.testing.assert_array_equal(buffer.frames()[0], frames[0].array)
    np.testing.assert_array_equal(buffer.mean(), frames[0].array)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("kept", [0, 1, 2, 3, 7])
def test_the_last_frames_can_be_kept_alone(dtype, kept):
    """Mutations: the first instead of the last; all for 0; a timestamp or a sum left behind."""
    frames = _frames(5, dtype)
    buffer = _filled(frames, 3)
    buffer.keep_last(kept)
    alone = RingBuffer(3, SHAPE, dtype)
    for frame in frames[5 - min(kept, 3) :]:
        alone.push(frame)
    assert buffer.timestamps_ns == alone.timestamps_ns
    np.testing.assert_array_equal(buffer.frames(), alone.frames())
    np.testing.assert_array_equal(buffer.mean(), alone.mean())
    np.testing.assert_array_equal(buffer.std(), alone.std())
    buffer.push(frames[0])
    np.testing.assert_array_equal(buffer.frames()[-1], frames[0].array)


@pytest.mark.parametrize(
    "array", [np.zeros((7, 5), np.uint16), np.zeros(SHAPE, np.uint8), np.zeros((1, *SHAPE))]
)
def test_another_shape_or_type_is_refused(array):
    """Mutation: numpy broadcasts or casts what does not fit."""
    with pytest.raises(ValueError, match="the buffer takes"):
        RingBuffer(3, SHAPE, np.uint16).push(Frame(array, 0, 0))


def test_capacity_is_at_least_one():
    """Mutation: an empty ring divides by its length at the first push."""
    with pytest.raises(ValueError, match="at least 1"):
        RingBuffer(0, SHAPE, np.uint16)


def test_the_standard_error_is_that_of_the_mean():
    """Mutations: divided by n or not at all instead of by the root; mean instead of median."""
    rng = np.random.default_rng(3)
    stack = rng.normal(1000, 20, (30, 64, 64))
    stack[:, :8, :8] *= rng.uniform(0, 2, (30, 1, 1))  # a corner that blinks
    buffer = RingBuffer(30, (64, 64), np.uint16)
    for index, array in enumerate(stack.astype(np.uint16)):
        buffer.push(Frame(array, index, index))
    # 256 pixels of 29 degrees of freedom: the median of the std is known to 1 %; 5 % is 4 sigma.
    assert buffer.standard_error() == pytest.approx(20 / np.sqrt(30), rel=0.05)


def test_the_standard_error_of_two_frames():
    """Mutation: the std by n over the root of n, which is 0.71 of it; at n = 30 nobody notices."""
    low, high = (Frame(np.full(SHAPE, value, np.uint16), value, value) for value in (4, 6))
    # The sample's deviation is sqrt(2), and that of the mean of two is 1: exactly, in halves.
    assert _filled([low, high], 30).standard_error() == 1.0


def test_gaps_and_span_come_from_timestamps():
    """Mutation: gaps counted per gap instead of per frame, or the span from counts of frames."""
    interval_ns = 10_000_000
    slots = (0, 1, 2, 5, 6, 8)
    frames = _frames(len(slots), "uint8")
    frames = [Frame(f.array, s * interval_ns, f.index) for f, s in zip(frames, slots, strict=True)]
    buffer = _filled(frames, 10)
    assert buffer.gaps(0.01) == 3
    assert buffer.gaps(0.0) == 0
    assert buffer.span_ms == pytest.approx(80)
    assert _filled(frames, 3).gaps(0.01) == 1  # what left the buffer takes its gap along


@given(
    missing=st.integers(0, 1000),
    jitter=st.floats(-0.45, 0.45),
    interval_s=st.floats(0.001, 10),
)
def test_jitter_is_no_missed_frame(missing, jitter, interval_s):
    """Mutation: rounding down or up instead of to the nearest slot."""
    later_ns = 77 + round((missing + 1 + jitter) * interval_s * 1e9)
    assert missed_between(77, later_ns, interval_s) == missing


@pytest.mark.parametrize("later_ns", [0, 3, -(10**9)])
def test_nothing_is_missed_in_no_time(later_ns):
    """Mutation: -1 missed frames for two of the same slot."""
    assert missed_between(0, later_ns, 0.01) == 0
