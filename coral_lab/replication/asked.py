"""The experiments without training: what checkpoints do as they are, asked in several ways.

`formats` (Seq, Cat, captions), `conditions` (one dropped or swapped) and `mistakes` (what wrong first hits
fail).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import pandas as pd

from coral_lab.encoder import Settings
from coral_lab.evaluation import evaluate
from coral_lab.models.loading import load
from coral_lab.query import Dataset
from coral_lab.replication.cells import RESULTS, Cell, Measured, measure_cells, ranked
from coral_lab.retrieval import index
from coral_lab.study.edits import AS_ASKED, dropped, shown_by, swapped
from coral_lab.study.error_analysis import mistakes
from coral_lab.study.sweeps import sweep

QUIET = Settings(progress=False)

CHECKPOINTS = ("mini-base", "mini-contrastive", "mini")


def formats(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """Every format of every checkpoint on all queries: arms "mini-base seq", "mini-base cat", …"""

    def cells() -> Iterator[Cell]:
        for name in models:
            pool = cache(lambda name=name: index(load(name), shop.products, settings=QUIET))
            for format in ("seq", "cat", "caption"):  # the paper's three
                measure = partial(
                    lambda pool, format: ranked(pool().evaluate(shop.queries, format)), pool, format
                )
                yield Cell(f"{name} {format}", 0, measure)

    return _ask("formats", cells(), shop, command, out)


def conditions(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """What becomes of the ranking when one condition is dropped, or swapped for another value, each in turn.

    Rows about queries: query, attribute, edit, kept (the first hit stays), overlap (share of the first ten
    that stay), old and new (the first hit has the value asked before, or now; swapped only).
    """
    edits = [dropped, swapped(shown_by(shop.queries))]

    def measure(name: str) -> Measured:
        table = sweep(index(load(name), shop.products, settings=QUIET), shop.queries, edits)
        rows = pd.DataFrame(_edits(table, shop))
        means = rows.groupby("edit")[["kept", "overlap"]].mean()
        row = {f"{edit} {column}": means.loc[edit, column] for edit in means.index for column in means}
        return Measured(row | {"swapped new": rows["new"].mean()}, queries=rows)

    cells = (Cell(name, 0, partial(measure, name)) for name in models)
    return _ask("conditions", cells, shop, command, out)


def _edits(table: pd.DataFrame, shop: Dataset) -> Iterator[dict]:
    asked = table[table["edit"] == AS_ASKED].set_index("query")["first"]
    for row in table[table["edit"] != AS_ASKED].itertuples():
        edit, attribute = row.edit.split(" ", 1)
        found = {
            "query": row.query,
            "attribute": attribute,
            "edit": "dropped" if edit == "without" else "swapped",
            "kept": int(row.first == asked[row.query]),
            "overlap": round(row.overlap, 3),
        }
        if edit == "another":
            first = shop.product(row.first)
            old, new = (
                {c.attribute: c for c in query.conditions}[attribute]
                for query in (row.edited.parent, row.edited)
            )
            found |= {"old": int(bool(old.met_by(first))), "new": int(bool(new.met_by(first)))}
        yield found


def errors(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """Every wrong first hit, sorted by what it fails (`mistakes.mistakes`)."""

    def measure(name: str) -> Measured:
        result = evaluate(load(name), shop.queries, shop.products, settings=QUIET)
        rows = mistakes(result, shop.traits)
        kinds = rows["kind"].value_counts(normalize=True)
        rows["violated"] = rows["violated"].map(" ".join)
        rows["gap"] = rows["gap"].round(4)
        return Measured({"wrong": len(rows) / len(shop.queries), **kinds}, queries=rows)

    cells = (Cell(name, 0, partial(measure, name)) for name in models)
    return _ask("mistakes", cells, shop, command, out)


ASKED: Mapping[str, Callable[..., pd.DataFrame]] = {
    "formats": formats,
    "conditions": conditions,
    "mistakes": errors,
}
"""The experiments without training."""


def _ask(name: str, cells: Iterable[Cell], shop: Dataset, command: str, out: Path) -> pd.DataFrame:
    settings: dict[str, str | int] = {"data": shop.name, "queries": len(shop.queries)}
    return measure_cells(
        name, cells, settings, command or f"coral_lab.replication.asked.ASKED[{name!r}]", out
    )
