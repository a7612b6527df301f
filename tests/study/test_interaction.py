"""Subsets of conditions: an oracle that needs no fewer, one that forgets, chance; tables counted by hand."""

import numpy as np
import pandas as pd
import pytest

from coral_lab import Condition, Product, Query
from coral_lab.errors import ItemError
from coral_lab.query import AS_IMAGE, Traits
from coral_lab.study.interaction import ask_subsets, by_asking, by_meeting, by_number, figures, subsets
from tests.study.oracles import Chance, Oracle, pool_of, small_shop


@pytest.fixture(scope="module")
def shop():
    return small_shop(queries=80)


@pytest.fixture(scope="module")
def tables(shop):
    models = {"oracle": Oracle(), "forgets": Oracle(forgets=True), "chance": Chance()}
    return {name: ask_subsets(pool_of(model, shop), shop.queries) for name, model in models.items()}


def test_subsets_are_all_of_them_in_order():
    query = Query("q", "bag", tuple(Condition("color", Product(f"p{i}"), "red") for i in range(3)), ".")
    found = dict(subsets(query))
    assert list(found) == ["none", "0", "1", "2", "0-1", "0-2", "1-2", "0-1-2"]
    assert found["0-2"].conditions == (query.conditions[0], query.conditions[2])
    assert all(edited.parent is query for edited in found.values())
    bare = Query("q", "", query.conditions[:1], ".")
    assert "none" in dict(subsets(bare))  # the full stop is a text
    assert list(dict(subsets(Query("q", "", query.conditions[:1])))) == ["0"]


def test_what_is_counted_of_a_subset_by_hand():
    facts = [("bag", "red", "S")] * 2 + [("bag", "red", "M"), ("bag", "blue", "M"), ("lamp", "red", "S")]
    pool = [
        Product(f"p{i}", f"{i}", class_name=name, attributes={"color": (color,), "size": (size,)})
        for i, (name, color, size) in enumerate(facts)
    ]
    conditions = (Condition("color", pool[1], "red"), Condition("size", pool[4], "S"))
    shop = small_shop(8, 0)
    table = ask_subsets(
        pool_of(Oracle(), type(shop)("by hand", pool, ())), [Query("q", "bag", conditions, ".", ("p0",))]
    ).set_index("subset")
    columns = ["first", "right", "positives", "near misses"]  # p1 and p4 are references
    assert table[columns].to_numpy().tolist() == [
        ["p0", 1, 3, 0],
        ["p0", 1, 2, 1],
        ["p0", 1, 1, 2],
        ["p0", 1, 1, 1],
    ]
    assert table["met"].tolist() == [(True, True)] * 4
    assert table["near AUROC"].tolist()[1:] == [1, 1, 1]


def test_an_oracle_is_as_good_at_many_conditions_as_at_one(tables):
    table = tables["oracle"]
    assert table["right"].eq(1).all()
    assert table["near AUROC"].dropna().eq(1).all()
    asking = by_asking(table).loc["all"]
    assert asking[["alone", "together", "difference", "p"]].tolist() == [1, 1, 0, 1]
    number = by_number(table)
    assert number[["difference", "near AUROC change"]].eq(0).all(axis=None)
    assert number["matched difference"].dropna().eq(0).all()
    assert number["matched more"].tolist()[0] == 0  # in so small a shop nothing is like one condition
    assert np.isnan(number["matched difference"].iloc[0])
    assert by_meeting(table).loc["together", ["both", "p"]].tolist() == [1, 1]


def test_one_that_forgets_is_found_out(tables):
    asking = by_asking(tables["forgets"])
    assert asking.loc["all", "alone"] == 1
    assert asking.loc["all", "high"] < -0.2
    assert asking.loc["all", "interaction high"] < -0.2
    assert asking.loc["all", "p"] < 0.001
    assert (asking["p (Holm)"].dropna() < 0.05).all()
    number = by_number(tables["forgets"])
    assert number.loc["1 to 2", "high"] < 0
    assert number.loc["1 to 2", "near AUROC high"] < 0


