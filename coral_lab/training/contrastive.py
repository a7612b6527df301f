"""One contrastive batch, with or without Coral's reconstruction, and its gradients in whatever memory there
is.

GradCache (arXiv 2101.06983): embed the whole batch without keeping anything, take the gradient of the loss
with respect to the embeddings, then embed part by part again and pass it on. A batch in one part is embedded
once. The reconstruction terms are sums over masked tokens, so their parts add up by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from coral_lab.models import cpu_memory
from coral_lab.training import distributed
from coral_lab.training.batches import PairBatch
from coral_lab.training.learner import Forward, Learner, Targets
from coral_lab.training.loop import Objective, Step
from coral_lab.training.losses import info_nce


def gradients(
    learner: Learner, batch: PairBatch, chunk: int | None = None, autocast: Callable = nullcontext
) -> dict[str, float]:
    """Add the gradients of L = L_cl + λ1 L_reg + λ2 L_rec to the parameters, and return the unweighted terms,
    and as "padding" the share of it among the tokens that were read.

    `chunk` is how many pairs are in memory at a time; all by default. Across processes each does its share of
    the rows; the caller sums their gradients (`distributed.sum_gradients`). Raises ValueError for no pairs.
    """
    rows = distributed.share(len(batch))
    size = len(rows) if chunk is None else chunk
    if size < 1:
        raise ValueError(f"{len(rows)} pairs in chunks of {chunk}; give at least one pair a chunk")
    parts = [batch.part(rows[at : at + size]) for at in range(0, len(rows), size)]
    targets = [learner.targets(part) for part in parts]
    counts = _counts(targets, learner.model.device)
    once = len(parts) == 1
    if not once:
        cpu_memory.keep_few_shapes()
    states: list[list[Tensor]] = []
    forwards: list[Forward | None] = []
    seen = []
    for part, own in zip(parts, targets, strict=True):
        with torch.set_grad_enabled(once), autocast():
            forward = learner.read(part, own if once else None, counts)
        states.append(forward.embeddings)
        forwards.append(forward if once else None)
        seen.append(None if learner.sees else forward.vision)  # features that learn are made again
    loss, pulls = _contrast(states, batch.also_positive, learner.temperature)
    sums = {name: 0.0 for name in learner.coral.weights}
    real, padded = 0.0, 0.0
    for part, own, vision, first, pull in zip(parts, targets, seen, forwards, pulls, strict=True):
        with autocast():
            forward = first or learner.read(part, own, counts, vision)
        pulled = [(e * p).sum() for e, p in zip(forward.embeddings, pull, strict=True)]
        pulled += [learner.coral.weights[name] * value for name, value in forward.losses.items()]
        # FSDP2 takes the mean over processes, and what is wanted is the sum.
        scale = distributed.world_size() if learner.sharded else 1
        (scale * torch.stack(pulled).sum()).backward()
        sums = {name: sums[name] + forward.losses[name].item() for name in sums}
        real, padded = real + forward.tokens[0], padded + forward.tokens[1]
    *terms, real, padded = distributed.total([*sums.values(), real, padded], learner.model.device)
    return {"contrastive": loss, **dict(zip(sums, terms, strict=True)), "padding": 1 - real / padded}


def _contrast(
    states: Sequence[Sequence[Tensor]], also_positive: Tensor, temperature: Tensor
) -> tuple[float, list[tuple[Tensor, ...]]]:
    """L_cl of the whole batch, and its gradient with respect to each part's embeddings."""
    kinds = list(zip(*states, strict=True))
    own = [torch.cat(kind).detach().requires_grad_() for kind in kinds]
    queries, *candidates = (distributed.gather(rows) for rows in own)
    loss = info_nce(queries, torch.cat(candidates), temperature, also_positive.to(queries.device))
    # Each process finds the same gradient for the temperature; summed, it must count once.
    gradient = torch.autograd.grad(loss, [*own, temperature] if temperature.requires_grad else own)
    if temperature.requires_grad:
        temperature.backward(gradient[-1] / distributed.world_size())
    by_kind = [rows.split([len(e) for e in kind]) for rows, kind in zip(gradient, kinds, strict=False)]
    return loss.item(), list(zip(*by_kind, strict=True))


def _counts(targets: Sequence[Targets | None], device: torch.device) -> Mapping[str, float]:
    """Masked places of the whole batch, by kind, over all parts and processes."""
    masks = [own.masks for own in targets if own is not None]
    own = {kind: float(sum(mask[kind].sum().item() for mask in masks)) for kind in (masks or [{}])[0]}
    return dict(zip(own, distributed.total(list(own.values()), device), strict=True))


def contrastive_objective(
    learner: Learner,
    batches: Callable[[int], PairBatch],
    chunk: int | None = None,
    autocast: Callable = nullcontext,
) -> Objective:
    """What `train_loop` calls at each step: the batch of that step, its losses and gradients."""

    def objective(number: int) -> Step:
        batch = batches(number)
        return Step(gradients(learner, batch, chunk, autocast), batch.prompts, len(batch))

    return objective
