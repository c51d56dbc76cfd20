"""Buffers as sensors and image processors lay them out, made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from device.camera import CameraError
from device.pixel_format import Region, StreamFormat, parse_region

NOISE = np.random.default_rng(3)


def _buffer(image: np.ndarray, stride_bytes: int, tail: int = 0) -> np.ndarray:
    """Lay an image, (H, W), out with padding of nonsense behind each row and after the last."""
    rows = np.ascontiguousarray(image).view(np.uint8)
    padded = NOISE.integers(0, 256, (len(rows), stride_bytes), dtype=np.uint8)
    padded[:, : rows.shape[1]] = rows
    return np.concatenate([padded.ravel(), NOISE.integers(0, 256, tail, dtype=np.uint8)])


@pytest.mark.parametrize("name", ["NV12", "NV21", "YUV420", "YVU420"])
def test_luma_without_padding_and_chroma(name):
    """Mutation 'stride crop': rows cut every `width` bytes instead of every `stride`."""
    luma = NOISE.integers(0, 256, (24, 36), dtype=np.uint8)
    buffer = _buffer(luma, 64, tail=64 * 12)
    decoded = StreamFormat(name, 36, 24, 64).decode(buffer, transfer="linear")
    np.testing.assert_array_equal(decoded, luma)
    assert decoded.base is None
    assert not np.shares_memory(decoded, buffer)


@pytest.mark.parametrize(("name", "bits"), [("R8", 8), ("R10", 10), ("R12", 12), ("R16", 16)])
def test_mono_raw_is_exact(name, bits):
    """Mutations: stride counted in px instead of bytes; 16 bit values read in the wrong order."""
    image = NOISE.integers(0, 1 << bits, (20, 30)).astype("u1" if bits == 8 else "<u2")
    decoded = StreamFormat(name, 30, 20, 96).decode(_buffer(image, 96))
    np.testing.assert_array_equal(decoded, image)
    assert decoded.dtype == image.dtype


@pytest.mark.parametrize("sensor_bits", [10, 12])
def test_left_justified_values_are_the_sensors_again(sensor_bits):
    """Mutation: the Pi 5's values taken for 16 bit ones, 64 times too bright."""
    image = NOISE.integers(0, 1 << sensor_bits, (20, 30)).astype("<u2")
    format_ = StreamFormat("R16", 30, 20, 64, sensor_bits)
    decoded = format_.decode(_buffer(image << (16 - sensor_bits), 64))
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize(
    ("name", "greens"),
    [
        ("SBGGR10", ((0, 1), (1, 0))),
        ("SRGGB12", ((0, 1), (1, 0))),
        ("SGBRG10", ((0, 0), (1, 1))),
        ("SGRBG8", ((0, 0), (1, 1))),
    ],
)
def test_bayer_gives_the_mean_of_both_greens(name, greens):
    """Mutations 'Bayer quad': red or blue averaged in; one green alone; full resolution kept."""
    mosaic = np.full((12, 16), 7, "u1" if name.endswith("8") else "<u2")
    mosaic[greens[0][0] :: 2, greens[0][1] :: 2] = 100
    mosaic[greens[1][0] :: 2, greens[1][1] :: 2] = 140
    mosaic[greens[1][0], greens[1][1]] = 240
    format_ = StreamFormat(name, 16, 12, 48)
    decoded = format_.decode(_buffer(mosaic, 48))
    assert decoded.shape == format_.shape == (6, 8)
    assert format_.px_per_pixel == 2
    assert decoded[0, 0] == 170
    assert (decoded.ravel()[1:] == 120).all()
    assert decoded.dtype == mosaic.dtype


def test_halves_of_green_add_no_offset():
    """Mutation: halves always rounded up or down, which shifts the mean by a quarter of an ADU."""
    mosaic = NOISE.integers(200, 800, (400, 400)).astype("<u2")
    decoded = StreamFormat("SRGGB10", 400, 400, 800).decode(_buffer(mosaic, 800))
    exact = (mosaic[0::2, 1::2].astype(float) + mosaic[1::2, 0::2]) / 2
    assert np.abs(decoded - exact).max() == 0.5
    # 40,000 errors of 0.35 rms: the mean's standard error is 0.002, and a bias would be 0.25.
    assert abs((decoded - exact).mean()) < 0.01


@pytest.mark.parametrize("name", ["NV12", "R10", "SRGGB10"])
def test_a_region_is_that_part_of_the_whole(name):
    """Mutations: y and x exchanged; a Bayer region counted in sensor px and so off its quads."""
    dtype = "u1" if name == "NV12" else "<u2"
    image = NOISE.integers(0, 200, (48, 64)).astype(dtype)
    format_ = StreamFormat(name, 64, 48, 192)
    buffer = _buffer(image, 192)
    whole = format_.decode(buffer, transfer="linear")
    part = format_.decode(buffer, Region(3, 5, 16, 18), "linear")
    np.testing.assert_array_equal(part, whole[3:19, 5:23])


def test_the_stated_curve_is_undone():
    """Mutation: gamma left in; a curve applied instead of undone. Mid-grey is a fifth of white."""
    grey = np.full((4, 4), 128, np.uint8)
    format_ = StreamFormat("NV12", 4, 4, 4)
    buffer = _buffer(grey, 4, tail=8)
    # (0.502 + 0.099) / 1.099 to the power of 2.22 is 0.262; sRGB's mid-grey is 0.216.
    assert format_.decode(buffer)[0, 0] / 255 == pytest.approx(0.2616, abs=0.002)
    assert format_.decode(buffer, transfer="srgb")[0, 0] / 255 == pytest.approx(0.2159, abs=0.002)


@pytest.mark.parametrize("name", ["SRGGB10_CSI2P", "BGGR_PISP_COMP1", "XBGR8888", "MJPEG", ""])
def test_what_cannot_be_read_is_refused(name):
    """Mutation: packed, compressed or coloured bytes taken for intensity."""
    with pytest.raises(CameraError, match="expected NV12, YUV420"):
        StreamFormat(name, 64, 48, 256)


def test_contradictions_are_refused():
    """Mutation: a short buffer or stride read past its end or wrapped."""
    with pytest.raises(CameraError, match="less than their length"):
        StreamFormat("R10", 64, 48, 64)
    with pytest.raises(CameraError, match="bytes for an image"):
        StreamFormat("R8", 64, 48, 64).decode(np.zeros(64 * 47, np.uint8))


def test_a_region_as_it_is_written():
    """Mutation: another order than Y,X,H,W."""
    assert parse_region("1,2,30,40") == Region(top=1, left=2, height=30, width=40)
    assert parse_region("") is None
