"""`cl.compare`: what it says of a model is what a separate evaluation says, and all were asked the same."""

import json
import shutil
import weakref
from dataclasses import replace
from html import escape
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from coral_lab import Dataset, Product, Query, Settings, compare, encode, evaluate, load, vectors
from coral_lab.errors import CheckpointError, ItemError
from coral_lab.evaluation import METRICS
from coral_lab.query import Condition
from coral_lab.replication import comparing_runs
from coral_lab.replication.comparing_cost import RUNS, TIMED
from coral_lab.replication.comparing_page import UNJUDGED
from coral_lab.replication.comparing_runs import named
from coral_lab.study.fusion import truncations

QUIET = Settings(progress=False, store="")


class Guess:
    """Knows the answers, and is as often wrong as its noise makes it."""

    def __init__(self, name: str, noise: float = 0.0, refuses: tuple[str, ...] = (), dim: int = 16):
        self.name, self.noise, self.refuses, self.dim, self.asked = name, noise, refuses, dim, 0
        self.fingerprint = f"{name} {noise} {dim}"

    def embed(self, conversations):
        for said in conversations:
            if said.item.id in self.refuses:
                raise ItemError(said.name, "is not for me")
        self.asked += len(conversations)
        return np.stack([self._row(said.item) for said in conversations])

    def _row(self, item):
        if isinstance(item, Product):
            return np.random.default_rng(crc32(item.id.encode())).normal(size=self.dim)
        own = np.random.default_rng(crc32(f"{self.name} {item.id}".encode())).normal(size=self.dim)
        return (
            np.random.default_rng(crc32(item.positives[0].encode())).normal(size=self.dim) + self.noise * own
        )


@pytest.fixture(scope="module")
def small(shop):
    queries = shop.queries[:40]
    pool = shop.smaller_pool(queries, 120)
    return replace(shop, products=tuple(pool), queries=tuple(queries))


@pytest.fixture(scope="module")
def found(small):
    return compare([Guess("good", 0.9), Guess("better", 0.5), Guess("worse", 2.0)], small, settings=QUIET)


def test_it_agrees_with_a_separate_evaluation_to_the_digit(random_folder, small):
    few = replace(small, queries=small.queries[:8], products=small.smaller_pool(small.queries[:8], 50))
    guess = Guess("guess", 1.0)
    found = compare([random_folder, guess], few, settings=QUIET, device="cpu")
    alone = {"random": load(random_folder, device="cpu"), "guess": guess}
    assert list(found.results) == list(alone)
    for name, model in alone.items():
        result = evaluate(model, few.queries, few.products, settings=QUIET)
        np.testing.assert_array_equal(found.results[name].ranked, result.ranked)
        np.testing.assert_array_equal(found.results[name].scores, result.scores)
        assert found.results[name].metrics == result.metrics
        row = found.table().loc[name]
        assert [row[metric] for metric in METRICS] == [result.metrics[m].mean for m in METRICS]
        assert [row[f"{metric} low"] for metric in METRICS] == [result.metrics[m].low for m in METRICS]
    network = alone["random"].network
    cost = found.costs["random"]
    assert cost.parameters == sum(own.numel() for own in network.parameters())
    assert cost.weight_bytes >= 4 * cost.parameters
    dim = alone["random"].dim
    assert (cost.dim, cost.embedding_bytes, cost.device) == (dim, 4 * dim, "cpu")
    assert cost.peak_bytes is None
    assert min(cost.product_seconds, cost.query_seconds) > 0
    assert found.costs["guess"].parameters is None
    assert str(random_folder) not in json.dumps(found.facts)


def test_the_tests_are_paired_and_corrected(found):
    table = found.tests("R@1")
    assert len(table) == 3
    steps, before = [], 0.0
    for place, p in enumerate(sorted(table["p"])):
        before = max(before, min(1.0, p * (3 - place)))
        steps.append(before)
    assert sorted(table["p (Holm)"]) == pytest.approx(steps)
    assert (table["difference"] >= 0).all()
    assert (table[["wins", "losses", "ties"]].sum(axis=1) == 40).all()
    values = {name: result.per_query["R@1"].to_numpy() for name, result in found.results.items()}
    for row in table.to_dict("records"):
        change = values[row["model"]] - values[row["against"]]
        assert row["difference"] == pytest.approx(change.mean())
        assert (row["wins"], row["losses"]) == ((change > 0).sum(), (change < 0).sum())
    against = found.tests("MRR@10", "better")
    assert against["against"].tolist() == ["better", "better"]
    assert against["model"].tolist() == ["good", "worse"]
    assert (against["difference"] < 0).all()


