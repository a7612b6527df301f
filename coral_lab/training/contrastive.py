"""One contrastive batch, with or without Coral's reconstruction, and its gradients in whatever memory there
is.

GradCache (arXiv 2101.06983): embed the whole batch without keeping anything, take the gradient of the loss
with respect to the embeddings, then embed part by part again and pass it on. A batch in one part is embedded
once. The reconstruction terms are sums over masked tokens, so their parts add up by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coral_lab.models import cpu_linear
from coral_lab.models.forward import normalised
from coral_lab.models.inputs import Prompt, prompt
from coral_lab.models.loading import Model
from coral_lab.models.prefixes import last_states
from coral_lab.models.vision import Vision, vision_of
from coral_lab.prompts import Format
from coral_lab.query import Product, Query
from coral_lab.training import distributed
from coral_lab.training.augment import Moves, moves_for, moving
from coral_lab.training.loop import Objective, Step
from coral_lab.training.losses import info_nce
from coral_lab.training.reconstruction import (
    CORAL,
    Content,
    Coral,
    Decoders,
    content,
    reconstructions,
    token_embeddings,
)


@dataclass(frozen=True)
class Pair:
    """A query, one right answer, and answers that are known to be wrong."""

    query: Query
    positive: Product
    negatives: tuple[Product, ...] = ()


@dataclass(frozen=True)
class PairBatch:
    """Pairs as prompts, and everything random about them, so that any part of it can be computed again.

    `draws` are uniform numbers that decide which of a positive's tokens are hidden; `also_positive` is over
    all positives, then all negatives.
    """

    queries: tuple[Prompt, ...]
    positives: tuple[Prompt, ...]
    negatives: tuple[Prompt, ...]
    also_positive: Bool[Tensor, "query candidate"]
    draws: Float[Tensor, "query number"]
    moves: Moves | None = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.queries + self.positives + self.negatives

    def part(self, rows: range) -> "PairBatch":
        """These queries with their positives and negatives."""
        hard = len(self.negatives) // max(1, len(self))
        own = slice(rows.start, rows.stop)
        negatives = self.negatives[rows.start * hard : rows.stop * hard]
        return PairBatch(
            self.queries[own],
            self.positives[own],
            negatives,
            self.also_positive[own],
            self.draws[own],
            self.moves,
        )


def make_batch(
    model: Model,
    pairs: Sequence[Pair],
    longest: int = 0,
    augmented: bool = False,
    format: str | Format = "seq",
) -> PairBatch:
    """The pairs' prompts, queries in `format`; random numbers for `longest` tokens a positive are torch's
    own.

    Raises ValueError if some queries have more negatives than others.
    """
    counts = {len(pair.negatives) for pair in pairs}
    if len(counts) > 1:
        raise ValueError(f"queries have {sorted(counts)} negatives; give each of them as many")
    candidates = [pair.positive for pair in pairs] + [product for pair in pairs for product in pair.negatives]
    right = [{*pair.query.positives, pair.positive.id} for pair in pairs]
    known = torch.tensor([[product.id in ids for product in candidates] for ids in right])
    queries = tuple(prompt(model, pair.query, format) for pair in pairs)
    prompts = tuple(prompt(model, product) for product in candidates)
    moves = moves_for(queries + prompts) if augmented else None
    draws = torch.rand(len(pairs), longest)
    return PairBatch(queries, prompts[: len(pairs)], prompts[len(pairs) :], known, draws, moves)


@dataclass(frozen=True)
class Forward:
    """What the model made of a part of a batch: h_eos of queries and candidates, and the pictures'
    features.
    """

    part: PairBatch
    vision: Vision
    queries: Float[Tensor, "query dim"]
    candidates: Float[Tensor, "candidate dim"]
    targets: Content | None

    @cached_property
    def embeddings(self) -> list[Tensor]:
        """Embeddings of queries, positives and negatives."""
        return [normalised(self.queries), *normalised(self.candidates).tensor_split([len(self.part)])]

    def masks(self, rate: float) -> dict[str, Tensor]:
        return self.targets.masks(self.part.draws, rate) if self.targets else {}


def gradients(
    model: Model,
    decoders: Decoders,
    batch: PairBatch,
    coral: Coral,
    chunk: int | None = None,
    autocast: Callable = nullcontext,
) -> dict[str, float]:
    """Add the gradients of L = L_cl + λ1 L_reg + λ2 L_rec to the parameters, and return the unweighted terms.

    `chunk` is how many pairs are in memory at a time; all by default. Across processes each does its share of
    the rows; the caller sums their gradients (`distributed.sum_gradients`). Raises ValueError for no pairs.
    """
    rows = distributed.share(len(batch))
    size = len(rows) if chunk is None else chunk
    if size < 1:
        raise ValueError(f"{len(rows)} pairs in chunks of {chunk}; give at least one pair a chunk")
    parts = [batch.part(rows[at : at + size]) for at in range(0, len(rows), size)]
    once = len(parts) == 1
    if not once:
        cpu_linear.keep_few_shapes()
    forwards = []
    with torch.set_grad_enabled(once), autocast():
        for part in parts:
            forward = _forward(model, decoders, part, coral)
            forwards.append(forward if once else replace(forward, vision=Vision({}, {})))
    loss, pulls = _contrast(forwards, batch.also_positive, decoders.temperature)
    masks = [forward.masks(coral.mask_rate) for forward in forwards]
    counts = _counts(masks, model.device)
    sums = dict.fromkeys(coral.weights, 0.0)
    for forward, mask, pull in zip(forwards, masks, pulls, strict=True):
        with autocast():
            again = forward if once else _forward(model, decoders, forward.part, coral)
            terms = _reconstructions(model, decoders, again, coral, mask, counts)
        pulled = [(e * p).sum() for e, p in zip(again.embeddings, pull, strict=True)]
        pulled += [coral.weights[name] * value for name, value in terms.items()]
        torch.stack(pulled).sum().backward()
        sums = {name: sums[name] + terms[name].item() for name in sums}
    return {
        "contrastive": loss,
        **dict(zip(sums, distributed.total(list(sums.values()), model.device), strict=True)),
    }


def _forward(model: Model, decoders: Decoders, part: PairBatch, coral: Coral) -> Forward:
    vision = vision_of(model, part.prompts, moving(model, part.moves))
    states = (
        last_states(model, part.queries, vision),
        last_states(model, part.positives + part.negatives, vision),
    )
    targets = content(model, part.positives, vision, decoders.longest) if coral.weights else None
    return Forward(part, vision, *states, targets)


def _contrast(
    forwards: Sequence[Forward], also_positive: Tensor, temperature: Tensor
) -> tuple[float, list[tuple[Tensor, ...]]]:
    """L_cl of the whole batch, and its gradient with respect to each forward's embeddings."""
    kinds = list(zip(*(forward.embeddings for forward in forwards), strict=True))
    own = [torch.cat(kind).detach().requires_grad_() for kind in kinds]
    queries, *candidates = (distributed.gather(rows) for rows in own)
    loss = info_nce(queries, torch.cat(candidates), temperature, also_positive.to(queries.device))
    # Each process finds the same gradient for the temperature; summed, it must count once.
    gradient = torch.autograd.grad(loss, [*own, temperature] if temperature.requires_grad else own)
    if temperature.requires_grad:
        temperature.backward(gradient[-1] / distributed.world_size())
    by_kind = [rows.split([len(e) for e in kind]) for rows, kind in zip(gradient, kinds, strict=False)]
    return loss.item(), list(zip(*by_kind, strict=True))


