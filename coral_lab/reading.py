"""What the text model makes of the last places of its prompts, without work that nobody sees. Training reads this way.

Only the last layer's last places are worked out (`last_layer.py`), and what all rows begin with, the system's turn and
the instruction's first words, is read once for all of them: it looks at nothing after it, so its keys and values are the
same in every row. Of coral-mini's products these are two tokens in three.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import BatchEncoding, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from coral_lab.inputs import Prompt, Vision, tokenize
from coral_lab.last_layer import only_last
from coral_lab.models import Model
from coral_lab.pixels import key


def read_last(
    model: Model, prompts: Sequence[Prompt], vision: Vision, batch: BatchEncoding, count: int = 1
) -> Float[Tensor, "row place dim"]:
    """The last `count` states of each row (at most all) after the final norm: `inputs.read`'s own, but for rounding.

    `batch` is as `tokenize` makes it. A row shorter than `count` begins with states of its padding, which mean nothing.
    """
    network, device = model.network.model, model.device
    ids, mask, width = batch["input_ids"], batch["attention_mask"], batch["input_ids"].shape[1]
    start = width - mask.sum(-1, keepdim=True)
    shared = _shared(ids, start, model.processor.image_token_id, count)
    # A row's padding stands behind what it shares: [shared, padding, own].
    places = torch.arange(width)
    ids = torch.where(places < shared, ids[start.argmin()], ids)
    mask = ((places < shared) | (places >= start + shared)).long()
    types = (ids == model.processor.image_token_id).int() * mask
    positions, _ = network.get_rope_index(ids, types, batch.get("image_grid_thw"), attention_mask=mask)
    ids, mask, positions = ids.to(device), mask.to(device), positions.to(device)
    features = tuple(vision.features[key(picture)] for prompt in prompts for picture in prompt.pictures)
    pictures = (
        {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}
        if features
        else {}
    )
    cache = DynamicCache(config=model.network.config.text_config)
    options = {"past_key_values": cache, "use_cache": True, "return_dict": True}
    with only_last(network.language_model, count):
        if shared:
            network.language_model(ids[:1, :shared], position_ids=positions[:, :1, :shared], **options)
            cache.batch_repeat_interleave(len(ids))
        own = network(ids[:, shared:], mask, position_ids=positions[:, :, shared:], **options, **pictures)
    return own.last_hidden_state[:, -count:]


def _shared(ids: Int[Tensor, "row token"], start: Int[Tensor, "row 1"], image_token: int, count: int) -> int:
    """How many tokens all rows begin with, no image token and none of a row's last `count` among them."""
    longest = max(0, ids.shape[1] - int(start.max()) - count)
    heads = ids.gather(1, start + torch.arange(longest))
    same = (heads == heads[0]).all(0) & (heads[0] != image_token)
    return int(same.int().cumprod(0).sum())


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
        rows.append(read_last(model, some, vision, tokenize(model, some, vision))[:, -1])
        order += places
    back = torch.empty(len(order), dtype=torch.long)
    back[order] = torch.arange(len(order))
    return torch.cat(rows)[back.to(model.device)]
