"""Curves of training, by rung and arm, from the files of two experiments."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from coral_lab.replication.cells import write_results
from coral_lab.replication.learning_curves import learning_curves, learning_figure


def write(out, name: str, arms: dict[str, list[list[float]]], seconds: float) -> None:
    """R@1 by arm, seed and evaluation, at steps 50, 100, …; Coral's decoders took 30 s before."""
    rows = [
        {"arm": arm, "seed": seed, "step": 50 * (n + 1), "R@1": value, "MRR@10": value}
        for arm, seeds in arms.items()
        for seed, values in enumerate(seeds)
        for n, value in enumerate(values)
    ]
    write_results(out / f"{name}-curves.csv", pd.DataFrame(rows), "x")
    cells = [
        {
            "arm": arm,
            "seed": seed,
            "first_seconds": 30.0 if "coral" in arm else 0.0,
            "step_seconds": seconds * (1 + (seed == 1)),  # one seed while the machine was busy
        }
        for arm, seeds in arms.items()
        for seed in range(len(seeds))
    ]
    write_results(out / f"{name}.csv", pd.DataFrame(cells), "x")


@pytest.fixture
def results(tmp_path):
    seeds = [[0.1, 0.3], [0.2, 0.4], [0.3, 0.5]]
    write(tmp_path, "objectives", {"contrastive": seeds, "shuffled": seeds, "coral": seeds[::-1]}, 1.0)
    write(tmp_path, "ladder", {"seeing coral": seeds, "seeing contrastive": [[0.0, 0.1]]}, 2.0)
    return tmp_path


def test_means_bands_and_seconds_by_hand(results):
    table = learning_curves(results).set_index(["rung", "arm", "step"])
    assert list(table.index.unique("rung")) == ["seeing", "mini-pretrained"]
    assert "shuffled" not in table.index.unique("arm")
    row = table.loc[("mini-pretrained", "coral", 100)]
    assert (row["R@1"], row["seconds"], row["seeds"]) == (pytest.approx(0.4), 130.0, 3)
    reach = stats.t.isf(0.025, 2) * 0.1 / 3**0.5
    assert (row["low"], row["high"]) == (pytest.approx(0.4 - reach), pytest.approx(0.4 + reach))
    assert table.loc[("mini-pretrained", "contrastive", 50), "seconds"] == 50.0
    alone = table.loc[("seeing", "contrastive", 100)]
    assert (alone["R@1"], alone["low"], alone["high"]) == (0.1, -np.inf, np.inf)


def test_the_figure_has_a_column_a_rung_and_a_band_and_a_line_an_arm(results):
    figure = learning_figure(learning_curves(results))
    assert [note.text for note in figure.layout.annotations] == ["seeing", "mini-pretrained"]
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 2 * 2 * 2
    assert sum(trace.showlegend is True for trace in lines) == 2
    assert [*lines[0].x] == [50, 100]
    figure.to_json()


def test_without_a_ladder_there_is_one_rung_and_without_objectives_a_command(results):
    (results / "ladder.csv").unlink()
    assert set(learning_curves(results)["rung"]) == {"mini-pretrained"}
    (results / "objectives.csv").unlink()
    with pytest.raises(FileNotFoundError, match="`coral-lab experiment objectives` makes it"):
        learning_curves(results)
