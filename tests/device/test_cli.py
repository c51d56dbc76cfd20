"""The commands, through `main` and as the process a user starts."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import statistics
import subprocess
import sys
import termios
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import pytest
import tifffile

from device.cli import _parser, main
from device.errors import UserError
from device.stack import open_stack

T, H, W = 36, 33, 30
PROGRAM = [sys.executable, "-c", "import sys; from device.cli import main; sys.exit(main())"]
# Long enough for a busy machine to import everything; no test waits for it when things are right.
PATIENCE_S = 60


def write(path: Path, data: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, data, photometric="minisblack", **options)
    return path


def gradient(frames: int = T, height: int = H, width: int = W) -> np.ndarray:
    """A smooth image that brightens a little from frame to frame, uint16."""
    y, x = np.mgrid[:height, :width]
    image = 100 + 10 * x + 3 * y  # (H, W)
    return (image + 2 * np.arange(frames)[:, None, None]).astype(np.uint16)  # (T, H, W)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return write(tmp_path / "in.tif", gradient())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "out.tif"


@pytest.fixture(autouse=True)
def out_folder(out: Path) -> None:
    out.parent.mkdir()


@pytest.fixture
def reconstruct(model_file: Path, out: Path):
    """Run the command with the stand-in model; return what was written."""

    def run(source: Path, *options: object) -> np.ndarray:
        arguments = ["reconstruct", source, out, "--model", model_file, *options]
        assert main([str(argument) for argument in arguments]) == 0
        return tifffile.imread(out)

    return run


def sentence_of(text: str) -> str:
    """Return the one line that is our complaint (the runtime and the log may have said more)."""
    lines = [line for line in text.splitlines() if line.startswith("learn2sofi: ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


@pytest.fixture
def refusal(model_file: Path, out: Path, capsys):
    """Run the command with bad input: exit code 2, one sentence, nothing left behind."""

    def run(source: Path, *options: object, model: Path | None = None) -> str:
        arguments = ["reconstruct", source, out, "--model", model or model_file, *options]
        assert main([str(argument) for argument in arguments]) == 2
        assert not list(out.parent.iterdir())
        return sentence_of(capsys.readouterr().err)

    return run


def doubled(image: np.ndarray) -> np.ndarray:
    """What the stand-in makes of a mean image, restored: counts above the 5th percentile."""
    smooth = cv2.medianBlur(image.astype(np.float32), 3)
    above = image - np.percentile(smooth, 5)
    return above.repeat(2, axis=0).repeat(2, axis=1)


# --- reconstruct: what comes out ------------------------------------------------------------------


def test_window_is_the_last_thirty(reconstruct, stack):
    """Mutations: the first 30, all 36, or 31 frames. Odd height, so padding is cropped too."""
    image = reconstruct(stack)
    assert image.shape == (2 * H, 2 * W)
    assert image.dtype == np.float32
    # One frame more or less moves the mean by 1; float32 through the normalization costs 1e-3.
    expected = doubled(gradient()[-30:].mean(axis=0))
    np.testing.assert_allclose(image, expected, atol=0.01)


def test_short_stack_uses_all(reconstruct, tmp_path):
    """Mutation: 30 frames are demanded."""
    image = reconstruct(write(tmp_path / "two.tif", gradient(2)))
    np.testing.assert_allclose(image, doubled(gradient(2).mean(axis=0)), atol=0.01)


def test_every_gives_windows_that_end_there(reconstruct, stack):
    """Mutations: windows of N frames; a rest of fewer than N frames makes an image too."""
    images = reconstruct(stack, "--every", 16)
    assert images.shape == (2, 2 * H, 2 * W)
    for image, (first, end) in zip(images, [(0, 16), (2, 32)], strict=True):
        expected = doubled(gradient()[first:end].mean(axis=0))
        np.testing.assert_allclose(image, expected, atol=0.01)


def test_stream_has_an_image_per_frame(reconstruct, stack):
    """Mutation: the first frame's image is left out; statistics of later frames are used."""
    images = reconstruct(stack, "--mode", "stream")
    assert images.shape == (T, 2 * H, 2 * W)
    assert images.dtype == np.float32
    for end in (1, 7, T):
        expected = doubled(gradient()[max(0, end - 30) : end].mean(axis=0))
        np.testing.assert_allclose(images[end - 1], expected, atol=0.01)


