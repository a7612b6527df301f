"""Cells are run once, with the settings they say, and compared as pairs."""

import numpy as np
import pandas as pd
import pytest

from coral_lab.coral import CONTRASTIVE, Coral
from coral_lab.experiments import ARMS, compare, loss_ablation
from coral_lab.metrics import holm


def test_the_arms_differ_by_the_terms_they_name():
    on = {arm: set(coral.weights) for arm, coral in ARMS.items()}
    assert on["contrastive"] == set()
    assert on["coral"] == {"reg vision", "reg language", "rec vision", "rec language"}
    assert on["vision"] | on["language"] == on["coral"] == on["reg only"] | on["rec only"]
    assert not on["vision"] & on["language"]
    assert not on["reg only"] & on["rec only"]


def test_a_cell_is_run_once_and_kept(random_folder, tmp_path, monkeypatch):
    arms = {"contrastive": CONTRASTIVE, "coral": Coral()}
    settings = {"steps": 1, "batch_size": 4, "queries": 5, "start": str(random_folder), "arms": arms}
    places = {"out": tmp_path / "results", "work": tmp_path / "work"}
    first = loss_ablation(1, **settings, **places)
    assert first["arm"].tolist() == ["contrastive", "coral"]
    assert first["R@10"].between(0, 1).all()
    assert first["commit"].str.len().gt(0).all()
    monkeypatch.setattr("coral_lab.experiments._train", lambda *_: pytest.fail("trained again"))
    again = loss_ablation(1, **settings, **places)
    pd.testing.assert_frame_equal(first, again, check_dtype=False)
    with pytest.raises(ValueError, match="has cells of"):
        loss_ablation(1, **settings | {"steps": 2}, **places)
    ranks = pd.read_csv(places["out"] / "loss-ablation-ranks.csv", index_col="query")
    assert list(ranks) == ["contrastive 0", "coral 0"]
    assert len(ranks) == 5


def test_compare_pairs_queries_and_seeds():
    rng = np.random.default_rng(0)
    base = rng.choice([1, 2, -1], size=400)
    better = np.where(rng.random(400) < 0.2, 1, base)
    ranks = pd.DataFrame({"contrastive 0": base, "contrastive 1": base, "coral 0": better, "coral 1": better})
    table = compare(ranks).set_index("arm")
    assert table.loc["coral", "difference"] == pytest.approx(((better == 1) * 1.0 - (base == 1)).mean())
    assert table.loc["coral", "p (Holm)"] < 0.01
    assert table.loc["contrastive", "difference"] == 0
    assert np.isnan(table.loc["contrastive", "p (Holm)"])
    with pytest.raises(ValueError, match="no cell of 'contrastive'"):
        compare(ranks[["coral 0"]])


def test_holm_by_hand():
    """0.01 x 3, then 0.02 x 2, then the larger of that and 0.03."""
    np.testing.assert_allclose(holm(np.array([0.02, 0.01, 0.03])), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1, 1])
    assert holm(np.array([])).shape == (0,)
