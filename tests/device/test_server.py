"""The server over the real pipeline; only the network's step is replaced by enlarging the mean."""

import asyncio
import contextlib
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from device.camera import CameraTimeout, Frame
from device.cli import main
from device.errors import UserError
from device.feed import Feed, FeedClosed
from device.images import code_uint16, live_message
from device.live import ProtocolError, parse_credit
from device.model import Manifest
from device.pipeline import Pipeline, View
from device.replay import ReplayCamera
from device.server import bind, create_app, page_address, serve

HEIGHT, WIDTH = 24, 33
VIEWS = ("raw", "mean", "std", "reconstruction")


def moving_spot(index, dtype=np.uint16):
    """One frame: a spot that goes round over a dim ground, (H, W)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    angle = index / 5
    distance2 = (y - 12 - 6 * np.sin(angle)) ** 2 + (x - 16 - 9 * np.cos(angle)) ** 2
    return (60 + 150 * np.exp(-distance2 / 8)).astype(dtype)


class SpotCamera:
    """Delivers what the test releases, and nothing else."""

    name = "spots"
    shape = (HEIGHT, WIDTH)
    frame_interval_s = 0.02

    def __init__(self, dtype=np.uint16):
        self.dtype = dtype
        self.released = threading.Semaphore(0)
        self.delivered = 0

    def open(self):
        pass

    def close(self):
        pass

    def read(self, timeout_s):
        if not self.released.acquire(timeout=timeout_s):
            raise CameraTimeout("no frame")
        index = self.delivered
        self.delivered += 1
        return Frame(moving_spot(index, self.dtype), (index + 1) * 20_000_000, index)


def spec(*shape):
    return {"shape": shape}


class EnlargingStep:
    """The manifest of a real step; the image is the mean at twice the sampling."""

    name = "enlarging"
    sha256 = "ab" * 32
    psf_width = None
    expected_error = None
    manifest = Manifest(
        format=1,
        name="learn2sofi",
        version="0.0.1",
        signature="step",
        frames=30,
        upsampling=2,
        size_multiple=2,
        inputs={"frame": spec(1, 128, 128, 1), "mean": spec(1, 128, 128, 1), "h": spec(1, 1)},
        outputs={"image": spec(1, 256, 256, 1), "h_out": spec(1, 1)},
        state={"h": "h_out"},
        normalization={
            "background_percentile": 5,
            "scale_percentile": 99.5,
            "min_contrast_sem": 3,
        },
        psf_sigma_px=(1, 2),
    )

    def resize(self, height, width):
        pass

    def zero_state(self):
        return {"h": np.zeros((1, 1), np.float32)}

    def run(self, inputs, image=True):
        enlarged = cv2.resize(inputs["mean"][0, :, :, 0], None, fx=2, fy=2)
        return {"image": enlarged[None, :, :, None], "h_out": inputs["h"]}


def wait_until(condition, what):
    """Poll; the limit only ends a test that has failed already."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


class Scope:
    """A running pipeline whose frames the test doles out one by one."""

    def __init__(self, dtype=np.uint16):
        self.camera = SpotCamera(dtype)
        self.pipeline = Pipeline(self.camera, EnlargingStep())

    def frames(self, number):
        """Release frames, each after the one before was worked off: none can be skipped."""
        for _ in range(number):
            due = self.pipeline.state()["frames_processed"] + 1
            self.camera.released.release()
            wait_until(lambda: self.pipeline.state()["frames_processed"] >= due, "a frame")  # noqa: B023


@pytest.fixture
def scope():
    scope = Scope()
    scope.pipeline.start()
    yield scope
    assert scope.pipeline.stop(5)


@pytest.fixture
def client(scope):
    with TestClient(create_app(scope.pipeline, "testserver")) as client:
        yield client


def decode(message):
    """Take a live message apart by the contract's words: header and values, (H, W)."""
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    pixels = np.frombuffer(message, "<u2", offset=4 + length)
    pixels = pixels.reshape(header["height"], header["width"])
    return header, header["offset"] + header["scale"] * pixels


