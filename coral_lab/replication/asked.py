"""The experiments without training: what checkpoints do as they are, asked in several ways.

`formats` (Seq, Cat, captions), `conditions` (one dropped or swapped), `mistakes` (what wrong first hits
fail), `languages` (titles in all of them), `vectors` (shorter, coarser, without hubs), `sturdiness`
(blurred, small, said otherwise), `binding` (whose value a wrong hit has), `composition` (conditions asked
one by one), `interaction` (every subset of them) and `scores` (what they say beyond their order).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pandas as pd

from coral_lab.encoder import Settings
from coral_lab.evaluation import Asked, asked, evaluate
from coral_lab.models.loading import load
from coral_lab.query import Dataset, Query
from coral_lab.replication.cells import RESULTS, Cell, Measured, measure_cells, ranked
from coral_lab.retrieval import index
from coral_lab.study import binding as bound
from coral_lab.study import interaction as interacting
from coral_lab.study import scores as scored
from coral_lab.study.cheaper import way, ways
from coral_lab.study.composition import WAYS, compare_ways, composed, several
from coral_lab.study.edits import AS_ASKED, dropped, shown_by, swapped
from coral_lab.study.error_analysis import mistakes
from coral_lab.study.languages import ERASED, Parallel, measured, parallel
from coral_lab.study.sturdiness import edit_names, edit_row
from coral_lab.study.sturdiness import sturdiness as swept
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


def languages(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """Every product with its title in each language, as it is and less its language: arms "mini", "mini less
    language", and as a control "mini less other labels" (`study.languages`).
    """

    def cells() -> Iterator[Cell]:
        for name in models:
            own = cache(lambda name=name: parallel(load(name), shop, QUIET))
            for what in ("", *ERASED):
                yield Cell(f"{name} less {what}" if what else name, 0, partial(measure, own, what))

    def measure(own: Callable[[], Parallel], what: str) -> Measured:
        row, table = measured(own(), what)
        return Measured(row, queries=table.assign(query=[query.id for query in shop.queries]).round(4))

    return _ask("languages", cells(), shop, command, out)


def vectors(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """Embeddings with fewer dimensions or bits, and with hubs turned down (`study.cheaper`): arms "mini as it
    is", "mini 8 bits", … Every other query is asked, the rest are the bank.
    """

    def cells() -> Iterator[Cell]:
        for name in models:
            model = load(name)
            pool = cache(lambda model=model: index(model, shop.products, settings=QUIET))
            halves = cache(lambda pool=pool: [asked(pool(), shop.queries[i::2]) for i in (0, 1)])
            for one in ways(model.dim):
                yield Cell(f"{name} {one}", 0, partial(measure, halves, one))

    def measure(halves: Callable[[], list[Asked]], name: str) -> Measured:
        own, bank = halves()
        result, row = way(own, bank, name)
        found = ranked(result)
        return Measured({**found.row, "asked": len(result.queries), **row}, found.ranks)

    return _ask("vectors", cells(), shop, command, out)


def sturdiness(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """Pictures blurred and made smaller, of references or of the catalogue, and other sentences
    (`study.sturdiness`): arms "mini as asked", "mini references blur 1%", …
    """

    def cells() -> Iterator[Cell]:
        for name in models:
            pool = cache(lambda name=name: index(load(name), shop.products, settings=QUIET))
            table = cache(lambda pool=pool: swept(pool(), shop.queries))
            for edit in edit_names():
                yield Cell(f"{name} {edit}", 0, partial(measure, table, edit))

    def measure(table: Callable[[], pd.DataFrame], edit: str) -> Measured:
        return Measured(*edit_row(table(), edit))

    return _ask("sturdiness", cells(), shop, command, out)


EACH = 300
"""Queries of each number of conditions, where several queries are made of each."""


def _of_each_number(queries: Iterable[Query]) -> tuple[Query, ...]:
    """The first EACH queries of every number of conditions from two on. Raises NotShownError for none."""
    numbers: dict[int, list[Query]] = {}
    for query in several(queries):
        numbers.setdefault(len(query.conditions), []).append(query)
    return tuple(query for _, own in sorted(numbers.items()) for query in own[:EACH])


def binding(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """Whose value a wrong first hit has, of all queries; and what it does to the error that other references
    say the same, something else or nothing, of `_of_each_number`.

    A row for all, and for each attribute, place and language: arms "mini", "mini attribute size", …. Rows
    about queries: every first hit that fails one condition alone (`study.binding.whose_value`).
    """
    some = _of_each_number(shop.queries)

    def figures(name: str) -> tuple[pd.DataFrame, dict[str, tuple[pd.DataFrame, ...]]]:
        pool = index(load(name), shop.products, settings=QUIET)
        rows, edited = bound.whose_value(pool.evaluate(shop.queries)), bound.binding(pool, some, shop.traits)
        tables = {
            by: (bound.taken(rows, by), bound.errors(edited.rows, by), bound.effects(edited.rows, by))
            for by in bound.GROUPS
        }
        alone = rows[(rows["failed"] == 1) & (rows["fails"] == 1)].drop(columns=["failed", "fails"])
        return alone.round(4), tables

    def measure(found: Callable[[], tuple], by: str, value: str | int) -> Measured:
        alone, tables = found()
        row = {"by": by, "value": str(value), **_bound(tables[by], value)}
        return Measured(row, queries=alone if by == "all" else None)

    def cells() -> Iterator[Cell]:
        for name in models:
            found = cache(partial(figures, name))
            for by, value in _groups(some):
                arm = name if by == "all" else f"{name} {by} {value}"
                yield Cell(arm, 0, partial(measure, found, by, value))

    return _ask("binding", cells(), shop, command, out)


def _groups(queries: Sequence[Query]) -> list[tuple[str, str | int]]:
    attributes = {condition.attribute for query in queries for condition in query.conditions}
    places = range(max(len(query.conditions) for query in queries))
    languages = {query.title_language for query in queries}
    values = {"attribute": sorted(attributes), "place": [*places], "language": sorted(languages)}
    return [("all", "all"), *((by, value) for by, own in values.items() for value in own)]


def _bound(tables: Sequence[pd.DataFrame], value: str | int) -> dict[str, float | int]:
    """One group's figures: of `taken`, the error by variant (`errors`), and each contrast of `effects`; p by
    Holm.
    """
    names = ("hits", "another", "low", "high", "chance", "beyond", "beyond low", "beyond high", "p (Holm)")
    own = {
        name: table[table["value"] == value] if len(table) else table
        for name, table in zip(("taken", "errors", "effects"), tables, strict=True)
    }
    figures = {key: row[key] for row in own["taken"].to_dict("records") for key in names}
    for row in own["errors"].to_dict("records"):
        ends = {"": "error", " low": "low", " high": "high"}
        figures |= {f"error {row['variant']}{end}": row[key] for end, key in ends.items()}
    for row in own["effects"].to_dict("records"):
        ends = {"": "difference", " low": "difference low", " high": "difference high", " p": "p (Holm)"}
        figures |= {f"{row['contrast']}{end}": row[key] for end, key in (ends | {" n": "queries"}).items()}
    return figures


def composition(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """Interleaved queries against their conditions asked one by one and put together, of `_of_each_number`.

    A row for each way and number of conditions: arms "mini mean all", "mini mean 2", …; ranks of those of
    all.
    """
    some = _of_each_number(shop.queries)
    numbers = ["all", *sorted({str(len(query.conditions)) for query in some})]

    def in_all_ways(name: str) -> tuple[pd.DataFrame, Mapping[str, Measured]]:
        results = composed(index(load(name), shop.products, settings=QUIET), some)
        return compare_ways(results), {how: ranked(result) for how, result in results.items()}

    def measure(found: Callable[[], tuple], how: str, number: str) -> Measured:
        table, whole = found()
        row = table[(table["way"] == how) & (table["conditions"] == number)].iloc[0].to_dict()
        row["asked"] = row.pop("queries")  # of these; all cells have the settings' queries
        return Measured(row, whole[how].ranks if number == "all" else None)

    def cells() -> Iterator[Cell]:
        for name in models:
            found = cache(partial(in_all_ways, name))
            for number in numbers:
                for how in WAYS:
                    yield Cell(f"{name} {how} {number}", 0, partial(measure, found, how, number))

    return _ask("composition", cells(), replace(shop, queries=some), command, out)


def interaction(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """Every subset of each query's conditions: rows about queries are those of `interaction.ask_subsets`."""

    def measure(name: str) -> Measured:
        pool = index(load(name), shop.products, settings=QUIET)
        row, rows = interacting.figures(interacting.ask_subsets(pool, shop.queries, shop.traits))
        return Measured(row, queries=rows)

    return _ask("interaction", (Cell(name, 0, partial(measure, name)) for name in models), shop, command, out)


