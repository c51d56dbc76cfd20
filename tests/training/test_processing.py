"""Processing: what interpolation and compression do to a frame."""

from __future__ import annotations

import numpy as np
import pytest

from training.processing import Processing, interpolate_green


def test_by_default_nothing_is_changed() -> None:
    """Catches processing that is always on."""
    frames = np.random.default_rng(1).integers(0, 255, (3, 8, 10)).astype(np.uint16)
    processing = Processing()
    np.testing.assert_array_equal(processing.interpolate(frames.astype(np.float32)), frames)
    np.testing.assert_array_equal(processing.compress(frames), frames)


def test_green_is_kept_on_the_checkerboard_and_averaged_between() -> None:
    """Catches the other checkerboard, and neighbours taken along one axis only."""
    y, x = np.indices((8, 10))
    frame = np.random.default_rng(2).random((8, 10), np.float32)
    seen = interpolate_green(frame)
    green = (y + x) % 2 == 0
    np.testing.assert_array_equal(seen[green], frame[green])
    neighbours = frame[2, 4] + frame[4, 4] + frame[3, 3] + frame[3, 5]
    assert seen[3, 4] == pytest.approx(neighbours / 4, rel=1e-6)
    ramp = (3 * y - 2 * x).astype(np.float32)
    np.testing.assert_allclose(interpolate_green(ramp)[1:-1, 1:-1], ramp[1:-1, 1:-1], atol=1e-5)


def test_red_and_blue_pixels_change_nothing() -> None:
    """Catches an edge that mirrors onto pixels of another colour."""
    rng = np.random.default_rng(3)
    frame = rng.random((8, 10), np.float32)
    y, x = np.indices(frame.shape)
    other = np.where((y + x) % 2 == 0, frame, rng.random(frame.shape, np.float32))
    np.testing.assert_array_equal(interpolate_green(frame), interpolate_green(other))


def test_interpolation_makes_neighbouring_noise_alike() -> None:
    """Of white noise, green pixels and the means of four: correlation 1/4 over half of variance
    (1 + 1/4) / 2; 200 x 200 values give it to 0.01. Catches noise that is added afterwards."""
    noise = np.random.default_rng(4).standard_normal((200, 200)).astype(np.float32)
    seen = Processing(bayer=True).interpolate(noise)
    correlation = np.mean(seen[:, 1:] * seen[:, :-1]) / seen.var()
    assert correlation == pytest.approx(0.25 / 0.625, abs=0.02)


def test_resampling_blurs_rows_and_columns_but_not_time() -> None:
    """Catches a blur along the first axis."""
    frames = np.zeros((3, 17, 17), np.float32)
    frames[1, 8, 8] = 1
    seen = Processing(resampling_sigma_px=0.8).interpolate(frames)
    assert np.all(seen[[0, 2]] == 0)
    assert seen[1].sum() == pytest.approx(1, abs=1e-5)
    variance = np.sum(seen[1].sum(axis=0) * (np.arange(17) - 8) ** 2)
    assert variance == pytest.approx(0.64, rel=0.05)  # a sampled Gaussian, cut at 4 sigma


def test_a_jpeg_is_near_and_not_the_same() -> None:
    """Catches compression that does nothing, and one that shuffles frames."""
    y, x = np.indices((32, 32))
    frames = np.stack([100 + 50 * np.sin((x + k * y) / 5) for k in range(3)]).astype(np.uint16)
    seen = Processing(jpeg_quality=80).compress(frames)
    assert seen.dtype == np.uint16
    assert seen.shape == frames.shape
    difference = seen.astype(int) - frames
    assert 0 < np.abs(difference).max() <= 20
    assert np.abs(difference.mean()) < 1


def test_a_video_is_near_and_takes_noise_from_frame_to_frame() -> None:
    """Catches compression that does nothing, frames in another order, and values squeezed to the
    range of television. At a factor of 0 a grey video is without loss."""
    y, x = np.indices((32, 33))
    still = 100 + 50 * np.sin((x + y) / 5)
    frames = np.random.default_rng(1).poisson(still, (12, *still.shape)).astype(np.uint16)
    np.testing.assert_array_equal(Processing(video_crf=0).compress(frames), frames)
    seen = Processing(video_crf=30).compress(frames)
    assert seen.dtype == np.uint16
    assert np.abs(seen.mean() - frames.mean()) < 1
    kept = seen.std(axis=0).mean() / frames.std(axis=0).mean()
    assert 0.1 < kept < 0.8
    np.testing.assert_array_equal(seen, Processing(video_crf=30).compress(frames))


def test_a_jpeg_of_more_than_8_bit_is_refused() -> None:
    """Catches values that wrap around."""
    with pytest.raises(ValueError, match="8 bit; a pixel is 256"):
        Processing(jpeg_quality=80).compress(np.full((4, 4), 256, np.uint16))
