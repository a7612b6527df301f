"""Pictures through the vision tower: each distinct one once, however many texts show it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coral_lab.models.inputs import Prompt
from coral_lab.models.model import Model
from coral_lab.models.pixels import Pixel

PATCHES, CPU_PATCHES = 2**15, 2**12
"""Patches that the vision tower looks at together."""

Change = Callable[
    [Sequence[Hashable], Float[Tensor, "patch number"], Int[Tensor, "picture 3"]],
    Float[Tensor, "patch number"],
]
"""What training does to pictures first: their keys, patches and grids → the changed patches."""


@dataclass(frozen=True)
class Vision:
    """Image features [image token, dim] and grids [3] of distinct pictures, by `pixels.key`.

    `deepstack` are the features, of the same shape, that Qwen3-VL's tower makes of its earlier layers, and
    its text model adds to its own first layers (DeepStack, arXiv 2406.04334); other architectures have none.
    """

    features: dict[Hashable, Tensor]
    grids: dict[Hashable, Tensor]
    deepstack: dict[Hashable, tuple[Tensor, ...]] = field(default_factory=dict)


def vision_of(model: Model, prompts: Sequence[Prompt], change: Change | None = None) -> Vision:
    """Run the vision tower once for each distinct picture of the prompts."""
    shown = ((picture, prompt.name) for prompt in prompts for picture in prompt.pictures)
    return vision_of_pixels(model, model.pixels(shown), change)


def vision_of_pixels(
    model: Model, found: Mapping[Hashable, Pixel], change: Change | None = None, most: int | None = None
) -> Vision:
    """The same of processed pictures: as many of them at once as a processor's cache has room for, or as have
    `most` patches.
    """
    most = most or (CPU_PATCHES if model.device.type == "cpu" else PATCHES)
    seen = Vision({}, {k: grid for k, (_, grid) in found.items()})
    some: dict[Hashable, Pixel] = {}
    size = 0
    for k, pixel in found.items():
        if some and size + len(pixel[0]) > most:
            _look(model, some, change, seen)
            some, size = {}, 0
        some[k] = pixel
        size += len(pixel[0])
    if some:
        _look(model, some, change, seen)
    return seen


def _look(model: Model, found: Mapping[Hashable, Pixel], change: Change | None, seen: Vision) -> None:
    """Look at pictures together, and put their features with what was `seen`."""
    values = torch.cat([pair[0] for pair in found.values()])
    grids = torch.stack([pair[1] for pair in found.values()])
    if change is not None:
        values = change(list(found), values, grids)
    output = model.network.model.get_image_features(
        values.to(model.device), grids.to(model.device), return_dict=True
    )
    seen.features.update(zip(found, output.pooler_output, strict=True))
    layers = getattr(output, "deepstack_features", None) or ()  # [layer][picture]
    if layers:
        seen.deepstack.update(zip(found, zip(*layers, strict=True), strict=True))
