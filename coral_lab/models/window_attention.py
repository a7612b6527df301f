"""The vision tower's own sums in fewer calls: attention over many windows at once, patches projected by one
matmul.

On any implementation but FlashAttention, transformers runs Qwen2.5-VL's vision attention window by window in
a Python loop (`Qwen2_5_VLVisionAttention.forward`, transformers 5.23). Windows of one length do the same sum
as one batched call. Its patches do not overlap, so the convolution that projects them is a matrix product,
three times as fast on a CPU. A call takes three to nine in a hundred longer without the two, at every size
(benchmarks/quick_path.py).
"""

from types import MethodType

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from coral_lab.models.cpu_linear import linear

# transformers hands `cu_seqlens` only to implementations with "flash" in their name.
NAME = "windows_in_flash_layout"


def windows(module, query, key, value, attention_mask, scaling, dropout=0.0, *, cu_seq_lens_q, **_):
    """Attention within each window. `query`, `key`, `value` are [1, head, token, dim]; returns [1, token,
    head, dim].

    `cu_seq_lens_q` are the windows' ends, from 0 to the number of tokens. The parameters are those that
    transformers hands to an attention.
    """
    lengths = cu_seq_lens_q.diff()
    tensors = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [token, head, dim]
    if bool((lengths == lengths[0]).all()):
        return _attend(tensors, lengths[0].item(), scaling, dropout)[None], None
    output = torch.empty_like(tensors[0])
    length_of_token = lengths.repeat_interleave(lengths)
    for length in lengths.unique().tolist():
        tokens = (length_of_token == length).nonzero()[:, 0] if length else None
        if tokens is not None:
            output[tokens] = _attend([tensor[tokens] for tensor in tensors], length, scaling, dropout)
    return output[None], None


def _attend(tensors, length: int, scaling: float, dropout: float) -> torch.Tensor:
    query, key, value = (tensor.unflatten(0, (-1, length)).transpose(1, 2) for tensor in tensors)
    found = scaled_dot_product_attention(query, key, value, scale=scaling, dropout_p=dropout)
    return found.transpose(1, 2).flatten(0, 1)


AttentionInterface.register(NAME, windows)


def project_at_once(tower) -> None:
    """Let a vision tower project its patches [patch, channel · time · y · x] by one matrix product, in
    place.
    """
    tower.patch_embed.forward = MethodType(_project, tower.patch_embed)


def _project(embed, patches: torch.Tensor) -> torch.Tensor:
    weight = embed.proj.weight
    return linear(patches.to(weight.dtype), weight.flatten(1), embed.proj.bias)
