"""Experiments of many cells: each is measured once, kept with the command that makes it, and never repeated.

An experiment's files are `<name>.csv`, one row a cell with its settings, metrics, commit and machine, and
beside it `<name>-ranks.csv`, each query's rank by cell, `<name>-queries.csv`, rows about single queries, or
`<name>-curves.csv`, figures over a training's steps. Their first line is the command, as a comment. Several
processes with the same command share the cells.
"""

import hashlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from coral_lab.errors import printable, require
from coral_lab.evaluation import Result
from coral_lab.metrics import holm, recall_at
from coral_lab.replication.seeds import as_odds, difference
from coral_lab.sources.files import cell_text, check_target, csv_text, output_folder, write_text
from coral_lab.sources.package_files import shipped

RESULTS, WORK = Path("build/results"), Path("build/experiments")
"""Where results are written and training works, below the working directory."""

PARTS = ("", "-ranks", "-queries", "-curves")
"""An experiment's files: rows of cells, and what they have beside it."""


@dataclass(frozen=True)
class Measured:
    """What a cell gave: its row of figures, each query's rank, rows about single queries, or figures over its
    steps.
    """

    row: Mapping[str, float | str]
    ranks: pd.Series | None = None
    queries: pd.DataFrame | None = None
    curve: pd.DataFrame | None = None


@dataclass(frozen=True)
class Cell:
    """One measurement; `measure` trains first if there is something to train."""

    arm: str
    seed: int
    measure: Callable[[], Measured]


def ranked(result: Result) -> Measured:
    """The metrics of an evaluation, and each query's rank (-1 beyond 10)."""
    row = {name: value.mean for name, value in result.metrics.items()} | result.met_by_first()
    frame = result.per_query
    return Measured(row, pd.Series(frame["rank"].to_numpy(), pd.Index(frame["query"], name="query")))


def measure_cells(
    name: str, cells: Iterable[Cell], settings: Mapping[str, str | int], command: str, out: Path = RESULTS
) -> pd.DataFrame:
    """Measure every cell that is not in `out/<name>.csv` yet, and return all rows.

    Goes on where it was stopped, at first from the cells that ship with the package, if their settings are
    the same. A cell that another process is at is left to it. Raises ValueError if cells that are there have
    other settings.
    """
    table = output_folder(out) / f"{name}.csv"
    for part in PARTS:
        check_target(out / f"{name}{part}.csv")
    if not table.is_file():
        _begin_with_shipped(name, settings, out)
    done = _done(table, settings)
    if len(other := _of_others(done, settings)):
        raise ValueError(f"{table} has cells of {other.iloc[0].to_dict()}, not {dict(settings)}; move it")
    todo = [cell for cell in cells if not _is_there(done, cell)]
    made_with = provenance()  # the code as it is now, whatever is edited while it runs
    whole = _lock(out, name)
    for cell in tqdm(todo, desc=name, unit="cell", disable=not todo):
        with _alone(_lock(out, name, cell.arm, cell.seed)) as alone:
            if not alone or _is_there(_done(table, settings), cell):
                continue
            started = time.perf_counter()
            found = cell.measure()
            if clash := sorted(settings.keys() & found.row.keys()):
                raise ValueError(f"cell {cell.arm!r} measured {clash[0]!r}, which is a setting; rename it")
            row = {"arm": cell.arm, "seed": cell.seed, **settings, **found.row}
            row |= {"seconds": round(time.perf_counter() - started), **made_with}
            with whole:
                _keep(out, name, cell, found, command)
                done = pd.concat([_done(table, settings), pd.DataFrame([row])], ignore_index=True)
                write_results(table, done, command)
    return _done(table, settings)


def _lock(out: Path, *names: str | int) -> Any:
    """Held by one process at a time; a killed one lets go."""
    digest = hashlib.sha256(repr(names).encode()).hexdigest()[:16]
    return require("filelock", "train").FileLock(output_folder(out / ".locks") / digest)


