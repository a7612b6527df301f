"""A picture at an address: from a public host only, however it is called, in bounded time and size."""

import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from coral_lab.errors import HubError, ItemError
from coral_lab.sources import fetching
from coral_lab.sources.fetching import fetch, is_public
from coral_lab.sources.hub import download


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["host"]))
        kind, _, rest = self.path[1:].partition("/")
        getattr(self, kind)(rest)

    def good(self, _):
        self.answer(200, b"picture")

    def missing(self, _):
        self.answer(404, b"")

    def to(self, place):
        self.answer(302, b"", location=place.replace("~", f"127.0.0.1:{self.server.server_port}"))

    def large(self, _):
        self.answer(200, b"", **{"content-length": str(2**40)})
        while True:
            self.wfile.write(bytes(2**20))

    def packed(self, _):
        self.answer(200, gzip.compress(bytes(2**20)), **{"content-encoding": "gzip"})

    def slow(self, _):
        self.answer(200, b"", **{"content-length": "1000"})
        self.drip()

    def never(self, _):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        self.drip()

    def drip(self):
        for _ in range(200):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def answer(self, status, content, **headers):
        self.send_response(status)
        headers = {"content-length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):  # who hangs up in the middle of a large answer is right
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching, "is_public", lambda place: place == "127.0.0.1")
    found = Server(("127.0.0.1", 0), Handler)
    found.asked = []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    found.at = f"http://127.0.0.1:{found.server_port}"
    yield found
    found.shutdown()


def refusal(address) -> str:
    with pytest.raises(ItemError) as caught:
        fetch(address, "product 17")
    said = str(caught.value)
    assert said.startswith("product 17: picture ")
    assert "\n" not in said
    assert len(said) <= 300
    return said


def test_a_picture_is_fetched_also_after_redirects(server):
    assert fetch(f"{server.at}/good/", "product 17") == b"picture"
    assert fetch(f"{server.at}/to//good/", "product 17") == b"picture"
    assert fetch(f"{server.at}/to/http://~/to/http://~/to/http://~/good/", "product 17") == b"picture"


def test_more_redirects_than_a_few_are_not_followed(server):
    assert "comes after 3 redirects" in refusal(f"{server.at}{'/to/http://~' * 4}/good/")
    assert [path.count("to/") for path, _ in server.asked] == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "place",
    ["127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.2]", "2130706434", "0x7f.2"],
)
def test_a_redirect_to_a_private_network_is_not_followed(server, place):
    assert "no public address" in refusal(f"{server.at}/to/http://{place}:{server.server_port}/good/")
    assert len(server.asked) == 1


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://~/x", "gopher://~/x"])
def test_a_redirect_to_another_kind_of_address_is_not_followed(server, place):
    assert "only http and https are followed" in refusal(f"{server.at}/to/{place}")


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost",
        "http://127.0.0.1",
        "http://127.1",
        "http://[::1]",
        "http://[::ffff:7f00:1]",
        "http://0",
    ],
)
def test_the_own_machine_is_never_asked(address):
    """With nothing patched: a connection would be refused by another error."""
    assert "no public address" in refusal(f"{address}:1/x")


@pytest.mark.parametrize(
    ("place", "public"),
    [
        *((place, True) for place in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8")),
        *((place, False) for place in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1")),
        *((place, False) for place in ("169.254.169.254", "0.0.0.0", "224.0.0.1", "240.0.0.1", "192.0.2.1")),
        *(
            (place, False)
            for place in ("::", "::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001::1")
        ),
        *((place, False) for place in ("::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::7f00:1", "::127.0.0.1")),
    ],
)
def test_what_is_a_public_address(place, public):
    assert is_public(place) is public


def test_a_name_is_looked_up_once_and_the_answer_is_what_is_connected_to(server, monkeypatch):
    """A name that is another machine's when it is asked for again (DNS rebinding)."""
    asked = []

    def look_up(host, port, *rest, **options):
        asked.append(host)
        place = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert fetch(f"http://pictures.example:{server.server_port}/good/", "product 17") == b"picture"
    assert server.asked == [("/good/", f"pictures.example:{server.server_port}")]
    assert asked[0] == "pictures.example"
    assert set(asked[1:]) <= {"127.0.0.1"}
    assert "is 127.0.0.2, no public address" in refusal(f"http://pictures.example:{server.server_port}/good/")


def test_a_name_of_which_one_address_is_private_is_refused(server, monkeypatch):
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (p, 80)) for p in ("127.0.0.1", "192.168.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    assert "is 192.168.0.1, no public address" in refusal("http://pictures.example/good/")


@pytest.mark.parametrize("kind", ["slow", "never"])
def test_the_time_for_a_picture_is_by_the_clock(server, kind, monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE", 0.5)
    started = time.monotonic()
    assert "takes more than 0.5 seconds" in refusal(f"{server.at}/{kind}/")
    assert time.monotonic() - started < 4  # each piece comes in time, and all of them take ten seconds


def test_a_name_that_is_never_resolved_is_left(monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
    started = time.monotonic()
    assert "takes more than 0.2 seconds" in refusal("http://pictures.example/good/")
    assert time.monotonic() - started < 2.5


def test_more_bytes_than_a_picture_has_are_not_read(server, monkeypatch):
    monkeypatch.setattr(fetching, "LONGEST", 2**21)
    assert "has more than 2,097,152 bytes; shrink it" in refusal(f"{server.at}/large/")
    assert "it comes packed" in refusal(f"{server.at}/packed/")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://~/missing/", "404"),
        ("http://", "cannot be fetched|only http"),
        ("http://:80/", "cannot be fetched|only http"),
        ("http://a" + "b" * 300 + ".example/", "cannot be fetched"),
        ("http://exa\tmple/\x1b[2J", "cannot be fetched"),
        ("http://x:99999/", "cannot be fetched"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(server, address, says):
    import re

    assert re.search(says, refusal(address.replace("~", f"127.0.0.1:{server.server_port}")))


def test_it_works_where_an_event_loop_runs_already(server):
    import asyncio

    async def cell():
        return fetch(f"{server.at}/good/", "product 17")

    assert asyncio.run(cell()) == b"picture"


def test_offline_makes_no_connection(monkeypatch, tmp_path):
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("a connection"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match="neither downloaded nor reachable; load it once without offline"):
        download("Bia/nothing", ["*"], offline=True)
