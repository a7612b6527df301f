"""What a wrong first hit got wrong, told from ground truth: error analysis that is counted instead of judged.

The MERIT paper sorts errors by hand and finds attribute errors and errors of visual understanding to be the
largest classes (arXiv 2506.03144). Here the catalogue's facts say which condition a hit fails.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from html import escape

import pandas as pd

from coral_lab.evaluation import Result
from coral_lab.query import Condition, Product, Query, Traits
from coral_lab.results import Gallery, hits, paragraph

KINDS = ("wrong class", "several attributes", "visual attribute", "textual attribute", "not labelled")
"""In this order: a hit of the wrong class is not asked about its attributes. "not labelled" meets all
conditions that there are words for, and yet is no positive.
"""

COLUMNS = [
    "query",
    "first",
    "rank",
    "gap",
    "kind",
    "violated",
    "other_language",
    "like_reference",
    "near_duplicate",
]


def mistakes(result: Result, traits: Traits) -> pd.DataFrame:
    """One row a query whose first hit is no positive.

    `traits` are the dataset's: they say which attributes are visual, and what a query's free text asks for.

    Columns: query and first (ids), rank of the best positive among those kept (-1 beyond), gap (score of the
    first hit less that positive's), kind (of `KINDS`), violated (attributes that the first hit fails),
    other_language (no positive is titled in the first hit's), like_reference (it has all the facts of a
    reference, the query's distractor), near_duplicate (it differs from a positive in one fact only).
    """
    products = {product.id: product for product in result.products}
    rows = []
    for query, places, scores, right in zip(
        result.queries, result.ranked, result.scores, result.relevant, strict=True
    ):
        if right[0] or places[0] < 0:
            continue
        first, best = result.products[places[0]], int(right.argmax()) if right.any() else None
        violated = tuple(_violated(query, first, traits))
        positives = [products[id] for id in query.positives if id in products]
        rows.append(
            {
                "query": query.id,
                "first": first.id,
                "rank": -1 if best is None else best + 1,
                "gap": float("nan") if best is None else float(scores[0] - scores[best]),
                "kind": _kind(query, first, violated, traits.visual),
                "violated": violated,
                "other_language": first.language not in {product.language for product in positives},
                "like_reference": any(_differing(first, product) == 0 for product in query.references),
                "near_duplicate": any(_differing(first, product) == 1 for product in positives),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def worst(result: Result, table: pd.DataFrame, count: int = 5) -> str:
    """The mistakes with the widest gap as HTML: each query, its wrong first hit, and the best right answer it
    kept.

    `table` is `mistakes`' of the same result, or some of its rows. Right answers beyond the ranking come
    last, as the first of the query's positives.
    """
    places = {query.id: place for place, query in enumerate(result.queries)}
    products = {product.id: product for product in result.products}
    pieces = []
    for row in table.sort_values("gap", ascending=False, na_position="last").head(count).itertuples():
        query = result.queries[places[row.query]]
        scores, ranked = result.scores[places[row.query]].tolist(), result.ranked[places[row.query]]
        first = hits(query, [(products[row.first], scores[0])])
        if row.rank > 0:
            right = hits(query, [(result.products[ranked[row.rank - 1]], scores[row.rank - 1])])
            answer = replace(right, hits=(replace(right[0], rank=row.rank),)).gallery()
        else:
            known = next(products[id] for id in query.positives if id in products)
            answer = Gallery([known], ["a right answer, beyond the ranking"])._repr_html_()
        fails = f"{row.kind}: {', '.join(row.violated)}" if len(row.violated) else row.kind
        pieces.append(
            f"{query._repr_html_()}{paragraph(f'<b>{escape(fails)}</b>')}"
            f'<div style="display:flex;gap:10px">{first.gallery()}{answer}</div>'
        )
    return "".join(pieces)


def _violated(query: Query, product: Product, traits: Traits) -> Iterator[str]:
    """Attributes of the conditions that a product fails, and of the free text if it fails that."""
    words = traits.stated(query)
    stated_too = [Condition(words[0], product, words[1])] if words else []
    for condition in (*query.conditions, *stated_too):
        if condition.met_by(product) is False:
            yield condition.attribute


def _kind(query: Query, first: Product, violated: tuple[str, ...], visual: Collection[str]) -> str:
    if first.class_name != query.class_name:
        return "wrong class"
    if len(violated) > 1:
        return "several attributes"
    if not violated:
        return "not labelled"
    return "visual attribute" if violated[0] in visual else "textual attribute"


def _differing(a: Product, b: Product) -> int:
    """In how many facts, the class among them, two products differ."""
    names = {*a.attributes, *b.attributes}
    return (a.class_name != b.class_name) + sum(a.attributes.get(n) != b.attributes.get(n) for n in names)
