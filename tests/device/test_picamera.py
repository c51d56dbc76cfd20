"""The Pi's camera over constructed requests: what no virtual camera can show."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from device.camera import CameraError, CameraTimeout, facts_of
from device.controls import ControlError
from device.picamera import Capture, PiCamera, unpacked
from device.pipeline import _Intake
from device.pixel_format import Region

EXPOSURES = {
    "ExposureTime": (29, 1_000_000, 20_000),
    "AnalogueGain": (1.0, 10.67, 1.0),
    "FrameDurationLimits": (8_333, 1_000_000, 33_333),
    "AeEnable": (False, True, True),
    "AwbEnable": (False, True, True),
}


class Request:
    def __init__(self, buffer: np.ndarray, **metadata: object) -> None:
        self.buffer, self.metadata, self.references = buffer, metadata, 1

    def acquire(self) -> None:
        self.references += 1

    def release(self) -> None:
        assert self.references > 0
        self.references -= 1

    def get_metadata(self) -> dict[str, object]:
        return self.metadata


class MappedArray:
    """picamera2's, for a request that holds its bytes."""

    def __init__(self, request: Request, stream: str, reshape: bool = True) -> None:
        assert (stream, reshape) == ("main" if Sensor.given == "YUV420" else "raw", False)
        self.array = request.buffer

    def __enter__(self) -> MappedArray:
        return self

    def __exit__(self, *_: object) -> None:
        self.array = None


class Sensor:
    """A raw camera that adjusts what it is asked for, as libcamera does; one user at a time."""

    in_use: Sensor | None = None
    stride, given, bits = 96, "R10", 10
    controls = EXPOSURES
    camera_properties: ClassVar = {"Model": "imx477"}

    def __init__(self, number: int, tuning: str | None = None) -> None:
        if Sensor.in_use is not None:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        Sensor.in_use = self
        self.pre_callback = None
        self.configured = 0
        self.values: dict[str, object] = {}
        self.sensor_format = "SRGGB10_CSI2P"

    @property
    def camera_controls(self):
        return self.controls

    def create_video_configuration(self, **wanted):
        return wanted

    def configure(self, configuration) -> None:
        self.configured += 1
        self.asked = configuration

    def camera_configuration(self):
        stream = {"format": self.given, "size": (32, 24), "stride": self.stride}
        if self.given == "YUV420":
            return {"main": stream, "raw": None}
        return {"main": {"format": "YUV420"}, "raw": stream, "sensor": {"bit_depth": self.bits}}

    def set_controls(self, values) -> None:
        self.values.update(values)

    def start(self) -> None:
        pass

    def close(self) -> None:
        Sensor.in_use = None


@pytest.fixture(autouse=True)
def sensor(monkeypatch):
    module = SimpleNamespace(Picamera2=Sensor, MappedArray=MappedArray)
    monkeypatch.setitem(sys.modules, "picamera2", module)
    monkeypatch.setattr(Sensor, "in_use", None)
    return Sensor


def _request(slot: float = 0.0, value: int = 500, **metadata: object) -> Request:
    rows = np.full((24, 48), 0xFFFF, "<u2")  # padding of white
    rows[:, :32] = value
    stamp_ns = 10**12 + round(slot * 1e9 / 30)
    metadata = {"SensorTimestamp": stamp_ns, "ExposureTime": 9_996, "AnalogueGain": 2.0} | metadata
    metadata.setdefault("DigitalGain", 1.5)
    return Request(rows.view(np.uint8).ravel(), **metadata)


def test_image_and_metadata_are_of_one_request(sensor):
    """Mutations: metadata of another request; the request not given back; padding in the image."""
    camera = PiCamera()
    camera.open()
    requests = [_request(0, 100), _request(1, 200, ExposureTime=5_000)]
    for request in requests:
        sensor.in_use.pre_callback(request)
    first, second = camera.read(1), camera.read(1)
    assert (first.array == 100).all()
    assert (second.array == 200).all()
    assert first.array.shape == camera.shape == (24, 32)
    assert (first.exposure_us, second.exposure_us, second.gain) == (9_996, 5_000, 2.0)
    assert second.digital_gain == 1.5
    assert (first.index, second.index) == (0, 1)
    assert second.timestamp_ns - first.timestamp_ns == 33_333_333
    assert [request.references for request in requests] == [1, 1]  # picamera2's own


def test_the_format_is_read_back(sensor, monkeypatch):
    """Mutation 'format read-back': the format that was asked for is assumed.

    R10 is asked for; the camera gives 16 bit, left-justified, as the Pi 5 does.
    """
    monkeypatch.setattr(sensor, "given", "R16")
    camera = PiCamera()
    camera.open()
    assert sensor.in_use.asked["raw"]["format"] == "SRGGB10"
    sensor.in_use.pre_callback(_request(value=700 << 6))
    frame = camera.read(1)
    assert frame.array.shape == (24, 32)
    assert (frame.array == 700).all()


