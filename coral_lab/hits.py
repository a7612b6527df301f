"""Galleries: products beside one another, and the ranked results of a query."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from coral_lab import html
from coral_lab.interleaved import Product, Query, name_of


@dataclass(frozen=True)
class Gallery:
    """Products with a line under each picture, their titles by default; shows itself."""

    products: Sequence[Product]
    captions: Sequence[str] = ()
    size: int = 116

    def _repr_html_(self) -> str:
        captions = self.captions or [product.title for product in self.products]
        return html.row(
            html.card(
                html.picture(p.thumbnail(self.size), self.size, p.title), [escape(line)], self.size + 16
            )
            for p, line in zip(self.products, captions, strict=True)
        )


@dataclass(frozen=True)
class Hit:
    """One result: its rank from 1, its score (cosine), and whether it is a positive; None where nobody knows."""

    rank: int
    score: float
    product: Product
    positive: bool | None


@dataclass(frozen=True)
class Hits(Sequence):
    """The ranked results of one query; shows itself as a gallery."""

    query: Query
    hits: tuple[Hit, ...]

    def __getitem__(self, i):
        return self.hits[i]

    def __len__(self) -> int:
        return len(self.hits)

    def __repr__(self) -> str:
        lines = (
            f"{hit.rank:3d}. {hit.score:+.4f} {_sign(hit)} {hit.product.id} {hit.product.title}"
            for hit in self
        )
        return "\n".join([f"{len(self)} hits for {name_of(self.query)}", *lines])

    def table(self) -> pd.DataFrame:
        """One row a hit: rank, score, id, title, class, language, positive, and one column a condition."""
        rows = [
            {"rank": hit.rank, "score": hit.score, "id": hit.product.id, "title": hit.product.title,
             "class": hit.product.class_name, "language": hit.product.language, "positive": hit.positive,
             **{label: met for label, met in _verdicts(self.query, hit.product)}}
            for hit in self
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return self.query._repr_html_() + self.gallery()

    def gallery(self, before: Mapping[str, int] | None = None) -> str:
        """The hits as HTML; with the ranks that products had `before`, by id, also how far each has moved."""
        return html.row(_hit_card(self.query, hit, _shift(hit, before)) for hit in self)


def _sign(hit: Hit) -> str:
    return {True: "✓", False: "✗", None: " "}[hit.positive]


def _verdicts(query: Query, product: Product) -> Iterable[tuple[str, bool | None]]:
    yield f"class {query.class_name}", product.class_name == query.class_name
    for condition in query.conditions:
        yield f"{condition.attribute} {condition.value}".strip(), condition.met_by(product)


def _shift(hit: Hit, before: Mapping[str, int] | None) -> str:
    """How far a hit has moved: ▲2, ▼1, =, or new."""
    if before is None:
        return ""
    if hit.product.id not in before:
        return "new"
    shift = before[hit.product.id] - hit.rank
    return f"{'▲' if shift > 0 else '▼'}{abs(shift)}" if shift else "="


def _hit_card(query: Query, hit: Hit, shift: str = "") -> str:
    product = hit.product
    head = f"<b>{hit.rank}</b> {shift} {html.grey(f'{hit.score:.3f}')}"
    if hit.positive:
        head += f' <b style="color:{html.GREEN}">✓ positive</b>'
    marks = [html.verdict(label, met) for label, met in _verdicts(query, product)]
    lines = [head, f'<div style="min-height:3em">{escape(product.title)}</div>', *marks]
    return html.card(
        html.picture(product.thumbnail(128), 116, product.title),
        lines,
        accent=html.GREEN if hit.positive else None,
    )


def hits(query: Query, found: Iterable[tuple[Product, float]]) -> Hits:
    """Results in order, best first."""
    return Hits(
        query,
        tuple(
            Hit(rank, float(score), product, product.id in query.positives if query.positives else None)
            for rank, (product, score) in enumerate(found, 1)
        ),
    )