def test_frames_and_region(reconstruct, tmp_path):
    """Mutations: B included, A counted from 1, Y and X or H and W exchanged."""
    data = gradient()
    data[20:] = data[20:, ::-1]  # what lies outside A:B is another picture
    image = reconstruct(
        write(tmp_path / "a.tif", data), "--frames", "4:20", "--roi", "3,9,17,19", "--every", 16
    )
    expected = doubled(data[4:20, 3:20, 9:28].mean(axis=0))
    np.testing.assert_allclose(image, expected, atol=0.01)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 16), (16, 21), (45, 37)])
def test_any_size_and_type(reconstruct, tmp_path, dtype, height, width):
    """Mutation: other sizes than the model's are refused, or padding stays."""
    data = (gradient(5, height, width) // 4).astype(dtype)
    image = reconstruct(write(tmp_path / "a.tif", data))
    np.testing.assert_allclose(image, doubled(data.mean(axis=0)), atol=0.01)


@pytest.mark.parametrize("place", [(8, 11), (20, 5), (31, 28)])
def test_the_grid(reconstruct, tmp_path, place):
    """Output pixel j lies at input (j + 0.5) / 2 - 0.5. Mutation: a shift of half a pixel."""
    y, x = np.mgrid[:40, :37]
    spot = np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * 1.3**2))
    data = (100 + 900 * spot + np.zeros((4, 1, 1))).astype(np.float32)
    image = np.clip(reconstruct(write(tmp_path / "a.tif", data)), 1, None) - 1
    rows, columns = np.mgrid[:80, :74]
    found = [(axis * image).sum() / image.sum() for axis in (rows, columns)]
    # The contract's 0.1 px, both ways; half an output pixel of shift would be 0.5.
    np.testing.assert_allclose((np.array(found) + 0.5) / 2 - 0.5, place, atol=0.05)


@pytest.mark.parametrize(
    ("options", "known"), [((), [True]), (("--every", 12), [False, False, True])]
)
def test_the_error_is_a_second_channel(tmp_path, out, options, known, caplog):
    """Mutations: the channels exchanged; an option that does nothing; normalized values for counts;
    a guess for fewer frames than a window has."""
    rng = np.random.default_rng(3)
    data = rng.poisson(gradient() + 200 * (rng.random((H, W)) > 0.97)).astype(np.uint16)
    source = str(write(tmp_path / "a.tif", data))
    assert main(["reconstruct", source, str(out), *map(str, options)]) == 0
    alone = tifffile.imread(out)
    assert main(["reconstruct", source, str(out), "--error", *map(str, options)]) == 0
    assert ("the error of 2 of 3 images is not known" in caplog.text) != all(known)
    both = tifffile.imread(out).reshape(len(known), 2, 2 * H, 2 * W)
    np.testing.assert_array_equal(both[:, 0], alone.reshape(len(known), 2 * H, 2 * W))
    for (image, error), is_known in zip(both, known, strict=True):
        assert np.isfinite(error).all() == np.isfinite(error).any() == is_known
        assert not is_known or 1 < error.max() < image.max()


def test_an_error_that_the_model_does_not_tell_is_refused(refusal, stack):
    """Mutation: a channel of nothing."""
    assert "does not say how far it may be off" in refusal(stack, "--error")


def test_a_constant_stack_is_a_constant_image(reconstruct, tmp_path, caplog):
    """Mutation: 0 / 0."""
    data = np.full((6, 20, 20), 300, np.uint16)
    np.testing.assert_array_equal(reconstruct(write(tmp_path / "a.tif", data)), 0)
    assert "nothing to see" in caplog.text


