"""Products, conditions and interleaved queries, as frozen data.

A query asks for a product of a wanted class that shares one attribute with each of its reference
products: "a backpack with the brand of <picture 1> and the style of <picture 2>, with a chain strap"
(MERIT, arXiv 2506.03144). The order of `Query.conditions` is the order in which they are asked.
How a query is worded for a model is the business of `prompts`, how it is shown that of `results`.
"""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from PIL import Image

from coral_lab.errors import ItemError
from coral_lab.images import Picture, open_image, thumbnail

AS_IMAGE = "as product image"
"""MERIT's holder value: "like this picture", with no word for what is meant."""


def text_of(value: object, item: str, field: str) -> str:
    """The border that every text enters by: composed (NFC), with None as absent. `item` is what an error
    calls its owner. Raises ItemError for what is no text, or cannot be written as UTF-8.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ItemError(
            item, f"field {field!r} is {str(value)[:80]!r}, a {type(value).__name__}; it must be text"
        )
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ItemError(item, f"field {field!r} holds half a character ({error}); repair the text") from None
    return unicodedata.normalize("NFC", value)


def _set_texts(item: object, name: str, fields: Iterable[str]) -> None:
    for own in fields:
        object.__setattr__(item, own, text_of(getattr(item, own), name, own))


@dataclass(frozen=True, eq=False)
class Product:
    """One item of a catalogue: its picture, its title and what is known about it.

    `attributes` is the ground truth, `{key: (value, ...)}`; a title or a picture may show only part of it.
    Two products are equal when their ids are. Texts are composed (NFC). Raises ItemError for a field that is
    no text, such as a NaN or a number from a table.
    """

    id: str
    title: str = ""
    image: Picture | None = None
    class_name: str = ""
    language: str = ""
    country: str = ""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ItemError(
                f"product {self.id!r}", "the id is no text; give a non-empty str (MERIT uses str(idx))"
            )
        name = f"product {self.id}"
        _set_texts(self, name, ("id", "title", "class_name", "language", "country"))
        if not isinstance(self.attributes or {}, Mapping):
            raise ItemError(name, f"attributes are {str(self.attributes)[:80]!r}; give {{key: (value, ...)}}")
        values = {
            text_of(key, name, "attributes"): _values(own, name, f"attributes, {key}")
            for key, own in (self.attributes or {}).items()
            if own is not None
        }
        object.__setattr__(self, "attributes", MappingProxyType(values))

    @property
    def picture(self) -> Image.Image | None:
        """The picture opened as RGB; None if there is none. Raises ItemError if it cannot be read."""
        return None if self.image is None else open_image(self.image, f"product {self.id}")

    def thumbnail(self, size: int = 96) -> str | None:
        """The picture as a `data:` address for HTML, at most `size` pixels a side."""
        return None if self.image is None else thumbnail(self.image, f"product {self.id}", size)

    def _repr_html_(self) -> str:
        from coral_lab.results import product_html

        return product_html(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Product) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple:  # a mappingproxy does not pickle
        state = (self.id, self.title, self.image, self.class_name, self.language, self.country)
        return Product, (*state, dict(self.attributes))


def _values(own: object, item: str, field: str) -> tuple[str, ...]:
    if isinstance(own, str):
        own = (own,)
    if not isinstance(own, list | tuple):
        raise ItemError(item, f"field {field!r} is {str(own)[:80]!r}; it must be text or a list of texts")
    return tuple(text_of(value, item, field) for value in own)


@dataclass(frozen=True)
class Condition:
    """Share `attribute` with `product`. `value` is the reference's value, "" when it is not known."""

    attribute: str
    product: Product
    value: str = ""

    def __post_init__(self) -> None:
        _set_texts(self, f"a condition on product {self.product.id}", ("attribute", "value"))

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", tuple(self.conditions))
        object.__setattr__(self, "positives", tuple(self.positives))
        object.__setattr__(self, "hard_negatives", tuple(self.hard_negatives))
        _set_texts(self, f"query {self.id!r}", ("id", "class_name", "text", "language"))
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

    def edited(self, **changes: Any) -> "Query":
        """This query with some fields replaced, remembering this one as its parent."""
        return replace(self, parent=self, **changes)

    def reordered(self, order: Sequence[int]) -> "Query":
        """This query with its conditions in another order, e.g. `(1, 0)`; ValueError for no permutation."""
        if sorted(order) != list(range(len(self.conditions))):
            raise ValueError(
                f"order {tuple(order)} of query {self.id!r} is no permutation of "
                f"{tuple(range(len(self.conditions)))}"
            )
        return self.edited(conditions=tuple(self.conditions[i] for i in order))

    def _repr_html_(self) -> str:
        from coral_lab.results import query_html

        return query_html(self)