@contextmanager
def _alone(lock: Any) -> Iterator[bool]:
    """Whether no other process has it."""
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _done(table: Path, settings: Mapping[str, str | int]) -> pd.DataFrame:
    if not table.is_file():
        return pd.DataFrame(columns=["arm", "seed", *settings])
    return read_results(table, texts=[key for key, value in settings.items() if isinstance(value, str)])


def _is_there(done: pd.DataFrame, cell: Cell) -> bool:
    return bool(((done["arm"] == cell.arm) & (done["seed"] == cell.seed)).any())


def _keep(out: Path, name: str, cell: Cell, found: Measured, command: str) -> None:
    """What a cell gave beside its row; rows of a run that was killed before that was written are replaced."""
    if found.ranks is not None:
        _keep_ranks(out / f"{name}-ranks.csv", f"{cell.arm} {cell.seed}", found.ranks, command)
    if found.queries is not None:
        _keep_rows(out / f"{name}-queries.csv", {"arm": cell.arm}, found.queries, command)
    if found.curve is not None:
        key: dict[str, str | int] = {"arm": cell.arm, "seed": cell.seed}
        _keep_rows(out / f"{name}-curves.csv", key, found.curve, command)


def _of_others(done: pd.DataFrame, settings: Mapping[str, str | int]) -> pd.DataFrame:
    """The settings of those cells that have others."""
    known = done.reindex(columns=list(settings))
    return known[(known != pd.Series(settings)).any(axis=1)]


def _begin_with_shipped(name: str, settings: Mapping[str, str | int], out: Path) -> None:
    results = shipped("data/results")
    if not (table := results / f"{name}.csv").is_file() or len(_of_others(read_results(table), settings)):
        return
    for file in (results / f"{name}{part}.csv" for part in reversed(PARTS)):  # the table last: it says done
        if file.is_file():
            write_text(out / file.name, file.read_text(encoding="utf-8"))


def results_file(name: str, results: Path | None = None) -> Path:
    """The file of an experiment in a folder, or the one that ships with the package.

    Raises FileNotFoundError with the command that makes it.
    """
    file = (results or shipped("data/results")) / f"{name}.csv"
    if not file.is_file():
        experiment = name.removesuffix("-ranks").removesuffix("-queries").removesuffix("-curves")
        raise FileNotFoundError(f"{file} is missing; `coral-lab experiment {experiment}` makes it")
    return file


def _keep_ranks(file: Path, column: str, ranks: pd.Series, command: str) -> None:
    known = read_results(file, "query") if file.is_file() else pd.DataFrame(index=ranks.index)
    known = known.drop(columns=column, errors="ignore")
    write_results(file, known.join(ranks.rename(column)).reset_index(), command)


def _keep_rows(file: Path, key: Mapping[str, str | int], rows: pd.DataFrame, command: str) -> None:
    rows, known = rows.assign(**key), [read_results(file)] if file.is_file() else []
    others = [table[(table[list(key)] != pd.Series(key)).any(axis=1)] for table in known]
    write_results(file, pd.concat([*others, rows], ignore_index=True), command)


NAMES = (
    "arm",
    "query",
    "edit",
    "attribute",
    "kind",
    "commit",
    "torch",
    "machine",
    "weights",
    "start",
    "data",
)
"""Columns of text, whatever it looks like: a commit may be of digits alone, and a query may be called NA."""


def read_results(
    file: str | os.PathLike, index: str | None = None, texts: Sequence[str] = ()
) -> pd.DataFrame:
    """A results file as it was written, without the comment at its head. `texts` are columns of text beside
    NAMES. Nothing but an empty cell is a missing number.

    Raises ValueError for what is no table.
    """
    with open(file, encoding="utf-8", newline="") as lines:
        if lines.read(2) != "# ":
            lines.seek(0)
        else:
            lines.readline()
        frame = pd.read_csv(lines, dtype=str, keep_default_na=False)
    frame = frame.rename(columns=cell_text)
    if not frame.columns.is_unique or (index is not None and index not in frame):
        raise ValueError(f"{file} has a column twice, or no {index or 'arm'}; measure it anew")
    for name in frame:
        column = frame[name].map(cell_text)
        frame[name] = column if name in {*NAMES, *texts} else _numbers(column)
    return frame if index is None else frame.set_index(index)


