"""A written file is whole, or it is not there."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import tifffile

from device.ometiff import OutputError, WriteError, check_output, write_ometiff
from device.stack import StackError, open_stack


def images(count: int, side: int = 20):
    return (np.full((side, side + 3), index + 0.25, np.float32) for index in range(count))


def notes(path) -> dict[str, object]:
    with tifffile.TiffFile(path) as file:
        entries = tifffile.xml2dict(file.ome_metadata)["OME"]["StructuredAnnotations"]
    return {entry["K"]: entry["value"] for entry in entries["MapAnnotation"]["Value"]["M"]}


@pytest.mark.parametrize("count", [1, 2, 7])
def test_what_is_written_is_read(tmp_path, count):
    """Mutations: not BigTIFF, not float32, the wrong axis; a single image keeps a long axis."""
    path = tmp_path / "a.tif"
    write_ometiff(path, images(count), (count, 20, 23), pixel_size_um=0.04)
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff and file.is_ome
        assert file.series[0].axes == ("TYX" if count > 1 else "YX")
        read = file.asarray()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.reshape(count, 20, 23), np.stack(list(images(count))))


@pytest.mark.parametrize("count", [1, 3])
def test_channels_come_one_after_the_other_and_have_names(tmp_path, count):
    """Mutations: channels as times; names that are lost, or exchanged."""
    path = tmp_path / "a.tif"
    pages, names = list(images(2 * count)), ("image", "error")
    write_ometiff(path, iter(pages), (count, 20, 23), channels=names, pixel_size_um=0.04)
    with tifffile.TiffFile(path) as file:
        assert file.series[0].axes == ("TCYX" if count > 1 else "CYX")
        read, described = file.asarray(), tifffile.xml2dict(file.ome_metadata)
    np.testing.assert_array_equal(read.reshape(2 * count, 20, 23), np.stack(pages))
    pixels = described["OME"]["Image"]["Pixels"]
    assert [channel["Name"] for channel in pixels["Channel"]] == ["image", "error"]


def test_pixel_size_is_in_micrometres(tmp_path):
    """Mutation: nm, or X only."""
    write_ometiff(tmp_path / "a.tif", images(2), (2, 20, 23), pixel_size_um=0.04)
    with open_stack(tmp_path / "a.tif") as stack:
        assert stack.pixel_size_um == 0.04


def test_annotations_may_be_added_while_the_images_come(tmp_path):
    """Mutation: they are written before the images (the scales are known only after)."""
    annotations: dict[str, object] = {"model": "a<b&c", "roi": None}

    def counting():
        yield from images(3)
        annotations["count"] = 3

    write_ometiff(tmp_path / "a.tif", counting(), (3, 20, 23), annotations=annotations)
    assert notes(tmp_path / "a.tif") == {"model": "a<b&c", "count": 3}


def test_a_failing_source_leaves_what_was_there(tmp_path):
    """Mutations: written in place; the temporary file stays."""
    path = tmp_path / "a.tif"
    path.write_bytes(b"precious")

    def failing():
        yield from images(2)
        raise StackError("frame 2 holds NaN")

    with pytest.raises(StackError, match="frame 2"):
        write_ometiff(path, failing(), (5, 20, 23))
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
    assert path.read_bytes() == b"precious"


def test_nothing_appears_before_the_end(tmp_path):
    """Mutation: the file has its name from the start. Beside it, so that a rename is enough."""
    seen = []

    def watching():
        for image in images(2):
            seen.append(sorted(file.name for file in tmp_path.iterdir()))
            yield image

    write_ometiff(tmp_path / "a.tif", watching(), (2, 20, 23))
    assert len(seen) == 2
    for names in seen:
        assert len(names) == 1 and names[0].startswith(".a.tif.") and names[0].endswith(".tmp")
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_a_full_disk_is_a_fault_in_one_sentence(tmp_path, monkeypatch):
    """Mutation: the OSError escapes, or what was written stays."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("device.ometiff.os.fsync", full)
    with pytest.raises(WriteError, match="No space left") as caught:
        write_ometiff(tmp_path / "a.tif", images(2), (2, 20, 23))
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_an_unreadable_source_is_not_the_disk(tmp_path):
    """Mutation: every OSError is told as one of writing."""

    def failing():
        yield from images(1)
        raise ConnectionError("the camera's cable")

    with pytest.raises(ConnectionError, match="cable"):
        write_ometiff(tmp_path / "a.tif", failing(), (5, 20, 23))


@pytest.mark.parametrize(
    ("name", "word"),
    [("no/a.tif", "does not exist"), ("folder.tif", "is a folder"), ("a.png", "not a TIFF's name")],
)
def test_paths_that_cannot_be_written(tmp_path, name, word):
    """Mutation: found out after the work was done."""
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(OutputError, match=word) as caught:
        check_output(tmp_path / name)
    assert caught.value.exit_code == 2


def test_a_path_that_can_be_written(tmp_path, monkeypatch):
    """Mutation: a bare name has no folder, or an existing file is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tif").touch()

    check_output(Path("a.tif"))
    check_output(tmp_path / "b.TIFF")
