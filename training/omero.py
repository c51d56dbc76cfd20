"""What an OMERO server tells everybody about its images, through its web API.

Three parts of that API are asked, all without a login where the server has a public user:

- the JSON API, ``/api/v0/m/`` (https://omero.readthedocs.io/en/stable/developers/json-api.html):
  lists, in pages of a limit that the server sets, and single images;
- the web client's own, ``/webclient/api/``: in what an image lies, and the map annotations, in
  which the licence and the authors are stated (https://idr.openmicroscopy.org/about/api.html);
- WebGateway, ``/webgateway/``: a plane as JPEG
  (https://omero.readthedocs.io/en/stable/developers/Web/WebGateway.html).

The search is that of the Image Data Resource, ``/searchengine/api/v1/``
(https://omero-search-engine.readthedocs.io).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from training.web import Client, Parameters, RefusedError, address

CONTAINERS = ("well", "dataset", "plate", "project", "screen")
"""What an image can lie in and what can be annotated, the nearest first."""
PAGE = 200
LICENCE_KEYS = {"license", "licence"}
ATTRIBUTION = re.compile(
    r"copyright|author|attribution|publication|pubmed|doi\b|publisher|study title", re.IGNORECASE
)


class Place(NamedTuple):
    """Something of the server's that can be annotated: `kind` is image or one of CONTAINERS."""

    kind: str
    id: int


@dataclass(frozen=True)
class Image:
    """What the server says of an image.

    Attributes
    ----------
    id, name
        As on the server; the name may hold any character.
    width, height, planes, channels : int
        In pixels, and numbers of planes along Z and of channels.
    pixel_size : dict or None
        Width of a pixel, with its unit, as stated.
    """

    id: int
    name: str
    width: int
    height: int
    planes: int
    channels: int
    pixel_size: dict[str, Any] | None


class Annotation(NamedTuple):
    """Keys and values that somebody attached to a place."""

    place: Place
    name: str | None
    namespace: str | None
    values: list[tuple[str, str]]


