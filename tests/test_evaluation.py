"""Searching and measuring: the paper's metrics, references left out, breakdowns and exports."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from coral_lab import Condition, Product, Query, Settings, encode, evaluate, index, retrieval
from coral_lab.encoder import Encoded
from coral_lab.errors import ItemError
from coral_lab.evaluation import Result
from coral_lab.query import AS_IMAGE
from coral_lab.results import hits
from coral_lab.retrieval import Index, ranking
from coral_lab.store.topk import top_k


@pytest.fixture(scope="module")
def pool(random_model, shop):
    return index(random_model, shop.products[:120])


@pytest.fixture(scope="module")
def queries(shop, pool):
    return [query for query in shop.queries if any(id in pool.row_of for id in query.positives)][:40]


@pytest.fixture(scope="module")
def result(random_model, pool, queries):
    return evaluate(random_model, queries, pool)


def test_index_is_the_encoded_pool(random_model, shop, pool):
    np.testing.assert_allclose(pool.embeddings[:3], encode(random_model, shop.products[:3]), atol=1e-5)
    assert "120 products" in repr(pool)


def test_search_ranks_by_dot_product(random_model, pool, queries):
    hits = pool.search(queries[0], k=5, exclude_references=False)
    scores, rows = top_k(encode(random_model, queries[0]), pool.embeddings, 5)
    assert [hit.product.id for hit in hits] == [pool.products[row].id for row in rows[0]]
    np.testing.assert_allclose([hit.score for hit in hits], scores[0], atol=1e-6)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


def test_a_pool_is_prepared_once_for_all_its_searches(random_model, pool, queries, monkeypatch):
    prepared, prepare = [], retrieval.prepare
    monkeypatch.setattr(retrieval, "prepare", lambda rows: prepared.append(rows) or prepare(rows))
    own = Index(random_model, pool.products, pool.embeddings)
    for query in queries[:3]:
        own.search(query)
    assert len(prepared) == 1
    assert prepared[0] is pool.embeddings


def toy_index(model, scores: list[float], shop) -> Index:
    """Products whose score against the query [1, 0] is given."""
    rows = np.array([[score, np.sqrt(1 - score**2)] for score in scores], np.float32)
    return Index(model, shop.products[: len(scores)], rows)


def test_references_are_left_out_unless_they_are_positives(random_model, shop):
    pool = toy_index(random_model, [0.9, 0.8, 0.7, 0.6], shop)
    best, second = shop.products[:2]
    query = Query("q", "bag", (Condition("brand", best), Condition("color", second)), positives=(second.id,))
    embedding = np.array([[1, 0]], np.float32)
    assert ranking([query], embedding, pool, 2)[1].tolist() == [[1, 2]]
    assert ranking([query], embedding, pool, 2, exclude_references=False)[1].tolist() == [[0, 1]]


def test_references_stay_out_of_searches_and_measures_unless_told_otherwise(random_model, shop, monkeypatch):
    pool = toy_index(random_model, [0.9, 0.8, 0.7], shop)
    first, second, third = (product.id for product in pool.products)
    query = Query("q", "bag", (Condition("brand", pool.products[0]),), positives=(third,))
    found = Encoded(np.array([[1, 0]], np.float32), ())
    monkeypatch.setattr("coral_lab.retrieval.encode", lambda *_: found.embeddings)
    monkeypatch.setattr("coral_lab.evaluation.encode_all", lambda *_: found)
    assert [hit.product.id for hit in pool.search(query)] == [second, third]
    assert [hit.product.id for hit in pool.search(query, exclude_references=False)] == [first, second, third]
    for result, rank in (
        (evaluate(random_model, [query], pool), 2),
        (pool.evaluate([query]), 2),
        (pool.evaluate([query], exclude_references=False), 3),
    ):
        assert result.per_query["rank"].tolist() == [rank]


def test_a_pool_with_too_few_products_is_padded(random_model, shop):
    pool = toy_index(random_model, [0.9, 0.8], shop)
    query = Query("q", "bag", (Condition("brand", shop.products[0]),))
    scores, rows = ranking([query], np.array([[1, 0]], np.float32), pool, 3)
    assert rows.tolist() == [[1, -1]]
    assert np.isnan(scores[0, 1])


def test_metrics_are_those_of_a_plain_loop(result, queries):
    ranks = []
    for query, row in zip(queries, result.ranked, strict=True):
        places = [place for place, at in enumerate(row[:10], 1) if result.products[at].id in query.positives]
        ranks.append(places[0] if places else -1)
    for k in (1, 5, 10):
        assert result.metrics[f"R@{k}"].mean == pytest.approx(np.mean([1 <= rank <= k for rank in ranks]))
    assert result.metrics["MRR@10"].mean == pytest.approx(
        np.mean([1 / rank if rank > 0 else 0 for rank in ranks])
    )
    assert result.per_query["rank"].tolist() == ranks


def test_nothing_a_query_shows_is_among_its_results(result, queries):
    for query, row in zip(queries, result.ranked, strict=True):
        shown = {product.id for product in query.references} - set(query.positives)
        assert not shown & {result.products[at].id for at in row if at >= 0}


def test_breakdowns_count_every_query_in_its_groups(result, queries):
    assert result.by("class")["queries"].sum() == len(queries)
    assert result.by("conditions")["queries"].sum() == len(queries)
    assert result.by("attribute")["queries"].sum() == sum(len(query.conditions) for query in queries)
    table = result.table()
    assert set(table["group"]) == {"overall", "language", "class", "attribute", "conditions"}
    assert (table["R@10 low"] <= table["R@10"]).all()
    assert (table["R@10"] <= table["R@10 high"]).all()
    with pytest.raises(ValueError, match="choose language, class, attribute or conditions"):
        result.by("colour")


def test_trec_run_and_json_say_what_was_measured(result, queries, tmp_path):
    result.write_trec(tmp_path / "run.trec")
    run = pd.read_csv(tmp_path / "run.trec", sep=" ", header=None, dtype={2: str})
    first = run[(run[0] == queries[0].id) & (run[3] == 1)].iloc[0]
    assert first[2] == result.products[result.ranked[0, 0]].id
    assert run.groupby(0)[4].is_monotonic_decreasing.all()
    result.write_json(tmp_path / "out.json", seconds=1.5)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["metrics"]["R@1"] == result.metrics["R@1"].mean
    assert {"n_queries", "pool", "model", "seconds"} < written.keys()


def by_hand(*rows: list[int]) -> Result:
    """Queries for a red bag, like a picture, over a red bag, a blue bag and a red hat; -1: the pool has no
    more.
    """
    facts = [("bag", "red"), ("bag", "blue"), ("hat", "red")]
    products = [
        Product(f"p{i}", class_name=name, attributes={"color": (color,)})
        for i, (name, color) in enumerate(facts)
    ]
    conditions = Condition("color", Product("r"), "red"), Condition("style", Product("s"), AS_IMAGE)
    queries = [Query(f"q{i}", "bag", conditions, positives=("p0", "gone")) for i in range(len(rows))]
    ranked = np.array(rows)
    scores = np.where(ranked < 0, np.nan, 0.5).astype(np.float32)
    return Result("a model/of mine", queries, products, ranked, scores)


def test_what_first_hits_meet_by_hand():
    found = by_hand([0, 2], [-1, -1], [1, 2], [2, 2], [0, 2]).met_by_first()
    # of four first hits, for one query found nothing: three bags, three red; no word says what style is meant
    assert found == {"first class": 3 / 4, "first color": 3 / 4}
    assert by_hand([-1]).met_by_first() == {}


def test_where_the_pool_has_no_more_nothing_is_found_and_nothing_written(tmp_path):
    result = by_hand([1, 0, -1], [2, -1, -1], [-1, -1, -1])
    assert result.relevant.tolist() == [[False, True, False], [False] * 3, [False] * 3]
    frame = result.per_query
    assert frame["rank"].tolist() == [2, -1, -1]
    assert frame["nDCG@10"].tolist() == pytest.approx(
        [1 / np.log2(3), 0, 0]
    )  # one right answer is in the pool
    result.write_trec(tmp_path / "run.trec")
    assert (tmp_path / "run.trec").read_text().splitlines() == [
        "q0 Q0 p1 1 0.500000 a_model_of_mine",
        "q0 Q0 p0 2 0.500000 a_model_of_mine",
        "q1 Q0 p2 1 0.500000 a_model_of_mine",
    ]


JUDGES = (
    {"a": 2, "b": 0},  # one right answer, at 3, behind two that nobody judged
    {"a": 1, "b": 2, "c": 1},  # at 1, 3 and 7, where the discounts are 1, 1/2 and 1/3
    {"z": 2, "gone": 2},  # not found; "gone" is not in the pool, and counts for nothing
)
RANKED = (list("xyabcde"), list("axbydec"), ["x", "y"])


def by_judges() -> Result:
    """Three queries over nine products, ranked to depth seven; the third ranking has two hits."""
    products = [Product(id) for id in "abcdexyzw"]
    rows = {product.id: row for row, product in enumerate(products)}
    queries = [
        Query(f"q{i}", "bag", language="en").judged(grades, least=2) for i, grades in enumerate(JUDGES)
    ]
    ranked = np.array([[rows[id] for id in own] + [-1] * (7 - len(own)) for own in RANKED])
    return Result("m", queries, products, ranked, np.zeros(ranked.shape, np.float32))


def test_a_judged_set_is_measured_as_worked_out_by_hand():
    """Gains are 3 for right and 1 for partly; `second` is the discount of the second place."""
    found, second = by_judges(), 1 / np.log2(3)
    expected = {
        "R@1": [0, 0, 0],
        "R@5": [1, 1, 0],
        "R@10": [1, 1, 0],
        "MRR@10": [1 / 3, 1 / 3, 0],
        "nDCG@10": [(3 / 2) / 3, (1 + 3 / 2 + 1 / 3) / (3 + second + 1 / 2), 0],
        "condensed nDCG@10": [1, (1 + 3 * second + 1 / 2) / (3 + second + 1 / 2), 0],
        "judged@10": [2 / 7, 3 / 7, 0 / 2],
    }
    assert [*found.metrics] == [*found.names] == [*expected]
    for name, values in expected.items():
        np.testing.assert_allclose(found.per_query[name], values, atol=1e-12, err_msg=name)
        estimate = found.metrics[name]
        assert estimate.mean == pytest.approx(np.mean(values))
        assert estimate.low <= estimate.mean <= estimate.high
    assert found.grades[:2].tolist() == [[-1, -1, 2, 0, -1, -1, -1], [1, -1, 2, -1, -1, -1, 1]]


def test_what_unjudged_hits_mean_is_said_wherever_a_judged_set_is_shown(tmp_path):
    found = by_judges()
    note = (
        "An unjudged hit counts as wrong: judged@10 is 0.24, so R@k, MRR@10 and nDCG@10 say what is known, "
        "not what would be found; condensed nDCG@10 leaves unjudged hits out."
    )
    assert found.note == note
    said = repr(found)
    assert note in said
    assert f"  condensed nDCG@10 {found.metrics['condensed nDCG@10']}" in said
    found.write_json(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["note"] == note
    assert written["metrics"]["judged@10"] == pytest.approx((2 / 7 + 3 / 7) / 3)
    assert len(written["intervals"]["condensed nDCG@10"]) == 2
    found.write_csv(tmp_path / "out.csv")
    head = (tmp_path / "out.csv").read_text().splitlines()[0].split(",")
    assert head[-6:-3] == ["condensed nDCG@10", "condensed nDCG@10 low", "condensed nDCG@10 high"]
    assert found.by("class")["judged@10"].tolist() == [found.metrics["judged@10"].mean]
    every = replace(
        found, queries=[query.judged({p.id: 2 for p in found.products}) for query in found.queries]
    )
    assert every.metrics["judged@10"].mean == 1
    assert every.note == ""


def test_sets_without_grades_are_measured_as_ever(tmp_path):
    found = by_hand([0, 1], [1, 0])
    assert [*found.metrics] == ["R@1", "R@5", "R@10", "MRR@10", "nDCG@10"]
    assert found.note == ""
    found.write_json(tmp_path / "out.json")
    assert "note" not in json.loads((tmp_path / "out.json").read_text())
    right = replace(found, queries=[query.judged({"p0": 1}) for query in found.queries])
    assert right.metrics["nDCG@10"] == found.metrics["nDCG@10"], "grades 0 and 1 are right and wrong"


def test_queries_with_grades_and_without_are_not_measured_as_one(random_model, shop):
    found = by_judges()
    plain = replace(found.queries[0], id="plain", relevance={})
    says = "query 'q1' has relevance and query 'plain' has none.* evaluate them apart"
    with pytest.raises(ValueError, match=says):
        _ = replace(found, queries=[plain, *found.queries[1:]]).metrics
    with pytest.raises(ValueError, match=says):  # before a product is encoded
        evaluate(random_model, iter([plain, found.queries[1]]), [Product("a", image=b"no picture")])
    pool = toy_index(random_model, [0.9, 0.8], shop)
    with pytest.raises(ValueError, match=says):
        pool.evaluate([plain, found.queries[1]])


def test_a_hit_that_nobody_judged_is_neither_right_nor_wrong():
    query = Query("q", "bag").judged({"a": 2, "b": 0})
    shown = hits(query, [(Product(id), 0.5) for id in "abx"])
    assert [hit.positive for hit in shown] == [True, False, None]
    assert [hit.positive for hit in hits(replace(query, relevance={}), [(Product("x"), 0.5)])] == [False]


def test_ids_that_trec_cannot_hold_are_named(tmp_path):
    result = by_hand([0], [1])
    for changes, says in (
        ({"queries": [result.queries[0]] * 2}, "query 'q0'.*stands twice"),
        ({"queries": [result.queries[0], replace(result.queries[1], id="q 1")]}, "query 'q 1'.*white space"),
        ({"products": [*result.products[:2], Product("p\t2")]}, r"product 'p\\t2'.*white space"),
        *(
            ({"products": [Product(f"p{sign}2"), *result.products[1:]]}, "control characters")
            for sign in "\x00\x1b\x7f\x85\u2028\u200b\u202e\xa0"
        ),
    ):
        with pytest.raises(ItemError, match=says):
            replace(result, **changes).write_trec(tmp_path / "run.trec")


@pytest.mark.parametrize("model", ["a\nq9 Q0 p9 1 9.0 b", "a\x1b[2J", "a\u2028b", "", "a\x00"])
def test_a_model_s_name_forges_no_line_of_a_run_and_steers_no_terminal(tmp_path, model):
    result = replace(by_hand([0], [1]), model=model)
    result.write_trec(tmp_path / "run.trec")
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["q0", "Q0", "p0", "1", "0.500000"],
        ["q1", "Q0", "p1", "1", "0.500000"],
    ]
    assert all(len(line.split()) == 6 and line.isprintable() for line in lines)
    assert all(line.isprintable() for line in repr(result).split("\n"))
    assert len(repr(result).split("\n")) == 6


def test_the_breakdown_s_cells_are_run_by_no_spreadsheet(tmp_path):
    result = by_hand([0], [1])
    queries = [replace(query, class_name="=1+1") for query in result.queries]
    replace(result, queries=queries).write_csv(tmp_path / "out.csv")
    assert "\nclass,'=1+1,2," in (tmp_path / "out.csv").read_text()


def test_what_is_measured_is_written_through_no_link(tmp_path):
    result = by_hand([0], [1])
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    for write in (result.write_trec, result.write_json, result.write_csv):
        with pytest.raises(ValueError, match="link is a link, which is not followed"):
            write(tmp_path / "link")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_pool_of_products_is_encoded_as_it_is_told(random_model, queries, pool, monkeypatch):
    """In the format and with the settings named, or "seq" and the usual ones."""
    asked = []
    monkeypatch.setattr("coral_lab.evaluation.index", lambda *own: asked.append(own[2:]) or pool)
    assert evaluate(random_model, queries[:1], pool.products).ranked.shape == (1, 100)
    skip = Settings(on_error="skip")
    evaluate(random_model, queries[:1], pool.products, "caption", settings=skip)
    assert asked == [("seq", Settings()), ("caption", skip)]


def test_how_deep_and_how_strictly_unless_told_otherwise(random_model, queries, pool):
    lost = Query("lost", "bag", text="something", positives=("nowhere",))
    found = evaluate(random_model, [queries[0], lost], pool, settings=Settings(on_error="skip"))
    assert [error.item for error in found.skipped] == ["query lost"]
    assert found.ranked.shape == pool.evaluate(queries[:1]).ranked.shape == (1, 100)
    assert evaluate(random_model, queries[:1], pool, k=10).ranked.shape == (1, 10)
    assert len(pool.search(queries[0])) == 10


def test_hits_show_themselves_as_a_gallery(pool, queries):
    hits = pool.search(queries[0], k=3)
    page = hits._repr_html_()
    assert page.count("<img") == 3 + len(queries[0].references)
    for hit in hits:
        assert f"{hit.score:.3f}" in page
    assert "✓" in page or "✗" in page
    assert len(hits.table()) == len(hits) == 3
    assert {"rank", "score", "id", "positive"} < set(hits.table().columns)
    assert hits[0].product.id in repr(hits)


def test_bad_pools_and_queries_are_named(random_model, shop, pool, queries):
    with pytest.raises(ValueError, match="the pool has no products"):
        index(random_model, [])
    with pytest.raises(ItemError, match=f"product {shop.products[0].id}.*stands twice"):
        index(random_model, [shop.products[0], Product(shop.products[0].id)])
    with pytest.raises(ValueError, match="0 queries"):
        evaluate(random_model, [], pool)
    lost = Query("lost", "bag", text="something", positives=("nowhere",))
    with pytest.raises(ItemError, match="query lost: none of its 1 positives is in the pool"):
        evaluate(random_model, [lost], pool)
    with pytest.raises(ValueError, match="depth 3"):
        evaluate(random_model, queries, pool, k=3)
