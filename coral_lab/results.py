"""How products, queries and ranked results show themselves: galleries, and the few pieces of HTML they are
made of.

All text is escaped.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import overload

import pandas as pd

from coral_lab.errors import ItemError, one_line
from coral_lab.images import img
from coral_lab.prompts import seq
from coral_lab.query import Dataset, Product, Query, name_of

FRAME = "font-family:system-ui,'Noto Sans','Noto Sans Thai',sans-serif;font-size:13px;line-height:1.45"
TILE = "width:{width}px;padding:8px;border:1px solid #8884;border-radius:8px;overflow-wrap:anywhere"
PLAIN = "mathjax_ignore"
"""Tells JupyterLab's MathJax that two dollar signs in a title are prices, and no formula between them."""
GREY = "color:#767676"
GREEN, RED = "#00795c", "#b3400f"
"""Met and not met: Okabe and Ito's colour-blind safe pair, darkened to be read on white."""


def tile(image: str, lines: Iterable[str], width: int = 132, accent: str | None = None) -> str:
    """A picture over lines of (already escaped) HTML; `accent` colours the frame."""
    style = TILE.format(width=width) + (f";border:2px solid {accent}" if accent else "")
    return f'<div style="{style}">{image}{"".join(f"<div>{line}</div>" for line in lines if line)}</div>'


def flow(tiles: Iterable[str]) -> str:
    """Tiles beside one another, wrapping where the page ends."""
    style = f"{FRAME};display:flex;flex-wrap:wrap;gap:10px;align-items:stretch"
    return f'<div class="{PLAIN}" style="{style}">{"".join(tiles)}</div>'


def paragraph(content: str) -> str:
    """A paragraph in the workbench's font."""
    return f'<div class="{PLAIN}" style="{FRAME};max-width:860px;margin:6px 0">{content}</div>'


def grey(text: str) -> str:
    return f'<span style="{GREY}">{escape(text)}</span>'


def tick(label: str, met: bool | None) -> str:
    """A tick, a cross or a question mark, and what it is about: never by colour alone."""
    sign, colour = {True: ("✓", GREEN), False: ("✗", RED), None: ("?", "#767676")}[met]
    return f'<span style="color:{colour};white-space:nowrap">{sign} {escape(label)}</span>'


def page(title: str, body: str, scripts: Sequence[str] = ()) -> str:
    """A whole page that needs no network and gets none: by its content policy nothing is loaded, and only
    these scripts run, told by their hashes.
    """
    hashes = " ".join(
        f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    allowed = f"{f'script-src {hashes}; ' * bool(scripts)}style-src 'unsafe-inline'; img-src data:"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f'<body style="{FRAME};margin:24px auto;max-width:1080px;padding:0 16px">'
        f"<h1>{escape(title)}</h1>{body}"
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>"
    )


def product_img(product: Product, size: int, inline: bool = False, pixels: int | None = None) -> str:
    """A product's picture, `size` wide on the page, or a box that says why there is none: one that cannot
    be opened leaves the others as they are. `pixels` are the thumbnail's, by default twice as many, for
    fine screens.
    """
    try:
        return img(product.thumbnail(pixels or 2 * size), size, product.title, inline)
    except ItemError as error:
        return img(None, size, product.title, inline, f"no picture: {error.problem}")


def product_html(product: Product) -> str:
    """A product with its facts."""
    facts = (escape(f"{key}: {', '.join(values)}") for key, values in product.attributes.items())
    origin = grey(" · ".join(filter(None, (product.class_name, product.language, product.country))))
    lines = [f"<b>{escape(product.title)}</b>", origin, grey(f"id {product.id}"), *facts]
    return flow([tile(product_img(product, 168, pixels=224), lines, width=184)])


def query_html(query: Query) -> str:
    """A query as the model card words it, its pictures in their places."""
    parts = (
        product_img(part, 72, inline=True, pixels=96) if isinstance(part, Product) else escape(str(part))
        for part in seq(query)
    )
    facts = f"query {query.id} · {len(query.conditions)} conditions · {len(query.positives)} positives"
    return paragraph("".join(parts) + f"<br>{grey(facts)}")


FIRST = 1000
"""Products that a dataset's summary looks at; there may be a million."""


def dataset_html(dataset: Dataset) -> str:
    """A dataset in a few lines, with its first products; counts of classes and values are of the first 1,000.
    Pictures at addresses are not fetched for this.
    """
    counts = [f"{len(dataset.products):,} products", f"{len(dataset.queries):,} queries"]
    counts += [f"{len(dataset.skipped):,} left out"] if dataset.skipped else []
    first = dataset.products[:FIRST]
    lines = [f"<b>{escape(dataset.name)}</b> {grey(' · '.join(counts))}"]
    lines += [grey(own) for own in (dataset.traits.columns, dataset.traits.sampled) if own]
    lines += [_in_words(first, len(dataset.products))] if len(first) else []
    lines += [f'<span style="color:{RED}">✗ {escape(str(error))}</span>' for error in dataset.skipped[:3]]
    lines += [grey(f"and {len(dataset.skipped) - 3:,} more in .skipped")] if len(dataset.skipped) > 3 else []
    return paragraph("<br>".join(lines)) + flow(map(_card, first[:6]))


