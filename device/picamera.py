"""The Raspberry Pi's camera through picamera2; the only file that imports it.

Frames are taken in picamera2's callback, which sees every one of them, and not by its jobs, which
see one when somebody asks. The callback does no more than hold a request; the reading thread copies
the image out and gives the buffer back. If that comes late, the buffers run out, the sensor's
frames fall away, and their timestamps show it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from device.camera import CameraError, CameraTimeout, Frame
from device.controls import ControlError, Limits, Readings, refuse_outside
from device.pixel_format import Region, StreamFormat, Transfer, parse_region

if TYPE_CHECKING:
    from device.settings import Settings

log = logging.getLogger(__name__)

BUFFERS = 8
_HELD = BUFFERS - 3  # the sensor, the driver and picamera2 work on the others
_CLOSE_S = 3.0
_MOST_DISTORTION = 0.01  # of a pixel's sides: sizes are whole and even
_MAIN_SIZE = (320, 240)  # picamera2 wants a processed stream beside the raw one: a small one

# What picamera2, libcamera's bindings and the kernel raise when a camera fails.
_FAULTS = (RuntimeError, OSError, ValueError, IndexError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Capture:
    """What is asked of the camera; what it gives is read back.

    Attributes
    ----------
    fps : float
        Frames per second.
    size : tuple of int
        Width and height of the stream in px.
    stream : str
        ``raw``: the sensor's own values; ``luma``: the processed stream; ``auto``: raw where the
        camera has it.
    exposure_us : float or None
        Exposure time in us; None leaves it to the camera.
    gain : float or None
        Analogue gain; None leaves it to the camera.
    region : Region or None
        Part of the image that is taken, in px of the frames; None is all.
    sensor_crop : Region or None
        Part of the sensor that the image processor scales to `size`, in px of the sensor; None is
        all of the mode. A luma stream's alone.
    transfer : str
        Transfer curve that a luma stream has.
    tuning : str or None
        Tuning file for the Pi's image processor; None is the sensor's own.
    number : int
        Which camera, from 0.
    """

    fps: float = 30.0
    size: tuple[int, int] = (640, 480)
    stream: Literal["auto", "raw", "luma"] = "auto"
    exposure_us: float | None = 10_000.0
    gain: float | None = 1.0
    region: Region | None = None
    sensor_crop: Region | None = None
    transfer: Transfer = "bt709"
    tuning: str | None = None
    number: int = 0


def capture_of(settings: Settings) -> Capture:
    """Collect what the settings ask of the camera."""
    width, height = settings.camera_size.split("x")
    return Capture(
        fps=settings.fps,
        size=(int(width), int(height)),
        stream=settings.camera_stream,
        exposure_us=settings.exposure_us,
        gain=settings.gain,
        region=parse_region(settings.roi),
        sensor_crop=parse_region(settings.sensor_crop),
        transfer=settings.transfer,
        tuning=None if settings.tuning is None else str(settings.tuning),
        number=settings.camera_number,
    )


class PiCamera:
    """A camera that picamera2 knows.

    Parameters
    ----------
    capture : Capture, optional
        What is asked of it.
    """

    name = "picamera2"

    def __init__(self, capture: Capture | None = None) -> None:
        self._wanted = capture or Capture()
        self._reading = threading.Lock()
        self._changing = threading.Lock()
        self._completed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._picam2: Any = None
        self._format: StreamFormat | None = None
        self._region = Region(0, 0, 0, 0)
        self._field: Region | None = None
        self._model: str | None = None
        self._readings = Readings()
        self._limits: dict[str, Limits] = {}
        self._delivered = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every frame in px; known after `open`."""
        return self._region.height, self._region.width

    @property
    def frame_interval_s(self) -> float:
        """Nominal time between frames in s."""
        return 1.0 / self._wanted.fps

    @property
    def px_per_pixel(self) -> float:
        """Sensor px along a side of a frame's pixel; known after `open`.

        The mode's binning or the image processor's scaling, where the camera tells it, and 2 for
        the quads of a Bayer pattern.
        """
        if self._format is None:
            return 1.0
        scaling = self._field.width / self._format.width if self._field else 1.0
        return scaling * self._format.px_per_pixel

    def facts(self) -> dict[str, object]:
        """Tell how the stream came about, for the metadata of recordings; known after `open`."""
        if self._format is None:
            return {}
        return {
            "sensor": self._model,
            "pixel_format": self._format.pixel_format,
            "transfer_undone": None if self._format.is_raw else self._wanted.transfer,
            "region": str(self._region),
            "sensor_region": None if self._field is None else str(self._field),
            "sensor_px_per_pixel": self.px_per_pixel,
        }

    # --- open and close --------------------------------------------------------------------------

    def open(self) -> None:
        """Configure the camera, once, and start it.

        Raises
        ------
        CameraError
            There is no camera, it is busy, or it cannot do what is asked.
        """
        self.close()
        with self._changing:
            picam2 = self._picam2 = _acquire(self._wanted)
            try:
                self._start(picam2)
            except (CameraError, ControlError) as error:
                self._release()
                raise CameraError(str(error)) from error
            except _FAULTS as error:
                self._release()
                raise CameraError(_sentence("could not be started", error)) from error

    def _start(self, picam2: Any) -> None:
        picam2.configure(_configuration(picam2, self._wanted))
        self._format = read_back(picam2.camera_configuration())
        self._region = _checked(self._wanted.region, self._format)
        self._limits = _limits(picam2.camera_controls)
        self._refuse_unreachable(self._wanted)
        _refuse_crop(self._wanted.sensor_crop, self._format, picam2.camera_controls)
        self._field = _field(self._wanted, self._format, picam2.camera_controls)
        self._model = picam2.camera_properties.get("Model")
        picam2.set_controls(_control_values(self._wanted, picam2.camera_controls))
        self._readings = Readings()
        self._delivered = 0
        self._completed = queue.SimpleQueue()
        picam2.pre_callback = _Taker(self._completed)
        picam2.start()
        log.info(
            "camera: %s %d x %d px, frames of %d x %d px at %g a second",
            *(self._format.pixel_format, self._format.width, self._format.height),
            *(self._region.width, self._region.height, self._wanted.fps),
        )

    def close(self) -> None:
        """Release the camera. Never raises."""
        with self._reading, self._changing:  # no buffer is pulled away from under a copy
            self._release()

    def _release(self) -> None:
        picam2, self._picam2 = self._picam2, None
        if picam2 is None:
            return
        taker = getattr(picam2, "pre_callback", None)
        if isinstance(taker, _Taker):
            taker.end()
        # picamera2 waits for its own thread; where that has died, it would wait for ever.
        closer = threading.Thread(target=_close_quietly, args=(picam2,), daemon=True)
        closer.start()
        closer.join(_CLOSE_S)
        if closer.is_alive():
            log.warning("camera: did not close within %.0f s; left behind", _CLOSE_S)

    # --- read ------------------------------------------------------------------------------------

    def read(self, timeout_s: float) -> Frame:
        """Wait for the next frame.

        Parameters
        ----------
        timeout_s : float
            Longest time to wait in s.

        Returns
        -------
        Frame
            With the sensor's timestamp, exposure and analogue gain of that very frame.

        Raises
        ------
        CameraTimeout
            No frame came.
        CameraError
            The camera is closed, or gave what cannot be read.
        """
        with self._reading:
            if self._picam2 is None or self._format is None:
                raise CameraError("the camera is closed; expected it open; open it before reading")
            try:
                request = self._completed.get(timeout=timeout_s)
            except queue.Empty:
                raise CameraTimeout(
                    f"the camera gave no frame within {timeout_s:g} s; expected one every "
                    f"{self.frame_interval_s:g} s; look at its cable and at `learn2sofi check`"
                ) from None
            try:
                return self._frame(request)
            except _FAULTS as error:
                raise CameraError(_sentence("gave a frame that cannot be read", error)) from error
            finally:
                request.release()

    def _frame(self, request: Any) -> Frame:
        """Take image and metadata out of one request: they belong to each other."""
        assert self._format is not None
        metadata = request.get_metadata()
        if "SensorTimestamp" not in metadata:
            raise CameraError(
                "the camera gave a frame without SensorTimestamp; expected one with every frame, "
                "as gaps are counted by it; update libcamera and picamera2"
            )
        stream = "raw" if self._format.is_raw else "main"
        with _mapped(request, stream) as mapped:
            array = self._format.decode(mapped.array, self._region, self._wanted.transfer)
        self._readings.note(metadata)
        frame = Frame(
            array,
            int(metadata["SensorTimestamp"]),
            self._delivered,
            _number(metadata.get("ExposureTime")),
            _number(metadata.get("AnalogueGain")),
            _number(metadata.get("DigitalGain")),
        )
        self._delivered += 1
        return frame

    # --- controls --------------------------------------------------------------------------------

    def controls(self) -> dict[str, dict[str, Any]]:
        """Tell each control: what was wanted, what the last frame had, and what the camera takes.

        Returns
        -------
        dict
            By name (``exposure_us``, ``gain``, ``fps``, ``roi``, and ``sensor_crop`` where there
            is one): ``wanted``, ``actual`` (None where the camera does not tell), ``min``, ``max``
            (None where it offers no such control) and ``drifted``.
        """
        wanted = {
            "exposure_us": self._wanted.exposure_us,
            "gain": self._wanted.gain,
            "fps": self._wanted.fps,
        }
        told = {
            name: self._readings.compare(name, value, self._limits.get(name))
            for name, value in wanted.items()
        }
        limits = {"min": None, "max": None, "drifted": False}
        region = {"wanted": str(self._wanted.region or ""), "actual": str(self._region)}
        told["roi"] = {**region, **limits}
        if self._field is not None and self._format is not None and not self._format.is_raw:
            crop = self._readings.crop()
            wanted_crop = self._wanted.sensor_crop
            told["sensor_crop"] = {
                **limits,
                "wanted": str(wanted_crop or ""),
                "actual": None if crop is None else str(crop),
                "drifted": bool(wanted_crop and crop and not crop.is_near(wanted_crop)),
            }
        return told

    def set_controls(self, changes: Mapping[str, Any]) -> bool:
        """Change controls.

        Parameters
        ----------
        changes : mapping
            ``exposure_us``, ``gain``, ``fps``, ``roi`` or ``sensor_crop`` (each a `Region` or
            None) with the new value.

        Returns
        -------
        bool
            True if the camera must be opened anew for it: rate and regions are configured.

        Raises
        ------
        ControlError
            The camera offers no such control, or not this value.
        """
        names = {"roi": "region"}
        wanted = replace(self._wanted, **{names.get(k, k): v for k, v in changes.items()})
        with self._changing:
            self._refuse_unoffered(changes)
            self._refuse_unreachable(wanted)
            if self._format is not None:
                _checked(wanted.region, self._format)
            if self._picam2 is not None and self._format is not None:
                advertised = self._picam2.camera_controls
                _refuse_crop(wanted.sensor_crop, self._format, advertised)
            self._wanted = wanted
            if self._picam2 is not None:
                values = _control_values(wanted, self._picam2.camera_controls)
                self._picam2.set_controls(values)
                self._readings.expect_change()
        return bool({"fps", "roi", "sensor_crop"} & set(changes))

    def _refuse_unoffered(self, changes: Mapping[str, Any]) -> None:
        for name in {"exposure_us", "gain"} & set(changes):
            refuse_outside(name, changes[name], self._limits.get(name), must_offer=True)

    def _refuse_unreachable(self, wanted: Capture) -> None:
        for name in ("exposure_us", "gain", "fps"):
            refuse_outside(name, getattr(wanted, name), self._limits.get(name))


