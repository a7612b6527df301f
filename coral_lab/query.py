"""Products, conditions and interleaved queries, as frozen data.

A query asks for a product of a wanted class that shares one attribute with each of its reference
products: "a backpack with the brand of <picture 1> and the style of <picture 2>, with a chain strap"
(MERIT, arXiv 2506.03144). The order of `Query.conditions` is the order in which they are asked.
How a query is worded for a model is the business of `prompts`, how it is shown that of `results`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from coral_lab.errors import ItemError, NotShownError, one_line
from coral_lab.images import Picture, open_image, thumbnail
from coral_lab.sources.border import (
    attributes_of,
    brief,
    check_id,
    composed,
    grades_of,
    id_of,
    refused,
    set_texts,
    several,
    wanted_values,
)

AS_IMAGE = "as product image"
"""MERIT's holder value: "like this picture", with no word for what is meant."""


PICTURES = (Image.Image, Path, str, bytes)


@dataclass(frozen=True, eq=False)
class Product:
    """One item of a catalogue: its picture, its title and what is known about it.

    `attributes` is the ground truth, `{key: (value, ...)}`; a title or a picture may show only part of it.
    Two products are equal when their ids are. Texts are composed (NFC), and None is as absent. Raises
    ItemError for a field of another type, such as a NaN or a number from a table.
    """

    id: str
    title: str = ""
    image: Picture | None = field(default=None, repr=False)
    class_name: str = ""
    language: str = ""
    country: str = ""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.id, "product")
        name = f"product {self.id}"
        set_texts(self, name, ("id", "title", "class_name", "language", "country"))
        if self.image is not None and not (isinstance(self.image, PICTURES) or callable(self.image)):
            raise refused(name, "image", self.image, "give a PIL image, a path, bytes or a function")
        object.__setattr__(self, "attributes", MappingProxyType(attributes_of(self.attributes, name)))

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


@dataclass(frozen=True)
class Condition:
    """Share `attribute` with `product`. `value` is the reference's value, "" when it is not known.

    Raises ItemError for a field of another type.
    """

    attribute: str
    product: Product
    value: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.product, Product):
            raise refused(
                f"a condition on {brief(self.attribute)}", "product", self.product, "give a Product"
            )
        set_texts(self, f"a condition on product {self.product.id}", ("attribute", "value"))

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
    edited from. `relevance` is what people gave products as answers, by id: 2 right, 1 partly, 0 wrong in
    judged sets, any whole numbers up to 100 elsewhere; empty where only positives are known. Raises ItemError
    if there is nothing to ask, or for a field of another type.
    """

    id: str
    class_name: str
    conditions: tuple[Condition, ...] = ()
    text: str = ""
    positives: tuple[str, ...] = ()
    hard_negatives: tuple[str, ...] = ()
    language: str = "en"
    parent: "Query | None" = field(default=None, repr=False, compare=False)
    relevance: Mapping[str, int] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        check_id(self.id, "query")
        name = f"query {self.id!r}"
        set_texts(self, name, ("id", "class_name", "text", "language"))
        object.__setattr__(self, "language", self.language or "en")
        conditions = several(self.conditions, name, "conditions", "give Conditions")
        for condition in conditions:
            if not isinstance(condition, Condition):
                raise refused(name, "conditions", condition, "give Conditions")
        object.__setattr__(self, "conditions", conditions)
        for own in ("positives", "hard_negatives"):
            ids = several(getattr(self, own), name, own, "give a tuple of product ids")
            object.__setattr__(self, own, tuple(id_of(id, name, own) for id in ids))
        object.__setattr__(self, "relevance", MappingProxyType(grades_of(self.relevance, name)))
        if self.parent is not None and not isinstance(self.parent, Query):
            raise refused(name, "parent", self.parent, "give a Query")
        if not (self.class_name or self.conditions or self.text.strip()):
            raise ItemError(name, "it is empty; give it a class_name, a condition or a text")

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
        """This query with some fields replaced, remembering this one as its parent.

        Positives and grades stay, to be compared by; other `positives` leave the grades behind, for they are
        answers to something else.
        """
        if "positives" in changes:
            changes = {"relevance": {}} | changes
        return replace(self, parent=self, **changes)

    def judged(self, relevance: Mapping[str, int], least: int = 1) -> "Query":
        """This query with people's grades: products graded `least` or better become its positives, those
        graded 0 its hard negatives, the others neither. Not an edit, for it asks the same.
        """
        right = tuple(id for id, grade in relevance.items() if grade >= least)
        wrong = tuple(id for id, grade in relevance.items() if grade == 0 and grade < least)
        return replace(self, positives=right, hard_negatives=wrong, relevance=relevance)

    def reordered(self, order: Sequence[int]) -> "Query":
        """This query with its conditions in another order, e.g. `(1, 0)`; ValueError for no permutation."""
        places = tuple(range(len(self.conditions)))
        if len(order) != len(places) or any(place not in order for place in places):
            problem = f"order {brief(tuple(order))} of query {brief(self.id)} is no permutation of"
            raise ValueError(f"{problem} {brief(places)}")
        return self.edited(conditions=tuple(self.conditions[i] for i in order))

    def _repr_html_(self) -> str:
        from coral_lab.results import query_html

        return query_html(self)

    def __getstate__(self) -> dict[str, Any]:  # a mappingproxy does not pickle
        return self.__dict__ | {"relevance": dict(self.relevance)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"relevance": MappingProxyType(state["relevance"])})


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
    titles. `columns` says in words which column of a table was read as what, and `sampled` how queries were
    sampled and what was refused.
    """

    visual: tuple[str, ...] = ()
    textual: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    held_back: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stated: Callable[[Query], tuple[str, str] | None] = nothing_stated
    shown: Callable[[Product], Collection[str]] = all_attributes
    retitle: Callable[[Product, str], Product] | None = None
    columns: str = ""
    sampled: str = ""


