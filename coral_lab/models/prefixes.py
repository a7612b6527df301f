"""What the text model makes of the last places of its prompts, without work that nobody sees.

Only the last layer's last places are worked out (`last_layer.py`), and what several rows begin with is read
once for them: it looks at nothing after it, so its keys and values are the same in every row. Of coral-mini's
products these are two tokens in three, the system's turn and the instruction's first words; of the orders of
one query also whole references, pictures included. It pays at every size: orders of a query take a fifth to a
third longer without it, from the 3B's widths down (benchmarks/quick_path.py).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, DynamicCache

from coral_lab.models.forward import call_cost, forward, tokenize
from coral_lab.models.inputs import Prompt
from coral_lab.models.last_layer import only_last
from coral_lab.models.model import Model
from coral_lab.models.pixels import key
from coral_lab.models.vision import Vision


def forward_last(
    model: Model, prompts: Sequence[Prompt], vision: Vision, batch: BatchEncoding, count: int = 1
) -> Float[Tensor, "row place dim"]:
    """The last `count` states of each row (at most all) after the final norm: `forward.forward`'s own, but
    for rounding.

    `batch` is as `tokenize` makes it. A row shorter than `count` begins with states of its padding, which
    mean nothing. A model that is not `quick` reads everything.
    """
    if not model.quick:
        return forward(model, prompts, vision, batch)[:, -count:]
    rows = _rows(model, prompts, vision, batch)
    order: list[int] = []
    states: list[Tensor] = []
    cache = DynamicCache(config=model.network.model.language_model.config)
    with only_last(model.network.model.language_model, count):
        for call in _calls(rows, count, call_cost(model)):
            held = _chosen(cache, call.held)
            states_here = _forward(model, rows, call, held)
            if call.end is None:
                states.append(states_here[:, -count:])
                order += call.rows
            else:
                cache = held
    return states[0] if len(states) == 1 else _put_back(states, order)  # one has all rows, in order


@dataclass(frozen=True)
class _Tokens:
    """Prompts from their first token on; what stands after a row's `lengths` means nothing.

    In `symbols` a picture's tokens are -1 for the first of the pictures, -2 for the second, …; `pictures` are
    each row's features, and the place of the first.
    """

    ids: Int[Tensor, "row token"]
    symbols: Int[Tensor, "row token"]
    positions: Int[Tensor, "3 row token"]
    lengths: Int[Tensor, " row"]
    pictures: list[list[tuple[int, Float[Tensor, "_ dim"]]]]

    def alike(self, own: Sequence[int], at: int, count: int) -> int:
        """How many tokens from `at` on these rows have in common, none of a row's last `count` among them."""
        some = self.symbols[own, at : max(at, int(self.lengths[own].min()) - count)]
        return int((some == some[0]).all(0).int().cumprod(0).sum())


def _rows(model: Model, prompts: Sequence[Prompt], vision: Vision, batch: BatchEncoding) -> _Tokens:
    mask = batch["attention_mask"].bool()
    positions, _ = model.network.model.get_rope_index(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        batch.get("image_grid_thw"),
        attention_mask=batch["attention_mask"],
    )
    numbers = {k: -1 - n for n, k in enumerate(vision.features)}
    symbols, pictures = batch["input_ids"].clone(), []
    for i, prompt in enumerate(prompts):
        keys = list(map(key, prompt.pictures))
        features = [vision.features[k] for k in keys]
        sizes = [len(own) for own in features]
        runs = (symbols[i][mask[i]] == model.processor.image_token_id).nonzero()[:, 0].split(sizes)
        pictures.append([(int(run[0]), own) for run, own in zip(runs, features, strict=True)])
        own = [numbers[k] for k, size in zip(keys, sizes, strict=True) for _ in range(size)]
        symbols[i, symbols[i] == model.processor.image_token_id] = torch.tensor(own, dtype=torch.long)

    def aligned(values: Tensor) -> Tensor:
        return pad_sequence([row[real] for row, real in zip(values, mask, strict=True)], batch_first=True)

    positions = torch.stack([aligned(axis) for axis in positions])
    return _Tokens(aligned(batch["input_ids"]), aligned(symbols), positions, mask.sum(1), pictures)


@dataclass(frozen=True)
class _Call:
    """One call: `rows` from `at` to `end`, or each to its own. What stands before is in rows `held` of the
    cache, which is that of the last call with an `end`.
    """

    rows: list[int]
    held: list[int]
    at: int
    end: int | None = None


