"""``python -m training download`` against a server that answers, and fails, as OMERO's does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from training import web
from training.__main__ import main
from training.omero import permits

# The tests are no package: the server beside this file is loaded by its path.
_spec = importlib.util.spec_from_file_location(
    "omero_server", Path(__file__).with_name("omero_server.py")
)
assert _spec is not None and _spec.loader is not None
omero_server = importlib.util.module_from_spec(_spec)
sys.modules["omero_server"] = omero_server
_spec.loader.exec_module(omero_server)

CC_BY = "CC BY 4.0 https://creativecommons.org/licenses/by/4.0/"
PAUSE = 0.25


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait, none of which is waited; and no proxy between test and server."""
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    waited: list[float] = []
    monkeypatch.setattr(web, "sleep", waited.append)
    return waited


@pytest.fixture
def server() -> Iterator[Any]:
    """Three images in dataset 7 of project 3, which is CC BY."""
    omero = omero_server.OmeroServer()
    for number in (11, 12, 13):
        omero.images[number] = (f"image {number}", 160, 140, 2)
        omero.paths["image", number] = [[("experimenter", 2), ("project", 3), ("dataset", 7)]]
    omero.annotations["project", 3] = [
        ("License", CC_BY),
        ("Copyright", "Lawo et al"),
        ("Publication DOI", "10.1038/ncb2591"),
        ("Organism", "Homo sapiens"),
    ]
    yield omero
    omero.close()


def download(server: Any, folder: Path, *options: str) -> int:
    fixed = ["--server", server.address, "--out", str(folder), "--pause", str(PAUSE)]
    return main(["download", *fixed, *options])


def pictures(folder: Path) -> list[int]:
    """Ids of the images in a folder, in which nothing but images and what is known of them lies."""
    names = sorted(path.name for path in folder.iterdir())
    stems = sorted(path.stem for path in folder.glob("*.jpg"))
    assert names == sorted(f"{stem}{suffix}" for stem in stems for suffix in (".jpg", ".json"))
    return [int(stem.split("-")[1]) for stem in stems]


def about(folder: Path, number: int) -> dict[str, Any]:
    (path,) = folder.glob(f"*-{number}-c*.json")
    told: dict[str, Any] = json.loads(path.read_text())
    return told


def retries(waits: list[float]) -> list[float]:
    return [wait for wait in waits if wait != PAUSE]


def test_an_image_has_its_source_licence_and_checksum_beside_it(
    server: Any, tmp_path: Path
) -> None:
    """Catches a checksum of something else, a lost licence, and a colour image of all channels."""
    assert download(server, tmp_path, "--image", "12", "--channel", "2") == 0
    (path,) = tmp_path.glob("*.jpg")
    assert path.read_bytes() == omero_server.picture()
    told = about(tmp_path, 12)
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["file"] == path.name
    assert (told["server"], told["id"], told["name"]) == (server.address, 12, "image 12")
    assert told["source"] == f"{server.address}/webgateway/render_image/12/2/0/?c=2&m=g"
    assert server.asked_for("render_image") == [told["source"].removeprefix(server.address)]
    assert told["page"] == f"{server.address}/webclient/?show=image-12"
    assert told["licence"] == CC_BY
    assert told["attribution"] == {
        "Copyright": ["Lawo et al"],
        "Publication DOI": ["10.1038/ncb2591"],
    }
    (study,) = told["annotations"]
    assert study["of"] == "project 3"
    assert ["Organism", "Homo sapiens"] in study["values"]


@pytest.mark.parametrize(
    "name",
    ["../../outside/a b?.tif", "line\nbreak \u00e9\u4e2d\U0001f52c", "\ud800", ""],
    ids=["path", "unicode", "surrogate", "empty"],
)
def test_a_name_is_told_and_never_used_as_a_path(name: str, server: Any, tmp_path: Path) -> None:
    """Catches file names made of what a server says, and an encoding that some names break."""
    server.images[12] = (name, 160, 140, 1)
    folder = tmp_path / "images"
    assert download(server, folder, "--image", "12") == 0
    assert pictures(folder) == [12]
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert about(folder, 12)["name"] == name


def test_what_is_complete_is_not_asked_for_again(server: Any, tmp_path: Path) -> None:
    """Catches a download that begins anew: the second run asks the server for nothing."""
    assert download(server, tmp_path, "--image", "11", "12") == 0
    server.asked.clear()
    assert download(server, tmp_path, "--image", "11", "12") == 0
    assert server.asked == []