_WAYS = {
    "queries": "sample some from attributes with sample=500, or judge some on the query bench",
    "attributes": "name their columns in columns=",
    "parallel titles": "only MERIT-mini's products have their titles in five languages",
}


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

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}: {len(self.products):,} products, {len(self.queries):,} queries)"

    @cached_property
    def by_id(self) -> Mapping[str, Product]:
        own = getattr(self.products, "by_id", None)  # a sequence that makes products when they are looked at
        return {product.id: product for product in self.products} if own is None else own

    def _repr_html_(self) -> str:
        from coral_lab.results import dataset_html

        return dataset_html(self)

    def product(self, id: str) -> Product:
        """The product with this id; a KeyError that names the id and the pool if there is none."""
        found = self.by_id.get(composed(str(id))) if isinstance(id, str | Integral) else None
        if found is None:
            problem = f"no product {brief(id)} among the {len(self.products)} of {self.name}"
            raise KeyError(one_line(problem))
        return found

    def having(self, *parts: str) -> "Dataset":
        """This dataset, if it has all of these parts: "queries", "attributes", "parallel titles".

        Raises NotShownError with the way out for the first that is missing, ValueError for another name.
        """
        there = {
            "queries": bool(self.queries),
            "attributes": any(product.attributes for product in self.products[:1000]),
            "parallel titles": self.traits.retitle is not None,
        }
        for part in parts:
            if part not in there:
                raise ValueError(f"part is {brief(part)}; use one of {', '.join(there)}")
            if not there[part]:
                raise NotShownError(
                    f"{self.name} has no {part} of the kind that this is about; {_WAYS[part]}"
                )
        return self

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
        condition, `conditions` is their number. Raises ValueError for other values than these.
        """
        tests: tuple[tuple[str, object, type, Callable[[Query], set]], ...] = (
            ("language", language, str, lambda query: {query.title_language}),
            ("class_name", class_name, str, lambda query: {query.class_name}),
            ("attribute", attribute, str, lambda query: {c.attribute for c in query.conditions}),
            ("conditions", conditions, int, lambda query: {len(query.conditions)}),
        )
        queries = self.queries
        for name, wanted, kind, of in tests:
            if wanted is not None:
                values = wanted_values(name, wanted, kind)
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
        if not isinstance(kind, str) or kind not in self.traits.held_back:
            known = ", ".join(self.traits.held_back) or "none"
            raise ValueError(one_line(f"ood split {brief(kind)} of {self.name} is not known; it has {known}"))
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
