"""One contrastive batch, with or without Coral's reconstruction, and its gradients in whatever memory there
is.

GradCache (arXiv 2101.06983): embed the whole batch without keeping anything, take the gradient of the loss
with respect to the embeddings, then embed part by part again and pass it on. A batch in one part is embedded
once. The reconstruction terms are sums over masked tokens, so their parts add up by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from coral_lab.models import cpu_memory
from coral_lab.training import distributed
from coral_lab.training.batches import PairBatch
from coral_lab.training.learner import Counts, Forward, Learner, Targets
from coral_lab.training.loop import Objective, Step
from coral_lab.training.losses import info_nce

OTHERS = 10
"""At every so many steps the log has the reconstructions from another row's h_eos beside the right one's."""


def gradients(
    learner: Learner,
    batch: PairBatch,
    chunk: int | None = None,
    autocast: Callable = nullcontext,
    others: bool = False,
    frozen: bool = False,
) -> dict[str, float]:
    """Add the gradients of L = L_cl + λ1 L_reg + λ2 L_rec to the parameters, and return the unweighted terms,
    and as "padding" the share of it among the tokens that were read.

    `chunk` is how many pairs are in memory at a time; all by default. With `others` each reconstruction is
    said beside as "… other", from the h_eos of another row (of the whole batch, the same whatever the parts):
    what the right one saves is 1 - own / other. If `frozen`, only decoders get gradients. Across processes
    each does its share of the rows; the caller sums their gradients (`distributed.sum_gradients`). Raises
    ValueError for no pairs.
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
    seen, raw = [], []
    for part, own in zip(parts, targets, strict=True):
        with torch.set_grad_enabled(once), autocast():
            forward = learner.read(part, own if once else None, counts, frozen=frozen)
        states.append(forward.embeddings)
        raw.append((forward.queries.detach(), forward.candidates[: len(part)].detach()))
        forwards.append(forward if once else None)
        seen.append(None if learner.sees else forward.vision)  # features that learn are made again
    temperature = learner.temperature.detach() if frozen else learner.temperature
    loss, pulls = _contrast(states, batch.also_positive, temperature)
    strangers = _of_others(raw, batch, rows) if others and len(batch) > 1 and counts else None
    sums = {name: 0.0 for name in learner.coral.weights}
    sums |= {f"{name} other": 0.0 for name in sums} if strangers else {}
    real, padded, at = 0.0, 0.0, 0
    for part, own, vision, first, pull in zip(parts, targets, seen, forwards, pulls, strict=True):
        with autocast():
            forward = first or learner.read(part, own, counts, vision, frozen)
        pulled = [(e * p).sum() for e, p in zip(forward.embeddings, pull, strict=True)]
        pulled += [learner.coral.weights[name] * value for name, value in forward.losses.items()]
        # FSDP2 takes the mean over processes, and what is wanted is the sum.
        scale = distributed.world_size() if learner.sharded else 1
        total = scale * torch.stack(pulled).sum()
        if total.requires_grad:  # with nothing rebuilt and the network frozen nothing learns
            total.backward()
        told = {name: value.item() for name, value in forward.losses.items()}
        if strangers:
            eos = {source: vectors[at : at + len(part)] for source, vectors in strangers.items()}
            with autocast():
                found = learner.from_others(part, own, counts, forward.vision, eos)
            told |= {f"{name} other": value for name, value in found.items()}
        sums = {name: value + told[name] for name, value in sums.items()}
        at += len(part)
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


def _of_others(
    raw: Sequence[tuple[Tensor, Tensor]], batch: PairBatch, rows: range
) -> dict[str, Float[Tensor, "row dim"]]:
    """For each of this process's rows the h_eos of the row before it in the batch's circle: in a shuffled
    batch, which lends from the next one, this is not its own either.
    """
    queries, positives = (distributed.gather(torch.cat(kind)) for kind in zip(*raw, strict=True))
    before = [batch.circle(-1)[row] for row in rows]
    return {"reg": queries[before], "rec": positives[before], "query": queries[before]}


def _counts(targets: Sequence[Mapping[str, Targets]], device: torch.device) -> Counts:
    """Masked places of the whole batch, by what is rebuilt and by kind, over all parts and processes."""
    names = [(item, kind) for item, own in targets[0].items() for kind in own.masks]
    own = [float(sum(part[item].masks[kind].sum().item() for part in targets)) for item, kind in names]
    found: dict[str, dict[str, float]] = {}
    for (item, kind), count in zip(names, distributed.total(own, device), strict=True):
        found.setdefault(item, {})[kind] = count
    return found


def contrastive_objective(
    learner: Learner,
    batches: Callable[[int], PairBatch],
    chunk: int | None = None,
    autocast: Callable = nullcontext,
    decoders_first: int = 0,
) -> Objective:
    """What `train_loop` calls at each step: the batch of that step, its losses and gradients. In the first
    `decoders_first` decoders learn alone; at every OTHERS-th it is said what another row's h_eos would do.
    """

    def objective(number: int) -> Step:
        batch, others, frozen = batches(number), (number + 1) % OTHERS == 0, number < decoders_first
        terms = gradients(learner, batch, chunk, autocast, others, frozen)
        return Step(terms, batch.prompts, len(batch))

    return objective
