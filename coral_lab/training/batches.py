"""A contrastive batch: pairs of queries and answers as prompts, and the batches to come made ready while the
model computes.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coral_lab.models.inputs import Prompt, prompt
from coral_lab.models.model import Model
from coral_lab.models.pixels import Pixel, key
from coral_lab.prompts import Format
from coral_lab.query import Product, Query
from coral_lab.training import distributed
from coral_lab.training.augment import Moves, moves_for

AHEAD = 2  # batches that are made ready before they are asked for


@dataclass(frozen=True)
class Pair:
    """A query, one right answer, and answers that are known to be wrong."""

    query: Query
    positive: Product
    negatives: tuple[Product, ...] = ()


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pairs as prompts, and everything random about them, so that any part of it can be computed again.

    `draws` are uniform numbers that decide which tokens are hidden: a positive takes them from the left, a
    query from the right. `also_positive` is over all positives, then all negatives; `pixels` are this
    process's pictures if they were processed already. `lent` are another row's queries or positives, which a
    shuffled batch rebuilds in place of each row's own.
    """

    queries: tuple[Prompt, ...]
    positives: tuple[Prompt, ...]
    negatives: tuple[Prompt, ...]
    also_positive: Bool[Tensor, "query candidate"]
    draws: Float[Tensor, "query draw"]
    moves: Moves | None = None
    pixels: Mapping[object, Pixel] | None = None
    lent: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.queries + self.positives + self.negatives

    def part(self, rows: range) -> "PairBatch":
        """These queries with their positives and negatives."""
        hard = len(self.negatives) // max(1, len(self))
        own = slice(rows.start, rows.stop)
        return replace(
            self,
            queries=self.queries[own],
            positives=self.positives[own],
            negatives=self.negatives[rows.start * hard : rows.stop * hard],
            also_positive=self.also_positive[own],
            draws=self.draws[own],
            lent={item: prompts[own] for item, prompts in self.lent.items()},
        )

    def rebuilt(self, item: str) -> tuple[Prompt, ...]:
        """What is rebuilt from each row's h_eos: "target" are the positives, "query" the queries."""
        return self.lent.get(item) or (self.positives if item == "target" else self.queries)

    def circle(self, way: int) -> list[int]:
        """Another row for each: by the draws all stand in one circle, and it is the next (1) or the one
        before (-1). It is of the whole batch, whatever parts and processes compute it in.
        """
        order = self.draws[:, self.draws.shape[1] // 2].argsort(stable=True)
        other = torch.empty_like(order)
        other[order] = order.roll(-way)
        return other.tolist()

    def shuffled(self, items: Sequence[str]) -> "PairBatch":
        """The same with another row's `items` to rebuild from each row's h_eos, hidden as they would be in
        their own.

        What is lent is the item, not the vector: each part of the batch, on each process, then has all that
        its gradients need, and the losses are those of the whole batch at once. A part whose rows borrow from
        others sees their pictures besides. Raises ValueError for fewer than three pairs, of which a third
        can say what yet another row's h_eos is worth.
        """
        if len(self) < 3:
            raise ValueError(f"a batch of {len(self)} pairs cannot be shuffled; give at least 3")
        other = self.circle(1)
        lent = {item: tuple(self.rebuilt(item)[row] for row in other) for item in items}
        return replace(self, lent=lent, draws=self.draws[other])

    def pictures_of(self, model: Model) -> dict[object, Pixel]:
        """Its pictures, processed, by `pixels.key`. Raises ItemError for one that cannot be opened."""
        own = (*self.prompts, *(prompt for prompts in self.lent.values() for prompt in prompts))
        shown = [(picture, prompt.name) for prompt in own for picture in prompt.pictures]
        if self.pixels is None:
            return model.pixels(shown)
        return {k: self.pixels[k] for k in dict.fromkeys(key(picture) for picture, _ in shown)}


def make_batch(
    model: Model,
    pairs: Sequence[Pair],
    longest: int = 0,
    augmented: bool = False,
    format: str | Format = "seq",
    generator: torch.Generator | None = None,
) -> PairBatch:
    """The pairs' prompts, queries in `format`; random numbers for `longest` tokens an item are of
    `generator`, or torch's own.

    Raises ValueError if some queries have more negatives than others.
    """
    counts = {len(pair.negatives) for pair in pairs}
    if len(counts) > 1:
        raise ValueError(f"queries have {sorted(counts)} negatives; give each of them as many")
    candidates = [pair.positive for pair in pairs] + [product for pair in pairs for product in pair.negatives]
    places = defaultdict(list)
    for place, product in enumerate(candidates):
        places[product.id].append(place)
    known = torch.zeros(len(pairs), len(candidates), dtype=torch.bool)
    for row, pair in enumerate(pairs):
        right = {*pair.query.positives, pair.positive.id} & places.keys()
        known[row, [place for id in right for place in places[id]]] = True
    queries = tuple(prompt(model, pair.query, format) for pair in pairs)
    prompts = tuple(prompt(model, product) for product in candidates)
    moves = moves_for(queries + prompts, generator) if augmented else None
    draws = torch.rand(len(pairs), longest, generator=generator)
    return PairBatch(queries, prompts[: len(pairs)], prompts[len(pairs) :], known, draws, moves)


def with_pixels(model: Model, batch: PairBatch) -> PairBatch:
    """The batch with this process's pictures opened and processed."""
    return replace(batch, pixels=batch.part(distributed.share(len(batch))).pictures_of(model))


Made = TypeVar("Made")


@contextmanager
def ahead(make: Callable[[int], Made], stop: int, count: int = AHEAD) -> Iterator[Callable[[int], Made]]:
    """`make` for one number after the other: the next `count` below `stop` are made by another thread
    meanwhile. What one raises is raised when it is asked for.
    """
    waiting: deque[tuple[int, Future[Made]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:

        def get(number: int) -> Made:
            if waiting and waiting[0][0] != number:  # asked for out of turn
                drop()
            begun = waiting[-1][0] + 1 if waiting else number
            for n in range(begun, max(number + 1, min(stop, number + 1 + count))):
                waiting.append((n, pool.submit(make, n)))
            return waiting.popleft()[1].result()

        def drop() -> None:
            while waiting:
                waiting.popleft()[1].cancel()

        try:
            yield get
        finally:
            drop()
