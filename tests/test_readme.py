"""README's code runs and its figures are those of the results files."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import coral_lab as cl
from coral_lab.replication.cells import compare_arms, read_results

README = Path("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_lines_of_python_give_a_gallery_and_the_format_works():
    names: dict = {}
    exec(BLOCKS[0], names)
    shop, model = names["shop"], names["model"]
    assert f"{len(shop.products):,} products, {len(shop.queries):,} queries" in README
    last = BLOCKS[0].strip().splitlines()[-1].partition("#")[0]
    assert len(eval(last, names)) == 10
    small = type(shop)(
        "small", shop.products[:300], [q for q in shop.queries if int(q.positives[0]) < 2000300][:20]
    )
    exec(BLOCKS[1].replace("cl.evaluate", "result = cl.evaluate"), {**names, "shop": small}, found := {})
    assert model.name == found["result"].model
    assert 0 <= found["result"].metrics["R@10"].mean <= 1


def test_the_lines_about_a_store_run(tmp_path, monkeypatch):
    model, shop = cl.load("mini"), cl.dataset("mini")
    query = next(q for q in shop.queries if q.class_name == "shoes")
    small = type(shop)("small", shop.products[:400], [query])
    monkeypatch.chdir(tmp_path)
    names = {"cl": cl, "model": model, "shop": small}
    lines = BLOCKS[2].strip().splitlines()
    exec("\n".join(lines[:-1]), names)
    found = eval(lines[-1], names)
    assert {(hit.product.class_name, hit.product.language) for hit in found} == {("shoes", "th")}


@pytest.mark.parametrize("name", ["base", "contrastive", "coral"])
def test_retrieval_figures_are_those_measured(name):
    written = json.loads(Path(f"data/results/{name}-test.json").read_text())
    mean, (low, high) = written["metrics"]["R@1"], written["intervals"]["R@1"]
    cells = [f"{written['metrics'][metric]:.3f}" for metric in ("R@5", "R@10", "MRR@10")]
    assert " | ".join([f"{mean:.3f} [{low:.3f}, {high:.3f}]", *cells]) in README
    assert written["n_queries"] == 2000
    assert written["pool"] == 3000


@pytest.mark.parametrize("source", ["picture", "titles"])
def test_attribute_figures_are_those_measured(source):
    table = pd.read_csv("data/results/base-attributes.csv")
    rows = table[table["source"].str.startswith(source.rstrip("s"))]
    for attribute, part in rows.groupby("attribute"):
        assert f"{attribute} {part['accuracy'].min():.3f}" in README, (source, attribute)


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
