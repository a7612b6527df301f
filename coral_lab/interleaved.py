"""Products, conditions and interleaved queries, as frozen data.

A query asks for a product of a wanted class that shares one attribute with each of its reference
products: "a backpack with the brand of <picture 1> and the style of <picture 2>, with a chain strap"
(MERIT, arXiv 2506.03144). The order of `Query.conditions` is the order in which they are asked.
A prompt format is a function from a query to its parts: text, and products standing for their pictures.
`messages` turns parts into what a chat template takes. A format of one's own is five lines:

    def bullets(query):
        yield f"Find a {query.class_name}:"
        for condition in query.conditions:
            yield f"\n- {condition.attribute} of "
            yield condition.product
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from html import escape
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from coral_lab import html
from coral_lab.images import ItemError, Picture, open_image, paste_together, thumbnail
from coral_lab.mini.cards import cards

AS_IMAGE = "as product image"
"""MERIT's holder value: "like this picture", with no word for what is meant."""


@dataclass(frozen=True, eq=False)
class Product:
    """One item of a catalogue: its picture, its title and what is known about it.

    `attributes` is the ground truth, `{key: (value, ...)}`; a title or a picture may show only part of it.
    Two products are equal when their ids are.
    """

    id: str
    title: str = ""
    image: Picture | None = None
    class_name: str = ""
    language: str = ""
    country: str = ""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.id, str) or not self.id:
            raise ItemError(
                f"product {self.id!r}", "the id is no text; give a non-empty str (MERIT uses str(idx))"
            )
        values = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in self.attributes.items()}
        object.__setattr__(self, "attributes", MappingProxyType(values))

    @property
    def picture(self) -> Image.Image | None:
        """The picture opened as RGB; None if there is none. Raises ItemError if it cannot be read."""
        return None if self.image is None else open_image(self.image, f"product {self.id}")

    def thumbnail(self, size: int = 96) -> str | None:
        """The picture as a `data:` address for HTML, at most `size` pixels a side."""
        return None if self.image is None else thumbnail(self.image, f"product {self.id}", size)

    def _repr_html_(self) -> str:
        facts = (escape(f"{key}: {', '.join(values)}") for key, values in self.attributes.items())
        origin = html.grey(" · ".join(filter(None, (self.class_name, self.language, self.country))))
        lines = [f"<b>{escape(self.title)}</b>", origin, html.grey(f"id {self.id}"), *facts]
        return html.row([html.card(html.picture(self.thumbnail(224), 168, self.title), lines, width=184)])

    def __eq__(self, other):
        return isinstance(other, Product) and self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __reduce__(self):  # a mappingproxy does not pickle
        state = (self.id, self.title, self.image, self.class_name, self.language, self.country)
        return Product, (*state, dict(self.attributes))


@dataclass(frozen=True)
class Condition:
    """Share `attribute` with `product`. `value` is the reference's value, "" when it is not known."""

    attribute: str
    product: Product
    value: str = ""

    def met_by(self, candidate: Product) -> bool | None:
        """Whether `candidate` has the wanted value; None when there is no word for it."""
        if not self.value or self.value == AS_IMAGE:
            return None
        return self.value in candidate.attributes.get(self.attribute, ())


