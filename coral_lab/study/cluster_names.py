"""Names for the regions of a map: clusters of embeddings, each called by the words that set it apart.

Clusters are k-means's, in the original space: every product is in one, a seed gives the same ones again, and
tens of thousands take seconds. Density-based clusters leave most of a catalogue without any.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from jaxtyping import Float32, Int64

from coral_lab.query import Product

WORD = re.compile(r"[^\W\d_](?:[\w\u0300-\u036f\u0e30-\u0e4e'-]*\w)?")
"""A word of a title, letters first. Thai is written without spaces: there a word is what stands between two,
and attributes say more."""

MANY = 10_000
"""Products from which k-means looks at batches of them."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """`codes` [row] is the number of each product's cluster, `names` are theirs, the largest first."""

    codes: Int64[np.ndarray, " row"]
    names: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """The name of each product's cluster."""
        return [self.names[code] for code in self.codes]


def clusters(
    products: Sequence[Product],
    embeddings: Float32[np.ndarray, "row dim"],
    count: int = 12,
    *,
    words: int = 3,
    seed: int = 0,
) -> Clusters:
    """At most `count` clusters of products by their embeddings, each named by up to `words` words.

    Words are scored by c-TF-IDF, tf(x, c) · log(1 + A / f(x)), where tf is how many of a cluster's products
    have a word, f how many of all, and A the clusters' mean number of words (Grootendorst 2022, arXiv
    2203.05794). They are words of titles, whole values of attributes and classes, in any languages; a cluster
    whose products have none is called "cluster 3". Raises ValueError for lengths that differ, or a count
    below 2.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(products) != len(embeddings) or count < 2:
        found = f"{len(products)} products, {len(embeddings)} embeddings and {count} clusters"
        raise ValueError(f"{found}; give one embedding each, and 2 clusters or more")
    count = min(count, len(np.unique(embeddings, axis=0)))
    kind = KMeans if len(products) < MANY else MiniBatchKMeans
    found = kind(count, n_init=4, random_state=seed).fit_predict(embeddings)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    codes = np.argsort(order)[found].astype(np.int64)
    return Clusters(codes, named(products, codes, words))


def named(products: Sequence[Product], codes: Int64[np.ndarray, " row"], words: int = 3) -> tuple[str, ...]:
    """The words that set each cluster apart, as `clusters` has them, joined by commas; each name is there
    once.
    """
    of = [Counter[str]() for _ in range(int(codes.max()) + 1)]
    for product, code in zip(products, codes, strict=True):
        of[code].update(_terms(product))
    whole = sum(of, Counter[str]())
    mean = whole.total() / len(of)
    names: list[str] = []
    for number, own in enumerate(of):
        scores = {word: count * log(1 + mean / whole[word]) for word, count in own.items() if count > 1}
        best = sorted(scores, key=lambda word: (-scores[word], word))
        name = ", ".join(_distinct(best, words)) or f"cluster {number + 1}"
        names.append(name if name not in names else f"{name} ({number + 1})")
    return tuple(names)


def _terms(product: Product) -> set[str]:
    """What is said of a product, each word once."""
    values = [value for own in product.attributes.values() for value in own]
    said = [product.class_name, *values, *WORD.findall(product.title)]
    return {word.strip().lower() for word in said if len(word.strip()) > 1}


def _distinct(best: Sequence[str], count: int) -> list[str]:
    """The first words of which none is a part of another."""
    chosen: list[str] = []
    for word in best:
        if len(chosen) == count:
            break
        if not any(word in own or own in word for own in chosen):
            chosen.append(word)
    return chosen
