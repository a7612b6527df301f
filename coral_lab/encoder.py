"""Embeddings of products, queries and raw chat messages, in any mix, independent of how they are batched.

With a store they are kept as they are made: what is there already is read, and a run that was killed goes on with the
same batches that it would have had.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from tqdm.auto import tqdm

from coral_lab.images import ItemError, jpeg
from coral_lab.interleaved import Format, Product, Query
from coral_lab.models import batching as batches
from coral_lab.models.batching import Batch
from coral_lab.models.inputs import Item, Prompt, pool, prompt
from coral_lab.models.loading import Model
from coral_lab.models.pixels import key
from coral_lab.models.prefixes import last_states
from coral_lab.store import fingerprints
from coral_lab.store.tables import Row, Vectors

log = logging.getLogger(__name__)

WINDOW = 16
"""Batches that are sorted by length together."""

TOKENS, CPU_TOKENS = 2**14, 2**11
"""Tokens of a batch at most, padding included, unless one item is longer. A CPU gains nothing from more of them."""

COMMIT_EVERY = 5.0
"""Seconds of work that a kill may cost at most, beside the batch at hand."""

THUMBNAIL = 128  # pixels a side, kept in the store


@dataclass(frozen=True)
class Encoded:
    """`rows` [item, dim] in the items' order; `skipped` are (place, error) of items that could not be used: NaN."""

    rows: Float32[np.ndarray, "item dim"]
    skipped: tuple[tuple[int, ItemError], ...]


def encode(
    model: Model,
    items: Item | Iterable[Item | Any],
    *,
    format: str | Format = "seq",
    batch_size: int = 32,
    progress: bool | None = None,
    store: str | os.PathLike | None = None,
    on_error: str = "raise",
) -> Float32[np.ndarray, "item dim"]:
    """L2-normalised embeddings in the order given; one row for a single item.

    An item is a Product, a Query, or chat messages as the model card builds them; `format` is how queries are
    worded. A batch has at most `batch_size` items, fewer if they are long. A picture that several items show is looked
    at once. A progress bar shows by default from four batches on. Out of memory on a GPU halves the batch, with a
    warning. `store` is a folder or an object store's address, where embeddings are kept and found again: by default
    where $CORAL_LAB_STORE says, and "" for nowhere. Raises ItemError naming the item that cannot be used; with
    `on_error` "skip" its row is NaN and a warning lists it.
    """
    found = encode_all(model, items, format=format, batch_size=batch_size, progress=progress, store=store,
                       on_error=on_error)  # fmt: skip
    if found.skipped:
        listed = "\n".join(f"  {error}" for _, error in found.skipped)
        log.warning(
            "%d of %d items skipped, their rows are NaN:\n%s", len(found.skipped), len(found.rows), listed
        )
    return found.rows


def encode_all(
    model: Model,
    items: Item | Iterable[Item | Any],
    *,
    format: str | Format = "seq",
    batch_size: int = 32,
    progress: bool | None = None,
    store: str | os.PathLike | None = None,
    on_error: str = "raise",
) -> Encoded:
    """As `encode`, with what was skipped as data. Raises ValueError for another `on_error`."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; use raise or skip")
    items = _as_items(items)
    skipped: dict[int, ItemError] = {}

    def refuse(i: int, error: ItemError) -> None:
        if on_error == "raise":
            raise error
        skipped[i] = error

    prompts = _attempt(items, lambda i, item: prompt(model, item, format, f"item {i}"), refuse)
    rows = np.full((len(items), model.dim), np.nan, np.float32)
    keeper = None
    store = os.environ.get("CORAL_LAB_STORE", "") if store is None else store
    if store:
        keeper = _Keeper(vectors_in(store, model), items, prompts, model)
        keeper.look_up(rows, refuse)
    todo = {i for i in prompts if i not in skipped and not (keeper and i in keeper.present)}
    show = progress if progress is not None else len(todo) >= 4 * batch_size
    with torch.inference_mode(), progress_bar(show, total=len(items), initial=len(items) - len(todo), desc="encode",
                                              unit="item") as bar:  # fmt: skip
        try:
            for some, done in _batches(model, prompts, len(items), todo, batch_size, refuse):
                rows[some] = done
                bar.update(len(some))
                if keeper:
                    keeper.add(some, rows)
        finally:  # what is done is kept, whatever went wrong after
            if keeper:
                keeper.close(rows)
    return Encoded(rows, tuple(sorted(skipped.items())))


def progress_bar(show: bool, *items: Iterable, **options) -> tqdm:
    """A tqdm bar if `show` and $TQDM_DISABLE does not say otherwise, which an argument would override."""
    return tqdm(*items, **options) if show else tqdm(*items, **options, disable=True)


def vectors_in(store: str | os.PathLike, model: Model) -> Vectors:
    """This model's table in a store, as its weights are now. Raises StoreError for a folder of something else."""
    space = fingerprints.space(model)
    return Vectors(str(store), fingerprints.name(space), model.dim, space)


def _as_items(items: Item | Iterable[Item | Any]) -> list:
    single = isinstance(items, Product | Query | dict)
    if (
        isinstance(items, list | tuple)
        and items
        and all(isinstance(item, dict) and "role" in item for item in items)
    ):
        single = True  # one conversation, as the card's `query`
    return [items] if single else list(items)