# --- encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_frames_pass_exactly(dtype):
    """Catches: spreading integers over the range, which changes counts."""
    image = moving_spot(3, dtype)
    coded = code_uint16(image)
    assert (coded.scale, coded.offset) == (1, 0)
    np.testing.assert_array_equal(coded.pixels, image)


def test_float_images_lose_half_a_step_at_most():
    """Catches: cutting instead of rounding (up to a whole step), int16 range, a wrong offset."""
    image = np.random.default_rng(1).normal(-3, 50, (40, 50)).astype(np.float32)
    coded = code_uint16(image)
    step = (image.max() - image.min()) / 65535
    error = np.abs(coded.offset + coded.scale * coded.pixels.astype(float) - image).max()
    # Half a step by rounding; float32 arithmetic on values up to 250 adds below 0.1 step.
    assert 0.4 * step < error < 0.6 * step


def test_constant_and_not_finite_images_are_encoded():
    """Catches: division by the zero range; NaN cast to an arbitrary pixel or a NaN in the JSON."""
    assert code_uint16(np.full((4, 4), 7.5, np.float32)).offset == 7.5
    broken = np.array([[np.nan, 1.0], [np.inf, 2.0]], np.float32)
    header, values = decode(live_message(View("mean", broken, 1, 2, 3, 4)))
    np.testing.assert_allclose(values, [[0, 1], [0, 2]], atol=1e-4)  # range 2: a step is 3e-5
    assert np.isfinite(header["scale"])


@pytest.mark.parametrize("seq", [1, 12, 123, 1234])
def test_pixels_begin_at_a_multiple_of_four(seq):
    """Catches: an unpadded header, which a browser's Uint16Array refuses half of the time."""
    message = live_message(View("raw", moving_spot(0), seq, 5, 0, 1))
    (length,) = struct.unpack_from("<I", message)
    assert length % 4 == 0
    assert len(message) == 4 + length + 2 * HEIGHT * WIDTH


# --- snapshots -----------------------------------------------------------------------------------


def test_snapshots_say_that_there_is_no_image_yet(client):
    """Catches: a traceback (500) before the first frame."""
    answer = client.get("/snapshot.png")
    assert answer.status_code == 503
    assert "no image of 'reconstruction' yet" in answer.json()["detail"]


def test_png_of_the_raw_frame_is_exact_16_bit_grey(scope, client):
    """Catches: 8 bit or colour PNG, stretched counts, the mean under the name of raw."""
    scope.frames(3)
    answer = client.get("/snapshot.png?view=raw")
    assert answer.headers["content-type"] == "image/png"
    image = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, moving_spot(2))


def test_png_tells_its_scale(scope, client):
    """Catches: text chunks with a wrong checksum or in the wrong place; a scale that is not it."""
    scope.frames(3)
    answer = client.get("/snapshot.png")
    chunks = dict(png_texts(answer.content))
    image = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    values = float(chunks["offset"]) + float(chunks["scale"]) * image
    truth = scope.pipeline.latest("reconstruction").array
    np.testing.assert_allclose(values, truth, atol=0.01)  # range about 100: a step is 0.0015
    assert chunks["unit"] == "ADU above background"
    told = {key: answer.headers[f"learn2sofi-{key}"] for key in ("scale", "offset", "unit")}
    assert told == chunks


def png_texts(content):
    position = 8
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        body = content[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, position + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        if kind == b"tEXt":
            yield tuple(part.decode() for part in body.split(b"\0"))
        position += 12 + length


@pytest.mark.parametrize("view", VIEWS)
def test_tiff_is_float32_and_knows_its_origin(scope, client, view):
    """Catches: a rescaled TIFF, a view mixed up with another, lost metadata."""
    scope.frames(4)
    content = client.get(f"/snapshot.tif?view={view}").content
    with tifffile.TiffFile(io.BytesIO(content)) as tif:
        image, about = tif.asarray(), tif.shaped_metadata[0]
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, scope.pipeline.latest(view).array.astype(np.float32))
    assert about["view"] == view
    assert about["frames"] == (1 if view == "raw" else 4)
    assert about["model"] == {"name": "enlarging", "sha256": "ab" * 32}
    assert about["mode"] == "stream"


