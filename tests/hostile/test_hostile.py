"""What strangers' files can do: nothing is run, nothing is fetched, memory and time have a bound. Each case
is read in a process of its own (`runner.py`), and works, or ends in a named error of one line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.case import WORKS
from tests.hostile.cases import CASES, CONTROLS

NAMED = ("CheckpointError", "ItemError", "StoreError", "HubError", "ValueError", "FileNotFoundError")
TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ask():
    """Runs a case, and says what became of it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "tests.hostile.runner"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    runner = subprocess.Popen(command, cwd=TOP, env=environment, text=True, bufsize=1, **pipes)

    def run(case: str, folder: Path, seconds: int = 20) -> dict:
        asked = {"case": case, "folder": str(folder), "seconds": seconds}
        runner.stdin.write(json.dumps(asked) + "\n")
        return json.loads(runner.stdout.readline())

    yield run
    runner.stdin.close()
    runner.wait(20)


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_read_or_refused_in_one_line(name, ask, tmp_path):
    found = ask(name, tmp_path)
    marks = tmp_path / "marks"
    assert not marks.exists(), marks.read_text()
    wanted = CASES[name].says
    if wanted == WORKS:
        assert found["kind"] == WORKS, found
    else:
        assert found["kind"] in NAMED, found
        assert wanted in found["says"], found
        assert found["says"].isprintable()
        assert len(found["says"]) <= 300


@pytest.mark.parametrize("name", CONTROLS)
def test_the_runner_notices(name, ask, tmp_path):
    assert ask(name, tmp_path, seconds=2)["kind"] == CONTROLS[name].says
    assert (tmp_path / "marks").exists() == (CONTROLS[name].says == "PermissionError")


def test_there_are_many():
    assert len(CASES) >= 60
