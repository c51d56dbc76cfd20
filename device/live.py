"""The `/live` WebSocket: raw 16 bit images, paced by the client.

``/live?view=raw,mean,reconstruction`` subscribes to one or more views (default:
``reconstruction``). Each image is one binary message in the form of `device.images.live_message`.

The client paces the server by credit: ``{"credit": n}`` allows n more *results*. A result is one
image of every view subscribed to, sent one after another in the order asked for and all with the
same `timestamp_ns`, so that pictures shown side by side show the same moment; with a single view a
result is one image. At most 4 are outstanding: what is granted beyond is forgotten. The newest
result is sent, those that came while there was no credit are passed over. A client that grants
one credit for each result it has drawn can never fall behind.

What cannot be understood ends the connection with code 1008 and a sentence as its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from device.feed import VIEW_NAMES, Feed, FeedClosed, ViewName

MAX_CREDIT = 4
_GOING_AWAY = 1001
_POLICY_VIOLATION = 1008


class ProtocolError(Exception):
    """The client said something that cannot be understood; the text is one sentence."""


class Credit:
    """How many results may still be sent."""

    def __init__(self) -> None:
        self._left = 0
        self._some = asyncio.Event()

    def grant(self, number: int) -> None:
        """Allow `number` more results, at most `MAX_CREDIT` in all."""
        self._left = min(MAX_CREDIT, self._left + number)
        if self._left:
            self._some.set()

    def spend(self) -> None:
        """Count one result as sent."""
        self._left -= 1
        if not self._left:
            self._some.clear()

    async def available(self) -> None:
        """Wait until a result may be sent."""
        await self._some.wait()


def parse_views(text: str) -> list[ViewName]:
    """Read the ``view`` parameter, names separated by commas.

    Raises
    ------
    ProtocolError
        A name is not that of a view.
    """
    asked = list(dict.fromkeys(text.split(",")))
    views = [name for name in VIEW_NAMES if name in asked]
    if len(views) != len(asked):
        raise ProtocolError(f"Unknown view; choose from {', '.join(VIEW_NAMES)}.")
    return sorted(views, key=asked.index)


def parse_credit(text: str) -> int:
    """Read a message of the client.

    Raises
    ------
    ProtocolError
        It is not ``{"credit": n}`` with a whole n from 0 up.
    """
    try:
        message: Any = json.loads(text)
    except ValueError:
        message = None
    number = message.get("credit") if isinstance(message, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ProtocolError('A message must be {"credit": n} with a whole n from 0 up.')
    return number


async def serve_live(socket: WebSocket, feed: Feed, view_names: str) -> None:
    """Serve one client until it leaves or the server goes down.

    Parameters
    ----------
    socket : WebSocket
        Not yet accepted.
    feed : Feed
        Where the images come from.
    view_names : str
        The ``view`` parameter of the address.
    """
    await socket.accept()
    try:
        await _serve_views(socket, feed, parse_views(view_names))
    except ProtocolError as error:
        await socket.close(_POLICY_VIOLATION, str(error))
    except WebSocketDisconnect:
        pass


async def _serve_views(socket: WebSocket, feed: Feed, views: Sequence[ViewName]) -> None:
    """Send in one task and read in this one: whoever does not read keeps dead clients."""
    credit = Credit()
    sender = asyncio.create_task(_send(socket, feed, views, credit))
    try:
        async for text in socket.iter_text():  # ends when the client leaves
            credit.grant(parse_credit(text))
    except KeyError as error:  # a binary message has no text
        raise ProtocolError('A message must be text: {"credit": n}.') from error
    finally:
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect):
            await sender


async def _send(socket: WebSocket, feed: Feed, views: Sequence[ViewName], credit: Credit) -> None:
    seen = -1
    sent: dict[str, int] = {}
    try:
        while True:
            await credit.available()
            seen = await feed.wait(seen)
            if await _send_newer(socket, feed, views, sent):
                credit.spend()
    except FeedClosed:
        await socket.close(_GOING_AWAY, "The server is going down.")


async def _send_newer(
    socket: WebSocket, feed: Feed, views: Sequence[ViewName], sent: dict[str, int]
) -> bool:
    """Send the newest images that this client has not got; returns whether there were any."""
    newer = [view for view in feed.latest(views) if view.seq != sent.get(view.view)]
    for view in newer:
        await socket.send_bytes(await feed.encoded(view, "live"))
        sent[view.view] = view.seq
    return bool(newer)