def test_the_error_of_a_model_that_does_not_tell_it_is_refused(scope, client):
    """Mutation: asked to come again for an image that will never be there."""
    scope.frames(4)
    for address in ("/snapshot.tif?view=error", "/snapshot.png?view=error", "/mjpeg?view=error"):
        answer = client.get(address)
        assert answer.status_code == 404
        assert "does not say how far" in answer.text
    with (
        client.websocket_connect("/live?view=reconstruction,error") as socket,
        pytest.raises(WebSocketDisconnect) as end,
    ):
        socket.receive_bytes()
    assert end.value.code == 1008
    assert "does not say how far" in end.value.reason
    assert client.get("/api/state").json()["tells_error"] is False


class Judging:
    """Says that every pixel may be off by a tenth of what it is."""

    def estimate(self, image, mean, std, psf_sigma_px):
        return image / 10


def test_an_error_is_served_as_other_views_are(scope, client, monkeypatch):
    """Mutations: a unit that is not known; the image's own pixels; said before a window is full."""
    monkeypatch.setattr(EnlargingStep, "expected_error", Judging())
    scope.frames(4)
    early = client.get("/snapshot.tif?view=error")
    assert early.status_code == 503
    assert "full window" in early.text
    scope.frames(30)
    image, error = (scope.pipeline.latest(view).array for view in ("reconstruction", "error"))
    np.testing.assert_allclose(error, image / 10, rtol=1e-5)
    with tifffile.TiffFile(io.BytesIO(client.get("/snapshot.tif?view=error").content)) as tif:
        np.testing.assert_array_equal(tif.asarray(), error)
        assert "68 %" in tif.shaped_metadata[0]["unit"]
    png = client.get("/snapshot.png?view=error")
    coded = cv2.imdecode(np.frombuffer(png.content, np.uint8), cv2.IMREAD_UNCHANGED)
    scale, offset = (float(png.headers[f"Learn2SOFI-{key}"]) for key in ("Scale", "Offset"))
    np.testing.assert_allclose(offset + scale * coded, error, atol=scale)


def test_what_takes_long_is_fetched_last():
    """Mutation: in the order asked for: what is fetched after the error is a newer image."""
    asked = []

    class Source:
        def latest(self, name):
            asked.append(name)
            return View(name, np.zeros((2, 2)), 1, 1, 1, 1)

    views = asyncio.run(Feed(Source()).latest(["error", "raw", "std", "reconstruction"]))
    assert [view.view for view in views] == ["error", "raw", "std", "reconstruction"]
    assert set(asked[:2]) == {"raw", "reconstruction"}


def test_tiff_of_a_reconstruction_tells_how_it_was_made(scope, client):
    """Catches: the scaling dropped on the way; the daemon's mode of now instead of the image's."""
    scope.frames(4)
    scope.pipeline.set_mode("window")  # from the next frame on
    with tifffile.TiffFile(io.BytesIO(client.get("/snapshot.tif").content)) as tif:
        about = tif.shaped_metadata[0]
    assert (about["mode"], about["warming"], about["gaps"]) == ("stream", True, 0)
    assert about["span_ms"] == pytest.approx(60)  # four frames, 20 ms apart
    assert client.get("/api/state").json()["span_ms"] == pytest.approx(60)
    assert about["background"] == pytest.approx(60, abs=3)  # the dim ground; the spot is far
    assert 30 < about["scale"] < 150  # the spot, which moves, so that its mean is lower
    assert about["model"]["sha256"] == "ab" * 32


def test_unknown_view_is_refused(client):
    """Catches: handing any string on to the pipeline (500)."""
    assert client.get("/snapshot.png?view=phase").status_code == 422


# --- live ----------------------------------------------------------------------------------------


def test_a_replayed_stack_arrives_exactly(tmp_path):
    """Catches: bytes in the wrong order, an image under another's header."""
    stack = np.stack([moving_spot(index) for index in range(10)])  # (T, H, W)
    tifffile.imwrite(tmp_path / "spots.tif", stack)
    pipeline = Pipeline(ReplayCamera(tmp_path / "spots.tif", fps=100), EnlargingStep())
    with (
        TestClient(create_app(pipeline, "testserver")) as client,
        client.websocket_connect("/live?view=raw") as live,
    ):
        live.send_json({"credit": 4})
        pipeline.start()
        received = []
        for _ in range(12):
            received.append(decode(live.receive_bytes()))
            live.send_json({"credit": 1})
    assert pipeline.stop(5)
    first = received[0][0]["timestamp_ns"] - 10_000_000 * np.argmin(
        [np.abs(frame - received[0][1].astype(int)).sum() for frame in stack.astype(int)]
    )
    for header, values in received:
        slot = round((header["timestamp_ns"] - first) / 10_000_000)
        np.testing.assert_array_equal(values, stack[slot % 10])