def test_bayer_doubles_the_pitch(sensor, monkeypatch):
    """Mutation: the sampling reckoned with the sensor's pixel where one comes of each quad."""
    monkeypatch.setattr(sensor, "given", "SRGGB10")
    camera = PiCamera()
    camera.open()
    assert (camera.shape, camera.px_per_pixel) == ((12, 16), 2)


CROPS = {**EXPOSURES, "ScalerCrop": ((0, 0, 32, 24), (8, 4, 128, 96), (8, 4, 128, 96))}


@pytest.fixture
def luma(sensor, monkeypatch):
    """A camera whose image processor scales a part of 128 x 96 px of the sensor to 32 x 24."""
    monkeypatch.setattr(sensor, "given", "YUV420")
    monkeypatch.setattr(sensor, "controls", CROPS)
    camera = PiCamera(Capture(stream="luma", size=(32, 24)))
    camera.open()
    return camera


@pytest.mark.parametrize(("given", "pitch"), [("R10", 4.0), ("SRGGB10", 8.0), ("YUV420", 4.0)])
def test_the_modes_binning_is_in_the_pitch(sensor, monkeypatch, given, pitch):
    """Mutations: binning or scaling left to the user; a Bayer quad's factor added, or lost."""
    monkeypatch.setattr(sensor, "given", given)
    monkeypatch.setattr(sensor, "controls", CROPS)
    camera = PiCamera()
    camera.open()
    assert camera.px_per_pixel == pitch
    facts = facts_of(camera)
    assert (facts["camera"], facts["sensor"], facts["pixel_format"]) == (
        *("picamera2", "imx477"),
        given,
    )
    assert facts["sensor_px_per_pixel"] == pitch
    assert facts["transfer_undone"] == ("bt709" if given == "YUV420" else None)


def test_a_part_of_the_sensor_is_scaled_to_the_stream(sensor, luma):
    """Mutations: y and x exchanged; the pitch of the whole field kept; not set again on opening."""
    assert luma.controls()["sensor_crop"]["wanted"] == ""
    assert luma.set_controls({"sensor_crop": Region(24, 40, 48, 64)}) is True
    luma.open()
    assert sensor.in_use.values["ScalerCrop"] == (40, 24, 64, 48)
    assert luma.px_per_pixel == 2.0
    sensor.in_use.pre_callback(_request(ScalerCrop=(40, 24, 64, 48)))
    luma.read(1)
    told = luma.controls()["sensor_crop"]
    assert (told["wanted"], told["actual"], told["drifted"]) == ("24,40,48,64",) * 2 + (False,)
    sensor.in_use.pre_callback(_request(ScalerCrop=(8, 4, 128, 96)))
    luma.read(1)
    assert luma.controls()["sensor_crop"]["drifted"]


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        (Region(0, 40, 48, 64), "this mode reads 4,8,96,128"),
        (Region(24, 80, 48, 64), "this mode reads 4,8,96,128"),
        (Region(24, 40, 48, 48), "would not be square"),
    ],
)
def test_a_part_that_cannot_be_is_refused(sensor, luma, crop, words):
    """Mutations: a part beyond the mode's, which libcamera clips; pixels that are not square."""
    with pytest.raises(ControlError, match=words):
        luma.set_controls({"sensor_crop": crop})
    assert "ScalerCrop" not in sensor.in_use.values


def test_a_raw_stream_has_no_such_control(sensor, monkeypatch):
    """Mutation: taken and ignored, so that the pitch is wrong."""
    monkeypatch.setattr(sensor, "controls", CROPS)
    camera = PiCamera()
    camera.open()
    assert "sensor_crop" not in camera.controls()
    with pytest.raises(ControlError, match="use roi"):
        camera.set_controls({"sensor_crop": Region(24, 40, 48, 64)})
    camera.close()
    with pytest.raises(CameraError, match="use roi"):
        PiCamera(Capture(sensor_crop=Region(24, 40, 48, 64))).open()


def test_gaps_in_the_timestamps_are_counted(sensor):
    """Mutation 'gap count': frames counted by index, which has no gaps."""
    camera = PiCamera()
    camera.open()
    intake = _Intake(camera.shape, camera.frame_interval_s)
    missed = 0
    for slot in (0, 1, 2.02, 5, 6, 9.98):  # 2 and 3 missed, with a sensor's jitter
        sensor.in_use.pre_callback(_request(slot))
        missed += intake.missed_before(camera.read(1))
    assert missed == 5


def test_reopening_releases_first(sensor):
    """Mutation 'reopened without release': a camera that is in use cannot be opened."""
    camera = PiCamera()
    camera.open()
    held = _request()
    sensor.in_use.pre_callback(held)
    camera.open()
    assert held.references == 1
    with pytest.raises(CameraTimeout):
        camera.read(0.01)
    camera.close()
    camera.close()
    assert sensor.in_use is None
    with pytest.raises(CameraError, match="closed"):
        camera.read(0.01)


