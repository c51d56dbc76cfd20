"""The daemon's face: live page, live images, snapshots, state, controls and metrics over HTTP.

Nothing here computes: images and numbers come from the pipeline, encodings from `device.images`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import uvicorn
from fastapi import (
    APIRouter,
    Depends,
    FastAPI,
    HTTPException,
    Query,
    Request,
    Response,
    WebSocket,
    WebSocketException,
)
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection

from device import images
from device.access import AccessGuard
from device.camera import CameraError
from device.check import Warden
from device.controls import Controllable
from device.errors import UserError
from device.feed import UNTOLD, Feed, FeedClosed, ViewName
from device.hosts import KnownHost
from device.live import MAX_MESSAGE_BYTES, serve_live
from device.metrics import make_registry
from device.pixel_format import ROI_PATTERN, parse_region

if TYPE_CHECKING:
    from device.pipeline import Pipeline, View
    from device.recorder import Recordings

logger = logging.getLogger(__name__)

WEB_FOLDER = Path(__file__).parent / "web"
_BOUNDARY = "frame"
_DRAIN_S = 0.5
_POLICY_VIOLATION = 1008


class Controls(BaseModel):
    """What can be changed while the daemon runs; what is left out stays.

    Attributes
    ----------
    mode : str
        ``stream``: a reconstruction for every frame; ``window``: of exactly the last 30 frames.
    psf_sigma_px : float or None
        Width of the PSF as the network is told it, in px after any binning; null leaves it to the
        settings.
    exposure_us : float or None
        Exposure time in us; null leaves it to the camera.
    gain : float or None
        Analogue gain; null leaves it to the camera.
    fps : float
        Frames per second; the camera is opened anew.
    roi : str
        ``Y,X,H,W`` in px of the whole image, empty for all; the camera is opened anew.
    sensor_crop : str
        ``Y,X,H,W`` in px of the sensor that a processed stream is scaled from, empty for all; the
        camera is opened anew.
    """

    model_config = ConfigDict(extra="forbid")

    mode: Literal["stream", "window"] = "stream"
    psf_sigma_px: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    exposure_us: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gain: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    fps: float = Field(default=30.0, gt=0, le=10_000, allow_inf_nan=False)
    roi: str = Field(default="", pattern=ROI_PATTERN)
    sensor_crop: str = Field(default="", pattern=ROI_PATTERN)


class RecordingRequest(BaseModel):
    """Whether raw frames are to be recorded.

    Attributes
    ----------
    recording : bool
        True begins a recording, false ends it.
    """

    model_config = ConfigDict(extra="forbid")

    recording: bool


class _Page(StaticFiles):
    """The page's files; a browser asks each time whether they have changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(
    pipeline: Pipeline,
    host: str = "localhost",
    token: str | None = None,
    recordings: Recordings | None = None,
) -> FastAPI:
    """Build the application over a pipeline, which the caller starts and stops.

    Parameters
    ----------
    pipeline : Pipeline
        Where images and numbers come from.
    host : str
        A name under which this machine is reached, beside its own; see `device.hosts`.
    token : str, optional
        What guards everything but ``/healthz``; see `device.access`. The names do not matter then:
        a browser sends the cookie to none but the name at which the token was given.
    recordings : Recordings, optional
        What ``/api/recording`` begins and ends; the caller ends the last one.

    Returns
    -------
    FastAPI
        To be given to `serve`.
    """
    app = FastAPI(
        title="Learn2SOFI",
        version=version("learn2sofi"),
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere: blank when offline
        redoc_url=None,
    )
    if token is None:
        app.add_middleware(KnownHost, name=host)
    else:
        app.add_middleware(AccessGuard, token=token)
    app.state.pipeline = pipeline
    app.state.recordings = recordings
    app.state.registry = make_registry(pipeline)
    app.include_router(_images)
    app.include_router(_numbers)
    app.add_api_route("/docs", _docs, include_in_schema=False)
    app.mount("/", _Page(directory=WEB_FOLDER, html=True), name="page")
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.feed = Feed(app.state.pipeline)
    app.state.feed.open()
    yield
    app.state.feed.close()


