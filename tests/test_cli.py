"""The command line writes what it promises, and says in one line what is wrong."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from coral_lab import Settings, dataset, encode, evaluate, load, open_store
from coral_lab.cli import main, measuring
from coral_lab.mini.demo import demo
from coral_lab.mini.merit_mini import catalogue
from coral_lab.replication import asked, experiments, reproduce_page, reproducing
from coral_lab.sources import hub
from coral_lab.sources.writing import write_merit


def test_evaluate_writes_metrics_run_and_breakdown(random_folder, tmp_path, capsys):
    files = {name: tmp_path / "new folder" / f"out.{name}" for name in ("json", "trec", "csv")}
    arguments = ["--json", str(files["json"]), "--run", str(files["trec"]), "--csv", str(files["csv"])]
    assert (
        main(["evaluate", "--model", str(random_folder), "--split", "val", "--limit", "20", *arguments]) == 0
    )
    written = json.loads(files["json"].read_text())
    assert set(written["metrics"]) >= {"R@1", "R@5", "R@10", "MRR@10"}
    assert all(0 <= value <= 1 for value in written["metrics"].values())
    assert (written["n_queries"], written["pool"]) == (20, 1500)
    assert written["seconds"] > 0
    assert written["command"].startswith("coral-lab evaluate --model")
    assert len(pd.read_csv(files["trec"], sep=" ", header=None)) == 20 * 100
    assert "overall" in set(pd.read_csv(files["csv"])["group"])
    assert "R@10" in capsys.readouterr().out


def test_the_experiments_are_those_there_are():
    assert tuple(experiments.ARMS) == measuring.TRAINED
    assert tuple(asked.ASKED) == measuring.ASKED
    assert reproducing.CHOICES == measuring.CHOICES == tuple(reproduce_page.CHOICES)


def test_some_arms_are_trained_from_another_start(monkeypatch, capsys, tmp_path):
    asked = {}
    monkeypatch.setattr(
        experiments,
        "train_and_measure",
        lambda _, plan, **given: asked.update(given, plan=plan) or pd.DataFrame({"R@1": [0.5]}),
    )
    arguments = ["experiment", "methods", "--start", "mine", "--out", str(tmp_path), "--arms"]
    assert main([*arguments, "coral cat"]) == 0
    assert asked == {
        "plan": experiments.Plan(start="mine"),
        "out": tmp_path,
        "arms": {"coral cat": experiments.ARMS["methods"]["coral cat"]},
    }
    assert main([*arguments, "coral dog"]) == 2
    assert "no arm ['coral dog']; choose from 'contrastive lora'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [("formats --seeds 3 --start x", "--seeds, --start"), ("methods --limit 5", "--limit")],
)
def test_an_option_that_an_experiment_does_not_heed_is_refused(arguments, named, tmp_path, capsys):
    assert main(["experiment", *arguments.split(), "--out", str(tmp_path)]) == 2
    assert f"takes no {named}; leave it out" in capsys.readouterr().err


def test_evaluate_attributes_asks_for_each_source_and_language(random_folder, tmp_path, capsys):
    out = tmp_path / "attributes.csv"
    arguments = ["evaluate", "--attributes", "--limit", "4", "--model", str(random_folder), "--csv", str(out)]
    assert main(arguments) == 0
    table = pd.read_csv(out)
    assert set(table["source"]) == {"picture", *(f"title {x}" for x in ("en", "id", "ms", "th", "vi"))}
    assert set(table.loc[table["source"] == "picture", "attribute"]) == {
        "class",
        "color",
        "pattern",
        "brand",
        "shape",
        "trim",
    }
    assert not set(table.loc[table["source"] != "picture", "attribute"]) & {"shape", "trim"}


def test_a_family_or_vectors_can_be_measured(random_folder, shop, tmp_path, capsys):
    folder = tmp_path / "merit"
    write_merit(shop, folder, "test", limit=4)
    words = ["evaluate", "--data", str(folder), "--store", "", "--device", "cpu"]
    assert main([*words, "--model", str(random_folder), "--family", "gme"]) == 0
    assert "4 queries over" in capsys.readouterr().out
    assert main([*words, "--model", str(random_folder), "--family", "clip"]) == 2
    assert "family is 'clip'; choose one of coral, gme" in capsys.readouterr().err
    alone = dataset(folder)
    items = [*alone.products, *alone.queries]
    numbers = encode(load(random_folder, device="cpu"), items)
    frame = pd.DataFrame({"id": [item.id for item in items], "embedding": list(numbers)})
    frame.to_parquet(tmp_path / "theirs.parquet")
    assert main([*words, "--model", str(tmp_path / "theirs.parquet")]) == 0
    theirs = capsys.readouterr().out
    assert main([*words, "--model", str(random_folder)]) == 0
    assert theirs.splitlines()[1:] == capsys.readouterr().out.splitlines()[1:]
    assert theirs.startswith("theirs: 4 queries")


def test_models_are_compared_on_a_folder(random_folder, shop, tmp_path, capsys):
    folder, out = tmp_path / "merit", tmp_path / "new folder" / "out"
    write_merit(shop, folder, "test", limit=40)
    words = ["compare", "mini", str(random_folder), "--data", str(folder), "--limit", "6", "--device", "cpu"]
    words += ["--store", "", "--out", str(out)]
    assert main([*words, "--baseline", "random"]) == 0
    said = capsys.readouterr().out
    for text in (
        "6 queries over",
        "mini − random",
        "p (Holm)",
        "ms a query",
        "against random:",
        "float32 cpu",
    ):
        assert text in said
    assert said.splitlines()[-1] == f"the page is {out / 'compare.html'}"
    assert {file.name for file in out.iterdir()} == {"compare.html", "comparison.json", "ranks.csv"}
    facts = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    command = facts["made with"]["command"]
    assert command.startswith("coral-lab compare mini")
    assert "--out" not in command
    mini = load("mini", device="cpu")
    alone = dataset(folder)
    result = evaluate(mini, alone.queries[:6], alone.products, settings=Settings(store="", progress=False))
    written = facts["measured"]["mini"]["metrics"]
    assert written == {name: value.mean for name, value in result.metrics.items()}
    assert pd.read_csv(out / "ranks.csv").columns.tolist() == ["query", "mini", "random"]


def test_encode_writes_numpy_and_parquet(random_folder, shop, tmp_path):
    expected = encode(load(random_folder), shop.products[:4])
    for suffix in ("npy", "parquet"):
        out = tmp_path / f"e.{suffix}"
        assert main(["encode", "--model", str(random_folder), "--limit", "4", "--out", str(out)]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-5)
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert frame["id"].tolist() == [product.id for product in shop.products[:4]]
    np.testing.assert_allclose(np.stack(frame["embedding"].tolist()), expected, atol=1e-5)


def test_a_folder_of_merit_s_files_evaluates_as_the_catalogue_does(random_folder, tmp_path, capsys):
    folder, store = tmp_path / "merit", tmp_path / "store"
    assert main(["data", "--out", str(folder), "--limit", "12"]) == 0
    (folder / "queries-test.json").open("a").write("no json\n")
    arguments = ["evaluate", "--model", str(random_folder), "--data", str(folder)]
    assert main(arguments) == 2
    assert "line 13" in capsys.readouterr().err
    ranks = []
    for _ in range(2):
        out = tmp_path / "out.json"
        given = ["--on-error", "skip", "--store", str(store), "--json", str(out)]
        assert main([*arguments, *given]) == 0
        ranks.append(json.loads(out.read_text())["metrics"])
    assert ranks[0] == ranks[1]
    assert "skipped" in capsys.readouterr().err
    assert any(store.iterdir())
    assert "judged@10" not in ranks[0]
    file = folder / "queries-test.json"
    asked = [json.loads(line) for line in file.read_text().splitlines()[:12]]
    file.write_text(
        "".join(json.dumps(own | {"relevance": {own["pos_candidate"][0]: 2}}) + "\n" for own in asked)
    )
    assert main([*arguments, "--store", str(store), "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert 0 <= written["metrics"]["judged@10"] < 1
    said = capsys.readouterr().out
    assert written["note"] in said
    assert "condensed nDCG@10" in said
    file.write_text(file.read_text() + json.dumps(asked[0]) + "\n")
    assert main(arguments) == 2
    assert "evaluate them apart" in capsys.readouterr().err


def test_download_fetches_what_is_asked(random_folder, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or "/somewhere"
    )
    assert main(["download", "--model", "Bia/CORAL", "--data", "WeiChow/merit", "--split", "test"]) == 0
    assert [(name, options["repo_type"]) for name, options in asked] == [
        ("Bia/CORAL", "model"),
        ("WeiChow/merit", "dataset"),
    ]
    assert asked[1][1]["allow_patterns"] == ["data/test-*.parquet", "queries-test.json"]
    assert "Bia/CORAL is in" in capsys.readouterr().out


def test_demo_shows_five_hits_and_writes_the_page(tmp_path, capsys):
    out = tmp_path / "build" / "demo.html"
    result = demo("mini", out, queries=40)
    said = capsys.readouterr().out
    assert all(f"{rank}. " in said for rank in range(1, 6))
    assert str(result.metrics["R@10"]) in said
    page = out.read_text(encoding="utf-8")
    assert page.count("<img") >= 10
    assert "http://" not in page
    assert "https://" not in page


def test_what_is_said_of_data_steers_no_terminal(monkeypatch, capsys, tmp_path):
    table = pd.DataFrame({"arm": ["\x1b]0;mine\x07\x1b[2J"], "R@1": [0.5]})
    monkeypatch.setattr(experiments, "train_and_measure", lambda *_, **__: table)
    assert main(["experiment", "methods", "--out", str(tmp_path)]) == 0
    assert main(["encode", "--out", "\x1b[2J\n.npz"]) == 2
    said = capsys.readouterr()
    assert "0.5" in said.out
    assert "end it in .npy or .parquet" in said.err
    assert said.err.count("\n") == 1
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err)


TRAIN = ["train", "--model", "mini-base", "--data", "mini", "--split", "val", "--out", "nowhere"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "--model", "minni"], "check the spelling"),
        (["evaluate", "--data", "maxi"], "no folder and no hub id"),
        (["compare", "mini"], "1 models are given; give at least two"),
        (["compare", "mini", "minni"], "check the spelling"),
        (
            ["compare", "mini", "mini-base", "--baseline", "base"],
            "--baseline is base; use one of mini, mini-base",
        ),
        (["compare", "mini", "mini-base", "--format", "odd"], "format is 'odd'; use one of seq"),
        (["download"], "nothing to download"),
        (["evaluate", "--split", "best"], "the splits are train, test, val"),
        (["encode", "--out", "e.txt"], "end it in .npy or .parquet"),
        (["mini", "--stage", "contrastive", "--out", "nowhere"], "starts from a model"),
        (
            ["mini", "--stage", "all", "--lora", "4", "--vision", "0", "--out", "nowhere"],
            "takes no lora, vision",
        ),
        (["train", "--out", "nowhere"], "--model and --data are needed"),
        ([*TRAIN, "--steps", "1", "--epochs", "1"], "steps is 1 and epochs 1.0; give one of the two"),
        (TRAIN, "steps is 0 and learning_rate 1e-05; both must be positive"),
        ([*TRAIN, "--steps", "1", "--batches", "odd"], "batches is 'odd'; use mixed or closer"),
        ([*TRAIN, "--steps", "1", "--push-to-hub", "nobody"], "'nobody' is no hub id; give OWNER/NAME"),
        ([*TRAIN, "--steps", "1", "--lora", "2", "--lora-targets", "x_proj"], "targets are x_proj"),
        ([*TRAIN, "--steps", "1", "--dtype", "bfloat16"], "would learn in bfloat16"),
        ([*TRAIN, "--steps", "1", "--pixels", "10"], "give 784 or more"),
        ([*TRAIN, "--steps", "1", "--shard"], "there is one process, and nothing to shard over"),
        ([*TRAIN, "--steps", "1", "--patience", "2"], "nothing is evaluated; hold queries out"),
        ([*TRAIN, "--steps", "1", "--tracker", "pen"], "tracker is 'pen'; use tensorboard or wandb"),
        ([*TRAIN, "--steps", "1", "--batch-size", "501"], "a batch of 501 from the 500 queries"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_the_module_runs_and_help_is_quick():
    ran = subprocess.run(
        [sys.executable, "-m", "coral_lab.cli", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("demo", "evaluate", "compare", "encode", "train", "mini", "data", "download"):
        assert command in ran.stdout


def test_a_model_is_trained_on_a_folder_of_merits_files_and_goes_on(random_folder, tmp_path, capsys):
    """From the command line, through a file of options; what is given on the line wins."""
    file, out, data = tmp_path / "mine.toml", tmp_path / "out", tmp_path / "merit"
    write_merit(catalogue("mini", "val"), data, "train", limit=12)
    file.write_text(
        f"model = {str(random_folder)!r}\ndata = {str(data)!r}\nobjective = 'contrastive'\nsteps = 1\n"
        "batch_size = 4\nlora = 2\nlora_targets = ['q_proj']\ncheckpointing = true\nlearning_rate = 1",
        encoding="utf-8",
    )
    given = [
        "train",
        "--config",
        str(file),
        "--out",
        str(out),
        "--learning-rate",
        "0.001",
        "--negatives",
        "1",
    ]
    assert main([*given, "--pixels", "6272", "--freeze-vision", "--batches", "mixed"]) == 0
    assert "saved in" in capsys.readouterr().out
    assert {"adapter_model.safetensors", "log.csv", "state-00000001"} <= {f.name for f in out.iterdir()}
    assert "learning_rate 0.001" in (out / "README.md").read_text(encoding="utf-8")
    model = load(out, device="cpu")
    assert model.processor.image_processor.size["longest_edge"] == 6272
    assert main([*given, "--pixels", "6272", "--freeze-vision", "--batches", "closer"]) == 2
    assert "was made with batches mixed, and now it is closer" in capsys.readouterr().err


def test_a_store_is_searched_by_an_index_of_the_wished_recall(
    random_folder, shop, tmp_path, capsys, monkeypatch
):
    folder, store = tmp_path / "merit", str(tmp_path / "store")
    write_merit(shop, folder, "test", limit=12)
    words = [
        "evaluate",
        "--data",
        str(folder),
        "--model",
        str(random_folder),
        "--store",
        store,
        "--limit",
        "12",
    ]
    assert main([*words, "--recall", "0.9"]) == 2
    assert "has no products of" in capsys.readouterr().err
    assert main(words) == 0  # encodes them all
    exact = capsys.readouterr().out
    assert main([*words, "--recall", "0.9"]) == 2
    assert "an index is for 100,000 or more" in capsys.readouterr().err
    monkeypatch.setattr("coral_lab.store.approximate.FROM", 10)
    open_store(store, load(random_folder)).make_index(1.0, "ivf-flat")
    assert main([*words, "--recall", "0.9"]) == 0
    said = capsys.readouterr().out
    assert "Searched by ivf-flat" in said
    assert "recall@10 1.000" in said
    rates = [line for line in exact.splitlines() if line.startswith("  R@")]
    assert rates
    assert all(line in said for line in rates), "by all that exact search finds"
    assert main([*words, "--recall", "0.9", "--diagnose"]) == 2
    assert "leave one out" in capsys.readouterr().err
    assert main(["evaluate", "--recall", "0.9", "--store", "", *words[1:5]]) == 2
    assert "name one with --store" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--recall", "1.5"])
    assert "1.5 is no share above 0 and up to 1" in capsys.readouterr().err


def test_a_diagnosis_follows_the_result(random_folder, shop, tmp_path, capsys):
    folder = tmp_path / "merit"
    write_merit(shop, folder, "test", limit=12)
    words = ["evaluate", "--data", str(folder), "--store", "", "--model", str(random_folder), "--diagnose"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("fusion gap: R@1 ")
    assert said[-2].endswith(", 12 queries of two conditions or more")
    assert said[-1].startswith("binding: ")
    assert main([*words, "--attributes"]) == 2
    assert "give one of the two" in capsys.readouterr().err


def test_a_diagnosis_is_in_the_json_as_figures(random_folder, shop, tmp_path, capsys):
    folder, out = tmp_path / "merit", tmp_path / "out.json"
    write_merit(shop, folder, "test", limit=12)
    words = ["evaluate", "--data", str(folder), "--store", "", "--model", str(random_folder), "--diagnose"]
    assert main([*words, "--json", str(out)]) == 0
    *_, gap_said, binding_said = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text(encoding="utf-8"))["diagnosis"]
    gap, binding = found["fusion_gap"], found["binding"]
    assert gap["n"] == 12
    assert f"{gap['mean']:.3f} [{gap['low']:.3f}, {gap['high']:.3f}], p {gap['p']:.2g}" in gap_said
    every, *each = binding
    assert (every["by"], every["value"]) == ("all", "all")
    assert sum(row["hits"] for row in each) == every["hits"] > 0
    assert f"of {every['hits']} (chance {every['chance']:.0%}, p {every['p']:.2g})" in binding_said
    assert all(f"{row['value']} {row['another']:.0%} (" in binding_said for row in each)


def test_a_diagnosis_of_single_conditions_is_refused_before_a_model_is_loaded(shop, monkeypatch, capsys):
    alone = [replace(query, conditions=query.conditions[:1]) for query in shop.queries[:3]]
    monkeypatch.setattr(measuring, "data_of", lambda _: replace(shop, queries=alone))
    monkeypatch.setattr(measuring, "loaded", lambda *_: pytest.fail("loaded"))
    assert main(["evaluate", "--diagnose"]) == 2
    assert "none of 3 queries has two conditions" in capsys.readouterr().err


def test_the_student_s_edition_has_neither_outputs_nor_solutions(tmp_path, capsys):
    assert main(["notebooks", "--out", str(tmp_path / "clean"), "--clean"]) == 0
    assert main(["notebooks", "--out", str(tmp_path / "whole")]) == 0
    for file in sorted((tmp_path / "clean").iterdir()):
        cells, whole = (
            json.loads((tmp_path / edition / file.name).read_text(encoding="utf-8"))["cells"]
            for edition in ("clean", "whole")
        )
        solutions = [cell for cell in whole if "solution" in cell["metadata"].get("tags", ())]
        assert len(cells) == len(whole) - len(solutions)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
        assert "solution" not in str([cell["metadata"] for cell in cells])


def test_encode_into_a_store_by_blocks(random_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_merit(catalogue("mini", "test"), tmp_path / "shop", "test", 3)
    words = ["encode", "--model", str(random_folder), "--data", str(tmp_path / "shop")]
    for wrong, problem in [
        (["--engine", "local"], "name one with --store"),
        (["--engine", "local", "--store", "s", "--out", "a.npy"], "leave --out and --limit out"),
        (["--engine", "local", "--store", "s", "--workers", "2"], "for ray, and the engine is local"),
        (["--workers", "2", "--out", "a.npy"], "are for --engine"),
        ([], "end it in .npy or .parquet, or name a --store and an --engine"),
    ]:
        assert main([*words, *wrong]) == 2
        assert problem in capsys.readouterr().err
    assert main([*words, "--engine", "local", "--store", "s", "--block", "2"]) == 0
    assert "products in" in capsys.readouterr().out
    model, shop = load(str(random_folder)), dataset(str(tmp_path / "shop"))
    assert sorted(product.id for product in shop.products) == open_store(tmp_path / "s", model).to_numpy()[0]