def test_nothing_is_sent_without_credit_and_the_newest_with_it(scope, client):
    """Catches: a server that sends on its own, or that queues old images for slow clients."""
    scope.frames(2)
    with client.websocket_connect("/live?view=raw") as live:
        scope.frames(5)
        live.send_json({"credit": 1})
        header, values = decode(live.receive_bytes())
        np.testing.assert_array_equal(values, moving_spot(6))  # the seventh, not the first
        assert header["timestamp_ns"] == 7 * 20_000_000
        assert set(header) == {
            "view", "seq", "timestamp_ns", "height", "width", "scale", "offset",
        }  # fmt: skip


def test_default_is_the_reconstruction_at_twice_the_size(scope, client):
    """Catches: another default view; height and width exchanged."""
    scope.frames(3)
    with client.websocket_connect("/live") as live:
        live.send_json({"credit": 1})
        header, values = decode(live.receive_bytes())
    assert (header["view"], header["height"], header["width"]) == (
        "reconstruction",
        2 * HEIGHT,
        2 * WIDTH,
    )
    truth = scope.pipeline.latest("reconstruction").array
    np.testing.assert_allclose(values, truth, atol=np.ptp(truth) / 65535)  # one step


def test_one_credit_is_one_result_with_all_its_views(scope, client):
    """Catches: views of different moments side by side; a credit spent on each view."""
    scope.frames(3)
    with client.websocket_connect("/live?view=raw,mean,reconstruction") as live:
        live.send_json({"credit": 1})
        headers = [decode(live.receive_bytes())[0] for _ in range(3)]
        assert [header["view"] for header in headers] == ["raw", "mean", "reconstruction"]
        assert {header["timestamp_ns"] for header in headers} == {3 * 20_000_000}
        scope.frames(1)  # without credit: must not be sent
        scope.frames(1)
        live.send_json({"credit": 1})
        assert decode(live.receive_bytes())[0]["timestamp_ns"] == 5 * 20_000_000


