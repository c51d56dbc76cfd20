"""What counts as a stack, and what is read from it."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from device.stack import StackError, linear_luma, open_stack

T, H, W = 5, 18, 23


def ramp(dtype: str = "uint16", shape: tuple[int, ...] = (T, H, W)) -> np.ndarray:
    """Every pixel of every frame differs from its neighbours in all directions."""
    return (np.arange(np.prod(shape)) % 251).astype(dtype).reshape(shape)


def refusal(path: Path, *words: str) -> str:
    with pytest.raises(StackError) as caught:
        open_stack(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and "expected" in sentence and path.name in sentence
    for word in words:
        assert word in sentence
    return sentence


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"compression": "zlib"},
        {"bigtiff": True},
        {"metadata": None},
        {"truncate": True},
        {"ome": True, "metadata": {"axes": "TYX"}},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"tile": (16, 16)},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_every_kind_of_tiff_is_read_exactly(tmp_path, dtype, options):
    """Mutations: byte order kept as stored, the page's rather than the frame's offset, order."""
    expected = ramp(dtype)
    tifffile.imwrite(tmp_path / "a.tif", expected, **options)
    with open_stack(tmp_path / "a.tif") as stack:
        assert stack.shape == (T, H, W)
        assert stack.dtype == np.dtype(dtype) and stack.dtype.isnative
        np.testing.assert_array_equal(np.stack(list(stack)), expected)
        np.testing.assert_array_equal(stack.read(3), expected[3])
        assert stack.read(0).dtype == stack.dtype


def test_frames_outside_are_an_index_error(tmp_path):
    """Mutation: a negative index counts from the end."""
    tifffile.imwrite(tmp_path / "a.tif", ramp())
    with open_stack(tmp_path / "a.tif") as stack:
        for index in (-1, T):
            with pytest.raises(IndexError):
                stack.read(index)


def test_pages_written_one_by_one_are_a_stack(tmp_path):
    """tifffile makes a series of each; mutation: only the first series is read."""
    expected = ramp()
    for index, page in enumerate(expected):
        tifffile.imwrite(tmp_path / "a.tif", page, append=index > 0)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(np.stack(list(stack)), expected)


@pytest.mark.parametrize("side", [(16, 16), (16, 17), (129, 31)])
def test_any_size_from_16_up(tmp_path, side):
    """Mutation: the limit is above 16, or even sizes only."""
    tifffile.imwrite(tmp_path / "a.tif", ramp(shape=(2, *side)))
    with open_stack(tmp_path / "a.tif") as stack:
        assert stack.shape == (2, *side)


@pytest.mark.parametrize("side", [(15, 40), (40, 15)])
def test_smaller_is_refused(tmp_path, side):
    """Mutation: only one of the sides is judged."""
    tifffile.imwrite(tmp_path / "a.tif", ramp(shape=(5, *side)))
    refusal(tmp_path / "a.tif", f"{side[0]} x {side[1]}", "16 x 16")


def test_not_a_tiff(tmp_path):
    """Mutation: the ending is believed."""
    path = tmp_path / "a.tif"
    path.write_text("II, but not a TIFF")
    refusal(path, "not a TIFF")


def test_an_empty_file_and_a_missing_one(tmp_path):
    """Mutation: an OSError or a struct.error escapes."""
    (tmp_path / "a.tif").touch()
    refusal(tmp_path / "a.tif", "not a TIFF")
    refusal(tmp_path / "b.tif", "no such file")
    (tmp_path / "folder.tif").mkdir()
    refusal(tmp_path / "folder.tif", "no such file")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("metadata", [None, {}], ids=["bare", "shaped"])
@pytest.mark.parametrize("percent", [1, 5, 10, 30, 50, 70, 90, 97])
def test_a_file_cut_short_is_refused(tmp_path, percent, metadata, compression):
    """Mutation: it is read as a shorter stack, as tifffile does."""
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(3).integers(0, 2**16, (T, H, W), np.uint16)  # does not deflate
    tifffile.imwrite(path, noise, compression=compression, metadata=metadata)
    os.truncate(path, path.stat().st_size * percent // 100)
    with pytest.raises(StackError), open_stack(path) as stack:
        stack.read(T - 1)


def test_one_frame(tmp_path):
    """Mutation: a single page is a stack of one."""
    tifffile.imwrite(tmp_path / "a.tif", ramp(shape=(H, W)))
    refusal(tmp_path / "a.tif", "single frame")
    tifffile.imwrite(tmp_path / "b.tif", ramp(shape=(1, H, W)), ome=True, metadata={"axes": "TYX"})
    refusal(tmp_path / "b.tif", "single frame")


def test_colour(tmp_path):
    """Mutation: the samples are taken for frames."""
    tifffile.imwrite(tmp_path / "a.tif", ramp("uint8", (H, W, 3)), photometric="rgb")
    refusal(tmp_path / "a.tif", "RGB")
    tifffile.imwrite(tmp_path / "b.tif", ramp("uint8", (T, H, W, 3)), photometric="rgb")
    refusal(tmp_path / "b.tif", "RGB")
    planar = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "c.tif", ramp("uint8", (3, H, W)), **planar)
    refusal(tmp_path / "c.tif", "RGB")


@pytest.mark.parametrize(
    ("axes", "shape", "word"),
    [
        ("CYX", (2, H, W), "2 channels"),
        ("ZYX", (T, H, W), "slices along Z"),
        ("TCYX", (T, 2, H, W), "2 channels"),
        ("TZYX", (T, 3, H, W), "3 slices along Z"),
    ],
)
def test_channels_and_slices_are_no_time(tmp_path, axes, shape, word):
    """Mutation: the first long axis is taken, whatever it is."""
    tifffile.imwrite(tmp_path / "a.tif", ramp(shape=shape), ome=True, metadata={"axes": axes})
    refusal(tmp_path / "a.tif", word)


def test_single_channels_and_slices_do_not_matter(tmp_path):
    """Mutation: C or Z is refused where it is 1."""
    data = ramp(shape=(T, 1, 1, H, W))
    tifffile.imwrite(tmp_path / "a.tif", data, ome=True, metadata={"axes": "TZCYX"})
    with open_stack(tmp_path / "a.tif") as stack:
        assert stack.shape == (T, H, W)


def test_two_long_axes(tmp_path):
    """Mutation: they are run together."""
    tifffile.imwrite(tmp_path / "a.tif", ramp(shape=(2, T, H, W)))
    refusal(tmp_path / "a.tif", "one long axis")


def test_pages_of_different_size(tmp_path):
    """Mutation: the later pages are left out without a word."""
    tifffile.imwrite(tmp_path / "a.tif", ramp(shape=(H, W)))
    tifffile.imwrite(tmp_path / "a.tif", ramp(shape=(H, W + 1)), append=True)
    refusal(tmp_path / "a.tif", "different kinds")


@pytest.mark.parametrize("dtype", ["float64", "int16", "uint32", "bool"])
def test_other_types(tmp_path, dtype):
    """Mutation: they are converted, and wrap around."""
    tifffile.imwrite(tmp_path / "a.tif", ramp().astype(dtype))
    refusal(tmp_path / "a.tif", "uint8, uint16 or float32")


def test_inverted_greys(tmp_path):
    """Mutation: bright is read as dark."""
    tifffile.imwrite(tmp_path / "a.tif", ramp("uint8"), photometric="miniswhite")
    refusal(tmp_path / "a.tif", "MINISWHITE")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_when_met(tmp_path, value):
    """Mutations: NaN only; the frames before are refused too."""
    data = ramp("float32")
    data[3, 4, 5] = value
    tifffile.imwrite(tmp_path / "a.tif", data)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(2), data[2])
        with pytest.raises(StackError, match="frame 3 holds NaN or infinity in 1 of 414"):
            stack.read(3)


@pytest.mark.parametrize(
    ("options", "expected_um"),
    [
        ({}, None),
        (
            {"ome": True, "metadata": {"axes": "TYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1}},
            0.1,
        ),
        (
            {
                "ome": True,
                "metadata": {
                    "axes": "TYX",
                    "PhysicalSizeX": 65.0,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 65.0,
                    "PhysicalSizeYUnit": "nm",
                },
            },
            0.065,
        ),
        ({"imagej": True, "resolution": (8, 8), "metadata": {"axes": "TYX", "unit": "um"}}, 0.125),
        ({"resolution": (1e5, 1e5), "resolutionunit": "CENTIMETER"}, 0.1),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # a printer's
        ({"resolution": (1e5, 2e5), "resolutionunit": "CENTIMETER"}, None),  # not square
    ],
    ids=["none", "ome", "ome nm", "imagej", "cm", "dpi", "not square"],
)
def test_pixel_size(tmp_path, options, expected_um):
    """Mutations: the unit is ignored; a printer's resolution is believed."""
    tifffile.imwrite(tmp_path / "a.tif", ramp(), **options)
    with open_stack(tmp_path / "a.tif") as stack:
        # Stored as rationals and decimal text: 1e-6 is far below what matters, and above rounding.
        assert stack.pixel_size_um == (expected_um and pytest.approx(expected_um, rel=1e-6))


