"""What learns: the network and, beside it, Coral's decoders; and the one call that makes of a part of a batch
all that its losses need.

One call, for FSDP2 gathers a module's sharded parameters around its `forward`. Where layers may only be
entered as often as on every other process, and where their states are worked out again on the way back
(gradient checkpointing), the network runs as transformers has it; else by the quick path's shared beginnings.
"""

import sys
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from coral_lab.models import cpu_memory
from coral_lab.models.forward import forward, last_token, normalised, tokenize
from coral_lab.models.inputs import Prompt
from coral_lab.models.model import Model
from coral_lab.models.pixels import Pixel
from coral_lab.models.vision import Vision, vision_of_pixels
from coral_lab.training import distributed
from coral_lab.training.augment import moving
from coral_lab.training.batches import PairBatch
from coral_lab.training.reconstruction import (
    REBUILT,
    Content,
    Coral,
    Decoders,
    content,
    reconstructions,
    token_embeddings,
)

ROWS = 32  # prompts of like length that are read together

Counts = Mapping[str, Mapping[str, float]]
"""How many places of a whole batch are hidden, by what is rebuilt and by kind."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be rebuilt of a part's positives, or of its queries, and which of its places are hidden."""

    content: Content
    masks: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Forward:
    """What became of a part of a batch: h_eos of queries and candidates, the reconstruction losses by name,
    the pictures' features, and the tokens that the text model read, without and with padding.
    """

    queries: Float[Tensor, "query dim"]
    candidates: Float[Tensor, "candidate dim"]
    losses: Mapping[str, Tensor]
    vision: Vision
    tokens: tuple[int, int]

    @cached_property
    def embeddings(self) -> list[Tensor]:
        """Embeddings of queries, positives and negatives."""
        return [normalised(self.queries), *normalised(self.candidates).tensor_split([len(self.queries)])]


