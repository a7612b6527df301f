"""The cost model is arithmetic that a reader can do by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral_lab.study import solutions
from coral_lab.study.scaling import CODE, Assumptions, centres, clustered, costs, grown

HAND = Assumptions(dim=100, flop=1e12, peak=10e12, share=0.5, gpus=4, row=600, code=42, read=1e6)


def test_a_thousand_products_by_hand():
    (row,) = costs([1000], HAND).to_dict("records")
    assert HAND.rate == 5, "10 TFLOP/s at half, one TFLOP each"
    assert row["GPU-hours"] == pytest.approx(200 / 3600)
    assert row["hours"] == pytest.approx(50 / 3600)
    assert row["vectors, GB"] == row["memory, exact, GB"] == pytest.approx(400_000 / 1e9)
    assert row["rows, GB"] == pytest.approx(600_000 / 1e9)
    assert row["index, GB"] == row["memory, index, GB"] == pytest.approx((42 + CODE) * 1000 / 1e9)
    assert row["exact search, s"] == pytest.approx(0.4)


@given(st.integers(1, 10**9), st.integers(2, 50))
def test_everything_grows_in_step_with_the_catalogue(count, times):
    once, more = costs([count, times * count], HAND).drop(columns="products").to_numpy()
    np.testing.assert_allclose(more, times * once)


@pytest.mark.parametrize("name", ["dim", "flop", "peak", "share", "gpus", "row", "code", "read"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_what_cannot_be_assumed_is_refused(name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name}"):
        Assumptions(**{name: value})


def test_no_gpu_gives_more_than_its_peak():
    with pytest.raises(ValueError, match=r"share is 1\.2.*at most 1"):
        Assumptions(share=1.2)
    with pytest.raises(ValueError, match="a catalogue of 0 products"):
        costs([10, 0])


@given(st.floats(0.2, 3), st.floats(1e-6, 1e3))
def test_a_power_is_found(power, scale):
    counts = [10, 100, 1000, 20_000]
    assert grown([scale * count**power for count in counts], counts) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "counts"), [([1.0], [5]), ([1.0, 2.0], [5, 5]), ([0.0, 2.0], [5, 6]), ([], [])]
)
def test_a_power_of_one_size_is_refused(seconds, counts):
    with pytest.raises(ValueError, match="two or more"):
        grown(seconds, counts)


def test_vectors_stand_about_their_centres():
    random = np.random.default_rng(0)
    about = centres(random, 5, 64)
    rows = clustered(random, about, 2000, 0.5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    near = (rows @ about.T).max(1)
    assert near.mean() == pytest.approx(1 / np.hypot(1, 0.5), abs=0.02), "the cosine of so much noise"
    np.testing.assert_allclose((clustered(random, about, 9, 0.0) @ about.T).max(1), 1, rtol=1e-5)
    assert {*(rows @ about.T).argmax(1)} == set(range(5))


@given(st.integers(1, 10**10), st.floats(0.1, 400))
def test_one_gpu_less_would_not_do(count, days):
    gpus = solutions.gpus_for(count, days, HAND)
    hours = costs([count], HAND)["GPU-hours"][0]
    assert hours / gpus <= 24 * days * (1 + 1e-9)
    assert gpus == 1 or hours / (gpus - 1) > 24 * days * (1 - 1e-9)


@given(st.floats(1e-3, 1e4))
def test_one_product_more_would_not_fit(memory):
    count = solutions.fit_in(memory, HAND)
    assert count < 1 or costs([count], HAND)["memory, index, GB"][0] <= memory * (1 + 1e-9)
    assert costs([count + 1], HAND)["memory, index, GB"][0] > memory * (1 - 1e-9)
