"""The guard over a tiny application, and what the command line makes of the settings."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from device import access, cli
from device.access import (
    COOKIE,
    FAILURE_WINDOW_S,
    MAX_FAILURES,
    AccessGuard,
    Failures,
    is_loopback,
    read_token,
)
from device.errors import UserError
from device.settings import Settings

TOKEN = "0123456789abcdef" * 4
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
WRONG = {"Authorization": f"Bearer {TOKEN[:-1]}0"}


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def client(clock):
    async def echo(socket):
        await socket.accept()
        await socket.send_text("let in")
        await socket.close()

    def answer(request):
        return PlainTextResponse("let in")

    routes = [Route(path, answer) for path in ("/", "/healthz", "/healthz/x", "/metrics")]
    app = Starlette(routes=[*routes, WebSocketRoute("/live", echo)])
    return TestClient(AccessGuard(app, TOKEN, clock))


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz/x", "/login", "/nowhere"])
def test_everything_asks_for_the_token_but_healthz(client, path):
    """Mutation: open paths are matched by their beginning; unknown paths tell that they are."""
    assert client.get(path).status_code == 401
    assert client.get(path, headers=WRONG).status_code == 401
    assert client.get("/healthz").text == "let in"


@pytest.mark.parametrize(
    "header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "], ids=range(3)
)
def test_the_bearer_is_let_in(client, header):
    """Mutation: the scheme's name is compared as if its case mattered."""
    assert client.get("/metrics", headers={"Authorization": header}).text == "let in"


@pytest.mark.parametrize("header", [f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer ", "Bearer \xe9"])
def test_other_credentials_are_refused_and_not_crashed_on(client, header):
    """Mutation: an empty token equals an empty secret; a token beyond ASCII raises."""
    headers = {"Authorization": header.encode("latin-1")}
    assert client.get("/", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "sent", [WRONG, {"Cookie": f"{COOKIE}={'0' * 64}"}], ids=["token", "cookie"]
)
def test_secrets_are_compared_in_constant_time(client, monkeypatch, sent):
    """Mutation: `==`, which answers the sooner the earlier the first wrong character stands."""
    compared = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda *pair: compared.append(pair) or True)
    assert client.get("/", headers=sent).text == "let in"
    assert len(compared) == 1


def test_the_socket_asks_too(client):
    """Mutation: the guard looks at scope type http only."""
    for headers in ({}, WRONG):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/live", headers=headers):
            pass
    with client.websocket_connect("/live", headers=RIGHT) as socket:
        assert socket.receive_text() == "let in"


def test_the_form_leaves_a_cookie_that_page_and_socket_accept(client):
    """Mutation: the cookie is the token itself, or readable by scripts, or sent along by others."""
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 401
    assert "<form" in page.text
    answer = client.post("/login", data={"token": f" {TOKEN} "}, follow_redirects=False)
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    assert client.get("/").text == "let in"
    with client.websocket_connect("/live") as socket:
        assert socket.receive_text() == "let in"
    client.cookies.set(COOKIE, "0" * 64)
    assert client.get("/").status_code == 401


def test_over_tls_the_cookie_is_for_tls_only(client):
    """Mutation: the cookie goes over a plain connection, too."""
    client.base_url = "https://testserver"
    answer = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
    assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("body", [b"", b"token=", b"token=x", b"\xff", b"token=" + b"x" * 10_000])
def test_a_wrong_form_is_asked_again(client, body):
    """Mutation: no limit to what a stranger makes us read; bytes that are no text raise."""
    answer = client.post("/login", content=body)
    assert answer.status_code == 401
    assert "not the microscope" in answer.text


def test_failures_are_limited_and_forgotten_after_a_while(client, clock):
    """Mutation: asking without a token counts; the limit never ends; the right token is barred."""
    for _ in range(2 * MAX_FAILURES):
        assert client.get("/").status_code == 401
    for _ in range(MAX_FAILURES - 1):
        assert client.get("/", headers=WRONG).status_code == 401
    assert client.get("/", headers=WRONG).status_code == 429
    refused = client.post("/login", data={"token": "x"})
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= FAILURE_WINDOW_S + 1
    assert client.get("/", headers=RIGHT).status_code == 200
    clock.now_s += FAILURE_WINDOW_S
    assert client.get("/", headers=WRONG).status_code == 401


def test_failures_of_many_addresses_take_bounded_memory(clock):
    """Mutation: an entry for every address that ever was wrong."""
    failures = Failures(clock)
    for number in range(5000):
        failures.add(str(number))
    assert len(failures._times_s) <= 1000


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("localhost", True)]
    + [("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("localhost.evil", False)],
)
def test_what_is_loopback(host, loopback):
    """Mutation: every name that begins with localhost, or 0.0.0.0, counts as this machine."""
    assert is_loopback(host) is loopback


def test_a_token_that_can_be_guessed_is_refused(tmp_path):
    """Mutation: an empty file opens the page to everybody."""
    file = tmp_path / "token"
    with pytest.raises(UserError, match="cannot be read"):
        read_token(file)
    for text in ("", "secret\n", "x" * 31, "x" * 20 + " " + "x" * 20, "x" * 40 + "\nmore"):
        file.write_text(text)
        with pytest.raises(UserError, match="openssl rand"):
            read_token(file)
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN


def test_whoever_listens_on_a_network_needs_a_token(tmp_path):
    """Mutation: without a token file, the network is served unguarded."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    assert cli._token(Settings.load()) is None
    assert cli._token(Settings.load(token_file=file)) is None
    for settings in ({"host": "0.0.0.0"}, {"require_token": True}):
        with pytest.raises(UserError, match="set token_file"):
            cli._token(Settings.load(**settings))
        assert cli._token(Settings.load(token_file=file, **settings)) == TOKEN
