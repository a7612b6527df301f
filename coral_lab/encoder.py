"""Embeddings of products, queries and raw chat messages, in any mix, independent of how they are batched.

With a store they are kept as they are made: what is there already is read, and a run that was killed goes on
with the same batches that it would have had.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32
from tqdm.auto import tqdm

from coral_lab.errors import ItemError, NotFiniteError
from coral_lab.models.embedding import embed
from coral_lab.models.inputs import Prompt, conversation, prompt_of
from coral_lab.models.layers import ALL, AtLayer
from coral_lab.models.model import Model, network_of
from coral_lab.models.protocol import Conversation, Embedder, Item, fingerprint_of
from coral_lab.models.wording import family_of, unread
from coral_lab.prompts import Format
from coral_lab.query import Product, Query
from coral_lab.sources.border import brief

if TYPE_CHECKING:
    from coral_lab.store.keeping import Kept

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to encode: what travels together through encoding, indexing, evaluating and sweeps.

    A batch has at most `batch_size` items, fewer if they are long. `progress` shows a bar; by default from
    four batches on. `store` is a folder or an object store's address, where embeddings are kept and found
    again: by default where $CORAL_LAB_STORE says, and "" for nowhere. `on_error` "skip" leaves out and lists
    what cannot be used, "raise" stops. Raises ValueError for other values.
    """

    batch_size: int = 32
    progress: bool | None = None
    store: str | os.PathLike | None = None
    on_error: str = "raise"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.on_error not in ("raise", "skip"):
            raise ValueError(
                f"batch_size is {self.batch_size} and on_error {self.on_error!r}; use 1 or more, and raise "
                "or skip"
            )

    @property
    def place(self) -> str:
        """Where embeddings are kept; "" for nowhere."""
        return os.fspath(os.environ.get("CORAL_LAB_STORE", "") if self.store is None else self.store)


UNKEPT = Settings(progress=False, store="")
"""For single items that are made again in a moment: no bar, nothing kept."""


@dataclass(frozen=True)
class Encoded:
    """`embeddings` in the items' order; `skipped` are (place, error) of items that could not be used: NaN."""

    embeddings: Float32[np.ndarray, "item dim"]
    skipped: tuple[tuple[int, ItemError], ...]


def encode(
    model: Embedder,
    items: Item | Iterable[Item | Any],
    format: str | Format = "seq",
    settings: Settings = Settings(),
    *,
    layer: int | str | None = None,
) -> Float32[np.ndarray, "item dim"] | Float32[np.ndarray, "layer item dim"]:
    """L2-normalised embeddings [item, dim] in the order given; one row for a single item.

    An item is a Product, a Query, or chat messages as the model card builds them; `format` is how queries are
    worded. A picture that several items show is looked at once. Out of memory on a GPU halves the batch, with
    a warning. `layer` reads a loaded checkpoint earlier (`layers.py`): at layer n, or at "all" from 0 to the
    last, [layer, item, dim]. Raises ItemError naming the item that cannot be used; with `on_error` "skip" its
    row is NaN and a warning lists it.
    """
    read = model if layer is None else AtLayer(network_of(model, "a layer's states"), layer)
    found = encode_all(read, items, format, settings)
    if found.skipped:
        listed = "\n".join(f"  {error}" for _, error in found.skipped)
        count = len(found.embeddings)
        log.warning("%d of %d items skipped, their rows are NaN:\n%s", len(found.skipped), count, listed)
    return found.embeddings if layer != ALL else _apart(found.embeddings, model.dim)


def _apart(
    embeddings: Float32[np.ndarray, "item numbers"], dim: int
) -> Float32[np.ndarray, "layer item dim"]:
    """Each layer's embeddings, which came side by side."""
    layers = embeddings.reshape(len(embeddings), -1, dim).swapaxes(0, 1)
    return layers / np.linalg.norm(layers, axis=-1, keepdims=True)


def encode_all(
    model: Embedder,
    items: Item | Iterable[Item | Any],
    format: str | Format = "seq",
    settings: Settings = Settings(),
    *,
    keep: "Kept | None" = None,
) -> Encoded:
    """As `encode`, with what was skipped as data. `keep` takes the place of the settings' store."""
    items = _as_items(items)
    skipped: dict[int, ItemError] = {}

    def refuse(i: int, error: ItemError) -> None:
        if settings.on_error == "raise":
            raise error
        skipped[i] = error

    if left := unread(items, format, family_of(model)):
        log.warning("%s", left)
    asked = _attempt(items, lambda i, item: _asked(model, item, format, f"item {i}"), refuse)
    embeddings = np.full((len(items), model.dim), np.nan, np.float32)
    keeper = None
    if (keep or settings.place) and _can_be_kept(model):
        from coral_lab.store.keeping import Keeper, table_of

        keeper = Keeper(keep or table_of(settings.place, model), items, asked, model)
        keeper.look_up(embeddings, refuse)
    todo = {i for i in asked if i not in skipped and not (keeper and i in keeper.present)}
    show = settings.progress if settings.progress is not None else len(todo) >= 4 * settings.batch_size
    bar = progress_bar(show, total=len(items), initial=len(items) - len(todo), desc="encode", unit="item")
    with torch.inference_mode(), bar:
        try:
            for some, done in embed(model, asked, len(items), todo, settings.batch_size, refuse):
                _check_finite(model, [asked[i].name for i in some], done)
                embeddings[some] = done
                bar.update(len(some))
                if keeper:
                    keeper.add(some, embeddings)
        finally:  # what is done is kept, whatever went wrong after
            if keeper:
                keeper.close(embeddings)
    return Encoded(embeddings, tuple(sorted(skipped.items())))


def _asked(model: Embedder, item: Item | Any, format: str | Format, name: str) -> Prompt | Conversation:
    """An item as the model's family words it and, of a model that was loaded here, its chat template."""
    said = conversation(item, format, name, family_of(model))
    return prompt_of(model, said) if isinstance(model, Model) else said


def _can_be_kept(model: Embedder) -> bool:
    if isinstance(model, Model) or fingerprint_of(model) is not None:
        return True
    log.warning("%s has no fingerprint: its embeddings are not kept", brief(model.name))
    return False


def _check_finite(model: Embedder, names: Sequence[str], embeddings: Float32[np.ndarray, "item dim"]) -> None:
    """Nothing that is not a number is handed out or kept. Raises NotFiniteError naming items, dtype and
    the way out.
    """
    bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if not len(bad):
        return
    shown = ", ".join(names[i] for i in bad[:2])[:90] + (f" and {len(bad) - 2} more" if len(bad) > 2 else "")
    dtype = str(getattr(model, "dtype", "numbers")).removeprefix("torch.")
    way = "load it with dtype='bfloat16' or 'float32'" if dtype == "float16" else "its weights may be damaged"
    raise NotFiniteError(f"{shown}: the embedding is not finite in {dtype} by {model.name[-60:]!r}; {way}")


def progress_bar(show: bool, *items: Iterable, **options: Any) -> tqdm:
    """A tqdm bar if `show` and $TQDM_DISABLE does not say otherwise, which an argument would override."""
    return tqdm(*items, **options) if show else tqdm(*items, **options, disable=True)


def _as_items(items: Any) -> list:
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
