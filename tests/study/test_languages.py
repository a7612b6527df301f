"""Preference, exposure and probes of language, on models made by hand: one that heeds a language, one that is
blind to it, one that shows one language to all, and random ones.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab import Dataset, Product, Query
from coral_lab.encoder import Settings
from coral_lab.errors import ItemError, NotShownError
from coral_lab.study.languages import (
    Parallel,
    by_query,
    erased,
    exposure,
    figures,
    found,
    measured,
    parallel,
    read_off,
    titles_apart,
)

LANGUAGES = ("en", "id", "ms", "th", "vi")
PRODUCTS, QUERIES, DIM = 130, 40, 24


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def world(own=0.0, english=0.0, noise=0.02, seed=0, products=PRODUCTS):
    """Products and queries of DIM dimensions, and five more for languages: each title's own, by `own`, and a
    liking for English that all queries have, by `english`. Query i wants product i.
    """
    random = np.random.default_rng(seed)
    what, hot = random.normal(size=(products, DIM)) / DIM**0.5, np.eye(len(LANGUAGES))
    plain = np.concatenate([np.tile(what, (5, 1, 1)), np.tile(own * hot[:, None], (1, products, 1))], axis=2)
    titles, queries = plain + noise * random.normal(size=plain.shape), plain[:, :QUERIES]
    queries = queries + noise * random.normal(size=(5, QUERIES, DIM + 5))
    queries[..., DIM] += english
    titles[0, :, DIM] += english
    right = np.eye(QUERIES, products, dtype=bool)
    classes = [f"class {i % 3}" for i in range(products)]
    return Parallel(LANGUAGES, unit(titles), unit(queries), right, np.zeros_like(right), classes)


@pytest.fixture(scope="module")
def heeding():
    return world(own=1.0)


@pytest.fixture(scope="module")
def blind():
    return world()


def test_a_model_that_heeds_the_language_finds_its_own(heeding):
    table = by_query(heeding)
    assert len(table) == QUERIES
    assert table["R@1"].min() == table["own first"].min() == 1
    assert table["own top 5"].mean() > 0.95
    row = figures(heeding, table)
    assert row["own first p"] < 0.001
    assert row["exposure ratio"] > 0.95  # each language gets its own askers' places


def test_a_model_that_is_blind_finds_all_alike(blind):
    table = by_query(blind)
    assert table["R@1"].mean() == 1
    assert abs(table["own first"].mean() - 0.2) < 0.08
    assert table["own top 5"].tolist() == [0.2] * QUERIES  # the five titles of the right product
    row = figures(blind, table)
    assert row["own first p"] > 0.05
    assert row["own top 5 p"] == 1


def test_one_language_for_all_is_no_preference_but_unfair():
    table = by_query(world(english=2.0))
    assert table["own first"].tolist() == [0.2] * QUERIES  # one asking of five is English
    assert table["exposure en"].mean() == 1
    row = figures(world(english=2.0), table)
    assert (row["exposure most"], row["exposure ratio"]) == ("en", 0)
    assert row["exposure p"] < 0.01
    assert row["own first p"] == 1


def test_random_vectors_prefer_nothing():
    random = np.random.default_rng(1)
    own = world()
    own = replace(
        own,
        products=unit(random.normal(size=own.products.shape)),
        queries=unit(random.normal(size=own.queries.shape)),
    )
    row, table = measured(own)
    assert row["own first low"] <= 0.2 <= row["own first high"]
    assert row["exposure p"] > 0.05
    assert row["R@1"] < 0.1
    assert row["language read low"] <= 0.2 <= row["language read high"]
    assert table.filter(like="exposure").sum(axis=1).to_numpy() == pytest.approx(1)


def small():
    """Two languages and five products along the axes of the first five dimensions; the sixth is French."""
    what = np.eye(5, 6)
    french = what + np.array([0, 0, 0, 0, 0, 0.5])
    queries = np.stack([what[:1], what[:1] + np.array([0, 0.1, 0, 0, 0, 1])])
    marks = np.zeros((1, 5), bool)
    right = marks.copy()
    right[0, 0] = True
    return Parallel(("en", "fr"), unit([what, french]), unit(queries), right, marks, ["bag"] * 5)


def test_ranks_and_shares_by_hand():
    """In English the English title is first, then the French one of it; in French the French come first."""
    own = small()
    hits = found(own, 3)
    assert hits.tolist() == [[[0, 5, 1]], [[5, 0, 6]]]  # rows of the flat pool: 5 and 6 are French
    table = by_query(own)
    assert table["R@1"].tolist() == table["own first"].tolist() == [1]
    english = found(own, 10)[0, 0] < 5
    french = found(own, 10)[1, 0] < 5
    worth = 1 / np.log2(np.arange(2, 12))
    share = (worth[english].sum() + worth[french].sum()) / worth.sum() / 2
    assert table["exposure en"].iloc[0] == pytest.approx(share)
    assert table["exposure fr"].iloc[0] == pytest.approx(1 - share)
    assert table["own top 5"].iloc[0] == pytest.approx((np.sum(english[:5]) + 5 - np.sum(french[:5])) / 10)


def test_references_stay_out_in_every_language():
    own = small()
    gone = own.left_out.copy()
    gone[0, 0] = True
    hits = found(replace(own, left_out=gone), 8)
    assert not np.isin(hits, [0, 5]).any()
    with pytest.raises(ValueError, match="k is 9; give 1 to 8, what is left of the pool without references"):
        found(replace(own, left_out=gone), 9)
    with pytest.raises(ValueError, match="k is 0"):
        found(own, 0)


def test_how_far_titles_lie_apart_by_hand():
    """The first product's titles are at a right angle, the second's the same; the third is alone in its
    class.
    """
    rows = np.array([[[1, 0], [1, 0], [0, 1]], [[0, 1], [1, 0], [0, 1]]], np.float32)
    marks = np.zeros((1, 3), bool)
    own = replace(
        small(),
        queries=rows[:, :1],
        products=rows,
        classes=["bag", "bag", "hat"],
        right=marks,
        left_out=marks,
    )
    within, others = titles_apart(own)
    assert within == pytest.approx([1, 0, 0])
    assert others[:2] == pytest.approx([0.5, 0.5])  # the same in English, at a right angle in French
    assert np.isnan(others[2])


def test_titles_of_a_blind_model_lie_nearer_than_products(blind, heeding):
    near, far = (figures(own, by_query(own)) for own in (blind, heeding))
    assert near["titles to products"] < 0.1 < 0.5 < far["titles to products"]
    assert near["titles to products low"] <= near["titles to products"] <= near["titles to products high"]


def test_a_probe_reads_what_is_there_and_nothing_after_erasing(heeding, blind):
    assert read_off(heeding).mean == read_off(heeding, within=True).mean == 1
    assert read_off(blind).mean < 0.45
    for within in (False, True):
        bare = read_off(heeding, within=within, bare=True)
        assert bare.mean < 0.45, within


def test_a_small_trace_is_read_within_a_product():
    """Products differ much more than their titles: their mean is in the way of the probe."""
    own = world(own=0.02, noise=0.008)
    whole, within = read_off(own), read_off(own, within=True)
    assert within.low > 0.8
    assert within.mean > whole.mean
    assert within.n == len(np.array_split(np.arange(PRODUCTS), 3)[2])


def test_without_its_language_a_model_prefers_none_and_finds_as_well(heeding):
    row, table = measured(heeding, "language")
    assert abs(row["own first"] - 0.2) < 0.1
    assert row["own first change"] == pytest.approx(row["own first"] - 1)
    assert row["own first change high"] < -0.6
    assert row["own first change p"] < 0.001
    assert row["R@1"] == 1
    assert row["R@1 change"] == 0
    assert np.isnan(row["R@1 detectable"])  # nothing changed, which is no evidence of power
    assert row["own first detectable"] > 0
    assert "titles apart" not in row
    assert list(table) == ["R@1", "own first", "own top 5", *(f"exposure {own}" for own in LANGUAGES)]


def test_taking_out_what_is_no_language_leaves_the_preference(heeding):
    row, _ = measured(heeding, "other labels")
    assert row["own first low"] > 0.5
    np.testing.assert_array_equal(
        erased(heeding, "other labels", seed=3).products, erased(heeding, "other labels", seed=3).products
    )


def test_erased_rows_are_for_searching(heeding):
    bare = erased(heeding)
    for rows in (bare.products, bare.queries):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="what is 'thai'; use one of language, other labels"):
        erased(heeding, "thai")


def test_exposure_by_hand():
    shown = exposure(pd.DataFrame({"en": [0.5, 0.7], "th": [0.5, 0.3]}))
    assert (shown.least, shown.most) == ("th", "en")
    assert shown.ratio.mean == pytest.approx(0.4 / 0.6)
    assert shown.ratio.low == pytest.approx(0.3 / 0.7)
    assert shown.ratio.high == 1
    assert shown.p == 1  # of two queries, one of them even, any deal is as uneven
    assert exposure(pd.DataFrame({"en": [0.5] * 9, "th": [0.5] * 9})).p == 1
    assert exposure(pd.DataFrame({"en": [0.6] * 30, "th": [0.4] * 30})).p < 0.001
    for wrong in (pd.DataFrame({"en": [1.0]}), pd.DataFrame({"en": [], "th": []})):
        with pytest.raises(ValueError, match="give one query or more, and two languages or more"):
            exposure(wrong)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(2, 40))
def test_the_ratio_is_of_the_least_to_the_most(seed, languages, queries):
    values = np.random.default_rng(seed).dirichlet(np.ones(languages), queries)
    shown = exposure(pd.DataFrame(values, columns=[f"l{i}" for i in range(languages)]), 50)
    assert 0 <= shown.ratio.low <= shown.ratio.mean + 1e-12
    assert shown.ratio.mean <= 1
    assert 0 < shown.p <= 1


def test_chance_is_rarely_called_unfair():
    """Shares dealt out by chance alone: p is below 0.1 about every tenth time."""
    ps = [
        exposure(
            pd.DataFrame(np.random.default_rng(seed).dirichlet(np.ones(5), 40), columns=LANGUAGES), 100
        ).p
        for seed in range(60)
    ]
    assert np.mean(np.array(ps) < 0.1) < 0.25


class Reader:
    """Knows a product by its id and title's language; a query by its first positive and its references'."""

    name, dim = "reader", 45

    def embed(self, conversations):
        return [self.row(own.item) for own in conversations]

    def row(self, item):
        query = isinstance(item, Query)
        what = np.random.default_rng(int(item.positives[0] if query else item.id)).normal(size=40) / 40**0.5
        language = item.title_language if query else item.language
        return np.concatenate([what, LANGUAGES.index(language) == np.arange(5)])


def test_a_dataset_is_asked_in_all_its_languages(shop):
    queries = [query for query in shop.queries if query.title_language == "mixed"][:6]
    few = replace(shop, products=shop.smaller_pool(queries, 125), queries=queries)
    references = {product.id for query in queries for product in query.references}
    few = replace(few, products=[*few.products, *(shop.product(id) for id in sorted(references))])
    few = replace(few, products=list(dict.fromkeys(few.products)))
    own = parallel(Reader(), few, Settings(progress=False))
    assert own.languages == LANGUAGES
    assert own.products.shape == (5, len(few.products), 45)
    assert own.queries.shape == (5, 6, 45)
    assert own.right.sum(1).tolist() == [len(query.positives) for query in queries]
    for query, gone in zip(queries, own.left_out, strict=True):
        assert {few.products[i].id for i in np.flatnonzero(gone)} == (
            {p.id for p in query.references} - set(query.positives)
        )
    table = by_query(own)
    assert table["own first"].tolist() == table["R@1"].tolist() == [1] * 6


def test_what_cannot_be_asked_is_said(shop, heeding):
    plain = Dataset("mine", [Product("1")], [Query("q", "bag")])
    with pytest.raises(NotShownError, match="mine has no parallel titles"):
        parallel(Reader(), plain)
    with pytest.raises(NotShownError, match="no queries"):
        parallel(Reader(), replace(shop, queries=()))
    elsewhere = replace(shop, products=shop.products[:5], queries=shop.queries[:1])
    with pytest.raises(ItemError, match=r"query mini-test-\d+: none of its \d+ positives is in the pool"):
        parallel(Reader(), elsewhere)
    with pytest.raises(ValueError, match="on_error is 'skip'; use 'raise'"):
        parallel(Reader(), shop, Settings(on_error="skip"))
    with pytest.raises(ValueError, match="119 products are too few for a probe; give 120 or more"):
        read_off(world(products=119))
