"""The `/live` WebSocket: raw 16 bit images, paced by the client.

``/live?view=raw,mean,reconstruction`` subscribes to one or more views (default:
``reconstruction``). Each image is one binary message in the form of `device.images.live_message`.

The client paces the server by credit: ``{"credit": n}`` allows n more *results*. A result is one
image of every view subscribed to, sent one after another in the order asked for and all with the
same `timestamp_ns`, so that pictures shown side by side show the same moment; with a single view a
result is one image. At most 4 are outstanding: what is granted beyond is forgotten. The newest
result is sent, those that came while there was no credit are passed over. A client that grants
one credit for each result it has drawn can never fall behind.

What cannot be understood ends the connection with code 1008 and a sentence as its reason, a fault
of the server with 1011; the client need not guess from silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

from fastapi import WebSocket, WebSocketDisconnect

from device.feed import UNTOLD, VIEW_NAMES, Feed, FeedClosed, ViewName

logger = logging.getLogger(__name__)

MAX_CREDIT = 4
MAX_MESSAGE_BYTES = 1024
"""Longest message of a client that the server reads; the only one there is takes some 15."""

_GOING_AWAY = 1001
_POLICY_VIOLATION = 1008
_INTERNAL_ERROR = 1011


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
    except (ValueError, RecursionError):  # not JSON, or nested beyond measure
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
        views = parse_views(view_names)
        if "error" in views and not feed.tells_error:
            raise ProtocolError(UNTOLD)
    except ProtocolError as error:
        await _close(socket, error)
    else:
        await _close(socket, await _serve_views(socket, feed, views))


async def _serve_views(
    socket: WebSocket, feed: Feed, views: Sequence[ViewName]
) -> BaseException | None:
    """Send and read at once, until either ends; return why it did.

    Whoever does not read keeps dead clients; whoever only reads leaves a client of a sender that
    failed waiting for ever.
    """
    credit = Credit()
    work = _read(socket, credit), _send(socket, feed, views, credit)
    tasks = [asyncio.create_task(part) for part in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return [task.exception() for task in tasks if task.done()][0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _close(socket: WebSocket, error: BaseException | None) -> None:
    """End a connection with what its client should know; log what should not have happened."""
    if isinstance(error, WebSocketDisconnect):
        return
    code, reason = _INTERNAL_ERROR, "An image could not be sent; the server's log says why."
    if isinstance(error, ProtocolError):
        code, reason = _POLICY_VIOLATION, str(error)
    elif isinstance(error, FeedClosed):
        code, reason = _GOING_AWAY, "The server is going down."
    else:
        logger.error("a live connection failed", exc_info=error)
    with contextlib.suppress(WebSocketDisconnect):
        await socket.close(code, reason)


async def _read(socket: WebSocket, credit: Credit) -> NoReturn:
    try:
        while True:  # until the client leaves
            credit.grant(parse_credit(await socket.receive_text()))
    except KeyError as error:  # a binary message has no text
        raise ProtocolError('A message must be text: {"credit": n}.') from error


async def _send(
    socket: WebSocket, feed: Feed, views: Sequence[ViewName], credit: Credit
) -> NoReturn:
    seen = -1
    sent: dict[str, int] = {}
    while True:  # until the server goes down
        await credit.available()
        seen = await feed.wait(seen)
        if await _send_newer(socket, feed, views, sent):
            credit.spend()


async def _send_newer(
    socket: WebSocket, feed: Feed, views: Sequence[ViewName], sent: dict[str, int]
) -> bool:
    """Send the newest images that this client has not got; returns whether there were any."""
    newer = [view for view in await feed.latest(views) if view.seq != sent.get(view.view)]
    for view in newer:
        await socket.send_bytes(await feed.encoded(view, "live"))
        sent[view.view] = view.seq
    return bool(newer)
