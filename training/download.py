"""``python -m training download``: images of an OMERO server, licence and source beside each.

A folder of them is what `images` in the settings of the forward model cuts specimens from. An image
is one plane and one channel, as the server renders it, grey. Beside ``SERVER-ID-cCHANNEL.jpg`` lies
a JSON file of the same name with where it is from, what the server states of licence and authors,
and its SHA-256; it is written last, so that an image with a matching one is complete. The same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from device.errors import FaultError, UserError
from device.files import whole_or_nothing
from training import omero
from training.omero import Image, Omero
from training.web import Client, RefusedError, UnavailableError, UnreachableError, checked_server

log = logging.getLogger(__name__)

SERVER = "https://idr.openmicroscopy.org"
FAILURES_IN_A_ROW = 5
"""So many, and the server is left alone: what fails is not the image."""


class UnfitError(UserError):
    """An image that is not wanted, and why."""


@dataclass
class Tally:
    """How it went: images that are there now, and why others are not."""

    asked: int = 0
    there: int = 0
    unfit: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    in_a_row: int = 0

    def success(self) -> None:
        """Count an image that is there."""
        self.there += 1
        self.in_a_row = 0

    def failure(self, error: RefusedError | UnavailableError) -> None:
        """Count an image that could not be had; give up after too many in a row."""
        self.failed.append(str(error))
        self.in_a_row += 1
        if self.in_a_row >= FAILURES_IN_A_ROW:
            raise type(error)(
                f"{self.in_a_row} images in a row could not be had, the last: {error}"
            )


@dataclass(frozen=True)
class Download:
    """Which images are taken, and where they are put.

    Parameters
    ----------
    server : Omero
        Where from.
    folder : Path
        Where to.
    channel : int
        Counted from 1.
    min_size_px : int
        Smaller images are not taken.
    licences : list of str
        Others are not taken; if empty, all are.
    """

    server: Omero
    folder: Path
    channel: int
    min_size_px: int
    licences: list[str]

    def one(self, number: int) -> str:
        """Have one image in the folder; returns what to tell of it.

        Raises
        ------
        UnfitError
            It is not wanted.
        RefusedError, UnavailableError
            It cannot be had.
        """
        stem = self.folder / f"{_host(self.server.server)}-{number}-c{self.channel}"
        about = complete(stem)
        if about is not None:
            self._check_licence(number, about["licence"])
            return f"{stem.name} is there already"
        image = self.server.image(number)
        self._check(image)
        about = self._describe(image)
        self._check_licence(number, about["licence"])
        content = self.server.client.get(about["source"])
        check_picture(content, image, about["source"])
        write(stem, content, about)
        return f"{stem.name}.jpg: {about['licence'] or 'no licence stated'}"

    def _check(self, image: Image) -> None:
        if min(image.width, image.height) < self.min_size_px:
            size = f"{image.width} x {image.height} px"
            raise UnfitError(f"image {image.id} has {size}, less than {self.min_size_px}")
        if image.channels < self.channel:
            raise UnfitError(f"image {image.id} has {image.channels} channels, not {self.channel}")

    def _check_licence(self, number: int, licence: str | None) -> None:
        if self.licences and not omero.permits(licence, self.licences):
            raise UnfitError(f"image {number} has the licence {licence or 'unknown'}")

    def _describe(self, image: Image) -> dict[str, Any]:
        places = self.server.places_of(image.id)
        annotations = [a for place in places for a in self.server.annotations(place)]
        plane = image.planes // 2
        return {
            "server": self.server.server,
            "id": image.id,
            "name": image.name,
            "page": self.server.page(image.id),
            "source": self.server.rendered(image.id, plane, self.channel),
            "z": plane,
            "t": 0,
            "channel": self.channel,
            "pixel_size": image.pixel_size,
            "licence": omero.licence_of(annotations),
            "attribution": omero.attribution_of(annotations),
            "annotations": [
                {"of": f"{a.place.kind} {a.place.id}", "name": a.name, "namespace": a.namespace}
                | {"values": a.values}
                for a in annotations
            ],
        }


def complete(stem: Path) -> dict[str, Any] | None:
    """Return what is written of an image that lies there whole, or None."""
    try:
        about = json.loads(_sidecar(stem).read_text(encoding="utf-8"))
        content = _picture(stem).read_bytes()
    except (OSError, ValueError):
        return None
    whole = isinstance(about, dict) and about.get("sha256") == hashlib.sha256(content).hexdigest()
    return about if whole and "licence" in about else None


def write(stem: Path, content: bytes, about: dict[str, Any]) -> None:
    """Write an image and then what is known of it, each whole or not at all."""
    about = about | {
        "file": _picture(stem).name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "downloaded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        with whole_or_nothing(_picture(stem)) as path:
            path.write_bytes(content)
        with whole_or_nothing(_sidecar(stem)) as path:
            path.write_text(json.dumps(about, indent=2), encoding="utf-8")
    except OSError as error:
        raise FaultError(
            f"{_picture(stem)} could not be written ({error.strerror}); free space or choose "
            "another --out, the same command goes on."
        ) from error


def check_picture(content: bytes, image: Image, url: str) -> None:
    """Refuse what is not the whole JPEG of this image.

    OpenCV 4 fills up what is missing at the end in grey and says nothing, OpenCV 5 decodes nothing;
    hence the look at the marker that ends a JPEG (ITU-T T.81, B.1.1.3).
    """
    if not content.startswith(b"\xff\xd8"):
        raise RefusedError(f"{url} answered with something else than a JPEG; leave it out.")
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # it claims to be too large
        decoded = None
    if decoded is None or not content.rstrip(b"\0\r\n").endswith(b"\xff\xd9"):
        raise UnavailableError(f"{url} answered with a part of a JPEG; run the command again.")
    if decoded.shape != (image.height, image.width):
        seen = f"{decoded.shape[1]} x {decoded.shape[0]}"
        raise RefusedError(
            f"{url} is {seen} px, not the {image.width} x {image.height} that the server says; "
            "leave it out."
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--image", type=int, nargs="+", metavar="ID", help="these images")
    for kind in ("dataset", "project", "plate", "screen"):
        which.add_argument(f"--{kind}", type=int, metavar="ID", help=f"all images of a {kind}")
    which.add_argument("--search", metavar="KEY=VALUE", help='as "Gene Symbol=CDK5RAP2" (IDR)')
    parser.add_argument("--out", type=Path, default=Path("out/images"), help="folder to write into")
    parser.add_argument("--server", default=SERVER, help=f"default: {SERVER}")
    parser.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="NAME",
        help='take no other, nor the unknown, as "CC BY" or "CC0"; may be given several times',
    )
    parser.add_argument("--limit", type=int, default=100, help="images to look at, at most")
    parser.add_argument("--channel", type=int, default=1, help="counted from 1 (default)")
    parser.add_argument("--min-size", type=int, default=128, metavar="PX", help="shorter side")
    parser.add_argument("--pause", type=float, default=0.3, metavar="S", help="before each request")


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training download``."""
    server = _checked(arguments)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {arguments.out} is no folder to write into: {error}.") from error
    with Client(arguments.pause) as client:
        source = Omero(server, client)
        download = Download(
            source, arguments.out, arguments.channel, arguments.min_size, arguments.licence
        )
        numbers = dict.fromkeys(islice(chosen(source, arguments), arguments.limit))
        return report(run(download, list(numbers)), arguments.out)


