"""A MERIT of full size from the drawn catalogue: 51,177 products, 10,000 queries, ids of 19 digits, parquet
files as the hub has them.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from random import Random

from coral_lab.mini.merit_mini import drawn
from coral_lab.sources.files import output_folder
from coral_lab.sources.writing import write_products, write_queries

PRODUCTS, QUERIES = 51_177, 10_000
"""Of MERIT's test split."""

IDS = range(1_729_000_000_000_000_000, 1_732_000_000_000_000_000)
"""MERIT's lie among these: no float holds one, and 64 bits do."""

SHARDS = 5


def write_data(
    folder: str | Path, products: int = PRODUCTS, queries: int = QUERIES, seed: int = 0, processes: int = 0
) -> None:
    """Write a test split of that size in MERIT's file formats; pictures are drawn a batch at a time by so
    many processes, as many as there are processors by default.

    Files that are whole stay as they are, and the queries come last: what a killed run left has none, and is
    gone on from. Raises ValueError for fewer products than queries need, and for a folder of other data.
    """
    folder = output_folder(folder)
    ids = [str(id) for id in Random(f"merit/test/{seed}/ids").sample(IDS, products)]
    parts = _parts(folder, ids)
    last = folder / "queries-test.json"
    missing = {file: part for file, part in parts.items() if not _is_whole(file, ids[part])}
    if not missing and _has_lines(last, queries):
        return
    shop = drawn("merit/test", ids, queries, seed)
    last.unlink(missing_ok=True)
    output_folder(folder / "data")
    with _mapped(processes or os.cpu_count() or 1) as mapped:
        for file, part in missing.items():
            write_products(file, shop.products[part], file.stem, mapped)
    write_queries(last, shop.queries)


def _parts(folder: Path, ids: Sequence[str]) -> dict[Path, slice]:
    """The parquet files, and which products each holds."""
    ends = [i * len(ids) // SHARDS for i in range(SHARDS + 1)]
    files = [folder / "data" / f"test-{i:05d}-of-{SHARDS:05d}.parquet" for i in range(SHARDS)]
    found = sorted({*folder.glob("data/test-*.parquet"), *folder.glob("test-*.parquet")} - {*files})
    if found:
        raise ValueError(f"{found[0]} is of other data, which would be mixed up; name another folder")
    return {file: slice(ends[i], ends[i + 1]) for i, file in enumerate(files)}


def _is_whole(file: Path, ids: Sequence[str]) -> bool:
    """Whether a file holds these products; False where there is none. Raises ValueError for other ones."""
    from pyarrow import parquet

    if not file.is_file():
        return False
    if [str(id) for id in parquet.read_table(file, columns=["idx"])["idx"].to_pylist()] != list(ids):
        raise ValueError(f"{file} holds other products; name another folder")
    return True


def _has_lines(file: Path, count: int) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as lines:
        return sum(1 for _ in lines) == count


@contextmanager
def _mapped(processes: int) -> Iterator[Callable]:
    """What applies a function to batches, in their order: so many processes, or this one."""
    if processes == 1:
        yield map
        return
    context = get_context("spawn")  # a fork of a process whose threads hold locks may wait for ever
    with ProcessPoolExecutor(processes, context, _end_with_parent) as pool:
        yield pool.map


def _end_with_parent() -> None:
    """A killed run leaves no processes behind that wait for work."""

    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