def _in_words(products: Sequence[Product], count: int) -> str:
    """Languages, classes and attributes, each with the number of its values."""
    values: dict[str, set[str]] = {}
    for product in products:
        for name, own in product.attributes.items():
            values.setdefault(name, set()).update(own)
    languages, classes = ({getattr(p, own) for p in products} - {""} for own in ("language", "class_name"))
    pictured = sum(product.image is not None for product in products)
    found = [f"{pictured:,} with a picture", f"{len(classes):,} classes" if classes else "no classes"]
    found += [f"languages {', '.join(sorted(languages))}"] if languages else []
    named = ", ".join(f"{name} ({len(own):,})" for name, own in values.items())
    found += [f"attributes and their values: {named}"] if named else ["no attributes"]
    of = f"of the first {len(products):,}: " if len(products) < count else ""
    return escape(of + " · ".join(found))


def _card(product: Product) -> str:
    origin = grey(" · ".join(filter(None, (product.class_name, product.language))))
    if hasattr(product.image, "address"):
        picture = img(None, 116, product.title, why="picture at an address, not fetched yet")
    else:
        picture = product_img(product, 116, pixels=116)
    return tile(picture, [escape(product.title), origin])


@dataclass(frozen=True)
class Gallery:
    """Products with a line under each picture, their titles by default; shows itself."""

    products: Sequence[Product]
    captions: Sequence[str] = ()
    size: int = 116

    def _repr_html_(self) -> str:
        captions = self.captions or [product.title for product in self.products]
        return flow(
            tile(product_img(p, self.size, pixels=self.size), [escape(line)], self.size + 16)
            for p, line in zip(self.products, captions, strict=True)
        )


@dataclass(frozen=True)
class Hit:
    """One result: its rank from 1, its score (cosine), and whether it is a positive; None where nobody
    knows.
    """

    rank: int
    score: float
    product: Product
    positive: bool | None


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """The ranked results of one query; shows itself as a gallery."""

    query: Query
    hits: tuple[Hit, ...]

    @overload
    def __getitem__(self, i: int) -> Hit: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, i: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[i]

    def __len__(self) -> int:
        return len(self.hits)

    def __repr__(self) -> str:
        lines = (
            f"{hit.rank:3d}. {hit.score:+.4f} {_sign(hit)} "
            + one_line(f"{hit.product.id} {hit.product.title}")
            for hit in self
        )
        return "\n".join([f"{len(self)} hits for {one_line(name_of(self.query))}", *lines])

    def table(self) -> pd.DataFrame:
        """One row a hit: rank, score, id, title, class, language, positive, and one column a condition."""
        rows = [
            {
                "rank": hit.rank,
                "score": hit.score,
                "id": hit.product.id,
                "title": hit.product.title,
                "class": hit.product.class_name,
                "language": hit.product.language,
                "positive": hit.positive,
                **{label: met for label, met in _verdicts(self.query, hit.product)},
            }
            for hit in self
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return self.query._repr_html_() + self.gallery()

    def gallery(self, before: Mapping[str, int] | None = None) -> str:
        """The hits as HTML; with the ranks that products had `before`, by id, also how far each has moved."""
        return flow(self.cards(before))

    def cards(self, before: Mapping[str, int] | None = None) -> list[str]:
        """The tiles of `gallery`, one a hit."""
        return [_hit_card(self.query, hit, _shift(hit, before)) for hit in self]


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
    head = f"<b>{hit.rank}</b> {shift} {grey(f'{hit.score:.3f}')}"
    if hit.positive:
        head += f' <b style="color:{GREEN}">✓ positive</b>'
    marks = [tick(label, met) for label, met in _verdicts(query, product)]
    lines = [head, f'<div style="min-height:3em">{escape(product.title)}</div>', *marks]
    return tile(
        product_img(product, 116, pixels=128),
        lines,
        accent=GREEN if hit.positive else None,
    )


def hits(query: Query, found: Iterable[tuple[Product, float]]) -> Hits:
    """Results in order, best first."""
    return Hits(
        query,
        tuple(
            Hit(rank, float(score), product, _is_positive(query, product.id))
            for rank, (product, score) in enumerate(found, 1)
        ),
    )


def _is_positive(query: Query, id: str) -> bool | None:
    """None also where people judged other answers, and not this one."""
    if not query.positives or (query.relevance and id not in query.relevance and id not in query.positives):
        return None
    return id in query.positives
