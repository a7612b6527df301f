"""Keeps what the benchmarks measured: one CSV each, and one table of them all in benchmarks/README.md."""

import ast
import cProfile
import io
import os
import platform
import pstats
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

HERE = Path(__file__).parent
TOP = 15  # rows of a profile
COLUMNS = ["what", "median", "least", "most", "runs", "wanted", "machine"]


def row(what: str, values: Sequence[float], wanted: str = "") -> dict:
    """Median and range of one figure over its runs; `wanted` is its bound in words, e.g. "≥ 2.5"."""
    return {
        "what": what,
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "runs": len(values),
        "wanted": wanted,
        "machine": machine(),
    }


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times as fast, run by run: both were timed one after the other."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def keep(name: str, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Put rows into `benchmarks/<name>.csv`, in place of those of the same figure, and write the table
    anew.
    """
    found, file = pd.DataFrame(rows, columns=COLUMNS), HERE / f"{name}.csv"
    if file.is_file():
        old = pd.read_csv(file, keep_default_na=False)
        found = pd.concat([old[~old["what"].isin(found["what"])], found])
    found.to_csv(file, index=False, float_format="%.4g")
    write_readme()
    return found


@contextmanager
def profiled(name: str) -> Iterator[None]:
    """Under PROFILE=1, name the top 15 costs of what runs inside, and keep them in build/profile-<name>.txt.

        with profiled("encode"):
            encode(model, items)

    Torch's operators by their own time, then Python's functions by theirs. Without PROFILE nothing is
    measured. Put no timed run inside: a profile slows what it looks at.
    """
    if not os.environ.get("PROFILE"):
        yield
        return
    calls, text = cProfile.Profile(), io.StringIO()
    with torch.profiler.profile() as operators, calls:
        yield
    table = operators.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=TOP, max_name_column_width=40
    )
    pstats.Stats(calls, stream=text).strip_dirs().sort_stats("tottime").print_stats(TOP)
    file = HERE.parent / "build" / f"profile-{name.replace(' ', '-')}.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{name}: {machine()}\n{table}\n{text.getvalue()}", encoding="utf-8")
    print(file.read_text(encoding="utf-8"))


def machine() -> str:
    """The processor as the system names it, and the threads that torch uses."""
    names = [
        line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def megabytes(name: str) -> float:
    """Memory of this process. VmHWM: the most so far, and unlike `ru_maxrss` nothing of the process that
    started it. RssAnon: now, without pages of mapped files, which can be dropped at any time.
    """
    return next(int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith(name)) / 1024


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if os.path.exists(file) else []


def write_readme() -> None:
    """benchmarks/README.md from the CSVs beside it."""
    text = [
        "# Benchmarks",
        "",
        "`make bench` runs them all and writes this page; each peer runs in the same process, on the same "
        "checkpoint",
        "and inputs, and its results are checked equal. Medians, with the range over the runs. Figures of "
        "coral-mini or of",
        "random weights say how fast the code is, not how good CORAL is.",
    ]
    for file in sorted(HERE.glob("*.csv")):
        table = pd.read_csv(file, keep_default_na=False)
        whole = ast.get_docstring(ast.parse(file.with_suffix(".py").read_text(encoding="utf-8"))) or ""
        says = " ".join(whole.partition("\n\n")[0].split())
        text += [
            "",
            f"## {file.stem}",
            "",
            says,
            "",
            f"`python benchmarks/{file.stem}.py` · {'; '.join(dict.fromkeys(table['machine']))}",
            "",
            "| | median | range | runs | wanted |",
            "|---|---|---|---|---|",
        ]
        text += [
            f"| {r.what} | {_number(r.median)} | {_range(r)} | {r.runs} | {r.wanted} |"
            for r in table.itertuples()
        ]
    (HERE / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _number(value) -> str:
    """Four digits, and thousands with commas."""
    value = float(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _range(row) -> str:
    return (
        ""
        if "" in (row.least, row.most) or row.least == row.most
        else f"{_number(row.least)} – {_number(row.most)}"
    )
