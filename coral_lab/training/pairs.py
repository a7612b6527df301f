"""Which queries and answers stand together in a contrastive batch.

Wrong candidates teach only as far as they are close: more and more batches come from two classes only.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random

from coral_lab.query import Dataset, Product, Query
from coral_lab.training.contrastive import Pair

CLOSE = 0.75  # share of batches from two classes, reached half-way through the training

MakePair = Callable[[Query, Random], Pair]


def plain_pairs(shop: Dataset, negatives: int = 0) -> MakePair:
    """Any of a query's positives, and its own hard negatives; other products of the class where it has too
    few.
    """
    by_class = defaultdict(list)
    for product in shop.products:
        by_class[product.class_name].append(product)

    def make(query: Query, rng: Random) -> Pair:
        positive = shop.product(rng.choice(query.positives))
        return Pair(query, positive, hard_negatives(query, by_class, shop, negatives, rng))

    return make


def hard_negatives(query: Query, by_class, shop: Dataset, count: int, rng: Random) -> tuple[Product, ...]:
    """So many wrong answers: the query's own, and random products of its class where it has too few."""
    right = {*query.positives, *(product.id for product in query.references)}
    hard = [id for id in query.hard_negatives if id not in right and id in shop.by_id]
    chosen = [shop.by_id[id] for id in rng.sample(hard, min(count, len(hard)))]
    others = by_class[query.class_name]
    while len(chosen) < count:
        product = rng.choice(others)
        if product.id not in right:
            chosen.append(product)
    return tuple(chosen)


def pair_sampler(
    shop: Dataset, make: MakePair, batch_size: int, steps: int, seed: int = 0
) -> Callable[[int], list[Pair]]:
    """The pairs of each step, which depend on seed and step alone.

    Raises ValueError if some queries have no positives.
    """
    by_class = defaultdict(list)
    for query in shop.queries:
        by_class[query.class_name].append(query)
    if not all(query.positives for query in shop.queries):
        raise ValueError(f"some queries of {shop.name} have no positives; training needs one for each")

    def pairs(step: int) -> list[Pair]:
        rng = Random(f"{seed}/contrastive/{step}")
        source: Sequence[Query] = shop.queries
        if len(by_class) > 2 and rng.random() < CLOSE * min(1.0, 2 * step / steps):
            source = [query for name in rng.sample(sorted(by_class), 2) for query in by_class[name]]
        return [make(query, rng) for query in rng.sample(source, min(batch_size, len(source)))]

    return pairs