def test_at_most_four_results_are_outstanding(scope, client):
    """Catches: credit that adds up without bound: a fifth image would come before the mark."""
    scope.frames(1)
    with client.websocket_connect("/live?view=raw") as live:
        live.send_json({"credit": 100})
        stamps = [decode(live.receive_bytes())[0]["timestamp_ns"]]
        for _ in range(3):
            scope.frames(1)
            stamps.append(decode(live.receive_bytes())[0]["timestamp_ns"])
        scope.frames(3)  # 5, 6, 7 find no credit
        live.send_json({"credit": 1})
        stamps.append(decode(live.receive_bytes())[0]["timestamp_ns"])
    assert [stamp // 20_000_000 for stamp in stamps] == [1, 2, 3, 4, 7]


@pytest.mark.parametrize("text", ["more", "[]", '{"credit": -1}', '{"credit": true}', "{}"])
def test_what_cannot_be_understood_ends_the_connection_with_a_sentence(client, text):
    """Catches: a server task that dies with a traceback, or a negative credit that is taken."""
    with client.websocket_connect("/live") as live:
        live.send_text(text)
        with pytest.raises(WebSocketDisconnect) as ended:
            live.receive_bytes()
    assert ended.value.code == 1008
    assert "credit" in ended.value.reason


def test_json_nested_beyond_measure_is_not_understood():
    """Catches: a RecursionError, which is no ValueError, getting through."""
    with pytest.raises(ProtocolError, match="credit"):
        parse_credit("[" * 100_000)


def test_a_sender_that_fails_ends_the_connection(scope, served, monkeypatch, caplog):
    """Catches: a client that waits for ever at an open connection; a fault without its traceback.

    Its credit comes last: nothing that the client does later could wake the server.
    """

    def broken(view):
        raise ValueError("cannot be encoded")

    monkeypatch.setattr("device.feed.live_message", broken)
    scope.frames(2)
    with connect(served[0].replace("http", "ws") + "live?view=raw") as live:
        live.send('{"credit": 1}')
        with pytest.raises(ConnectionClosed):
            live.recv(timeout=20)
        assert live.close_code == 1011
        assert "log" in live.close_reason
    assert "cannot be encoded" in caplog.text


def test_unknown_live_view_is_named_as_the_reason(client):
    """Catches: silence, or a handshake refused without a word."""
    with (
        client.websocket_connect("/live?view=raw,phase") as live,
        pytest.raises(WebSocketDisconnect) as ended,
    ):
        live.receive_bytes()
    assert ended.value.code == 1008
    assert "reconstruction" in ended.value.reason


def test_an_image_is_encoded_once_for_all_and_unused_views_never(scope, client, monkeypatch):
    """Catches: encoding per client, and encoding what nobody looks at."""
    encoded = []

    def counted(view):
        encoded.append((view.view, view.seq))
        return live_message(view)

    monkeypatch.setattr("device.feed.live_message", counted)
    scope.frames(3)
    with contextlib.ExitStack() as stack:
        lives = [stack.enter_context(client.websocket_connect("/live?view=mean")) for _ in range(3)]
        for live in lives:
            live.send_json({"credit": 4})
        for live in lives:
            live.receive_bytes()
    assert encoded == [("mean", 3)]


def test_pages_of_another_site_are_refused(scope, client):
    """Catches: any page in the user's browser watching or resetting the microscope."""
    foreign = {"origin": "http://elsewhere.example"}
    assert client.post("/api/reset", headers=foreign).status_code == 403
    refused = pytest.raises(WebSocketDisconnect)
    with refused, client.websocket_connect("/live", headers=foreign):
        pass
    own = {"origin": "http://testserver"}
    assert client.post("/api/reset", headers=own).status_code == 204


@pytest.mark.parametrize(
    "host", ["localhost:8000", "127.0.0.1", "192.168.1.5:80", "[::1]:8000", "LOCALHOST.", "pi.lab"]
)
def test_own_names_and_numeric_addresses_are_answered(scope, host):
    """Catches: a port or brackets taken for the name; --host 0.0.0.0 that nobody can open."""
    client = TestClient(create_app(scope.pipeline, "pi.lab"))
    assert client.get("/docs", headers={"host": host}).status_code == 200
    own = {"host": f"{socket.gethostname()}.local"}
    assert client.get("/docs", headers=own).status_code == 200


def test_the_name_given_to_listen_on_is_answered(monkeypatch, tmp_path):
    """Catches: `--host microscope.lan`, whose own page is then refused, or asks for no token."""
    told = []
    (tmp_path / "token").write_text("x" * 40)
    monkeypatch.setenv("LEARN2SOFI_TOKEN_FILE", str(tmp_path / "token"))

    def stand_in(pipeline, host="localhost", token=None, recordings=None):
        told.extend([host, token])
        raise UserError("enough")

    monkeypatch.setattr("device.server.create_app", stand_in)
    free = lambda host, port: socket.create_server(("127.0.0.1", 0))  # noqa: E731
    monkeypatch.setattr("device.server.bind", free)
    assert main(["run", "--host", "microscope.lan"]) == 2
    assert told == ["microscope.lan", "x" * 40]


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "[::1", "1.2.3"])
def test_a_name_that_is_not_ours_is_refused(scope, client, host):
    """Catches: DNS rebinding, where another site's name points here and the origin fits it."""
    headers = {"host": host, "origin": f"http://{host}"}
    for path in ("/", "/api/state", "/snapshot.png"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 400
        assert "localhost" in answer.text and "--host" in answer.text
    assert client.post("/api/reset", headers=headers).status_code == 400
    refused = pytest.raises(WebSocketDisconnect)  # its subclass for answers before the handshake
    with refused, client.websocket_connect("/live", headers=headers):
        pass


# --- state and controls --------------------------------------------------------------------------


def test_state_has_the_contract_s_fields(scope, client):
    """Catches: a field renamed or dropped, NaN in the JSON."""
    assert client.get("/api/state").json()["latency_ms"] == {"p50": None, "p95": None}
    scope.frames(4)
    state = client.get("/api/state").json()
    assert state["mode"] == "stream"
    assert state["frames_captured"] == state["frames_processed"] == 4
    assert state["frames_skipped"] == state["frames_missed"] == 0
    assert sum(state["frames_discarded"].values()) == 0
    assert state["reconstructions"] == 3  # none from a single frame
    assert state["buffer"] == {"length": 4, "capacity": 30}
    assert state["model"] == {"name": "enlarging", "sha256": "ab" * 32}
    assert {"fps_camera", "fps_reconstruction", "uptime_s"} <= state.keys()


def test_mode_is_changed_and_nonsense_refused(scope, client):
    """Catches: a control that answers but does nothing; unknown settings swallowed."""
    assert client.get("/api/controls").json() == {"mode": "stream"}
    assert client.post("/api/controls", json={"mode": "window"}).json() == {"mode": "window"}
    assert scope.pipeline.state()["mode"] == "window"
    assert client.post("/api/controls", json={"mode": "burst"}).status_code == 422
    assert client.post("/api/controls", json={"mode": "stream", "fps": 5}).status_code == 422
    assert client.get("/api/controls").json() == {"mode": "window"}


def test_the_width_of_the_psf_is_a_control_where_the_model_is_told_it(scope, client, monkeypatch):
    """Catches: a control that a blind model has; a width that is taken and not told; nonsense."""
    answer = client.post("/api/controls", json={"psf_sigma_px": 1.5})
    assert answer.status_code == 422
    assert "enlarging is not told" in answer.json()["detail"]
    manifest = EnlargingStep.manifest
    told = manifest.model_copy(
        update={"inputs": manifest.inputs | {"psf_sigma_px": manifest.inputs["h"]}}
    )
    monkeypatch.setattr(EnlargingStep, "manifest", told)
    scope.frames(2)
    psf = {"wanted": 1.5, "actual": 1.5, "found": None, "min": 1.0, "max": 2.0}
    answer = client.post("/api/controls", json={"psf_sigma_px": 1.5})
    assert answer.json() == {"mode": "stream", "psf_sigma_px": psf}
    assert client.get("/api/state").json()["buffer"]["length"] == 2
    scope.frames(1)
    assert scope.pipeline.latest("reconstruction").facts["psf_sigma_px"] == 1.5
    for nonsense, words in ((9, "expected 1 to 2 px"), (-1, "greater than 0")):
        answer = client.post("/api/controls", json={"psf_sigma_px": nonsense})
        assert answer.status_code == 422
        assert words in str(answer.json()["detail"])
    assert client.get("/api/controls").json()["psf_sigma_px"] == psf
    answer = client.post("/api/controls", json={"psf_sigma_px": None})
    assert answer.json()["psf_sigma_px"]["actual"] is None


def test_reset_empties_the_buffer(scope, client):
    """Catches: a reset that does not reach the pipeline; one that a link could trigger."""
    scope.frames(5)
    assert client.get("/api/reset").status_code in (404, 405)
    assert client.post("/api/reset").status_code == 204
    scope.frames(1)
    assert client.get("/api/state").json()["buffer"]["length"] == 1


def test_health_follows_the_frames(scope, client):
    """Catches: health that is always 200, or that never returns to it."""
    assert client.get("/healthz").status_code == 503
    scope.frames(1)
    assert client.get("/healthz").status_code == 200
    wait_until(lambda: not scope.pipeline.healthy(), "2 s without frames")
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert "no frame for" in answer.json()["status"]
    scope.frames(1)
    assert client.get("/healthz").status_code == 200


def test_metrics_are_the_state_in_base_units(scope, client):
    """Catches: ms under the name of seconds, counters without _total, stale numbers."""
    scope.frames(4)
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}
    state = scope.pipeline.state()
    assert samples["learn2sofi_frames_captured_total",] == 4
    assert samples["learn2sofi_frames_discarded_total", "not_finite"] == 0
    assert samples["learn2sofi_buffer_frames",] == 4
    assert samples["learn2sofi_healthy",] == 1
    median_s = samples["learn2sofi_latency_seconds", "0.5"]
    assert median_s == pytest.approx(state["latency_ms"]["p50"] / 1000)
    scope.frames(1)
    assert "learn2sofi_frames_captured_total 5.0" in client.get("/metrics").text


