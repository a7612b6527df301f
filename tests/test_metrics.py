"""Metrics against values worked out by hand and against ranx; intervals and tests against their
definitions.
"""

import json
import math
import os
import subprocess
import sys
from inspect import unwrap
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from coral_lab.metrics import (
    MISS,
    Estimate,
    best_ranks,
    condensed,
    crossed_change,
    crossed_estimate,
    detectable_difference,
    estimate,
    graded_ndcg,
    holm,
    judged_share,
    ndcg,
    paired_difference,
    recall_at,
    reciprocal_rank,
)
from coral_lab.replication.seeds import detectable

RANKS = np.array([1, 2, 5, 6, 10, 11, 51_177, MISS])


@pytest.mark.parametrize(("k", "hits"), [(1, 1), (2, 2), (4, 2), (5, 3), (10, 5), (100, 6)])
def test_recall_counts_the_queries_whose_best_positive_is_among_the_first_k(k, hits):
    assert recall_at(RANKS, k).mean() == pytest.approx(hits / 8)


def test_the_reciprocal_rank_counts_nothing_beyond_ten():
    expected = [1, 1 / 2, 1 / 5, 1 / 6, 1 / 10, 0, 0, 0]
    np.testing.assert_allclose(reciprocal_rank(RANKS), expected)
    assert reciprocal_rank(RANKS, depth=2).tolist() == [1, 0.5, 0, 0, 0, 0, 0, 0]


def test_the_authors_example_of_a_miss_counts_zero_in_every_metric():
    ranks = np.array([MISS, MISS])
    with np.errstate(all="raise"):  # nor is anything divided by nothing
        assert recall_at(ranks, 10).mean() == reciprocal_rank(ranks).mean() == 0


def test_the_best_placed_positive_sets_the_rank():
    relevant = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 1]], bool)
    assert best_ranks(relevant).tolist() == [2, 1, -1, 3]


