"""Small changes to processed pictures while training, so that few pictures teach as many would."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from coral_lab.models.inputs import Prompt
from coral_lab.models.model import Model
from coral_lab.models.pixels import key
from coral_lab.models.vision import Change

CHANNELS = 3
REACH, ZOOM, TURN = 5, 0.12, 10
"""A picture is moved by so many pixels, enlarged by this share and turned by so many degrees at most, either
way.
"""


STILL = (0.0, 0.0, 1.0, 0.0)
"""The move that changes nothing."""


def draw_moves(count: int, generator: torch.Generator | None = None) -> Float[Tensor, "picture 4"]:
    """Random moves for so many pictures: pixels in y and x, zoom, degrees (counter-clockwise)."""
    return (2 * torch.rand(count, 4, generator=generator) - 1) * torch.tensor(
        [REACH, REACH, ZOOM, TURN]
    ) + torch.tensor(STILL)


Moves = Mapping[Hashable, Float[Tensor, " 4"]]
"""How each picture is moved, by `pixels.key`."""


def moves_for(prompts: Sequence[Prompt], generator: torch.Generator | None = None) -> Moves:
    """A small random move for each distinct picture, by the numbers of `generator` or torch's own."""
    keys = dict.fromkeys(key(picture) for prompt in prompts for picture in prompt.pictures)
    return dict(zip(keys, draw_moves(len(keys), generator), strict=True))


def moving(model: Model, moves: Moves | None) -> Change | None:
    """What `vision_of` takes to move pictures so; None for none."""
    if moves is None:
        return None
    processor = model.processor.image_processor

    def change(keys, values, grids):
        by = torch.stack([moves[k] for k in keys])
        return move(values, grids, by, processor.merge_size, processor.patch_size)

    return change


def move(
    values: Float[Tensor, "patch number"],
    grids: Int[Tensor, "picture 3"],
    moves: Float[Tensor, "picture 4"],
    merge: int,
    patch: int,
) -> Float[Tensor, "patch number"]:
    """Each picture turned and enlarged about its middle, then moved; its edge is repeated.

    `values` are as Qwen2-VL's image processor lays them out: (height, width) in blocks of `merge` x `merge`
    patches, each patch (channel, time, y, x). A picture is every frame of its own patch: one is moved and
    repeated. Pictures of several sizes in one batch are moved size by size.
    """
    moved = torch.empty_like(values)
    owner = torch.arange(len(grids)).repeat_interleave(grids.prod(-1))
    for grid in grids.unique(dim=0):
        pictures = (grids == grid).all(-1)
        rows = pictures[owner]
        _, height, width = grid.tolist()
        blocks = (height // merge, width // merge, merge, merge, CHANNELS)
        patches = values[rows].view(len(moves[pictures]), *blocks, -1, patch, patch)
        whole = patches[..., 0, :, :].permute(0, 5, 1, 3, 6, 2, 4, 7)
        image = _moved(whole.reshape(len(whole), CHANNELS, height * patch, width * patch), moves[pictures])
        back = image.view(whole.shape).permute(0, 2, 5, 3, 6, 1, 4, 7)
        moved[rows] = back.unsqueeze(-3).expand(patches.shape).reshape(-1, values.shape[1])
    return moved


def _moved(
    images: Float[Tensor, "picture channel y x"], moves: Float[Tensor, "picture 4"]
) -> Float[Tensor, "picture channel y x"]:
    height, width = images.shape[2:]
    y, x, zoom, turn = moves.unbind(-1)
    cos, sin = turn.deg2rad().cos() / zoom, turn.deg2rad().sin() / zoom
    # Where in the picture each place of the result comes from, in units of half its width and height.
    x, y = 2 * x / width, 2 * y / height
    skew = sin * height / width, -sin * width / height
    rows = [cos, skew[0], -cos * x - skew[0] * y], [skew[1], cos, -skew[1] * x - cos * y]
    maps = torch.stack([torch.stack(row, -1) for row in rows], 1)
    places = affine_grid(maps, list(images.shape), align_corners=False)
    return grid_sample(images, places, padding_mode="border", align_corners=False)