class _Taker:
    """picamera2's callback: holds every completed request until it is read.

    It stays in place until the camera has stopped: picamera2 looks at its callback twice for a
    frame, and fails when it has gone in between.
    """

    def __init__(self, completed: queue.SimpleQueue[Any]) -> None:
        self._completed = completed
        self._lock = threading.Lock()
        self._ended = False

    def __call__(self, request: Any) -> None:
        with self._lock:
            if self._ended or self._completed.qsize() >= _HELD:
                return  # goes back to the camera; the gap in the timestamps will tell
            request.acquire()
            self._completed.put(request)

    def end(self) -> None:
        """Hold nothing any more."""
        with self._lock:
            self._ended = True
            while not self._completed.empty():
                self._completed.get_nowait().release()


def _close_quietly(picam2: Any) -> None:
    try:
        picam2.close()
    except _FAULTS as error:
        log.warning("camera: %s", _sentence("could not be closed", error))


def _acquire(wanted: Capture) -> Any:
    try:
        from picamera2 import Picamera2
    except ImportError as error:
        raise CameraError(
            f"picamera2 cannot be loaded ({error}); expected Raspberry Pi OS's own package; "
            "`sudo apt install python3-picamera2`, and make the environment with "
            "--system-site-packages"
        ) from error
    try:
        return Picamera2(wanted.number, tuning=wanted.tuning)
    except _FAULTS as error:
        cause = error.__cause__ or error
        raise CameraError(_sentence("could not be opened", cause)) from error


