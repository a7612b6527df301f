"""Every hostile case by its name, and what the runner itself must notice."""

import socket
import subprocess
import time
from pathlib import Path

from tests.hostile import checkpoints, datasets, outputs, pictures
from tests.hostile.case import Case

CASES = checkpoints.CASES | pictures.CASES | datasets.CASES | outputs.CASES


def _nothing(_: Path) -> None:
    pass


CONTROLS = {
    "fetches": Case(_nothing, lambda _: socket.create_connection(("127.0.0.1", 9), 1), "PermissionError"),
    "asks for a name": Case(_nothing, lambda _: socket.getaddrinfo("evil.invalid", 80), "PermissionError"),
    "runs a program": Case(_nothing, lambda _: subprocess.run(["true"]), "PermissionError"),
    "takes memory": Case(_nothing, lambda _: bytearray(2**31 + 2**28), "MemoryError"),
    "takes time": Case(_nothing, lambda _: time.sleep(60), "killed by SIGALRM"),
}
"""Each ends so, and the first three leave a mark."""