def random_relevance(queries: int = 40, width: int = 15, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which ranks hold a right answer, and how many right answers each query has, some of them not found."""
    random = np.random.default_rng(seed)
    relevant = random.random((queries, width)) < random.choice([0, 0.05, 0.3], (queries, 1))
    return relevant, np.maximum(1, relevant.sum(1) + random.integers(0, 4, queries))


def test_ndcg_of_a_case_worked_out_by_hand():
    relevant = np.array([[True, False, True], [False, True, False], [False, False, False]])
    found = ndcg(relevant, np.array([2, 3, 1]))
    second = (1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / 2)
    np.testing.assert_allclose(found, [1.5 / (1 + 1 / math.log2(3)), second, 0])


def test_a_perfect_ranking_has_ndcg_one_and_a_query_without_answers_zero():
    relevant = np.array([[True] * 10, [True, True] + [False] * 8, [False] * 10])
    np.testing.assert_allclose(ndcg(relevant, np.array([25, 2, 0])), [1, 1, 0])


GRADES = np.array([[0, -1, 1, 2], [-1, -1, -1, -1], [2, 1, 0, -1]])


def test_ndcg_by_grades_of_a_case_worked_out_by_hand():
    judged = [(0, 1, 2), (2,), (1, 2, 0, 0)]
    first = (1 / 2 + 3 / math.log2(5)) / (3 + 1 / math.log2(3))
    np.testing.assert_allclose(graded_ndcg(GRADES, judged), [first, 0, 1])
    cut = (1 / 2) / (3 + 1 / math.log2(3))
    np.testing.assert_allclose(graded_ndcg(GRADES, judged, depth=3), [cut, 0, 1])
    with np.errstate(all="raise"):
        assert graded_ndcg(GRADES, [(), (0, 0), ()])[:2].tolist() == [0, 0]
    assert np.isfinite(graded_ndcg(np.full((1, 10), 100), [(100,) * 10])).all()


def test_condensed_hits_keep_their_order():
    assert condensed(GRADES).tolist() == [[0, 1, 2, -1], [-1] * 4, [2, 1, 0, -1]]


def test_the_judged_share_is_of_the_hits_there_are():
    found = np.array([[True] * 4, [False] * 4, [True, True, False, False]])
    assert judged_share(GRADES, found).tolist() == [3 / 4, 0, 1]
    assert judged_share(GRADES, found, depth=2).tolist() == [1 / 2, 0, 1]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=14), st.randoms(use_true_random=False))
def test_ndcg_by_grades_is_scikit_learns(grades, random):
    shuffled = random.sample(grades, len(grades))
    expected = ndcg_score([[2**own - 1 for own in shuffled]], [range(len(grades), 0, -1)], k=10)
    assert graded_ndcg(np.array([shuffled]), [grades])[0] == pytest.approx(expected)


# numba takes half a minute to compile ranx; interpreted it takes a second, but only a process can choose.
RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
qrels, run, metrics = json.load(sys.stdin)
print(json.dumps({name: float(value) for name, value in evaluate(Qrels(qrels), Run(run), metrics).items()}))
"""


def test_ndcg_mrr_and_hit_rate_are_those_of_ranx():
    relevant, positives = random_relevance()
    qrels, run = {}, {}
    for i, (row, count) in enumerate(zip(relevant, positives, strict=True)):
        found = [f"d{rank}" for rank in np.flatnonzero(row)]
        qrels[f"q{i}"] = dict.fromkeys(found + [f"unfound {n}" for n in range(count - len(found))], 1)
        run[f"q{i}"] = {f"d{rank}": float(-rank) for rank in range(len(row))}
    ours, ranks = {}, best_ranks(relevant)
    for depth in (1, 5, 10):
        ours[f"ndcg@{depth}"] = ndcg(relevant, positives, depth).mean()
        ours[f"mrr@{depth}"] = reciprocal_rank(ranks, depth).mean()
        ours[f"hit_rate@{depth}"] = recall_at(ranks, depth).mean()
    done = subprocess.run(
        [sys.executable, "-c", RANX],
        input=json.dumps([qrels, run, list(ours)]),
        text=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        check=True,
    )
    theirs = json.loads(done.stdout)
    assert all(0 < value < 1 for value in theirs.values())
    assert ours == pytest.approx(theirs)


# ---- intervals


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_contains_the_mean_and_its_seed_settles_it(seed):
    values = np.random.default_rng(seed).random(50)
    found = estimate(values, seed=seed)
    assert found.low < found.mean < found.high
    assert (found.mean, found.n) == (pytest.approx(values.mean()), 50)
    assert found == estimate(values, seed=seed)
    assert found != estimate(values, seed=seed + 1)


def test_a_higher_confidence_is_wider_and_more_queries_are_narrower():
    values = np.random.default_rng(0).random(100)
    widths = [
        e.high - e.low for e in (estimate(values), estimate(values, 0.5), estimate(np.tile(values, 16)))
    ]
    assert widths[1] < widths[0]
    assert widths[2] == pytest.approx(widths[0] / 4, rel=0.1)


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3])
def test_equal_values_have_an_interval_of_no_width(value):
    assert estimate(np.full(7, value)) == Estimate(value, value, value, 7)


def test_no_queries_give_no_number():
    found = estimate(np.array([]))
    assert np.isnan([found.mean, found.low, found.high]).all()
    assert found.n == 0


