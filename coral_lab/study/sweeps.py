"""What a change to a query does: edited queries, which keep their parents, and what becomes of their rankings.

An intervention is a function from a query to one or several edited queries, each with a name. `sweep` ranks them all;
`attribution` and `heeded` ask what a single condition does. An intervention of your own is two lines:

    def without_text(query):
        yield "without text", query.edited(text=".")
"""

import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations
from random import Random

import numpy as np
import pandas as pd
from jaxtyping import Float32
from PIL import Image

from coral_lab.encoder import encode, progress_bar
from coral_lab.evaluation import Index, ranking
from coral_lab.interleaved import Format, Product, Query, describe
from coral_lab.metrics import DEPTH
from coral_lab.mini.catalogue import LANGUAGES, retitle

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


def neutralised(query: Query) -> Iterator[Edited]:
    """The query with one reference emptied, each in turn: a grey picture of the usual size and no title.

    The sentence keeps its length and form, which `dropped` changes; but a model has never seen such a reference.
    """
    for i, condition in enumerate(query.conditions):
        blank = Product(
            f"{condition.product.id} neutral", image=_grey(), class_name=condition.product.class_name
        )
        yield f"neutral {condition.attribute}", _with_condition(query, i, product=blank)


@cache
def _grey() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (224, 224), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


def swapped(others: Mapping[str, Sequence[Product]], seed: int = 0) -> Intervention:
    """The query with one reference exchanged for another product, each in turn, and so with another wanted value.

    `others` are products to take, by attribute, such as `shown_by` gives; of those with another value one is drawn by
    the seed and the query's id.
    """

    def swap(query: Query) -> Iterator[Edited]:
        for i, condition in enumerate(query.conditions):
            key = condition.attribute
            fits = [
                p
                for p in others.get(key, ())
                if condition.value not in p.attributes.get(key, (condition.value,))
            ]
            if fits:
                other = Random(f"{seed}/{query.id}/{i}").choice(fits)
                yield (
                    f"another {key}",
                    _with_condition(query, i, product=other, value=" ".join(other.attributes[key])),
                )

    return swap


def shown_by(queries: Iterable[Query]) -> Mapping[str, list[Product]]:
    """For each attribute, the references that stand for it in some query: products known to show its value."""
    found: dict[str, dict[str, Product]] = defaultdict(dict)
    for query in queries:
        for condition in query.conditions:
            found[condition.attribute][condition.product.id] = condition.product
    return {attribute: list(products.values()) for attribute, products in found.items()}


def translated(titles: str | None = None, instruction: str | None = None) -> Intervention:
    """The query with its references' titles, its own words, or both in another language; titles of MERIT-mini only."""
    names = [f"titles {titles}"] * bool(titles) + [f"instruction {instruction}"] * bool(instruction)

    def translate(query: Query) -> Iterator[Edited]:
        changed = _with_references(query, lambda p: retitle(p, titles)) if titles else query
        yield " ".join(names) or "as asked", changed.edited(language=instruction or query.language)

    return translate