def chosen(source: Omero, arguments: argparse.Namespace) -> Iterator[int]:
    """Yield the ids of the images that were asked for."""
    if arguments.image:
        yield from arguments.image
    elif arguments.search:
        key, _, value = arguments.search.partition("=")
        yield from source.search(key.strip(), value.strip())
    else:
        for kind in ("dataset", "project", "plate", "screen"):
            if getattr(arguments, kind) is not None:
                yield from source.images_in(kind, getattr(arguments, kind))


def run(download: Download, numbers: list[int]) -> Tally:
    """Have these images in the folder, one after the other."""
    tally = Tally(len(numbers))
    for place, number in enumerate(numbers, 1):
        try:
            log.info("%d/%d %s", place, len(numbers), download.one(number))
            tally.success()
        except UnreachableError:
            raise
        except UnfitError as error:
            log.info("%d/%d passed over: %s", place, len(numbers), error)
            tally.unfit.append(str(error))
        except (RefusedError, UnavailableError) as error:
            log.warning("%d/%d %s", place, len(numbers), error)
            tally.failure(error)
    return tally


def report(tally: Tally, folder: Path) -> int:
    """Say how it went, and warn of what has no licence; returns the exit code.

    Raises
    ------
    UserError
        There is no image now: nothing was found, or none was wanted.
    FaultError
        Some could not be had.
    """
    if not tally.asked:
        raise UserError("No images were found; check the id or the words of the search.")
    passed = f"{len(tally.unfit)} passed over, {len(tally.failed)} could not be had"
    log.info("%s: %d of %d images, %s", folder, tally.there, tally.asked, passed)
    unknown = unlicensed(folder)
    if unknown:
        log.warning(
            "%d images in %s have no licence stated, as %s: ask their authors before you pass on "
            "what you make of them", len(unknown), folder, unknown[0],
        )  # fmt: skip
    if not tally.there:
        first = (tally.failed + tally.unfit)[0].rstrip(".")
        raise UserError(f"None of {tally.asked} images was taken, the first: {first}.")
    if tally.failed:
        raise FaultError(
            f"{len(tally.failed)} of {tally.asked} images could not be had, the first: "
            f"{tally.failed[0]}"
        )
    return 0


def unlicensed(folder: Path) -> list[str]:
    """Return the names of the images in a folder that state no licence."""
    stems = (path.with_suffix("") for path in sorted(folder.glob("*.json")))
    known = ((stem.name, complete(stem)) for stem in stems)
    return [name for name, about in known if about is not None and about["licence"] is None]


def _checked(arguments: argparse.Namespace) -> str:
    for name, least in (("limit", 1), ("channel", 1), ("min_size", 1), ("pause", 0)):
        if not getattr(arguments, name) >= least:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {getattr(arguments, name)}; give {least} or more.")
    if arguments.search and not re.fullmatch(r"[^=]*\S[^=]*=.*\S.*", arguments.search):
        raise UserError(f"--search is {arguments.search!r}; expected KEY=VALUE.")
    return checked_server(arguments.server)


def _host(server: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", urlsplit(server).netloc)


def _picture(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.jpg")


def _sidecar(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.json")
