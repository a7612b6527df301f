"""Vectors that were made elsewhere, beside models: of one that needs code from its repository, another
release of transformers, or a paid API. They are of a dataset's own products and queries alone.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from coral_lab.errors import ItemError
from coral_lab.images import digest, told_identity
from coral_lab.models.inputs import conversation
from coral_lab.models.protocol import Conversation
from coral_lab.prompts import Format, Pasted, format_name
from coral_lab.query import Dataset, Product, Query
from coral_lab.sources.border import brief
from coral_lab.store.vector_files import VectorTable, read_vectors

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of a dataset's products and queries in place of a model: `embed` looks them up.

    `format` is how queries were worded when they were made. An item that is edited, or worded otherwise, has
    no vector: it is refused, never given another's.
    """

    name: str
    dataset: Dataset = field(repr=False)
    numbers: Float32[np.ndarray, "row dim"] = field(repr=False)
    row_of: Mapping[tuple[str, str], int] = field(repr=False)
    format: str | Format = "seq"
    fingerprint: str = ""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.numbers.shape[1])

    def embed(self, conversations: Sequence[Conversation]) -> Float32[np.ndarray, "conversation dim"]:
        """The vector of each, L2-normalised. Raises ItemError for what has none."""
        return self.numbers[[self._row(said) for said in conversations]]

    def _row(self, said: Conversation) -> int:
        if not isinstance(said.item, Product | Query):
            raise ItemError(
                said.name, f"{self.name} has vectors of products and queries, and none of messages"
            )
        own = self._own(said.item)
        row = self.row_of.get((said.kind, said.item.id))
        if own is None or row is None:
            problem = f"{self.name} has no vector of it" if own else f"is not in {self.dataset.name}"
            raise ItemError(said.name, f"{problem}; make one where the others were made, or leave it out")
        if not _same(said, conversation(own, self.format)):
            worded = format_name(self.format)
            problem = f"is edited or worded otherwise, and {self.name} has it as it is, in format {worded!r}"
            raise ItemError(said.name, f"{problem}; make vectors of the edited ones too")
        return row

    def _own(self, item: Product | Query) -> Product | Query | None:
        return self.dataset.by_id.get(item.id) if isinstance(item, Product) else self._queries.get(item.id)

    @cached_property
    def _queries(self) -> Mapping[str, Query]:
        return {query.id: query for query in self.dataset.queries}

    def __repr__(self) -> str:
        kinds = [kind for kind, _ in self.row_of]
        counts = f"{kinds.count('product'):,} products and {kinds.count('query'):,} queries"
        return f"Vectors({self.name!r}: {counts} of {self.dataset.name}, {self.dim} dimensions)"


def vectors(
    file: str | Path,
    dataset: Dataset,
    queries: str | Path | None = None,
    *,
    ids: str | Path | Sequence[str] | None = None,
    name: str | None = None,
    format: str | Format = "seq",
) -> Vectors:
    """Vectors of a dataset's products from a file, and of its queries from `queries` or the same file.

    A parquet file or a LanceDB folder has a column of ids and one of vectors, and may say in a column `kind`
    which are a "product" and which a "query"; otherwise an id is of what has that id. A .npy or .safetensors
    has rows, whose `ids` are a list, or a file with one a line or a JSON list: by default `NAME.ids.txt` or
    `NAME.ids.json` beside it; a .npz has both. `format` is how queries were worded. (Seven parameters: two
    files, whose they are, and how they were made.) Nothing is unpickled, and rows without ids are refused:
    their order is anybody's guess. A warning counts what has no vector. Raises ItemError for an id that
    stands twice or is of both kinds and a vector that is zero or not finite, and ValueError for a file
    without ids or vectors, two files of different dimensions, and one of which the dataset has no id.
    """
    name = name or Path(file).stem
    tables = [_of_kind(read_vectors(Path(file), ids), "product" if queries else None, dataset)]
    tables += [_of_kind(read_vectors(Path(queries)), "query", dataset)] if queries else []
    widths = {table.numbers.shape[1] for table in tables}
    if len(widths) > 1:
        raise ValueError(
            f"{file} and {queries} have vectors of lengths {widths}; give two files by one model"
        )
    keys = [key for table in tables for key in zip(table.kinds or (), table.ids, strict=True)]
    numbers = np.concatenate([table.numbers for table in tables])
    row_of = _rows(keys, numbers, dataset)
    _say_missing(row_of, len(keys), name, dataset)
    print_ = digest([f"{numbers.shape} {name} {format_name(format)}", numbers.tobytes(), repr(keys)])
    return Vectors(name, dataset, numbers, row_of, format, print_)


def _of_kind(table: VectorTable, kind: str | None, dataset: Dataset) -> VectorTable:
    """With the kind of each row: given, said by the file, or told by the dataset's ids."""
    if kind is not None and table.kinds is None:
        return replace(table, kinds=(kind,) * len(table.ids))
    if table.kinds is not None:
        return table
    queries = {query.id for query in dataset.queries}
    both = next((id for id in table.ids if id in queries and id in dataset.by_id), None)
    if both is not None:
        problem = f"is the id of a product and of a query of {dataset.name}"
        raise ItemError(f"id {brief(both)}", f"{problem}; give a file for each, or a column kind")
    return replace(table, kinds=tuple("query" if id in queries else "product" for id in table.ids))


def _rows(
    keys: Sequence[tuple[str, str]], numbers: Float32[np.ndarray, "row dim"], dataset: Dataset
) -> dict[tuple[str, str], int]:
    """The row of each item of the dataset."""
    known = {("product", id) for id in dataset.by_id} | {("query", query.id) for query in dataset.queries}
    row_of: dict[tuple[str, str], int] = {}
    for row, key in enumerate(keys):
        if key in row_of:
            raise ItemError(" ".join(key), "has two vectors; keep one")
        if key in known:
            row_of[key] = row
    if not row_of:
        found = brief(keys[0][1]) if keys else "none"
        problem = f"none of {len(keys):,} vectors is of {dataset.name}: the first id is {found}"
        raise ValueError(f"{problem}; give the dataset that they were made of")
    lengths = np.linalg.norm(numbers, axis=1)
    wrong = [key for key, row in row_of.items() if not (np.isfinite(lengths[row]) and lengths[row] > 0)]
    if wrong:
        length = lengths[row_of[wrong[0]]]
        raise ItemError(" ".join(wrong[0]), f"has a vector of length {length:.3g}; make it anew")
    return row_of


def _say_missing(row_of: Mapping[tuple[str, str], int], count: int, name: str, dataset: Dataset) -> None:
    kinds = [kind for kind, _ in row_of]
    wanted = {"product": len(dataset.products), "query": len(dataset.queries)}
    counts = [f"{kinds.count(kind):,} of {all_:,} for kind {kind}" for kind, all_ in wanted.items()]
    spare = count - len(row_of)
    if spare or len(row_of) < sum(wanted.values()):
        log.warning("%s has %s, and %d of nothing in %s", name, ", ".join(counts), spare, dataset.name)


def _same(a: Conversation, b: Conversation) -> bool:
    """Whether two conversations say and show the same; of pictures what can be told without opening them."""
    if a.text != b.text or len(a.pictures) != len(b.pictures):
        return False
    kinds = [[entry["type"] for turn in own.chat for entry in turn["content"]] for own in (a, b)]
    pairs = zip(a.pictures, b.pictures, strict=True)
    return kinds[0] == kinds[1] and all(x is y or _told(x) == _told(y) is not None for x, y in pairs)


def _told(picture: Any) -> str | None:
    return picture.identity if isinstance(picture, Pasted) else told_identity(picture)
