"""Small changes to processed pictures while training, so that few pictures teach as many would."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHANNELS = 3
REACH = 4
"""Pixels that a picture is moved by at most."""


def shift(
    values: Float[Tensor, "patch 1176"],
    grids: Int[Tensor, "picture 3"],
    by: Int[Tensor, "picture 2"],
    merge: int,
    patch: int,
) -> Float[Tensor, "patch 1176"]:
    """Move each picture `by` pixels in y and x, its edge repeated.

    `values` are as Qwen2-VL's image processor lays them out: (height, width) in blocks of `merge` x `merge` patches,
    each patch (channel, time, y, x). Pictures of several sizes in one batch are moved size by size.
    """
    moved = torch.empty_like(values)
    owner = torch.arange(len(grids)).repeat_interleave(grids.prod(-1))
    for grid in grids.unique(dim=0):
        pictures = (grids == grid).all(-1)
        rows = pictures[owner]
        _, height, width = grid.tolist()
        blocks = (
            -1,
            height // merge,
            width // merge,
            merge,
            merge,
            CHANNELS,
            values.shape[1] // CHANNELS // patch**2,
        )
        whole = values[rows].view(*blocks, patch, patch).permute(0, 5, 6, 1, 3, 7, 2, 4, 8)
        image = _move(whole.reshape(len(whole), -1, height * patch, width * patch), by[pictures])
        moved[rows] = image.view(whole.shape).permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(-1, values.shape[1])
    return moved


def _move(
    images: Float[Tensor, "picture channel y x"], by: Int[Tensor, "picture 2"]
) -> Float[Tensor, "picture channel y x"]:
    count, _, height, width = images.shape
    y, x = torch.arange(height) - by[:, :1], torch.arange(width) - by[:, 1:]
    y, x = y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]
    return images[torch.arange(count)[:, None, None], :, y, x].permute(0, 3, 1, 2)
