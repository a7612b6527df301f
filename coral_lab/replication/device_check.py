"""`coral-lab check-device`: what this package does on a device, one row a figure; nothing is downloaded.

A check is a function from a Bench to Figures. To add one, write it beside its like and put it into CHECKS.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from tqdm.auto import tqdm

from coral_lab.errors import MissingExtraError, one_line
from coral_lab.replication.device_bench import (
    SIZES,
    Bench,
    Check,
    Figure,
    device_of,
    free,
    full_float32,
    said,
)
from coral_lab.replication.device_encoding import (
    attentions,
    facts,
    full_checkpoint,
    parity_with_cpu,
    small_checkpoint,
    throughput_of_products,
    throughput_of_queries,
)
from coral_lab.replication.device_memory import halving, memory_by_batch
from coral_lab.replication.device_training import first_losses, training_steps
from coral_lab.sources.files import check_can_be_written, check_target, csv_text, output_folder, write_text

CHECKS: tuple[Check, ...] = (
    facts,
    small_checkpoint,  # what the others load
    full_checkpoint,
    parity_with_cpu,
    first_losses,
    attentions,
    throughput_of_products,
    throughput_of_queries,
    memory_by_batch,
    halving,
    training_steps,
)
FILE = "check-device.csv"
COLUMNS = ["check", "value", "unit", "wanted", "verdict", "why", "device", "seconds"]


def check_device(device: str | None = None, *, size: str | None = None, out: Path) -> pd.DataFrame:
    """Try what this package does on `device`, by default the best one here, and write `check-device.csv` in
    folder `out` after each check, so that a killed run leaves what it has.

    `size` "3b" measures Qwen2.5-VL-3B's exact shape with random weights, with 9 GB on disk for the time,
    "small" that of coral-mini; by default the first on a GPU. A row is a figure with its unit, what is
    `wanted` of it and a `verdict`: ok, failed, or left out with the reason in `why`; `seconds` are what it
    took. A check that breaks is a failed row and never ends the others. Raises ValueError for a device or
    size that is not there and a folder that cannot be written, before anything is made.
    """
    if size not in (None, *SIZES):
        raise ValueError(f"size is {size!r}; use {' or '.join(SIZES)}")
    chosen = device_of(device)
    size = size or ("small" if chosen.type == "cpu" else "3b")
    check_can_be_written(Path(out), "out", is_folder=True)
    check_target(Path(out) / FILE)
    table = output_folder(out) / FILE
    rows: list[dict] = []
    here = torch.cuda.device(chosen) if chosen.type == "cuda" else nullcontext()
    with TemporaryDirectory(prefix="check-device-") as folder, here, full_float32():
        bench = Bench(chosen, size, Path(folder))
        bar = tqdm(CHECKS, desc=f"check {chosen}", unit="check")
        for check in bar:
            bar.set_postfix_str(_words(check))
            for row in _rows(check, bench):
                rows.append(row)
                write_text(table, csv_text(pd.DataFrame(rows, columns=COLUMNS)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(check: Check, bench: Bench) -> Iterator[dict]:
    """A check's figures as rows; what it raises is the last of them."""
    started = time.perf_counter()
    with said():
        figures = iter(check(bench))
        while (figure := _next(check, figures)) is not None:
            now = time.perf_counter()
            yield {
                "check": figure.check,
                "value": "" if figure.value is None else figure.value,
                "unit": figure.unit,
                "wanted": figure.wanted,
                "verdict": figure.verdict,
                "why": one_line(figure.why),
                "device": bench.name,
                "seconds": round(now - started, 3),
            }
            started = now
        try:
            free(bench.device)
        except RuntimeError:  # a device that broke down says so again; its check has said it
            return


def _next(check: Check, figures: Iterator[Figure]) -> Figure | None:
    try:
        return next(figures, None)
    except MissingExtraError as error:
        return Figure(_words(check), None, why=str(error))
    except Exception as error:
        return Figure(_words(check), float("nan"), why=f"{type(error).__name__}: {error}")


def _words(check: Check) -> str:
    return getattr(check, "__name__", "check").replace("_", " ")


def table_text(frame: pd.DataFrame) -> str:
    """The table for a terminal: what was found, what was wanted, and how many rows are of each verdict."""
    shown = frame[["check", "value", "unit", "wanted", "verdict", "why"]].copy()
    shown["value"] = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in frame["value"]]
    shown["check"] = frame["check"].str.ljust(frame["check"].str.len().max())
    shown["why"] = [one_line(text, 90) for text in frame["why"]]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in frame["verdict"].value_counts().items())
    return f"{shown.to_string(index=False, justify='left')}\n{counts} on {frame['device'].iloc[0]}"