def test_the_order_of_models_changes_nothing(found, small):
    again = compare([Guess("worse", 2.0), Guess("better", 0.5), Guess("good", 0.9)], small, settings=QUIET)
    mine, theirs = (
        {(row["model"], row["against"]): row for row in own.tests().to_dict("records")}
        for own in (found, again)
    )
    assert mine == theirs
    for name, result in found.results.items():
        assert again.results[name].metrics == result.metrics


def test_a_breakdown_has_models_side_by_side(found):
    for group in ("language", "class", "attribute", "conditions"):
        table = found.by(group, "R@10")
        for name, result in found.results.items():
            rows = result.by(group)
            assert table[name]["R@10"].tolist() == rows["R@10"].tolist()
            assert table[name]["low"].tolist() == rows["R@10 low"].tolist()
            assert list(table.index) == list(zip(rows["value"], rows["queries"], strict=True))
    for call in (lambda metric: found.by("language", metric), found.tests, found.figure, found.cost_figure):
        with pytest.raises(ValueError, match=r"metric is 'R@2'; choose from R@1"):
            call("R@2")


def test_what_one_gets_and_another_does_not(found):
    for k in (1, 5):
        ranks = {name: found.ranks[name].to_numpy() for name in ("better", "worse")}
        wanted = {i for i in range(40) if 0 < ranks["better"][i] <= k and not 0 < ranks["worse"][i] <= k}
        shown = found.differing("better", "worse", k=k)
        assert set(shown.places) == wanted
        assert wanted
        far = [ranks["worse"][i] if ranks["worse"][i] > 0 else 1000 for i in shown.places]
        assert far == sorted(far, reverse=True)
        assert [query.id for query in shown.queries] == [found.ranks.index[i] for i in shown.places]
    html = found.differing("better", "worse", count=2)._repr_html_()
    assert f"{len(found.differing('better', 'worse'))} of 40 queries" in html
    assert html.count("data:image") >= 4
    with pytest.raises(ValueError, match="model 'none' was not compared; there are good, better, worse"):
        found.differing("better", "none")
    with pytest.raises(ValueError, match="k is 0; give 1 to 100"):
        found.differing("better", "worse", k=0)


