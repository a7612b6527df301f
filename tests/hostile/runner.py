"""Runs hostile cases, each in a child of its own: `python -m tests.hostile.runner`, a line of JSON for each.

What is slow to import is imported once, before the children are made; LanceDB starts its threads again in
them, and must not have been at work before. A child has 20 seconds, two gigabytes besides what the imports
took, no way to the network and none to another program: whoever asks for these leaves a mark.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from coral_lab import Settings, encode, load
from tests.hostile.cases import CASES, CONTROLS

MEMORY = 2 * 2**30
FORBIDDEN = (
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "webbrowser.open"),
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "builtins.input"),
)
"""What python tells of itself (`sys.addaudithook`)."""


def main() -> None:
    torch.set_num_threads(1)
    encode(load("mini"), [[{"role": "user", "content": "warm"}]], settings=Settings(progress=False))
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_in_a_child(asked["case"], Path(asked["folder"]), asked["seconds"])), flush=True)


def _in_a_child(name: str, folder: Path, seconds: int) -> dict:
    out, into = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if not child:
        os.close(out)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            said = _run(name, folder, seconds)
            with os.fdopen(into, "w") as pipe:
                pipe.write(json.dumps(said))
        finally:  # a child never goes on as its parent
            os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    found = (
        json.loads(said) if said else {"kind": f"killed by {signal.Signals(status & 127).name}", "says": ""}
    )
    return found | {"case": name, "seconds": time.perf_counter() - started}


def _run(name: str, folder: Path, seconds: int) -> dict:
    case = (CASES | CONTROLS)[name]
    try:
        case.make(folder)
    except Exception as error:
        return {"kind": "making it failed", "says": f"{type(error).__name__}: {error}"}
    mark = folder / "marks"
    sys.addaudithook(lambda event, args: _watch(mark, event, args))
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now * 1024 + MEMORY,) * 2)
    signal.alarm(seconds)
    try:
        case.call(folder)
    except BaseException as error:
        return {"kind": type(error).__name__, "says": str(error)}
    return {"kind": "works", "says": ""}


def _watch(mark: Path, event: str, args: tuple) -> None:
    own = event == "subprocess.Popen" and args[0] == "git"  # which commit a report was made with
    if event in FORBIDDEN and not own:
        with mark.open("a") as file:
            file.write(f"{event} {args}\n")
        raise PermissionError(f"{event} in a hostile case")


if __name__ == "__main__":
    main()