# --- video ----------------------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path) -> Path:
    """Seven lossless frames of 32 x 40 px, the k-th of grey 10 + 35 k, with a dark corner."""
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 30, (40, 32), False)
    for index in range(7):
        frame = np.full((32, 40), 10 + 35 * index, np.uint8)
        frame[:8, :8] = 0
        writer.write(frame)
    writer.release()
    return path


def bt709_linear(code: float) -> float:
    """ITU-R BT.709-6, item 1.2, solved for L by hand."""
    value = code / 255
    return 255 * (value / 4.5 if value < 0.081 else ((value + 0.099) / 1.099) ** (1 / 0.45))


def test_video_is_linear_luma(video):
    """Mutations: the curve is kept, sRGB's or gamma 2.2 is used."""
    with open_stack(video) as stack:
        assert stack.shape == (7, 32, 40)
        assert stack.dtype == np.float32
        for index, image in enumerate(stack):
            # float32 of 255 is good to 2e-5; sRGB differs by more than 1 at mid grey.
            np.testing.assert_allclose(image[8:], bt709_linear(10 + 35 * index), atol=1e-4)
            assert image[:8, :8].max() == 0


def test_video_at_any_place(video):
    """Mutation: going back, or over frames, gives the next frame instead."""
    with open_stack(video) as stack:
        for index in (5, 1, 1, 6, 0):
            assert stack.read(index)[20, 20] == pytest.approx(
                bt709_linear(10 + 35 * index), abs=1e-4
            )
        with pytest.raises(IndexError):
            stack.read(7)


