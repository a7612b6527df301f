"""A slice of a dataset that training never sees, and how well it is searched while the model learns.

It is cut by listing: what a shop sells in several colours or sizes is one thing shown several times, and a
model that has learnt one of them as an answer has half learnt the others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch

from coral_lab.encoder import Settings, encode
from coral_lab.errors import ItemError
from coral_lab.evaluation import Asked
from coral_lab.models.inputs import prompt
from coral_lab.prompts import Format, format_name
from coral_lab.query import Dataset, Product, Query, name_of
from coral_lab.retrieval import Index
from coral_lab.training import distributed
from coral_lab.training.learner import Learner

POOL = 2000
"""Products that held-out queries are searched among, with their answers: each evaluation encodes them."""

MEASURES = ("R@1", "R@10", "MRR@10")

QUIET = Settings(progress=False, store="")


@dataclass(frozen=True, eq=False)
class Split:
    """A dataset in two that share no listing, and how many `queries` are in neither, for they have products
    of both.
    """

    training: Dataset
    held_out: Dataset
    neither: int


def listings(shop: Dataset) -> dict[str, int]:
    """The listing of every product, as a number.

    MERIT's files do not name it. A query that was asked of one listing has its other variants for hard
    negatives (arXiv 2506.03144: "spu_first"), so these belong together, with its answer where there is one
    only; and so do products of one class with the same title.
    """
    parent = {product.id: product.id for product in shop.products}

    def root(id: str) -> str:
        while parent[id] != id:
            parent[id] = id = parent[parent[id]]
        return id

    def join(ids: Iterable[str]) -> None:
        known = [id for id in ids if id in parent]
        for id in known[1:]:
            parent[root(id)] = root(known[0])

    for query in shop.queries:
        answers = query.positives if len(query.positives) == 1 else ()
        join([*query.hard_negatives, *(answers if query.hard_negatives else ())])
    titled = defaultdict(list)
    for product in shop.products:
        if product.title.strip():
            titled[product.class_name, product.title.casefold().strip()].append(product.id)
    for ids in titled.values():
        join(ids)
    numbers: dict[str, int] = {}
    return {id: numbers.setdefault(root(id), len(numbers)) for id in parent}


def split(shop: Dataset, count: int, seed: int = 0) -> Split:
    """Hold back `count` queries, with every product of their answers' listings, and others up to POOL.

    No product of such a listing is left in training, not as an answer, a wrong answer or a reference: queries
    that need one are in neither part. Raises ValueError if that leaves no query to train on, ItemError for a
    query without a positive among the products.
    """
    if not 0 < count < len(shop.queries):
        raise ValueError(f"held_out is {count} of {len(shop.queries)} queries; give 1 or more and leave some")
    of = listings(shop)
    for query in shop.queries:
        if not any(id in of for id in query.positives):
            raise ItemError(name_of(query), "has no positives in the pool; training needs one for each")
    rng = Random(f"{seed}/held out")
    chosen = rng.sample(range(len(shop.queries)), count)
    gone = {of[id] for i in chosen for id in shop.queries[i].positives if id in of}
    unseen = {id for id, listing in of.items() if listing in gone}
    held, places = [shop.queries[i] for i in sorted(chosen)], set(chosen)
    training = [_left(q, unseen, of) for i, q in enumerate(shop.queries) if i not in places]
    kept = [query for query in training if query is not None]
    if not kept:
        raise ValueError(
            f"holding {count} of {len(shop.queries)} queries out leaves none to train on that share no "
            "listing with them; hold fewer out"
        )
    others = [product for product in shop.products if product.id not in unseen]
    pool = [product for product in shop.products if product.id in unseen]
    pool += rng.sample(others, min(len(others), max(0, POOL - len(pool))))
    return Split(
        replace(shop, products=others, queries=kept),
        replace(shop, name=f"{shop.name}, held out", products=pool, queries=held),
        len(training) - len(kept),
    )


def _left(query: Query, unseen: set[str], known: Mapping[str, int]) -> Query | None:
    """A query as far as it needs no product that is not to be seen; None where no answer that is known is
    left of it.
    """
    if any(product.id in unseen for product in query.references):
        return None
    positives = tuple(id for id in query.positives if id not in unseen)
    hard = tuple(id for id in query.hard_negatives if id not in unseen)
    left = any(id in known for id in positives)
    return replace(query, positives=positives, hard_negatives=hard) if left else None


def evaluation(
    learner: Learner, held_out: Dataset, format: str | Format = "seq", batch_size: int = 32
) -> Callable[[], Mapping[str, float]]:
    """What measures R@1, R@10 and MRR@10 on the held-out queries; every process embeds its share."""
    model, products, queries = learner.model, held_out.products, held_out.queries

    def measured() -> dict[str, float]:
        candidates = embedded(learner, products, "seq", batch_size)
        index = Index(model, products, candidates, format)
        found = embedded(learner, queries, format, batch_size)
        result = Asked(index, queries, found, format_name(format), ()).ranked(10)
        return {name: result.metrics[name].mean for name in MEASURES}

    return measured


@torch.no_grad()
def embedded(
    learner: Learner, items: Sequence[Product] | Sequence[Query], format: str | Format, batch_size: int
) -> np.ndarray:
    """Embeddings [item, dim] of all items, on every process, each of which embeds every so-many-th.

    A sharded network is entered as often everywhere: who has fewer items embeds the first once more.
    """
    rank, processes = distributed.rank(), distributed.world_size()
    each = -(-len(items) // processes)
    places = [*range(rank, len(items), processes)]
    places += [0] * (each - len(places))
    if learner.sharded:
        prompts = [prompt(learner.model, items[i], format) for i in places]
        own = [learner.embed(prompts[at : at + batch_size]) for at in range(0, each, batch_size)]
        rows = torch.cat(own).cpu().numpy()
    else:
        settings = replace(QUIET, batch_size=batch_size)
        rows = encode(learner.model, [items[i] for i in places], format, settings)
    parts = distributed.gather_objects(rows)
    return np.stack(parts, 1).reshape(-1, rows.shape[1])[: len(items)]
