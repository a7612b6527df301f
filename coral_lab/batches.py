"""Which prompts are read together, and their pictures on the way while the model works on those before them.

A batch is filled up to so many tokens, of prompts of like length, image tokens included. A picture's features are kept
until the last prompt that shows it, so that a product and the queries that refer to it look at it once.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from coral_lab.images import ItemError
from coral_lab.inputs import Prompt, Vision, look, token_ids
from coral_lab.models import Model
from coral_lab.pixels import Pixel, key

KEPT = 2**29
"""Bytes of features that wait for prompts to come."""


@dataclass(frozen=True)
class Batch:
    """Prompts with their `places` and `lengths` in tokens, and the `pixels` of pictures that were not looked at yet.

    `seen` is what all batches have looked at; `gone` are its pictures that nothing shows after this batch. `refused`
    are the places of items that could not be used, and why.
    """

    places: list[int]
    prompts: list[Prompt]
    lengths: list[int]
    pixels: Mapping[Hashable, Pixel]
    seen: Vision
    gone: Sequence[Hashable]
    refused: Sequence[tuple[int, ItemError]]

    def __len__(self) -> int:
        return len(self.places)

    def parts(self, count: int, tokens: int) -> "Iterator[Batch]":
        """This batch in parts of at most so many prompts and tokens, or of one prompt."""
        for some in groups(self.lengths, count, tokens):
            own = slice(some.start, some.stop)
            yield replace(self, places=self.places[own], prompts=self.prompts[own], lengths=self.lengths[own])


def groups(lengths: Sequence[int], count: int, tokens: int) -> Iterator[range]:
    """Ranges over ascending `lengths`: at most `count` together, and at most `tokens` when padded to the longest."""
    start = 0
    for i, length in enumerate(lengths):
        if i > start and (i - start == count or (i - start + 1) * length > tokens):
            yield range(start, i)
            start = i
    if lengths:
        yield range(start, len(lengths))


def vision(model: Model, batch: Batch) -> Vision:
    """Features of the batch's pictures and of those before it; only pictures that are new are looked at."""
    shown = {key(picture) for prompt in batch.prompts for picture in prompt.pictures}
    new = look(model, {k: batch.pixels[k] for k in batch.pixels if k in shown - batch.seen.features.keys()})
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
    model: Model, prompts: Mapping[int, Prompt], windows: Sequence[Sequence[int]], count: int, tokens: int
) -> Iterator[Batch]:
    """The batches in their order, one prepared ahead by another thread; `windows` are places that are sorted together.

    At most `count` prompts and `tokens` tokens a batch, padding included.
    """
    with ThreadPoolExecutor(1) as ahead:
        batches = _plan(model, prompts, windows, count, tokens)
        coming = ahead.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = ahead.submit(next, batches, None)
            yield batch


def _plan(model: Model, prompts, windows, count: int, tokens: int) -> Iterator[Batch]:
    uses = Counter(_shown(prompts, (i for places in windows for i in places)))
    merge = model.processor.image_processor.merge_size**2
    kept: dict[Hashable, int] = {}  # image tokens of the pictures whose features wait, the oldest first
    seen = Vision({}, {})
    for places in windows:
        ids = token_ids(model, [prompts[i] for i in places])
        texts = {i: len(row) - len(prompts[i].pictures) for i, row in zip(places, ids, strict=True)}
        guesses = {i: texts[i] + sum(map(model.pixels.tokens, prompts[i].pictures)) for i in places}
        # Like lengths together: padding is work for nothing.
        order = sorted(places, key=guesses.__getitem__)
        for some in groups([guesses[i] for i in order], count, tokens):
            own = order[some.start : some.stop]
            good, pixels, refused = _prepare(model, prompts, own, kept)
            kept |= {k: len(pixel[0]) // merge for k, pixel in pixels.items()}
            lengths = {i: texts[i] + sum(kept[k] for k in _shown(prompts, [i])) for i in good}
            good = sorted(good, key=lengths.__getitem__)
            shown = _shown(prompts, own)
            uses.subtract(shown)
            gone = _leaving(shown, uses, kept, KEPT // (model.dim * model.dtype.itemsize))
            for k in gone:
                del kept[k]
            yield Batch(
                good, [prompts[i] for i in good], [lengths[i] for i in good], pixels, seen, gone, refused
            )


def _shown(prompts: Mapping[int, Prompt], places: Iterable[int]) -> list[Hashable]:
    return [key(picture) for i in places for picture in prompts[i].pictures]


def _leaving(shown: Sequence[Hashable], uses: Counter, kept: Mapping[Hashable, int], room: int) -> list:
    """Pictures that nothing shows any more, and the oldest of the others if they are more than `room` image tokens."""
    gone = [k for k in dict.fromkeys(shown) if k in kept and not uses[k]]
    excess = sum(kept.values()) - sum(kept[k] for k in gone) - room
    for k, size in kept.items():
        if excess > 0 and uses[k]:
            gone.append(k)
            excess -= size
    return gone


def _prepare(model: Model, prompts, places: list[int], kept: Mapping):
    """Those of the places that can be used, the pixels of their new pictures, and what is wrong with the others."""

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