def annotations(path: Path) -> dict[str, object]:
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        ome = tifffile.xml2dict(file.ome_metadata)["OME"]
    entries = ome["StructuredAnnotations"]["MapAnnotation"]["Value"]["M"]
    return {entry["K"]: entry["value"] for entry in entries}


def test_the_file_tells_how_it_was_made(reconstruct, model_file, tmp_path, out):
    """Mutations: the input's pixel size; no checksum; options that are not told."""
    source = write(
        tmp_path / "a.tif", gradient(), resolution=(1e5, 1e5), resolutionunit="CENTIMETER"
    )
    reconstruct(source, "--frames", "2:30", "--roi", "0,0,20,20", "--every", "14")
    told = annotations(out)
    beside = json.loads(model_file.with_name("stand_in-1.0.0.json").read_text())
    assert told["model_sha256"] == beside["files"]["int8"]["sha256"]
    assert told["model"] == model_file.stem
    assert (told["mode"], told["every"]) == ("window", 14)
    assert (told["frames"], told["roi"]) == ("2:30", (0, 0, 20, 20))  # as tifffile reads text
    assert len(json.loads(told["scale_adu"])) == len(json.loads(told["background_adu"])) == 2
    with open_stack(out) as written:
        assert written.pixel_size_um == pytest.approx(0.05, rel=1e-9)


def test_pixel_size_from_the_command_line(reconstruct, stack, out):
    """Mutation: nm for um, or not halved."""
    reconstruct(stack, "--pixel-nm", "130", "--mode", "stream")
    with open_stack(out) as written:
        assert written.pixel_size_um == pytest.approx(0.065, rel=1e-9)


def test_a_blind_model_takes_the_optics_with_a_note(reconstruct, stack, caplog):
    """Mutation: refused, or taken without a word."""
    plain = reconstruct(stack)
    assert "is blind" not in caplog.text
    told = reconstruct(stack, "--na", 1.2, "--wavelength-nm", 600, "--pixel-nm", 100)
    assert "is blind" in caplog.text
    np.testing.assert_array_equal(told, plain)


def test_a_video_is_reconstructed_from_linear_light(reconstruct, tmp_path):
    """Mutation: the transfer curve stays. Two greys tell, 120 and 200."""
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 30, (40, 32), False)
    frame = np.zeros((32, 40), np.uint8)
    frame[:, 14:27], frame[:, 27:] = 120, 200
    for _ in range(3):
        writer.write(frame)
    writer.release()
    image = reconstruct(path, "--every", "3")
    assert image.shape == (64, 80)
    middle, bright = image[32, 40], image[32, 68]
    # ((200/255 + 0.099) / (120/255 + 0.099)) ** (1 / 0.45) = 2.6513; 1.67 with the curve left in.
    assert bright / middle == pytest.approx(2.6513, abs=0.001)


def test_memory_does_not_grow_with_the_stack(model_file, tmp_path, out):
    """Mutation: frames, images or windows are collected in a list."""
    source = write(tmp_path / "long.tif", gradient(400, 64, 64))

    def peak_bytes(end: int, *options: str) -> int:
        arguments = [source, out, "--model", model_file, "--frames", f"0:{end}", *options]
        tracemalloc.start()
        assert main(["reconstruct", *map(str, arguments)]) == 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    for options in (["--mode", "stream"], ["--every", "4"]):
        peak_bytes(100, *options)  # what is loaded once
        more = peak_bytes(400, *options) - peak_bytes(100, *options)
        # 300 more frames of 64 x 64 uint16 are 2.4 MB, their images 19 (stream) or 4.9 (every 4).
        assert abs(more) < 1_000_000


def test_what_was_there_is_replaced_in_the_end(reconstruct, stack, out):
    """Mutation: an existing output is an error."""
    out.write_bytes(b"old")
    assert reconstruct(stack).shape == (2 * H, 2 * W)
    assert [file.name for file in out.parent.iterdir()] == [out.name]


# --- reconstruct: bad input -----------------------------------------------------------------------


