"""A probe finds what is linearly there, and nothing that is not."""

import numpy as np

from coral_lab.mini.merit_mini import catalogue
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
