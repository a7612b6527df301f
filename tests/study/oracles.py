"""A small shop of facts and no pictures, and models that know these facts, or some of them, or none."""

from random import Random

import numpy as np

from coral_lab import Condition, Dataset, Product, Query, index
from coral_lab.encoder import UNKEPT
from coral_lab.query import right_answers
from coral_lab.retrieval import Index

VALUES = {"color": "red blue green", "brand": "Acme Bell Cora Dodo", "size": "S M L", "origin": "Bonn Lyon"}
CLASSES = ("bag", "lamp", "shoe")


def small_shop(products: int = 300, queries: int = 120, seed: int = 0) -> Dataset:
    """Queries of two to four conditions, each with a right answer and with references that are none."""
    random = Random(seed)
    pool = [_product(f"p{i}", random) for i in range(products)]
    found: list[Query] = []
    while len(found) < queries:
        target = random.choice(pool)
        wanted = random.sample(sorted(VALUES), random.choice((2, 2, 3, 4)))
        query = Query(
            f"q{len(found)}",
            target.class_name,
            tuple(
                Condition(key, _other(pool, key, target, random), target.attributes[key][0]) for key in wanted
            ),
            text=".",
        )
        if positives := right_answers(query, pool):
            found.append(query.edited(positives=positives))
    return Dataset(f"shop {seed}", tuple(pool), tuple(found))


def _product(id: str, random: Random) -> Product:
    facts = {key: (random.choice(words.split()),) for key, words in VALUES.items()}
    return Product(id, f"product {id}", class_name=random.choice(CLASSES), attributes=facts)


def _other(pool: list[Product], key: str, target: Product, random: Random) -> Product:
    """A product with one of the target's values that is no answer, for it is of another class."""
    value = target.attributes[key]
    return random.choice(
        [p for p in pool if p.attributes[key] == value and p.class_name != target.class_name]
    )


class Oracle:
    """One dimension a class and a value, so that the score counts what a product meets. `blind` to an
    attribute, or heeding only the last condition asked (`forgets`), it fails as a model might.
    """

    fingerprint = "1"

    def __init__(self, blind: str = "", forgets: bool = False) -> None:
        self.name, self.blind, self.forgets = f"oracle {blind} {forgets}", blind, forgets
        facts = [*CLASSES, *((key, word) for key, words in VALUES.items() for word in words.split())]
        self.place = {fact: place for place, fact in enumerate(facts)}
        self.dim = len(facts)

    def embed(self, conversations) -> list[np.ndarray]:
        return [self._of(conversation.item) for conversation in conversations]

    def _of(self, item: Product | Query) -> np.ndarray:
        asked = [(key, value) for key, own in getattr(item, "attributes", {}).items() for value in own] or [
            (c.attribute, c.value) for c in getattr(item, "conditions", ())
        ]
        asked = asked[-1:] if self.forgets and isinstance(item, Query) else asked
        row = np.zeros(self.dim, np.float32)
        known = (fact for fact in (item.class_name, *asked) if fact in self.place and fact[0] != self.blind)
        row[[self.place[fact] for fact in known]] = 1
        return row


class Chance:
    """Vectors that know nothing but what they are of."""

    name, dim, fingerprint = "chance", 16, "1"

    def embed(self, conversations) -> list[np.ndarray]:
        return [self._of(conversation) for conversation in conversations]

    def _of(self, conversation) -> np.ndarray:
        seed = int.from_bytes(f"{conversation.item.id} {conversation.text}".encode(), "little")
        return np.random.default_rng(seed).normal(size=self.dim).astype(np.float32)


def pool_of(model, shop: Dataset) -> Index:
    return index(model, shop.products, settings=UNKEPT)