def _attempt(
    items: Sequence, make: Callable[[int, Any], Any], refuse: Callable[[int, ItemError], None]
) -> dict[int, Any]:
    """What `make` makes of each item, by place; the others are refused."""
    made = {}
    for i, item in enumerate(items):
        try:
            made[i] = make(i, item)
        except ItemError as error:
            refuse(i, error)
    return made


class _Keeper:
    """Reads what the store has, and commits what is made, a few seconds' work at a time."""

    def __init__(self, vectors: Vectors, items: Sequence, prompts: dict[int, Prompt], model: Model):
        self.vectors, self.items, self.prompts, self.model = vectors, items, prompts, model
        self.keys: dict[int, str] = {}
        self.present: set[int] = set()
        self.pending: list[int] = []
        self.since = time.monotonic()

    def look_up(self, rows: np.ndarray, refuse: Callable[[int, ItemError], None]) -> None:
        for i, own in list(self.prompts.items()):
            try:
                self.keys[i] = _key(self.items[i], own)
            except ItemError as error:
                refuse(i, error)
        found = self.vectors.find(list(self.keys.values()))
        for i, own in self.keys.items():
            if own in found:
                rows[i] = found[own]
                self.present.add(i)
        if len(self.present) < len(self.keys):
            self.model.pixels.thumbnail_size = THUMBNAIL

    def add(self, some: Sequence[int], rows: np.ndarray) -> None:
        self.pending += some
        if time.monotonic() - self.since > COMMIT_EVERY:
            self.commit(rows)

    def commit(self, rows: np.ndarray) -> None:
        if self.pending:
            own = [_row(self.items[i], self.keys[i], self._thumbnail(i)) for i in self.pending]
            self.vectors.commit(own, rows[self.pending])
        for i in self.pending:  # those of batches to come are being made
            for picture in self.prompts[i].pictures:
                self.model.pixels.thumbnails.pop(key(picture), None)
        self.pending = []
        self.since = time.monotonic()

    def close(self, rows: np.ndarray) -> None:
        self.model.pixels.thumbnail_size = None
        self.commit(rows)
        self.model.pixels.thumbnails.clear()

    def _thumbnail(self, i: int) -> bytes | None:
        item = self.items[i]
        if not isinstance(item, Product) or item.image is None:
            return None
        made = self.model.pixels.thumbnails.get(key(item.image))
        return made or jpeg(item.image, self.prompts[i].name, THUMBNAIL)


def _key(item: Item | Any, own: Prompt) -> str:
    """A product's is also of what the store tells about it, so that a changed fact makes a new row."""
    content = fingerprints.item(own)
    if not isinstance(item, Product):
        return content
    facts = (item.id, item.title, item.class_name, item.language, item.country, *_facts(item))
    return fingerprints.digest([content, *facts])


def _facts(product: Product) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, values in product.attributes.items() for value in values)


def _row(item: Item | Any, own: str, thumbnail: bytes | None) -> Row:
    if isinstance(item, Product):
        return Row(own, "product", item.id, item.title, item.class_name, item.language, item.country, _facts(item),
                   thumbnail)  # fmt: skip
    if isinstance(item, Query):
        return Row(own, "query", item.id, class_name=item.class_name, language=item.language)
    return Row(own, "messages")


def _batches(
    model: Model, prompts: dict[int, Prompt], count: int, todo: set[int], batch_size: int, refuse: Callable
) -> Iterator[tuple[list[int], Float32[np.ndarray, "row dim"]]]:
    """Places and embeddings, batch by batch. What is missing of a window is batched as if it had never been stopped:
    a run commits whole batches in this same order."""
    window = batch_size * WINDOW
    starts = range(0, count, window)
    windows = [[i for i in range(at, min(at + window, count)) if i in todo] for at in starts]
    tokens = CPU_TOKENS if model.device.type == "cpu" else TOKENS
    for batch in batches.plan(model, prompts, windows, batch_size, tokens):
        waiting = list(batch.parts(batch_size, tokens))
        while waiting:
            some, *rest = waiting
            try:
                yield some.places, _embed(model, some)
                waiting = rest
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                torch.cuda.empty_cache()
                tokens = some.part(range((len(some) + 1) // 2, len(some))).tokens
                log.warning(
                    "out of GPU memory with %d items; going on with %d of as many tokens",
                    len(some), len(some) // 2,
                )  # fmt: skip
                waiting = [part for whole in waiting for part in whole.parts(batch_size, tokens)]
            except ItemError as error:  # a text that is too long
                if len(some) == 1:
                    refuse(some.places[0], error)
                    waiting = rest
                else:
                    waiting = [*some.parts(1, tokens), *rest]
        batches.forget(batch)
        for i, error in batch.refused:  # at last, so that the others of its batch are kept
            refuse(i, error)


def _embed(model: Model, batch: Batch) -> Float32[np.ndarray, "row dim"]:
    return pool(last_states(model, batch.prompts, batches.vision(model, batch), len(batch))).cpu().numpy()
