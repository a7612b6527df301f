"""Pictures at addresses come once, politely, and go on after a kill; what cannot be had is listed."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pandas as pd
import pytest

import coral_lab as cl
from coral_lab import Condition, Query
from coral_lab.sources import fetching, picture_fetching
from coral_lab.sources.picture_fetching import fetch_pictures
from tests.conftest import noise
from tests.sources.test_fetching import Handler, Server


def png(seed):
    file = io.BytesIO()
    noise(9, 7, seed=seed).save(file, "PNG")
    return file.getvalue()


class Shop(Handler):
    def do_GET(self):
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        self.server.said.append((self.path, self.headers["user-agent"], time.monotonic()))
        try:
            super().do_GET()
        finally:
            with self.server.lock:
                self.server.now -= 1

    def picture(self, rest):
        time.sleep(self.server.pause)
        self.answer(200, png(int(rest)))

    def busy(self, rest):
        """Twice, then it gives."""
        self.server.times[rest] = self.server.times.get(rest, 0) + 1
        status, _, again = rest.partition("/")
        if self.server.times[rest] <= 2:
            self.answer(int(status), b"", **({"retry-after": again} if again else {}))
        else:
            self.answer(200, png(1))

    def page(self, _):
        self.answer(200, b"<html>sold out</html>")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching, "is_public", lambda place: place == "127.0.0.1")
    found = Server(("127.0.0.1", 0), Shop)
    found.asked, found.said, found.times = [], [], {}
    found.now = found.most = found.pause = 0
    found.lock = threading.Lock()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    found.at = f"http://127.0.0.1:{found.server_port}"
    yield found
    found.shutdown()


def shop(server, *paths):
    frame = pd.DataFrame({"id": [f"p{i}" for i in range(len(paths))], "title": "chair"})
    frame["image"] = [path and f"{server.at}/{path}" for path in paths]
    return cl.dataset(frame, columns={"id": "id", "title": "title", "picture": "image"}, remote_images=True)


def test_pictures_come_once_and_products_point_at_files(server, tmp_path):
    own = shop(server, "picture/1", "picture/2", None, "picture/1")
    found = fetch_pictures(own, tmp_path / "new" / "pictures")
    assert sorted(path for path, _, _ in server.said) == ["/picture/1", "/picture/2"], (
        "one address, one visit"
    )
    assert all("coral_lab" in agent for _, agent, _ in server.said)
    assert [p.image and p.image.read_bytes() for p in found.products] == [png(1), png(2), None, png(1)]
    assert all(p.image.suffix == ".png" for p in found.products if p.image)
    assert (found.skipped, found.name) == ((), own.name)
    again = fetch_pictures(own, tmp_path / "new" / "pictures", progress=False)
    assert len(server.said) == 2
    assert [p.image for p in again.products] == [p.image for p in found.products]
    assert fetch_pictures(found, tmp_path / "new" / "pictures").products == found.products


def test_what_cannot_be_had_is_left_out_and_listed_with_its_reason(server, tmp_path):
    own = shop(server, "missing/", "picture/1", "page/", "to/file:///etc/passwd", "missing/")
    own = replace(own, queries=(Query("q", "", (Condition("hue", own.products[1]),)),))
    found = fetch_pictures(own, tmp_path)
    assert [p.id for p in found.products] == ["p1"]
    said = [(error.item, error.problem) for error in found.skipped]
    wanted = ["is 404", "it is no JPEG", "only http and https", "is 404"]
    for (item, problem), name, reason in zip(said, ("p0", "p2", "p3", "p4"), wanted, strict=True):
        assert item == f"product {name}"
        assert reason in problem
    assert [file.suffix for file in tmp_path.iterdir()] == [".png"], "a page of HTML is no picture"
    assert found.queries[0].references[0].image == found.products[0].image


def test_no_picture_comes_from_a_private_network(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "is_public", lambda place: False)
    found = fetch_pictures(shop(server, "picture/1"), tmp_path)
    assert "no public address" in str(found.skipped[0])
    assert not server.said


def test_few_at_once(server, tmp_path):
    server.pause = 0.05
    assert len(fetch_pictures(shop(server, *(f"picture/{i}" for i in range(12))), tmp_path).products) == 12
    assert server.most == picture_fetching.OF_A_HOST


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_host_is_left_alone_as_long_as_it_asks(server, tmp_path, status):
    found = fetch_pictures(shop(server, f"busy/{status}/1"), tmp_path)
    assert len(found.products) == 1
    times = [at for _, _, at in server.said]
    assert len(times) == 3
    assert all(1 <= b - a < 3 for a, b in pairwise(times))


def test_a_host_that_does_not_say_how_long_and_one_that_asks_for_too_much(server, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_fetching, "FIRST_PAUSE", 0.05)
    assert len(fetch_pictures(shop(server, "busy/503"), tmp_path).products) == 1
    (error,) = fetch_pictures(shop(server, "busy/429/9000"), tmp_path).skipped
    assert "is not given: the answer is 429" in error.problem
    assert "asked 1 times; come again later" in error.problem
    monkeypatch.setattr(picture_fetching, "TRIES", 2)
    (error,) = fetch_pictures(shop(server, "busy/503/0"), tmp_path).skipped
    assert "asked 2 times" in error.problem


def test_how_long_a_host_asks_for():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert picture_fetching._pause("7", 0) == 7
    assert 25 < picture_fetching._pause(later, 0) <= 30
    assert picture_fetching._pause("Thu, 01 Jan 1970 00:00:00 GMT", 0) == 0
    for nothing in ("", "soon", "-1", "١", "1e9"):
        assert picture_fetching._pause(nothing, 2) == 4
    assert picture_fetching._pause("9" * 500, 0) > picture_fetching.LONGEST_PAUSE


def test_half_written_files_and_links_do_not_count(server, tmp_path):
    own = shop(server, "picture/1")
    name = fetch_pictures(own, tmp_path).products[0].image.name
    (tmp_path / name).rename(tmp_path / f".{name}.0123.part")
    assert fetch_pictures(own, tmp_path).products[0].image.name == name
    assert len(server.said) == 2
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / f".{name}.0123.part")
    with pytest.raises(ValueError, match="is a link, which is not followed"):
        fetch_pictures(own, tmp_path)
    with pytest.raises(ValueError, match=r"folder is .*, which is no folder"):
        fetch_pictures(own, tmp_path / f".{name}.0123.part")


CHILD = """
import sys, pandas as pd
from coral_lab.sources import fetching, fetch_pictures, read_table
fetching.is_public = lambda place: place == "127.0.0.1"
frame = pd.DataFrame({"title": [f"chair {i}" for i in range(30)]})
frame["image"] = [f"{sys.argv[1]}/picture/{i}" for i in range(30)]
fetch_pictures(read_table(frame, remote_images=True), sys.argv[2], progress=False)
"""


def test_a_kill_costs_the_pictures_in_flight(server, tmp_path):
    server.pause = 0.1
    process = subprocess.Popen([sys.executable, "-c", CHILD, server.at, str(tmp_path)])
    while len(list(tmp_path.glob("[!.]*"))) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept, visits = len(list(tmp_path.glob("[!.]*"))), len(server.said)
    assert visits - kept <= picture_fetching.AT_ONCE
    found = fetch_pictures(shop(server, *(f"picture/{i}" for i in range(30))), tmp_path)
    assert [p.image.read_bytes() for p in found.products] == [png(i) for i in range(30)]
    assert len(server.said) - visits == 30 - kept
    assert len([name for name in os.listdir(tmp_path) if not name.startswith(".")]) == 30
