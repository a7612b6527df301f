"""Approximate search among millions, by LanceDB's indexes: built, tuned to a recall that is wished for, and
measured against exact search.

Rows that were added after an index was built are searched one by one until `Table.tidy` takes them in: none
is missed meanwhile.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from coral_lab.errors import StoreError, require
from coral_lab.metrics import Estimate, estimate
from coral_lab.sources.border import brief
from coral_lab.store.checking import check_rows, matrix
from coral_lab.store.tables import PRODUCTS, Record, Table

FROM = 100_000
"""Rows; below, an exact search takes about a second."""
VECTORS = 65_536  # rows scanned at a time
REFINES = (2, 5, 10, 20, 50)
TIMED = 3  # exact searches that are timed


@dataclass(frozen=True)
class Effort:
    """How hard an approximate search looks: in so many of the index's cells, `refine` × k candidates of which
    are scored exactly.
    """

    probes: int = 20
    refine: int = 10

    def __str__(self) -> str:
        return f"{self.probes} probes, refine {self.refine}"


@dataclass(frozen=True)
class Approximation:
    """An index as it was tuned: how hard a search looks, and what that finds of the exact `k` nearest, over
    `asked` queries ("queries", or "products" of the store). Seconds are of one search on this machine.
    """

    kind: str
    rows: int
    k: int
    asked: str
    effort: Effort
    recall: Estimate
    seconds: float
    exact_seconds: float

    def __repr__(self) -> str:
        what = f"{self.kind} over {self.rows:,} rows, {self.effort}"
        found = f"recall@{self.k} {self.recall} over {self.recall.n} {self.asked}"
        times = (
            f"{self.seconds * 1e3:.1f} ms a search, {self.exact_seconds / self.seconds:.1f} × exact search"
        )
        return f"{what}: {found}; {times}"


def build(table: Table, kind: str = "ivf-pq") -> None:
    """Build an index in place of one that is there. Raises ValueError for another kind, or for less than
    100,000 rows, where exact search is fast.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    if (count := len(table)) < FROM:
        problem = f"{count:,} rows are searched exactly in about a second"
        raise ValueError(f"{problem}; an index is for {FROM:,} or more")
    own, bitmap = table.opened(), require("lancedb.index", "store").Bitmap()
    with table.turn():
        own.create_index("vector", config=_config(kind, count, table.dim))
        own.create_index("kind", config=bitmap)  # what a pool's searches are over


KINDS = ("ivf-pq", "ivf-hnsw-sq", "ivf-flat")


def _config(kind: str, rows: int, dim: int) -> Any:
    """A vector of up to 512 dimensions takes a byte for every four of them, a longer one for every eight."""
    index, cells = require("lancedb.index", "store"), _cells(kind, rows)
    if kind == "ivf-hnsw-sq":
        return index.HnswSq(distance_type="dot", num_partitions=cells)
    if kind == "ivf-flat":
        return index.IvfFlat(distance_type="dot", num_partitions=cells)
    most = dim // (4 if dim <= 512 else 8)
    parts = next(parts for parts in range(max(1, most), 0, -1) if dim % parts == 0)
    return index.IvfPq(distance_type="dot", num_partitions=cells, num_sub_vectors=parts)


def nearest(
    table: Table, query: Float32[np.ndarray, " dim"], k: int, where: str | None, effort: Effort
) -> tuple[list[Record], Float32[np.ndarray, " k"]]:
    """As `Table.nearest`, by the index: candidates of all that meet `where`, scored exactly."""
    names, scores = _search(table, table.opened(), query, k, where, effort)
    return table.rows(names), scores


def ranked(
    table: Table, queries: Float32[np.ndarray, "query dim"], k: int, where: str | None, effort: Effort
) -> list[list[tuple[float, str]]]:
    """As `Table.best`, by the index: score, turned round, and row name of each query's `k` best."""
    opened = table.opened()
    found = (_search(table, opened, query, k, where, effort) for query in queries)
    return [[(-float(score), name) for name, score in zip(*own, strict=True)] for own in found]


