"""Text attention in bfloat16 on a CPU, by matrix products.

PyTorch's fused kernel multiplies bfloat16 no faster than float32 there (torch 2.14), a plain product does.
Scores are rounded to bfloat16 before the softmax, as in transformers' "eager" attention, which is slower
still. For processors with bfloat16 instructions: those without multiply it seven times as slowly as float32
(`loading.py` takes float32 there), and what this is worth was not measured on them.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

NAME = "bfloat16_products"
LARGEST = 2**26
"""Bytes of scores at a time; the fused kernel, which keeps none, takes a row that has more."""


def products(
    module,
    query: Float[Tensor, "row head token dim"],
    key: Float[Tensor, "row keyhead place dim"],
    value: Float[Tensor, "row keyhead place dim"],
    attention_mask: Float[Tensor, "row 1 token place"] | None,
    scaling: float,
    dropout: float = 0.0,
    **options,
) -> tuple[Float[Tensor, "row token head dim"], None]:
    """Softmax(query · key · scaling + mask) · value; SDPA's where that is better, see LARGEST.

    The parameters are those that transformers hands to an attention.
    """
    _, heads, tokens, _ = query.shape
    one = heads * tokens * key.shape[2] * query.element_size()
    if attention_mask is None or dropout or tokens == 1 or one > LARGEST:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    some = LARGEST // one
    parts = zip(*(tensor.split(some) for tensor in (query, key, value, attention_mask)), strict=True)
    found = [_attend(*part, scaling=scaling) for part in parts]
    return torch.cat(found).transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float) -> Tensor:
    """Heads that share their keys are one long list of queries: keys are multiplied as they are, not
    repeated.
    """
    own, theirs = query.reshape(key.shape[0] * key.shape[1], -1, key.shape[3]), key.flatten(0, 1)
    bias = mask[:, :, None].expand(-1, key.shape[1], query.shape[1] // key.shape[1], -1, -1)
    scores = torch.baddbmm(bias.reshape(*own.shape[:2], -1), own, theirs.transpose(1, 2), alpha=scaling)
    return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).view(query.shape)


AttentionInterface.register(NAME, products)
AttentionMaskInterface.register(NAME, eager_mask)