def test_a_failed_opening_leaves_the_camera_free(sensor, monkeypatch):
    """Mutations: released only on success; an exception of another kind let through."""
    monkeypatch.setattr(sensor, "given", "MJPEG")
    for wanted in (Capture(), Capture(fps=500), Capture(region=Region(0, 0, 99, 99))):
        camera = PiCamera(wanted)
        with pytest.raises(CameraError):
            camera.open()
        assert sensor.in_use is None
        monkeypatch.setattr(sensor, "given", "R10")


def test_a_busy_camera_is_a_sentence(sensor):
    """Mutation: picamera2's RuntimeError let through, which would end the camera's thread."""
    sensor(0)
    with pytest.raises(CameraError, match="could not be opened .* `learn2sofi check`"):
        PiCamera().open()


def test_a_reader_that_is_late_leaves_buffers_to_the_camera(sensor):
    """Mutation: every buffer held, so that the sensor stands still."""
    camera = PiCamera()
    camera.open()
    requests = [_request(slot) for slot in range(20)]
    for request in requests:
        sensor.in_use.pre_callback(request)
    assert sum(request.references > 1 for request in requests) == 5
    assert camera.read(1).index == 0


def test_a_frame_that_cannot_be_read_is_given_back(sensor):
    """Mutation: a buffer lost with each error, until none is left."""
    camera = PiCamera()
    camera.open()
    for broken in (Request(np.zeros(10, np.uint8), SensorTimestamp=1), Request(np.zeros(10))):
        sensor.in_use.pre_callback(broken)
        with pytest.raises(CameraError):
            camera.read(1)
        assert broken.references == 1


def test_nothing_is_left_to_automatics(sensor):
    """Mutation: automatic exposure or white balance left on; a rate that floats."""
    PiCamera(Capture(fps=60, exposure_us=5_000, gain=4)).open()
    assert sensor.in_use.values == {
        "AeEnable": False,
        "AwbEnable": False,
        "ExposureTime": 5_000,
        "AnalogueGain": 4,
        "FrameDurationLimits": (16_667, 16_667),
    }
    assert sensor.in_use.configured == 1


def test_controls_are_checked_set_and_read_back(sensor):
    """Mutations: limits not kept; a refused value kept as wanted; drift not told.

    Also: told of the frames that were on their way when a value was set.
    """
    camera = PiCamera()
    camera.open()
    assert camera.set_controls({"exposure_us": 20_000}) is False
    assert sensor.in_use.values["ExposureTime"] == 20_000
    for wrong in ({"exposure_us": 5.0}, {"gain": 11.0}, {"fps": 121}, {"fps": 0.5}):
        with pytest.raises(ControlError, match="expected"):
            camera.set_controls(wrong)
    assert camera.controls()["exposure_us"] == {
        "wanted": 20_000,
        "actual": None,
        "min": 29,
        "max": 1_000_000,
        "drifted": False,
    }
    sensor.in_use.pre_callback(_request(ExposureTime=19_500))  # rows are counted: 2.5 % off
    camera.read(1)
    assert camera.controls()["exposure_us"]["actual"] == 19_500
    assert not camera.controls()["exposure_us"]["drifted"]
    for slot in range(12):
        sensor.in_use.pre_callback(_request(slot, ExposureTime=15_000))
        camera.read(1)
        assert camera.controls()["exposure_us"]["drifted"] == (slot >= 9)  # the 11th since set
    camera.set_controls({"exposure_us": 40_000})
    assert not camera.controls()["exposure_us"]["drifted"]
    assert camera.set_controls({"fps": 60}) is True
    assert camera.frame_interval_s == 1 / 60


def test_a_control_that_is_not_offered_is_refused(sensor, monkeypatch):
    """Mutation: taken and ignored. As a default it is no error: every camera would need its own."""
    monkeypatch.setattr(sensor, "controls", {})
    camera = PiCamera()
    camera.open()
    with pytest.raises(ControlError, match="offers no such control"):
        camera.set_controls({"gain": 2.0})


def test_without_picamera2_the_sentence_says_how_to_get_it(monkeypatch):
    """Mutation: an ImportError's traceback."""
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(CameraError, match="apt install python3-picamera2"):
        PiCamera().open()


@pytest.mark.parametrize(
    ("packed", "name"),
    [
        ("SRGGB10_CSI2P", "SRGGB10"),
        ("R10_CSI2P", "R10"),
        ("BGGR_PISP_COMP1", "SBGGR16"),
        ("MONO_PISP_COMP1", "R16"),
        ("SRGGB12", "SRGGB12"),
    ],
)
def test_unpacked_names(packed, name):
    """Mutation: the Pi 5's compressed format asked for, which loses information."""
    assert unpacked(packed) == name
