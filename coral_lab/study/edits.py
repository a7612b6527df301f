"""Edited queries, which keep their parents: other orders, languages, references, conditions left out or
swapped.

An edit is a function from a query to one or several edited queries, each with a name. One of your own is two
lines:

    def without_text(query):
        yield "without text", query.edited(text=".")
"""

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations
from random import Random

from PIL import Image

from coral_lab.prompts import describe
from coral_lab.query import Product, Query, Traits

Edited = tuple[str, Query]
Edit = Callable[[Query], Iterable[Edited]]

AS_ASKED = "as asked"
"""The name of what all edits of a query are compared with."""


def identity(query: Query) -> Iterator[Edited]:
    """The query as it is: what all others are compared with."""
    yield AS_ASKED, query.edited()


def orders(query: Query) -> Iterator[Edited]:
    """Every order of the conditions, the one asked first; "1-0" puts the second condition first."""
    for order in permutations(range(len(query.conditions))):
        yield "-".join(map(str, order)), query.reordered(order)


def dropped(query: Query) -> Iterator[Edited]:
    """The query less one condition, each in turn; nothing for a query of one condition that asks nothing
    else.
    """
    for i, condition in enumerate(query.conditions):
        rest = query.conditions[:i] + query.conditions[i + 1 :]
        if rest or query.class_name or query.text.strip():
            yield f"without {condition.attribute}", query.edited(conditions=rest)


def neutralised(query: Query) -> Iterator[Edited]:
    """The query with one reference emptied, each in turn: a grey picture of the usual size and no title.

    The sentence keeps its length and form, which `dropped` changes; but a model has never seen such a
    reference.
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


def swapped(others: Mapping[str, Sequence[Product]], seed: int = 0) -> Edit:
    """The query with one reference exchanged for another product, each in turn, and so with another wanted
    value.

    `others` are products to take, by attribute, such as `shown_by` gives; of those with another value one is
    drawn by the seed and the query's id.
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
    """For each attribute, the references that stand for it in some query: products known to show its
    value.
    """
    found: dict[str, dict[str, Product]] = defaultdict(dict)
    for query in queries:
        for condition in query.conditions:
            found[condition.attribute][condition.product.id] = condition.product
    return {attribute: list(products.values()) for attribute, products in found.items()}


def translated(language: str) -> Edit:
    """The query with its own words in another language."""

    def translate(query: Query) -> Iterator[Edited]:
        yield f"instruction {language}", query.edited(language=language)

    return translate


def retitled(traits: Traits, language: str) -> Edit:
    """The query with its references' titles in another language.

    `traits` are the dataset's. Raises ValueError for one without parallel titles.
    """
    retitle = _parallel(traits)

    def change(query: Query) -> Iterator[Edited]:
        yield f"titles {language}", _with_references(query, lambda product: retitle(product, language))

    return change


def code_switched(traits: Traits) -> Edit:
    """The query with each reference's title in a language of its own, drawn by the query's id; see
    `retitled`.
    """
    retitle, languages = _parallel(traits), traits.languages

    def switch(query: Query) -> Iterator[Edited]:
        drawn = Random(query.id).sample(languages, len(languages))
        turns = iter(drawn * (1 + len(query.conditions) // len(languages)))
        yield "code-switched", _with_references(query, lambda product: retitle(product, next(turns)))

    return switch


def _parallel(traits: Traits) -> Callable[[Product, str], Product]:
    if traits.retitle is None:
        raise ValueError(
            "this dataset has one title a product; only one with parallel titles, as mini, can change them"
        )
    return traits.retitle


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


def product_of(*edits: Edit) -> Edit:
    """Every combination: each edit of the first, edited further by the second, …; names are joined by " ·
    ".
    """

    def combined(query: Query) -> Iterator[Edited]:
        found: list[Edited] = [("", query)]
        for edit in edits:
            found = [
                (" · ".join(filter(None, (name, more))), edited)
                for name, own in found
                for more, edited in edit(own)
            ]
        for name, edited in found:
            yield name, replace(edited, parent=query)

    return combined


def apply(edit: Edit, queries: Iterable[Query]) -> list[Query]:
    """Each query's one edit. Raises ValueError for an edit that gives another number of them."""
    found = []
    for query in queries:
        edits = [edited for _, edited in edit(query)]
        if len(edits) != 1:
            raise ValueError(
                f"query {query.id!r} has {len(edits)} edits; apply() is for one a query, sweep() for all"
            )
        found += edits
    return found
