"""A training seen while it runs: its log, experiment trackers, and what the machine does meanwhile."""

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from coral_lab.errors import MissingExtraError, one_line, require
from coral_lab.sources.files import append_text, cell, cell_text, check_target, write_text
from coral_lab.training import distributed

Row = Mapping[str, float | int]

TRACKERS = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker"}
"""Names of experiment trackers, and accelerate's classes for them."""

LONGEST_LOG = 2**28  # bytes


@contextmanager
def tracker(name: str | None, out: Path, settings: Mapping[str, str]) -> Iterator[Callable[[Row], None]]:
    """What sends each row of the log to a tracker by its name; does nothing without one, and on all
    processes but the first. Raises ValueError for another name, MissingExtraError if it is not installed.
    """
    if name is not None and name not in TRACKERS:
        raise ValueError(f"tracker is {name!r}; use {' or '.join(TRACKERS)}")
    if name is None or distributed.rank() > 0:
        yield lambda row: None
        return
    if find_spec(name) is None:
        raise MissingExtraError(f"tracker {name!r} is not installed; run: pip install {name}")
    require("accelerate", "train").PartialState()  # its trackers write on the first process, and ask who is
    from accelerate import tracking

    kind = getattr(tracking, TRACKERS[name])
    run = kind("coral_lab", logging_dir=str(out)) if name == "tensorboard" else kind("coral_lab", dir=out)
    if hasattr(run, "start"):  # in earlier versions they have begun by now
        run.start()
    run.store_init_configuration(dict(settings))
    try:
        yield lambda row: run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])
    finally:
        run.finish()


def memory(device: torch.device) -> float:
    """The most that was taken so far, in GB (1e9 bytes): of the GPU's memory, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class Log:
    """A CSV of one row a step; columns may appear later, rows after the resumed step are dropped.

    Raises ValueError for a file that is no such log.
    """

    def __init__(self, file: Path, step: int):
        self.file = file
        self.rows: list[Mapping[str, Any]] = _rows(file, step) if step and file.is_file() else []
        self.columns = list(self.rows[0]) if self.rows else []
        self._rewrite()

    def write(self, row: Mapping[str, float | int]) -> None:
        said = {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()}
        self.rows.append(said)
        new = [name for name in said if name not in self.columns]
        if new:
            self.columns += new
            return self._rewrite()
        append_text(self.file, self._lines([said]))

    def _rewrite(self) -> None:
        write_text(self.file, self._lines([dict(zip(self.columns, self.columns, strict=True)), *self.rows]))

    def _lines(self, rows: list[Mapping[str, Any]]) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerows([cell(row.get(name, "")) for name in self.columns] for row in rows)
        return text.getvalue()


def _rows(file: Path, step: int) -> list[Mapping[str, Any]]:
    check_target(file)
    try:
        if file.stat().st_size > LONGEST_LOG:
            raise ValueError(f"it has more than {LONGEST_LOG:,} bytes")
        text = file.read_bytes().decode("utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        lines = csv.reader(io.StringIO(whole, newline=""))
        names = [str(cell_text(name)) for name in next(lines, [])]
        return [
            dict(zip(names, map(cell_text, line), strict=True))
            for line in lines
            if 1 <= int(line[names.index("step")]) <= step
        ]
    except (csv.Error, ValueError, IndexError) as error:
        problem = f"cannot be gone on from ({one_line(str(error), 80)})"
        raise ValueError(one_line(f"{file} {problem}; delete it, or choose another folder")) from None
