"""Clusters are those of the embeddings, and are called by what sets them apart."""

from math import log

import numpy as np
import pytest

from coral_lab.query import Product
from coral_lab.study.cluster_names import clusters, named


def products_of(*titles, **known):
    return [Product(f"p{i}", title, **known) for i, title in enumerate(titles)]


def test_words_are_scored_by_hand():
    """Of "red bag" twice and "bag", five words, and "blue shoe" twice, four: A is 9 / 2."""
    products = products_of("red bag", "red bag", "bag", "blue shoe", "blue shoe")
    names = named(products, np.array([0, 0, 0, 1, 1]), 2)
    mean = 9 / 2
    scores = {"red": 2 * log(1 + mean / 2), "bag": 3 * log(1 + mean / 3)}
    assert scores["bag"] > scores["red"]
    assert names == ("bag, red", "blue, shoe")


def test_well_separated_groups_are_found_whatever_the_language():
    rng = np.random.default_rng(0)
    titles = ["กระเป๋า หนัง", "túi da", "red shoe"] * 10
    rows = np.eye(8)[np.arange(30) % 3] + 0.05 * rng.normal(size=(30, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    found = clusters(products_of(*titles), rows, 3)
    for group in range(3):
        assert len(set(found.codes[group::3])) == 1
    assert set(found.names) == {"กระเป๋า, หนัง", "da, túi", "red, shoe"}
    assert found.labels[:3] == [found.names[code] for code in found.codes[:3]]
    again = clusters(products_of(*titles), rows, 3)
    assert (again.codes == found.codes).all()


def test_attributes_and_classes_speak_where_titles_do_not():
    red = products_of("", "", class_name="bag", attributes={"color": ("red", "dark red")})
    blue = products_of("", "", class_name="bag", attributes={"color": ("blue",)})
    names = named([*red, *blue], np.array([0, 0, 1, 1]), 1)
    assert names == ("dark red", "blue")  # of two words that hold one another the first counts


def test_where_nothing_is_known_a_cluster_has_a_number():
    assert named(products_of("", "", "", ""), np.array([0, 0, 1, 1])) == ("cluster 1", "cluster 2")
    assert named(products_of("bag", "bag", "bag", "bag"), np.array([0, 0, 1, 1])) == ("bag", "bag (2)")


def test_more_clusters_than_there_are_points_are_as_many_as_points():
    rows = np.eye(3, dtype=np.float32)
    assert len(clusters(products_of("a a", "bb", "cc"), rows, 9).names) == 3


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="2 products, 3 embeddings and 2 clusters"):
        clusters(products_of("a", "b"), np.eye(3, dtype=np.float32), 2)
    with pytest.raises(ValueError, match="1 clusters; give one embedding each, and 2"):
        clusters(products_of("a", "b", "c"), np.eye(3, dtype=np.float32), 1)