def test_colour_is_weighted_as_bt709_has_it():
    """Mutation: red and blue are exchanged, or BT.601's weights are used."""
    bgr = np.zeros((1, 3, 3), np.uint8)
    bgr[0, 0, 0] = bgr[0, 1, 1] = bgr[0, 2, 2] = 200  # blue, green, red
    codes = [round(200 * weight) for weight in (0.0722, 0.7152, 0.2126)]
    expected = [[bt709_linear(code) for code in codes]]
    np.testing.assert_allclose(linear_luma(bgr), expected, atol=1e-4)


@pytest.mark.parametrize("percent", [50, 95])
def test_a_cut_video_is_refused(tmp_path, percent):
    """Mutation: what is left of it is a shorter video. (Whole ones: the tests above.)"""
    path, rng = tmp_path / "a.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48), False)
    for _ in range(20):
        writer.write(rng.integers(0, 255, (48, 64)).astype(np.uint8))
    writer.release()
    os.truncate(path, path.stat().st_size * percent // 100)
    with open_stack(path) as stack:
        with pytest.raises(StackError, match="cut short.*expected 20 frames"):
            _ = stack.shape
        with pytest.raises(StackError, match="cut short.*expected 20 frames"):
            list(stack)


def test_a_video_that_is_none(tmp_path):
    """Mutation: an unreadable video has no frames and is 'a single frame'."""
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    refusal(tmp_path / "a.mp4", "not a readable video")


def test_another_kind_of_file(tmp_path):
    """Mutation: FFmpeg plays a picture as a video of one frame."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32), np.uint8))
    refusal(tmp_path / "a.png", "a TIFF or a video")


def test_a_compression_that_is_not_read_is_named(tmp_path):
    """Mutation: the decoder's own words, which name a package and call the file damaged."""
    frames = [np.full((20, 20), value, np.uint8) for value in (1, 2)]
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), frames)  # LZW is OpenCV's default
    refusal(tmp_path / "a.tif", "compressed with LZW")


def test_a_video_without_frames(tmp_path):
    """Mutation: it is said to hold one."""
    path = tmp_path / "a.avi"
    cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48)).release()
    refusal(path, "no frame that can be read")
