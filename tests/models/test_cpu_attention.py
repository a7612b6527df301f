"""Attention by matrix products is attention."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from coral_lab import encode, load
from coral_lab.models import cpu_attention
from coral_lab.models.model import Model

SCALE = 0.3


def tensors(rows=3, heads=4, keyheads=2, tokens=5, places=9, dim=8):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(rows, count, length, dim, generator=generator)
        for count, length in ((heads, tokens), (keyheads, places), (keyheads, places))
    )
    seen = torch.rand(rows, 1, tokens, places, generator=generator) < 0.6
    seen[..., 0] = True
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    return query.transpose(1, 2).contiguous().transpose(1, 2), key, value, mask


def expected(query, key, value, mask):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=SCALE).transpose(1, 2)


def module(keyheads=2, heads=4):
    return SimpleNamespace(num_key_value_groups=heads // keyheads, is_causal=True, training=False)


@pytest.mark.parametrize("largest", [2**26, 2 * 4 * 4 * 5 * 9, 4 * 4 * 5 * 9, 10])
@pytest.mark.parametrize("keyheads", [1, 2, 4])
def test_it_is_that_of_sdpa_however_many_rows_go_at_once(monkeypatch, largest, keyheads):
    monkeypatch.setattr(cpu_attention, "LARGEST", largest)
    query, key, value, mask = tensors(keyheads=keyheads)
    found, weights = cpu_attention.products(module(keyheads), query, key, value, mask, SCALE)
    torch.testing.assert_close(found, expected(query, key, value, mask))
    assert weights is None


def test_without_a_mask_and_for_single_tokens_it_is_sdpa():
    query, key, value, _ = tensors(places=5)
    causal = torch.where(torch.ones(5, 5).tril() > 0, 0.0, -torch.inf)[None, None]
    found, _ = cpu_attention.products(module(), query, key, value, None, SCALE)
    torch.testing.assert_close(found, expected(query, key, value, causal))
    query, key, value, mask = tensors(tokens=1)
    found, _ = cpu_attention.products(module(), query, key, value, mask, SCALE)
    torch.testing.assert_close(found, expected(query, key, value, mask))


def test_bfloat16_on_a_cpu_uses_it_and_is_as_close_as_eager_attention(
    random_folder, random_model, mixed_queries
):
    whole = encode(random_model, mixed_queries)
    models: dict[str, Model] = {}
    for attention in (None, "eager", "sdpa"):
        models[attention] = load(random_folder, device="cpu", dtype="bfloat16", attention=attention)
    assert models[None].attention == cpu_attention.NAME
    assert models["sdpa"].attention == "sdpa"
    assert random_model.attention == "sdpa"
    apart = {name: 1 - (encode(model, mixed_queries) * whole).sum(1).min() for name, model in models.items()}
    assert apart[None] < 1.5 * apart["eager"] + 1e-5