@pytest.mark.parametrize("values", [(np.arange(200) % 5 == 0).astype(float), 1 / np.arange(1, 61.0)])
def test_it_is_the_percentile_bootstrap_over_queries(values):
    random = np.random.default_rng(1)
    means = random.choice(values, (20_000, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    found = estimate(values, resamples=20_000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_the_interval_covers_the_truth_about_95_times_in_100(rate):
    random = np.random.default_rng(0)
    found = [estimate((random.random(200) < rate).astype(float), resamples=500, seed=i) for i in range(400)]
    covered = np.mean([e.low <= rate <= e.high for e in found])
    assert 0.92 < covered < 0.98  # three standard errors


def test_unless_told_otherwise_it_is_95_percent_of_2000_resamples_by_the_seed_0():
    """Else figures that were published could not be had again."""
    values = np.random.default_rng(0).random((30, 3))
    assert estimate(values[:, 0]) == estimate(values[:, 0], 0.95, 2000, 0)
    assert crossed_estimate(values) == crossed_estimate(values, 0.95, 2000, 0)
    assert crossed_change(values, values**2) == crossed_change(values, values**2, 0.95, 2000, 0)
    pair = values[:, 0], values[:, 1]
    assert paired_difference(*pair) == paired_difference(*pair, 0)


def test_an_estimate_is_read_as_mean_and_interval():
    assert str(Estimate(0.6968, 0.65, 0.74, 100)) == "0.697 [0.650, 0.740]"


# ---- paired tests


def every_flip(difference: np.ndarray) -> float:
    """The two-sided p-value by listing all 2^n signs."""
    means = np.array([np.mean(difference * signs) for signs in product([1, -1], repeat=len(difference))])
    above, below = (means >= difference.mean() - 1e-12).mean(), (means <= difference.mean() + 1e-12).mean()
    return min(1.0, 2 * min(above, below))


@pytest.mark.parametrize("n", [1, 2, 5, 10])
@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.0])
def test_the_p_value_of_few_queries_is_exact(n, shift):
    random = np.random.default_rng(n)
    a, b = random.random(n) + shift, random.random(n)
    assert paired_difference(a, b).p == pytest.approx(every_flip(a - b))


def test_the_p_value_of_many_queries_is_that_of_the_t_test():
    random = np.random.default_rng(0)
    a = random.normal(0.15, 1, 200)
    b = random.normal(0, 1, 200)
    found = paired_difference(a, b)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)
    assert (found.mean, found.n) == (pytest.approx((a - b).mean()), 200)


def test_which_system_is_better_shows_in_the_sign():
    random = np.random.default_rng(0)
    worse = (random.random(300) < 0.3).astype(float)
    better = np.maximum(worse, random.random(300) < 0.2)
    up, down = paired_difference(better, worse), paired_difference(worse, better)
    assert 0 < up.low < up.mean < up.high
    assert (down.mean, down.low, down.high) == pytest.approx((-up.mean, -up.high, -up.low), abs=0.02)
    assert up.p == down.p < 0.001


def test_equal_systems_do_not_differ():
    values = np.array([0.0, 1.0, 1.0])
    found = paired_difference(values, values)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_where_nothing_differs_small_p_values_are_as_rare_as_they_say():
    random = np.random.default_rng(0)
    p = np.array([paired_difference(random.random(9), random.random(9)).p for _ in range(150)])
    assert np.mean(p < 0.05) < 0.11  # three standard errors above 0.05
    assert 0.4 < p.mean() < 0.6


@pytest.mark.parametrize(("a", "b"), [(3, 2), (2, 3), (0, 0), (1, 0)])
def test_lists_that_do_not_pair_up_are_refused_with_both_lengths(a, b):
    unchecked = unwrap(paired_difference)  # what a user calls: the tests' type check would be first to refuse
    with pytest.raises(ValueError, match=f"{a} values against {b}"):
        unchecked(np.ones(a), np.ones(b))


def test_with_one_seed_the_crossed_interval_is_the_plain_one():
    values = np.random.default_rng(0).random(200)
    crossed, plain = crossed_estimate(values[:, None]), estimate(values)
    assert crossed.mean == pytest.approx(plain.mean)
    assert (crossed.low, crossed.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_seeds_that_differ_widen_the_crossed_interval():
    """Two seeds, 0 and 1 on every query: a resample's mean is 0, 1/2 or 1, each end in a quarter of them."""
    found = crossed_estimate(np.tile([0.0, 1.0], (50, 1)))
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0, 1, 50)