def _counts(masks: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, float]:
    """Masked places of the whole batch, by kind, over all parts and processes."""
    own = {kind: float(sum(mask[kind].sum().item() for mask in masks)) for kind in masks[0]}
    return dict(zip(own, distributed.total(list(own.values()), device), strict=True))


def _reconstructions(model, decoders, forward: Forward, coral: Coral, masks, counts) -> dict[str, Tensor]:
    if forward.targets is None:
        return {}
    embeddings = token_embeddings(model, forward.part.positives, forward.targets, forward.vision)
    eos = {"reg": forward.queries, "rec": forward.candidates[: len(forward.part)]}
    return reconstructions(model, decoders, coral.weights, embeddings, forward.targets, masks, eos, counts)


@dataclass(frozen=True)
class StepConfig:
    """What a contrastive step is made of: the objective's weights, `batch_size` pairs with so many hard
    `negatives` a query, `chunk` pairs in memory at a time (all by default), queries in `format`, pictures
    moved a little or not.
    """

    coral: Coral = CORAL
    batch_size: int = 128
    chunk: int | None = None
    negatives: int = 0
    format: str | Format = "seq"
    augmented: bool = False


def contrastive_objective(
    model: Model,
    decoders: Decoders,
    pairs: Callable[[int], Sequence[Pair]],
    step: StepConfig = StepConfig(),
    autocast: Callable = nullcontext,
) -> Objective:
    """What `train_loop` calls at each step: the `pairs` of that step, their losses and gradients."""
    longest = decoders.longest if step.coral.weights else 0

    def objective(number: int) -> Step:
        batch = make_batch(model, pairs(number), longest, step.augmented, step.format)
        return Step(gradients(model, decoders, batch, step.coral, step.chunk, autocast), batch.prompts)

    return objective
