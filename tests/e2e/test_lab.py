"""`make lab` serves the quickstart, honours PORT, prints its URL, and asks for the token."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path(".venv/ready").exists() or not shutil.which("make"),
    reason="needs make and the .venv that it makes",
)


def _wait_until_open(port: int, seconds: float = 30) -> None:
    """The URL is printed a moment before the server listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


@pytest.fixture
def lab():
    """(port, what was printed up to the URL) of a running `make lab`, as over ssh; the environment's token is
    empty.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PORT": str(port), "SSH_CONNECTION": "a b c d", "JUPYTER_TOKEN": ""}
    process = subprocess.Popen(
        ["make", "lab"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = ""
    for line in process.stdout:
        said += line
        if f":{port}/lab" in line and "token=" in line:
            break
    _wait_until_open(port)
    yield port, said
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_make_lab_serves_the_quickstart_behind_a_token(lab):
    port, said = lab
    url = re.search(rf"http://\S+:{port}/lab/tree/\S*00_quickstart.ipynb\?token=(\w+)", said)
    assert url, said
    contents = f"http://127.0.0.1:{port}/api/contents/notebooks/00_quickstart.ipynb"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(contents, timeout=20)
    request = urllib.request.Request(contents, headers={"Authorization": f"token {url[1]}"})
    assert urllib.request.urlopen(request, timeout=20).status == 200


@pytest.mark.parametrize(("given", "ip"), [([], "127.0.0.1"), (["IP=0.0.0.0"], "0.0.0.0")])
def test_make_lab_listens_to_this_machine_alone_unless_told(given, ip):
    said = subprocess.run(["make", "-n", "lab", *given], capture_output=True, text=True, check=True).stdout
    assert f"--ip={ip} " in said
    assert "token" not in said.replace("JUPYTER_TOKEN", "")
