"""Keeping embeddings while they are made: what a store has already is read, the rest committed as it
comes.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from coral_lab.errors import ItemError
from coral_lab.images import digest, jpeg
from coral_lab.models import fingerprints
from coral_lab.models.inputs import Prompt
from coral_lab.models.model import Model
from coral_lab.models.pixels import key
from coral_lab.models.protocol import Conversation, Embedder, Item
from coral_lab.query import Product, Query
from coral_lab.store.tables import Record, Table, address

log = logging.getLogger(__name__)

COMMIT_EVERY = 5.0
"""Seconds of work that a kill may cost at most, beside the batch at hand."""

THUMBNAIL = 128  # pixels a side, kept in the store


def table_of(store: str, model: Embedder) -> Table:
    """This model's table in a store, as its weights are now. Raises StoreError for a folder of something
    else.
    """
    space = fingerprints.space(model)
    return Table(address(store), fingerprints.name(space), model.dim, space)


@runtime_checkable
class Kept(Protocol):
    """What keeps embeddings: a store's table, or what takes its place."""

    @property
    def can_be_written(self) -> bool: ...
    @property
    def uri(self) -> str: ...
    def find(self, keys: Sequence[str]) -> Mapping[str, np.ndarray]: ...
    def commit(self, rows: Sequence[Record], vectors: np.ndarray) -> None: ...


class Keeper:
    """Reads what the store has, and commits what is made, a few seconds' work at a time.

    A store that may be read but not written, somebody else's, is read; a warning says that nothing is kept.
    """

    def __init__(
        self, table: Kept, items: Sequence, asked: Mapping[int, Prompt | Conversation], model: Embedder
    ):
        self.table, self.items, self.asked = table, items, asked
        self.pixels = model.pixels if isinstance(model, Model) else None
        self.thumbnails = self.pixels.thumbnails if self.pixels else {}
        self.keys: dict[int, str] = {}
        self.present: set[int] = set()
        self.pending: list[int] = []
        self.since = time.monotonic()
        self.keeps = self.table.can_be_written
        if not self.keeps:
            log.warning("the store %s cannot be written: embeddings made now are not kept", table.uri)

    def look_up(self, embeddings: np.ndarray, refuse: Callable[[int, ItemError], None]) -> None:
        for i, own in list(self.asked.items()):
            try:
                self.keys[i] = row_key(self.items[i], own)
            except ItemError as error:
                refuse(i, error)
        found = self.table.find(list(self.keys.values()))
        for i, name in self.keys.items():
            if name in found:
                embeddings[i] = found[name]
                self.present.add(i)
        if self.keeps and len(self.present) < len(self.keys):
            self._gather(THUMBNAIL)

    def add(self, some: Sequence[int], embeddings: np.ndarray) -> None:
        self.pending += some if self.keeps else ()
        if time.monotonic() - self.since > COMMIT_EVERY:
            self.commit(embeddings)

    def commit(self, embeddings: np.ndarray) -> None:
        if self.pending:
            own = [_record(self.items[i], self.keys[i], self._thumbnail(i)) for i in self.pending]
            self.table.commit(own, embeddings[self.pending])
        for i in self.pending:  # those of batches to come are being made
            for picture in self.asked[i].pictures:
                self.thumbnails.pop(key(picture), None)
        self.pending = []
        self.since = time.monotonic()

    def close(self, embeddings: np.ndarray) -> None:
        self._gather(None)
        self.commit(embeddings)
        self.thumbnails.clear()

    def _gather(self, size: int | None) -> None:
        if self.pixels:
            self.pixels.thumbnail_size = size

    def _thumbnail(self, i: int) -> bytes | None:
        item = self.items[i]
        if not isinstance(item, Product) or item.image is None:
            return None
        made = self.thumbnails.get(key(item.image))
        return made or jpeg(item.image, self.asked[i].name, THUMBNAIL)


def row_key(item: Item | Any, own: Prompt | Conversation) -> str:
    """A product's is also of what the store tells about it, so that a changed fact makes a new record."""
    content = own.identity
    if not isinstance(item, Product):
        return content
    told = (item.id, item.title, item.class_name, item.language, item.country, *facts(item))
    return digest([content, *told])


def facts(product: Product) -> tuple[str, ...]:
    """Attributes as a store has them: "color=red"."""
    return tuple(f"{name}={value}" for name, values in product.attributes.items() for value in values)


def _record(item: Item | Any, own: str, thumbnail: bytes | None) -> Record:
    if isinstance(item, Product):
        known = (item.id, item.title, item.class_name, item.language, item.country, facts(item), thumbnail)
        return Record(own, "product", *known)
    if isinstance(item, Query):
        return Record(own, "query", item.id, class_name=item.class_name, language=item.language)
    return Record(own, "messages")