def test_the_page_needs_nothing_from_elsewhere(client):
    """Catches: a CDN, an external font, a file forgotten in the package, a cached old page."""
    page = client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    names = ["style.css", "live.js", "panel.js", "contrast.js", "colour.js", "socket.js"]
    for name in [*names, "status.js", "icon.svg", "docs", "docs.js"]:
        file = client.get(f"/{name}")
        assert file.status_code == 200
        text = file.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "@import" not in text
    assert "//" not in page.text.replace("<!doctype html>", "")


def test_the_api_is_described_in_words(client):
    """Catches: summaries made of the functions' names (" Mjpeg"), an answer left undescribed."""
    paths = client.get("/openapi.json").json()["paths"]
    told = {(path, method): way for path in paths for method, way in paths[path].items()}
    assert {("/mjpeg", "get"), ("/api/controls", "post"), ("/healthz", "get")} <= told.keys()
    for way in told.values():
        assert way["summary"] == way["summary"].strip() and way["description"]
    assert told["/api/controls", "post"]["summary"] == "Change the controls"
    assert "docs.js" in client.get("/docs").text


# --- the server itself ---------------------------------------------------------------------------


def test_a_port_in_use_is_said_in_one_sentence():
    """Catches: a traceback, or uvicorn's own exit in place of our error."""
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1.*--port") as refused:
            bind("127.0.0.1", port)
        assert str(refused.value).count("127.0.0.1") == 1  # the address is said once


