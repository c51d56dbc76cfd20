"""From the pipeline's threads to any number of asyncio clients, each image encoded at most once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from device.images import JpegEncoder, live_message

if TYPE_CHECKING:
    from device.pipeline import Pipeline, View

ViewName = Literal["raw", "mean", "std", "reconstruction", "error"]
VIEW_NAMES: tuple[ViewName, ...] = get_args(ViewName)
Form = Literal["live", "jpeg"]
UNTOLD = "This model does not say how far its images may be off."
_COMPUTED = ("std", "error")  # when somebody asks for them


class FeedClosed(Exception):
    """The server is going down; no further image will come."""


class Feed:
    """New results of a pipeline, for clients of one event loop.

    A view that nobody asks for is neither fetched nor encoded; one that many ask for is encoded
    once, in a worker thread, so that the event loop stays free.

    Parameters
    ----------
    pipeline : Pipeline
        Where the images come from.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._generation = 0
        self._news = asyncio.Event()
        self._closed = False
        self._unsubscribe: Callable[[], None] | None = None
        self._encoders: dict[tuple[str, Form], Callable[[View], bytes]] = {}
        self._encoded: dict[tuple[str, Form], tuple[int, asyncio.Future[bytes]]] = {}

    @property
    def tells_error(self) -> bool:
        """Whether there is a view of errors."""
        return self._pipeline.tells_error

    def open(self) -> None:
        """Begin to listen to the pipeline; called within the event loop."""
        loop = asyncio.get_running_loop()

        def announce() -> None:  # in the pipeline's thread
            loop.call_soon_threadsafe(self._advance)

        self._unsubscribe = self._pipeline.subscribe(announce)

    def close(self) -> None:
        """Stop listening and send everybody home who waits; called within the event loop."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._closed = True
        self._advance()

    def _advance(self) -> None:
        self._generation += 1
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, seen: int) -> int:
        """Wait until there is a result newer than generation `seen`.

        Parameters
        ----------
        seen : int
            What the last call returned; -1 to begin with what is there already.

        Returns
        -------
        int
            The newest generation. Those between are passed over: the newest image wins.

        Raises
        ------
        FeedClosed
            The server is going down.
        """
        while not self._closed and self._generation <= seen:
            await self._news.wait()
        if self._closed:
            raise FeedClosed
        return self._generation

    async def latest(self, names: Sequence[ViewName]) -> list[View]:
        """Return the newest images of these views, of one and the same result where possible.

        Returns
        -------
        list of View
            In the order of `names`, without those that have no image yet.
        """
        return await asyncio.to_thread(self._latest, names)  # some are computed when asked for

    def _latest(self, names: Sequence[ViewName]) -> list[View]:
        for _ in range(3):  # a result may be published between two of these calls
            # What takes long comes last, and is then of the same result as the others.
            in_turn = sorted(names, key=_COMPUTED.__contains__)
            found = {name: self._pipeline.latest(name) for name in in_turn}
            views = [view for name in names if (view := found[name]) is not None]
            if len({view.index for view in views}) <= 1:
                break
        return views

    async def encoded(self, view: View, form: Form) -> bytes:
        """Return an image in one of the forms; all clients share the work."""
        key = (view.view, form)
        known = self._encoded.get(key)
        if known is None or known[0] != view.seq:
            encode = self._encoders.setdefault(key, _new_encoder(form))
            known = view.seq, asyncio.ensure_future(asyncio.to_thread(encode, view))
            self._encoded[key] = known
        return await asyncio.shield(known[1])  # one client's end is not the others'


def _new_encoder(form: Form) -> Callable[[View], bytes]:
    return live_message if form == "live" else JpegEncoder()
