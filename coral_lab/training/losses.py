"""Coral's three losses (arXiv 2506.03144) as pure functions of tensors."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def info_nce(
    queries: Float[Tensor, "query dim"],
    candidates: Float[Tensor, "candidate dim"],
    temperature: float | Float[Tensor, ""],
    also_positive: Bool[Tensor, "query candidate"] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE over in-batch candidates (L_cl); candidate i answers query i.

    Embeddings are L2-normalised; more candidates than queries are further negatives. `also_positive` marks
    other right answers, which are left out of the sum: they are not negatives. Zero embeddings give
    log(candidates). Raises ValueError if there are fewer candidates than queries.
    """
    if len(candidates) < len(queries):
        raise ValueError(
            f"{len(candidates)} candidates for {len(queries)} queries; each needs its own positive"
        )
    scores = queries @ candidates.T / temperature
    target = torch.arange(len(queries), device=scores.device)
    if also_positive is not None:
        own = torch.zeros_like(also_positive).scatter_(1, target[:, None], True)
        scores = scores.masked_fill(also_positive & ~own, -torch.inf)
    return cross_entropy(scores, target)


def vision_reconstruction(
    predicted: Float[Tensor, "*place dim"],
    target: Float[Tensor, "*place dim"],
    masked: Bool[Tensor, "*place"],
    count: float | int | None = None,
) -> Float[Tensor, ""]:
    """Squared error of the `masked` places, mean over them and over dimensions (L_mse, without the printed
    minus).

    The paper sums over dimensions; the mean differs by a constant factor, and makes weights comparable
    between widths. `count` is the number of masked places of the whole batch if this is a part of it, so that
    the parts add up. Nothing masked gives 0.
    """
    errors = _precise(predicted[masked] - target[masked]).square().mean(-1)
    return errors.sum() / max(1, len(errors) if count is None else count)


def masked_language_modelling(
    hidden: Float[Tensor, "*place dim"],
    lm_head: Float[Tensor, "vocabulary dim"],
    targets: Int[Tensor, "*place"],
    masked: Bool[Tensor, "*place"],
    count: float | int | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the `masked` tokens, mean over them (L_mlm), through the model's own `lm_head` weight.

    Only masked places meet the vocabulary. `count` is as in `vision_reconstruction`. Nothing masked gives 0.
    """
    logits = _precise(hidden[masked].to(lm_head.dtype) @ lm_head.T)  # a frozen head may be in half precision
    return cross_entropy(logits, targets[masked], reduction="sum") / max(
        1, len(logits) if count is None else count
    )


def _precise(values: Tensor) -> Tensor:
    """At least float32: sums in half precision lose small terms."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