@pytest.mark.parametrize("harm", ["shorter", "other", "no sidecar", "half a sidecar"])
def test_what_is_not_complete_is_fetched_anew(harm: str, server: Any, tmp_path: Path) -> None:
    """Catches a check of existence or of length alone, and one that trusts the sidecar."""
    assert download(server, tmp_path, "--image", "11") == 0
    (path,) = tmp_path.glob("*.jpg")
    whole, sidecar = path.read_bytes(), path.with_suffix(".json")
    if harm == "shorter":
        path.write_bytes(whole[:-100])
    elif harm == "other":
        path.write_bytes(whole[:-1] + b"x")
    elif harm == "no sidecar":
        sidecar.unlink()
    else:
        sidecar.write_text(sidecar.read_text()[:50])
    assert download(server, tmp_path, "--image", "11") == 0
    assert path.read_bytes() == whole
    assert about(tmp_path, 11)["bytes"] == len(whole)


def test_an_aborted_run_goes_on(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between an image and its sidecar. Catches a sidecar written first, and a restart."""

    def stop(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    assert download(server, tmp_path, "--image", "11") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", stop)
        assert download(server, tmp_path, "--image", "11", "12") == 130
    assert len(list(tmp_path.glob("*.jpg"))) == 2
    assert len(list(tmp_path.glob("*.json"))) == 1
    server.asked.clear()
    assert download(server, tmp_path, "--image", "11", "12", "13") == 0
    assert pictures(tmp_path) == [11, 12, 13]
    assert not server.asked_for("/11/")


@pytest.mark.parametrize(
    ("failures", "waited"),
    [
        ([omero_server.answers(500)], [1]),
        ([omero_server.answers(503), omero_server.answers(502)], [1, 2]),
        ([omero_server.answers(429, Retry_After="7")], [7]),
        ([omero_server.answers(429), omero_server.answers(503, Retry_After="0")], [1, 0]),
        ([omero_server.answers(429, Retry_After="soon")], [1]),
        ([omero_server.cut, omero_server.silence], [1, 2]),
    ],
    ids=["500", "503 502", "429", "asked for nothing", "asked for nonsense", "cut"],
)
@pytest.mark.parametrize("at", ["/api/v0/m/images/12/", "/annotations/", "/render_image/12/"])
def test_what_may_pass_is_waited_for(
    at: str, failures: list[Any], waited: list[float], server: Any, tmp_path: Path,
    waits: list[float],
) -> None:  # fmt: skip
    """Catches no second attempt, one without a wait, and a Retry-After that is not read."""
    server.failures[at] = list(failures)
    assert download(server, tmp_path, "--image", "12") == 0
    assert pictures(tmp_path) == [12]
    assert retries(waits) == waited


def test_a_date_to_retry_after_is_waited_for(
    server: Any, tmp_path: Path, waits: list[float]
) -> None:
    """Catches a date that is read in the local time zone, or not at all; 10 s are for the run."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    server.failures["render_image"] = [omero_server.answers(429, Retry_After=date)]
    assert download(server, tmp_path, "--image", "12") == 0
    (wait,) = retries(waits)
    assert 90 < wait <= 100


def test_a_server_that_wants_peace_for_long_is_left_alone(
    server: Any, tmp_path: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a wait of a day, and one more attempt within it."""
    server.failures["render_image"] = [omero_server.answers(429, Retry_After="86400")] * 9
    assert download(server, tmp_path, "--image", "12") == 2
    assert "86400 s" in capsys.readouterr().err
    assert retries(waits) == []
    assert len(server.asked_for("render_image")) == 1


def test_requests_are_spaced(server: Any, tmp_path: Path, waits: list[float]) -> None:
    """Catches a pause that is forgotten for some requests."""
    assert download(server, tmp_path, "--image", "11", "12") == 0
    assert waits == [PAUSE] * len(server.asked)
    assert len(server.asked_for("project=3")) == 1  # the study of both is asked for once


def test_what_fails_for_good_is_left_for_the_next_run(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an end at the first failure, exit code 0 for a part, and endless attempts."""
    server.failures["render_image/12/"] = [omero_server.answers(500)] * web.ATTEMPTS
    assert download(server, tmp_path, "--image", "11", "12", "13") == 1
    error = capsys.readouterr().err.strip()
    assert "1 of 3" in error and "500" in error
    assert pictures(tmp_path) == [11, 13]
    server.asked.clear()
    assert download(server, tmp_path, "--image", "11", "12", "13") == 0
    assert pictures(tmp_path) == [11, 12, 13]
    assert not server.asked_for("/11/") + server.asked_for("/13/")


def test_a_server_that_fails_throughout_is_left_alone(server: Any, tmp_path: Path) -> None:
    """Catches a run that asks on for a thousand images; a success in between begins a new count."""
    for number in range(20, 30):
        server.images[number] = ("x", 160, 140, 1)
    server.failures["render_image"] = [omero_server.answers(403)] * 100
    numbers = [str(number) for number in range(20, 30)]
    assert download(server, tmp_path, "--image", *numbers) == 2
    assert len(server.asked_for("render_image")) == 5
    server.asked.clear()
    refused = [omero_server.answers(403)] * 4
    server.failures["render_image"] = [*refused, omero_server.rendered, *refused]
    assert download(server, tmp_path, "--image", *numbers) == 1
    assert len(server.asked_for("render_image")) == 10


@pytest.mark.parametrize("lenient", [False, True], ids=["OpenCV 5", "OpenCV 4"])
def test_half_a_picture_never_has_the_final_name(
    lenient: bool,
    server: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of unstated length. Catches trust in a decoder: an older one fills the rest up in grey."""
    if lenient:
        monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full((140, 160), 128, np.uint8))
    server.failures["render_image"] = [omero_server.truncated]
    assert download(server, tmp_path, "--image", "11", "12") == 1
    assert "part of a JPEG" in capsys.readouterr().err
    assert pictures(tmp_path) == [12]
    assert download(server, tmp_path, "--image", "11", "12") == 0
    assert pictures(tmp_path) == [11, 12]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>Log in</html>", "something else than a JPEG"),
        (b"", "something else than a JPEG"),
        (omero_server.picture(96, 96), "96 x 96 px, not the 160 x 140"),
    ],
    ids=["page", "nothing", "thumbnail"],
)
def test_what_is_not_the_image_is_refused(
    body: bytes, words: str, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches whatever comes with status 200 written as an image."""
    server.bodies[12] = body
    assert download(server, tmp_path, "--image", "12") == 2
    assert words in capsys.readouterr().err
    assert pictures(tmp_path) == []


def test_an_image_that_is_not_there_is_said_and_the_others_are_fetched(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], waits: list[float]
) -> None:
    """Catches a 404 that is tried again, ends the run, or passes unsaid."""
    assert download(server, tmp_path, "--image", "99", "12") == 1
    assert "images/99/ answered 404, it is not there" in capsys.readouterr().err
    assert retries(waits) == []
    assert pictures(tmp_path) == [12]


@pytest.mark.parametrize("at", ["/api/v0/m/datasets/", "/api/v0/m/images/"])
def test_a_page_instead_of_json_is_one_sentence(
    at: str, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a traceback from the JSON reader: a login page comes with status 200."""
    server.lists["datasets/7/images"] = [{"@id": 11}]
    server.failures[at] = [omero_server.html]
    assert download(server, tmp_path, "--dataset", "7") == 2
    error = capsys.readouterr().err.strip()
    assert "something else than JSON (<!DOCTYPE html>" in error
    assert "Traceback" not in error and "\n" not in error


@pytest.mark.parametrize("value", [{}, [], {"data": []}, {"data": {"Name": "x"}}], ids=str)
def test_json_of_another_server_is_one_sentence(
    value: object, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a KeyError where JSON is not what OMERO's is."""
    server.failures["/images/11/"] = [lambda handler: handler.json(value)]
    assert download(server, tmp_path, "--image", "11") == 2
    error = capsys.readouterr().err.strip()
    assert "web API" in error and "\n" not in error


def test_small_images_and_missing_channels_are_passed_over(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a picture fetched for nothing, and the longer side compared."""
    server.images[12] = ("small", 400, 100, 2)
    server.images[13] = ("grey", 160, 140, 1)
    assert download(server, tmp_path, "--image", "11", "12", "13", "--channel", "2") == 0
    assert pictures(tmp_path) == [11]
    assert len(server.asked_for("render_image")) == 1
    assert download(server, tmp_path, "--image", "12") == 2
    assert "400 x 100 px, less than 128" in capsys.readouterr().err


def test_lists_are_read_to_their_end(server: Any, tmp_path: Path) -> None:
    """Pages of 2, though 200 are asked for. Catches the first page taken for all, and a step of
    the page asked for."""
    server.lists["datasets/7/images"] = [{"@id": 11}, {"@id": 12}, {"@id": 13}]
    assert download(server, tmp_path, "--dataset", "7") == 0
    assert pictures(tmp_path) == [11, 12, 13]
    offsets = [path.split("offset=")[1] for path in server.asked_for("datasets/7/images")]
    assert offsets == ["0", "2"]


def test_projects_and_screens_are_walked(server: Any, tmp_path: Path) -> None:
    """Catches a level left out, and a well without images, which has no such key."""
    server.lists["projects/3/datasets"] = [{"@id": 7}, {"@id": 8}]
    server.lists["datasets/7/images"] = [{"@id": 11}]
    server.lists["datasets/8/images"] = [{"@id": 12}, {"@id": 11}]
    assert download(server, tmp_path / "project", "--project", "3") == 0
    assert pictures(tmp_path / "project") == [11, 12]
    server.lists["screens/3/plates"] = [{"@id": 5}]
    server.lists["plates/5/wells"] = [
        {"@id": 1}, {"@id": 2, "WellSamples": [{"Image": {"@id": 13}}]}, {"@id": 3}
    ]  # fmt: skip
    assert download(server, tmp_path / "screen", "--screen", "3") == 0
    assert pictures(tmp_path / "screen") == [13]


def test_a_search_is_followed_page_by_page(server: Any, tmp_path: Path) -> None:
    """Catches the first page taken for all, a lost bookmark, and words that are not encoded."""
    server.found = [11, 12, 13]
    assert download(server, tmp_path, "--search", "Gene Symbol = A=B & c") == 0
    assert pictures(tmp_path) == [11, 12, 13]
    pages = server.asked_for("image/search/")
    assert pages[0].endswith("?key=Gene%20Symbol&value=A%3DB%20%26%20c") or pages[0].endswith(
        "?key=Gene+Symbol&value=A%3DB+%26+c"
    )
    assert [path.partition("&bookmark=")[2] for path in pages] == ["", "12", "13"]


def test_no_more_is_listed_than_is_wanted(server: Any, tmp_path: Path) -> None:
    """Catches a search of millions that is listed to its end before anything is fetched."""
    server.found = [11, 12, 13]
    assert download(server, tmp_path, "--search", "a=b", "--limit", "2") == 0
    assert pictures(tmp_path) == [11, 12]
    assert len(server.asked_for("image/search/")) == 1


@pytest.mark.parametrize("which", [["--search", "a=b"], ["--dataset", "99"]], ids=" ".join)
def test_nothing_found_is_said(
    which: list[str], server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches exit code 0 for an empty folder."""
    assert download(server, tmp_path, *which) == 2
    assert "No images were found" in capsys.readouterr().err


def test_the_licence_nearest_to_the_image_counts(server: Any, tmp_path: Path) -> None:
    """Catches a study's licence over its own image's, and one of two that is passed over."""
    server.annotations["image", 11] = [("Licence", "CC0 1.0")]
    server.annotations["dataset", 8] = [("license ", "CC BY-NC 4.0"), ("License", "CC BY 4.0")]
    server.paths["image", 12] = [[("project", 3), ("dataset", 8)]]
    assert download(server, tmp_path, "--image", "11", "12", "13") == 0
    licences = [about(tmp_path, number)["licence"] for number in (11, 12, 13)]
    assert licences == ["CC0 1.0", "CC BY-NC 4.0; CC BY 4.0", CC_BY]


def test_no_licence_is_null_and_one_warning(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a licence that is made up, a warning for each image, and none at all."""
    server.annotations["project", 3] = [("License", "  "), ("Copyright", "Lawo et al")]
    with caplog.at_level(logging.INFO):
        assert download(server, tmp_path, "--image", "11", "12") == 0
    assert about(tmp_path, 11)["licence"] is None
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "2 images" in warnings[0] and "no licence stated" in warnings[0]


def test_only_wanted_licences_are_taken(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches the unknown let through, a picture fetched before the look, and one that lies there
    already let through."""
    server.paths["image", 12] = [[("project", 4)]]
    server.annotations["project", 4] = [("License", "CC BY-NC-SA 3.0 https://cc.org/by-nc-sa")]
    server.paths["image", 13] = []
    every = ("--image", "11", "12", "13")
    assert download(server, tmp_path / "some", *every, "--licence", "CC BY") == 0
    assert pictures(tmp_path / "some") == [11]
    assert len(server.asked_for("render_image")) == 1
    assert download(server, tmp_path / "all", *every) == 0
    assert pictures(tmp_path / "all") == [11, 12, 13]
    assert download(server, tmp_path / "all", "--image", "13", "--licence", "CC BY") == 2
    assert "licence unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stated", "wanted", "permitted"),
    [
        (CC_BY, ["CC BY"], True),
        ("CC-BY 4.0", ["cc by 4.0"], True),
        ("CC BY 3.0", ["CC BY 4.0"], False),
        ("CC BY-NC 4.0", ["CC BY"], False),
        ("CC BY 4.0; CC BY-NC 4.0", ["CC BY"], False),
        ("CC0 1.0", ["CC BY", "CC0"], True),
        ("CC BY 4.0", ["CC BY-SA"], False),
        (None, ["CC BY"], False),
        ("", [""], False),
        ("https://example.org", ["CC BY"], False),
    ],
)
def test_a_licence_permits_itself_and_no_other(
    stated: str | None, wanted: list[str], permitted: bool
) -> None:
    """Catches a look for the name anywhere in the text, which takes NC for BY."""
    assert permits(stated, wanted) is permitted


@pytest.mark.parametrize("old", [False, True], ids=["paths know wells", "only imgData does"])
def test_the_licence_of_a_screen_is_found(old: bool, server: Any, tmp_path: Path) -> None:
    """Catches images of plates without their study, and an id asked for as of another kind."""
    to_plate = [("experimenter", 2), ("screen", 3), ("plate", 5)]
    server.annotations["screen", 3] = [("License", "CC0 1.0")]
    server.annotations["well", 70] = [("Cell Line", "HeLa")]
    server.paths["image", 12] = [[("orphaned", 2)] if old else [*to_plate, ("well", 70)]]
    server.paths["well", 70] = [to_plate]
    server.wells[12] = 70
    assert download(server, tmp_path, "--image", "12") == 0
    told = about(tmp_path, 12)
    assert told["licence"] == "CC0 1.0"
    assert [a["of"] for a in told["annotations"]] == ["well 70", "screen 3"]


def test_what_belongs_to_another_is_not_credited(server: Any, tmp_path: Path) -> None:
    """Catches a server that ignores the question and tells of another study."""
    server.parents["project", 3] = 4
    assert download(server, tmp_path, "--image", "12") == 0
    assert about(tmp_path, 12)["licence"] is None


def test_no_server_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], waits: list[float]
) -> None:
    """Catches a traceback, and five attempts for every image of a server that is not there."""
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        options = ["--server", address, "--out", str(tmp_path), "--pause", str(PAUSE)]
        assert main(["download", *options, "--image", "1", "2", "3"]) == 1
    error = capsys.readouterr().err.strip()
    assert "could not be reached" in error and "\n" not in error
    assert retries(waits) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--server", "idr.openmicroscopy.org"], "--server"),
        (["--server", "ftp://host"], "--server"),
        (["--server", "http://host:port"], "--server"),
        (["--server", "http://"], "--server"),
        (["--limit", "0"], "--limit"),
        (["--channel", "0"], "--channel"),
        (["--pause", "nan"], "--pause"),
        (["--min-size", "0"], "--min-size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_sentence(
    wrong: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a traceback, and a folder made for nothing."""
    folder = tmp_path / "out"
    assert main(["download", "--out", str(folder), "--image", "1", *wrong]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error
    assert not folder.exists()


@pytest.mark.parametrize("search", ["Organism", "=x", "a=", "a= "])
def test_a_search_needs_a_key_and_a_value(
    search: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a search for nothing, which finds everything."""
    assert main(["download", "--out", str(tmp_path / "out"), "--search", search]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_a_file_is_no_folder(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a traceback from the file system."""
    path = tmp_path / "file"
    path.write_text("")
    assert download(server, path, "--image", "11") == 2
    assert "--out" in capsys.readouterr().err
