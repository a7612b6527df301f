"""What queries ask for and what products have, counted from attributes: what the studies of interaction,
compositional splits and scores share.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool

from coral_lab.query import AS_IMAGE, Product, Query, Traits
from coral_lab.retrieval import Index

Value = tuple[str, str]
"""An attribute and one of its values."""


def asked_values(query: Query, traits: Traits) -> tuple[Value, ...]:
    """The value of each condition that has a word for it, in order, and last that of the free text where
    `traits.stated` tells it.
    """
    asked = [(c.attribute, c.value) for c in query.conditions if c.value and c.value != AS_IMAGE]
    words = traits.stated(query)
    return (*asked, words) if words else tuple(asked)


def is_known(query: Query, traits: Traits) -> bool:
    """Whether `asked_values` and the class are all that a query asks for: every condition has a word, and
    the free text says nothing, or what `traits.stated` tells.
    """
    words = all(c.value and c.value != AS_IMAGE for c in query.conditions)
    return words and (not query.text.strip(" .") or traits.stated(query) is not None)


def candidates(query: Query, index: Index) -> Bool[np.ndarray, " product"]:
    """The products of a pool that may be an answer: all but the query's references, unless positives."""
    left = np.ones(len(index.products), bool)
    gone = {product.id for product in query.references} - set(query.positives)
    left[[index.row_of[id] for id in gone if id in index.row_of]] = False
    return left


class Facts:
    """Which of `products` have a class or a value, as masks in their order."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.count = len(products)
        self._rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, product in enumerate(products):
            self._rows[(product.class_name,)].append(row)
            for attribute, values in product.attributes.items():
                for value in dict.fromkeys(values):
                    self._rows[attribute, value].append(row)

    def of_class(self, name: str) -> Bool[np.ndarray, " product"]:
        """Products of the wanted class: all of them where a query names none."""
        return self._mask((name,)) if name else np.ones(self.count, bool)

    def meeting(self, values: Iterable[Value]) -> Bool[np.ndarray, "value product"]:
        """Whether each product has each of the values."""
        masks = [self._mask(value) for value in values]
        return np.array(masks, bool).reshape(len(masks), self.count)

    def _mask(self, key: tuple[str, ...]) -> Bool[np.ndarray, " product"]:
        found = np.zeros(self.count, bool)
        found[self._rows.get(key, [])] = True
        return found
