"""Who the server answers to: its own names and addresses, and no other.

A page of another site can make the name of *its* server point to this machine (DNS rebinding);
then the browser takes the microscope for a part of that site, and origins tell nothing. The name
in the request betrays it. Numeric addresses are safe: nobody's name server was asked.

Starlette's `TrustedHostMiddleware` takes neither any numeric address, which ``--host 0.0.0.0``
needs, nor says what to do.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class KnownHost:
    """Answer 400 to requests for a name that is not this machine's.

    Parameters
    ----------
    app : ASGIApp
        Answers the others.
    name : str
        A further name under which this machine is reached, such as the host to listen on.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        own = socket.gethostname().lower()
        self._app = app
        self._names = dict.fromkeys(["localhost", own, f"{own}.local", name.lower()])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] == "lifespan" or self._knows(host := Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        names = ", ".join(name for name in self._names if not _is_address(name))
        reason = (
            f"This server does not go by the name {host[:80]!r}: expected is {names} or a numeric "
            "address of this machine; open one of these, or start the server with --host NAME."
        )
        await PlainTextResponse(reason, 400)(scope, receive, send)

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # brackets that do not match
            return False
        return name.removesuffix(".") in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