def name_of(item: Product | Query) -> str:
    """How errors call an item: "product 17" or "query q-3"."""
    return f"{'product' if isinstance(item, Product) else 'query'} {item.id}"


def right_answers(query: Query, products: Iterable[Product]) -> tuple[str, ...]:
    """Ids of the products that have the wanted class and every wanted value; none where words alone say what
    is wanted.

    References are no answers to their own query.
    """
    known = query.conditions and all(c.value and c.value != AS_IMAGE for c in query.conditions)
    if not known or query.text.strip(" ."):
        return ()
    gone = {product.id for product in query.references}
    return tuple(
        p.id
        for p in products
        if p.class_name == query.class_name
        and p.id not in gone
        and all(c.met_by(p) for c in query.conditions)
    )


def nothing_stated(query: Query) -> tuple[str, str] | None:
    """What is known of a free text that nobody can take apart."""
    return None


def all_attributes(product: Product) -> Collection[str]:
    """The attributes of a product, where nobody knows which of them picture and title tell."""
    return product.attributes.keys()


@dataclass(frozen=True)
class Traits:
    """What is known of a dataset's products and queries beyond the facts of each.

    `visual` are the attributes that pictures show and `textual` those that only titles tell; `languages`
    those that titles are written in. `held_back` are the values that training never sees in each of the
    authors' out-of-distribution splits, by "language", "class" and "attribute". `stated` gives the attribute
    and value that a query's free text asks for, `shown` the attributes that a product's picture or title
    tells, and `retitle` the same product with its title in another language; None where there are no parallel
    titles.
    """

    visual: tuple[str, ...] = ()
    textual: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    held_back: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stated: Callable[[Query], tuple[str, str] | None] = nothing_stated
    shown: Callable[[Product], Collection[str]] = all_attributes
    retitle: Callable[[Product, str], Product] | None = None


@dataclass(frozen=True)
class Dataset:
    """A candidate pool and the queries asked of it. `skipped` says what was left out and why, if that was
    allowed.
    """

    name: str
    products: Sequence[Product]
    queries: Sequence[Query]
    skipped: Sequence[ItemError] = ()
    traits: Traits = field(default=Traits(), repr=False)

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

    def smaller_pool(self, queries: Iterable[Query], count: int) -> list[Product]:
        """A pool that is fair to these queries: all their right answers, and the first others up to `count`.

        In the order of the dataset. More than `count` where there are more right answers.
        """
        answers = {id for query in queries for id in query.positives}
        others = [product.id for product in self.products if product.id not in answers]
        kept = answers.union(others[: max(0, count - len(answers))])
        return [product for product in self.products if product.id in kept]

    def out_of_distribution(self, kind: str, unseen: bool = True) -> "Dataset":
        """The queries that ask for what training never saw, or with `unseen` False those that do not; same
        pool.

        The authors' splits, by "language" (of all reference titles), "class", or "attribute" (of any
        condition), with the values of `traits.held_back`. Raises ValueError for another.
        """
        if kind not in self.traits.held_back:
            known = ", ".join(self.traits.held_back) or "none"
            raise ValueError(f"ood split {kind!r} of {self.name} is not known; it has {known}")
        values = set(self.traits.held_back[kind])
        of: dict[str, Callable[[Query], set[str]]] = {
            "language": lambda query: {product.language for product in query.references},
            "class": lambda query: {query.class_name},
            "attribute": lambda query: {condition.attribute for condition in query.conditions},
        }

        def asks(query: Query) -> bool:
            if unseen and kind == "language":
                return of[kind](query) <= values
            return unseen != values.isdisjoint(of[kind](query))

        chosen = tuple(query for query in self.queries if asks(query))
        return replace(self, name=f"{self.name}, {kind} {'unseen' if unseen else 'seen'}", queries=chosen)
