"""What is trained and asked is what the arms say; held-back facts are nowhere in what is trained on."""

from dataclasses import replace

import pandas as pd
import pytest

from coral_lab.mini.merit_mini import TRAITS, catalogue
from coral_lab.mini.pairs import mini_pairs
from coral_lab.mini.queries import stated
from coral_lab.models.loading import load
from coral_lab.replication import experiments
from coral_lab.replication.asked import EACH, binding, composition, conditions, errors, formats
from coral_lab.replication.cells import read_results
from coral_lab.replication.experiments import (
    ARMS,
    Arm,
    Plan,
    held_back,
    train_and_measure,
)
from coral_lab.sources.package_files import shipped
from coral_lab.training.pairs import pair_sampler
from coral_lab.training.reconstruction import CONTRASTIVE, Coral


def test_the_arms_differ_by_the_terms_they_name():
    on = {arm: set(one.coral.weights) for arm, one in ARMS["loss-ablation"].items()}
    assert on["contrastive"] == set()
    assert on["coral"] == {"reg vision", "reg language", "rec vision", "rec language"}
    assert on["vision"] | on["language"] == on["coral"] == on["reg only"] | on["rec only"]
    assert not on["vision"] & on["language"]
    assert not on["reg only"] & on["rec only"]
    weighed = {
        arm: set(ARMS["loss-ablation"][arm].coral.weights.values()) for arm in ("coral 0.05", "coral 1")
    }
    assert weighed == {"coral 0.05": {0.05}, "coral 1": {1}}


@pytest.mark.parametrize("kind", ["language", "class", "attribute"])
def test_what_is_held_back_is_nowhere_in_training(kind):
    gone, whole = set(TRAITS.held_back[kind]), catalogue("mini", "train")
    shop = held_back(whole, kind)
    assert 1000 < len(shop.queries) < len(whole.queries)
    languages = tuple(name for name in experiments.LANGUAGES if name not in gone)
    pairs = pair_sampler(shop, mini_pairs(shop, negatives=1, languages=languages), 64, 4)
    for pair in [pair for step in range(4) for pair in pairs(step)]:
        products = (*pair.query.references, pair.positive, *pair.negatives)
        words = stated(pair.query)
        asked = {c.attribute for c in pair.query.conditions} | ({words[0]} if words else set())
        seen = {
            "class": {pair.query.class_name, *(p.class_name for p in products)},
            "language": {pair.query.language, *(p.language for p in products)},
            "attribute": asked,
        }[kind]
        assert not seen & gone
        assert set(pair.query.positives) <= {product.id for product in shop.products}
    test = catalogue("mini").out_of_distribution(kind)
    assert 0 < len(test.queries) < 2000


@pytest.fixture
def small():
    """A few test queries over a small pool."""
    whole = catalogue("mini")
    some = [query for query in whole.queries if int(query.positives[0]) < 2000200][:6]
    return replace(whole, products=whole.products[:200], queries=tuple(some))


def test_arms_are_trained_as_they_say(small, random_folder, tmp_path, monkeypatch):
    arms = {
        "contrastive": Arm(CONTRASTIVE),
        "coral": Arm(Coral()),
        "lora": Arm(Coral(), lora=2),
        "cat": Arm(CONTRASTIVE, format="cat"),
        "held back": Arm(CONTRASTIVE, held_back="class"),
        "control": Arm(CONTRASTIVE, held_back="class", control=True),
    }
    monkeypatch.setattr(
        experiments, "catalogue", lambda name, split: small if split == "test" else catalogue(name, split)
    )
    sizes = []
    trainer = experiments.train_pairs
    monkeypatch.setattr(
        experiments,
        "train_pairs",
        lambda model, shop, *rest, **more: (
            sizes.append(len(shop.queries)) or trainer(model, shop, *rest, **more)
        ),
    )
    plan = Plan(seeds=1, steps=1, batch_size=4, queries=5, start=str(random_folder))
    places = {"out": tmp_path / "results", "work": tmp_path / "work"}
    first = train_and_measure("methods", plan, arms=arms, **places)
    (work,) = places["work"].iterdir()  # of these weights: cells of others go on from nothing of these
    assert first["arm"].tolist() == list(arms)
    assert first["R@10"].between(0, 1).all()
    assert sizes[:4] == [40_000] * 4
    assert sizes[4] == sizes[5] < 40_000
    assert (work / "methods-lora-0" / "adapter_model.safetensors").is_file()
    assert not (work / "methods-coral-0" / "adapter_model.safetensors").is_file()
    assert (work / "methods-coral-0" / "decoders.safetensors").is_file()
    assert (places["out"] / "methods.csv").read_text().split("\n")[0].endswith(f" --start {random_folder}")
    ranks = read_results(places["out"] / "methods-ranks.csv", "query")
    assert list(ranks) == [f"{arm} 0" for arm in arms]
    assert len(ranks) == 5
    monkeypatch.setattr(experiments, "_train", lambda *_: pytest.fail("trained again"))
    again = train_and_measure("methods", plan, arms=arms, **places)
    pd.testing.assert_frame_equal(first, again, check_dtype=False)
    learnt = load(random_folder)
    learnt.network.lm_head.weight.data += 1
    monkeypatch.setattr(experiments, "load_network", lambda *_, **__: learnt)
    with pytest.raises(ValueError, match=r"'weights': 'xxh3 .*; move it"):
        train_and_measure("methods", plan, arms=arms, **places)


