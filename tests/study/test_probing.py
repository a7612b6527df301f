"""A probe finds what is linearly there, and nothing that is not."""

import numpy as np
import pandas as pd
import pytest

from coral_lab.mini.merit_mini import catalogue
from coral_lab.query import Condition, Dataset, Product, Query, Traits
from coral_lab.study import probing
from coral_lab.study.probing import probe, probe_checkpoint


def test_probes_find_what_is_there_and_only_that():
    random = np.random.default_rng(0)
    colors, sizes = random.integers(4, size=1200), random.integers(3, size=1200)
    rows = np.eye(4, 6, dtype=np.float32)[colors] + 0.1 * random.standard_normal((1200, 6)).astype(np.float32)
    labels = [
        {"color": str(c), "size": str(s)} | ({"rare": "x"} if i < 9 else {})
        for i, (c, s) in enumerate(zip(colors, sizes, strict=True))
    ]
    found = probe(rows[:800], labels[:800], rows[800:], labels[800:]).set_index("attribute")
    assert set(found.index) == {"color", "size"}
    assert found.loc["color", "accuracy"] > 0.98
    assert found.loc["size", "low"] < 1 / 3 < found.loc["size", "high"] + 0.03
    assert abs(found.loc["size", "chance"] - 1 / 3) < 0.08


def test_a_checkpoint_is_probed_on_what_its_items_show(random_model):
    table = probe_checkpoint(
        random_model, catalogue("mini", "train"), catalogue("mini", "val"), 150, 300, 150
    )
    assert set(table["item"]) == {"product", "query"}
    assert set(table.loc[table["item"] == "product", "attribute"]) >= {"color", "brand", "material", "trim"}
    assert table["accuracy"].between(0, 1).all()


@pytest.mark.parametrize(
    ("labelled", "measured", "probed"), [(40, 40, True), (39, 40, False), (40, 39, False)]
)
def test_forty_labels_of_two_kinds_on_either_side_are_enough(labelled, measured, probed):
    """One value in a quarter of the cases, two rows that tell it apart."""
    labels = [{"trim": "gold" if i % 4 == 0 else "none", "class": "bag"} for i in range(60)]
    rows = np.array([[own["trim"] == "gold", 1] for own in labels], np.float32)
    few = [own if i < labelled else {} for i, own in enumerate(labels)]
    new = [own if i < measured else {} for i, own in enumerate(labels)]
    found = probe(rows, few, rows, new)
    assert found.to_dict("records") == (
        [{"attribute": "trim", "n": 40, "accuracy": 1, "low": 1, "high": 1, "chance": 0.75}] if probed else []
    )


def test_probes_see_the_first_items_and_what_these_show_or_ask(random_model, monkeypatch):
    """Unless told otherwise 4,000 products and 6,000 queries, and 1,000 of either are measured."""
    product = Product("p", attributes={"color": ("red", "blue"), "size": ("S",), "brand": ()})
    query = Query("q", "bag", (Condition("color", product, "red"),))
    traits = Traits(shown=lambda product: {"color", "brand"})
    train = Dataset("train", [product] * 4005, [query] * 6005, traits=traits)
    test = Dataset("test", [product] * 1005, [query] * 1005, traits=traits)
    seen = []

    def probed(rows, labels, new, new_labels):
        seen.append((len(rows), len(labels), len(new), len(new_labels), labels[0]))
        return pd.DataFrame([dict.fromkeys(["attribute", "n", "accuracy", "low", "high", "chance"], 0)])

    monkeypatch.setattr(probing, "encode", lambda model, items: np.zeros((len(items), 2), np.float32))
    monkeypatch.setattr(probing, "probe", probed)
    assert list(probe_checkpoint(random_model, train, test)["item"]) == ["product", "query"]
    assert seen == [
        (4000, 4000, 1000, 1000, {"color": "red"}),
        (6000, 6000, 1000, 1000, {"color": "red"}),
    ]