async def _docs() -> FileResponse:
    return FileResponse(WEB_FOLDER / "docs.html", headers={"Cache-Control": "no-cache"})


def _pipeline(connection: HTTPConnection) -> Any:
    return connection.app.state.pipeline


def _feed(connection: HTTPConnection) -> Any:
    return connection.app.state.feed


def _same_origin(connection: HTTPConnection) -> None:
    """Refuse what another site's page asks for in the name of the user's browser."""
    origin = connection.headers.get("origin")
    if origin is None or urlsplit(origin).netloc == connection.headers.get("host"):
        return
    reason = "Pages of another site may not use this microscope; open its own page."
    if connection.scope["type"] == "websocket":
        raise WebSocketException(_POLICY_VIOLATION, reason)
    raise HTTPException(403, reason)


def _open_recordings(connection: HTTPConnection) -> Any:
    recordings = connection.app.state.recordings
    if recordings is None:
        raise HTTPException(404, "This server records nothing; start it with `learn2sofi run`.")
    return recordings


_images = APIRouter(tags=["images"])
_numbers = APIRouter(tags=["state"])
_Pipeline = Annotated[Any, Depends(_pipeline)]
_Feed = Annotated[Any, Depends(_feed)]
_Recordings = Annotated[Any, Depends(_open_recordings)]
_View = Annotated[ViewName, Query(description="which image")]
_WARDEN = Warden()
_SAME_ORIGIN = [Depends(_same_origin)]


@_images.websocket("/live", dependencies=_SAME_ORIGIN)
async def _live(socket: WebSocket, feed: _Feed, view: str = "reconstruction") -> None:
    await serve_live(socket, feed, view)


@_images.get("/mjpeg", summary="Stream JPEG images", response_class=StreamingResponse)
async def _mjpeg(
    feed: _Feed, pipeline: _Pipeline, view: _View = "reconstruction"
) -> StreamingResponse:
    """Stream JPEG images, 8 bit with automatic contrast, for anything that shows an `<img>`."""
    _check_told(pipeline, view)
    media_type = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(_mjpeg_parts(feed, view), media_type=media_type, headers=headers)


async def _mjpeg_parts(feed: Feed, name: ViewName) -> AsyncIterator[bytes]:
    """Yield the parts; each ends with the next one's boundary, or browsers show it a part late."""
    yield f"--{_BOUNDARY}\r\n".encode()
    generation, sent = -1, -1
    with contextlib.suppress(FeedClosed):
        while True:
            generation = await feed.wait(generation)
            for view in await feed.latest([name]):
                if view.seq != sent:
                    sent = view.seq
                    yield _mjpeg_part(await feed.encoded(view, "jpeg"))


def _mjpeg_part(jpeg: bytes) -> bytes:
    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return head.encode() + jpeg + f"\r\n--{_BOUNDARY}\r\n".encode()


@_images.get("/snapshot.png", summary="Newest image as PNG", response_class=Response)
def _snapshot_png(pipeline: _Pipeline, view: _View = "reconstruction") -> Response:
    """Give the newest image as 16 bit greyscale PNG: value = offset + scale x pixel.

    Raw frames are exact; scale, offset and unit stand in the file's text chunks and in the headers
    Learn2SOFI-Scale, Learn2SOFI-Offset and Learn2SOFI-Unit.
    """
    image = _newest(pipeline, view)
    coded = images.code_uint16(image.array)
    texts = images.png_texts(image, coded)
    headers = {f"Learn2SOFI-{key.capitalize()}": text for key, text in texts.items()}
    return _file(images.png(coded, texts), "image/png", image, "png", headers)


