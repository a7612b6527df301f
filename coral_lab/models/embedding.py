"""Prompts to embeddings, batch by batch: the quick path, and a plain one that asks transformers for nothing
private.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from coral_lab.errors import ItemError
from coral_lab.models.forward import call_cost, normalised
from coral_lab.models.inputs import Prompt
from coral_lab.models.loading import Model
from coral_lab.models.pixels import as_on_the_card

log = logging.getLogger(__name__)

WINDOW = 16
"""Batches that are sorted by length together."""

TOKENS, CPU_TOKENS = 2**14, 2**11
"""Tokens of a batch at most, padding included, unless one item is longer. A CPU gains nothing from more of
them.
"""

Refuse = Callable[[int, ItemError], None]
Embedded = Iterator[tuple[list[int], Float32[np.ndarray, "row dim"]]]


def embed(
    model: Model, prompts: Mapping[int, Prompt], count: int, todo: set[int], batch_size: int, refuse: Refuse
) -> Embedded:
    """Places and embeddings of the prompts `todo`, of `count` items in all; what cannot be used is given to
    `refuse`.

    What is missing of a window is batched as if it had never been stopped: a run commits whole batches in
    this same order. Out of memory on a GPU halves the batch, with a warning.
    """
    window = batch_size * WINDOW
    windows = [[i for i in range(at, min(at + window, count)) if i in todo] for at in range(0, count, window)]
    yield from (_quickly if model.quick else _plainly)(model, prompts, windows, batch_size, refuse)


def _quickly(
    model: Model, prompts, windows: Sequence[list[int]], batch_size: int, refuse: Refuse
) -> Embedded:
    from coral_lab.models import batching

    tokens = CPU_TOKENS if model.device.type == "cpu" else TOKENS
    bounds = batching.Bounds(batch_size, tokens, call_cost(model))
    for batch in batching.plan(model, prompts, windows, bounds):
        waiting = list(batch.parts(bounds))
        while waiting:
            some, *rest = waiting
            try:
                yield some.places, _embed(model, some)
                waiting = rest
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                _give_up_half(len(some))
                half = some.part(range((len(some) + 1) // 2, len(some))).tokens
                bounds = replace(bounds, tokens=half)
                waiting = [part for whole in waiting for part in whole.parts(bounds)]
            except ItemError as error:  # a text that is too long
                if len(some) == 1:
                    refuse(some.places[0], error)
                    waiting = rest
                else:
                    waiting = [*some.parts(replace(bounds, count=1)), *rest]
        batching.forget(batch)
        for i, reason in batch.refused:  # at last, so that the others of its batch are kept
            refuse(i, reason)


def _embed(model: Model, batch) -> Float32[np.ndarray, "row dim"]:
    from coral_lab.models.batching import vision_of_batch
    from coral_lab.models.prefixes import last_states

    with model.turn:
        states = last_states(model, batch.prompts, vision_of_batch(model, batch), len(batch))
    return normalised(states).cpu().numpy()


def _plainly(
    model: Model, prompts, windows: Sequence[list[int]], batch_size: int, refuse: Refuse
) -> Embedded:
    """One call of processor and network a batch, as on the model card; items of like length together."""
    for window in windows:
        order = sorted(window, key=lambda i: (len(prompts[i].pictures), len(prompts[i].text)))
        waiting = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        while waiting:
            some, *rest = waiting
            try:
                yield some, _as_on_the_card(model, [prompts[i] for i in some])
                waiting = rest
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                _give_up_half(len(some))
                waiting = [some[: len(some) // 2], some[len(some) // 2 :], *rest]
            except ItemError as error:
                if len(some) == 1:
                    refuse(some[0], error)
                    waiting = rest
                else:
                    waiting = [*([i] for i in some), *rest]


def _as_on_the_card(model: Model, prompts: Sequence[Prompt]) -> Float32[np.ndarray, "prompt dim"]:
    """The model card's own code for several prompts; padded on the left, so that the last token is the
    last.
    """
    pictures = [(picture, prompt.name) for prompt in prompts for picture in prompt.pictures]
    patch = model.processor.image_processor.patch_size
    images = [as_on_the_card(*pair, patch) for pair in pictures]
    inputs: Any = model.processor(
        text=[prompt.text for prompt in prompts],
        images=images or None,
        padding=True,
        return_tensors="pt",
        **model.family.pictures,
    )
    longest = model.longest
    for prompt, mask in zip(prompts, inputs["attention_mask"], strict=True):
        if mask.sum() > longest:
            raise ItemError(
                prompt.name, f"is {mask.sum():,} tokens long and the model reads {longest:,}; shorten it"
            )
    with model.turn:
        output = model.network.model(**inputs.to(model.device), use_cache=False, return_dict=True)
    return normalised(output.last_hidden_state[:, -1]).cpu().numpy()


def _give_up_half(count: int) -> None:
    torch.cuda.empty_cache()
    log.warning("out of GPU memory with %d items; going on with %d at a time", count, count // 2)