def test_an_arm_s_own_start_steps_and_seeds_win_and_its_curve_is_kept(
    small, random_folder, tmp_path, monkeypatch
):
    rate = 2e-3
    arms = {
        "before": Arm(CONTRASTIVE, steps=0, seeds=1),
        "coral": Arm(Coral(), learning_rate=rate, seeds=2, decoders_first=1),
        "lower": Arm(CONTRASTIVE, start=str(random_folder)),
    }
    monkeypatch.setattr(
        experiments, "catalogue", lambda name, split: catalogue(name, split) if split == "train" else small
    )
    monkeypatch.setattr(experiments, "contrastive_evaluation", lambda _: lambda: {"R@1": 0.5, "MRR@10": 0.6})
    plan = Plan(1, 2, 4, 5, "mini-base", "val", first_seed=100, curve=1, chosen="2 steps")
    places = {"out": tmp_path / "results", "work": tmp_path / "work"}
    table = train_and_measure("trial", plan, arms=arms, **places).set_index(["arm", "seed"])
    assert table.index.tolist() == [("before", 100), ("coral", 100), ("lower", 100), ("coral", 101)]
    assert {*table["chosen"]} == {"2 steps"}
    assert table["weights"].iloc[0].count(" ") == 2  # of both bases
    curves = read_results(places["out"] / "trial-curves.csv")
    assert curves.groupby(["arm", "seed"])["step"].agg(list).to_dict() == {
        ("coral", 100): [1, 2],
        ("coral", 101): [1, 2],
        ("lower", 100): [1, 2],
    }
    (log,) = places["work"].glob("*/trial-coral-100/log.csv")
    assert read_results(log)["step"].tolist() == [1, 2, 3]
    assert read_results(log)["learning_rate"].max() <= rate
    assert table.loc[("coral", 100), "rate"] == rate


@pytest.mark.parametrize("name", ["loss-ablation", "methods"])
def test_committed_cells_are_of_the_base_that_is_shipped(name, monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "_train", lambda *_: pytest.fail("a cell is missing"))
    assert len(train_and_measure(name, out=tmp_path)) == 3 * len(ARMS[name])
    kept, committed = (read_results(folder / f"{name}.csv") for folder in (tmp_path, shipped("data/results")))
    pd.testing.assert_frame_equal(kept, committed)


def test_checkpoints_are_asked_in_every_format_with_conditions_changed_and_sorted_by_mistake(
    tmp_path, random_folder
):
    whole = catalogue("mini")
    some = [query for query in whole.queries if int(query.positives[0]) < 2000200][:6]
    shop = replace(whole, products=whole.products[:200], queries=tuple(some))
    models, places = [str(random_folder)], {"out": tmp_path, "command": "coral-lab experiment formats"}
    assert formats(shop, models, **places)["arm"].tolist() == [
        f"{random_folder} {name}" for name in ("seq", "cat", "caption")
    ]
    assert (tmp_path / "formats.csv").read_text().startswith("# coral-lab experiment formats\n")

    conditions(shop, models, **places)
    rows = read_results(tmp_path / "conditions-queries.csv")
    asked = sum(len(query.conditions) for query in some)
    assert (rows["edit"] == "dropped").sum() == asked
    assert rows[["kept", "old", "new"]].isin([0, 1, float("nan")]).all(axis=None)
    swapped = rows[rows["edit"] == "swapped"]
    assert not (swapped["old"] * swapped["new"]).any()  # no product has both values
    assert rows.loc[rows["edit"] == "dropped", ["old", "new"]].isna().all(axis=None)

    table = errors(shop, models, **places)
    rows = read_results(tmp_path / "mistakes-queries.csv")
    assert len(rows) == round(table["wrong"].iloc[0] * len(some))


def test_checkpoints_are_asked_whose_value_they_take_and_in_pieces(
    small, tmp_path, random_folder, monkeypatch
):
    monkeypatch.setattr("coral_lab.replication.asked.EACH", 2)
    table = composition(small, [str(random_folder)], out=tmp_path)
    numbers = sorted({len(query.conditions) for query in small.queries})
    count = sum(min(2, sum(len(q.conditions) == n for q in small.queries)) for n in numbers)
    assert set(table["queries"]) <= {count, 1, 2}
    assert table["conditions"].tolist() == [str(n) for n in ("all", *numbers) for _ in range(5)]
    tested = table[table["way"] != "interleaved"]
    assert tested[["difference low", "difference high", "p", "p (Holm)"]].notna().all(axis=None)
    assert read_results(tmp_path / "composition-ranks.csv", "query").shape == (count, 5)

    table = binding(small, [str(random_folder)], out=tmp_path).set_index(["by", "value"])
    assert ("all", "all") in table.index
    asked = {c.attribute for query in small.queries for c in query.conditions}
    assert {*table.loc["attribute"].index} <= asked
    row = table.loc[("all", "all")]
    assert row["error else low"] <= row["error else"] <= row["error else high"]
    rows = read_results(tmp_path / "binding-queries.csv")
    assert len(rows) == row["hits"]
    assert set(rows["whose"]) <= {"asked", "another", "nobody"}
    assert EACH == 300