def test_not_a_tiff(refusal, tmp_path):
    """Mutation: the reader's own exception escapes."""
    (tmp_path / "a.tif").write_text("hello")
    assert "not a TIFF" in refusal(tmp_path / "a.tif")


def test_one_frame(refusal, tmp_path):
    """Mutation: an image of one frame, which cannot fluctuate."""
    assert "single frame" in refusal(write(tmp_path / "a.tif", gradient(1)))


def test_rgb(refusal, tmp_path):
    """Mutation: colours are taken for frames."""
    data = np.zeros((20, 20, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb")
    assert "RGB" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [[], ["--mode", "stream"], ["--every", "5"]])
def test_nan_late_in_the_stack(refusal, tmp_path, options):
    """Mutation: the images up to there stay behind as a file."""
    data = gradient().astype(np.float32)
    data[31, 2, 2] = np.nan
    assert "frame 31 holds NaN" in refusal(write(tmp_path / "a.tif", data), *options)


def test_output_folder_missing(model_file, stack, out, capsys):
    """Mutation: found out after the work."""
    target = out.parent / "no" / "out.tif"
    assert main(["reconstruct", str(stack), str(target), "--model", str(model_file)]) == 2
    assert "does not exist" in sentence_of(capsys.readouterr().err)


def test_output_is_the_input(model_file, stack, capsys):
    """Mutation: the only copy of a measurement is overwritten."""
    before = stack.read_bytes()
    assert main(["reconstruct", str(stack), str(stack), "--model", str(model_file)]) == 2
    assert "is the input" in sentence_of(capsys.readouterr().err)
    assert stack.read_bytes() == before


def test_model_with_one_byte_changed(refusal, stack, model_file, tmp_path):
    """Mutation: the checksum is not looked at."""
    content = bytearray(model_file.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / model_file.name
    changed.write_bytes(content)
    manifest = model_file.with_name("stand_in-1.0.0.json")
    (tmp_path / manifest.name).write_bytes(manifest.read_bytes())
    assert model_file.name in refusal(stack, model=changed)


def test_manifest_that_does_not_match(refusal, stack, model_file, tmp_path):
    """Mutation: the manifest beside the file is believed."""
    (tmp_path / model_file.name).write_bytes(model_file.read_bytes())
    fields = json.loads(model_file.with_name("stand_in-1.0.0.json").read_text())
    fields["normalization"]["scale_percentile"] = 90.0
    (tmp_path / "stand_in-1.0.0.json").write_text(json.dumps(fields))
    assert "manifest" in refusal(stack, model=tmp_path / model_file.name)


@pytest.mark.parametrize(
    "options",
    [
        ["--frames", "0:37"],
        ["--frames", "5:6"],
        ["--frames", "9:4"],
        ["--frames", "36:"],
        ["--frames", "-1:9"],
        ["--frames", "7"],
        ["--roi", "0,0,34,20"],
        ["--roi", "0,12,20,20"],
        ["--roi", "0,0,15,20"],
        ["--roi", "0,0,20"],
        ["--every", "1"],
        ["--every", "37"],
        ["--every", "2.5"],
        ["--every", "5", "--mode", "stream"],
        ["--mode", "both"],
        ["--psf-sigma-px", "0"],
        ["--psf-sigma-px", "nan"],
        ["--na", "1.2"],
        ["--na", "1.2", "--wavelength-nm", "600"],
        ["--na", "1", "--wavelength-nm", "1", "--pixel-nm", "1", "--psf-sigma-px", "1"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit(refusal, stack, options):
    """Mutation: any bound moved by one, or not looked at."""
    assert "expected" in refusal(stack, *options)


@pytest.mark.parametrize(
    "options", [["--frames", "0:36"], ["--frames", "34:36"], ["--every", "36"], ["--every", "2"]]
)
def test_options_that_just_fit(reconstruct, stack, options):
    """Mutation: a bound moved by one the other way."""
    assert reconstruct(stack, *options).shape[-2:] == (2 * H, 2 * W)


def test_nothing_given(capsys):
    """Mutation: argparse's usage of several lines, or a traceback."""
    assert main([]) == 2
    sentence_of(capsys.readouterr().err)


def test_debug_shows_the_traceback(stack, out, capsys):
    """Mutation: --debug is taken and does nothing. (Without it: every other test here.)"""
    assert main(["reconstruct", str(stack), str(out / "no.tif"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_debug_stands_before_the_command_too(stack, out, capsys):
    """Mutations: refused there, or set back by the command's own default."""
    assert main(["--debug", "reconstruct", str(stack), str(out / "no.tif")]) == 2
    assert "Traceback" in capsys.readouterr().err
    options = _parser().parse_args(["--debug", "config"])
    assert options.debug is True
    assert _parser().parse_args(["config"]).debug is False


# --- config ---------------------------------------------------------------------------------------


def test_config_tells_values_and_origins(tmp_path, capsys, monkeypatch):
    """Mutation: the defaults are shown instead of what holds."""
    monkeypatch.setenv("LEARN2SOFI_THREADS", "3")
    mine = tmp_path / "mine.toml"
    mine.write_text("fps = 12.5")
    assert main(["config", "--config", str(mine), "--port", "9"]) == 0
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    assert ["fps", "12.5", str(mine)] in rows
    assert ["threads", "3", "environment"] in rows
    assert ["port", "9", "command line"] in rows
    assert ["mode", '"stream"', "default.toml"] in rows


# --- the process ----------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "LEARN2SOFI" not in name}


def finished(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment()
    )


@contextmanager
def daemon(
    *arguments: object, stderr: IO[str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `run`; give the process and the page's address once it is ready."""
    command = [*PROGRAM, "run", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+/\n", ready)
        yield process, ready.split()[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def status_of(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_reconstruct_as_a_process(stack, out, model_file):
    """Mutation: the bar or the log on stdout; an exit code that is not passed on."""
    result = finished("reconstruct", stack, out, "--model", model_file)
    assert (result.returncode, result.stdout) == (0, "")
    assert "%|" not in result.stderr  # no progress bar: stderr is no terminal here
    assert tifffile.imread(out).shape == (2 * H, 2 * W)


def test_a_progress_bar_on_a_terminal(stack, out, model_file):
    """Mutation: the bar is off, or counts images (1) instead of frames (36)."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = [*PROGRAM, "reconstruct", stack, out, "--model", model_file, "--mode", "stream"]
    with closing(os.fdopen(ours, "rb", buffering=0)) as screen:
        process = subprocess.Popen(list(map(str, command)), stderr=theirs, env=environment())
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # Linux tells the end of a terminal by EIO
            while part := screen.read(4096):
                shown += part
        assert process.wait(PATIENCE_S) == 0
    assert b"%|" in shown and b"36/36" in shown


def test_bad_input_as_a_process(tmp_path, out, model_file):
    """Mutation: a traceback, or exit code 1."""
    (tmp_path / "a.tif").write_text("hello")
    result = finished("reconstruct", tmp_path / "a.tif", out, "--model", model_file)
    assert (result.returncode, result.stdout) == (2, "")
    assert "not a TIFF" in sentence_of(result.stderr)


def test_the_psf_of_the_settings_is_told(tmp_path):
    """Mutations: a setting that is read and not told; one beyond the model's cut in silence."""
    mine = tmp_path / "mine.toml"
    mine.write_text("psf_sigma_px = 1.5")
    with daemon("--config", mine) as (_, page), urllib.request.urlopen(f"{page}api/state") as told:
        assert json.load(told)["psf_sigma_px"] == 1.5
    mine.write_text("psf_sigma_px = 9")
    result = finished("run", "--port", "0", "--config", mine)
    assert result.returncode == 2
    assert "expected 0.8 to 3.2 px" in sentence_of(result.stderr)


def test_a_video_that_is_none_is_one_line(tmp_path, out, model_file):
    """Mutation: OpenCV is silenced when it was imported already, and adds lines of its own."""
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 100)
    result = finished("reconstruct", tmp_path / "bad.mp4", out, "--model", model_file)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def test_a_reader_that_has_left_is_no_fault():
    """Mutation: `config | true` ends in an internal fault, or in Python's own complaint."""
    ours, theirs = os.pipe()
    os.close(ours)
    result = subprocess.run(
        [*PROGRAM, "config"], stdout=theirs, stderr=subprocess.PIPE, env=environment()
    )
    os.close(theirs)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(("command", "claimed"), [("config", False), ("reconstruct", True)])
def test_what_an_interruption_left_is_said_where_it_is_true(
    command, claimed, stack, out, capsys, monkeypatch
):
    """Mutation: commands that may well have left something say that they have not."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("device.offline.reconstruct_file", interrupted)
    monkeypatch.setattr("device.settings.Settings.load", interrupted)
    arguments = [str(stack), str(out)] if command == "reconstruct" else []
    assert main([command, *arguments]) == 130
    assert ("nothing was left behind" in sentence_of(capsys.readouterr().err)) is claimed


def test_an_unforeseen_fault_is_a_sentence_and_1():
    """Mutation: the excepthook is left out. (A fault of ours is made by breaking `json`.)"""
    code = (
        "import device.cli as cli, sys; cli.json = None; "
        "sys.argv[1:] = ['config']; sys.exit(cli.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 1
    assert "internal fault" in sentence_of(result.stderr)


def test_sigterm_while_reconstructing_leaves_nothing(tmp_path, out, model_file):
    """Mutation: the temporary file stays."""
    source = write(tmp_path / "long.tif", np.tile(gradient(64, 128, 128), (60, 1, 1)))
    command = [*PROGRAM, "reconstruct", source, out, "--model", model_file, "--mode", "stream"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, env=environment())
    until(lambda: any(out.parent.iterdir()) or process.poll() is not None)
    process.terminate()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert not list(out.parent.iterdir())


def ended_by(number: signal.Signals, stack: Path, model_file: Path, log: Path) -> float:
    """Start the daemon, end it by a signal; time from the signal to its end in s."""
    camera = ("--camera", f"replay:{stack}", "--model", model_file)
    with log.open("w") as file, daemon(*camera, stderr=file) as (process, address):
        until(lambda: status_of(address + "healthz") == 200)
        state = json.load(urllib.request.urlopen(address + "api/state"))
        assert state["camera"] == f"replay:{stack}"
        began_s = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE_S) == 0
        took_s = time.monotonic() - began_s
        assert process.stdout.read() == ""  # `ready` was the only line
    assert log.read_text().count(f"stopping on {number.name}") == 1
    return took_s


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["_parser", "_settings", "_camera"])
def test_a_signal_while_it_starts_ends_the_daemon_with_0(number, place, model_file):
    """Mutations: it dies of the signal (-15) before it has looked at its options, read its
    settings or made its camera; or it starts all the same, to end only then."""
    program = f"""
import signal, sys
from device import cli
first = cli.{place}
def told(*given, **named):
    signal.raise_signal({int(number)})
    return first(*given, **named)
cli.{place} = told
sys.exit(cli.main())
"""
    command = [sys.executable, "-c", program, "run", "--port", "0", "--model", model_file]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment()
    )
    assert result.returncode == 0, result.stderr
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_with_0(stack, model_file, number, tmp_path):
    """Mutations: it dies of the signal (-15), or takes 2 s or more (idle, it takes 0.4); the stop
    is not logged, or once by each of two handlers.

    A busy machine may hold up one end of three; a wait that is built in holds up every one.
    """
    took_s = [ended_by(number, stack, model_file, tmp_path / "log") for _ in range(3)]
    assert statistics.median(took_s) < 2.0, took_s


def test_once_ends_with_the_stack(stack, model_file):
    """Mutation: the stack begins again, and the daemon never ends."""
    result = finished(
        *("run", "--port", 0, "--camera", f"replay:{stack}", "--model", model_file),
        *("--once", "--fps", 200),
    )
    assert result.returncode == 0
    assert result.stdout.count("\n") == 1 and result.stdout.startswith("ready http://")


def test_once_plays_through_frames_that_are_not_finite(model_file, tmp_path):
    """Mutation: NaN in a frame opens the recording again and again, and the end never comes."""
    data = gradient().astype(np.float32)
    data[[0, 3], 2, 2] = np.nan
    path = write(tmp_path / "nan.tif", data)
    result = finished(
        *("run", "--port", 0, "--camera", f"replay:{path}", "--model", model_file),
        *("--once", "--fps", 200),
    )
    assert result.returncode == 0, result.stderr


def test_once_with_a_damaged_recording_is_2(model_file, tmp_path):
    """Mutation: it never ends, or ends with 0 as if all frames had been shown."""
    path = write(tmp_path / "a.tif", gradient(8), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[5].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    result = finished(
        *("run", "--port", 0, "--camera", f"replay:{path}", "--model", model_file, "--once"),
    )
    assert result.returncode == 2
    assert "frame 5" in sentence_of(result.stderr)


FAULT = """
import sys
import device.replay
from device.cli import main

def read(camera, timeout_s):
    raise LookupError("of ours")

device.replay.ReplayCamera.read = read
sys.exit(main())
"""


@pytest.mark.parametrize("once", [[], ["--once"]])
def test_a_thread_that_dies_ends_the_daemon_with_1(model_file, once):
    """Mutation: the page stays as it was for ever, healthy but for its frames."""
    command = [sys.executable, "-c", FAULT, "run", "--port", "0", "--model", str(model_file), *once]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment()
    )
    assert result.returncode == 1
    assert "camera thread failed (LookupError: of ours)" in sentence_of(result.stderr)


def test_without_once_the_end_is_not_the_end(stack, model_file, tmp_path):
    """With loop off the page stays. Mutation: every end stops the daemon."""
    config = tmp_path / "mine.toml"
    config.write_text("loop = false\nfps = 300.0")
    with daemon("--config", config, "--camera", f"replay:{stack}", "--model", model_file) as (
        process,
        address,
    ):

        def state() -> dict:
            return json.load(urllib.request.urlopen(address + "api/state"))

        until(lambda: state()["ended"])
        assert state()["frames_captured"] == T - state()["frames_missed"]
        assert process.poll() is None


def test_a_port_in_use(stack, model_file):
    """Mutation: uvicorn's own log and exit code; or the camera was opened before."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        # A camera that does not exist: the port is judged first.
        result = finished("run", "--port", port, "--camera", "replay:no.tif", "--model", model_file)
    assert (result.returncode, result.stdout) == (2, "")
    assert str(port) in sentence_of(result.stderr)


def test_the_port_is_kept_from_the_first_moment(monkeypatch, model_file, capsys):
    """Mutation: it is tried, given back and taken again later, when another may have it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]

    def load_step(*_: object) -> None:
        with pytest.raises(OSError):
            socket.create_server(("127.0.0.1", port)).close()
        raise UserError("the port is ours")

    monkeypatch.setattr("device.model.load_step", load_step)
    assert main(["run", "--port", str(port), "--model", str(model_file)]) == 2
    assert "the port is ours" in sentence_of(capsys.readouterr().err)


@pytest.mark.parametrize("camera", ["replay:", "replay", "webcam", "replay:no.tif", "demo:x"])
def test_a_camera_that_is_none(camera, model_file, capsys):
    """Mutation: served with an error on the page for ever."""
    assert main(["run", "--port", "0", "--camera", camera, "--model", str(model_file)]) == 2
    assert "expected" in sentence_of(capsys.readouterr().err)


def test_the_command_line_loads_no_training_library():
    """Mutation: a module of the device imports TensorFlow, Keras or `training`."""
    code = (
        "import sys, device.cli, device.offline, device.replay, device.server, device.pipeline; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'tensorflow', 'keras', 'training'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
