"""What README and the pages show runs, and their figures are those of the results files."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import coral_lab as cl
from coral_lab.replication.cells import compare_arms, read_results

README = Path("README.md").read_text(encoding="utf-8")
RESULTS = Path("docs/pages/results.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def small_shop(count=20):
    """A pool of some hundred products, and so many queries with their answers in it."""
    whole = cl.dataset("mini")
    queries = whole.queries[:count]
    return replace(whole, products=whole.smaller_pool(queries, 400), queries=queries)


def test_the_four_lines_of_python_give_what_stands_below_them():
    (lines,) = PYTHON.findall(README)
    assert len([line for line in lines.splitlines() if line and not line.startswith("import")]) == 3
    names: dict = {}
    exec(lines, names)
    shop = names["shop"]
    assert f"{len(shop.products):,} products, {len(shop.queries):,} queries" in README
    said = repr(eval(lines.strip().splitlines()[-1], names)).splitlines()
    shown = README.partition("```\n\n    10 hits")[2].splitlines()
    assert f"10 hits{shown[0]}" == said[0]
    (rank, score, *others), (same, own, *rest) = shown[1].split(), said[1].split()
    assert [rank, *others] == [same, *rest]
    assert float(score) == pytest.approx(float(own), abs=5e-4)


@pytest.mark.parametrize("page", ["guide", "models", "training"])
def test_what_the_pages_show_runs(page, tmp_path, monkeypatch):
    blocks = PYTHON.findall(Path(f"docs/pages/{page}.md").read_text(encoding="utf-8"))
    shop, names = small_shop(128 if page == "training" else 20), {}  # a batch of its first example
    monkeypatch.setattr(cl, "dataset", lambda *_: shop)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(
            block.replace("steps=600", "steps=1, warmup=1").replace(
                "batch_size=64, chunk", "batch_size=4, chunk"
            ),
            names,
        )
    assert len(blocks) > 1


def test_the_tree_has_every_room_and_every_file_of_the_root():
    tree = README.partition("    coral_lab/\n")[2].partition("\n    notebooks/")[0]
    listed = set(re.findall(r"^      ([\w.]+/?)", tree, re.MULTILINE))
    there = {entry.name + "/" * entry.is_dir() for entry in Path("coral_lab").iterdir()}
    assert listed == there - {"__init__.py", "py.typed", "__pycache__/"}


@pytest.mark.parametrize("name", ["pretrained", "base", "contrastive", "coral"])
def test_retrieval_figures_are_those_measured(name):
    written = json.loads(Path(f"data/results/{name}-test.json").read_text())
    mean, (low, high) = written["metrics"]["R@1"], written["intervals"]["R@1"]
    cells = [f"{written['metrics'][metric]:.3f}" for metric in ("R@5", "R@10", "MRR@10")]
    assert " | ".join([f"{mean:.3f} [{low:.3f}, {high:.3f}]", *cells]) in RESULTS
    assert written["n_queries"] == 2000
    assert written["pool"] == 3000


@pytest.mark.parametrize(("source", "column"), [("picture", 2), ("title", 3)])
def test_attribute_figures_are_those_measured(source, column):
    table = pd.read_csv("data/results/base-attributes.csv")
    rows = table[table["source"].str.startswith(source)]
    for attribute, part in rows.groupby("attribute"):
        (line,) = re.findall(rf"^\| {attribute} \|.*$", RESULTS, re.MULTILINE)
        assert line.split("|")[column].strip() == f"{part['accuracy'].min():.3f}", (source, attribute)


def test_files_it_names_exist():
    for name in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert Path(name).exists(), name


def test_the_ablation_s_figures_are_those_of_its_ranks():
    text = " ".join(
        Path("data/README.md").read_text(encoding="utf-8").partition("## The loss ablation")[2].split()
    )
    table = compare_arms(read_results("data/results/loss-ablation-ranks.csv", "query")).set_index("arm")
    names = {
        "vision": "vision",
        "language": "language",
        "coral": "both",
        "reg only": "L_reg only",
        "rec only": "L_rec only",
        "coral 0.05": "both at 0.05",
        "coral 1": "both at 1",
    }
    for arm, name in names.items():
        assert f"{name} {table.loc[arm, 'difference']:.3f}" in text, arm
    low, high = table.loc["coral", ["low", "high"]]
    assert f"[{low:.3f}, {high:.3f}]" in text
    assert f"no p is below {table['p (Holm)'].min():.2f}" in text


def test_solutions_are_folded_where_notebooks_are_pages(tmp_path):
    convert = pytest.importorskip("mkdocs_jupyter.nbconvert2")
    spec = importlib.util.spec_from_file_location("hooks", "docs/hooks.py")
    spec.loader.exec_module(hooks := importlib.util.module_from_spec(spec))
    cells = [
        new_code_cell("first = 1", metadata={"tags": ["exercise"]}),
        new_code_cell("second = 2", metadata={"tags": ["solution"], "jupyter": {"source_hidden": True}}),
        new_code_cell("third = 3", metadata={"tags": ["solution"]}),
    ]
    kernel = {"kernelspec": {"language": "python", "name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "some.ipynb")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="notebooks/some.ipynb"))
    html = hooks.on_page_content(convert.nb2html(str(tmp_path / "some.ipynb")), page, None, None)
    folded = re.findall(r"<details>(.*?)</details>", html, re.DOTALL)
    assert [re.findall("first|second|third", own)[0] for own in folded] == ["second", "third"]
    assert all(own.count("<div") == own.count("</div>") for own in folded)
    assert "first" in html
