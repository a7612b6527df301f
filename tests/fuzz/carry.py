"""Each kind of input, carried as far as it goes without the network."""

import tempfile
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from hypothesis import strategies as st

from coral_lab import Product, Query, load
from coral_lab.errors import ItemError, WorkbenchError
from coral_lab.images import Sized, open_image
from coral_lab.models.inputs import Item, prompt
from coral_lab.prompts import FORMATS
from coral_lab.sources.merit_files import read_products, read_queries
from coral_lab.sources.package_files import shipped
from tests.fuzz import strategies as make
from tests.fuzz.checkpoints import corrupt
from tests.test_bad_input import POOL

DOCUMENTED = (ItemError, WorkbenchError)
SECONDS = 2


@lru_cache(maxsize=1)
def mini():
    return load("mini")


def seen(item: Item, format: str = "seq") -> None:
    """As it is before the network: the prompt, and its pictures opened."""
    found = prompt(mini(), item, format)
    for picture in found.pictures:
        open_image(picture.picture if isinstance(picture, Sized) else picture, found.name)


def every(items: Iterable[Callable[[], object]]) -> None:
    """All of them tried; the first error."""
    first = None
    for item in items:
        try:
            item()
        except DOCUMENTED as error:
            check(error)
            first = first or error
    if first:
        raise first


def product(values: dict) -> None:
    seen(Product(**values))


def query(values: dict) -> None:
    found = Query(**values)
    every(lambda own=format: seen(found, own) for format in FORMATS)


def table(frame) -> None:
    every(lambda own=row: product(own) for row in frame.to_dict("records"))


def query_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "queries-test.json"
        file.write_bytes(content)
        refused: list[ItemError] = []
        every(lambda own=found: seen(own) for found in read_queries(file, POOL, "test", refused.append))
    every(lambda own=error: raised(own) for error in refused)


def parquet_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test-0.parquet").write_bytes(content)
        refused: list[ItemError] = []
        every(lambda own=found: seen(own) for found in read_products(Path(folder), "test", refused.append))
    every(lambda own=error: raised(own) for error in refused)


def raised(error: ItemError) -> None:
    raise error


def checkpoint(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corrupt(shipped("data/coral-mini"), Path(folder) / "checkpoint", seed)
        load(Path(folder) / "checkpoint")


KINDS: dict[str, tuple[st.SearchStrategy, Callable]] = {
    "product": (make.products(), product),
    "query": (make.queries(), query),
    "messages": (make.messages(), seen),
    "table": (make.tables(), table),
    "query file": (make.lines(), query_file),
    "parquet file": (make.parquets(), parquet_file),
    "checkpoint": (st.integers(0, 10**6), checkpoint),
}
SHARES = {"checkpoint": 0.015}
"""Of a count of inputs; the other kinds share the rest."""


def check(error: Exception) -> None:
    assert len(str(error)) <= 300, f"{len(str(error))} characters: {error}"
    assert str(error).isprintable(), f"more than one line: {str(error)!r}"


def outcome(kind: str, value: object) -> tuple[Exception | None, float]:
    """The documented error an input ends in, or None, and the seconds that took; others pass through.
    AssertionError for an error of more than one line, or a wait.
    """
    start, busy, error = time.perf_counter(), time.process_time(), None
    try:
        KINDS[kind][1](value)
    except DOCUMENTED as found:
        check(found)
        error = found
    # Beside other work a clock says too much, and of several threads the processor's time.
    seconds = min(time.perf_counter() - start, time.process_time() - busy)
    assert seconds < SECONDS, f"{seconds:.1f} seconds"
    return error, seconds
