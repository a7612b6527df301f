"""InfoNCE: closed-form values, a loop written out, and gradients."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from coral_lab.losses import info_nce


def embeddings(queries: int = 4, candidates: int = 6, dim: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((queries, dim), (candidates, dim))
    return [normalize(torch.randn(size, generator=generator, dtype=torch.float64), dim=-1) for size in sizes]


def written_out(queries, candidates, temperature: float, left_out=frozenset()) -> float:
    """The paper's formula, term by term; `left_out` are (query, candidate) that are no negatives."""
    total = 0.0
    for i, query in enumerate(queries.tolist()):
        scores = [
            sum(a * b for a, b in zip(query, key, strict=True)) / temperature for key in candidates.tolist()
        ]
        kept = [score for j, score in enumerate(scores) if j == i or (i, j) not in left_out]
        total -= math.log(math.exp(scores[i]) / sum(map(math.exp, kept)))
    return total / len(queries)


@pytest.mark.parametrize(("queries", "candidates"), [(1, 1), (3, 3), (3, 7)])
@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_zero_embeddings_give_the_log_of_the_candidates(queries, candidates, temperature):
    loss = info_nce(torch.zeros(queries, 4), torch.zeros(candidates, 4), temperature)
    assert loss.item() == pytest.approx(math.log(candidates))


def test_perfect_separation_costs_nothing_and_the_reverse_a_lot():
    eye = torch.eye(4)
    assert info_nce(eye, eye, 0.02).item() < 1e-6
    assert info_nce(eye, eye.roll(1, 0), 0.02).item() == pytest.approx(50, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 6), (1, 3)])
def test_it_is_the_papers_formula(temperature, sizes):
    queries, candidates = embeddings(*sizes)
    assert info_nce(queries, candidates, temperature).item() == pytest.approx(
        written_out(queries, candidates, temperature)
    )


def test_other_right_answers_are_left_out_of_the_sum():
    queries, candidates = embeddings()
    left_out = {(0, 1), (0, 5), (2, 0), (3, 5)}
    mask = torch.zeros(4, 6, dtype=torch.bool)
    for place in left_out:
        mask[place] = True
    loss = info_nce(queries, candidates, 0.1, mask).item()
    assert loss == pytest.approx(written_out(queries, candidates, 0.1, left_out))
    assert loss < info_nce(queries, candidates, 0.1).item()


def test_leaving_a_candidate_out_for_all_is_not_having_it():
    queries, candidates = embeddings()
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 4:] = True
    torch.testing.assert_close(
        info_nce(queries, candidates, 0.1, mask), info_nce(queries, candidates[:4], 0.1)
    )


def test_a_querys_own_positive_is_never_left_out():
    queries, candidates = embeddings()
    own = torch.eye(4, 6, dtype=torch.bool)
    torch.testing.assert_close(info_nce(queries, candidates, 0.1, own), info_nce(queries, candidates, 0.1))
    assert info_nce(queries, candidates, 0.1, torch.ones(4, 6, dtype=torch.bool)).item() == pytest.approx(0)


def test_the_masks_given_are_left_as_they_were():
    queries, candidates = embeddings()
    mask = torch.ones(4, 6, dtype=torch.bool)
    info_nce(queries, candidates, 0.1, mask)
    assert mask.all()


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_that_of_finite_differences(masked):
    queries, candidates = (tensor.requires_grad_() for tensor in embeddings())
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.4 if masked else None
    assert torch.autograd.gradcheck(lambda q, c: info_nce(q, c, 0.2, mask), (queries, candidates))


def test_a_candidate_left_out_is_not_pushed_away():
    queries, candidates = (tensor.requires_grad_() for tensor in embeddings())
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 5] = True
    info_nce(queries, candidates, 0.2, mask).backward()
    assert candidates.grad[5].abs().max() == 0
    assert candidates.grad[4].abs().max() > 0


def test_hard_negatives_raise_the_loss_and_near_ones_raise_it_more():
    queries, candidates = embeddings(4, 4)
    plain = info_nce(queries, candidates, 0.1)
    far = info_nce(queries, torch.cat([candidates, -queries]), 0.1)
    near = info_nce(queries, torch.cat([candidates, queries]), 0.1)
    assert plain < far < near


def test_fewer_candidates_than_queries_are_refused():
    with pytest.raises(ValueError, match="2 candidates for 3 queries"):
        info_nce(torch.zeros(3, 4), torch.zeros(2, 4), 0.1)
