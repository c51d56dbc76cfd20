"""The command line: ``learn2sofi run | reconstruct | benchmark | config``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from device import capture_cli
from device.camera import Camera, CameraError
from device.errors import FaultError, Learn2sofiError, UserError
from device.sampling import AIRY_SIGMA
from device.settings import Settings

if TYPE_CHECKING:
    from device.pipeline import Pipeline

log = logging.getLogger(__name__)

DEMO_STACK = Path(__file__).resolve().with_name("demo.ome.tif")
_INTERRUPTED = 130
_STOP_TIMEOUT_S = 1.0


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence, like that of everything else."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; expected what `{self.prog} --help` lists; correct the command")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default is those of the process.

    Returns
    -------
    int
        The exit code: 0, 1 for a fault, 2 for bad input.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if argv is None and not debug:
        sys.excepthook = _one_sentence
        threading.excepthook = _log_thread_fault
    # Before anything else, as the daemon may be told to stop while it still starts.
    with _Stopper() if _command_of(arguments) == "run" else nullcontext() as stopper:
        return _do(arguments, debug, stopper)
    return 0  # it was


def _command_of(arguments: Sequence[str]) -> str | None:
    """Find the command's name: no option that may stand before it has a value."""
    return next((text for text in arguments if not text.startswith("-")), None)


def _do(arguments: Sequence[str], debug: bool, stopper: _Stopper | None) -> int:
    try:
        options = _parser().parse_args(arguments, argparse.Namespace(stopper=stopper))
        _set_up_logging("debug" if debug else "info")
        options.command(options)
        sys.stdout.flush()  # to a pipe, this is where its reader turns out to have left
    except (Learn2sofiError, CameraError) as error:
        _complain(error, debug)
        return getattr(error, "exit_code", FaultError.exit_code)
    except KeyboardInterrupt as interrupt:
        sys.stderr.write("; ".join(["learn2sofi: interrupted", *interrupt.args]) + "\n")
        return _INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
    return 0


def _complain(error: Exception, debug: bool) -> None:
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    sys.stderr.write(f"learn2sofi: {error}\n")