def scores(
    shop: Dataset, models: Sequence[str] = CHECKPOINTS, *, command: str = "", out: Path = RESULTS
) -> pd.DataFrame:
    """What scores say (`scores.figures`). Rows about queries: what may warn of a wrong first hit; AUROC."""

    def measure(name: str) -> Measured:
        pool = index(load(name), shop.products, settings=QUIET)
        row, rows = scored.figures(asked(pool, shop.queries), shop.traits)
        return Measured(row, queries=rows)

    return _ask("scores", (Cell(name, 0, partial(measure, name)) for name in models), shop, command, out)


ASKED: Mapping[str, Callable[..., pd.DataFrame]] = {
    "formats": formats,
    "conditions": conditions,
    "mistakes": errors,
    "languages": languages,
    "vectors": vectors,
    "sturdiness": sturdiness,
    "binding": binding,
    "composition": composition,
    "interaction": interaction,
    "scores": scores,
}
"""The experiments without training."""


def _ask(name: str, cells: Iterable[Cell], shop: Dataset, command: str, out: Path) -> pd.DataFrame:
    settings: dict[str, str | int] = {"data": shop.name, "queries": len(shop.queries)}
    return measure_cells(
        name, cells, settings, command or f"coral_lab.replication.asked.ASKED[{name!r}]", out
    )
