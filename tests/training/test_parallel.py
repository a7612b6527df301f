"""Several real processes (gloo, on this machine): they learn what one process learns from the same batches,
and nothing is lost when one of them, or all, are ended.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from coral_lab.mini.merit_mini import catalogue
from coral_lab.sources.writing import write_merit
from tests.training import worker

ROOT = Path(__file__).parents[2]
MODES = ("plain", "cache", "lora", "fsdp", "fsdp+cache", "fsdp+checkpointing", "lora+fsdp", "lora+cache")
TIMED = ("seconds", "pairs_per_second", "memory_gb", "padding")  # of the machine, and of how rows are grouped


def together(count: int, *arguments: str, module: str = "tests.training.worker", **options):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, "-m", module, *arguments], cwd=ROOT, env=environment, **options)


def done_together(count: int, *arguments: str) -> None:
    process = together(count, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]


def rows(out: Path, mode: str, count: int) -> list[dict]:
    return json.loads((out / f"{mode.replace('@', '-at-')}-{count}.json").read_text(encoding="utf-8"))


def apart(found: list[dict], expected: list[dict]) -> float:
    """The largest difference of a loss, a measure or the gradient's norm, relative to what is above 1."""
    pairs = [
        (row[name], other[name])
        for row, other in zip(found, expected, strict=True)
        for name in other
        if name not in TIMED
    ]
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)


@pytest.fixture(scope="module")
def alone(random_folder, tmp_path_factory):
    """What one process logs, with and without adapters."""
    out = tmp_path_factory.mktemp("alone")
    modes = ("plain", "lora", "held", "control")
    for mode in modes:
        worker.run(str(random_folder), out, mode)
    return {mode: rows(out, mode, 1) for mode in modes}


def check(modes, count, random_folder, alone, out) -> None:
    done_together(count, str(random_folder), str(out), *modes)
    for mode in modes:
        reference = next((name for name in ("lora", "held", "control") if name in mode.split("+")), "plain")
        found, bound = rows(out, mode, count), 1e-4 if reference == "control" else 1e-5
        assert apart(found[:3], alone[reference][:3]) < 1e-5, mode  # before rounding has gone through Adam
        assert apart(found, alone[reference]) < bound, mode


def test_two_processes_learn_what_one_does(random_folder, alone, tmp_path):
    """Plain, and mixtures of parts (GradCache), adapters and sharded parameters (FSDP2), five steps; Coral's
    terms, from other rows too, and the learned temperature included.
    """
    modes = ("plain", "fsdp+cache", "lora+fsdp", "fsdp+held", "control+cache", "control+fsdp+cache")
    check(modes, 2, random_folder, alone, tmp_path)
    assert "reg vision other" in alone["plain"][3]
    assert "query language other" in alone["control"][1]
    assert [row["learning_rate"] == 0 for row in alone["control"]] == [True] * 2 + [False] * 5


@pytest.mark.slow
def test_two_processes_learn_what_one_does_in_every_mode(random_folder, alone, tmp_path):
    check((*MODES, "held"), 2, random_folder, alone, tmp_path)


def test_four_processes_learn_what_one_does_in_parts_and_sharded(random_folder, alone, tmp_path):
    check(("fsdp+cache",), 4, random_folder, alone, tmp_path)


def test_sharded_in_bfloat16_from_files_is_near_what_one_process_learns_in_float32(random_folder, tmp_path):
    """Pictures are of parquet files, which go by the object that reads them: FSDP2 must not copy a batch."""
    write_merit(catalogue("mini", "val"), tmp_path / "merit", "train", limit=20)
    worker.run(str(random_folder), tmp_path, "files")
    done_together(2, str(random_folder), str(tmp_path), "fsdp+bfloat16+cache+files")
    found = rows(tmp_path, "fsdp+bfloat16+cache+files", 2)
    for row, other in zip(found, rows(tmp_path, "files", 1), strict=True):
        for name in ("contrastive", *worker.CORAL.weights):
            assert row[name] == pytest.approx(other[name], rel=0.05), (row["step"], name)