def _mapped(request: Any, stream: str) -> Any:
    from picamera2 import MappedArray

    return MappedArray(request, stream, reshape=False)


def _sentence(what: str, error: BaseException) -> str:
    return (
        f"the camera {what} ({error}); expected a camera that is connected, enabled and free; "
        "`learn2sofi check` says what is wrong"
    )


def _configuration(picam2: Any, wanted: Capture) -> dict[str, Any]:
    """Ask for a stream; unpacked, as the Pi 5's packed one is compressed with losses."""
    sensor_format = unpacked(str(picam2.sensor_format))
    raw_possible = sensor_format not in ("NV12", "YUV420", "YUYV", "MJPEG")
    size = wanted.size
    common: dict[str, Any] = {"buffer_count": BUFFERS, "queue": False}
    if wanted.stream == "luma" or (wanted.stream == "auto" and not raw_possible):
        main = {"size": size, "format": "YUV420"}
        return picam2.create_video_configuration(main=main, raw=None, **common)
    if not raw_possible:
        raise CameraError(
            "camera_stream is raw, which this camera does not have; expected luma or auto; "
            "correct it"
        )
    main = {"size": _MAIN_SIZE, "format": "YUV420"}
    raw = {"size": size, "format": sensor_format}
    return picam2.create_video_configuration(main=main, raw=raw, **common)


