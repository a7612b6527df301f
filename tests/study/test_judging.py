"""Marks are kept whatever happens, merge, agree as Cohen's kappa says, and measure rankings as worked out by
hand.
"""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from math import log2

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from coral_lab import Condition, Dataset, Product, Query
from coral_lab.errors import ItemError
from coral_lab.evaluation import Result
from coral_lab.sources.judgements import GRADES, Session, merged
from coral_lab.study.judging import agreement, graded, kappa, pools, progress

PRODUCTS = tuple(Product(f"p{i}", f"title {i}", class_name="bag") for i in range(8))
QUERIES = tuple(
    Query(f"q{i}", "bag", (Condition("brand", PRODUCTS[i], "Á"),), " ไทย.", positives=("p7",))
    for i in range(3)
)
SHOP = Dataset("shop", PRODUCTS, QUERIES)


def result(name: str, rows) -> Result:
    rows = np.array(rows, np.int64)
    return Result(name, QUERIES[: len(rows)], PRODUCTS, rows, np.zeros(rows.shape, np.float32))


@pytest.fixture
def session(tmp_path):
    return Session.open(tmp_path / "mine.json", SHOP, judge="ada")


marks = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 7), st.sampled_from([*GRADES, None]), st.text(max_size=5)),
    max_size=20,
)


@given(marks)
def test_a_session_opens_as_it_was_left(tmp_path_factory, marks):
    file = tmp_path_factory.mktemp("sessions") / "s.json"
    session = Session.open(file, SHOP, "ada")
    for query, product, grade, word in marks:
        session.mark(QUERIES[query], PRODUCTS[product], grade, word)
    again = Session.open(file, SHOP)
    assert again.judgements == session.judgements
    assert again.queries == session.queries
    assert again.judge == ("ada" if marks else "")
    latest = {(f"q{q}", f"p{p}"): grade for q, p, grade, _ in marks}
    assert {key: own.grade for key, own in again.judgements.items()} == {k: g for k, g in latest.items() if g}


