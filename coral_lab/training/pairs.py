"""Which queries and answers stand together in a contrastive batch."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from random import Random

from coral_lab.errors import ItemError
from coral_lab.query import Dataset, Product, Query, name_of
from coral_lab.training.batches import Pair

CLOSE = 0.75  # share of batches from two classes, reached half-way through the training

BATCHES = ("mixed", "closer")
"""How batches are made up: "mixed" takes every query once an epoch, of all classes together. "closer" takes
more and more batches from two classes only, for wrong candidates teach only as far as they are close; queries
are drawn anew for each.
"""

MakePair = Callable[[Query, Random], Pair]


def plain_pairs(shop: Dataset, negatives: int = 0) -> MakePair:
    """Any of a query's positives, and its own hard negatives; other products of the class, and then of any,
    where it has too few.
    """
    by_class = defaultdict(list)
    for product in shop.products:
        by_class[product.class_name].append(product)

    def make(query: Query, rng: Random) -> Pair:
        known = [id for id in query.positives if id in shop.by_id]
        return Pair(
            query, shop.by_id[rng.choice(known)], hard_negatives(query, by_class, shop, negatives, rng)
        )

    return make


def hard_negatives(
    query: Query, by_class: Mapping[str, Sequence[Product]], shop: Dataset, count: int, rng: Random
) -> tuple[Product, ...]:
    """So many wrong answers: the query's own, and random products of its class where it has too few, of any
    class where that has no others. Raises ItemError where there are none.
    """
    right = {*query.positives, *(product.id for product in query.references)}
    hard = [id for id in query.hard_negatives if id not in right and id in shop.by_id]
    chosen = [shop.by_id[id] for id in rng.sample(hard, min(count, len(hard)))]
    if len(chosen) == count:
        return tuple(chosen)
    for others in (by_class.get(query.class_name, ()), shop.products):
        if any(product.id not in right for product in others):
            while len(chosen) < count:
                product = rng.choice(others)
                if product.id not in right:
                    chosen.append(product)
            return tuple(chosen)
    raise ItemError(name_of(query), "every product is right or shown; ask for 0 hard negatives")


def pair_sampler(
    shop: Dataset, make: MakePair, batch_size: int, steps: int, seed: int = 0, batches: str = "closer"
) -> Callable[[int], list[Pair]]:
    """The pairs of each of so many steps, which depend on seed and step alone; `batches` is one of BATCHES.

    (Six parameters: what is drawn from, how much, how often, and how.) Raises ValueError for another way, and
    where a batch needs more queries than there are; ItemError for a query without a positive among the
    products.
    """
    if batches not in BATCHES:
        raise ValueError(f"batches is {batches!r}; use {' or '.join(BATCHES)}")
    if batch_size > len(shop.queries):
        problem = f"a batch of {batch_size} from the {len(shop.queries)} queries of {shop.name}"
        raise ValueError(f"{problem}; give at most so many")
    by_class = defaultdict(list)
    for query in shop.queries:
        by_class[query.class_name].append(query)
        if not any(id in shop.by_id for id in query.positives):
            raise ItemError(name_of(query), "has no positives in the pool; training needs one for each")
    chosen = _in_epochs(shop.queries, batch_size, seed) if batches == "mixed" else None

    def pairs(step: int) -> list[Pair]:
        rng = Random(f"{seed}/contrastive/{step}")
        if chosen:
            return [make(query, rng) for query in chosen(step)]
        source: Sequence[Query] = shop.queries
        if len(by_class) > 2 and rng.random() < CLOSE * min(1.0, 2 * step / steps):
            two = rng.sample(sorted(by_class), 2)
            close = [query for name in two for query in by_class[name]]
            source = close if len(close) >= batch_size else source
        return [make(query, rng) for query in rng.sample(source, batch_size)]

    return pairs


def _in_epochs(queries: Sequence[Query], size: int, seed: int) -> Callable[[int], list[Query]]:
    """The queries of each step: all of them once, in an order drawn anew for every epoch."""
    count = len(queries)

    @lru_cache(2)
    def order(epoch: int) -> list[int]:
        return Random(f"{seed}/epoch/{epoch}").sample(range(count), count)

    def chosen(step: int) -> list[Query]:
        places = range(step * size, (step + 1) * size)
        return [queries[order(place // count)[place % count]] for place in places]

    return chosen