def unpacked(sensor_format: str) -> str:
    """Name the unpacked format that holds what a packed or compressed one does.

    Parameters
    ----------
    sensor_format : str
        libcamera's name, such as ``SRGGB10_CSI2P`` or ``MONO_PISP_COMP1``.
    """
    name, _, packing = sensor_format.partition("_")
    if packing != "PISP_COMP1":
        return name
    return "R16" if name == "MONO" else f"S{name}16"


def read_back(configuration: Mapping[str, Any]) -> StreamFormat:
    """Read what the camera will deliver; it need not be what was asked for.

    Parameters
    ----------
    configuration : mapping
        picamera2's, after `configure`.

    Returns
    -------
    StreamFormat
        Of the raw stream where there is one, else of the processed one.

    Raises
    ------
    CameraError
        It is none that can be read.
    """
    stream = configuration.get("raw") or configuration["main"]
    sensor = configuration.get("sensor") or {}
    width, height = stream["size"]
    return StreamFormat(
        str(stream["format"]), width, height, stream["stride"], sensor.get("bit_depth")
    )


def _checked(region: Region | None, format_: StreamFormat) -> Region:
    """Refuse a region that is not all within the image."""
    if region is None:
        return format_.whole()
    height, width = format_.shape
    if not region.is_within(format_.whole()):
        raise CameraError(
            f"roi is {region}, but the camera's images have {height} x {width} px; expected "
            "Y,X,H,W within them; correct it"
        )
    return region