class Learner(nn.Module):
    """A model and its decoders, trained on the objective `coral`.

    `checkpointing` keeps no states inside the layers and works them out again for the gradients.
    """

    def __init__(self, model: Model, decoders: Decoders, coral: Coral, checkpointing: bool = False):
        super().__init__()
        self.network = model.network
        self.by_kind = decoders.by_kind
        self.model, self.coral, self.checkpointing = model, coral, checkpointing
        self._decoders = [decoders]  # in a list: its temperature is no part of this module, and never sharded
        self.sharded = False
        _keep_states(model.network, not checkpointing)
        if checkpointing and model.device.type == "cpu":
            cpu_memory.keep_few_shapes()
            cpu_memory.give_back_at_once()

    @property
    def decoders(self) -> Decoders:
        return self._decoders[0]

    @property
    def temperature(self) -> Float[Tensor, ""]:
        return self.decoders.temperature

    def shard(self, bfloat16: bool = False) -> None:
        """Keep a part of every parameter on each process (`distributed.shard`), but for the temperature."""
        distributed.shard(self, bfloat16)
        self.sharded = True

    @property
    def plain(self) -> bool:
        """Whether the network runs as transformers has it."""
        return self.sharded or self.checkpointing or not self.model.quick

    @property
    def sees(self) -> bool:
        """Whether the vision tower learns."""
        return any(parameter.requires_grad for parameter in self.network.model.visual.parameters())

    def targets(self, part: PairBatch) -> dict[str, Targets]:
        """What of the part is to be rebuilt, by `Coral.rebuilt`. Raises ValueError where another row's is
        wanted and each row has its own, ItemError for an item that is too long for the decoders.
        """
        if self.coral.shuffled and not part.lent:
            raise ValueError("the objective is shuffled and the batch is not; see PairBatch.shuffled")
        draws, found = {"target": part.draws, "query": part.draws.flip(1)}, {}
        for item in self.coral.rebuilt:
            grids, longest = _grids(self.model, part), self.decoders.longest
            own = content(self.model, part.rebuilt(item), grids, longest)
            found[item] = Targets(own, own.masks(draws[item], self.coral.mask_rate))
        return found

    def read(
        self,
        part: PairBatch,
        targets: Mapping[str, Targets] | None = None,
        counts: Counts | None = None,
        vision: Vision | None = None,
        frozen: bool = False,
    ) -> Forward:
        """Read a part; with `targets` also rebuild them. `counts` are the masked places of the whole batch;
        `vision` are the pictures' features if they were seen before. If `frozen`, gradients are of decoders
        alone.
        """
        return Forward(*self(part, targets or {}, counts or {}, vision, frozen))

    @torch.no_grad()
    def from_others(
        self,
        part: PairBatch,
        targets: Mapping[str, Targets],
        counts: Counts,
        vision: Vision,
        eos: Mapping[str, Tensor],
    ) -> dict[str, float]:
        """The reconstruction losses of a part that was read, with `eos` in place of its own."""
        found = self(part, targets, counts, vision, True, eos)[2]
        if self.sharded:
            cast(FSDPModule, self).reshard()  # as in `embed`
        return {name: loss.item() for name, loss in found.items()}

    def forward(self, part, targets, counts, vision, frozen=False, eos=None) -> tuple:
        """Tensors in plain tuples and dicts: FSDP2 looks through these for what gradients come back by."""
        queries = candidates = torch.zeros(0, self.model.dim, device=self.model.device)
        read, also_read = (0, 0), (0, 0)
        with torch.no_grad() if frozen else nullcontext():
            if vision is None:
                with nullcontext() if self.sees else torch.no_grad():
                    vision = self._see(part)
            if eos is None:
                queries, read = self._read(part.queries, vision)
                if self.sharded and self.sees:  # gradients go back through the tower everywhere
                    layers = (own for features in vision.deepstack.values() for own in features)
                    queries = queries + 0 * sum(own.sum() for own in (*vision.features.values(), *layers))
                candidates, also_read = self._read(part.positives + part.negatives, vision)
                eos = {"reg": queries, "rec": candidates[: len(part)], "query": queries}
        losses = self._rebuild(part, targets, counts, vision, frozen, eos)
        return queries, candidates, losses, vision, (read[0] + also_read[0], read[1] + also_read[1])

    def _rebuild(self, part, targets, counts, vision, frozen, eos) -> dict[str, Tensor]:
        """The reconstruction losses of each item, by name. (Six parameters, and the model: `forward`'s.)"""
        losses: dict[str, Tensor] = {}
        head = self.network.get_output_embeddings().weight
        for item, own in targets.items():
            with torch.no_grad() if frozen else nullcontext():
                embeddings = token_embeddings(self.model, part.rebuilt(item), own.content, vision)
            losses |= reconstructions(
                self.model,
                self.decoders,
                self.coral.weights,
                embeddings,
                own.content,
                own.masks,
                {source: states for source, states in eos.items() if REBUILT[source] == item},
                counts.get(item),
                head.detach() if frozen else head,
            )
        return losses

    def embed(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt dim"]:
        """Embeddings of prompts, L2-normalised in float32."""
        alone = PairBatch(tuple(prompts), (), (), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0, 0))
        found = normalised(self(alone, {}, {}, None)[0])
        if self.sharded:
            # FSDP2 keeps what is outside the layers put together for a way back that does not come; states
            # and checkpoints are of the parts.
            cast(FSDPModule, self).reshard()
        return found

    def _see(self, part: PairBatch) -> Vision:
        pixels, change = part.pictures_of(self.model), moving(self.model, part.moves)
        if not self.sharded:
            return vision_of_pixels(self.model, pixels, change)
        # Every process enters the tower once: with a blank picture where a part has none.
        return vision_of_pixels(
            self.model, pixels or self._blank, change if pixels else None, most=sys.maxsize
        )

    @cached_property
    def _blank(self) -> dict[Hashable, Pixel]:
        return self.model.pixels([(Image.new("RGB", (64, 64)), "blank picture")])

    def _read(self, prompts: Sequence[Prompt], vision: Vision) -> tuple[Tensor, tuple[int, int]]:
        """h_eos [prompt, dim], and how many tokens were read, without and with padding."""
        if not prompts:
            return torch.zeros(0, self.model.dim, device=self.model.device), (0, 0)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].pictures), len(prompts[i].text)))
        states, real, padded = [], 0, 0
        for at in range(0, len(order), ROWS):
            some = [prompts[i] for i in order[at : at + ROWS]]
            batch = tokenize(self.model, some, vision)
            real += int(batch["attention_mask"].sum())
            padded += batch["attention_mask"].numel()
            states.append(self._states(some, vision, batch))
        back = torch.empty(len(order), dtype=torch.long)
        back[order] = torch.arange(len(order))
        return torch.cat(states)[back.to(states[0].device)], (real, padded)

    def _states(self, prompts: Sequence[Prompt], vision: Vision, batch) -> Float[Tensor, "prompt dim"]:
        if self.plain:
            return last_token(forward(self.model, prompts, vision, batch), batch["attention_mask"])
        from coral_lab.models.prefixes import forward_last

        return forward_last(self.model, prompts, vision, batch)[:, -1]


def _grids(model: Model, part: PairBatch) -> Vision:
    """The pictures' grids alone: how many tokens each is."""
    return Vision({}, {k: grid for k, (_, grid) in part.pictures_of(model).items()})


def _keep_states(network, kept: bool) -> None:
    """No gradient checkpointing, or gradient checkpointing, by its name in this version of transformers."""
    name = "activation" if hasattr(network, "activation_checkpointing_enable") else "gradient"
    if not kept:
        getattr(network, f"{name}_checkpointing_enable")({"use_reentrant": False})
    elif getattr(network, f"is_{name}_checkpointing"):  # of a training before this one
        getattr(network, f"{name}_checkpointing_disable")()