def test_no_values_have_no_crossed_estimate():
    with pytest.raises(ValueError, match="at least one query and one seed"):
        crossed_estimate(np.empty((0, 3)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (7, 1), (7, 4)])
def test_a_change_by_the_same_factor_everywhere_has_an_interval_of_no_width(shape):
    baseline = 0.1 + np.random.default_rng(0).random(shape)
    found = crossed_change(1.5 * baseline, baseline)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.n == shape[0]


def test_a_change_is_drawn_together_with_its_baseline():
    """Two seeds: unchanged in one, three times as much in the other. A draw has the first alone, both or the
    second alone, each end in a quarter of them.
    """
    baseline, values = np.tile([2.0, 1.0], (50, 1)), np.tile([2.0, 3.0], (50, 1))
    found = crossed_change(values, baseline)
    assert (found.mean, found.low, found.high, found.n) == (pytest.approx(5 / 3 - 1), 0, 2, 50)


def test_the_interval_of_a_change_is_that_of_resampling_queries_and_seeds():
    random = np.random.default_rng(0)
    baseline = random.random((40, 3))
    values, changes = baseline + random.random((40, 3)), []
    for _ in range(4000):
        rows, columns = random.integers(40, size=40), random.integers(3, size=3)
        drawn = np.ix_(rows, columns)
        changes.append(values[drawn].mean() / baseline[drawn].mean() - 1)
    for confidence, ends in ((0.95, [0.025, 0.975]), (0.5, [0.25, 0.75])):
        found, (low, high) = crossed_change(values, baseline, confidence), np.quantile(changes, ends)
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_a_change_needs_pairs_and_a_baseline_that_is_not_zero_throughout():
    unchecked, ones = unwrap(crossed_change), np.ones((4, 2))
    for values, baseline in ((ones, np.ones((4, 1))), (ones, 0 * ones)):
        with pytest.raises(ValueError, match=r"shape \(4, 2\), the baseline's of .* with mean"):
            unchecked(values, baseline)
    some = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert crossed_change(2 * some, some).mean == 1  # one hit is enough


# ---- several tests


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        (
            [0.01, 0.04, 0.03, 0.005],
            [0.03, 0.06, 0.06, 0.02],
        ),  # 4 · 0.005, 3 · 0.01, 2 · 0.03, and not below it
        ([0.9, 0.6], [1, 1]),
        ([0.2], [0.2]),
    ],
)
def test_holms_correction_by_hand(given, corrected):
    assert holm(np.array(given)) == pytest.approx(corrected)


def test_the_smallest_difference_that_is_found_by_hand_and_beside_the_t_test():
    """(1.95996 + 0.84162) · 0.5 / 10; and with many queries what seeds' t test says of as many seeds."""
    assert detectable_difference(0.5, 100) == pytest.approx(0.140079, abs=1e-6)
    assert detectable_difference(0.3, 60) == pytest.approx(detectable(0.3, 60), rel=0.03)
    assert detectable_difference(0.5, 100, 0.9) > detectable_difference(0.5, 100)
    assert np.isnan(detectable_difference(0.0, 100))
    for wrong in ((0.5, 1, 0.8), (-0.1, 10, 0.8), (float("nan"), 10, 0.8), (0.5, 10, 1.0), (0.5, 10, 0.05)):
        with pytest.raises(ValueError, match="give 2 or more"):
            detectable_difference(*wrong)


def test_the_smallest_difference_is_found_8_times_of_10():
    random, found = np.random.default_rng(0), 0
    size = detectable_difference(1.0, 50)
    for _ in range(400):
        found += stats.ttest_1samp(random.normal(size, 1.0, 50), 0).pvalue < 0.05
    assert 0.74 < found / 400 < 0.86