@_images.get("/snapshot.tif", summary="Newest image as TIFF", response_class=Response)
def _snapshot_tif(pipeline: _Pipeline, view: _View = "reconstruction") -> Response:
    """Give the newest image as float32 TIFF in camera counts, its making in the description."""
    image = _newest(pipeline, view)
    state = pipeline.state()
    context = {name: state[name] for name in ("mode", "camera", "model", "preparation")}
    return _file(images.tiff(image, context), "image/tiff", image, "tif")


def _newest(pipeline: Pipeline, name: ViewName) -> View:
    view = pipeline.latest(name)
    if view is None:
        _check_told(pipeline, name)
        reason = f"There is no image of '{name}' yet; ask again when frames have come."
        if name == "error":
            reason = "The error is not known yet: it takes a full window of frames, and contrast."
        raise HTTPException(503, reason, headers={"Retry-After": "1"})
    return view


def _check_told(pipeline: Pipeline, name: ViewName) -> None:
    """Refuse a view that will never be there."""
    if name == "error" and not pipeline.tells_error:
        raise HTTPException(404, UNTOLD)


def _file(
    content: bytes,
    media_type: str,
    view: View,
    suffix: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    name = f"{view.view}-{view.index:06d}.{suffix}"
    own = {"Content-Disposition": f'inline; filename="{name}"', "Cache-Control": "no-store"}
    return Response(content, media_type=media_type, headers={**own, **(headers or {})})


@_numbers.get("/api/state", summary="State")
def _state(pipeline: _Pipeline) -> dict[str, Any]:
    """Tell everything that is counted and measured, in one consistent reading."""
    return {**pipeline.state(), "warnings": _WARDEN.warnings()}


@_numbers.get("/api/controls", summary="Read the controls")
def _controls(pipeline: _Pipeline) -> dict[str, Any]:
    """Tell what can be changed while running.

    The mode, the PSF's width where the model is told it, and the camera's controls where it has
    any. Each but the mode is told as wanted, as it is, and with what it takes.
    """
    camera, psf = pipeline.camera, pipeline.psf()
    told = {} if psf is None else {"psf_sigma_px": psf}
    settable = camera.controls() if isinstance(camera, Controllable) else {}
    return {"mode": pipeline.state()["mode"], **told, **settable}


@_numbers.post("/api/controls", summary="Change the controls", dependencies=_SAME_ORIGIN)
def _set_controls(pipeline: _Pipeline, controls: Controls) -> dict[str, Any]:
    """Change what is given; the reconstruction starts afresh, but not for the PSF's width."""
    changes = {name: getattr(controls, name) for name in controls.model_fields_set}
    mode = changes.pop("mode", None)
    tells_psf, psf_sigma_px = "psf_sigma_px" in changes, changes.pop("psf_sigma_px", None)
    _check_psf(pipeline, psf_sigma_px)
    if changes:
        _set_camera(pipeline, changes)
    if tells_psf:
        pipeline.set_psf(psf_sigma_px)
    if mode is not None:
        pipeline.set_mode(mode)
    logger.info("controls set: %s", controls.model_dump(exclude_unset=True))
    return _controls(pipeline)


def _check_psf(pipeline: Pipeline, sigma_px: float | None) -> None:
    """Before anything is changed, so that a refusal leaves all as it was."""
    try:
        pipeline.check_psf(sigma_px)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


def _set_camera(pipeline: Pipeline, changes: dict[str, Any]) -> None:
    camera = pipeline.camera
    if not isinstance(camera, Controllable):
        raise HTTPException(
            422,
            f"{camera.name} has no controls; expected the mode and the PSF's width alone; leave "
            "out the others.",
        )
    for name in {"roi", "sensor_crop"} & set(changes):
        changes[name] = parse_region(changes[name])
    try:
        anew = camera.set_controls(changes)
    except (UserError, CameraError) as error:
        raise HTTPException(422, str(error)) from error
    if anew:
        pipeline.reopen()
    else:
        pipeline.reset()


@_numbers.get("/api/recording", summary="Recording")
def _recording(recordings: _Recordings) -> dict[str, Any]:
    """Tell whether raw frames are being recorded, into which file, how many, and what failed."""
    state: dict[str, Any] = recordings.state()
    return state


@_numbers.post("/api/recording", summary="Begin or end a recording", dependencies=_SAME_ORIGIN)
def _set_recording(recordings: _Recordings, wanted: RecordingRequest) -> dict[str, Any]:
    """Begin or end a recording of raw frames; when it has ended, the file is whole."""
    try:
        state: dict[str, Any] = recordings.start() if wanted.recording else recordings.stop()
    except UserError as error:
        raise HTTPException(409, str(error)) from error
    return state


@_numbers.post("/api/reset", summary="Reset", status_code=204, dependencies=_SAME_ORIGIN)
def _reset(pipeline: _Pipeline) -> None:
    """Forget the buffer and what the network carries from frame to frame."""
    pipeline.reset()
    logger.info("reset")


@_numbers.get("/healthz", summary="Health")
def _healthz(pipeline: _Pipeline) -> JSONResponse:
    """Answer 200 while frames come, and 503 when none came for max(2 s, 10 frame intervals)."""
    if pipeline.healthy():
        return JSONResponse({"status": "ok"})
    age_s = pipeline.state()["last_frame_age_s"]
    status = "no frame yet" if age_s is None else f"no frame for {age_s:.1f} s"
    return JSONResponse({"status": status}, status_code=503)


@_numbers.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
def _metrics(request: Request) -> Response:
    """Give all numbers to Prometheus, in base units."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Parameters
    ----------
    host : str
        Name or address; ``0.0.0.0`` or ``::`` for every interface.
    port : int
        Port, or 0 for any that is free.

    Returns
    -------
    socket.socket
        Listening.

    Raises
    ------
    UserError
        The port is in use, or the address is not one of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        reason = error.strerror or error
        if error.errno and not isinstance(error, socket.gaierror):
            reason = os.strerror(error.errno)  # without the address, which create_server repeats
        raise UserError(
            f"Cannot listen on port {port} of {host} ({reason}): expected a free port of this "
            "machine; stop the program that uses it or choose another with --port."
        ) from error


def page_address(listening: socket.socket) -> str:
    """Return the page's address, with this machine's name where all interfaces are served."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(
    app: FastAPI,
    listening: socket.socket,
    stop: threading.Event,
    on_ready: Callable[[str], None] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> None:
    """Serve until `stop` is set; then send every client home and return.

    Signals are left to the caller, whose handler may set `stop`.

    Parameters
    ----------
    app : FastAPI
        From `create_app`.
    listening : socket.socket
        From `bind`; closed in the end.
    stop : threading.Event
        Ends the serving when set, from any thread or from a signal handler.
    on_ready : callable, optional
        Called once with the page's address, when it can be opened.
    on_tick : callable, optional
        Called from the event loop about ten times a second while it runs; must return at once.
    """
    _Server(app, listening, stop, on_ready, on_tick).run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn that tells when it is ready and goes down although images are being streamed."""

    def __init__(
        self,
        app: FastAPI,
        listening: socket.socket,
        stop: threading.Event,
        on_ready: Callable[[str], None] | None,
        on_tick: Callable[[], None] | None,
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # images hardly shrink, and it costs more than they do
            timeout_graceful_shutdown=_DRAIN_S,  # type: ignore[arg-type]  # floats work as well
        )
        super().__init__(config)
        self._feed_of = app.state
        self._address = page_address(listening)
        self._on_ready = on_ready
        self._stop = stop
        self._on_tick = on_tick

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the caller; uvicorn would take them, and raise them again later."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready(self._address)

    async def on_tick(self, counter: int) -> bool:
        if self._on_tick is not None:
            self._on_tick()
        return await super().on_tick(counter) or self._stop.is_set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed_of.feed.close()  # streams end by themselves now, instead of being waited for
        await asyncio.sleep(0)
        await super().shutdown(sockets)