@dataclass
class Omero:
    """A server's public side.

    Parameters
    ----------
    server : str
        Its address, without a slash at the end.
    client : Client
        What asks.
    """

    server: str
    client: Client
    _annotations: dict[Place, list[Annotation]] = field(default_factory=dict)

    def images_in(self, kind: str, number: int) -> Iterator[int]:
        """Yield the ids of all images in a dataset, project, plate or screen."""
        if kind == "project":
            for dataset in self._listed(f"projects/{number}/datasets/"):
                yield from self.images_in("dataset", dataset["@id"])
        elif kind == "screen":
            for plate in self._listed(f"screens/{number}/plates/"):
                yield from self.images_in("plate", plate["@id"])
        elif kind == "plate":
            for well in self._listed(f"plates/{number}/wells/"):  # one never imaged has no samples
                yield from (sample["Image"]["@id"] for sample in well.get("WellSamples", ()))
        else:
            yield from (image["@id"] for image in self._listed(f"datasets/{number}/images/"))

    def search(self, key: str, value: str) -> Iterator[int]:
        """Yield the ids of all images with an annotation of this key and value."""
        asked: dict[str, str | int] = {"key": key, "value": value}
        while True:
            page = self._json("/searchengine/api/v1/resources/image/search/", asked)
            found = page.get("results") if isinstance(page, dict) else None
            if not isinstance(found, dict):  # how it says that it found nothing
                return
            images = found.get("results") or []
            yield from (int(image["id"]) for image in images)
            bookmark = found.get("bookmark")
            mark = bookmark[0] if isinstance(bookmark, list) and bookmark else bookmark
            if not images or not mark or mark == asked.get("bookmark"):
                return
            asked["bookmark"] = mark

    def image(self, number: int) -> Image:
        """Return what the server says of one image."""
        data = _part(self._json(f"/api/v0/m/images/{number}/"), "data", dict, self.server)
        pixels = _part(data, "Pixels", dict, self.server)
        size = pixels.get("PhysicalSizeX")
        return Image(
            id=number,
            name=str(data.get("Name", "")),
            width=_part(pixels, "SizeX", int, self.server),
            height=_part(pixels, "SizeY", int, self.server),
            planes=_part(pixels, "SizeZ", int, self.server),
            channels=_part(pixels, "SizeC", int, self.server),
            pixel_size={"value": size.get("Value"), "unit": size.get("Symbol")} if size else None,
        )

    def places_of(self, number: int) -> list[Place]:
        """Return the image and all that it lies in, the nearest first."""
        found = self._parents({"image": number})
        if not found:  # older servers say of an image in a well only that it is in no dataset
            about = self._json(f"/webgateway/imgData/{number}/")
            meta = about.get("meta") if isinstance(about, dict) else None
            well = (meta or {}).get("wellId")
            found = {Place("well", well), *self._parents({"well": well})} if well else set()
        return [Place("image", number), *sorted(found, key=_distance)]

    def annotations(self, place: Place) -> list[Annotation]:
        """Return the map annotations of one place; those of containers are asked for once."""
        if place in self._annotations:
            return self._annotations[place]
        asked: dict[str, str | int] = {"type": "map", place.kind: place.id}
        answer = self._json("/webclient/api/annotations/", asked)
        found = [_annotation(place, a) for a in _part(answer, "annotations", list, self.server)]
        kept = [annotation for annotation in found if annotation is not None]
        if place.kind != "image":
            self._annotations[place] = kept
        return kept

    def rendered(self, number: int, plane: int, channel: int) -> str:
        """Return the address of a plane as a grey JPEG; channels are counted from 1."""
        path = f"/webgateway/render_image/{number}/{plane}/0/"
        return address(self.server, path, {"c": channel, "m": "g"})

    def page(self, number: int) -> str:
        """Return the address of the page on which a person finds an image."""
        return address(self.server, "/webclient/", {"show": f"image-{number}"})

    def _parents(self, asked: Parameters) -> set[Place]:
        answer = self._json("/webclient/api/paths_to_object/", asked)
        paths = _part(answer, "paths", list, self.server)
        steps = (step for path in paths for step in path)
        return {Place(s["type"], s["id"]) for s in steps if s["type"] in CONTAINERS}

    def _listed(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield what the JSON API lists, page by page; the server may shorten the pages."""
        seen = 0
        while True:
            answer = self._json(f"/api/v0/m/{path}", {"limit": PAGE, "offset": seen})
            data = _part(answer, "data", list, self.server)
            yield from data
            seen += len(data)
            if not data or seen >= (answer.get("meta") or {}).get("totalCount", 0):
                return

    def _json(self, path: str, parameters: Parameters | None = None) -> Any:
        return self.client.get_json(address(self.server, path, parameters))


def licence_of(annotations: list[Annotation]) -> str | None:
    """Return the licence stated nearest to the image, or None.

    `annotations` are in the order of `Omero.places_of`. Where the same place, or two of the same
    kind, state several, all are returned, separated by semicolons.
    """
    stated: dict[str, list[str]] = {}
    for annotation in annotations:
        for key, value in annotation.values:
            if key.strip().lower() in LICENCE_KEYS and value.strip():
                stated.setdefault(annotation.place.kind, []).append(value.strip())
    nearest = next(iter(stated.values()), None)
    return "; ".join(dict.fromkeys(nearest)) if nearest else None


def attribution_of(annotations: list[Annotation]) -> dict[str, list[str]]:
    """Return what says whom to name: authors, copyright, publication, as stated."""
    credits: dict[str, list[str]] = {}
    for annotation in annotations:
        for key, value in annotation.values:
            if ATTRIBUTION.search(key) and value not in credits.setdefault(key, []):
                credits[key].append(value)
    return credits


def permits(stated: str | None, wanted: list[str]) -> bool:
    """Say whether a stated licence is one of those wanted, of any version unless one is named.

    The unknown is never permitted, and `CC BY` does not permit `CC BY-NC`.
    """
    words = _words(stated or "")
    return any(
        words[: len(w)] == w and all(word.isdigit() for word in words[len(w) :])
        for w in map(_words, wanted)
        if w
    )


def _words(licence: str) -> list[str]:
    """``CC-BY 4.0 https://...`` as ``[cc, by, 4, 0]``; a second licence keeps its words too."""
    return re.findall(r"[^\W_]+", re.sub(r"https?://[^\s;]*", " ", licence).lower())


def _annotation(place: Place, stated: dict[str, Any]) -> Annotation | None:
    """Read one map annotation; None where the server says that it is another place's."""
    parent = (stated.get("link") or {}).get("parent") or {}
    if parent.get("id", place.id) != place.id:
        return None
    values = [(str(pair[0]), str(pair[1])) for pair in stated.get("values") or [] if len(pair) > 1]
    return Annotation(place, parent.get("name"), stated.get("ns"), values)


def _distance(place: Place) -> tuple[int, int]:
    return CONTAINERS.index(place.kind), place.id


def _part(answer: Any, key: str, kind: type, server: str) -> Any:
    """Take a part of an answer that has to be there and to be of this kind."""
    part = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(part, kind):
        raise RefusedError(
            f"{server} answered without the {key!r} that OMERO's web API has there; "
            "check that the address is an OMERO server's."
        )
    return part
