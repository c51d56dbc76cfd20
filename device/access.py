"""Who may use the microscope over a network: whoever has the token.

The token comes as ``Authorization: Bearer TOKEN`` (scripts, Prometheus) or through the login form,
which leaves a cookie (browsers, whose WebSocket sends it along). ``/healthz`` is open: it tells
nothing but whether frames come.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from device.errors import UserError

_log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz"})
LOGIN_PATH = "/login"
COOKIE = "learn2sofi"
MIN_TOKEN_CHARS = 32
MAX_FAILURES = 10
FAILURE_WINDOW_S = 60.0

_COOKIE_AGE_S = 30 * 24 * 3600
_MAX_ADDRESSES = 1000
_MAX_FORM_BYTES = 4096
_POLICY_VIOLATION = 1008

# The page's own colours; its style sheet is behind the token, too.
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark"><title>Learn2SOFI</title>
<style>*{{box-sizing:border-box;margin:0}}
body{{font:14px/1.4 system-ui,sans-serif;color:#c9c3bb;background:#0b0b0c;display:grid;
place-items:center;min-height:90vh;padding:20px}}
form{{width:min(100%,44ch)}}h1{{font-size:17px;font-weight:600;letter-spacing:.02em}}
label{{display:block;margin:14px 0 8px}}p{{display:flex}}
input,button{{font:inherit;height:40px;padding:0 13px;color:inherit;background:#151416;
border:1px solid #29262a;border-radius:7px}}input{{flex:1;min-width:0;margin-right:8px}}
:focus-visible{{outline:2px solid #d9a35c;outline-offset:2px}}.wrong{{color:#e0795f}}</style>
<form method="post" action="login"><h1>Learn2SOFI</h1>
<label for="token" class="{kind}">{text}</label>
<p><input id="token" name="token" type="password" autocomplete="current-password" required
autofocus><button>Open</button></p></form></html>"""
_ASK = "The microscope's access token, as shown by the first deploy:"
_WRONG = "That is not the microscope's access token. Try again:"


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen at can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """Read the access token.

    Parameters
    ----------
    path : Path
        A file with the token as its only line.

    Returns
    -------
    str
        The token.

    Raises
    ------
    UserError
        The file cannot be read, or what it holds can be guessed.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: the access token cannot be read ({error}); expected a file with one line; "
            f"make it: openssl rand -hex 32 > {path}"
        ) from error
    if len(token) < MIN_TOKEN_CHARS or not token.isprintable() or " " in token:
        raise UserError(
            f"{path}: the access token could be guessed or mistyped; expected at least "
            f"{MIN_TOKEN_CHARS} characters without blanks; make it: openssl rand -hex 32 > {path}"
        )
    return token


class Failures:
    """How often an address has failed lately; bounded in memory.

    Parameters
    ----------
    clock : callable
        Monotonic time in s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times_s: OrderedDict[str, deque[float]] = OrderedDict()

    def add(self, address: str) -> None:
        """Note a failure."""
        times_s = self._times_s.setdefault(address, deque(maxlen=MAX_FAILURES))
        times_s.append(self._clock())
        self._times_s.move_to_end(address)
        if len(self._times_s) > _MAX_ADDRESSES:
            self._times_s.popitem(last=False)

    def wait_s(self, address: str) -> float:
        """Time until an address may try again, in s; 0 if it may now."""
        times_s = self._times_s.get(address)
        if times_s is None or len(times_s) < MAX_FAILURES:
            return 0.0
        return max(0.0, times_s[0] + FAILURE_WINDOW_S - self._clock())


class AccessGuard:
    """Lets only those through who have the token; ASGI middleware around everything.

    Wrong tokens are counted for each address. From `MAX_FAILURES` a minute on, whoever is wrong is
    answered 429. The right token always passes: it has too many bits to be guessed, and so nobody
    can lock the user out who sits behind the same proxy.

    Parameters
    ----------
    app : ASGI application
        What is guarded.
    token : str
        From `read_token`.
    clock : callable
        Monotonic time in s.
    """

    def __init__(
        self, app: ASGIApp, token: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = hmac.new(self._token, b"learn2sofi page", hashlib.sha256).hexdigest()
        self._failures = Failures(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket") or self._may_pass(HTTPConnection(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()  # "connect"; closed before it was accepted, it becomes a 403
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            answer = await self._answer(Request(scope, receive))
            await answer(scope, receive, send)

    def _may_pass(self, connection: HTTPConnection) -> bool:
        if connection.url.path in OPEN_PATHS:
            return True
        bearer = connection.headers.get("authorization")
        cookie = connection.cookies.get(COOKIE)
        if bearer is None and cookie is None:
            return False
        kind, _, token = (bearer or "").partition(" ")
        right = (kind.lower() == "bearer" and self._is_token(token.strip())) or (
            cookie is not None and hmac.compare_digest(cookie.encode(), self._cookie.encode())
        )
        if not right:
            self._note_failure(connection)
        return right

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token)

    def _note_failure(self, connection: HTTPConnection) -> None:
        address = _address(connection)
        if not self._failures.wait_s(address):  # a flood fills no journal
            _log.warning("wrong access token from %s", address)
        self._failures.add(address)

    async def _answer(self, request: Request) -> Response:
        """Answer somebody who has not (yet) shown the token."""
        if request.url.path == LOGIN_PATH and request.method == "POST":
            return await self._log_in(request)
        return self._too_many(request) or _refusal(request)

    def _too_many(self, request: Request) -> Response | None:
        wait_s = self._failures.wait_s(_address(request))
        if not wait_s:
            return None
        text = f"Too many wrong tokens from your address; try again in {wait_s:.0f} s."
        headers = {"Retry-After": f"{wait_s + 1:.0f}"}
        return JSONResponse({"detail": text}, status_code=429, headers=headers)

    async def _log_in(self, request: Request) -> Response:
        if self._is_token(await _token_of_form(request)):
            return self._let_in(request)
        self._note_failure(request)
        return self._too_many(request) or _page(_WRONG)

    def _let_in(self, request: Request) -> Response:
        answer = RedirectResponse("./", status_code=303)
        answer.set_cookie(
            COOKIE,
            self._cookie,
            max_age=_COOKIE_AGE_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer


def _address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else "unknown"


async def _token_of_form(request: Request) -> str:
    """Read the form's token; nobody makes us read more than a form."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return ""
    fields = parse_qs(body.decode("ascii", errors="replace"))
    return fields.get("token", [""])[0].strip()


def _refusal(request: Request) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return _page(_ASK)
    text = "This microscope asks for its access token; send 'Authorization: Bearer TOKEN'."
    headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse({"detail": text}, status_code=401, headers=headers)


def _page(text: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer", "Cache-Control": "no-store"}
    kind = "wrong" if text == _WRONG else "ask"
    page = _PAGE.format(text=html.escape(text), kind=kind)
    return HTMLResponse(page, status_code=401, headers=headers)
