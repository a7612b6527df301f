"""Geometry against scikit-learn, scipy and cases that can be worked out by hand."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from coral_lab.study import geometry


def sphere(count, dim, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def circle(*degrees):
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def test_neighbours_are_scikit_learn_s():
    rows = sphere(200, 6)
    expected = NearestNeighbors(n_neighbors=7).fit(rows).kneighbors(return_distance=False)
    np.testing.assert_array_equal(geometry.neighbours(rows, 7), expected)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(3, 30), st.integers(1, 5), st.integers(0, 3))
def test_no_row_is_its_own_neighbour_even_among_equals(count, k, seed):
    rows = sphere(3, 2, seed)[np.random.default_rng(seed).integers(3, size=count)]
    if k < count:
        near = geometry.neighbours(rows, k)
        assert (near != np.arange(count)[:, None]).all()
        assert all(len(set(row)) == k for row in near)


def test_anisotropy_by_hand():
    assert geometry.anisotropy(circle(0, 0, 0)) == pytest.approx(1)
    assert geometry.anisotropy(circle(0, 90, 180, 270)) == pytest.approx(-1 / 3)
    assert abs(geometry.anisotropy(sphere(2000, 64))) < 0.01


def test_alignment_and_uniformity_by_hand():
    assert geometry.alignment(circle(0, 90), circle(0, 270)) == pytest.approx(2.0)  # distances² 0 and 4
    assert geometry.alignment(circle(0, 90), circle(0, 180)) == pytest.approx(1.0)  # distances² 0 and 2
    assert geometry.uniformity(circle(0, 180)) == pytest.approx(-8)  # distance² 4
    assert geometry.uniformity(circle(30, 30)) == pytest.approx(0)
    rows = sphere(60, 5)
    expected = np.log(np.exp(-2 * cdist(rows, rows)[np.triu_indices(60, 1)] ** 2).mean())
    assert geometry.uniformity(rows) == pytest.approx(expected, rel=1e-4)


def test_a_sample_of_pairs_estimates_all(monkeypatch):
    rows = sphere(400, 8)
    whole = geometry.uniformity(rows), geometry.anisotropy(rows)
    monkeypatch.setattr(geometry, "PAIRS", 20_000)
    assert geometry.uniformity(rows) == pytest.approx(whole[0], abs=0.05)
    assert geometry.anisotropy(rows) == pytest.approx(whole[1], abs=0.02)


def test_all_pairs_are_taken_up_to_as_many_as_there_may_be(monkeypatch):
    rows = sphere(5, 3)  # ten pairs
    whole = geometry.uniformity(rows), geometry.anisotropy(rows)
    monkeypatch.setattr(geometry, "PAIRS", 10)
    assert (geometry.uniformity(rows, 7), geometry.anisotropy(rows, 7)) == whole
    monkeypatch.setattr(geometry, "PAIRS", 9)
    assert geometry.uniformity(rows) == geometry.uniformity(rows, 0) != geometry.uniformity(rows, 1)
    assert geometry.anisotropy(rows) == geometry.anisotropy(rows, 0) != geometry.anisotropy(rows, 1)


def test_a_row_is_never_paired_with_itself(monkeypatch):
    monkeypatch.setattr(geometry, "PAIRS", 1000)
    left, right = geometry._pairs(46, 0)
    assert (left != right).all()
    assert set(left) == set(right) == set(range(46))
    assert np.bincount((right - left) % 46).max() < 3 * 1000 / 45  # every distance is as likely


def test_modality_gap_by_hand():
    assert geometry.modality_gap(circle(0, 0), circle(90, 90)) == pytest.approx(2**0.5)
    assert geometry.modality_gap(circle(0, 180), circle(90, 270)) == pytest.approx(0, abs=1e-6)


def test_hubness_is_the_skewness_of_occurrences():
    rows = sphere(300, 30)
    counts = geometry.occurrences(rows, 5)
    near = NearestNeighbors(n_neighbors=5).fit(rows).kneighbors(return_distance=False)
    np.testing.assert_array_equal(counts, np.bincount(near.ravel(), minlength=300))
    assert counts.sum() == 1500
    assert geometry.hubness(rows, 5) == pytest.approx(stats.skew(counts))
    hub = np.concatenate([np.eye(40, dtype=np.float32), np.full((1, 40), 40**-0.5, np.float32)])
    assert geometry.hubness(hub, 1) > 3
    assert geometry.occurrences(rows).sum() == 10 * 300
    assert geometry.hubness(rows) == geometry.hubness(rows, 10)


@pytest.mark.parametrize("dim", [2, 5])
def test_intrinsic_dimension_of_a_sphere_in_a_larger_space(dim):
    rows = np.pad(sphere(3000, dim + 1), ((0, 0), (0, 20)))
    assert geometry.intrinsic_dimension(rows) == pytest.approx(dim, rel=0.12)
    assert geometry.intrinsic_dimension(np.concatenate([rows, rows[:50]])) == pytest.approx(dim, rel=0.12)


def test_overlap_by_hand():
    first, second = np.array([[1, 2], [0, 2]]), np.array([[2, 1], [0, 3]])
    np.testing.assert_array_equal(geometry.overlap(first, second), [1, 0.5])


def test_pca_finds_the_plane_that_points_lie_in():
    plane = np.random.default_rng(0).standard_normal((100, 2)) @ np.random.default_rng(1).standard_normal(
        (2, 9)
    )
    places, share = geometry.pca(plane.astype(np.float32))
    assert share.sum() == pytest.approx(1, abs=1e-5)
    assert places.shape == (100, 2)
    np.testing.assert_allclose(cdist(places, places), cdist(plane, plane), atol=1e-3)


def test_a_map_that_is_the_space_tears_nothing_and_a_random_one_nearly_all():
    rows = circle(*np.random.default_rng(0).uniform(0, 360, 150))
    assert not geometry.torn(rows, rows.astype(float), 4).any()
    scattered = np.random.default_rng(1).standard_normal((150, 2))
    assert geometry.torn(rows, scattered, 4).mean() > 0.9


def test_trustworthiness_of_the_space_itself_and_of_noise():
    rows = sphere(200, 3)
    random = np.random.default_rng(0).standard_normal((200, 2))
    distances = np.clip(1 - rows.astype(float) @ rows.T.astype(float), 0, 2)
    for places, k in ((rows[:, :2].astype(float), 6), (random, 6), (random, 1), (random, 99)):
        expected = trustworthiness(distances, places, n_neighbors=k, metric="precomputed")
        assert geometry.trustworthiness(rows, places, k) == pytest.approx(expected, abs=1e-6)
    flat = circle(*np.random.default_rng(0).uniform(0, 360, 100))
    assert geometry.trustworthiness(flat, flat.astype(float), 6) == pytest.approx(1)
    assert geometry.trustworthiness(rows, random, 6) < 0.7


def test_trustworthiness_of_a_sample_is_near_that_of_all():
    rows = sphere(3000, 5)
    places = rows[:, :2].astype(float)
    whole = geometry.trustworthiness(rows, places, 10, most=3000)
    assert geometry.trustworthiness(rows, places, 10, most=800) == pytest.approx(whole, abs=0.01)
    assert geometry.trustworthiness(rows, places, 10, most=800, seed=1) != whole
    assert geometry.trustworthiness(rows, places, 10) == geometry.trustworthiness(rows, places, 10, 2000, 0)


def test_shared_labels_by_hand():
    near = np.array([[1, 2], [0, 2], [0, 1]])
    np.testing.assert_array_equal(geometry.shared(near, ["a", "a", "b"]), [0.5, 0.5, 0])
    assert geometry.shared_by_chance(["a", "a", "b"]) == pytest.approx(1 / 3)  # one pair of three


def test_halves_are_halves_and_repeatable():
    rows = sphere(101, 4)
    sizes = geometry.over_halves(lambda some: float(len(some)), rows, repeats=3)
    np.testing.assert_array_equal(sizes, [50, 50, 50])
    found = geometry.over_halves(geometry.anisotropy, rows, repeats=5)
    assert len(set(found)) == 5
    np.testing.assert_array_equal(found, geometry.over_halves(geometry.anisotropy, rows, repeats=5))
    assert found.mean() == pytest.approx(geometry.anisotropy(rows), abs=0.05)


def test_a_change_is_measured_on_the_same_halves_of_both():
    rows, noise = sphere(400, 4), np.random.default_rng(1).standard_normal((400, 4)).astype(np.float32)

    def measure(some):
        return float(some[:, 0].mean())

    found = geometry.change_over_halves(measure, rows, rows + 0.5 * noise, repeats=400)
    own = 0.5 * noise[:, 0]  # the halves' rows themselves cancel, what is left is the mean of the noise
    assert found.mean == pytest.approx(own.mean(), abs=1e-6)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * own.std() / 20, rel=0.1)
    assert found.p == pytest.approx(stats.ttest_1samp(own, 0).pvalue, abs=0.05)


def test_no_change_is_none_and_another_number_of_rows_is_refused():
    rows = sphere(60, 4)
    found = geometry.change_over_halves(geometry.anisotropy, rows, rows, repeats=5)
    assert (found.mean, found.low, found.high, found.p, found.n) == (0, 0, 0, 1, 60)
    with pytest.raises(ValueError, match="60 rows before and 59 after"):
        geometry.change_over_halves(geometry.anisotropy, rows, rows[1:])


def test_groups_means_lie_around_their_middle():
    names, means = geometry.group_means(circle(0, 0, 90, 180, 270), ["b", "b", "a", "a", "a"])
    assert names == ["a", "b"]  # their means are (-1/3, 0) and (1, 0)
    np.testing.assert_allclose(means, [[-2 / 3, 0], [2 / 3, 0]], atol=1e-6)


def test_variance_between_groups_is_what_analysis_of_variance_says():
    rows, labels = sphere(90, 1 + 1)[:, :1], ["a", "b", "c"] * 30
    rows = rows + np.array([0, 0.5, 1], np.float32).repeat(1)[np.arange(90) % 3][:, None]
    f = stats.f_oneway(*(rows[i::3, 0] for i in range(3))).statistic
    assert geometry.between(rows, labels) == pytest.approx(f * 2 / (f * 2 + 87), rel=1e-4)
    assert geometry.between(circle(0, 0, 180, 180), ["a", "a", "b", "b"]) == pytest.approx(1)
    assert geometry.between(circle(0, 180, 0, 180), ["a", "a", "b", "b"]) == pytest.approx(0, abs=1e-6)


def test_what_is_projected_away_no_mean_shows_any_more():
    random = np.random.default_rng(0)
    labels = [f"{i % 4}" for i in range(400)]
    rows = sphere(400, 10) + random.standard_normal((4, 10)).astype(np.float32)[np.arange(400) % 4]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    found = geometry.directions(geometry.group_means(rows, labels)[1])
    assert found.shape == (3, 10)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
    rest = geometry.without(rows, found)
    np.testing.assert_allclose(np.linalg.norm(rest, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rest @ found.T, 0, atol=1e-5)
    assert geometry.between(rows, labels) > 0.3
    assert geometry.between(rest, labels) < 0.02
    plane = geometry.without(circle(0, 60), np.array([[1, 0]], np.float32)[:, :] * 0)  # nothing taken out
    np.testing.assert_allclose(plane, circle(0, 60), atol=1e-6)


def test_what_a_map_is_asked_for(monkeypatch):
    """By name, without drawing one: cosine, the seed, 15 neighbours or as many others as there are."""
    asked = []

    class Asked:
        def __init__(self, **options):
            asked.append(options)

        def fit_transform(self, rows, relations=None):
            asked[-1]["relations"] = relations
            return (
                np.zeros((len(rows), 2)) if relations is None else [np.zeros((len(own), 2)) for own in rows]
            )

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Asked, AlignedUMAP=Asked))
    geometry.umap(sphere(100, 3))
    geometry.umap(sphere(6, 3), 4, 9, 0.5)
    geometry.umap(sphere(4, 3))
    geometry.aligned_umaps([sphere(100, 3)] * 3)
    geometry.aligned_umaps([sphere(6, 3)] * 2, 4, 9)
    for own in asked:
        assert own.pop("metric") == "cosine"
    values = [tuple(own.get(name) for name in ("n_neighbors", "min_dist", "random_state")) for own in asked]
    assert values == [(15, 0.1, 0), (5, 0.5, 4), (3, 0.1, 0), (15, None, 0), (5, None, 4)]
    assert {own.get("n_jobs") for own in asked[:3]} == {1}  # else the seed would not settle it
    assert asked[3]["relations"] == [{i: i for i in range(100)}] * 2


def test_what_was_half_imported_is_imported_anew(monkeypatch):
    """Where numba refuses, all of UMAP goes and nothing else; numba and the modules are not the real ones."""
    modules = dict.fromkeys(["umap", "umap.umap_", "pynndescent.distances", "umapper", "a.umap", "numpy"])
    config = ModuleType("numba.core.config")
    core = SimpleNamespace(config=config)
    for name, module in {
        "numba": SimpleNamespace(core=core),
        "numba.core": core,
        "numba.core.config": config,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)

    def imported(name):
        if name in modules:
            raise RuntimeError("cannot cache function 'rdist'")
        return "anew"

    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(geometry, "import_module", imported)
    monkeypatch.setattr(geometry, "sys", SimpleNamespace(modules=modules))
    assert geometry._umap() == "anew"
    assert list(modules) == ["umapper", "a.umap", "numpy"]
    assert config.CACHE_DIR


@pytest.mark.slow
def test_maps_keep_neighbourhoods_and_aligned_maps_keep_places():
    centres = sphere(8, 16)
    rows = centres.repeat(40, 0) + 0.1 * sphere(320, 16, 1)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    places = geometry.umap(rows, seed=0)
    np.testing.assert_array_equal(places, geometry.umap(rows, seed=0))
    assert trustworthiness(rows, places, n_neighbors=10, metric="cosine") > 0.85
    one, two = geometry.aligned_umaps([rows, rows[:, ::-1].copy()])
    spread = np.linalg.norm(one - one.mean(0), axis=1).mean()
    assert np.linalg.norm(one - two, axis=1).mean() < 0.5 * spread


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: geometry.neighbours(sphere(5, 3), 5), "choose 1 to 4"),
        (lambda: geometry.alignment(sphere(5, 3), sphere(4, 3)), "one positive for each query"),
        (lambda: geometry.anisotropy(sphere(1, 3)), "have no pairs"),
        (lambda: geometry.intrinsic_dimension(circle(0, 0, 90)), "2 distinct rows"),
        (lambda: geometry.neighbours(sphere(5, 3), 0), "choose 1 to 4"),
        (lambda: geometry.umap(sphere(3, 3)), "give at least 4"),
        (lambda: geometry.aligned_umaps([sphere(5, 3), sphere(4, 3)]), "of the same items"),
        (lambda: geometry.aligned_umaps([sphere(5, 3)]), "two spaces or more"),
        (lambda: geometry.aligned_umaps([sphere(3, 3), sphere(3, 3)]), "give at least 4"),
        (lambda: geometry.map_neighbours(np.zeros((3, 2)), 0), "choose 1 to 2"),
        (lambda: geometry.trustworthiness(sphere(8, 3), np.zeros((8, 2)), 4), "below half"),
        (lambda: geometry.trustworthiness(sphere(8, 3), np.zeros((8, 2)), 0), "below half"),
        (lambda: geometry.map_neighbours(np.zeros((3, 2)), 3), "choose 1 to 2"),
        (lambda: geometry.overlap(np.zeros((2, 2), int), np.zeros((2, 3), int)), "as many neighbours"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# ---- what neighbours share, beside chance


SIX = np.array([[1], [0], [3], [2], [5], [4]])  # three pairs of nearest neighbours


def test_agreement_of_six_points_by_hand():
    """Pairs a a, a b, b b: four of six have their neighbour's label. By chance 2 · (3 · 2) / (6 · 5) = .4."""
    table = geometry.label_agreement(SIX, {"kind": list("aaabbb")}, permutations=2000)
    row = table.iloc[0]
    assert row["agreement"] == pytest.approx(4 / 6)
    assert row["by chance"] == pytest.approx(0.4, abs=0.02)
    assert geometry.shared_by_chance(list("aaabbb")) == pytest.approx(0.4)
    assert row["p"] == pytest.approx(12 / 20, abs=0.05)  # of 20 deals 8 give no pair of one label


