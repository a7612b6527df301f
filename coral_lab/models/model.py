"""A loaded checkpoint, and what can be said of it or changed about it without loading another."""

import math
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from coral_lab.errors import CheckpointError
from coral_lab.models import quantizing
from coral_lab.models.architectures import (
    ARCHITECTURES,
    Architecture,
    Network,
    Processor,
    architecture_of,
    check_quick,
)
from coral_lab.models.families import CORAL, Family, check_positions
from coral_lab.models.pixels import Pixels
from coral_lab.models.protocol import Conversation, Embedder, fingerprint_of
from coral_lab.results import grey, paragraph


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded checkpoint: the transformers model and its processor, nothing hidden.

    `quick` says whether embeddings are made by this room's quick path or, slower, by transformers' public
    names alone, and `family` how items are worded for it. Raises ValueError for a quick model of an
    architecture that has no such path.
    """

    name: str
    network: Network
    processor: Processor
    quick: bool = True
    family: Family = CORAL

    def __post_init__(self) -> None:
        if self.quick:
            check_quick(self.architecture, self.name)
            check_positions(self.family, self.name)

    @property
    def architecture(self) -> Architecture:
        """What transformers calls its parts, and what is its own of them."""
        return architecture_of(self.network.config)

    @cached_property
    def pixels(self) -> Pixels:
        """The pictures that this model's image processor has seen."""
        options = self.architecture.pictures
        return Pixels(self.processor.image_processor, options=options, straight=self.family.straight)

    @cached_property
    def turn(self) -> AbstractContextManager:
        """Held while the network runs: its caches and hooks are of one call, so that threads take turns."""
        return threading.RLock()

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def quantized(self) -> str | None:
        """What the weights of its linear layers are kept in, "int8", or None where it is `dtype`."""
        return quantizing.kind_of(self.network)

    @property
    def dim(self) -> int:
        """Length of an embedding: 2048 for CORAL."""
        return self._text_config.hidden_size

    @property
    def longest(self) -> int:
        """Most tokens that it reads: as many as its family's publisher lets it, if that is fewer."""
        return min(self.family.longest or math.inf, self._text_config.max_position_embeddings)

    @property
    def _text_config(self) -> Any:
        return self.network.config.text_config

    @property
    def attention(self) -> str:
        """The text model's attention implementation."""
        return self.network.model.language_model.config._attn_implementation

    @property
    def fingerprint(self) -> str:
        """Changes whenever its embeddings do; its weights are looked at anew each time, for they may have
        learnt since.
        """
        from coral_lab.models import fingerprints

        return fingerprints.name(fingerprints.space(self))

    def embed(
        self, conversations: Sequence[Conversation], batch_size: int = 32
    ) -> Float32[np.ndarray, "conversation dim"]:
        """Embeddings of conversations, in their order. Raises ItemError for one that cannot be read."""
        from coral_lab.models.embedding import embedded

        return embedded(self, conversations, batch_size)

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        # torchvision's and Pillow's image processors differ in the last bits: say which one it is
        pictures = type(self.processor.image_processor).__name__
        kind = f"{str(self.dtype).removeprefix('torch.')}, {self.device}, {self.attention}, {pictures}"
        kind = f"{self.quantized} weights, {kind}" if self.quantized else kind
        kind = kind if self.family is CORAL else f"{kind}, asked as {self.family.title}"
        return f"Model({self.name!r}: {millions:,.1f} M parameters, {self.dim} dimensions, {kind})"

    def _repr_html_(self) -> str:
        return paragraph(f"<b>{escape(self.name)}</b> {grey(repr(self).partition(': ')[2].rstrip(')'))}")


def network_of(model: Embedder, use: str) -> Model:
    """The model itself, for a `use` of more than its embeddings: its network, its decoders, its layers.
    Raises CheckpointError for one that is not of `architectures.py`.
    """
    if not isinstance(model, Model):
        titles = ", ".join(own.title for own in ARCHITECTURES.values())
        problem = f"{model.name[-60:]!r} only embeds, and {use} needs a network of {titles}"
        raise CheckpointError(f"{problem}; load such a checkpoint")
    return model


def same_embeddings(a: Embedder, b: Embedder) -> bool:
    """Whether two models make the same embeddings: of loaded ones the same weights to the bit, in one dtype,
    by equal processors, asked in the same words; of others the same fingerprint.
    """
    if a is b:
        return True
    if a.dim != b.dim:
        return False
    if not isinstance(a, Model) or not isinstance(b, Model):
        return type(a) is type(b) and fingerprint_of(a) is not None and fingerprint_of(a) == fingerprint_of(b)
    if a.dtype != b.dtype or a.family != b.family:
        return False
    processors = [model.processor.image_processor.to_json_string() for model in (a, b)]
    templates = [model.processor.chat_template for model in (a, b)]
    mine, theirs = quantizing.tensors(a.network), quantizing.tensors(b.network)
    if len({*processors}) > 1 or len({*templates}) > 1 or mine.keys() != theirs.keys():
        return False
    return all(torch.equal(mine[name], theirs[name].to(mine[name].device)) for name in mine)


def of_family(model: Model, family: Family) -> Model:
    """The same network asked in a family's words, its pictures of the sizes that the family has. Raises
    ValueError for a quick model of a family whose positions are flat.
    """
    processor = model.processor
    if family.sizes:
        processor = copy(processor)
        processor.image_processor = deepcopy(processor.image_processor)
        smallest, largest = family.sizes
        processor.image_processor.size = {"shortest_edge": smallest, "longest_edge": largest}
    return replace(model, processor=processor, family=family)


def with_most_pixels(model: Model, pixels: int) -> Model:
    """The same network, whose pictures have no more pixels than that; it is saved with this limit.

    Raises ValueError for an architecture whose pictures are sized by qwen-vl-utils alone, and for less than
    one image token.
    """
    processor = copy(model.processor)
    processor.image_processor = deepcopy(model.processor.image_processor)
    side = processor.image_processor.patch_size * processor.image_processor.merge_size
    if pixels < side * side or not model.architecture.pictures.get("do_resize", True):
        fit = f"give {side * side} or more" if pixels < side * side else "resize the pictures themselves"
        raise ValueError(f"{model.name} cannot have {pixels} pixels a picture at most; {fit}")
    smallest = min(processor.image_processor.size["shortest_edge"], pixels)
    processor.image_processor.size = {"shortest_edge": smallest, "longest_edge": pixels}
    return replace(model, processor=processor)