def _refuse_crop(crop: Region | None, format_: StreamFormat, advertised: Mapping[str, Any]) -> None:
    """Refuse a part of the sensor that the image processor cannot take, or would distort."""
    if crop is None:
        return
    if format_.is_raw or "ScalerCrop" not in advertised:
        raise ControlError(
            "sensor_crop cannot be set: the image processor crops luma streams alone, of cameras "
            "that offer ScalerCrop; expected nothing; use roi, or another mode by camera_size"
        )
    most = _rectangle(advertised["ScalerCrop"][1])
    if not crop.is_within(most):
        raise ControlError(
            f"sensor_crop is {crop}, but this mode reads {most} of the sensor; expected Y,X,H,W "
            "within that; correct it"
        )
    if abs(crop.width * format_.height / (crop.height * format_.width) - 1) > _MOST_DISTORTION:
        raise ControlError(
            f"sensor_crop is {crop}, which is not shaped like the stream of {format_.width} x "
            f"{format_.height} px, so that pixels would not be square; expected the same ratio of "
            "width and height; correct it"
        )


def _field(wanted: Capture, format_: StreamFormat, advertised: Mapping[str, Any]) -> Region | None:
    """Tell which part of the sensor the stream shows, in its px; None where it is not told."""
    if "ScalerCrop" not in advertised:
        return None
    _, most, usual = advertised["ScalerCrop"]
    if format_.is_raw:
        return _rectangle(most)  # the mode's own part: raw streams are not scaled
    return wanted.sensor_crop or _rectangle(usual)


def _rectangle(rectangle: tuple[int, int, int, int]) -> Region:
    """Turn libcamera's x, y, width, height into ours."""
    left, top, width, height = rectangle
    return Region(top, left, height, width)


def _limits(advertised: Mapping[str, Any]) -> dict[str, Limits]:
    """Translate what picamera2 says of the controls into our names and units."""
    limits = {}
    for name, theirs in (("exposure_us", "ExposureTime"), ("gain", "AnalogueGain")):
        if theirs in advertised:
            limits[name] = Limits(float(advertised[theirs][0]), float(advertised[theirs][1]))
    if "FrameDurationLimits" in advertised:
        shortest_us, longest_us = advertised["FrameDurationLimits"][:2]
        limits["fps"] = Limits(1e6 / longest_us, 1e6 / shortest_us)
    return limits


def _control_values(wanted: Capture, advertised: Mapping[str, Any]) -> dict[str, Any]:
    """Give every control that the camera offers; nothing is left to automatics but on request."""
    interval_us = round(1e6 / wanted.fps)
    automatic = wanted.exposure_us is None or wanted.gain is None
    values = {
        "AeEnable": automatic,
        "AwbEnable": False,
        "NoiseReductionMode": 0,
        "Sharpness": 0.0,
        "FrameDurationLimits": (interval_us, interval_us),
        "ExposureTime": None if wanted.exposure_us is None else round(wanted.exposure_us),
        "AnalogueGain": wanted.gain,
        "ScalerCrop": None if wanted.sensor_crop is None else wanted.sensor_crop.rectangle,
    }
    return {name: v for name, v in values.items() if name in advertised and v is not None}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
