"""Compositional splits: pairs that training never sees together, though it sees both halves of each.

A pair is a class and a value of an attribute ("class and value"), or values of two attributes ("two values").
Held out means: no product that training sees has both, and no query asks for both. What is left of the
catalogue's own out-of-distribution splits lacks a value altogether; here nothing but the combination is new
(Lake and Baroni 2018, arXiv 1711.00350; Keysers et al. 2020, arXiv 1912.09713). All is counted from
attributes, so that any dataset that has some can be split: a fact that nobody wrote down is not counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random

import pandas as pd

from coral_lab.query import AS_IMAGE, Dataset, Product, Query
from coral_lab.sources.border import brief
from coral_lab.study.facts import asked_values

KINDS = ("class and value", "two values")

Half = tuple[str, ...]
"""(class,) or (attribute, value)."""

Pair = tuple[Half, Half]


@dataclass(frozen=True)
class CompositionalSplit:
    """The pairs `held_out`, the dataset that training may see, and the queries that ask for them.

    `train` has no product with both halves of a pair, and no query that asks for both, points at such a
    product, or has none of its positives left. `test` has the whole pool, and of the dataset's queries those
    that ask for a held-out pair and otherwise for classes and values that training sees.
    """

    kind: str
    held_out: tuple[Pair, ...]
    train: Dataset
    test: Dataset

    def of(self, dataset: Dataset) -> Dataset:
        """Another dataset's queries that ask for a held-out pair, chosen as `test` is; its own pool.

        Raises ValueError where there is none.
        """
        seen = _asked(self.train) & _had(self.train)
        pairs = _by_first(self.held_out)
        halves = [_of_query(dataset, query) for query in dataset.queries]
        pairs_of = zip(dataset.queries, halves, strict=True)
        chosen = tuple(query for query, own in pairs_of if own <= seen and _has_pair(own, pairs))
        if not chosen:
            raise ValueError(
                f"no query of {dataset.name} asks for a held-out pair among classes and values that training "
                "sees; hold out a larger share, or give more queries"
            )
        return replace(dataset, name=f"{dataset.name}, {self.kind} unseen", queries=chosen)


def compositional_split(
    dataset: Dataset, kind: str = "class and value", share: float = 0.02, seed: int = 0
) -> CompositionalSplit:
    """Hold a `share` of the pairs that queries ask for out of training, drawn by the seed.

    A pair that would take one of its halves out of training with it is passed over for the next one drawn. A
    product has many pairs (28 of two values with eight attributes), so that a small share takes away many
    products. A free text counts where `traits.stated` tells what it asks for; elsewhere a query leaves
    training with its positives, if these have the pair. Raises NotShownError for a dataset without queries or
    attributes, ValueError for another kind or share, or where not so many pairs can be held out or no query
    is left on either side.
    """
    if kind not in KINDS or not 0 < share < 1:
        raise ValueError(
            f"kind is {brief(kind)} and share {brief(share)}; use {' or '.join(KINDS)}, and 0 to 1"
        )
    dataset.having("queries", "attributes")
    candidates = sorted({pair for query in dataset.queries for pair in _pairs(dataset, query, kind)})
    if not candidates:
        raise ValueError(
            f"no query of {dataset.name} asks for a pair of {kind}; give queries that ask for both"
        )
    wanted = max(1, round(share * len(candidates)))
    Random(f"{seed}/{kind}").shuffle(candidates)
    held_out, train = _draw(dataset, candidates, wanted)
    train = replace(train, name=f"{dataset.name}, {kind} seen")
    split = CompositionalSplit(kind, held_out, train, dataset)
    return replace(split, test=split.of(dataset))


def _draw(dataset: Dataset, candidates: Sequence[Pair], wanted: int) -> tuple[tuple[Pair, ...], Dataset]:
    """The first pairs whose halves all stay, and what training sees without them."""
    held_out, left = list(candidates[:wanted]), iter(candidates[wanted:])
    while True:
        train = without(dataset, held_out)
        seen = _asked(train) & _had(train)
        kept = [pair for pair in held_out if seen.issuperset(pair)]
        if len(kept) == len(held_out) == wanted:
            return tuple(sorted(kept)), train
        new = [pair for pair, _ in zip(left, range(wanted - len(kept)), strict=False)]
        if len(kept) + len(new) < wanted:
            raise ValueError(
                f"of {len(candidates)} pairs in {dataset.name} no {wanted} can be held out so that both "
                "halves of each stay; hold out a smaller share, or give more queries"
            )
        held_out = kept + new


def without(dataset: Dataset, held_out: Sequence[Pair]) -> Dataset:
    """What training sees of a dataset without these pairs: products that have none of them, and queries that
    ask for none, whose references are all left, with those of their positives that are left.
    """
    pairs = _by_first(held_out)
    products = tuple(p for p in dataset.products if not _has_pair(_of_product(p), pairs))
    ids = {product.id for product in products}
    gone = {product.id for product in dataset.products} - ids
    asked = (q for q in dataset.queries if not _has_pair(_of_query(dataset, q), pairs))
    queries = tuple(
        _left(query, ids)
        for query in asked
        if not ids.isdisjoint(query.positives)
        and not any(p.id in gone or _has_pair(_of_product(p), pairs) for p in query.references)
    )
    return replace(dataset, products=products, queries=queries)


def _left(query: Query, ids: set[str]) -> Query:
    """The query with those of its answers that are left."""
    positives, hard = (
        tuple(id for id in own if id in ids) for own in (query.positives, query.hard_negatives)
    )
    relevance = {id: grade for id, grade in query.relevance.items() if id in ids}
    return replace(query, positives=positives, hard_negatives=hard, relevance=relevance)


def counts(split: CompositionalSplit) -> pd.DataFrame:
    """That pairs are absent and halves present: one row a held-out pair, counted anew in what training sees.

    Columns: first and second (the halves), for "both", "first" and "second" how many of training's products
    have them and how many of its queries ask for them ("products both" and "queries both" are 0), references
    both (references of training's queries that have both), and test queries (that ask for both).
    """
    shop = split.train
    products, queries = map(_of_product, shop.products), (_of_query(shop, query) for query in shop.queries)
    references = (_of_product(product) for query in shop.queries for product in query.references)
    asked = [_of_query(split.test, query) for query in split.test.queries]
    sets = {"products": [*products], "queries": [*queries], "references": [*references]}
    rows = []
    for first, second in split.held_out:
        row: dict[str, str | int] = {"first": " ".join(first), "second": " ".join(second)}
        for name, own in sets.items():
            row[f"{name} both"] = sum(first in one and second in one for one in own)
        for name in ("products", "queries"):
            row[f"{name} first"] = sum(first in one for one in sets[name])
            row[f"{name} second"] = sum(second in one for one in sets[name])
        rows.append(row | {"test queries": sum(first in one and second in one for one in asked)})
    return pd.DataFrame(rows)


def _of_product(product: Product) -> set[Half]:
    found: set[Half] = {
        (attribute, value)
        for attribute, values in product.attributes.items()
        for value in values
        if value and value != AS_IMAGE
    }
    return found | {(product.class_name,)} if product.class_name else found


def _of_query(dataset: Dataset, query: Query) -> set[Half]:
    found: set[Half] = set(asked_values(query, dataset.traits))
    return found | {(query.class_name,)} if query.class_name else found


def _asked(dataset: Dataset) -> set[Half]:
    return set().union(*(_of_query(dataset, query) for query in dataset.queries))


def _had(dataset: Dataset) -> set[Half]:
    return set().union(*map(_of_product, dataset.products))


def _pairs(dataset: Dataset, query: Query, kind: str) -> Iterator[Pair]:
    """Every pair of the kind that a query asks for, its class first, or its attributes in order."""
    values = sorted(half for half in _of_query(dataset, query) if len(half) == 2)
    if kind == "two values":
        yield from ((a, b) for a, b in combinations(values, 2) if a[0] != b[0])
    elif query.class_name:
        yield from (((query.class_name,), value) for value in values)


def _by_first(pairs: Sequence[Pair]) -> Mapping[Half, set[Half]]:
    found: dict[Half, set[Half]] = {}
    for first, second in pairs:
        found.setdefault(first, set()).add(second)
    return found


def _has_pair(halves: set[Half], pairs: Mapping[Half, set[Half]]) -> bool:
    return any(not pairs[half].isdisjoint(halves) for half in halves if half in pairs)
