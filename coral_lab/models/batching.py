"""Which prompts are read together, and their pictures on the way while the model works on those before them.

A batch is filled up to so many tokens, of prompts of like length, image tokens included; what a prompt begins
with as the one before it is not counted, for it is read once (`prefixes.py`). A prompt joins a batch only if
the padding that it adds costs no more than a call of its own: so a batch is never slower than its prompts one
by one, which at the 3B's size, where products take nearly all the time, it was. A picture's features are kept
until the last prompt that shows it, so that a product and the queries that refer to it look at it once.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

import torch
from threadpoolctl import threadpool_limits

from coral_lab.errors import ItemError
from coral_lab.models.forward import token_ids
from coral_lab.models.inputs import Prompt
from coral_lab.models.model import Model
from coral_lab.models.pixels import Pixel, key
from coral_lab.models.vision import Vision, vision_of_pixels

KEPT = 2**29
"""Bytes of features that wait for prompts to come."""


@dataclass(frozen=True)
class Bounds:
    """A batch has at most `count` prompts and, padded, `tokens` tokens, and a prompt adds at most `padding`
    of them to those before it.
    """

    count: int
    tokens: int
    padding: int


@dataclass(frozen=True)
class Batch:
    """Prompts with their `places` and `lengths` in tokens, and the `pixels` of pictures that were not looked
    at yet.

    So many tokens at their beginning are `alike` with the prompt before. `seen` is what all batches have
    looked at; `gone` are its pictures that nothing shows after this batch. `refused` are the places of items
    that could not be used, and why.
    """

    places: list[int]
    prompts: list[Prompt]
    lengths: list[int]
    alike: list[int]
    pixels: Mapping[Hashable, Pixel]
    seen: Vision
    gone: Sequence[Hashable]
    refused: Sequence[tuple[int, ItemError]]

    def __len__(self) -> int:
        return len(self.places)

    def parts(self, bounds: Bounds) -> "Iterator[Batch]":
        """This batch in parts within the bounds, or of one prompt."""
        yield from map(self.part, groups(self.lengths, self.alike, bounds))

    def part(self, some: range) -> "Batch":
        own = slice(some.start, some.stop)
        return replace(
            self,
            places=self.places[own],
            prompts=self.prompts[own],
            lengths=self.lengths[own],
            alike=self.alike[own],
        )

    @property
    def tokens(self) -> int:
        """What it counts for in `groups`."""
        return len(self) * self.lengths[-1] - sum(self.alike[1:])


def groups(lengths: Sequence[int], alike: Sequence[int], bounds: Bounds) -> Iterator[range]:
    """Ranges over ascending `lengths` within the bounds: padded to the longest, less what each is `alike`
    with the one before it.
    """
    start = saved = 0
    for i, length in enumerate(lengths):
        saved += alike[i] if i > start else 0
        own = i - start
        if own and (
            own == bounds.count
            or (own + 1) * length - saved > bounds.tokens
            or own * (length - lengths[i - 1]) > bounds.padding
        ):
            yield range(start, i)
            start, saved = i, 0
    if lengths:
        yield range(start, len(lengths))


def vision_of_batch(model: Model, batch: Batch) -> Vision:
    """Features of the batch's pictures and of those before it; only pictures that are new are looked at."""
    shown = {key(picture) for prompt in batch.prompts for picture in prompt.pictures}
    new = vision_of_pixels(
        model, {k: batch.pixels[k] for k in batch.pixels if k in shown - batch.seen.features.keys()}
    )
    last = set(batch.gone)
    # A copy of what stays, for the features of pictures looked at together share their memory.
    batch.seen.features.update({k: v if k in last else v.clone() for k, v in new.features.items()})
    batch.seen.grids.update(new.grids)
    return batch.seen


def forget(batch: Batch) -> None:
    """Drop the features that no batch after this one needs."""
    for k in batch.gone:
        batch.seen.features.pop(k, None)
        batch.seen.grids.pop(k, None)


def plan(
    model: Model, prompts: Mapping[int, Prompt], windows: Sequence[Sequence[int]], bounds: Bounds
) -> Iterator[Batch]:
    """The batches in their order, one prepared ahead by another thread; `windows` are places that are sorted
    together.
    """
    with ThreadPoolExecutor(1, initializer=_on_one_core) as ahead:
        batches = _plan(model, prompts, windows, bounds)
        coming = ahead.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = ahead.submit(next, batches, None)
            yield batch


