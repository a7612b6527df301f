"""After LEACE nothing linear tells the labels, and no other map of its kind moves the rows less."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from coral_lab.study.erasure import Eraser, leace


def rows_and_labels(seed=0, count=600, dim=6, kinds=3):
    """Correlated rows whose means differ by label, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(kinds, size=count)
    spread = random.normal(size=(dim, dim))
    rows = random.normal(size=(count, dim)) @ spread + 1.5 * random.normal(size=(kinds, dim))[labels]
    return rows, [f"label {label}" for label in labels]


def told(rows, labels):
    names, places = np.unique(labels, return_inverse=True)
    hot = np.eye(len(names))[places]
    return (rows - rows.mean(0)).T @ (hot - hot.mean(0)) / len(rows)


def moved(before, after):
    return ((before - after) ** 2).sum(1).mean()


def orthogonal(rows, labels):
    """The projection at a right angle to the directions of the labels' means."""
    cross = told(rows, labels)
    left, sizes, _ = np.linalg.svd(cross, full_matrices=False)
    own = left[:, sizes > 1e-9]
    return rows - (rows - rows.mean(0)) @ own @ own.T


def test_one_direction_by_hand():
    """Uncorrelated dimensions, and labels that differ in the first alone: it becomes its mean."""
    rows = np.array([[0, 1], [0, -1], [4, 1], [4, -1]], np.float32)
    eraser = leace(rows, ["a", "a", "b", "b"])
    np.testing.assert_allclose(eraser.away, [[1, 0], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(eraser(rows), [[2, 1], [2, -1], [2, 1], [2, -1]], atol=1e-6)


def test_a_probe_reads_the_labels_before_and_nothing_after():
    rows, labels = rows_and_labels()
    probe = LogisticRegression(C=1e4, max_iter=2000).fit(rows, labels)
    assert probe.score(rows, labels) > 0.6
    bare = leace(rows, labels)(rows)
    assert np.abs(told(bare, labels)).max() < 1e-9
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    after = LogisticRegression(C=1e4, max_iter=2000, tol=1e-8).fit(bare, labels).predict_proba(bare)
    np.testing.assert_allclose(after, np.tile(shares, (len(rows), 1)), atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_no_map_that_erases_moves_the_rows_less(seed, kinds):
    rows, labels = rows_and_labels(seed, 200, 5, kinds)
    eraser, random = leace(rows, labels), np.random.default_rng(seed)
    least = moved(rows, eraser(rows))
    assert least <= moved(rows, orthogonal(rows, labels)) + 1e-9
    cross = told(rows, labels)
    free = np.eye(5) - cross @ np.linalg.pinv(cross)  # what is left of a matrix blind to the labels
    other = Eraser(eraser.mean, eraser.away + 0.1 * random.normal(size=(5, 5)) @ free)
    assert np.abs(told(other(rows), labels)).max() < 1e-9
    assert least <= moved(rows, other(rows)) + 1e-9


def test_it_moves_correlated_rows_less_than_a_projection():
    rows, labels = rows_and_labels()
    assert moved(rows, leace(rows, labels)(rows)) < 0.9 * moved(rows, orthogonal(rows, labels))


def test_erasing_twice_changes_nothing_more_and_the_mean_stays():
    rows, labels = rows_and_labels()
    eraser = leace(rows, labels)
    once = eraser(rows)
    np.testing.assert_allclose(eraser(once), once, atol=1e-9)
    np.testing.assert_allclose(once.mean(0), rows.mean(0), atol=1e-9)
    assert np.linalg.matrix_rank(eraser.away, tol=1e-8) == 2


def test_dimensions_that_do_not_vary_stay():
    rows, labels = rows_and_labels()
    wide = np.concatenate([rows, np.full((len(rows), 1), 3.0), rows[:, :1]], 1)  # constant, and a copy
    bare = leace(wide, labels)(wide)
    assert np.isfinite(bare).all()
    np.testing.assert_allclose(bare[:, -2], 3.0)
    np.testing.assert_allclose(bare[:, -1], bare[:, 0], atol=1e-8)
    assert np.abs(told(bare, labels)).max() < 1e-8


def test_rows_that_say_nothing_of_the_labels_stay_as_they_are():
    rows = np.array([[1, 0], [-1, 0], [1, 0], [-1, 0]], float)
    np.testing.assert_array_equal(leace(rows, ["a", "a", "b", "b"])(rows), rows)
    same = np.ones((4, 2))
    np.testing.assert_array_equal(leace(same, ["a", "a", "b", "b"])(same), same)


def test_normalised_rows_are_of_length_one():
    rows, labels = rows_and_labels()
    bare = leace(rows, labels).normalised(rows.astype(np.float32))
    assert bare.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(bare, axis=1), 1, rtol=1e-6)


def test_what_cannot_be_erased_is_said():
    rows, labels = rows_and_labels(count=20)
    with pytest.raises(ValueError, match="20 rows, 19 labels, 3 different; give one a row, of two"):
        leace(rows, labels[1:])
    with pytest.raises(ValueError, match="20 rows, 20 labels, 1 different"):
        leace(rows, ["en"] * 20)
    broken = rows.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity; leave out"):
        leace(broken, labels)
    with pytest.raises(ValueError, match="rows have 5 dimensions; the eraser has 6"):
        leace(rows, labels)(rows[:, :5])