def test_several_values_agree_where_one_is_shared_and_unknown_ones_do_not_count():
    values = [("red", "blue"), ("blue",), ("red",), ("green",), (), ("red",)]
    table = geometry.label_agreement(SIX, {"color": values})
    assert table["agreement"].iloc[0] == pytest.approx(2 / 4)  # the last pair has a product without a value


def test_siblings_are_left_out():
    table = geometry.label_agreement(SIX, {"kind": list("aabbbb")}, apart=["x", "x", "1", "2", "3", "4"])
    assert table["agreement"].iloc[0] == 1
    with pytest.raises(ValueError, match="6 rows and 2 labels of 'kind'"):
        geometry.label_agreement(SIX, {"kind": ["a", "b"]})


def test_labels_that_are_the_clusters_agree_and_random_ones_do_as_chance_has_it():
    rng = np.random.default_rng(1)
    rows = np.eye(80)[rng.integers(0, 80, 300)] + 0.1 * rng.normal(size=(300, 80))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    near = geometry.neighbours(rows, 2)
    true = [str(value) for value in rows.argmax(1)]
    dealt = [str(value) for value in rng.integers(0, 5, 300)]
    many = [(f"{value}", f"{value + 70}") for value in rng.integers(0, 70, 300)]  # more than 64 values
    table = geometry.label_agreement(near, {"true": true, "dealt": dealt, "many": many}).set_index("label")
    assert table.loc["true", "agreement"] > 0.7
    assert table.loc["true", "p"] < 0.01
    assert (
        table.loc["dealt", "low"] - 0.05 < table.loc["dealt", "agreement"] < table.loc["dealt", "high"] + 0.05
    )
    assert table.loc["dealt", "p"] > 0.01
    assert 0 <= table.loc["many", "agreement"] < 0.2


def test_siblings_labels_are_dealt_out_together():
    """Labels that listings got by chance: a p below .05 in about one of twenty, not in a third of them."""
    small = [_p_of_listings(seed) < 0.05 for seed in range(60)]
    assert np.mean(small) <= 0.15


def _p_of_listings(seed):
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(60, 24)), 8, axis=0) + 0.15 * rng.normal(size=(480, 24))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    listing = [str(n) for n in np.repeat(np.arange(60), 8)]
    kind = [str(n) for n in np.repeat(rng.integers(0, 4, 60), 8)]
    near = geometry.neighbours(rows, 15)
    table = geometry.label_agreement(near, {"kind": kind}, apart=listing, permutations=99, seed=seed)
    return table["p"].iloc[0]


def test_where_no_neighbours_count_there_is_no_p():
    table = geometry.label_agreement(SIX, {"kind": list("aaabbb"), "none": [()] * 6}, apart=["one"] * 6)
    assert table[["agreement", "p"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="permutations is 0"):
        geometry.label_agreement(SIX, {"kind": list("aaabbb")}, permutations=0)