def test_an_unknown_host_is_said_in_one_sentence():
    """Catches: gaierror getting through."""
    with pytest.raises(UserError, match="192.0.2.1"):  # an address nobody has
        bind("192.0.2.1", 0)


def test_address_of_the_page():
    """Catches: showing 0.0.0.0, which no browser elsewhere can open, or port 0."""
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert port > 0
        assert page_address(listening) == f"http://127.0.0.1:{port}/"
    with bind("0.0.0.0", 0) as listening:
        assert socket.gethostname() in page_address(listening)


@pytest.fixture
def served(scope):
    """A server in a thread on a real port: its address, and the event that stops it."""
    ready, stop = threading.Event(), threading.Event()
    address = []

    def on_ready(page):
        address.append(page)
        ready.set()

    app = create_app(scope.pipeline)
    thread = threading.Thread(target=serve, args=(app, bind("127.0.0.1", 0), stop, on_ready))
    thread.start()
    assert ready.wait(20)
    yield address[0], stop, thread
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def test_mjpeg_shows_each_image_complete(scope, served):
    """Catches: parts without length, a JPEG of another size, a boundary that comes a part late."""
    address, _, _ = served
    scope.frames(1)
    with urllib.request.urlopen(f"{address}mjpeg?view=raw", timeout=20) as stream:
        assert "boundary=frame" in stream.headers["content-type"]
        for _ in range(3):
            assert stream.readline() == b"--frame\r\n"
            assert stream.readline() == b"Content-Type: image/jpeg\r\n"
            length = int(stream.readline().split(b":")[1])
            assert stream.readline() == b"\r\n"
            image = cv2.imdecode(np.frombuffer(stream.read(length), np.uint8), -1)
            assert image.shape == (HEIGHT, WIDTH)
            # The spot is far above the ground whatever the levels: 1 and 99.8 % are 0 and 255.
            assert image.max() > 200 and np.median(image) < 60
            assert stream.readline() == b"\r\n"
            scope.frames(1)


def test_open_streams_do_not_keep_the_server(scope, served):
    """Catches: a shutdown that waits for endless streams or for a client that does not read.

    Without sending the clients home uvicorn waits for ever for the MJPEG response, and the join
    below ends the test; clients must see an orderly end, not a broken connection.
    """
    address, stop, thread = served
    scope.frames(2)
    stream = urllib.request.urlopen(f"{address}mjpeg", timeout=20)
    with connect(address.replace("http", "ws") + "live?view=raw") as live:
        live.send('{"credit": 1}')
        live.recv(timeout=20)
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        stream.read()  # ends; an IncompleteRead would be raised if the response was cut off


