"""The text model's last layer at the last places only: nothing after it reads the others.

An embedding is one token's state, a lesson's loss that of its answer. The layer runs as it does in
generation, where new tokens meet the keys and values of those before them; here these come from the same
call. Of coral-mini's three layers this saves most of one, of twelve a tenth of the time, of the 3B's 36 some
three hundredths (benchmarks/quick_path.py).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


@contextmanager
def only_last(text_model: Any, count: int) -> Iterator[None]:
    """Inside, a Qwen2.5-VL text model works out the last `count` places of its last layer; other states are
    zero.

    Rows are padded on the left. Other threads' calls are left alone.
    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least the last place")
    thread, width = threading.get_ident(), 0

    def narrow(layer: Any, args: tuple, options: dict):
        nonlocal width
        if threading.get_ident() != thread:
            return None
        hidden, places, mask = args[0], options["position_embeddings"], options["attention_mask"]
        width, tail = hidden.shape[1], slice(-count, None)
        if mask is None and count > 1 and "flash" not in layer.self_attn.config._attn_implementation:
            # All rows are full. Without a mask SDPA would let the first of the last places see the first key
            # only.
            mask = torch.ones(width, width, dtype=torch.bool, device=hidden.device).tril()[None, None]
        keys, values = _keys_and_values(layer, hidden, places)
        if cache := options["past_key_values"]:
            keys, values = cache.update(keys, values, layer.self_attn.layer_idx)
        changed = {
            "attention_mask": mask[:, :, tail] if mask is not None and mask.ndim == 4 else mask,
            "position_embeddings": tuple(angles[:, tail] for angles in places),
            "past_key_values": _Whole(keys, values),
        }
        return (hidden[:, tail],), options | changed

    def widen(layer: nn.Module, args: tuple, output: Tensor):
        return pad(output, (0, 0, width - output.shape[1], 0)) if threading.get_ident() == thread else None

    last = text_model.layers[-1]
    with last.register_forward_pre_hook(narrow, with_kwargs=True), last.register_forward_hook(widen):
        yield


@dataclass(frozen=True)
class _Whole:
    """What a layer takes for its cache: the keys and values [row, head, token, dim] of all places."""

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


def _keys_and_values(layer: Any, hidden: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """As the layer's own attention makes them (`Qwen2_5_VLAttention.forward`, transformers 5.23)."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb  # a private name

    attention, hidden = layer.self_attn, layer.input_layernorm(hidden)
    keys, values = (
        project(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.k_proj, attention.v_proj)
    )
    return apply_rotary_pos_emb(keys, keys, *places)[1], values