def _numbers(column: pd.Series) -> pd.Series:
    """As numbers or truth values if all are, as pandas writes them: 007 and 1e5 are texts. An empty cell is
    missing.
    """
    given = column[column != ""]
    if len(given) and given.isin(["True", "False"]).all():
        truths = column.map({"True": True, "False": False})
        return truths.astype(bool) if len(given) == len(column) else truths
    if len(given) == len(column) > 0 and given.str.fullmatch(WHOLE).all():
        return column.map(int)
    if given.map(_is_written_as_number).all():
        return column.map(lambda text: float(text or "nan")).astype(float)
    return column.where(column != "", np.nan)


WHOLE = r"-?(0|[1-9][0-9]{0,17})"


def _is_written_as_number(text: str) -> bool:
    try:
        return text == str(float(text)) != "nan" or bool(re.fullmatch(WHOLE, text))
    except ValueError:
        return False


def write_results(file: Path, frame: pd.DataFrame, command: str) -> None:
    """Write a results file under the command that makes it; a kill leaves the old file or the new one."""
    write_text(file, f"# {printable(command).replace(chr(10), ' ')}\n" + csv_text(frame))


def hits_of(ranks: pd.DataFrame, arm: str, k: int = 1) -> Float[np.ndarray, "query seed"]:
    """Whether each query found a positive among its first `k`, by an arm's seeds in their order.

    Raises ValueError for an arm that is not there.
    """
    columns = sorted(column for column in ranks if column.rpartition(" ")[0] == arm)
    if not columns:
        arms = ", ".join(dict.fromkeys(column.rpartition(" ")[0] for column in ranks))
        raise ValueError(f"no cell of {arm!r} among {arms}; run it first")
    return recall_at(ranks[columns].to_numpy(), k)


def compare_arms(ranks: pd.DataFrame, baseline: str = "contrastive", k: int = 1) -> pd.DataFrame:
    """R@k of each arm against the baseline on the same queries and seeds, p-values corrected by Holm's
    method.

    `ranks` [query, cell] as `measure_cells` keeps them. Arms are trained, so the test is over seeds: a paired
    t (`seeds.compare`), and the interval is that test turned round. It needs no more than two, where flipping
    signs exactly cannot come below p 0.25 with three seeds, at the price of taking the seeds' differences,
    each a mean over hundreds of queries, for normal. Few seeds see large differences only
    (`seeds.detectable`: 3.3 times their spread with three). Single runs are compared by McNemar's test.
    `seeds` shows the difference seed by seed, the odds ratio is `seeds.as_odds`. Raises ValueError without
    the baseline, or for an arm with other seeds.
    """
    base, rows = hits_of(ranks, baseline, k), []
    for arm in dict.fromkeys(column.rpartition(" ")[0] for column in ranks):
        own = hits_of(ranks, arm, k)
        if own.shape != base.shape:
            raise ValueError(f"{arm} has {own.shape[1]} seeds and {baseline} {base.shape[1]}; run as many")
        gain = difference(own, base)
        odds = as_odds(gain, float(base.mean()))
        rows.append(
            {
                "arm": arm,
                f"R@{k}": own.mean(),
                "difference": gain.mean,
                "low": gain.low,
                "high": gain.high,
                "p": gain.p,
                "odds ratio": odds.mean,
                "odds low": odds.low,
                "odds high": odds.high,
                "seeds": (own - base).mean(0).round(3).tolist(),
            }
        )
    table = pd.DataFrame(rows)
    tested = table["arm"] != baseline
    table.loc[tested, "p (Holm)"] = holm(table.loc[tested, "p"].to_numpy())
    return table


def provenance() -> dict[str, str]:
    """What a result was made with: the checkout's commit or the installed version, torch, and processor."""
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    else:
        commit = version("coral-lab")
    return {
        "commit": commit,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
