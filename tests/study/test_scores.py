"""AUROC, what warns of a wrong first hit, risk against coverage: by hand, by an oracle, by chance."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from coral_lab import Condition, Product, Query
from coral_lab.evaluation import Result, asked
from coral_lab.query import AS_IMAGE, Traits
from coral_lab.study.scores import (
    aurc,
    auroc,
    coverage_curves,
    figures,
    least_aurc,
    met_against_unmet,
    predictors,
    risk_coverage,
    separation,
    signs,
    warned,
)
from tests.study.oracles import Chance, Oracle, pool_of, small_shop


@pytest.fixture(scope="module")
def shop():
    return small_shop()


def rows_of(model, shop, traits=Traits()):
    return met_against_unmet(asked(pool_of(model, shop), shop.queries), traits)


def test_auroc_by_hand():
    assert auroc(np.array([3.0, 1.0]), np.array([2.0, 0.0])) == 3 / 4
    assert auroc(np.array([1.0]), np.array([1.0, 0.0])) == 3 / 4  # a tie is half
    assert np.isnan(auroc(np.array([]), np.array([1.0])))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=30, deadline=None)
def test_auroc_is_scikit_learns(rows):
    scores, met = np.array([score for score, _ in rows], float), np.array([own for _, own in rows])
    if met.any() and not met.all():
        assert auroc(scores[met], scores[~met]) == pytest.approx(roc_auc_score(met, scores))


def test_an_oracle_tells_all_that_is_met_and_chance_nothing(shop):
    oracle = separation(rows_of(Oracle(), shop)).set_index(["met", "against"])
    assert (oracle.loc["all", ["AUROC", "low", "high"]] == 1).all(axis=None)
    assert {"all others", "others of the class", "only class", "only brand"} <= {*oracle.loc["all"].index}
    assert oracle.loc[("1 of 2", "others of the class"), "AUROC"] == 1
    chance = separation(rows_of(Chance(), shop)).set_index(["met", "against"])
    for against in ("all others", "others of the class"):
        own = chance.loc[("all", against)]
        assert own["low"] < 0.5 < own["high"]
        assert own["queries"] == len(shop.queries)


def test_who_is_blind_to_an_attribute_is_at_chance_there_and_only_there(shop):
    table = separation(rows_of(Oracle(blind="size"), shop)).set_index(["met", "against"])["AUROC"]
    assert table["all", "only size"] == 0.5  # ties, all of them
    assert table["all", "only brand"] == table["all", "only class"] == 1
    assert table["all", "others of the class"] < 1


def products(*facts):
    return tuple(
        Product(f"p{i}", f"{i}", class_name=name, attributes={"color": (color,), "size": (size,)})
        for i, (name, color, size) in enumerate(facts)
    )


class Fixed:
    """The score of a product is its number in `scores`."""

    name, dim, fingerprint = "fixed", 2, "1"

    def __init__(self, **scores):
        self.scores = scores

    def embed(self, conversations):
        cosines = [self.scores.get(own.item.id, 1) for own in conversations]
        return [np.array([cos, np.sqrt(1 - cos**2)], np.float32) for cos in cosines]


def test_who_is_compared_with_whom_by_hand():
    pool = products(
        ("bag", "red", "S"),
        ("bag", "red", "S"),
        ("bag", "red", "M"),
        ("bag", "blue", "S"),
        ("lamp", "red", "S"),
        ("bag", "blue", "M"),
    )
    asks = tuple(Condition(key, pool[1], value) for key, value in (("color", "red"), ("size", "S")))
    shop = small_shop(4, 0)
    own = Query("q", "bag", asks, positives=("p0",))
    model = Fixed(p0=0.5, p1=0.9, p2=0.6, p3=0.4, p4=0.3, p5=0.2)
    shop = type(shop)("by hand", pool, (own,))
    table = rows_of(model, shop).set_index(["met", "against"])
    assert table.loc[("all", "all others"), ["n met", "n unmet", "AUROC"]].tolist() == [1, 4, 0.75]
    assert table.loc[("all", "others of the class"), ["n unmet", "AUROC"]].tolist() == [
        3,
        pytest.approx(2 / 3),
    ]
    assert table.loc[("all", "only size"), "AUROC"] == 0  # p2 is above
    assert table.loc[("all", "only color"), "AUROC"] == table.loc[("all", "only class"), "AUROC"] == 1
    assert table.loc[("1 of 2", "all others"), ["n met", "n unmet", "AUROC"]].tolist() == [3, 2, 1]


def test_free_text_counts_where_it_is_told_and_else_nothing_is_known(shop):
    query = shop.queries[0]
    own = [query.edited(text=" from Bonn."), query]
    told = Traits(stated=lambda query: ("origin", "Bonn") if "Bonn" in query.text else None)
    pool = asked(pool_of(Oracle(), shop), own[:1])
    assert set(met_against_unmet(pool, told)["conditions"]) == {len(query.conditions) + 1}
    rows = met_against_unmet(pool, Traits())
    assert len(rows) == 1
    assert rows["AUROC"].isna().all()
    words = query.edited(conditions=(Condition("color", query.references[0], AS_IMAGE),))
    assert met_against_unmet(asked(pool.index, [words]), Traits())["AUROC"].isna().all()


def ranking(right, scores):
    """A result of ten hits a query; p0 is the right answer."""
    ranked = np.array([np.roll(np.arange(10), 0 if own else 1) for own in right])
    queries = tuple(Query(f"q{i}", "bag", positives=("p0",)) for i in range(len(right)))
    pool = tuple(Product(f"p{i}") for i in range(10))
    return Result("m", queries, pool, ranked, np.array(scores, np.float32))


def test_signs_by_hand():
    scores = [np.linspace(0.9, 0.0, 10), np.linspace(0.5, 0.41, 10)]
    table = signs(ranking([True, False], scores))
    assert table["wrong"].tolist() == [False, True]
    assert table.drop(columns=["query", "wrong"]).to_numpy() == pytest.approx(
        np.array([[0.1, 0.9, 0.9], [0.01, 0.5, 0.09]]), rel=1e-4
    )
    short = ranking([True], [np.arange(10)])
    for ranked in (short.ranked[:, :9], np.where(short.ranked == 9, -1, short.ranked)):
        with pytest.raises(ValueError, match="fewer than 10 hits; rank a larger pool, to depth 10"):
            signs(Result("m", short.queries, short.products, ranked, short.scores[:, : ranked.shape[1]]))


def test_risk_and_coverage_by_hand():
    sign, wrong = np.array([0.1, 0.8, 0.9, 0.8]), np.array([True, True, False, False])
    table = risk_coverage(sign, wrong)
    assert table["coverage"].tolist() == [0.25, 0.5, 0.75, 1]
    assert table["risk"].tolist() == pytest.approx([0, 0.25, 1 / 3, 0.5])  # tied ones are half wrong each
    assert aurc(sign, wrong).mean == pytest.approx((0.25 + 1 / 3 + 0.5) / 4)
    assert least_aurc(wrong) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert warned(sign, wrong).mean == 3.5 / 4


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_no_sign_does_better_than_the_best_and_the_end_is_the_risk_of_all(rows):
    sign, wrong = np.array([own for own, _ in rows], float), np.array([own for _, own in rows])
    risk = risk_coverage(sign, wrong)["risk"].to_numpy()
    assert risk[-1] == pytest.approx(wrong.mean())
    assert least_aurc(wrong) <= risk.mean() + 1e-12
    constant = np.zeros(len(wrong))
    assert risk_coverage(constant, wrong)["risk"].to_numpy() == pytest.approx(wrong.mean())


def test_a_sign_that_warns_and_one_that_does_not():
    random = np.random.default_rng(0)
    wrong = random.random(400) < 0.3
    table = pd.DataFrame({"wrong": wrong, "gap": ~wrong + 0.0, "top": random.normal(size=400)})
    found = predictors(table.assign(spread=random.normal(size=400) - wrong))
    assert found.loc["gap", ["AUROC", "AUROC low", "AUROC high"]].tolist() == [1, 1, 1]
    assert found.loc["gap", "AURC"] == pytest.approx(found.loc["gap", "least AURC"])
    assert found.loc["top", "AUROC low"] < 0.5 < found.loc["top", "AUROC high"]
    assert found.loc["top", "AURC low"] < found.loc["top", "risk"] < found.loc["top", "AURC high"]
    assert found.loc["spread", "AUROC low"] > 0.6
    assert found["risk"].tolist() == [wrong.mean()] * 3


def test_nothing_is_made_up_where_all_are_right_or_wrong():
    sign = np.array([1.0, 2.0, 3.0])
    for wrong in (np.zeros(3, bool), np.ones(3, bool)):
        assert np.isnan([warned(sign, wrong).mean, warned(sign, wrong).low]).all()
        assert aurc(sign, wrong).mean == wrong.mean()
    one = warned(sign, np.array([True, False, False]))
    assert one.mean == 1
    assert np.isnan(one.low)
    for bad, wrong in ((sign[:2], np.zeros(3, bool)), (np.array([np.nan]), np.ones(1, bool))):
        for measure in (warned, risk_coverage, aurc):
            with pytest.raises(ValueError, match="give one finite number for each query"):
                measure(bad, wrong)
    with pytest.raises(ValueError, match="0 signs for 0 queries"):
        aurc(np.array([]), np.array([], bool))


def test_curves_have_a_colour_each():
    table = risk_coverage(np.arange(3.0), np.array([True, False, False]))
    figure = coverage_curves({"gap": table, "<b>top</b>": table})
    assert [own.name for own in figure.data] == ["gap", "&lt;b&gt;top&lt;/b&gt;"]
    assert figure.data[0].y.tolist() == pytest.approx([0, 0, 1 / 3])
    with pytest.raises(ValueError, match="8 curves are given; show up to 7"):
        coverage_curves({str(i): table for i in range(8)})


def test_figures_are_a_row_and_rows(shop):
    row, rows = figures(asked(pool_of(Oracle(blind="size"), shop), shop.queries), Traits())
    assert row["known"] == len(shop.queries) == len(rows)
    assert row["AUROC all, only size"] == 0.5
    assert row["AUROC all, only size low"] == 0.5
    assert 0 < row["gap risk"] < 1
    assert row["gap least AURC"] <= row["gap AURC"]
    assert list(rows) == [
        *("query", "wrong", "gap", "top", "spread", "AUROC, all others", "AUROC, others of the class")
    ]