def code_switched(query: Query) -> Iterator[Edited]:
    """Each reference's title in a language of its own, drawn by the query's id. MERIT-mini's products only."""
    drawn = Random(query.id).sample(LANGUAGES, len(LANGUAGES))
    turns = iter(drawn * (1 + len(query.conditions) // len(LANGUAGES)))
    yield "code-switched", _with_references(query, lambda p: retitle(p, next(turns)))


def images_only(query: Query) -> Iterator[Edited]:
    """References without their titles."""
    yield "images only", _with_references(query, lambda p: replace(p, title=""))


def text_only(query: Query) -> Iterator[Edited]:
    """References without their pictures."""
    yield "text only", _with_references(query, lambda p: replace(p, image=None))


def captioned(query: Query) -> Iterator[Edited]:
    """References with a description in place of their pictures, at the head of the title."""
    yield (
        "captions",
        _with_references(query, lambda p: replace(p, image=None, title=f"{describe(p)}\n {p.title}")),
    )


def _with_references(query: Query, change: Callable[[Product], Product]) -> Query:
    return query.edited(conditions=tuple(replace(c, product=change(c.product)) for c in query.conditions))


def _with_condition(query: Query, i: int, **changes) -> Query:
    new = replace(query.conditions[i], **changes)
    return query.edited(conditions=(*query.conditions[:i], new, *query.conditions[i + 1 :]))


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


def apply(intervention: Intervention, queries: Iterable[Query]) -> list[Query]:
    """Each query's one edit. Raises ValueError for an intervention that gives another number of them."""
    found = []
    for query in queries:
        edits = [edited for _, edited in intervention(query)]
        if len(edits) != 1:
            raise ValueError(
                f"query {query.id!r} has {len(edits)} edits; apply() is for one a query, sweep() for all"
            )
        found += edits
    return found


def sweep(
    index: Index,
    queries: Iterable[Query],
    interventions: Intervention | Sequence[Intervention] = (),
    *,
    formats: Mapping[str, str | Format] | None = None,
    k: int = DEPTH,
    batch_size: int = 32,
    progress: bool | None = None,
    store: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Rank the pool for every edited query: one row for each query, edit and format, the query as asked first.

    Positives are those of the query before it was edited. Columns: query (the parent's id), edit, format, conditions
    (how many), rank (of the best positive, in the whole pool; 0 if it has none), score (that positive's), top (the
    first hit's score), spread (score of the first less that of the k-th hit), first (the first hit's id), edited (the
    edited query, whose `parent` is the one asked), and, against the same query as asked in the same format: overlap
    (share of the `k` first hits kept), rank_shift (of the positive; above 0 it fell), flipped (whether R@1 changed).

    The edits of a query are read in one batch, so that each of their pictures is looked at once a format. References
    stay out of all rankings of their query unless they are positives. `store` is that of `encode`.
    """
    interventions = [interventions] if callable(interventions) else list(interventions)
    formats = formats or {"seq": "seq"}
    groups = _groups([list(_edits(query, interventions)) for query in queries], batch_size)
    show = progress if progress is not None else len(groups) * len(formats) >= 8
    tables = []
    with progress_bar(show, total=len(groups) * len(formats), desc="sweep", unit="batch") as bar:
        for name, format in formats.items():
            for edits in groups:
                rows = encode(index.model, [edited for _, edited in edits], format=format, batch_size=max(len(edits), 1),
                              progress=False, store=store)  # fmt: skip
                tables.append(_table(index, edits, rows, k).assign(format=name))
                bar.update()
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _edits(query: Query, interventions: Sequence[Intervention]) -> Iterator[Edited]:
    yield from identity(query)
    for intervention in interventions:
        for name, edited in intervention(query):
            yield name, replace(edited, parent=query)


def _groups(families: Sequence[list[Edited]], size: int) -> list[list[Edited]]:
    """Whole families of edits together, about `size` edits a group."""
    groups: list[list[Edited]] = []
    for family in families:
        if groups and len(groups[-1]) + len(family) <= size:
            groups[-1] += family
        else:
            groups.append(list(family))
    return groups


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
                        "flipped": (rank == 1) != (before == 1), "edited": edited})  # fmt: skip
    return pd.DataFrame(records)


def _best_positive(index: Index, query: Query, row: np.ndarray) -> tuple[int, float]:
    """Rank in the whole pool and score of the best-placed positive; ties go to the lower row. 0 and NaN without one."""
    places = [index.rows[id] for id in query.positives if id in index.rows]
    if not places:
        return 0, float("nan")
    scores = index.embeddings @ row
    best = min(places, key=lambda place: (-scores[place], place))
    return _rank(index, query, scores, best), float(scores[best])


def _rank(index: Index, query: Query, scores: Float32[np.ndarray, " product"], place: int) -> int:
    """Rank from 1 of one product, the query's references left out; ties go to the lower row."""
    ahead = (scores > scores[place]) | ((scores == scores[place]) & (np.arange(len(scores)) < place))
    ahead[
        [index.rows[p.id] for p in query.references if p.id in index.rows and p.id not in query.positives]
    ] = False
    return int(ahead.sum()) + 1


def attribution(
    index: Index,
    query: Query,
    k: int = DEPTH,
    *,
    how: Intervention = dropped,
    format: str | Format = "seq",
) -> pd.DataFrame:
    """For each of the `k` first hits and each condition: how score and rank move when that condition is taken away.

    `how` takes it away: `dropped` leaves it out, `neutralised` empties its reference. Columns: rank, id, condition,
    attribute, value, met (does the hit have it), score_drop (score as asked less score without: what the condition
    adds), rank_without. A condition that adds as much to hits that do not meet it as to those that do is ignored;
    `heeded` measures that. Raises ValueError for a `how` that does not give one edit a condition.
    """
    hits = index.search(query, k)
    items = [edited for _, edited in _taken_away(query, how)]
    scores = encode(index.model, items, format=format, progress=False, store="") @ index.embeddings.T
    records = []
    for hit in hits:
        place = index.rows[hit.product.id]
        for i, condition in enumerate(query.conditions):
            records.append({"rank": hit.rank, "id": hit.product.id, "condition": i, "attribute": condition.attribute,
                            "value": condition.value, "met": condition.met_by(hit.product),
                            "score_drop": float(scores[0, place] - scores[i + 1, place]),
                            "rank_without": _rank(index, query, scores[i + 1], place)})  # fmt: skip
    return pd.DataFrame(records)


def heeded(
    index: Index, queries: Iterable[Query], *, how: Intervention = dropped, format: str | Format = "seq"
) -> pd.DataFrame:
    """Which conditions a model listens to: one row for each query and condition.

    A condition that is heeded adds more to products that meet it than to those that do not. Columns: query, condition
    (its place from 0), attribute, gain (mean of what it adds to the scores of products of the wanted class that meet
    it, less that of those that do not; 0 for a condition that is ignored, NaN where no word says what is wanted),
    rank_shift (of the best positive when it is taken away). `how` is that of `attribution`.
    """
    groups = _groups([_taken_away(query, how) for query in queries], 32)
    records = []
    for edits in progress_bar(len(groups) >= 8, groups, desc="heeded", unit="batch"):
        items = [edited for _, edited in edits]
        rows = encode(index.model, items, format=format, batch_size=len(items), progress=False, store="")
        scores = rows @ index.embeddings.T
        starts = [row for row, (name, _) in enumerate(edits) if name == "as asked"]
        for start in starts:
            query = items[start]
            records += _heeded(index, query, scores[start : start + 1 + len(query.conditions)])
    return pd.DataFrame(records)


def _heeded(index: Index, query: Query, scores: Float32[np.ndarray, "edit product"]) -> Iterator[dict]:
    right = [row for row, p in enumerate(index.products) if p.class_name == query.class_name]
    before = _best_rank(index, query, scores[0])
    for i, condition in enumerate(query.conditions):
        met = np.array([condition.met_by(index.products[row]) for row in right], object)
        added = scores[0, right] - scores[i + 1, right]
        yes, no = added[met == True], added[met == False]  # noqa: E712  None is neither
        yield {"query": query.id, "condition": i, "attribute": condition.attribute,
               "gain": float(yes.mean() - no.mean()) if len(yes) and len(no) else float("nan"),
               "rank_shift": _best_rank(index, query, scores[i + 1]) - before}  # fmt: skip


def _best_rank(index: Index, query: Query, scores: Float32[np.ndarray, " product"]) -> int:
    places = [index.rows[id] for id in query.positives if id in index.rows]
    return min((_rank(index, query, scores, place) for place in places), default=0)


def _taken_away(query: Query, how: Intervention) -> list[Edited]:
    """The query as asked, then without each of its conditions."""
    edits = list(how(query))
    if len(edits) != len(query.conditions):
        raise ValueError(f"query {query.id!r} has {len(query.conditions)} conditions and {len(edits)} edits that take one "
                         "away; use dropped, neutralised, or one that gives an edit for each")  # fmt: skip
    return [("as asked", query), *edits]