def _search(
    table: Table, opened: Any, query: Float32[np.ndarray, " dim"], k: int, where: str | None, effort: Effort
) -> tuple[list[str], Float32[np.ndarray, " k"]]:
    search = opened.search(query, vector_column_name="vector").distance_type("dot").limit(k)
    search = search.nprobes(effort.probes).refine_factor(effort.refine).ef(max(64, effort.refine * k))
    search = search.select(["row", "vector", "_distance"])
    try:
        found = (search.where(where, prefilter=True) if where else search).to_arrow()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"where is {where!r}, which cannot be understood ({error})") from error
    check_rows(table.uri, found.select(["row", "vector"]))
    scores = matrix(found["vector"]) @ query
    names = found["row"].to_pylist()
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], names[i]))
    return [names[i] for i in order], scores[order].astype(np.float32)


def exact(
    table: Table, queries: Float32[np.ndarray, "query dim"], k: int, where: str | None = None
) -> list[list[str]]:
    """The names of each query's `k` nearest rows, best first: all rows are read once for all queries."""
    return [[name for _, name in own] for own in table.best(queries, k, where, VECTORS)]


def tune(
    table: Table,
    queries: Float32[np.ndarray, "query dim"],
    wished: float,
    kind: str,
    k: int = 10,
    asked: str = "queries",
) -> Approximation:
    """The least effort with which an index finds the wished share of the exact `k` nearest products; the most
    that there is if none does, and its recall says so. (Six parameters, as `Store.make_index` has them.)
    """
    truth, opened, rows = exact(table, queries, k, PRODUCTS), table.opened(), len(table)
    started = time.perf_counter()
    for query in queries[:TIMED]:
        table.nearest(query, k, PRODUCTS)
    exact_seconds = (time.perf_counter() - started) / min(TIMED, len(queries))

    def measured(effort: Effort) -> Approximation:
        shares, seconds = [], []
        for query, right in zip(queries, truth, strict=True):
            at = time.perf_counter()
            names, _ = _search(table, opened, query, k, PRODUCTS, effort)
            seconds.append(time.perf_counter() - at)
            shares.append(len({*names} & {*right}) / len(right))
        share = estimate(np.array(shares))
        return Approximation(kind, rows, k, asked, effort, share, float(np.median(seconds)), exact_seconds)

    for probes in _probes(_cells(kind, rows)):
        found = measured(Effort(probes, REFINES[-1]))
        if found.recall.mean >= wished:
            break
    enough = min(wished, found.recall.mean)
    for refine in REFINES[:-1]:
        tried = measured(Effort(probes, refine))
        if tried.recall.mean >= enough:
            return tried
    return found


def _cells(kind: str, rows: int) -> int:
    """Of an index: √rows, of graphs (HNSW) a few."""
    return max(1, rows // 500_000 if kind == "ivf-hnsw-sq" else isqrt(rows))


def _probes(cells: int) -> Iterator[int]:
    """4, 8, … and all of them at last."""
    probes = 4
    while probes < cells:
        yield probes
        probes *= 2
    yield cells


SAVED = pa.schema([("index", pa.string())])


def save(table: Table, found: Approximation) -> None:
    """Keep it beside the table, for whoever opens the store."""
    with table.turn():
        own = pa.table({"index": [json.dumps(asdict(found))]}, schema=SAVED)
        table.database.create_table(_name(table), own, mode="overwrite")


def saved(table: Table) -> Approximation | None:
    """What was kept; None if nothing was. Raises StoreError for what is none."""
    if not table.has(_name(table)):
        return None
    text = table.open(_name(table)).to_arrow()["index"][0].as_py()
    try:
        own = json.loads(text)
        effort, recall = Effort(**own.pop("effort")), Estimate(**own.pop("recall"))
        if not all(isinstance(n, int) and 1 <= n <= 100_000 for n in (effort.probes, effort.refine)):
            raise ValueError(f"{effort}")
        return Approximation(effort=effort, recall=recall, **own)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{table.uri!r}: the index's settings are damaged ({brief(error)}); make it anew"
        ) from error


def _name(table: Table) -> str:
    return f"{table.name}_index"


def sample(table: Table, count: int, seed: int = 0) -> Float32[np.ndarray, "query dim"]:
    """Vectors of so many random products."""
    opened = table.opened()
    known = opened.search().where(PRODUCTS).select(["kind"]).with_row_id(True).to_arrow()["_rowid"].to_numpy()
    chosen = np.random.default_rng(seed).choice(known, min(count, len(known)), replace=False)
    rows = opened.take_row_ids(sorted(map(int, chosen))).select(["row", "vector"]).to_arrow()
    check_rows(table.uri, rows)
    return matrix(rows["vector"])
