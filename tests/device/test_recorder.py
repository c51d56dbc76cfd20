"""Recordings: every frame, exactly, with its time, exposure and gain; whole or not at all."""

from __future__ import annotations

import re
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from device import recorder as recorder_module
from device.calibration import Calibration
from device.camera import Frame
from device.errors import UserError
from device.microscope import Microscope
from device.ometiff import OutputError
from device.recorder import Recorder, RecordingError, Recordings
from device.replay import ReplayCamera

RNG = np.random.default_rng(4)


def _frame(index: int, dtype: str = "uint16", exposure_us: float | None = 1000.0) -> Frame:
    image = RNG.integers(0, 255, (20, 31)).astype(dtype)
    gain = None if exposure_us is None else 1 + index / 8
    digital_gain = gain and gain / 4
    return Frame(image, 10**15 + index * 8_333_333, index, exposure_us, gain, digital_gain)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_pixels_and_metadata_are_exact(tmp_path, dtype):
    """Mutations: a type converted; a frame lost, doubled or out of order; times rounded."""
    path = tmp_path / "raw.ome.tif"
    frames = [_frame(index, dtype) for index in range(50)]
    annotations = {"na": 1.2, "none": None}
    recorder = Recorder(path, pixel_size_um=0.1, annotations=annotations, interval_s=1 / 120)
    assert all(recorder.add(frame) for frame in frames)
    recorder.finish()
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.ome_metadata
        assert (tiff.is_bigtiff, tiff.series[0].axes) == (True, "TYX")
        np.testing.assert_array_equal(tiff.asarray(), [frame.array for frame in frames])
    notes = dict(re.findall(r'<M K="([^"]+)">([^<]*)</M>', xml))
    assert notes["timestamps_ns"].split() == [str(frame.timestamp_ns) for frame in frames]
    assert [float(gain) for gain in notes["gains"].split()] == [frame.gain for frame in frames]
    digital = [float(gain) for gain in notes["digital_gains"].split()]
    assert digital == [frame.digital_gain for frame in frames]
    assert notes["na"] == "1.2"
    assert notes["frames_missed"] == "0"
    assert "none" not in notes
    deltas_s = [float(value) for value in re.findall(r'DeltaT="([^"]+)"', xml)]
    np.testing.assert_allclose(deltas_s, np.arange(50) * 8_333_333e-9, atol=1e-12)
    assert re.findall(r'ExposureTime="([^"]+)"', xml) == ["0.001"] * 50
    assert 'PhysicalSizeX="0.1"' in xml
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_the_camera_missed_is_told(tmp_path):
    """Mutations: gaps not counted, or not kept with the file: then a hole looks like none."""
    path = tmp_path / "raw.tif"
    recorder = Recorder(path, interval_s=8_333_333e-9)
    assert all(recorder.add(_frame(slot)) for slot in (0, 1, 4, 5, 7))
    recorder.finish()
    assert (recorder.state()["frames"], recorder.state()["missed"]) == (5, 3)
    assert '<M K="frames_missed">3</M>' in tifffile.TiffFile(path).ome_metadata


def test_unknown_exposure_is_left_out(tmp_path):
    """Mutation: a made-up exposure of 0."""
    recorder = Recorder(tmp_path / "raw.tif")
    recorder.add(_frame(0, exposure_us=None))
    recorder.finish()
    xml = tifffile.TiffFile(tmp_path / "raw.tif").ome_metadata
    assert "ExposureTime" not in xml
    assert "gains" not in xml


def test_one_frame_without_metadata_costs_the_others_nothing(tmp_path):
    """Mutations: a column dropped for one frame's sake; the others' values moved up by one."""
    path = tmp_path / "raw.tif"
    recorder = Recorder(path)
    assert all(recorder.add(_frame(n, exposure_us=None if n == 1 else 500.0)) for n in range(3))
    recorder.finish()
    xml = tifffile.TiffFile(path).ome_metadata
    assert '<M K="exposures_us">500.0 nan 500.0</M>' in xml
    assert '<M K="gains">1.0 nan 1.25</M>' in xml
    assert "ExposureTime" not in xml  # a made-up one beside the others


def test_a_disk_that_stays_behind_ends_the_recording_without_a_hole(tmp_path, monkeypatch):
    """Mutation: frames dropped in silence when too many wait."""
    gate = threading.Event()
    note = recorder_module._Ledger.add

    def slow(ledger, frame):
        gate.wait(20)
        note(ledger, frame)

    monkeypatch.setattr(recorder_module._Ledger, "add", slow)
    recorder = Recorder(tmp_path / "raw.tif", waiting_bytes=10 * 20 * 31 * 2)
    taken = sum(recorder.add(_frame(index)) for index in range(40))
    gate.set()
    with pytest.raises(RecordingError, match="disk could not keep up"):
        recorder.finish()
    assert 10 <= taken <= 11  # ten wait, one may be with the writer
    assert tifffile.imread(tmp_path / "raw.tif").shape == (taken, 20, 31)


def test_other_frames_end_the_recording(tmp_path):
    """Mutation: a region that changed on the way makes a file that cannot be read."""
    recorder = Recorder(tmp_path / "raw.tif")
    assert recorder.add(_frame(0))
    assert not recorder.add(_frame(1, "uint8"))
    assert not recorder.add(_frame(2))
    with pytest.raises(RecordingError, match="changed to uint8"):
        recorder.finish()
    assert recorder.state()["frames"] == 1


def test_nothing_is_left_behind_without_frames(tmp_path):
    """Mutation: an empty or half-written file under the name that was asked for."""
    recorder = Recorder(tmp_path / "raw.tif")
    with pytest.raises(RecordingError, match="no frame came"):
        recorder.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_not_replaced(tmp_path):
    """Mutations: a recording over another; one that can never be told to."""
    path = tmp_path / "raw.tif"
    path.write_bytes(b"measured")
    with pytest.raises(OutputError, match="is there already"):
        Recorder(path)
    assert path.read_bytes() == b"measured"
    recorder = Recorder(path, overwrite=True)
    recorder.add(_frame(0))
    recorder.finish()
    assert tifffile.imread(path).shape == (20, 31)


def test_a_recording_of_the_daemon_replaces_none(tmp_path, monkeypatch):
    """Mutation: the daemon's second recording over its first, by a clock that was set back."""

    class Standing(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, tzinfo=tz)

    monkeypatch.setattr(recorder_module, "datetime", Standing)
    added: list = []
    pipeline = SimpleNamespace(
        camera=ReplayCamera("never opened", 30.0),
        tap=lambda add: added.append(add) or (lambda: None),
    )
    recordings = Recordings(pipeline, tmp_path, Microscope(None, Calibration()))
    first = Path(recordings.start()["file"])
    added[0](_frame(0))
    assert recordings.stop()["error"] is None
    content = first.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        recordings.start()
    assert list(tmp_path.iterdir()) == [first]
    assert first.read_bytes() == content


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path):
    """Mutation: refused only when the first frame has come."""
    with pytest.raises(OutputError, match="does not exist"):
        Recorder(tmp_path / "missing" / "raw.tif")