@dataclass(frozen=True)
class Query:
    """A wanted class, conditions in the order they are asked, and free text.

    `text` follows the last condition, with its leading space: `" with a chain strap."`.
    `positives` are the ids of the right answers, `hard_negatives` those of close wrong ones.
    `language` is that of the instruction's own words. `parent` is the query that this one was
    edited from. Raises ItemError if there is nothing to ask.
    """

    id: str
    class_name: str
    conditions: tuple[Condition, ...] = ()
    text: str = ""
    positives: tuple[str, ...] = ()
    hard_negatives: tuple[str, ...] = ()
    language: str = "en"
    parent: "Query | None" = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "conditions", tuple(self.conditions))
        object.__setattr__(self, "positives", tuple(self.positives))
        object.__setattr__(self, "hard_negatives", tuple(self.hard_negatives))
        if not (self.class_name or self.conditions or self.text.strip()):
            raise ItemError(f"query {self.id!r}", "it is empty; give it a class_name, a condition or a text")

    @property
    def references(self) -> tuple[Product, ...]:
        """The products the query points to, in order."""
        return tuple(condition.product for condition in self.conditions)

    @property
    def title_language(self) -> str:
        """Language of the references' titles, "mixed" when they differ, "" when there are none."""
        languages = {product.language for product in self.references}
        return languages.pop() if len(languages) == 1 else "mixed" if languages else ""

    def edited(self, **changes) -> "Query":
        """This query with some fields replaced, remembering this one as its parent."""
        return replace(self, parent=self, **changes)

    def reordered(self, order: Sequence[int]) -> "Query":
        """This query with its conditions in another order, e.g. `(1, 0)`; ValueError for no permutation."""
        if sorted(order) != list(range(len(self.conditions))):
            raise ValueError(f"order {tuple(order)} of query {self.id!r} is no permutation of "
                             f"{tuple(range(len(self.conditions)))}")  # fmt: skip
        return self.edited(conditions=tuple(self.conditions[i] for i in order))

    def _repr_html_(self) -> str:
        parts = (
            escape(part) if isinstance(part, str)
            else html.picture(part.thumbnail(96), 72, part.title, inline=True)
            for part in seq(self)
        )  # fmt: skip
        facts = f"query {self.id} · {len(self.conditions)} conditions · {len(self.positives)} positives"
        return html.block("".join(parts) + f"<br>{html.grey(facts)}")


@dataclass(frozen=True)
class Dataset:
    """A candidate pool and the queries asked of it. `skipped` says what was left out and why, if that was allowed."""

    name: str
    products: Sequence[Product]
    queries: Sequence[Query]
    skipped: Sequence[ItemError] = ()

    @cached_property
    def by_id(self) -> Mapping[str, Product]:
        return {product.id: product for product in self.products}

    def product(self, id: str) -> Product:
        """The product with this id; a KeyError that names the id and the pool if there is none."""
        try:
            return self.by_id[str(id)]
        except KeyError:
            raise KeyError(f"no product {id!r} among the {len(self.products)} of {self.name}") from None

    def where(
        self,
        *,
        language: str | Sequence[str] | None = None,
        class_name: str | Sequence[str] | None = None,
        attribute: str | Sequence[str] | None = None,
        conditions: int | Sequence[int] | None = None,
    ) -> "Dataset":
        """The same pool with only some queries; each argument is a value or several.

        `language` is that of all reference titles ("mixed" if they differ), `attribute` is asked for by any
        condition, `conditions` is their number.
        """
        tests = (
            (language, lambda query: {query.title_language}),
            (class_name, lambda query: {query.class_name}),
            (attribute, lambda query: {condition.attribute for condition in query.conditions}),
            (conditions, lambda query: {len(query.conditions)}),
        )
        queries = self.queries
        for wanted, of in tests:
            if wanted is not None:
                values = {wanted} if isinstance(wanted, str | int) else set(wanted)
                queries = [query for query in queries if values & of(query)]
        return replace(self, queries=tuple(queries))


Part = str | Product | Image.Image
Format = Callable[[Query], Iterable[Part]]


@lru_cache(maxsize=1)
def _instructions() -> dict:
    file = Path(__file__).resolve().parent.parent / "data" / "instructions.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _words(query: Query) -> tuple[str, list[str]]:
    """The instruction's opening, and the words before each reference; MERIT's own keys stay as they are."""
    table = _instructions()
    if query.language not in table:
        raise ItemError(
            f"query {query.id!r}", f"language is {query.language!r}; choose one of {', '.join(table)}"
        )
    words = table[query.language]
    translations = (
        cards()["classes"].get(query.class_name, {}).get("words", {}) if query.language != "en" else {}
    )
    name = translations.get(query.language, query.class_name)
    opening = words["find"].format(**{"class": name}) if name else words["anything"]
    asked = [words["attributes"].get(c.attribute, c.attribute) for c in query.conditions]
    return opening, [words["next" if i else "first"].format(attribute=key) for i, key in enumerate(asked)]


