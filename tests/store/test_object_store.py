"""A store at an object store's address: S3's protocol on loopback, by a server that keeps objects on disk
(nanio), and by one that lets the first of two writers win, as S3 does (moto).
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

import coral_lab as cl
from coral_lab.store.sharded import Engine, encode_sharded
from tests.store.embedders import Letters
from tests.store.test_blocks import PRODUCTS, QUIET, check

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
    "AWS_EC2_METADATA_DISABLED": "true",  # or the client asks the cloud's metadata address
}
NANIO = """
import sys
from nanio.cli import main
sys.argv = ["nanio", "serve", "--data-dir", {folder!r}, "--host", "127.0.0.1", "--port", "{port}"]
main()
"""
MOTO = """
import sys
from moto.server import main
main(["-H", "127.0.0.1", "-p", "{port}"])
"""


class Server:
    """A server on a port of its own, which can be killed and started again."""

    def __init__(self, code: str, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.code = code.format(folder=str(folder), port=self.port)
        self.start()

    def start(self) -> None:
        keys = {"NANIO_ACCESS_KEY": "key", "NANIO_SECRET_KEY": "secret"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-c", self.code]
        self.process = subprocess.Popen(command, env={**os.environ, **keys}, **quiet)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"no server on port {self.port}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def started(code, folder, monkeypatch):
    server = Server(code, folder)
    for name, value in {**KEYS, "AWS_ENDPOINT": f"http://127.0.0.1:{server.port}"}.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    (tmp_path / "data" / "shop").mkdir(parents=True)
    server = started(NANIO, tmp_path / "data", monkeypatch)
    yield server
    server.kill()


def test_a_store_at_an_address_is_like_one_in_a_folder(on_disk, tmp_path):
    model, address = Letters(), "s3://shop/store"
    store = cl.open_store(address, model)
    assert store.add(PRODUCTS[:20], QUIET).products == 20
    encode_sharded(Letters, PRODUCTS, address, Engine(block=10), QUIET)
    check(address)
    cl.open_store(tmp_path / "local", model).add(PRODUCTS, QUIET)
    query = cl.Query("q", "thing", text="ccc")
    there, here = (cl.open_store(uri, model).search(query, 5) for uri in (address, tmp_path / "local"))
    assert [hit.product.id for hit in there] == [hit.product.id for hit in here]
    store.to_parquet(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size > 0


CLIENT = """
import sys
from functools import partial
from coral_lab import Settings, open_store
from coral_lab.store import keeping
from coral_lab.store.sharded import Engine, encode_sharded
from tests.store.embedders import Letters
from tests.store.test_blocks import PRODUCTS

how = sys.argv[1]
keeping.COMMIT_EVERY = 0.02
print("ready", flush=True)
load, quiet = partial(Letters, 0.02), Settings(progress=False, batch_size=4)
if how == "add":
    open_store("s3://shop/store", load()).add(PRODUCTS, quiet)
else:
    encode_sharded(load, PRODUCTS, "s3://shop/store", Engine("torchrun", block=4), quiet)
print("done", flush=True)
"""


def begin(how, rank=0, count=1):
    """A client, when it is about to encode."""
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-c", CLIENT, how]
    client = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline() == "ready\n"
    return client


@pytest.mark.parametrize("how", ["add", "blocks"])
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_of_server_or_client_lose_nothing(on_disk, how, kills):
    chance, killed = random.Random(0), []
    while len(killed) < kills:
        client = begin(how)
        time.sleep(chance.uniform(0, 1.5))
        killed.append("server" if len(killed) % 2 else "client")
        if killed[-1] == "server":
            on_disk.kill()
            on_disk.start()
            time.sleep(chance.uniform(0, 0.5))
        client.kill()
        client.wait()
        client.stdout.close()
    last = begin(how)
    assert last.stdout.read() == "done\n"
    assert last.wait() == 0
    check("s3://shop/store")


def test_two_processes_write_at_once(tmp_path, monkeypatch):
    """Each marks its blocks while the other does: of two commits at once the second is tried again."""
    server = started(MOTO, tmp_path, monkeypatch)
    try:
        import boto3

        boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT"]).create_bucket(Bucket="shop")
        for process in [begin("blocks", rank, 2) for rank in range(2)]:
            assert process.stdout.read() == "done\n"
        check("s3://shop/store")
    finally:
        server.kill()