@pytest.mark.slow
def test_four_processes_learn_what_one_does(random_folder, alone, tmp_path):
    check(MODES, 4, random_folder, alone, tmp_path)


def test_a_sharded_run_that_was_told_to_end_goes_on_with_another_number_of_processes(
    random_folder, alone, tmp_path
):
    """Two processes write, four and one read; SIGTERM at one of them ends both after the step."""
    folder = str(random_folder)
    stopped = ("fsdp+stop@first", "fsdp+cache+stop@second", "fsdp+held+stop@third")
    done_together(2, folder, str(tmp_path), *stopped)
    assert [row.get("step") for row in rows(tmp_path, "fsdp+stop@first", 2)] == [1, 2, 3, None]
    assert rows(tmp_path, "fsdp+stop@first", 2)[-1] == {"ended": 143}
    assert [file.name for file in (tmp_path / "first").glob("state-*")] == ["state-00000003"]
    assert len(list((tmp_path / "first" / "state-00000003").glob("*.safetensors"))) == 2
    done_together(4, folder, str(tmp_path), "fsdp@first")
    worker.run(folder, tmp_path, "plain@second")
    worker.run(folder, tmp_path, "held@third")  # its state was written right after an evaluation
    resumed = (("fsdp@first", 4, "plain"), ("plain@second", 1, "plain"), ("held@third", 1, "held"))
    for mode, count, known in resumed:
        found = rows(tmp_path, mode, count)
        assert [row["step"] for row in found] == [4, 5]
        assert apart(found, alone[known][3:]) < 1e-5, mode
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert one.keys() == other.keys()  # the tied head is written once
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-3


TRAINING = ("train", "--data", "mini", "--split", "val", "--batch-size", "4", "--steps", "{steps}")
HOW = ("--checkpoint-every", "1", "--device", "cpu", "--learning-rate", "1e-3")


def training(random_folder: Path, out: Path, steps: int):
    arguments = [part.format(steps=steps) for part in (*TRAINING, *HOW)]
    where = ("--model", str(random_folder), "--out", str(out))
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return together(2, *arguments, *where, module="coral_lab.cli", **said)


def workers(process: subprocess.Popen) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    return [int(pid) for pid in found.split()]


def newest(out: Path) -> int:
    return max((int(folder.name[6:]) for folder in out.glob("state-[0-9]*")), default=0)


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes by /proc")
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_one_process_at_random_moments_end_both_and_nothing_is_lost(random_folder, tmp_path, kills):
    """The next start goes on, and at the end every weight is that of a run that nobody killed, to the bit."""
    steps, rng = 3 + 2 * kills, random.Random(0)
    out, whole = tmp_path / "killed", tmp_path / "whole"
    for number in range(kills):
        with training(random_folder, out, steps) as process:
            before = newest(out)
            wait_for(lambda before=before: newest(out) > before, process)  # it has begun, or gone on
            time.sleep(rng.random() * 0.6)
            own = workers(process)
            os.kill(own[rng.randrange(2)], signal.SIGKILL)
            said = process.communicate(timeout=120)[0].decode()
        if newest(out) == steps:  # it was too late
            break
        assert process.returncode == 1, said[-2000:]
        assert "Signal 9 (SIGKILL)" in said, f"kill {number}: {said[-2000:]}"
        if "Signal 15 (SIGTERM)" not in said:  # it was not told to end before it found out
            assert "another of the 2 processes ended; its own error says why" in said, said[-2000:]
        assert not any(Path(f"/proc/{pid}").exists() for pid in own)
    for folder in (out, whole):
        with training(random_folder, folder, steps) as process:
            said = process.communicate(timeout=600)[0].decode()
        assert process.returncode == 0, said[-2000:]
    one, other = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    logs = [(folder / "log.csv").read_text(encoding="utf-8").splitlines() for folder in (out, whole)]
    assert len(logs[0]) == len(logs[1]) == steps + 1