def test_a_kill_costs_nothing_that_was_marked(tmp_path):
    """A process that marks without end is killed: the file is whole, with every mark but perhaps the last."""
    code = (
        "import sys\n"
        "from coral_lab.query import Dataset, Product, Query\n"
        "from coral_lab.sources.judgements import Session\n"
        "shop = Dataset('shop', [Product(f'p{i}') for i in range(8)], [])\n"
        "session = Session.open(sys.argv[1], shop, 'ada')\n"
        "for i in range(10**6):\n"
        "    session.mark(Query(f'q{i % 3}', 'bag'), f'p{i % 8}', 'right', str(i))\n"
        "    print(i, flush=True)\n"
    )
    file = tmp_path / "s.json"
    for wanted in (20, 57):
        command = [sys.executable, "-c", code, str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if int(line) >= wanted:
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        again = Session.open(file, SHOP)
        assert max(int(own.word) for own in again.judgements.values()) >= wanted
        assert len(again.judgements) == min(wanted + 1, 24)


def test_judged_queries_become_a_test_set(session):
    session.mark(QUERIES[0], "p7", "right")
    session.mark(QUERIES[0], "p6", "partly", "other strap")
    session.mark(QUERIES[0], "p5", "wrong")
    session.mark(QUERIES[1], "p5", "wrong")
    made = session.test_set()
    (query,) = made.queries
    assert (query.positives, query.hard_negatives) == (("p7",), ("p5",))
    assert query.relevance == {"p7": 2, "p6": 1, "p5": 0}
    assert query.conditions == QUERIES[0].conditions
    assert "query 'q1': none of its 1 judged products is marked right" in str(made.skipped[0])
    partly = session.test_set("partly").queries[0]
    assert (partly.positives, partly.relevance) == (("p7", "p6"), query.relevance)
    assert session.test_set("wrong").queries[0].hard_negatives == ()
    assert made.products is SHOP.products
    session.mark(QUERIES[0], "p7", None)
    assert session.test_set().queries == ()
    with pytest.raises(ValueError, match="least is 'good'; use one of wrong, partly, right"):
        session.test_set("good")


@pytest.mark.parametrize(
    ("query", "product", "grade", "error", "says"),
    [
        (QUERIES[0], "p99", "right", ItemError, "product p99: is not in shop"),
        (QUERIES[0], "p1", "good", ValueError, "grade is 'good'; use one of wrong, partly, right"),
        (replace(QUERIES[0], text=" x"), "p1", "right", ItemError, "was judged with other conditions; give"),
        (
            Query("q8", "bag", (Condition("brand", Product("x", "y")),)),
            "p1",
            "right",
            ItemError,
            "refers to product 'x', which is not in shop",
        ),
    ],
)
def test_a_mark_that_cannot_be_right_is_refused_and_nothing_is_written(
    session, query, product, grade, error, says
):
    session.mark(QUERIES[0], "p0", "wrong")
    before = session.file.read_bytes()
    with pytest.raises(error, match=says):
        session.mark(query, product, grade)
    assert session.file.read_bytes() == before
    assert len(Session.open(session.file, SHOP).judgements) == 1


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"version": 9}, ValueError, "is version 9 of 'shop', wanted 1 of 'shop'"),
        ({"dataset": "other"}, ValueError, "open its own dataset"),
        ({"queries": {}}, ValueError, "has queries .* wanted a list of objects; it is damaged"),
        ({"queries": []}, ItemError, "judges query 'q0', which is not in it"),
        ({"judgements": [1]}, ValueError, "has judgements .* wanted a list"),
        ({"judgements": [{"query": "q0", "product": "p0", "grade": "5"}]}, ItemError, "has grade '5'; use"),
        ({"judgements": [{"query": 3, "product": "p0", "grade": "right"}]}, ItemError, "field 'query' is 3"),
        (
            {"judgements": [{"query": "q0", "product": "p9", "grade": "right"}]},
            ItemError,
            "judges product 'p9', which is not in shop; open the dataset that was judged",
        ),
        (
            {"judgements": [{"query": "q0", "product": "p0", "grade": own} for own in ("right", "wrong")]},
            ItemError,
            "judges product 'p0' for query 'q0' twice; keep one",
        ),
        (
            {"queries": [{"id": "q0", "class": "bag", "conditions": []}] * 2},
            ItemError,
            "has query 'q0' twice",
        ),
    ],
)
def test_a_file_that_is_no_session_of_this_dataset_is_refused(session, changed, error, says):
    session.mark(QUERIES[0], "p0", "right")
    content = json.loads(session.file.read_text(encoding="utf-8"))
    session.file.write_text(json.dumps(content | changed), encoding="utf-8")
    with pytest.raises(error, match=says):
        Session.open(session.file, SHOP)


def test_what_is_no_json_is_refused(session):
    for text in ("[", "[]", "[" * 100_000):
        session.file.write_text(text)
        with pytest.raises(ValueError, match="is no session"):
            Session.open(session.file, SHOP)


def by(judge: str, grades: dict, tmp_path) -> Session:
    session = Session.open(tmp_path / f"{judge}.json", SHOP, judge)
    for (query, product), grade in grades.items():
        session.mark(QUERIES[query], f"p{product}", grade)
    return session


def test_sessions_merge_by_what_most_said(tmp_path):
    a = by("ada", {(0, 0): "right", (0, 1): "right", (0, 2): "wrong"}, tmp_path)
    b = by("bo", {(0, 0): "right", (0, 1): "wrong", (1, 2): "partly"}, tmp_path)
    c = by("cy", {(0, 0): "wrong", (0, 1): "partly"}, tmp_path)
    made = merged([a, b, c], tmp_path / "all.json")
    grades = {key: own.grade for key, own in made.judgements.items()}
    assert grades == {
        ("q0", "p0"): "right",
        ("q0", "p1"): "wrong",
        ("q0", "p2"): "wrong",
        ("q1", "p2"): "partly",
    }
    assert made.judgements["q0", "p0"].judge == "ada + bo + cy"
    assert not made.file.exists()
    made.save()
    again = Session.open(made.file, SHOP)
    assert again.judgements == made.judgements
    for own in (made, again):
        test = own.test_set("partly")
        assert [dict(query.relevance) for query in test.queries] == [{"p0": 2, "p1": 0, "p2": 0}, {"p2": 1}]
        assert [query.positives for query in test.queries] == [("p0",), ("p2",)]
    with pytest.raises(ValueError, match="take those of one dataset"):
        merged([a, Session.open(tmp_path / "o.json", replace(SHOP, name="other"))], tmp_path / "x.json")
    with pytest.raises(ValueError, match="0 sessions are given"):
        merged([], tmp_path / "x.json")
    other = Session(tmp_path / "y.json", SHOP, "dee", {"q0": replace(QUERIES[0], positives=(), text=" z")})
    smaller = Session(tmp_path / "z.json", replace(SHOP, products=PRODUCTS[:7]), "eve")
    for pair, says in (
        ([a, other], "query 'q0' is another in"),
        ([a, smaller], "or of other products; take those of one dataset"),
        ([a, a], "ada.json comes twice, and would count as two people; give it once"),
    ):
        with pytest.raises(ValueError, match=says):
            merged(pair, tmp_path / "x.json")
        with pytest.raises(ValueError, match=says):
            agreement(*pair)
    with pytest.raises(ValueError, match=r"ada\.json is one of the sessions' own, and saving would replace"):
        merged([a, b], a.file)
    assert not (tmp_path / "x.json").exists()


