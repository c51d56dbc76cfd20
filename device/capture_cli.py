"""The commands that need no daemon: ``learn2sofi record | calibrate | check``."""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from device.camera import Camera, CameraTimeout, EndOfStream, Frame, facts_of
from device.errors import FaultError, UserError

if TYPE_CHECKING:
    from device.check import Finding
    from device.settings import Settings

CALIBRATION_FRAMES = 100
_READ_TIMEOUT_S = 0.25
_SILENCE_S = 5.0
_VERDICTS = {True: "ok   ", False: "WRONG", None: "?    "}

LoadSettings = Callable[..., "Settings"]
MakeCamera = Callable[["Settings"], Camera]


def add_commands(
    commands: Any,
    common: argparse.ArgumentParser,
    add_settings: Callable[[argparse.ArgumentParser], None],
    load_settings: LoadSettings,
    make_camera: MakeCamera,
) -> None:
    """Add the commands to the command line.

    Parameters
    ----------
    commands
        What `ArgumentParser.add_subparsers` returned.
    common : ArgumentParser
        Options that every command has.
    add_settings, load_settings, make_camera : callable
        Add the options that override settings, merge them, and make the camera they name.
    """

    def command(name: str, text: str, run: Callable[..., None]) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, parents=[common], help=text)
        add_settings(parser)
        parser.set_defaults(command=lambda o: run(o, load_settings(o), make_camera))
        return parser

    record = command("record", "record raw frames", _record)
    record.add_argument("target", type=Path, metavar="OUT.ome.tif")
    record.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    length = record.add_mutually_exclusive_group()
    length.add_argument("--frames", type=_count, metavar="N", help="number of frames")
    length.add_argument("--seconds", type=_seconds, metavar="S", help="length in s")
    calibrate = command("calibrate", "measure the dark frame or the flat field", _calibrate)
    calibrate.add_argument("kind", choices=("dark", "flat"))
    calibrate.add_argument("--frames", type=_count, default=CALIBRATION_FRAMES, metavar="N")
    calibrate.add_argument("--calibration", type=Path, metavar="FOLDER", help="where it is kept")
    check = command("check", "say what is wrong with the camera, and what to do", _check)
    check.add_argument(
        "--accuracy", action="store_true", help="check the model's images here, not the camera"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


# --- frames ---------------------------------------------------------------------------------------


@contextmanager
def _opened(camera: Camera) -> Iterator[Camera]:
    camera.open()
    try:
        yield camera
    finally:
        camera.close()


def _frames(camera: Camera) -> Iterator[Frame]:
    """Yield the frames of an open camera until it ends; a camera that stays silent is a fault."""
    patience_s = max(_SILENCE_S, 10 * camera.frame_interval_s)
    heard_s = time.monotonic()
    while True:
        try:
            yield camera.read(_READ_TIMEOUT_S)
        except EndOfStream:
            return
        except CameraTimeout:
            if time.monotonic() - heard_s > patience_s:
                raise
        else:
            heard_s = time.monotonic()


# --- record ---------------------------------------------------------------------------------------


def _record(options: argparse.Namespace, settings: Settings, make_camera: MakeCamera) -> None:
    from device.calibration import Calibration
    from device.microscope import Microscope, optics_of
    from device.recorder import Recorder

    camera = make_camera(settings)
    # The file holds frames as they are; a calibration that cannot be read is no reason not to.
    microscope = Microscope(optics_of(settings), Calibration())
    stop = _Stop()
    with _opened(camera):
        recorder = Recorder(
            options.target,
            pixel_size_um=microscope.pixel_size_um(camera),
            annotations={**facts_of(camera), **microscope.notes(camera)},
            interval_s=camera.frame_interval_s,
            overwrite=options.overwrite,
        )
        try:
            _feed(recorder.add, camera, options, stop)
        finally:
            recorder.finish()
    missed = f", {recorder.missed} missed by the camera" if recorder.missed else ""
    sys.stdout.write(f"{options.target}: {recorder.frames} frames{missed}\n")


class _Stop:
    """SIGTERM and Ctrl-C end a recording; what was recorded is kept."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, *_: object) -> None:
        self.asked = True


def _feed(
    add: Callable[[Frame], bool], camera: Camera, options: argparse.Namespace, stop: _Stop
) -> None:
    """Record until the length that was asked for, a signal, or the end."""
    began_s = time.monotonic()
    for frame in itertools.islice(_frames(camera), options.frames):
        if not add(frame) or stop.asked:
            return
        if options.seconds is not None and time.monotonic() - began_s >= options.seconds:
            return


# --- calibrate ------------------------------------------------------------------------------------


def _calibrate(options: argparse.Namespace, settings: Settings, make_camera: MakeCamera) -> None:
    from device import calibration

    folder = settings.calibration
    if folder is None:
        raise UserError(
            "there is no folder for the calibration; expected one; give --calibration FOLDER, and "
            "the same as setting calibration to have it applied"
        )
    camera = make_camera(settings)
    with _opened(camera):
        taken = itertools.islice(_frames(camera), options.frames)
        notes = {**facts_of(camera), "frames": options.frames, "kind": options.kind}
        frames = _noting_exposure(taken, notes)
        if options.kind == "dark":
            dark, hot = calibration.measure_dark(frames)
            path = calibration.save_dark(folder, dark, hot, notes)
            result = f"mean {dark.mean():.2f} ADU, {int(hot.sum())} hot pixels"
        else:
            flat = calibration.measure_flat(frames, _measured_dark(folder, camera.shape))
            path = calibration.save_flat(folder, flat, notes)
            result = f"illumination {flat.min():.2f} to {flat.max():.2f} of its mean"
    sys.stdout.write(f"{path}: {result}\n")


def _noting_exposure(frames: Iterable[Frame], notes: dict[str, object]) -> Iterator[np.ndarray]:
    """Yield the frames' images; note what the last was taken at: a dark frame is of that alone."""
    for frame in frames:
        notes |= {"exposure_us": frame.exposure_us, "gain": frame.gain}
        yield frame.array


def _measured_dark(folder: Path, shape: tuple[int, int]) -> Any:
    from device import calibration

    if not (folder / calibration.DARK_FILE).is_file():
        raise UserError(
            f"{folder}: holds no dark frame; expected one before the flat field; cover the camera "
            "and run `learn2sofi calibrate dark` first"
        )
    measured = calibration.load(folder, flat=False)
    if measured.shape != shape:
        raise calibration.CalibrationError(
            f"{folder}: the dark frame was measured at {measured.shape} px, the frames have "
            f"{shape}; expected the same for the flat field; cover the camera and run `learn2sofi "
            "calibrate dark` with these settings, or go back to those of the dark frame"
        )
    return measured


# --- check ----------------------------------------------------------------------------------------


def _check(options: argparse.Namespace, settings: Settings, make_camera: MakeCamera) -> None:
    from device.check import examine

    findings = _examine_model(settings) if options.accuracy else examine(settings, make_camera)
    for finding in findings:
        sys.stdout.write(f"{_VERDICTS[finding.good]} {finding.text}\n")
    wrong = sum(finding.good is False for finding in findings)
    if wrong:
        raise FaultError(
            f"{wrong} of {len(findings)} checks found something wrong; expected none; do what "
            "the lines marked WRONG say"
        )


def _examine_model(settings: Settings) -> list[Finding]:
    from device.golden import examine
    from device.model import load_step

    return examine(load_step(settings.model, settings.threads, settings.runtime))