def seq(query: Query) -> Iterator[Part]:
    """The model card's format: every picture where it is spoken of (the paper's `Seq`)."""
    text, asked = _words(query)
    for number, (condition, words) in enumerate(zip(query.conditions, asked, strict=True), 1):
        # The card breaks the line before the first picture only.
        yield f"{text}{words}<Product {number}> " + ("\n " if number == 1 else "")
        yield condition.product
        text = f"\n {condition.product.title} </Product {number}>"
    yield text + query.text


def cat(query: Query) -> Iterator[Part]:
    """All pictures pasted into one, in front of the text (the paper's `Cat`)."""
    pictures = [product.picture for product in query.references if product.image is not None]
    if pictures:
        yield paste_together(pictures)
    yield from (part for part in seq(query) if isinstance(part, str))


def describe(product: Product) -> str:
    """What the picture shows, in words: a stand-in for a captioner, written from the product's facts."""
    facts = ", ".join(
        f"{key} {' '.join(product.attributes[key])}" for key in _SEEN if key in product.attributes
    )
    return f"[{product.class_name}{': ' if facts else ''}{facts}]"


_SEEN = ("color", "pattern", "brand", "shape", "trim", "product style", "style")


def caption(query: Query, describe: Callable[[Product], str] = describe) -> Iterator[Part]:
    """Each picture replaced by a description (the paper's ablation without images)."""
    for part in seq(query):
        yield describe(part) if isinstance(part, Product) and part.image is not None else part


FORMATS: Mapping[str, Format] = MappingProxyType({"seq": seq, "cat": cat, "caption": caption})


def candidate(product: Product) -> Iterator[Part]:
    """The model card's text for a product to be found."""
    yield "Represent the given product: "
    yield product
    if product.title:
        yield f"\n {product.title}"


def parts(item: Product | Query, format: str | Format = "seq") -> list[Part]:
    """What an item is read as: texts, joined where they meet, and products or pictures where a picture goes.

    `format` is a name in FORMATS or a function of the query; products have one form only. A product without
    a picture stands for nothing. Raises ItemError for an item of which nothing is left, ValueError for an
    unknown format.
    """
    joined: list[Part] = []
    for part in candidate(item) if isinstance(item, Product) else _format(format)(item):
        if isinstance(part, Product) and part.image is None:
            continue
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    if not any(part.strip() if isinstance(part, str) else True for part in joined):
        raise ItemError(name_of(item), "its format gives neither text nor picture; yield at least one part")
    return joined


def name_of(item: Product | Query) -> str:
    """How errors call an item: "product 17" or "query q-3"."""
    return f"{'product' if isinstance(item, Product) else 'query'} {item.id}"


def messages(item: Product | Query, format: str | Format = "seq") -> list[dict]:
    """Chat messages for `processor.apply_chat_template` and `process_vision_info`, as on the model card.

    Paths stay paths; drawn and encoded pictures are opened. Arguments and errors are those of `parts`.
    """
    return [{"role": "user", "content": [_entry(part) for part in parts(item, format)]}]


def _entry(part: Part) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    picture = part.image if isinstance(part, Product) else part
    if isinstance(picture, bytes) or callable(picture):
        picture = part.picture
    return {"type": "image", "image": str(picture) if isinstance(picture, Path) else picture}


def _format(format: str | Format) -> Format:
    if callable(format):
        return format
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; use one of {', '.join(FORMATS)} or a function of the query")
    return FORMATS[format]
