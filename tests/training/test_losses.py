"""Coral's three losses: closed-form values, the paper's formulas written out, and gradients."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from coral_lab.training.losses import info_nce, masked_language_modelling, vision_reconstruction


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


def test_a_learned_temperature_gets_the_gradient_of_finite_differences():
    queries, candidates = embeddings()
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: info_nce(queries, candidates, t), temperature)


def pictures(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted and wanted embeddings [2, 5, 3], and which of the ten places are masked."""
    generator = torch.Generator().manual_seed(seed)
    predicted, target = torch.randn(2, 2, 5, 3, generator=generator, dtype=torch.float64)
    return predicted, target, torch.rand(2, 5, generator=generator) < 0.5


def test_perfect_reconstruction_costs_nothing():
    predicted, _, masked = pictures()
    assert vision_reconstruction(predicted, predicted.clone(), masked).item() == 0


def test_vision_reconstruction_is_the_mean_squared_error_of_masked_places():
    predicted, target, masked = pictures()
    errors = [
        sum((predicted[i, j] - target[i, j]).tolist()[d] ** 2 for d in range(3)) / 3
        for i in range(2)
        for j in range(5)
        if masked[i, j]
    ]
    found = vision_reconstruction(predicted, target, masked).item()
    assert found == pytest.approx(sum(errors) / len(errors), rel=1e-6)
    away = torch.where(masked[..., None], predicted, predicted + 100)
    assert vision_reconstruction(away, target, masked).item() == pytest.approx(found)


def test_an_error_of_one_everywhere_costs_one_whatever_the_width():
    for dim in (1, 7):
        zeros = torch.zeros(4, dim)
        assert vision_reconstruction(zeros, zeros + 1, torch.ones(4, dtype=torch.bool)).item() == 1


def test_no_knowledge_costs_the_log_of_the_vocabulary():
    targets, masked = torch.tensor([[0, 3, 6]]), torch.tensor([[True, False, True]])
    loss = masked_language_modelling(torch.zeros(1, 3, 4), torch.randn(7, 4), targets, masked)
    assert loss.item() == pytest.approx(math.log(7))


def test_masked_language_modelling_is_cross_entropy_of_masked_tokens_only():
    hidden, _, masked = pictures()
    head, targets = torch.randn(6, 3, dtype=torch.float64), torch.arange(10).reshape(2, 5) % 6
    total, count = 0.0, 0
    for i in range(2):
        for j in range(5):
            if masked[i, j]:
                logits = head @ hidden[i, j]
                total -= math.log(math.exp(logits[targets[i, j]]) / sum(math.exp(x) for x in logits.tolist()))
                count += 1
    found = masked_language_modelling(hidden, head, targets, masked).item()
    assert found == pytest.approx(total / count, rel=1e-5)
    elsewhere = torch.where(masked, targets, (targets + 1) % 6)
    assert masked_language_modelling(hidden, head, elsewhere, masked).item() == pytest.approx(found)


def test_nothing_masked_costs_nothing_and_has_gradients_of_zero():
    predicted, target, _ = pictures()
    none, head = torch.zeros(2, 5, dtype=torch.bool), torch.randn(6, 3, dtype=torch.float64)
    predicted.requires_grad_()
    losses = [
        vision_reconstruction(predicted, target, none),
        masked_language_modelling(predicted, head, torch.zeros(2, 5, dtype=torch.long), none),
    ]
    assert [loss.item() for loss in losses] == [0, 0]
    sum(losses).backward()
    assert predicted.grad.abs().max() == 0


@pytest.mark.parametrize("parts", [[1, 1], [2]])
def test_parts_of_a_batch_add_up_to_the_whole(parts):
    predicted, target, masked = pictures()
    head, ids = torch.randn(6, 3, dtype=torch.float64), torch.arange(10).reshape(2, 5) % 6
    count = masked.sum().item()
    seen = sum(
        vision_reconstruction(p, t, m, count)
        for p, t, m in zip(predicted.split(parts), target.split(parts), masked.split(parts), strict=True)
    )
    torch.testing.assert_close(seen, vision_reconstruction(predicted, target, masked))
    read = sum(
        masked_language_modelling(p, head, i, m, count)
        for p, i, m in zip(predicted.split(parts), ids.split(parts), masked.split(parts), strict=True)
    )
    torch.testing.assert_close(read, masked_language_modelling(predicted, head, ids, masked))


def test_reconstruction_gradients_are_those_of_finite_differences():
    predicted, target, masked = pictures()
    head = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(10).reshape(2, 5) % 6
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: vision_reconstruction(p, target, masked), predicted)
    assert torch.autograd.gradcheck(
        lambda p, h: masked_language_modelling(p, h, ids, masked), (predicted, head)
    )