def _one_sentence(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report a fault of ours; Python then ends with exit code 1."""
    sys.stderr.write(
        f"learn2sofi: internal fault ({kind.__name__}: {error}); this was not expected; "
        "run again with --debug and report what it shows\n"
    )


def _log_thread_fault(fault: threading.ExceptHookArgs) -> None:
    """Report in one line what a thread died of; what follows is the main thread's to decide."""
    name = fault.thread.name if fault.thread else "unknown"
    log.error("the %s thread died (%s: %s)", name, fault.exc_type.__name__, fault.exc_value)


def _give_up_stdout() -> None:
    """Let what is still to be written go nowhere: who read it, such as `head`, has enough."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _set_up_logging(level: str) -> None:
    # To stderr: stdout is for what a command has to say.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our sentence says it once


# --- the commands' options ------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="learn2sofi", description="Live super-resolution on a Raspberry Pi.")
    parser.add_argument("--version", action="version", version=version("learn2sofi"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _Parser(add_help=False)
    # Before the command or behind it: what stands before is not to be set back by a default.
    for place, default in ((parser, False), (common, argparse.SUPPRESS)):
        place.add_argument(
            "--debug", action="store_true", default=default, help="log everything; show tracebacks"
        )
    _add_run(commands.add_parser("run", parents=[common], help="serve the live page"))
    _add_reconstruct(
        commands.add_parser("reconstruct", parents=[common], help="reconstruct a recorded stack")
    )
    _add_benchmark(
        commands.add_parser("benchmark", parents=[common], help="time the model's forms here")
    )
    config = commands.add_parser(
        "config", parents=[common], help="show every setting and where it came from"
    )
    _add_settings(config)
    config.set_defaults(command=_config)
    capture_cli.add_commands(commands, common, _add_settings, _settings, _camera)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that override settings; each is named after its setting."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML)")
    parser.add_argument("--camera", metavar="CAMERA", help="demo, replay:PATH or picamera2")
    parser.add_argument("--fps", metavar="N", help="frame rate of a stack or the camera")
    parser.add_argument("--mode", metavar="stream|window", help="kind of reconstruction")
    parser.add_argument("--model", metavar="FILE", help="model file (.tflite)")
    parser.add_argument("--threads", metavar="N", help="threads of the model's runtime")
    parser.add_argument("--runtime", metavar="NAME", help="auto, ai-edge-litert or tflite-runtime")
    parser.add_argument("--host", metavar="ADDR", help="address to serve at")
    parser.add_argument("--port", metavar="N", help="port to serve at, 0 for any")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser)
    parser.add_argument("--once", action="store_true", help="end with the end of the stack")
    parser.set_defaults(command=_run)


def _add_reconstruct(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="TIFF stack or video")
    parser.add_argument("target", type=Path, metavar="OUT.tif", help="float32 OME-TIFF to write")
    parser.add_argument(
        "--mode", choices=("window", "stream"), default="window",
        help="window: of 30 frames each, a little better; stream: every frame",
    )  # fmt: skip
    parser.add_argument("--every", type=int, metavar="N", help="window: an image every N frames")
    parser.add_argument("--frames", type=_frames, default=(None, None), metavar="A:B")
    parser.add_argument("--roi", type=_roi, metavar="Y,X,H,W", help="region in px")
    parser.add_argument("--model", type=Path, metavar="FILE", help="model file (.tflite)")
    parser.add_argument(
        "--error",
        action="store_true",
        help="add a channel: how far each pixel may be off, in counts; 68 %% of such pixels are "
        "off by less",
    )
    optics = parser.add_argument_group("optics, for models that ask for the PSF's width")
    optics.add_argument("--psf-sigma-px", type=_positive, metavar="S", help="sigma of the PSF")
    optics.add_argument("--na", type=_positive, metavar="NA", help="numerical aperture")
    optics.add_argument("--wavelength-nm", type=_positive, metavar="L", help="of the emission")
    optics.add_argument("--pixel-nm", type=_positive, metavar="P", help="in the sample plane")
    parser.set_defaults(command=_reconstruct)


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="FILE", help="a form of the model (.tflite)")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="height and width")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the runtime")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.set_defaults(command=_benchmark)


def _frames(text: str) -> tuple[int | None, int | None]:
    first, colon, end = text.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with whole numbers from 0")
    return int(first) if first else None, int(end) if end else None


def _roi(text: str) -> tuple[int, int, int, int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not Y,X,H,W with whole numbers from 0")
    top, left, height, width = map(int, parts)
    return top, left, height, width


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


# --- config ---------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace, **more: object) -> Settings:
    given = {name: getattr(options, name) for name in Settings.model_fields if name in options}
    return Settings.load(options.config, **{**given, **more})


def _config(options: argparse.Namespace) -> None:
    settings = _settings(options)
    for name, value in settings.model_dump(mode="json").items():
        shown = "" if value is None else json.dumps(value)
        sys.stdout.write(f"{name:<15} {shown:<30} {settings.origin(name)}\n")


# --- benchmark ------------------------------------------------------------------------------------


def _benchmark(options: argparse.Namespace) -> None:
    from device.benchmark import benchmark
    from device.files import write_text

    if options.size < 16 or options.threads < 1:
        raise UserError("--size is from 16 up and --threads from 1 up; give larger numbers")
    figures = benchmark(options.model, (options.size, options.size), options.threads)
    text = json.dumps(figures, indent=2) + "\n"
    sys.stdout.write(text)
    if options.json:
        try:
            write_text(options.json, text)
        except OSError as error:
            raise UserError(
                f"{options.json} cannot be written ({error.strerror}); expected a file in a folder "
                "that exists; name another with --json"
            ) from error


# --- reconstruct ----------------------------------------------------------------------------------


def _reconstruct(options: argparse.Namespace) -> None:
    # Imported here, so that `config` and a misspelt command answer at once.
    from device.offline import Job, reconstruct_file

    if options.every is not None and options.mode == "stream":
        raise UserError(
            "--every is for windows, and a stream has an image for every frame; expected one or "
            "the other; leave out --every or --mode stream"
        )
    job = Job(
        source=options.source,
        target=options.target,
        mode=options.mode,
        every=options.every,
        frames=options.frames,
        roi=options.roi,
        model=options.model,
        psf_sigma_px=_psf_sigma_px(options),
        pixel_size_um=options.pixel_nm and options.pixel_nm / 1000,
        error=options.error,
    )
    # SIGTERM ends like Ctrl-C does: by an exception, so that nothing half-written stays.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        reconstruct_file(job)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing was left behind") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _psf_sigma_px(options: argparse.Namespace) -> float | None:
    """Take the PSF's width in px as given, or from the optics.

    The Gaussian closest to a widefield PSF has sigma = 0.21 wavelength / NA (Zhang, Zerubia
    and Olivo-Marin, Applied Optics 46, 2007).
    """
    optics = (options.na, options.wavelength_nm, options.pixel_nm)
    given = [value for value in optics if value is not None]
    if options.psf_sigma_px is not None and (options.na or options.wavelength_nm):
        raise UserError(
            "--psf-sigma-px and --na, --wavelength-nm say the same twice; expected one of the two "
            "ways; leave one out"
        )
    if (options.na or options.wavelength_nm) and len(given) < len(optics):
        raise UserError(
            "the PSF's width follows from --na, --wavelength-nm and --pixel-nm together; expected "
            "all three; add what is missing, or give --psf-sigma-px"
        )
    if options.na is None:
        return options.psf_sigma_px
    return AIRY_SIGMA * options.wavelength_nm / options.na / options.pixel_nm


# --- run ------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> None:
    settings = _settings(options, loop=False if options.once else None)
    if not options.debug:
        _set_up_logging(settings.log_level)
    _serve(settings, options.stopper, once=options.once)


class _Stopped(BaseException):
    """The daemon was told to stop while it was starting."""


class _Stopper:
    """Turns SIGTERM and SIGINT into an event, and before `wait` into the end of the start."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._raises = True

    def wait(self) -> None:
        """Have a signal set the event and do no more: from now on somebody looks at it."""
        self._raises = False

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.event.is_set():
            log.info("stopping on %s", signal.Signals(number).name)
        self.event.set()
        if self._raises:
            raise _Stopped

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._raises = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is _Stopped


def _serve(settings: Settings, stopper: _Stopper, once: bool) -> None:
    from device.heartbeat import Heartbeat, Notifier
    from device.microscope import Microscope
    from device.model import load_step
    from device.pipeline import Pipeline
    from device.recorder import Recordings
    from device.server import bind, create_app, serve

    token = _token(settings)
    with bind(settings.host, settings.port) as listening:  # in use: told before the camera opens
        camera = _camera(settings)
        microscope = Microscope.of(settings)
        step = load_step(settings.model, settings.threads, settings.runtime)
        prepare = partial(microscope.prepare, step.manifest.psf_sigma_px)
        try:
            pipeline = Pipeline(
                camera, step, settings.mode, prepare=prepare, psf_sigma_px=settings.psf_sigma_px
            )
        except ValueError as error:
            origin = settings.origin("psf_sigma_px")
            raise UserError(f"setting psf_sigma_px (from {origin}): {error}") from error
        recordings = Recordings(pipeline, settings.recordings, microscope)
        heartbeat = Heartbeat(pipeline, Notifier.from_environment())

        def on_ready(address: str) -> None:
            _say_ready(address)
            heartbeat.ready(address)

        stopper.wait()
        pipeline.start()
        try:
            threading.Thread(
                target=_stop_at_end, args=(pipeline, stopper.event, once), name="end", daemon=True
            ).start()
            app = create_app(pipeline, settings.host, token, recordings)
            serve(app, listening, stopper.event, on_ready, heartbeat.beat)
            _raise_what_ended(pipeline, once)
        finally:
            with heartbeat.stopping():
                recordings.stop()
            pipeline.stop(_STOP_TIMEOUT_S)


def _token(settings: Settings) -> str | None:
    """Give the token that guards the page, or None where only this machine can reach it."""
    from device.access import is_loopback, read_token

    if is_loopback(settings.host) and not settings.require_token:
        return None
    if settings.token_file is None:
        cause = "host" if not is_loopback(settings.host) else "require_token"
        raise UserError(
            f"setting {cause} (from {settings.origin(cause)}) asks for an access token and there "
            "is none; expected a file with one; set token_file, or listen on 127.0.0.1"
        )
    return read_token(settings.token_file)


def _stop_at_end(pipeline: Pipeline, stop: threading.Event, once: bool) -> None:
    """Wait for the end; without `once` only a fault stops the daemon, and the page stays."""
    pipeline.wait_ended()
    if once or pipeline.fault():
        stop.set()


def _raise_what_ended(pipeline: Pipeline, once: bool) -> None:
    """Turn the end into an exit code: a fault 1, a recording that could not be played through 2."""
    if fault := pipeline.fault():
        raise FaultError(
            f"{fault}; this was not expected; run again with --debug and report what it shows"
        )
    state = pipeline.state()
    if once and state["ended"] and state["error"]:
        raise UserError(state["error"])


def _say_ready(address: str) -> None:
    sys.stdout.write(f"ready {address}\n")
    sys.stdout.flush()  # who started us may read a pipe


def _camera(settings: Settings) -> Camera:
    """Make the camera; a recording that cannot be played is refused now, not shown later."""
    from device.replay import ReplayCamera
    from device.stack import open_stack

    if settings.camera == "picamera2":
        from device.picamera import PiCamera, capture_of

        return PiCamera(capture_of(settings))
    kind, _, path = settings.camera.partition(":")
    if kind == "demo" and not path:
        path = str(DEMO_STACK)
    elif kind != "replay" or not path:
        raise UserError(
            f"camera '{settings.camera}' (from {settings.origin('camera')}) is not known; "
            "expected demo, replay:PATH or picamera2; correct it"
        )
    open_stack(path).close()
    return ReplayCamera(path, settings.fps, settings.loop)
