"""MERIT-mini's contrastive pairs: queries in other words, and cut to fewer conditions.

With all its conditions an answer can be told from the others by the easiest alone, and the rest would never
be learnt.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from coral_lab.mini.queries import stated
from coral_lab.mini.titles import ATTRIBUTES, retitle, shown
from coral_lab.prompts import LANGUAGES
from coral_lab.query import Dataset, Product, Query
from coral_lab.training.batches import Pair
from coral_lab.training.pairs import MakePair, hard_negatives

TRANSLATED = 0.5  # share of products whose title is put in another language
FOREIGN = 0.2  # share of queries whose instruction is not English
FEWER = 0.5  # share of queries that are cut to some of their conditions


def sometimes_retitled(product: Product, rng: Random, languages: Sequence[str] = LANGUAGES) -> Product:
    """The product, at times with its title in another of these languages."""
    return retitle(product, rng.choice(languages)) if rng.random() < TRANSLATED else product


def varied(query: Query, rng: Random, languages: Sequence[str] = LANGUAGES) -> Query:
    """The query with some titles and at times its instruction in another language: the same question."""
    conditions = tuple(
        replace(c, product=sometimes_retitled(c.product, rng, languages)) for c in query.conditions
    )
    language = rng.choice(languages[1:]) if rng.random() < FOREIGN else query.language
    return replace(query, conditions=conditions, language=language)


def fewer(query: Query, rng: Random) -> Query:
    """At times only some conditions of the query, in any order. Its positives are no longer all there are."""
    if rng.random() > FEWER:
        return query
    return replace(
        query, conditions=tuple(rng.sample(query.conditions, rng.randint(1, len(query.conditions))))
    )


def mini_pairs(shop: Dataset, negatives: int = 0, languages: Sequence[str] = LANGUAGES) -> MakePair:
    """MERIT-mini's queries in other words and cut to fewer conditions, with positives that show what is
    wanted.

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
        positive = sometimes_retitled(shop.by_id[rng.choice(showing or right)], rng, languages)
        hard = hard_negatives(query, by_class, shop, negatives, rng)
        return Pair(
            varied(query, rng, languages),
            positive,
            tuple(sometimes_retitled(p, rng, languages) for p in hard),
        )

    return make
