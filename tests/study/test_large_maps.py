"""A placed product stands where its nearest mapped ones do, however it was read; and the map says what it
keeps.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab.store.topk import prepare
from coral_lab.study import large_maps
from coral_lab.study.large_maps import LargeMap, counted, density, in_batches, large_map
from coral_lab.study.scaling import centres, clustered, unit

IDS = [f"p{i}" for i in range(600)]


@pytest.fixture(scope="module")
def rows():
    """Two clusters far apart."""
    random = np.random.default_rng(0)
    return clustered(random, np.eye(2, 16, dtype=np.float32), len(IDS), 0.4)


@pytest.fixture(scope="module")
def found(rows):
    return large_map(in_batches(IDS, rows), sample=200, seed=3)


def test_two_clusters_stay_apart_and_every_product_has_its_place(rows, found):
    assert list(found.ids) == IDS
    assert found.mapped.sum() == 200
    side = rows[:, 0] > rows[:, 1]
    gap = np.linalg.norm(found.places[side].mean(0) - found.places[~side].mean(0))
    spread = max(
        np.linalg.norm(found.places[own] - found.places[own].mean(0), axis=1).max() for own in (side, ~side)
    )
    assert spread < gap, "each lies within its own half"


@pytest.mark.parametrize("size", [1, 7, 150, 10_000])
def test_batches_of_any_size_give_the_same_map(rows, found, size):
    again = large_map(in_batches(IDS, rows, size), sample=200, seed=3)
    assert again.mapped.tolist() == found.mapped.tolist()
    np.testing.assert_allclose(again.places, found.places, rtol=1e-4, atol=1e-4)


def test_what_equals_a_mapped_product_stands_on_it(rows):
    base = np.random.default_rng(1).standard_normal((200, 2)).astype(np.float32)
    placed = large_maps._placed(rows[:200], prepare(rows[:200]), base)
    np.testing.assert_allclose(placed, base, atol=1e-3)


def test_between_two_mapped_products_a_third_has_the_nearer_one_s_place_more():
    """By hand: squared distances 2 - 2cos of 30° and 60°, and of one far off."""
    at = np.deg2rad([0, 90, 180])
    mapped = np.stack([np.cos(at), np.sin(at)], 1).astype(np.float32)
    base = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    own = np.array([[np.cos(np.pi / 6), 0.5]], np.float32)
    weights = (2 - 2 * np.cos(np.deg2rad([30, 60, 150]))) ** (-large_maps.POWER / 2)
    wanted = (weights / weights.sum())[1:]
    np.testing.assert_allclose(large_maps._placed(own, prepare(mapped), base)[0], wanted, rtol=1e-5)


def test_a_map_says_what_it_keeps(found):
    assert found.kept_mapped.n == 200
    assert found.kept_placed.n == 400
    assert found.chance == pytest.approx(10 / 599)
    assert found.kept_mapped.low > 3 * found.chance
    assert found.kept_placed.low > 3 * found.chance
    assert "600 products, 400 of them placed; of 10 nearest the map keeps" in repr(found)


def test_a_catalogue_no_larger_than_the_sample_is_mapped_whole(rows):
    whole = large_map(in_batches(IDS[:50], rows[:50]), sample=200)
    assert whole.mapped.all()
    assert "0 of them placed" in repr(whole)
    assert "of the placed" not in repr(whole)


@given(
    window=st.tuples(*[st.floats(-30, 30)] * 4).filter(lambda w: abs(w[0] - w[1]) > 0.1 < abs(w[2] - w[3])),
    cells=st.integers(1, 300),
)
@settings(max_examples=40, deadline=None)
def test_a_window_counts_every_product_in_it_once(found, window, cells):
    left, right = sorted(window[:2])
    lower, upper = sorted(window[2:])
    ends = (left, right, lower, upper)
    counts, x, y = counted(found, ends, cells)
    assert counts.sum() == len(found.inside(ends))
    assert counts.shape == (len(y), len(x))
    assert max(counts.shape) <= cells + 1
    assert left < x.min() <= x.max() < right


def test_all_of_it_is_in_the_window_and_in_the_figure(found):
    assert len(found.inside(found.window)) == 600
    (heat,) = density(found, "all").data
    assert np.nansum(np.asarray(heat.customdata)) == 600
    assert np.isnan(np.asarray(heat.z)[np.asarray(heat.customdata) == 0]).all(), "white where nobody is"


@pytest.mark.parametrize(
    ("ids", "embeddings", "problem"),
    [
        (["a"] * 30, np.zeros((30, 4), np.float32), "'a' has length 0; give normalised"),
        (["a"] * 30, np.full((30, 4), np.nan, np.float32), "'a' has length nan"),
        (["a"] * 30, np.full((30, 4), 2.0, np.float32), "'a' has length 4"),
        (["a"] * 2, unit(np.ones((2, 4), np.float32)), "2 rows make no map"),
        ([], np.zeros((0, 4), np.float32), "no products"),
    ],
)
def test_what_makes_no_map_is_refused(ids, embeddings, problem):
    with pytest.raises(ValueError, match=problem):
        large_map(in_batches(ids, embeddings))


def test_what_does_not_fit_is_refused(found):
    with pytest.raises(ValueError, match="3 ids and 2 embeddings"):
        in_batches(["a", "b", "c"], np.zeros((2, 4), np.float32))
    rows = centres(np.random.default_rng(0), 60, 8)
    ragged = [(IDS[:30], rows[:30]), (IDS[30:60], rows[30:, :5])]
    with pytest.raises(ValueError, match=r"30 ids and embeddings \(30, 5\); give 8 numbers"):
        large_map(lambda: ragged)
    with pytest.raises(ValueError, match="sample is 0"):
        large_map(in_batches(IDS[:60], rows), sample=0)
    for window, cells in [((1.0, 0.0, 0.0, 1.0), 9), ((0.0, 1.0, 1.0, 1.0), 9), ((0.0, 1.0, 0.0, 1.0), 0)]:
        with pytest.raises(ValueError, match="ends in order"):
            counted(found, window, cells)


def test_a_map_is_what_it_is_made_of(found):
    assert isinstance(found, LargeMap)
    assert found.places.dtype == np.float32


def test_what_is_kept_does_not_depend_on_the_catalogue_s_order(monkeypatch):
    """Tight clusters first, loose ones last: a check of the first rows alone would be of one kind."""
    monkeypatch.setattr(large_maps, "CHECKED", 50)
    drawn = large_maps._Drawn(
        400,
        IDS[:200],
        np.arange(200),
        centres(np.random.default_rng(0), 200, 8),
        np.arange(200, 400),
        centres(np.random.default_rng(1), 200, 8),
    )
    seen = []
    monkeypatch.setattr(
        large_maps, "map_neighbours", lambda places, k: seen.append(places) or _none(places, k)
    )
    large_maps._kept(drawn, np.repeat(np.arange(400, dtype=np.float32)[:, None], 2, 1))
    rows = seen[0][:50, 0]
    assert len(np.unique(rows)) == 50
    assert rows.max() > 150, "not the first 50"


def _none(places, k):
    return np.zeros((len(places), k), np.int64)


@pytest.mark.parametrize("change", [slice(100, None), slice(None, 500), slice(None, None, -1)])
def test_products_that_change_between_the_readings_are_refused(rows, change):
    readings = iter([in_batches(IDS, rows)(), in_batches(IDS[change], rows[change])()])
    with pytest.raises(ValueError, match="600 products were read first and"):
        large_map(lambda: next(readings), sample=100)