def test_what_several_said_of_a_pair_is_kept_and_nobody_is_named_twice(tmp_path):
    sessions = []
    for number, (judge, grade, word) in enumerate(
        [("ada", "right", "it is"), ("", "partly", "strap"), ("ada", "right", "it is"), ("bo", "wrong", "")]
    ):
        session = Session.open(tmp_path / f"{number}.json", SHOP, judge)
        session.mark(QUERIES[0], "p1", grade, word)
        sessions.append(session)
    made = merged(sessions, tmp_path / "all.json")
    assert made.judge == "ada + bo"
    (own,) = made.judgements.values()
    assert (own.grade, own.word, own.judge) == ("right", "it is; strap", "ada + bo")
    tied = merged([sessions[0], sessions[1]], tmp_path / "all.json").judgements["q0", "p1"]
    three = merged([sessions[0], sessions[1], sessions[3]], tmp_path / "all.json").judgements["q0", "p1"]
    assert (tied.grade, three.grade) == ("partly", "wrong")


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40))
def test_kappa_is_cohens(pairs):
    table = np.zeros((3, 3), int)
    for a, b in pairs:
        table[a, b] += 1
    expected = cohen_kappa_score([a for a, _ in pairs], [b for _, b in pairs], labels=[0, 1, 2])
    np.testing.assert_allclose(kappa(table), expected, atol=1e-12, equal_nan=True)


def test_agreement_is_over_what_both_judged(tmp_path):
    words = list(GRADES)
    random = np.random.default_rng(0)
    mine = {(q, p): words[random.integers(3)] for q in range(3) for p in range(8)}
    a = by("ada", mine, tmp_path)
    same = agreement(a, by("bo", mine, tmp_path))
    assert (same.mean, same.low, same.high, same.n) == (1, 1, 1, 24)
    theirs = {key: own if random.random() < 0.6 else "wrong" for key, own in mine.items() if key[1] < 6}
    found = agreement(a, by("cy", theirs, tmp_path))
    expected = cohen_kappa_score([mine[key] for key in theirs], [*theirs.values()])
    assert found.mean == pytest.approx(expected)
    assert found.n == 18
    assert found.low <= found.mean <= found.high
    with pytest.raises(ValueError, match="no pair was judged by both"):
        agreement(a, Session.open(tmp_path / "none.json", SHOP))
    alone = agreement(a, by("fay", {(0, p): mine[0, p] for p in range(8)}, tmp_path))
    assert (alone.mean, alone.n) == (1, 8)
    assert np.isnan([alone.low, alone.high]).all(), "one query says nothing of others"
    throughout = by("dee", {(0, 0): "right", (1, 0): "right"}, tmp_path)
    assert np.isnan(agreement(throughout, by("eve", {(0, 0): "right", (1, 0): "right"}, tmp_path)).mean)