def _calls(rows: _Tokens, count: int, cost: int) -> Iterator[_Call]:
    """Groups of rows that begin alike, level by level: one of a group stands for all up to where they part,
    if that saves as many tokens as one more call costs.
    """
    at, groups = 0, [(list(range(len(rows.lengths))), 0)]
    while groups:
        alike = [rows.alike(own, at, count) for own, _ in groups]
        worth = [size * (len(own) - 1) >= cost for size, (own, _) in zip(alike, groups, strict=True)]
        if not all(worth):
            ends = sorted((i, held) for n, (own, held) in enumerate(groups) if not worth[n] for i in own)
            yield _Call([i for i, _ in ends], [held for _, held in ends], at)
        going = list(compress(groups, worth))
        end = at + min(compress(alike, worth), default=0)
        if going:
            yield _Call([own[0] for own, _ in going], [held for _, held in going], at, end)
        groups, at = list(_parted(rows, [own for own, _ in going], end)), end


def _parted(rows: _Tokens, groups: Sequence[Sequence[int]], at: int) -> Iterator[tuple[list[int], int]]:
    """The groups' rows by the token that stands at `at`, with the number of the group they come from."""
    for number, own in enumerate(groups):
        by_next = defaultdict(list)
        for i in own:
            by_next[int(rows.symbols[i, at])].append(i)
        yield from ((some, number) for some in by_next.values())


def _chosen(cache: DynamicCache, places: list[int]) -> DynamicCache:
    """A cache of these rows of another one, which stays as it is."""
    found = copy(cache)
    found.layers = [copy(layer) for layer in cache.layers]
    first: Any = cache.layers[0] if cache.layers else None
    if first is not None and first.get_seq_length() and len(first.keys) == 1:
        # Mostly. Its gradient is one sum, not one row added after the other.
        found.batch_repeat_interleave(len(places))
    else:
        found.batch_select_indices(torch.tensor(places))
    return found


def _forward(model: Model, rows: _Tokens, call: _Call, cache: DynamicCache) -> Float[Tensor, "row token dim"]:
    """The text model's states of a call, padded on the left."""
    own, at = call.rows, call.at
    ends = torch.full((len(own),), call.end) if call.end else rows.lengths[own]
    width = int(ends.max()) - at
    tokens = ends[:, None] - width + torch.arange(width)
    real, tokens = tokens >= at, tokens.clamp(min=0)
    ids, positions = (
        rows.ids[own].gather(1, tokens),
        rows.positions[:, own].gather(2, tokens.expand(3, -1, -1)),
    )
    hidden = model.network.get_input_embeddings()(ids.to(model.device))
    shown = [
        features[max(0, at - first) : max(0, stop - first)]
        for i, stop in zip(own, ends.tolist(), strict=True)
        for first, features in rows.pictures[i]
    ]
    if shown:
        is_picture = (real & (ids == model.processor.image_token_id))[..., None].to(model.device)
        hidden = hidden.masked_scatter(is_picture, torch.cat(shown).to(hidden.dtype))
    mask = None if real.all() else torch.cat([torch.ones(len(own), at), real], 1).long().to(model.device)
    output = model.network.model.language_model(
        inputs_embeds=hidden,
        attention_mask=mask,
        position_ids=positions.to(model.device),
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
    )
    return output.last_hidden_state


def by_length(prompts: Sequence[Prompt], chunk: int = 32) -> Iterator[list[int]]:
    """Places of prompts of like length, `chunk` at a time: padding is work for nothing."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].pictures), len(prompts[i].text)))
    yield from (order[at : at + chunk] for at in range(0, len(order), chunk))


def last_states(
    model: Model, prompts: Sequence[Prompt], vision: Vision, chunk: int = 32
) -> Float[Tensor, "prompt dim"]:
    """h_eos of each prompt, in their order; those of like length are read together, `chunk` at a time."""
    order, rows = [], []
    for places in by_length(prompts, chunk):
        some = [prompts[i] for i in places]
        rows.append(forward_last(model, some, vision, tokenize(model, some, vision))[:, -1])
        order += places
    return _put_back(rows, order)


def _put_back(parts: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """The parts' rows together, `order` being the place of each."""
    back = torch.empty(len(order), dtype=torch.long)
    back[order] = torch.arange(len(order))
    return torch.cat(list(parts))[back.to(parts[0].device)]