def test_chance_shows_no_interaction(tables):
    asking = by_asking(tables["chance"]).loc["all"]
    assert asking["low"] <= 0 <= asking["high"]
    assert asking["p"] > 0.05
    assert asking["interaction low"] <= 0 <= asking["interaction high"]
    assert asking["interaction p"] > 0.05
    meeting = by_meeting(tables["chance"]).loc["together"]
    assert meeting["low"] < 0 < meeting["high"]
    assert meeting["p"] > 0.05
    number = by_number(tables["chance"])
    assert (number["matched low"].dropna() <= 0).all()
    assert (number["matched high"].dropna() >= 0).all()
    near = tables["chance"]["near AUROC"].mean()
    assert near == pytest.approx(0.5, abs=0.03)


def rows_of(query, attributes=("color", "size"), **met):
    """The rows of a query's subsets, by the words in which `met` says what their first hits meet: "10"."""
    names = {"none": 0, "first": 1, "second": 1, "both": 2}
    labels = {"none": "none", "first": "0", "second": "1", "both": "0-1"}
    return [
        {
            "query": query,
            "subset": labels[name],
            "conditions": count,
            "attributes": attributes,
            "met": tuple(bool(int(own)) for own in met[name]),
        }
        for name, count in names.items()
    ]


def test_asking_by_hand():
    """Of two queries one loses its size when the color is asked as well, and asking adds to nothing there."""
    rows = rows_of("a", none="00", first="10", second="01", both="10")
    rows += rows_of("b", none="10", first="10", second="11", both="11")
    table = by_asking(pd.DataFrame(rows))
    assert table.loc["size", ["not asked", "alone", "together", "difference"]].tolist() == [0, 1, 0.5, -0.5]
    # a: (0 - 0) - (1 - 0) = -1 of its size; b: (1 - 0) - (1 - 0) = 0
    assert table.loc["size", "interaction"] == -0.5
    assert table.loc["color", ["difference", "interaction"]].tolist() == [0, 0]
    assert table.loc["all", ["queries", "difference", "interaction"]].tolist() == [2, -0.25, -0.25]


def test_meeting_by_hand():
    """Both 6, one 5 and 5, neither 8: the odds ratio is 48 / 25."""
    cells = {"11": 6, "10": 5, "01": 5, "00": 8}
    met = [own for own, count in cells.items() for _ in range(count)]
    rows = [
        row
        for i, own in enumerate(met)
        for row in rows_of(f"q{i}", none="00", first="10", second="01", both=own)
    ]
    table = by_meeting(pd.DataFrame(rows))
    together = table.loc["together"]
    assert together["log odds ratio"] == pytest.approx(np.log(48 / 25))
    assert together[["both", "one", "neither"]].tolist() == pytest.approx([6 / 24, 10 / 24, 8 / 24])
    assert together["both by chance"] == pytest.approx(11 * 11 / 24 / 24)
    assert together["low"] < together["log odds ratio"] < together["high"]
    assert 0.3 < together["p"] < 0.8
    assert np.isnan(table.loc["apart", "low"])  # always both: nothing can be told


def test_what_is_met_together_or_not_at_all_is_found():
    rows = []
    for i in range(60):
        own = "11" if i % 2 else "00"
        own = {0: "10", 1: "01"}.get(i % 12, own)
        rows += rows_of(f"q{i}", none="00", first=f"{i % 2}0", second=f"0{i // 2 % 2}", both=own)
    table = by_meeting(pd.DataFrame(rows))
    assert table.loc["together", "low"] > 0
    assert table.loc["together", "p"] < 0.001
    assert table.loc["apart", "low"] < 0 < table.loc["apart", "high"]
    assert table.loc["difference", "low"] > 0


def subsets_of(rows):
    columns = ["query", "conditions", "positives", "near misses", "right"]
    return pd.DataFrame(rows, columns=columns).assign(**{"near AUROC": np.nan})


