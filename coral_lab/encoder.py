"""Embeddings of products, queries and raw chat messages, in any mix, independent of how they are batched."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from tqdm.auto import tqdm

from coral_lab.inputs import Item, Prompt, embed, prompt, see
from coral_lab.interleaved import Format, Product, Query
from coral_lab.models import Model

log = logging.getLogger(__name__)

WINDOW = 16
"""Batches that are sorted by length together, and whose pictures are looked at once."""


def encode(
    model: Model,
    items: Item | Iterable[Item | Any],
    *,
    format: str | Format = "seq",
    batch_size: int = 32,
    progress: bool | None = None,
) -> Float32[np.ndarray, "item dim"]:
    """L2-normalised embeddings in the order given; one row for a single item.

    An item is a Product, a Query, or chat messages as the model card builds them; `format` is how queries are
    worded. A progress bar shows by default from four batches on. Out of memory on a GPU halves the batch, with a
    warning. Raises ItemError naming the item that cannot be used.
    """
    prompts = [prompt(model, item, format, f"item {i}") for i, item in enumerate(_as_items(items))]
    rows = np.empty((len(prompts), model.dim), np.float32)
    show = progress if progress is not None else len(prompts) >= 4 * batch_size
    with (
        torch.inference_mode(),
        tqdm(total=len(prompts), desc="encode", unit="item", disable=not show) as bar,
    ):
        for start in range(0, len(prompts), batch_size * WINDOW):
            window = range(start, min(start + batch_size * WINDOW, len(prompts)))
            # Like lengths together: padding is work for nothing.
            order = sorted(window, key=lambda i: (len(prompts[i].pictures), len(prompts[i].text)))
            while order:
                done = _encode_some(model, [prompts[i] for i in order], batch_size, bar)
                rows[order[: len(done)]] = done
                order = order[len(done) :]
                if order:
                    batch_size = max(1, batch_size // 2)
    return rows


def _as_items(items: Item | Iterable[Item | Any]) -> list:
    single = isinstance(items, Product | Query | dict)
    if (
        isinstance(items, list | tuple)
        and items
        and all(isinstance(item, dict) and "role" in item for item in items)
    ):
        single = True  # one conversation, as the card's `query`
    return [items] if single else list(items)


def _encode_some(model: Model, prompts: Sequence[Prompt], batch_size: int, bar) -> np.ndarray:
    """Embeddings of the first prompts: all of them, or those that fitted before memory ran out."""
    done: list[np.ndarray] = []
    try:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            done.append(embed(model, batch, see(model, batch)).cpu().numpy())
            bar.update(len(batch))
    except torch.OutOfMemoryError:
        if batch_size == 1:
            raise
        torch.cuda.empty_cache()
        log.warning("out of GPU memory with batch_size %d; going on with %d", batch_size, batch_size // 2)
    return np.concatenate(done) if done else np.empty((0, model.dim), np.float32)
