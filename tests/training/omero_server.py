"""A server that answers as OMERO's web API does, and fails when it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np

Failure = Callable[["Handler"], None]


def picture(width: int = 160, height: int = 140) -> bytes:
    """A JPEG with something on it."""
    y, x = np.mgrid[:height, :width]
    grey = 30 + 200 * np.exp(-((y - 60) ** 2 + (x - 90) ** 2) / 300)
    return bytes(cv2.imencode(".jpg", grey.astype(np.uint8))[1])


class OmeroServer:
    """What it holds and how it fails; all of it may be changed while it runs.

    Attributes
    ----------
    images : dict
        Id to name, width, height and channels.
    bodies : dict
        Id to what it gives out as the picture; `picture` where none is set.
    paths : dict
        What paths_to_object says of an image or a well, by ("image", id).
    annotations : dict
        Pairs of key and value by ("project", id); the parent's id is as asked for.
    lists : dict
        Objects of the JSON API by path, as "datasets/7/images".
    failures : dict
        A part of an address to what is done instead, the first first; then all is well.
    page : int
        The largest page it gives out.
    """

    def __init__(self) -> None:
        self.images: dict[int, tuple[str, int, int, int]] = {}
        self.bodies: dict[int, bytes] = {}
        self.paths: dict[tuple[str, int], list[list[tuple[str, int]]]] = {}
        self.annotations: dict[tuple[str, int], list[tuple[str, str]]] = {}
        self.parents: dict[tuple[str, int], int] = {}
        self.wells: dict[int, int] = {}
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.found: list[int] = []
        self.failures: dict[str, list[Failure]] = {}
        self.page = 2
        self.asked: list[str] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.omero = self  # type: ignore[attr-defined]
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def asked_for(self, part: str) -> list[str]:
        return [path for path in self.asked if part in path]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:  # noqa: C901 - the table of addresses
        omero = self.omero
        omero.asked.append(self.path)
        for part, failures in omero.failures.items():
            if part in self.path and failures:
                failures.pop(0)(self)
                return
        url = urlsplit(self.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        steps = url.path.strip("/").split("/")
        match steps:
            case ["api", "v0", "m", "images", number]:
                self._image(int(number))
            case ["api", "v0", "m", *path]:
                self._list("/".join(path), asked)
            case ["webclient", "api", "paths_to_object"]:
                self._paths(asked)
            case ["webclient", "api", "annotations"]:
                self._annotations(asked)
            case ["webgateway", view, number, *_]:
                self._webgateway(view, int(number))
            case ["searchengine", "api", "v1", "resources", "image", "search"]:
                self._search(asked)
            case _:
                self.send(b"<html>Page not found</html>", "text/html", 404)

    @property
    def omero(self) -> OmeroServer:
        server: OmeroServer = self.server.omero  # type: ignore[attr-defined]
        return server

    def send(self, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def json(self, value: object) -> None:
        self.send(json.dumps(value).encode(), "application/json")

    def _image(self, number: int) -> None:
        if number not in self.omero.images:
            self.send(b'{"message": "Image not found"}', "application/json", 404)
            return
        name, width, height, channels = self.omero.images[number]
        size = {"Value": 0.1, "Symbol": "\u00b5m", "@type": "TBD#LengthI"}
        pixels = {"SizeX": width, "SizeY": height, "SizeZ": 5, "SizeC": channels, "SizeT": 1}
        pixels |= {"PhysicalSizeX": size}  # type: ignore[dict-item]
        self.json({"data": {"@id": number, "Name": name, "Pixels": pixels}})

    def _paths(self, asked: dict[str, str]) -> None:
        paths = self.omero.paths.get(thing(asked), [])
        self.json({"paths": [[{"type": t, "id": i} for t, i in path] for path in paths]})

    def _webgateway(self, view: str, number: int) -> None:
        if view == "imgData":
            self.json({"Exception": "no pixels", "meta": {"wellId": self.omero.wells.get(number)}})
        else:
            _, width, height, _ = self.omero.images[number]
            self.send(self.omero.bodies.get(number, picture(width, height)), "image/jpeg")

    def _list(self, path: str, asked: dict[str, str]) -> None:
        whole = self.omero.lists.get(path, [])
        offset, limit = int(asked["offset"]), min(int(asked["limit"]), self.omero.page)
        meta = {"totalCount": len(whole), "limit": limit, "offset": offset, "maxLimit": limit}
        self.json({"data": whole[offset : offset + limit], "meta": meta})

    def _annotations(self, asked: dict[str, str]) -> None:
        assert asked.pop("type") == "map"
        place = thing(asked)
        values = self.omero.annotations.get(place)
        parent = {"id": self.omero.parents.get(place, place[1]), "name": f"the {place[0]}"}
        one = {"ns": "study/info", "values": values, "link": {"parent": parent}}
        self.json({"annotations": [one] if values is not None else [], "experimenters": []})

    def _search(self, asked: dict[str, str]) -> None:
        after = int(asked.get("bookmark", 0))
        left = [number for number in self.omero.found if number > after]
        page = left[: self.omero.page]
        if not page:
            self.json({"notice": "no results", "results": []})
            return
        found = [{"id": number, "name": "x", "key_values": []} for number in page]
        self.json({"results": {"results": found, "bookmark": [page[-1]], "size": len(left)}})


def thing(asked: dict[str, str]) -> tuple[str, int]:
    (kind, number), *_ = asked.items()
    return kind, int(number)


def answers(status: int, **headers: str) -> Failure:
    """An answer of a status and nothing else."""
    return lambda handler: handler.send(b"", "text/plain", status, **headers)


def rendered(handler: Handler) -> None:
    """No failure: a picture."""
    handler.send(picture(), "image/jpeg")


def html(handler: Handler) -> None:
    """The login page, which OMERO.web sends with status 200."""
    handler.send(b"<!DOCTYPE html><html>Log in</html>", "text/html")


def cut(handler: Handler) -> None:
    """Half of the body that was promised."""
    body = picture()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def truncated(handler: Handler) -> None:
    """Half of a body of which nobody said how long it is."""
    body = picture()
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def silence(handler: Handler) -> None:
    """The connection is closed without an answer."""
    handler.close_connection = True
