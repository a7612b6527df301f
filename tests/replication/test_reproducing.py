"""`coral-lab reproduce`: every cell is what a separate evaluation gives, by anybody's metric."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores
from ranx import Qrels, Run
from ranx import evaluate as ranx_evaluate

from coral_lab import Dataset, Settings, cli, evaluate, load
from coral_lab.errors import ItemError
from coral_lab.evaluation import Result
from coral_lab.query import Condition, Product, Query
from coral_lab.replication import reproducing
from coral_lab.replication.reproducing import CHOICES, MEASURED, Matrix, read_ranking, reproduce, values_of
from coral_lab.sources.writing import write_merit

QUIET = Settings(progress=False)


@pytest.fixture(scope="module")
def small(shop):
    queries = shop.queries[:12]
    named = {product.id for query in queries for product in query.references}
    pool = shop.smaller_pool(queries, 60)
    pool += [product for product in shop.products if product.id in named - {own.id for own in pool}]
    return Dataset("small", tuple(pool), tuple(queries), traits=shop.traits)


@pytest.fixture(scope="module")
def matrix(random_folder):
    return Matrix(str(random_folder), device="cpu", pixels=28 * 56, crossed=True)


@pytest.fixture(scope="module")
def done(matrix, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduced here")
    return reproduce(matrix, small, out, QUIET, "coral-lab reproduce"), out


def cell(found, **chosen):
    rows = found.cells
    for name, value in chosen.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_matrix_is_whole_and_the_cards_cell_comes_first(done):
    found, _ = done
    assert len(found.cells) == 2**5 * 3
    assert not found.cells.duplicated(list(CHOICES)).any()
    first = found.cells.iloc[0]
    assert [first[name] for name in CHOICES] == ["left out", 84 * 84, "card", "seq", "float32", "best"]
    assert (found.cells["queries"] == 12).all()
    for name in MEASURED:
        assert (found.cells[f"{name} low"] <= found.cells[name] + 1e-12).all()
        assert (found.cells[name] <= found.cells[f"{name} high"] + 1e-12).all()
    assert found.cells["R@1"].nunique() > 3  # the choices do something


@pytest.mark.parametrize(
    ("references", "pixels", "format", "dtype"),
    [
        ("left out", 84 * 84, "seq", "float32"),
        ("kept", 84 * 84, "merit", "float32"),
        ("left out", 28 * 56, "cat", "float32"),
        ("kept", 28 * 56, "merit cat", "bfloat16"),
    ],
)
def test_a_cell_is_what_a_separate_evaluation_gives(references, pixels, format, dtype, done, matrix, small):
    model = load(matrix.model, device="cpu", dtype=dtype)
    model.processor.image_processor.size = {"shortest_edge": 784, "longest_edge": pixels}
    pool = evaluate(model, small.queries, small.products, format)
    if references == "kept":
        from coral_lab import index

        pool = index(model, small.products, format).evaluate(small.queries, exclude_references=False)
    wording, input = {"seq": "card seq", "cat": "card cat"}.get(format, f"{format} seq").split()[:2]
    mine = cell(
        done[0],
        references=references,
        pixels=pixels,
        wording=wording,
        input=input,
        dtype=dtype,
        positives="best",
    )
    for name in MEASURED:
        assert mine[name] == pytest.approx(pool.metrics[name].mean, abs=1e-12)


def authors_metric(result) -> dict[str, float]:
    """As MERIT's authors describe theirs (arXiv 2506.03144): the rank of the best-placed positive, -1 beyond
    10.
    """
    ranks = []
    for query, row in zip(result.queries, result.ranked, strict=True):
        hits = [n for n, i in enumerate(row[:10], 1) if i >= 0 and result.products[i].id in query.positives]
        ranks.append(hits[0] if hits else -1)
    found = {f"R@{k}": sum(0 < rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    return found | {"MRR@10": sum(1 / rank for rank in ranks if rank > 0) / len(ranks)}


def test_everybodys_metrics_agree(done, small):
    found, out = done
    files = sorted((out / "rankings").glob("*.npz"))
    assert len(files) == 16
    for file, references in product(files[::5], ("left out", "kept")):
        dtype, pixels, wording, input = file.stem.split("-")
        way = {"references": references, "dtype": dtype, "wording": wording, "input": input}
        result = read_ranking(file, small, references)
        best, each = (cell(found, **way, pixels=int(pixels), positives=own) for own in ("best", "each"))
        rows = zip(result.queries, result.ranked, result.scores, strict=True)
        run = {
            query.id: {result.products[i].id: float(s) for i, s in zip(row, scores, strict=True) if i >= 0}
            for query, row, scores in rows
        }
        judged = {query.id: dict.fromkeys(query.positives, 1) for query in result.queries}
        for name, value in authors_metric(result).items():
            assert best[name] == pytest.approx(value, abs=1e-12)
        theirs = calculate_retrieval_scores(run, judged, [1, 5, 10])
        names = [f"{kind}@{k}" for kind in ("hit_rate", "recall") for k in (1, 5, 10)]
        ranx = ranx_evaluate(Qrels(judged), Run(run), [*names, "mrr@10"])
        assert best["MRR@10"] == pytest.approx(ranx["mrr@10"], abs=1e-9)
        assert best["MRR@10"] == pytest.approx(theirs.mrr["MRR@10"], abs=1e-4)
        for k in (1, 5, 10):
            assert best[f"R@{k}"] == pytest.approx(ranx[f"hit_rate@{k}"], abs=1e-9)
            assert best[f"R@{k}"] == pytest.approx(theirs.hit_rate[f"HitRate@{k}"], abs=1e-4)
            assert each[f"R@{k}"] == pytest.approx(ranx[f"recall@{k}"], abs=1e-9)
            assert each[f"R@{k}"] == pytest.approx(theirs.recall[f"Recall@{k}"], abs=1e-4)


def counted(monkeypatch, name, allowed=10**9):
    calls, own = [], getattr(reproducing, name)

    def count(*arguments, **options):
        if len(calls) == allowed:
            raise KeyboardInterrupt
        calls.append(1)
        return own(*arguments, **options)

    monkeypatch.setattr(reproducing, name, count)
    return calls


def test_killed_twice_it_goes_on_and_finds_the_same(done, matrix, small, tmp_path, monkeypatch):
    for allowed in (3, 6):
        with monkeypatch.context() as patch:
            counted(patch, "_keep", allowed)
            with pytest.raises(KeyboardInterrupt):
                reproduce(matrix, small, tmp_path, QUIET)
    asked, indexed = counted(monkeypatch, "asked"), counted(monkeypatch, "index")
    found = reproduce(matrix, small, tmp_path, QUIET)
    assert (len(asked), len(indexed)) == (16 - 9, 2)  # products once for all that share them
    pd.testing.assert_frame_equal(found.cells, done[0].cells)
    pd.testing.assert_frame_equal(found.differences, done[0].differences)
    assert not list((tmp_path / "rankings").glob("*.tmp"))


def test_a_finished_run_encodes_nothing(done, matrix, small, monkeypatch):
    asked, indexed = counted(monkeypatch, "asked"), counted(monkeypatch, "index")
    found = reproduce(matrix, small, done[1], QUIET)
    assert (asked, indexed) == ([], [])
    pd.testing.assert_frame_equal(found.cells, done[0].cells)


def test_what_was_measured_with_something_else_is_refused_and_named(done, matrix, small):
    _, out = done
    other = replace(small, queries=small.queries[:11])
    with pytest.raises(ValueError, match=r"settings.json is of data with queries 12, not 11; name another"):
        reproduce(matrix, other, out, QUIET)
    changed = replace(small, queries=(replace(small.queries[0], text=" in red."), *small.queries[1:]))
    with pytest.raises(ValueError, match=r"is of data with content '\w+', not '\w+'"):
        reproduce(matrix, changed, out, QUIET)
    with pytest.raises(ValueError, match=r"is of model with \w+ .*, not "):
        reproduce(replace(matrix, model="mini"), small, out, QUIET)
    with pytest.raises(ValueError, match=r"is of choices with pixels \[7056, 1568\], not \[7056, 3136\]"):
        reproduce(replace(matrix, pixels=3136), small, out, QUIET)


def test_what_makes_no_sense_is_refused_before_anything_is_loaded(monkeypatch, small, tmp_path, capsys):
    with pytest.raises(ValueError, match="choice 'colour' is not known; the choices are references, pixels"):
        Matrix(choices=("references", "colour"))
    with pytest.raises(ValueError, match="small has no queries or no products"):
        reproduce(Matrix(), replace(small, queries=()), tmp_path / "out", QUIET)
    for pixels in (783, 84 * 84):
        with pytest.raises(ValueError, match=r"pixels is .*checkpoint's own 7,056; give another number"):
            reproduce(Matrix(pixels=pixels), small, tmp_path / "third", QUIET)
    assert cli.main(["reproduce", "--choices", "colour", "--out", str(tmp_path / "other")]) == 2
    assert "choice 'colour' is not known" in capsys.readouterr().err


def test_what_takes_all_products_anew_is_changed_alone_unless_every_combination_is_asked_for(matrix):
    options = {"dtype": ("f", "b"), "pixels": (2, 1), "wording": ("card", "merit"), "input": ("seq", "cat")}
    ways = replace(matrix, crossed=False).ways(options)
    assert ways[0] == ("f", 2, "card", "seq")
    assert ways[:4] == list(product(["f"], [2], ["card", "merit"], ["seq", "cat"]))
    assert ways[4:] == [("f", 1, "card", "seq"), ("b", 2, "card", "seq")]
    assert len(matrix.ways(options)) == 16


def test_not_crossed_the_differences_are_the_same(done, matrix, small, tmp_path):
    found = reproduce(replace(matrix, crossed=False), small, tmp_path, QUIET)
    assert len(found.cells) == 6 * 2 * 3
    columns = ["choice", "instead", "difference", "low", "high", "p"]
    pd.testing.assert_frame_equal(found.differences[columns], done[0].differences[columns])
    own = found.cells.merge(done[0].cells, on=[*CHOICES, *MEASURED])
    assert len(own) == len(found.cells)


def test_only_what_is_chosen_is_tried(matrix, small, tmp_path):
    found = reproduce(replace(matrix, choices=("references", "wording")), small, tmp_path, QUIET)
    assert len(found.cells) == 4
    assert found.differences["choice"].tolist() == ["references", "wording"]
    alone = reproduce(replace(matrix, choices=()), small, tmp_path / "alone", QUIET)
    assert len(alone.cells) == 1
    assert "No choice was tried" in (tmp_path / "alone/reproduce.html").read_text(encoding="utf-8")


def toy(ranked, positives):
    products = tuple(Product(f"p{i}", "t", class_name="bag") for i in range(6))
    queries = tuple(
        Query(f"q{i}", "bag", (Condition("brand", products[5]),), positives=own)
        for i, own in enumerate(positives)
    )
    rows = np.array(ranked, np.int64)
    return Result("toy", queries, products, rows, -rows.astype(np.float32))


def test_which_positives_count():
    result = toy([[3, 1, 0, 2], [2, 4, -1, -1]], [("p0", "p1"), ("p2",)])
    assert [values_of(result, "best")[name].tolist() for name in MEASURED] == [
        [0, 1],
        [1, 1],
        [1, 1],
        [1 / 2, 1],
    ]
    first = values_of(result, "first")  # p0 is third
    assert first["R@1"].tolist() == [0, 1]
    assert first["MRR@10"].tolist() == [1 / 3, 1]
    each = values_of(result, "each")
    assert each["R@1"].tolist() == [0, 1]
    assert each["R@5"].tolist() == [1, 1]
    assert each["MRR@10"].tolist() == pytest.approx([(1 / 2 + 1 / 3) / 2, 1])


def test_differences_are_of_the_same_queries_and_their_range_is_over_all_cells():
    options = {name: ("a", "b") if name in ("references", "input") else ("a",) for name in CHOICES}
    hits = {
        ("a", "a"): [1, 1, 0, 0],
        ("b", "a"): [1, 0, 0, 0],
        ("a", "b"): [1, 1, 1, 0],
        ("b", "b"): [0, 0, 0, 0],
    }
    values = {
        (references, "a", "a", input, "a", "a"): {"R@1": np.array(own, float)}
        for (references, input), own in hits.items()
    }
    table = reproducing._differences(values, options).set_index("choice")
    assert table.loc["references", ["difference", "least", "most"]].tolist() == [-0.25, -0.75, -0.25]
    assert table.loc["input", ["difference", "least", "most"]].tolist() == [0.25, -0.25, 0.25]


def test_what_cannot_be_used_is_in_no_cell_and_is_listed(matrix, small, tmp_path):
    broken = replace(small.products[0], id="999", image=b"no picture")
    condition = replace(small.queries[0].conditions[0], product=broken)
    conditions = (condition, *small.queries[0].conditions[1:])
    queries = (replace(small.queries[0], conditions=conditions), *small.queries[1:])
    shop = replace(small, products=(*small.products, broken), queries=queries)
    with pytest.raises(ItemError, match="picture"):
        reproduce(matrix, shop, tmp_path / "raise", QUIET)
    some = replace(matrix, choices=("references", "wording"))
    found = reproduce(some, shop, tmp_path / "skip", Settings(progress=False, on_error="skip"))
    assert (found.cells["queries"] == 11).all()
    assert len(found.skipped) == 2
    page = (tmp_path / "skip/reproduce.html").read_text(encoding="utf-8")
    assert "2 left out" in page
    assert "999" in page


def test_the_page_and_the_settings_say_all_that_two_people_compare(done, small):
    found, out = done
    page = (out / "reproduce.html").read_text(encoding="utf-8")
    for text in ("0.6968", "0.4983", "weichow23/merit issue 3", "arXiv 2506.03144", "96 cells"):
        assert text in page
    facts = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert {"model", "data", "choices", "made with", "attention", "device"} <= facts.keys()
    assert facts["first query as the model reads it"].startswith("<|im_start|>system")
    assert facts["choices"]["pixels"] == [84 * 84, 28 * 56]
    cells = pd.read_csv(out / "cells.csv")
    assert len(cells) == 96
    assert np.allclose(cells["R@1"], found.cells["R@1"])
    assert "What each choice makes of R@1" in repr(found)


def test_it_runs_from_the_command_line(random_folder, shop, tmp_path, capsys):
    folder, out = tmp_path / "merit", tmp_path / "out"
    write_merit(shop, folder, "test", limit=4)
    words = ["reproduce", "--model", str(random_folder), "--data", str(folder), "--limit", "3"]
    words += ["--choices", "references", "--device", "cpu", "--out", str(out)]
    assert cli.main(words) == 0
    assert "references" in capsys.readouterr().out
    assert json.loads((out / "settings.json").read_text())["made with"]["command"].startswith("coral-lab rep")