@pytest.mark.parametrize(
    ("models", "given", "says"),
    [
        (["mini"], {}, "1 models are given; give at least two"),
        ("mini", {}, "models is 'mini'; give a list"),
        (["mini", "minni"], {}, "check the spelling"),
        (["mini", "mini"], {}, "two models are called 'mini'; give each once"),
        (["mini", Guess("mini")], {}, "two models are called 'mini'"),
        (["mini", Guess("a")], {"format": "bullets"}, "format is 'bullets'"),
        (["mini", Guess("a")], {"k": 5}, "ranked to depth 5; give at least 10"),
        (["mini", Guess("a")], {"devise": "cpu"}, "option 'devise' is not known"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_loaded(models, given, says, small, monkeypatch):
    monkeypatch.setattr(comparing_runs, "load", no_loading)
    monkeypatch.setattr(Guess, "embed", no_loading)
    with pytest.raises((ValueError, CheckpointError), match=says):
        compare(models, small, **given)


def no_loading(*_, device=None):
    raise AssertionError("a model was loaded or asked")


def test_a_dataset_without_answers_is_refused_before_anything_is_loaded(small, monkeypatch):
    monkeypatch.setattr(Guess, "embed", no_loading)
    models = [Guess("a"), Guess("b")]
    with pytest.raises(ValueError, match="has no queries or no products"):
        compare(models, replace(small, queries=()))
    lost = replace(small.queries[0], positives=("nowhere",))
    with pytest.raises(ItemError, match="none of its 1 positives is in the pool"):
        compare(models, replace(small, queries=(*small.queries[:3], lost)), settings=QUIET)


def test_folders_of_one_name_are_told_apart(tmp_path):
    for place in ("one/run", "two/run", "three"):
        (tmp_path / place).mkdir(parents=True)
    places = [tmp_path / "one/run", str(tmp_path / "two/run"), tmp_path / "three"]
    assert list(named(places)) == ["one/run", "two/run", "three"]
    assert list(named({"before": places[0], "after": places[0]})) == ["before", "after"]
    with pytest.raises(ValueError, match=r"two models are called .*run'; give each once"):
        named([places[0], tmp_path / "two/../one/run"])


def test_one_model_is_held_at_a_time(small, monkeypatch):
    held = []

    def loaded(name):
        assert not [own for own in held if own() is not None]
        model = Guess(name)
        held.append(weakref.ref(model))
        return model

    monkeypatch.setattr(comparing_runs, "load", loaded)
    found = compare(["mini", "mini-base", "mini-contrastive"], small, settings=QUIET)
    assert len(held) == 3
    assert not [own for own in held if own() is not None]
    with pytest.raises(ValueError, match="model 'mini' was let go of after it was compared; load it again"):
        found.asked["mini"].index.search(small.queries[0])


def test_what_one_cannot_use_is_left_out_for_all(small):
    product, query = small.queries[3].positives[0], small.queries[5].id
    picky = Guess("picky", 1.0, (product, query))
    models = [Guess("good", 0.9), picky]
    with pytest.raises(ItemError, match="is not for me"):
        compare(models, small, settings=QUIET)
    found = compare(models, small, settings=replace(QUIET, on_error="skip"))
    products = [own for own in small.products if own.id != product]
    left = {own.id for own in products}
    queries = [q for q in small.queries if q.id != query and left.intersection(q.positives)]
    for name, model in (("good", models[0]), ("picky", Guess("picky", 1.0))):
        result = evaluate(model, queries, products, settings=QUIET)
        assert found.results[name].metrics == result.metrics
        assert [q.id for q in found.results[name].queries] == [q.id for q in queries]
        np.testing.assert_array_equal(found.results[name].ranked, result.ranked)
    said = "\n".join(map(str, found.skipped))
    assert f"product {product}: is not for me (picky)" in said
    assert f"query {query}: is not for me (picky)" in said
    assert len(found.skipped) == 2 + 39 - len(queries)
    assert all(result.skipped == found.results["good"].skipped for result in found.results.values())
    assert f"{len(found.skipped)} left out for all" in repr(found)
    deaf = Guess("deaf", refuses=tuple(q.id for q in small.queries))
    with pytest.raises(ValueError, match="none of 40 queries can be used"):
        compare([models[0], deaf], small, settings=replace(QUIET, on_error="skip"))


def test_a_judged_set_is_compared_by_its_grades_and_says_what_they_are_worth(small, found, tmp_path):
    few = small.queries[:6]
    judged = replace(
        small,
        queries=tuple(query.judged(dict.fromkeys(query.positives, 2)) for query in few),
        products=small.smaller_pool(few, 40),
    )
    both = compare([Guess("a", 0.5), Guess("b", 2.0)], judged, settings=QUIET)
    assert both.table()["judged@10"].between(0, 1, "neither").all()
    assert len(both.tests("condensed nDCG@10")) == len(both.by("class", "nDCG@10").columns) // 6 == 1
    assert "judged@10 low" in truncations(both.asked["a"], [4])
    page = both.write(tmp_path / "out").read_text(encoding="utf-8")
    for shown in (repr(both), both._repr_html_(), page):
        assert UNJUDGED in shown
    assert UNJUDGED not in repr(found)
    with pytest.raises(
        ValueError, match="metric is 'judged@10'; choose from R@1, R@5, R@10, MRR@10, nDCG@10"
    ):
        found.tests("judged@10")
    with pytest.raises(ValueError, match="evaluate them apart"):  # before a model is loaded
        compare(["mini", "nowhere"], replace(judged, queries=(*judged.queries, few[0])))


def test_models_that_share_no_query_are_not_compared(small):
    halves = [tuple(q.id for q in small.queries[place::2]) for place in (0, 1)]
    models = [Guess(f"half {place}", refuses=ids) for place, ids in enumerate(halves)]
    with pytest.raises(ValueError, match="no query is left that all models can use"):
        compare(models, small, settings=replace(QUIET, on_error="skip"))


def test_what_a_store_has_is_not_taken_for_fast(small, tmp_path):
    few = replace(small, queries=small.queries[:10], products=small.smaller_pool(small.queries[:10], 70))
    models = [Guess("a"), Guess("b")]
    timed, whole = RUNS * (TIMED + 10), len(few.products) + 10
    for kept in (0, whole):
        for model in models:
            model.asked = 0
        found = compare(models, few, settings=replace(QUIET, store=str(tmp_path / "store")))
        assert [model.asked for model in models] == [timed + whole - kept] * 2
        assert (found.costs["a"].products, found.costs["a"].queries) == (TIMED, 10)


def test_vectors_that_are_looked_up_are_not_timed(small, tmp_path):
    items = [*small.products, *small.queries]
    numbers = np.random.default_rng(0).normal(size=(len(items), 8)).astype(np.float32)
    table = pd.DataFrame({"id": [own.id for own in items], "vector": list(numbers)})
    table.to_parquet(tmp_path / "theirs.parquet")
    looked_up = vectors(tmp_path / "theirs.parquet", small)
    found = compare({"looked up": looked_up, "guess": Guess("guess")}, small, settings=QUIET)
    assert found.costs["looked up"].products == 0
    assert found.table().loc["looked up", ["ms a product", "ms a query"]].isna().all()
    assert len(found.cost_figure().data) == 1
    assert "–" in repr(found)


def test_published_figures_are_another_table(found):
    published = found.published()
    assert published["source"].notna().all()
    assert 0.6968 in set(published["R@1"])
    assert not set(published["method"]) & set(found.table().index)
    assert published.attrs["note"] == found.note
    assert "51,177" in found.note
    assert "mini/test, 40 queries over 138 products" in found.note


def test_files_hold_all_that_was_found(found, tmp_path):
    page = found.write(tmp_path / "out", "coral-lab compare a b").read_text(encoding="utf-8")
    facts = json.loads((tmp_path / "out/comparison.json").read_text(encoding="utf-8"))
    assert facts["made with"]["command"] == "coral-lab compare a b"
    assert facts["data"]["queries"] == 40
    for name, result in found.results.items():
        assert facts["measured"][name]["metrics"]["R@1"] == result.metrics["R@1"].mean
        assert str(result.metrics["R@1"]) in page
        assert facts["models"][name]["fingerprint"].startswith(name)
    assert len(facts["tests of R@1"]) == 3
    ranks = pd.read_csv(tmp_path / "out/ranks.csv", index_col="query")
    pd.testing.assert_frame_equal(ranks, found.ranks)
    for text in ("arXiv 2506.03144", escape(found.note), "better and not worse", "Holm"):
        assert text in page.replace("<b>", "").replace("</b>", "")
    assert page.count("data:image") > 10


def test_texts_of_others_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>$x$"
    products = tuple(Product(f"p{i}{evil}", evil, class_name=evil, language=evil) for i in range(12))
    queries = tuple(
        Query(f"q{i}{evil}", evil, (Condition(evil, products[i], evil),), positives=(products[i + 1].id,))
        for i in range(4)
    )
    models = [Guess(f"={evil}"), Guess(f"{evil}2\x1b[2J", 3.0)]
    found = compare(models, Dataset(evil, products, queries), settings=QUIET)
    page = found.write(tmp_path / "out", evil).read_text(encoding="utf-8")
    first, *_ = found.results
    for html in (page, found._repr_html_(), found.differing(*found.results)._repr_html_()):
        assert "<script>alert" not in html
        assert "alert(1)" in html
    head = (tmp_path / "out/ranks.csv").read_text(encoding="utf-8").splitlines()[0]
    assert head.split(",")[1] == f"'{first}"
    assert "\x1b" not in repr(found)


def test_figures_show_every_model(found):
    names = ("good", "better", "worse")
    assert tuple(found.figure().data[0].x) == names
    assert tuple(found.heat_map("conditions").data[0].x) == names
    assert {(own.data[0].zmin, own.data[0].zmax) for own in map(found.heat_map, ("class", "language"))} == {
        (0, 1)
    }
    assert len(found.cost_figure().data) == 3


def test_a_checkpoint_under_two_names_is_compared_with_itself(random_folder, small, tmp_path):
    shutil.copytree(random_folder, tmp_path / "copy")
    queries = small.queries[:3]
    few = replace(small, queries=queries, products=small.smaller_pool(queries, 30))
    found = compare({"a": str(random_folder), "b": tmp_path / "copy"}, few, settings=QUIET, device="cpu")
    assert found.tests()[["model", "against", "difference", "p"]].values.tolist() == [["a", "b", 0.0, 1.0]]
    assert found.facts["models"]["a"]["fingerprint"] == found.facts["models"]["b"]["fingerprint"]
    assert "copy" in found.facts["models"]["b"]["model"]
    assert str(tmp_path) not in found.facts["models"]["b"]["model"]


def test_a_file_of_vectors_stands_for_its_model(small, tmp_path):
    guess, items = Guess("guess", 1.0), [*small.products, *small.queries]
    numbers = encode(guess, items, settings=QUIET)
    frame = pd.DataFrame({"id": [item.id for item in items], "embedding": list(numbers)})
    frame.to_parquet(tmp_path / "theirs.parquet")
    found = compare([guess, str(tmp_path / "theirs.parquet")], small, settings=QUIET)
    assert [*found.results] == ["guess", "theirs.parquet"]
    mine, theirs = found.results.values()
    np.testing.assert_array_equal(mine.ranked, theirs.ranked)
    with pytest.raises(ValueError, match=r"none of .* vectors is of"):
        compare(
            [guess, str(tmp_path / "theirs.parquet")], replace(small, products=(), queries=()), settings=QUIET
        )
