"""The vision tower in fewer calls gives what transformers' own code gives, values and gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from coral_lab.mini import architecture
from coral_lab.models import window_attention

HEADS, DIM = 2, 4


def tensors(tokens: int, seed: int = 0) -> list[torch.Tensor]:
    """Query, key and value, [1, head, token, dim]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, HEADS, tokens, DIM, generator=generator).requires_grad_() for _ in range(3)]


def ends(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def one_by_one(query, key, value, lengths: list[int], scaling: float) -> torch.Tensor:
    windows = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat(
        [scaled_dot_product_attention(*window, scale=scaling) for window in windows], 2
    ).transpose(1, 2)


@pytest.mark.parametrize(
    "lengths",
    [[6], [1], [5, 5, 5], [1, 1, 1, 1], [4, 6], [4, 2, 4, 4, 1, 2], [3, 0, 3, 1]],
    ids=[
        "one window",
        "one token",
        "equal",
        "single tokens",
        "two lengths",
        "many lengths",
        "an empty window",
    ],
)
def test_windows_at_once_are_windows_one_by_one(lengths):
    inputs, scaling = tensors(sum(lengths)), 0.3
    expected = one_by_one(*inputs, lengths, scaling)
    found, weights = window_attention.windows(None, *inputs, None, scaling, cu_seq_lens_q=ends(lengths))
    assert weights is None
    assert found.shape == (1, sum(lengths), HEADS, DIM)
    torch.testing.assert_close(found, expected)

    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, pull), torch.autograd.grad(expected, inputs, pull), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_no_window_sees_another():
    query, key, value = tensors(7)
    before, _ = window_attention.windows(None, query, key, value, None, 0.5, cu_seq_lens_q=ends([3, 4]))
    changed = value.clone()
    changed[:, :, 3:] += 1
    after, _ = window_attention.windows(None, query, key, changed, None, 0.5, cu_seq_lens_q=ends([3, 4]))
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=0)
    torch.testing.assert_close(after[:, 3:], before[:, 3:] + 1)


@pytest.fixture(scope="module")
def tower():
    """coral-mini's vision tower with random weights, large enough to tell pictures apart."""
    config = architecture.untrained(["a bag"]).network.config
    tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(
        config.vision_config, attn_implementation="sdpa"
    ).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    return tower


@pytest.mark.parametrize(
    "grids",
    [[(6, 6)], [(16, 16)], [(10, 22)], [(2, 40)], [(6, 6)] * 4, [(6, 6), (16, 4), (10, 22), (2, 2)]],
    ids=[
        "one window",
        "four windows",
        "windows of several sizes",
        "a strip",
        "equal pictures",
        "mixed pictures",
    ],
)
def test_the_vision_tower_sees_the_same_with_it(tower, grids, monkeypatch):
    grid = torch.tensor([(1, *size) for size in grids])
    pixels = torch.randn(
        int(grid.prod(-1).sum()), 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0)
    )
    calls = []

    def counted(*args, **options):
        calls.append(args[0].shape)
        return scaled_dot_product_attention(*args, **options)

    monkeypatch.setattr(window_attention, "scaled_dot_product_attention", counted)
    with torch.inference_mode():
        expected = tower(pixels, grid).pooler_output
        assert not calls
        monkeypatch.setattr(tower.config, "_attn_implementation", window_attention.NAME)
        found = tower(pixels, grid).pooler_output
    assert len(calls) >= len(tower.blocks), "the tower did not use it"
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


def test_patches_projected_at_once_are_the_convolution(tower):
    patches = torch.randn(12, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    grid, weight = torch.tensor([(1, 2, 6)]), tower.patch_embed.proj.weight
    expected, states = tower.patch_embed(patches), tower(patches, grid).pooler_output
    window_attention.project_at_once(tower)
    found = tower.patch_embed(patches)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tower(patches, grid).pooler_output, states, rtol=1e-4, atol=1e-5)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (ours,), (theirs,) = (torch.autograd.grad(value, weight, pull) for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
