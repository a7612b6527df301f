"""Prompts and conversations to embeddings, batch by batch: the quick path, a plain one that asks transformers
for nothing private, and what a model of another kind does itself.
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
from coral_lab.models.inputs import Prompt, prompt_of
from coral_lab.models.model import Model
from coral_lab.models.pixels import as_on_the_card
from coral_lab.models.protocol import Conversation, Embedder, rows

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
    model: Embedder,
    asked: Mapping[int, Any],
    count: int,
    todo: set[int],
    batch_size: int,
    refuse: Refuse,
) -> Embedded:
    """Places and embeddings of what is `todo`, of `count` items in all; what cannot be used is given to
    `refuse`. A model that was loaded here is asked by prompts, another by conversations.

    What is missing of a window is batched as if it had never been stopped: a run commits whole batches in
    this same order. Out of memory on a GPU halves the batch, with a warning.
    """
    window = batch_size * WINDOW
    windows = [[i for i in range(at, min(at + window, count)) if i in todo] for at in range(0, count, window)]
    if not isinstance(model, Model):
        waiting = [
            window[at : at + batch_size] for window in windows for at in range(0, len(window), batch_size)
        ]
        yield from _in_turn(waiting, lambda some: rows(model, [asked[i] for i in some]), refuse)
    elif model.quick:
        yield from _quickly(model, asked, windows, batch_size, refuse)
    else:
        yield from _plainly(model, asked, windows, batch_size, refuse)


def embedded(
    model: Model, conversations: Sequence[Conversation], batch_size: int
) -> Float32[np.ndarray, "conversation dim"]:
    """What a loaded model makes of conversations, in their order. Raises ItemError for one that cannot be
    read.
    """
    asked = {i: prompt_of(model, said) for i, said in enumerate(conversations)}
    found = np.empty((len(asked), model.dim), np.float32)

    def refuse(_: int, error: ItemError) -> None:
        raise error

    with torch.inference_mode():
        for some, done in embed(model, asked, len(asked), set(asked), batch_size, refuse):
            found[some] = done
    return found


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
    waiting = []
    for window in windows:
        order = sorted(window, key=lambda i: (len(prompts[i].pictures), len(prompts[i].text)))
        waiting += [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    yield from _in_turn(waiting, lambda some: _as_on_the_card(model, [prompts[i] for i in some]), refuse)


def _in_turn(waiting: Sequence[list[int]], call: Callable[[list[int]], Any], refuse: Refuse) -> Embedded:
    """Batches of places by one call each, halved where memory runs out, and one by one where an item cannot
    be used.
    """
    waiting = list(waiting)
    while waiting:
        some, *rest = waiting
        try:
            yield some, call(some)
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
    images = [as_on_the_card(*pair, patch, model.family.straight) for pair in pictures]
    inputs: Any = model.processor(
        text=[prompt.text for prompt in prompts],
        images=images or None,
        padding=True,
        return_tensors="pt",
        **model.architecture.pictures,
    )
    longest = model.longest
    for prompt, mask in zip(prompts, inputs["attention_mask"], strict=True):
        if mask.sum() > longest:
            raise ItemError(
                prompt.name, f"is {mask.sum():,} tokens long and the model reads {longest:,}; shorten it"
            )
    if model.family.flat_positions:
        inputs["mm_token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with model.turn:
        output = model.network.model(**inputs.to(model.device), use_cache=False, return_dict=True)
    return normalised(output.last_hidden_state[:, -1]).cpu().numpy()


def _give_up_half(count: int) -> None:
    torch.cuda.empty_cache()
    log.warning("out of GPU memory with %d items; going on with %d at a time", count, count // 2)
