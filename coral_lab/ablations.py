"""What a change to a query does: edited queries, which keep their parents, and what becomes of their rankings.

An intervention is a function from a query to one or several edited queries. One of your own is three lines:

    def without_text(query):
        yield "without text", query.edited(text=".")
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd

from coral_lab.catalogue import retitle
from coral_lab.encoder import encode
from coral_lab.evaluation import Index, ranking
from coral_lab.interleaved import Format, Product, Query
from coral_lab.metrics import DEPTH

Edited = tuple[str, Query]
Intervention = Callable[[Query], Iterable[Edited]]


def identity(query: Query) -> Iterator[Edited]:
    """The query as it is: what all others are compared with."""
    yield "as asked", query.edited()


def orders(query: Query) -> Iterator[Edited]:
    """Every order of the conditions, the one asked first; "1-0" puts the second condition first."""
    for order in permutations(range(len(query.conditions))):
        yield "-".join(map(str, order)), query.reordered(order)


def dropped(query: Query) -> Iterator[Edited]:
    """The query less one condition, each in turn; nothing for a query of one condition that asks nothing else."""
    for i, condition in enumerate(query.conditions):
        rest = query.conditions[:i] + query.conditions[i + 1 :]
        if rest or query.class_name or query.text.strip():
            yield f"without {condition.attribute}", query.edited(conditions=rest)


def swapped(others: Mapping[str, Sequence[Product]]) -> Intervention:
    """The query with one reference exchanged for another product, each in turn.

    `others` are products to take, by attribute; of these the first whose value differs.
    """

    def swap(query: Query) -> Iterator[Edited]:
        for i, condition in enumerate(query.conditions):
            other = next(
                (p for p in others.get(condition.attribute, ()) if condition.value not in p.attributes.get(condition.attribute, ())),
                None,
            )  # fmt: skip
            if other is not None:
                value = " ".join(other.attributes.get(condition.attribute, ()))
                new = replace(condition, product=other, value=value)
                conditions = (*query.conditions[:i], new, *query.conditions[i + 1 :])
                yield f"another {condition.attribute}", query.edited(conditions=conditions)

    return swap


def translated(titles: str | None = None, instruction: str | None = None) -> Intervention:
    """The query with its references' titles, its own words, or both in another language. MERIT-mini's products only."""

    def translate(query: Query) -> Iterator[Edited]:
        changed = _with_references(query, lambda p: retitle(p, titles)) if titles else query
        name = " ".join(
            filter(
                None,
                (f"titles {titles}" if titles else "", f"instruction {instruction}" if instruction else ""),
            )
        )
        yield (
            name or "as asked",
            query.edited(conditions=changed.conditions, language=instruction or query.language),
        )

    return translate


def images_only(query: Query) -> Iterator[Edited]:
    """References without their titles."""
    yield (
        "images only",
        query.edited(conditions=_with_references(query, lambda p: replace(p, title="")).conditions),
    )


def text_only(query: Query) -> Iterator[Edited]:
    """References without their pictures."""
    yield (
        "text only",
        query.edited(conditions=_with_references(query, lambda p: replace(p, image=None)).conditions),
    )


def _with_references(query: Query, change: Callable[[Product], Product]) -> Query:
    return replace(query, conditions=tuple(replace(c, product=change(c.product)) for c in query.conditions))


def product_of(*interventions: Intervention) -> Intervention:
    """Every combination: each edit of the first, edited further by the second, …; names are joined by " · "."""

    def combined(query: Query) -> Iterator[Edited]:
        found: list[Edited] = [("", query)]
        for intervention in interventions:
            found = [
                (" · ".join(filter(None, (name, more))), edited)
                for name, own in found
                for more, edited in intervention(own)
            ]
        for name, edited in found:
            yield name, replace(edited, parent=query)

    return combined


def sweep(
    index: Index,
    queries: Iterable[Query],
    interventions: Intervention | Sequence[Intervention],
    *,
    formats: Mapping[str, str | Format] | None = None,
    k: int = DEPTH,
    batch_size: int = 32,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Rank the pool for every edited query: one row for each query, edit and format.

    Positives are those of the query before it was edited. Columns: query (the parent's id), edit, format, conditions,
    rank (of the best positive, in the whole pool), score (that positive's), top (the first hit's score), spread (score
    of the first less that of the k-th hit), first (the first hit's id), and, against the same query as asked in the
    same format: overlap (share of the `k` first hits kept), rank_shift (positive: fell), flipped (whether R@1
    changed). Pictures that several edits show are looked at once a batch. References stay out of all rankings of their
    query unless they are positives.
    """
    interventions = [interventions] if callable(interventions) else list(interventions)
    formats = formats or {"seq": "seq"}
    queries = tuple(queries)
    edits = [edit for query in queries for edit in _edits(query, interventions)]
    tables = []
    for name, format in formats.items():
        rows = encode(index.model, [edited for _, edited in edits], format=format, batch_size=batch_size,
                      progress=progress)  # fmt: skip
        tables.append(_table(index, edits, rows, k).assign(format=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _edits(query: Query, interventions: Sequence[Intervention]) -> Iterator[Edited]:
    yield from identity(query)
    for intervention in interventions:
        for name, edited in intervention(query):
            yield name, replace(edited, parent=query)


def _table(index: Index, edits: Sequence[Edited], rows: np.ndarray, k: int) -> pd.DataFrame:
    parents = [edited.parent for _, edited in edits]
    scores, found = ranking(parents, rows, index, k)  # a parent's references stay out, dropped or not
    records, asked = [], {}
    for (name, edited), parent, row, own, hits in zip(edits, parents, rows, scores, found, strict=True):
        rank, score = _best_positive(index, parent, row)
        if name == "as asked":
            asked[parent.id] = (rank, set(hits.tolist()))
        before, kept = asked[parent.id]
        records.append({"query": parent.id, "edit": name, "conditions": len(edited.conditions), "rank": rank,
                        "score": score, "top": own[0], "spread": own[0] - own[-1], "first": index.products[hits[0]].id,
                        "overlap": len(kept & set(hits.tolist())) / len(hits), "rank_shift": rank - before,
                        "flipped": (rank == 1) != (before == 1)})  # fmt: skip
    return pd.DataFrame(records)


def _best_positive(index: Index, query: Query, row: np.ndarray) -> tuple[int, float]:
    """Rank in the whole pool and score of the best-placed positive; ties go to the lower row. 0 and NaN without one."""
    places = [index.rows[id] for id in query.positives if id in index.rows]
    if not places:
        return 0, float("nan")
    scores = index.embeddings @ row
    best = min(places, key=lambda place: (-scores[place], place))
    gone = [index.rows[p.id] for p in query.references if p.id in index.rows and p.id not in query.positives]
    ahead = (scores > scores[best]) | ((scores == scores[best]) & (np.arange(len(scores)) < best))
    ahead[gone] = False
    return int(ahead.sum()) + 1, float(scores[best])


def attribution(index: Index, query: Query, k: int = DEPTH, *, format: str | Format = "seq") -> pd.DataFrame:
    """For each of the `k` first hits and each condition: how score and rank move when that condition is left out.

    Columns: rank, id, condition, attribute, value, met (does the hit have it), score_drop (score as asked less score
    without: what the condition adds), rank_without. A condition that adds as much to hits that do not meet it as to
    those that do is ignored.
    """
    hits = index.search(query, k)
    variants = [
        query.edited(conditions=query.conditions[:i] + query.conditions[i + 1 :])
        for i in range(len(query.conditions))
    ]
    rows = encode(index.model, [query, *variants], format=format, store="")
    scores = rows @ index.embeddings.T
    records = []
    for hit in hits:
        place = index.rows[hit.product.id]
        for i, condition in enumerate(query.conditions):
            without = scores[i + 1]
            records.append({"rank": hit.rank, "id": hit.product.id, "condition": i, "attribute": condition.attribute,
                            "value": condition.value, "met": condition.met_by(hit.product),
                            "score_drop": float(scores[0, place] - without[place]),
                            "rank_without": int((without > without[place]).sum()) + 1})  # fmt: skip
    return pd.DataFrame(records)
