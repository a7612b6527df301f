"""Training losses as pure functions of tensors."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy


def info_nce(
    queries: Float[Tensor, "query dim"],
    candidates: Float[Tensor, "candidate dim"],
    temperature: float,
    also_positive: Bool[Tensor, "query candidate"] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE over in-batch candidates (arXiv 2506.03144, L_cl); candidate i answers query i.

    Embeddings are L2-normalised; more candidates than queries are further negatives. `also_positive` marks other
    right answers, which are left out of the sum: they are not negatives. Zero embeddings give log(candidates).
    Raises ValueError if there are fewer candidates than queries.
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