class NoisePipeline:
    """Images so large that a few of them fill every buffer between server and client."""

    def __init__(self):
        self.image = np.random.default_rng(2).integers(0, 255, (1500, 1500)).astype(np.uint16)
        self.seq = self.taken = 0

    def subscribe(self, callback):
        self.callback = callback
        return lambda: None

    def latest(self, name):
        self.taken += 1
        return View(name, self.image, self.seq, self.seq, self.seq, 1)

    def publish(self):
        self.seq += 1
        self.callback()


def test_a_client_that_does_not_read_does_not_keep_the_server():
    """Catches: a shutdown without limit: what is still to be sent can never be sent."""
    pipeline, ready, stop = NoisePipeline(), threading.Event(), threading.Event()
    address = []
    app = create_app(pipeline)
    told = lambda page: (address.append(page), ready.set())  # noqa: E731
    thread = threading.Thread(target=serve, args=(app, bind("127.0.0.1", 0), stop, told))
    thread.start()
    assert ready.wait(20)
    port = int(address[0].rstrip("/").rsplit(":")[-1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /mjpeg?view=raw HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: stalled(pipeline), "a full connection")
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def stalled(pipeline):
    """Publish an image; tell whether the server, once begun, is no longer able to take it."""
    before = pipeline.taken
    pipeline.publish()
    time.sleep(0.4)
    return before > 0 and pipeline.taken == before


def test_a_client_that_left_leaves_nothing_behind(scope, served):
    """Catches: tasks of dead clients kept until the next image; subscriptions that pile up."""
    address, _, _ = served
    scope.frames(2)
    for _ in range(3):
        with connect(address.replace("http", "ws") + "live?view=raw") as live:
            live.send('{"credit": 4}')
            live.recv(timeout=20)
    assert len(scope.pipeline._callbacks) == 1  # the feed's own, however many clients there were


def test_a_message_too_long_ends_the_connection(served):
    """Catches: megabytes read into memory to be told that they are no credit."""
    address, _, _ = served
    with connect(address.replace("http", "ws") + "live") as live:
        live.send("[" * 100_000)
        with pytest.raises(ConnectionClosed):
            live.recv(timeout=20)
        assert live.close_code == 1009


def test_images_are_fetched_beside_the_event_loop():
    """Catches: the standard deviation of large frames computed where all clients wait for it."""
    threads = []

    class Source:
        def latest(self, name):
            threads.append(threading.get_ident())
            return View(name, np.zeros((2, 2)), 1, 1, 1, 1)

    views = asyncio.run(Feed(Source()).latest(["std", "mean"]))
    assert [view.view for view in views] == ["std", "mean"]
    assert len(threads) == 2 and threading.get_ident() not in threads


def test_signals_are_the_callers():
    """Catches: uvicorn's own handlers: ours is called after the serving, and not before."""
    program = textwrap.dedent(
        """
        import signal, sys, threading
        from device.server import bind, create_app, serve

        class Nothing:
            def subscribe(self, callback):
                return lambda: None

        def say(text):
            sys.stdout.write(text + "\\n")
            sys.stdout.flush()

        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: (say("told"), stop.set()))
        serve(create_app(Nothing()), bind("127.0.0.1", 0), stop, say)
        say("served")
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0].split() == ["told", "served"]
    assert process.returncode == 0


def test_waiting_for_news_passes_over_the_old():
    """Catches: a client that is served every result one after another and falls behind."""

    class Source:
        def subscribe(self, callback):
            self.announce = callback
            return lambda: None

    async def scenario():
        source = Source()
        feed = Feed(source)
        feed.open()
        seen = await feed.wait(-1)
        for _ in range(5):
            source.announce()
        newest = await feed.wait(seen)
        await asyncio.sleep(0)
        assert await feed.wait(-1) == seen + 5
        feed.close()
        with pytest.raises(FeedClosed):
            await feed.wait(newest)

    asyncio.run(scenario())
