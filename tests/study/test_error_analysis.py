"""Mistakes are sorted by what the first hit fails, on hits whose faults are made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from coral_lab import Condition, Product, Query
from coral_lab.evaluation import Result
from coral_lab.mini.merit_mini import TRAITS
from coral_lab.query import nothing_stated
from coral_lab.study.error_analysis import KINDS, mistakes

FACTS = {"color": "red", "brand": "alpa", "material": "wool"}


def product(id: str, class_name: str = "bag", language: str = "en", **changes: str) -> Product:
    return Product(
        id, f"title {id}", None, class_name, language, "SG", {k: (v,) for k, v in (FACTS | changes).items()}
    )


RIGHT = product("right", size="S")
SHOWS = product("shows", "shoes", brand="other", material="silk")
QUERY = Query(
    "q", "bag", (Condition("color", SHOWS, "red"), Condition("material", SHOWS, "wool")), ".", ("right",)
)


def sorted_out(first: Product, query: Query = QUERY):
    """The mistake of a ranking with `first` before the right answer."""
    result = Result("model", [query], [first, RIGHT], np.array([[0, 1]]), np.array([[0.9, 0.7]], np.float32))
    return mistakes(result, TRAITS)


@pytest.mark.parametrize(
    ("first", "kind", "violated"),
    [
        (product("x", "hat", color="blue"), "wrong class", ("color",)),
        (product("x", color="blue", material="silk"), "several attributes", ("color", "material")),
        (product("x", color="blue"), "visual attribute", ("color",)),
        (product("x", material="silk"), "textual attribute", ("material",)),
        (product("x", brand="other"), "not labelled", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind(first, kind, violated):
    row = sorted_out(first).iloc[0]
    assert (row["kind"], row["violated"], row["first"], row["rank"]) == (kind, violated, "x", 2)
    assert row["gap"] == pytest.approx(0.2)
    assert kind in KINDS


def test_what_the_words_ask_for_counts_too(shop):
    query = next(q for q in shop.queries if q.text == " made of leather." and q.class_name == "handbag")
    wrong = next(
        p
        for p in shop.products
        if p.class_name == "handbag"
        and "leather" not in p.attributes["material"]
        and all(c.met_by(p) for c in query.conditions)
    )
    right = shop.product(query.positives[0])
    result = Result("m", [query], [wrong, right], np.array([[0, 1]]), np.array([[0.9, 0.7]], np.float32))
    assert mistakes(result, TRAITS).loc[0, ["kind", "violated"]].tolist() == [
        "textual attribute",
        ("material",),
    ]
    assert mistakes(result, replace(TRAITS, stated=nothing_stated)).loc[0, "kind"] == "not labelled"


def test_marks_beside_the_kind():
    assert sorted_out(product("x", language="th")).loc[0, "other_language"]
    same = product("x", "shoes", brand="other", material="silk")
    assert sorted_out(same).loc[0, ["like_reference", "near_duplicate"]].tolist() == [True, False]
    assert sorted_out(product("x", size="L", color="red")).loc[0, "near_duplicate"]
    assert not sorted_out(product("x", size="L", color="blue")).loc[0, "near_duplicate"]


def test_right_answers_are_no_mistakes_and_a_missing_one_has_no_gap():
    result = Result("m", [QUERY], [RIGHT], np.array([[0, -1]]), np.array([[0.9, np.nan]], np.float32))
    assert mistakes(result, TRAITS).empty
    lost = Result(
        "m", [QUERY], [product("x"), RIGHT], np.array([[0, -1]]), np.array([[0.9, np.nan]], np.float32)
    )
    row = mistakes(lost, TRAITS).iloc[0]
    assert (row["rank"], np.isnan(row["gap"])) == (-1, True)


def test_a_query_that_found_nothing_made_no_mistake():
    nothing = Result("m", [QUERY], [RIGHT], np.array([[-1, -1]]), np.full((1, 2), np.nan, np.float32))
    assert mistakes(nothing, TRAITS).empty