def test_matching_by_hand():
    """Strata of 3 against 3 and 1 against 2: weights 3/2 and 2/3, differences -1/3 and -1/2."""
    few, many = (3, 7), (1, 1)
    rows = [(f"q{i}", 1, *few, own) for i, own in enumerate((1, 1, 0))]
    rows += [(f"q{i}", 2, *few, own) for i, own in enumerate((1, 0, 0))]
    rows += [("q0", 1, *many, 1), ("q1", 2, *many, 0), ("q2", 2, *many, 1), ("q0", 1, 90, 90, 0)]
    found = by_number(subsets_of(rows)).loc["1 to 2"]
    assert found["matched difference"] == pytest.approx((-1 / 2 - 1 / 3) / (3 / 2 + 2 / 3))
    assert found[["matched fewer", "matched more"]].tolist() == [4, 5]
    assert found["positives fewer"] == pytest.approx(found["positives more"])


@pytest.mark.parametrize(("harder", "found"), [(0.0, False), (0.3, True)])
def test_matching_takes_away_what_the_numbers_do_and_leaves_what_conditions_do(harder, found):
    """Right first hits depend on how many answers there are; more conditions have fewer."""
    random, rows = np.random.default_rng(1), []
    for i in range(400):
        for size in (1, 1, 2):
            positives = int(random.integers(3, 12)) if size == 1 else int(random.integers(1, 8))
            chance = 0.3 + 0.05 * positives - harder * (size == 2)
            rows.append((f"q{i}", size, positives, 20, int(random.random() < chance)))
    own = by_number(subsets_of(rows)).loc["1 to 2"]
    assert own["high"] < -0.05
    assert (own["matched high"] < 0) == found
    assert found or own["matched low"] < 0 < own["matched high"]


def test_what_is_not_known_is_not_counted(shop):
    query, pool = shop.queries[1], pool_of(Oracle(), shop)
    text = query.edited(text=" in size M.")
    table = ask_subsets(pool, [text])
    assert table["right"].isna().all()
    with pytest.raises(ValueError, match="no query has subsets of one and of two conditions with known"):
        by_number(table)
    told = ask_subsets(pool, [text], Traits(stated=lambda query: ("size", "M")))
    assert 0 < told["positives"].iloc[0] < ask_subsets(pool, [query])["positives"].iloc[0]
    shown = (Condition("color", query.references[0], AS_IMAGE), query.conditions[0])
    table = ask_subsets(pool, [query.edited(conditions=shown)])
    assert table["right"].notna().tolist() == [True, False, True, False]
    assert [met[0] for met in table["met"]] == [None] * 4
    assert by_asking(table).loc["all", ["queries", "alone"]].tolist() == [1, 1]
    with pytest.raises(ValueError, match="no query has two conditions with words"):
        by_meeting(table)


def test_bad_input_is_refused(shop):
    pool = pool_of(Oracle(), shop)
    many = shop.queries[0].edited(conditions=shop.queries[0].conditions[:1] * 7)
    with pytest.raises(ItemError, match=r"query q0: it has 7 conditions, .* give up to 6"):
        ask_subsets(pool, [many])
    with pytest.raises(ItemError, match="query q0: its id stands twice"):
        ask_subsets(pool, [shop.queries[0]] * 2)
    with pytest.raises(ValueError, match="0 queries are given"):
        ask_subsets(pool, [])
    one = ask_subsets(pool, [shop.queries[0].edited(conditions=shop.queries[0].conditions[:1])])
    for measure in (by_asking, by_meeting):
        with pytest.raises(ValueError, match="no query has two conditions with words for them"):
            measure(one)


def test_figures_are_a_row_and_words(tables):
    row, words = figures(tables["forgets"])
    assert row["all difference"] < 0
    assert "together log odds ratio" in row
    assert "1 to 2 matched more" in row
    assert set(words["met"].iloc[0]) <= set("01? ")
    assert len(words) == len(tables["forgets"])