def _on_one_core() -> None:
    """Keeps this thread's torch from starting threads of its own, which would wait in the way of the
    model's.
    """
    torch.get_num_threads()  # sets the thread up; else its first sum would undo this
    threadpool_limits(1, user_api="openmp")


def _plan(model: Model, prompts, windows, bounds: Bounds) -> Iterator[Batch]:
    uses = Counter(_shown(prompts, (i for places in windows for i in places)))
    merge = model.processor.image_processor.merge_size**2
    kept: dict[Hashable, int] = {}  # image tokens of the pictures whose features wait, the oldest first
    seen = Vision({}, {})
    for places in windows:
        ids = token_ids(model, [prompts[i] for i in places])
        rows = {i: _symbols(model, prompts[i], row) for i, row in zip(places, ids, strict=True)}
        distinct = {key(picture): picture for i in places for picture in prompts[i].pictures}
        sizes = {k: model.pixels.tokens(picture) for k, picture in distinct.items()}
        guesses = {i: _tokens(rows[i], sizes) for i in places}
        # Like lengths together: padding is work for nothing.
        order = sorted(places, key=guesses.__getitem__)
        alike = _alike([rows[i] for i in order], sizes)
        for some in groups([guesses[i] for i in order], alike, bounds):
            own = order[some.start : some.stop]
            good, pixels, refused = _prepare(model, prompts, own, kept)
            kept |= {k: len(pixel[0]) // merge for k, pixel in pixels.items()}
            lengths = {i: _tokens(rows[i], kept) for i in good}
            good = sorted(good, key=lengths.__getitem__)
            same = _alike([rows[i] for i in good], kept)
            shown = _shown(prompts, own)
            uses.subtract(shown)
            gone = _leaving(shown, uses, kept, KEPT // (model.dim * model.dtype.itemsize))
            for k in gone:
                del kept[k]
            yield Batch(
                good,
                [prompts[i] for i in good],
                [lengths[i] for i in good],
                same,
                pixels,
                seen,
                gone,
                refused,
            )


def _symbols(model: Model, prompt: Prompt, ids: Sequence[int]) -> list[int | tuple[Hashable]]:
    """The ids, with a picture's key, in a tuple, in place of its token."""
    keys = iter(map(key, prompt.pictures))
    return [(next(keys),) if i == model.processor.image_token_id else i for i in ids]


def _tokens(symbols: Iterable[int | tuple[Hashable]], sizes: Mapping[Hashable, int]) -> int:
    return sum(sizes[symbol[0]] if isinstance(symbol, tuple) else 1 for symbol in symbols)


def _alike(rows: Sequence[list], sizes: Mapping[Hashable, int]) -> list[int]:
    """How many tokens at its beginning each row has in common with the one before it."""
    same = (takewhile(lambda pair: pair[0] == pair[1], zip(*two, strict=False)) for two in pairwise(rows))
    return [0, *(_tokens((symbol for symbol, _ in some), sizes) for some in same)][: len(rows)]


def _shown(prompts: Mapping[int, Prompt], places: Iterable[int]) -> list[Hashable]:
    return [key(picture) for i in places for picture in prompts[i].pictures]


def _leaving(shown: Sequence[Hashable], uses: Counter, kept: Mapping[Hashable, int], room: int) -> list:
    """Pictures that nothing shows any more, and the oldest of the others if they are more than `room` image
    tokens.
    """
    gone = [k for k in dict.fromkeys(shown) if k in kept and not uses[k]]
    excess = sum(kept.values()) - sum(kept[k] for k in gone) - room
    for k, size in kept.items():
        if excess > 0 and uses[k]:
            gone.append(k)
            excess -= size
    return gone


def _prepare(model: Model, prompts, places: list[int], kept: Mapping):
    """Those of the places that can be used, the pixels of their new pictures, and what is wrong with the
    others.
    """

    def pixels(some: Sequence[int]) -> dict[Hashable, Pixel]:
        shown = ((p, prompts[i].name) for i in some for p in prompts[i].pictures)
        return model.pixels((p, name) for p, name in shown if key(p) not in kept)

    try:
        return places, pixels(places), []
    except ItemError:
        good, refused = [], []
    for i in places:
        try:
            pixels([i])
            good.append(i)
        except ItemError as error:
            refused.append((i, error))
    return good, pixels(good), refused