def test_kappa_of_a_case_worked_out_by_hand(tmp_path):
    """Six pairs: right twice by both, wrong twice by both, right against partly, partly against wrong. They
    agree in 4 of 6; by chance in right 3/6 2/6, in partly 1/6 1/6, in wrong 2/6 3/6 of the time: 13/36.
    """
    pairs = {(0, 0): "rr", (0, 1): "rr", (1, 0): "ww", (1, 1): "ww", (2, 0): "rp", (2, 1): "pw"}
    words = {"r": "right", "p": "partly", "w": "wrong"}
    a = by("ada", {key: words[own[0]] for key, own in pairs.items()} | {(2, 5): "right"}, tmp_path)
    b = by("bo", {key: words[own[1]] for key, own in pairs.items()} | {(2, 6): "right"}, tmp_path)
    for found in (agreement(a, b), agreement(b, a)):
        assert found.mean == pytest.approx((4 / 6 - 13 / 36) / (1 - 13 / 36))
        assert found.n == 6


def test_pools_hold_what_any_found_and_do_not_say_who(session):
    first = result("a", [[0, 1, 2, 3], [4, 5, -1, -1]])
    second = result("b", [[1, 6, 0, 7], [5, 4, 3, -1]])
    made = pools([first, second], depth=2)
    assert [{p.id for p in own.products} for own in made] == [{"p0", "p1", "p6"}, {"p4", "p5"}]
    assert [own.products for own in pools([second, first], depth=2)] == [own.products for own in made]
    orders = {tuple(p.id for p in pools([first, second], 2, seed)[0].products) for seed in range(30)}
    assert len(orders) == 6
    assert [own.query for own in pools([result("c", [[0]]), first], 1)] == [QUERIES[0]]
    with pytest.raises(ValueError, match="0 results to depth 10"):
        pools([])
    with pytest.raises(ValueError, match="over different products"):
        pools(
            [
                first,
                Result(
                    "d", QUERIES[:1], PRODUCTS[:2], np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)
                ),
            ]
        )


def test_rankings_that_are_there_are_measured_by_what_was_marked(session):
    for product, grade in ((0, "wrong"), (1, "partly"), (3, "right")):
        session.mark(QUERIES[0], f"p{product}", grade)
    session.mark(QUERIES[1], "p4", "partly")
    found = graded(result("a", [[0, 2, 1, 3], [4, 5, 6, 7]]), session)
    (query,) = found.queries
    assert query == session.test_set().queries[0]
    assert found.ranked.tolist() == [[0, 2, 1, 3]]
    ideal = 3 + 1 / log2(3)
    row = found.per_query.iloc[0]
    assert (row["R@1"], row["R@5"], row["MRR@10"], row["judged@10"]) == (0, 1, 1 / 4, 3 / 4)
    assert row["nDCG@10"] == pytest.approx((1 / 2 + 3 / log2(5)) / ideal)
    assert row["condensed nDCG@10"] == pytest.approx((1 / log2(3) + 3 / 2) / ideal)
    assert [str(own) for own in found.skipped] == [
        "query 'q1': none of its 1 judged products is marked right; judge more of them"
    ]
    both = graded(result("a", [[0, 2, 1, 3], [4, 5, 6, 7]]), session, "partly")
    assert both.per_query["R@1"].tolist() == [0, 1]
    assert [query.positives for query in both.queries] == [("p1", "p3"), ("p4",)]


def test_what_cannot_be_measured_by_marks_is_said(session):
    session.mark(QUERIES[0], "p3", "right")
    with pytest.raises(ValueError, match="none of 1 queries has an answer that is marked right; judge some"):
        graded(result("c", [[0]]), Session(session.file, SHOP))
    ranked = result("a", [[0, 3]])
    with pytest.raises(ItemError, match="query q0: was judged with other conditions; rank it as it was"):
        graded(replace(ranked, queries=[replace(QUERIES[0], text=" other")]), session)
    with pytest.raises(ValueError, match="none of 1 queries"):
        graded(replace(ranked, products=PRODUCTS[:3], ranked=np.array([[0, 1]])), session)
    with pytest.raises(ValueError, match="least is 'good'"):
        graded(ranked, session, "good")


def test_progress_says_what_is_left(session):
    session.mark(QUERIES[0], "p0", "right")
    session.mark(QUERIES[0], "p1", "wrong")
    session.mark(QUERIES[1], "p4", "wrong")
    found = progress(session, [result("a", [[0, 1, 2], [4, 5, 6], [7, 7, 7]])], depth=2)
    expected = pd.DataFrame([{"model": "a", "queries": 2, "judged@2": 0.75, "whole": 1}])
    pd.testing.assert_frame_equal(found, expected)
