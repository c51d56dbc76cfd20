"""GET requests over HTTP that are polite, and that do not give up at the first failure.

One connection, a pause before every request, a limit on time and size. What may be better the next
time (no connection, a cut connection, 429 and most of 5xx) is tried again, each time after twice
the wait, or after as long as the server asked for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from time import sleep
from types import TracebackType
from typing import Any, NamedTuple

import httpx

from device.errors import FaultError, UserError

log = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 600.0
MAX_BYTES = 256 * 2**20
GO_ON = "check the network; the same command goes on, now or later."
AGAIN = {408, 425, 429, 500, 502, 503, 504}

Parameters = Mapping[str, str | int]


class RefusedError(UserError):
    """The server answered, and asking again would not change its answer."""


class UnavailableError(FaultError):
    """The server did not answer well, however often it was asked."""


class UnreachableError(UnavailableError):
    """There is no server, or no way to it."""


class _Failure(NamedTuple):
    """Why an attempt failed, and how long the server asked to be left alone, if it did."""

    reason: str
    wait_s: float | None = None
    error: type[UnavailableError] = UnavailableError


class Client:
    """What asks; use it in a `with` block.

    Parameters
    ----------
    pause_s : float
        Before every request.
    timeout_s : float
        For a connection, and for every further piece of an answer.
    """

    def __init__(self, pause_s: float = 0.3, timeout_s: float = 60.0) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of every request
        self.pause_s = pause_s
        agent = f"learn2sofi/{version('learn2sofi')}"
        self._http = httpx.Client(
            follow_redirects=True, timeout=timeout_s, headers={"User-Agent": agent}
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, url: str) -> bytes:
        """Return the body of the answer, whole.

        Raises
        ------
        RefusedError
            It is not there, not for everybody, or too large.
        UnavailableError
            The server still failed at the last attempt, or wants to be left alone for long.
        """
        wait_s = FIRST_WAIT_S
        for left in reversed(range(ATTEMPTS)):
            sleep(self.pause_s)
            answer = self._attempt(url)
            if isinstance(answer, bytes):
                return answer
            asked_s = wait_s if answer.wait_s is None else answer.wait_s
            if asked_s > LONGEST_WAIT_S:
                raise answer.error(
                    f"{url} {answer.reason} and asked to wait {asked_s:.0f} s; {GO_ON}"
                )
            if not left:
                raise answer.error(f"{url} {answer.reason}, the last of {ATTEMPTS} times; {GO_ON}")
            log.info("%s %s; once more in %.0f s", url, answer.reason, asked_s)
            sleep(asked_s)
            wait_s *= 2
        raise AssertionError("unreachable")

    def get_json(self, url: str) -> Any:
        """Return the JSON value that the server answers with.

        Raises
        ------
        RefusedError
            It answered with something else, a login page perhaps.
        """
        body = self.get(url)
        try:
            return json.loads(body)
        except ValueError as error:
            raise RefusedError(
                f"{url} answered with something else than JSON ({_begin(body)}); expected an "
                "OMERO server that is open without a login; check the address."
            ) from error

    def _attempt(self, url: str) -> bytes | _Failure:
        try:
            with self._http.stream("GET", url) as answer:
                if answer.status_code in AGAIN:
                    return _Failure(f"answered {answer.status_code}", _retry_after(answer))
                if not answer.is_success:
                    raise RefusedError(_refusal(url, answer.status_code))
                return _body(url, answer)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return _Failure(f"could not be reached ({error})", error=UnreachableError)
        except httpx.RequestError as error:
            return _Failure(f"broke off ({error or type(error).__name__})")


def address(server: str, path: str, parameters: Parameters | None = None) -> str:
    """Return the URL of a path on a server, its parameters encoded."""
    return str(httpx.URL(f"{server}{path}", params=dict(parameters or {})))


def checked_server(server: str) -> str:
    """Return the address of a server without its last slash.

    Raises
    ------
    UserError
        It is no address of a web server.
    """
    try:
        url = httpx.URL(server)
        valid = url.scheme in ("http", "https") and bool(url.host)
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise UserError(
            f"--server is {server!r}; expected an address such as https://idr.openmicroscopy.org."
        )
    return server.rstrip("/")


def _body(url: str, answer: httpx.Response) -> bytes:
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > MAX_BYTES:
            raise RefusedError(f"{url} is larger than {MAX_BYTES // 2**20} MiB; leave it out.")
    return bytes(body)


def _refusal(url: str, status: int) -> str:
    why = {401: "it wants a login", 403: "it is not for everybody", 404: "it is not there"}
    return f"{url} answered {status}, {why.get(status, 'it cannot be had')}; check server and id."


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds that the server asked for (RFC 9110, 10.2.3): a number or a date."""
    asked = answer.headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked)
    try:
        date = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, (date.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _begin(body: bytes) -> str:
    return " ".join(body[:40].decode(errors="replace").split())
