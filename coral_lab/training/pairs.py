"""Which queries and answers stand together in a contrastive batch.

Wrong candidates teach only as far as they are close: more and more batches come from two classes only, and on
MERIT-mini half of the queries are cut to fewer conditions, because with all of them an answer can be told from the
others by the easiest alone, and the rest would never be learnt.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from coral_lab.interleaved import Dataset, Product, Query
from coral_lab.mini.catalogue import ATTRIBUTES, LANGUAGES, retitle, stated
from coral_lab.mini.titles import shown
from coral_lab.training.contrastive import Pair

TRANSLATED = 0.5  # share of products whose title is put in another language
FOREIGN = 0.2  # share of queries whose instruction is not English
FEWER = 0.5  # share of queries that are cut to some of their conditions
CLOSE = 0.75  # share of batches from two classes, reached half-way through the training

MakePair = Callable[[Query, Random], Pair]


def translated(product: Product, rng: Random, languages: Sequence[str] = LANGUAGES) -> Product:
    """The product, at times with its title in another of these languages."""
    return retitle(product, rng.choice(languages)) if rng.random() < TRANSLATED else product


def varied(query: Query, rng: Random, languages: Sequence[str] = LANGUAGES) -> Query:
    """The query with some titles and at times its instruction in another language: the same question."""
    conditions = tuple(replace(c, product=translated(c.product, rng, languages)) for c in query.conditions)
    language = rng.choice(languages[1:]) if rng.random() < FOREIGN else query.language
    return replace(query, conditions=conditions, language=language)


def fewer(query: Query, rng: Random) -> Query:
    """At times only some conditions of the query, in any order. Its positives are no longer all there are."""
    if rng.random() > FEWER:
        return query
    return replace(
        query, conditions=tuple(rng.sample(query.conditions, rng.randint(1, len(query.conditions))))
    )


def plain_pairs(shop: Dataset, negatives: int = 0) -> MakePair:
    """Any of a query's positives, and its own hard negatives; other products of the class where it has too few."""
    by_class = defaultdict(list)
    for product in shop.products:
        by_class[product.class_name].append(product)

    def make(query: Query, rng: Random) -> Pair:
        positive = shop.product(rng.choice(query.positives))
        return Pair(query, positive, _negatives(query, by_class, shop, negatives, rng))

    return make


def mini_pairs(shop: Dataset, negatives: int = 0, languages: Sequence[str] = LANGUAGES) -> MakePair:
    """MERIT-mini's queries in other words and cut to fewer conditions, with positives that show what is wanted.

    Words are put in `languages` only, English first.
    """
    having, by_class = defaultdict(set), defaultdict(list)
    for product in shop.products:
        by_class[product.class_name].append(product)
        for key in ATTRIBUTES:
            having[product.class_name, key, product.attributes[key][0]].add(product.id)

    def make(query: Query, rng: Random) -> Pair:
        query = fewer(query, rng)
        wanted = {condition.attribute: condition.value for condition in query.conditions}
        wanted |= dict(filter(None, [stated(query)]))
        meeting = set.intersection(*(having[query.class_name, key, value] for key, value in wanted.items()))
        right = sorted(meeting - {product.id for product in query.references})
        query = replace(query, positives=tuple(right))
        showing = [id for id in right if wanted.keys() <= shown(shop.by_id[id])]
        positive = translated(shop.by_id[rng.choice(showing or right)], rng, languages)
        hard = _negatives(query, by_class, shop, negatives, rng)
        return Pair(
            varied(query, rng, languages), positive, tuple(translated(p, rng, languages) for p in hard)
        )

    return make


def _negatives(query: Query, by_class, shop: Dataset, count: int, rng: Random) -> tuple[Product, ...]:
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
