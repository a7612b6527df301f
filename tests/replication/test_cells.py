"""Cells are run once, with the settings they say, and compared as pairs."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from coral_lab.metrics import holm
from coral_lab.replication import cells
from coral_lab.replication.cells import (
    Cell,
    Measured,
    compare_arms,
    hits_of,
    measure_cells,
    read_results,
    write_results,
)
from coral_lab.sources.package_files import shipped

RANKS = pd.Series([1, -1], pd.Index(["a", "b"], name="query"))
ROWS = pd.DataFrame({"query": ["a", "a"], "kept": [1, 0]})


def some_cells(asked: list, arms=("one", "two")) -> list[Cell]:
    def measure(arm: str) -> Measured:
        asked.append(arm)
        return Measured({"R@1": 0.5}, RANKS, ROWS)

    return [Cell(arm, 0, lambda arm=arm: measure(arm)) for arm in arms]


def test_a_cell_is_run_once_and_kept_with_its_command(tmp_path):
    asked: list = []
    table = measure_cells("trial", some_cells(asked), {"steps": 3}, "coral-lab experiment trial", tmp_path)
    again = measure_cells(
        "trial",
        some_cells(asked, ("one", "two", "three")),
        {"steps": 3},
        "coral-lab experiment trial",
        tmp_path,
    )
    assert asked == ["one", "two", "three"]
    assert table["arm"].tolist() == ["one", "two"]
    assert again[["steps", "R@1"]].drop_duplicates().to_numpy().tolist() == [[3, 0.5]]
    assert table["commit"].str.len().gt(0).all()
    for file in ("trial.csv", "trial-ranks.csv", "trial-queries.csv"):
        assert (tmp_path / file).read_text().startswith("# coral-lab experiment trial\n")
    ranks = read_results(tmp_path / "trial-ranks.csv", "query")
    assert ranks.to_dict("list") == {"one 0": [1, -1], "two 0": [1, -1], "three 0": [1, -1]}
    assert (
        read_results(tmp_path / "trial-queries.csv")["arm"].tolist()
        == ["one"] * 2 + ["two"] * 2 + ["three"] * 2
    )
    with pytest.raises(ValueError, match=r"has cells of {'steps': 3}, not {'steps': 4}; move it"):
        measure_cells("trial", some_cells(asked), {"steps": 4}, "", tmp_path)


def test_a_cell_s_own_figure_never_stands_where_a_setting_does(tmp_path):
    """Else it would be taken for a cell of another run, and all be measured anew."""
    cell = Cell("one", 0, lambda: Measured({"queries": 3.0}))
    with pytest.raises(ValueError, match="cell 'one' measured 'queries', which is a setting"):
        measure_cells("trial", [cell], {"queries": 9}, "x", tmp_path)


def test_two_processes_share_the_cells(tmp_path):
    """While one is at a cell, the same command elsewhere takes the others, and leaves what it finds done."""
    asked: list = []
    first, second = some_cells(asked)

    def meanwhile() -> Measured:
        table = measure_cells("trial", [first, second], {"steps": 3}, "x", tmp_path)
        assert table["arm"].tolist() == ["two"]
        return first.measure()

    busy = Cell("one", 0, meanwhile)
    table = measure_cells("trial", [busy, second], {"steps": 3}, "x", tmp_path)
    assert asked == ["two", "one"]
    assert table["arm"].tolist() == ["two", "one"]
    assert list(read_results(tmp_path / "trial-ranks.csv", "query")) == ["two 0", "one 0"]


def test_curves_are_kept_by_arm_and_seed(tmp_path):
    curve = pd.DataFrame({"step": [50, 100], "R@1": [0.1, 0.2]})
    found = Measured({"R@1": 0.2}, curve=curve)
    some = [Cell(arm, seed, lambda: found) for seed in (0, 1) for arm in ("one", "two")]
    measure_cells("trial", some, {"steps": 3}, "x", tmp_path)
    (tmp_path / "trial.csv").unlink()  # its rows were not written: measured again, and there once
    measure_cells("trial", some, {"steps": 3}, "x", tmp_path)
    rows = read_results(tmp_path / "trial-curves.csv")
    assert rows.groupby(["arm", "seed"]).size().tolist() == [2, 2, 2, 2]
    assert rows["R@1"].tolist() == [0.1, 0.2] * 4


def test_a_run_that_was_killed_goes_on(tmp_path):
    """Killed after a cell's ranks were written and before its row was: the cell is measured again, and stands
    once.
    """
    asked: list = []

    def killed():
        raise KeyboardInterrupt

    broken = [*some_cells(asked, ("one",)), Cell("two", 0, killed)]
    with pytest.raises(KeyboardInterrupt):
        measure_cells("trial", broken, {}, "command", tmp_path)
    cells._keep_ranks(tmp_path / "trial-ranks.csv", "two 0", RANKS, "command")
    cells._keep_rows(tmp_path / "trial-queries.csv", {"arm": "two"}, ROWS, "command")
    measure_cells("trial", some_cells(asked), {}, "command", tmp_path)
    assert asked == ["one", "two"]
    assert list(read_results(tmp_path / "trial-ranks.csv", "query")) == ["one 0", "two 0"]
    assert len(read_results(tmp_path / "trial-queries.csv")) == 4


@pytest.mark.parametrize("commit", ["8855950", "0012345", "12e4567", "abc1234-dirty"])
def test_a_commit_stays_what_it_is(commit, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "provenance", lambda: {"commit": commit})
    measure_cells("trial", some_cells([]), {"steps": 3}, "command", tmp_path)
    again = measure_cells("trial", some_cells([], ("one", "two", "three")), {"steps": 3}, "command", tmp_path)
    assert again["commit"].tolist() == [commit] * 3


def test_hits_are_by_seed_and_an_arm_that_is_missing_is_named():
    ranks = pd.DataFrame({"coral 1": [1, 5], "coral 0": [-1, 1], "coral cat 0": [1, 1]})
    np.testing.assert_array_equal(hits_of(ranks, "coral"), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(hits_of(ranks, "coral", 5), [[0, 1], [1, 1]])
    with pytest.raises(ValueError, match="no cell of 'lora' among coral, coral cat; run it first"):
        hits_of(ranks, "lora")


def test_compare_pairs_queries_and_seeds():
    rng = np.random.default_rng(0)
    base = rng.choice([1, 2, -1], size=(400, 2))
    better = np.where(rng.random((400, 2)) < 0.2, 1, base)
    columns = {f"contrastive {seed}": base[:, seed] for seed in (0, 1)}
    ranks = pd.DataFrame(columns | {f"coral {seed}": better[:, seed] for seed in (0, 1)})
    table = compare_arms(ranks).set_index("arm")
    gains = (better == 1).mean(0) - (base == 1).mean(0)
    assert table.loc["coral", "difference"] == pytest.approx(gains.mean())
    assert table.loc["coral", "p"] == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    assert table.loc["coral", "seeds"] == gains.round(3).tolist()
    assert table.loc["coral", "odds ratio"] > 1
    assert table.loc["contrastive", "difference"] == 0
    assert np.isnan(table.loc["contrastive", "p (Holm)"])
    with pytest.raises(ValueError, match="no cell of 'contrastive'"):
        compare_arms(ranks[["coral 0"]])
    with pytest.raises(ValueError, match="coral has 1 seeds and contrastive 2; run as many"):
        compare_arms(ranks.drop(columns="coral 1"))


def test_holm_by_hand():
    """0.01 x 3, then 0.02 x 2, then the larger of that and 0.03."""
    np.testing.assert_allclose(holm(np.array([0.02, 0.01, 0.03])), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1, 1])
    assert holm(np.array([])).shape == (0,)


HARD = ["#1", "# 2", "a#b", "007", "NA", "nan", "None", "", "1e5", "-1", "inf", "True", "=1+1", "'=x"]
HARD += ['"', "a,b", "a\nb"]


def test_names_come_back_as_they_were_written(tmp_path):
    """A comment is at the head only, a text stays a text, and a spreadsheet runs none of them."""
    frame = pd.DataFrame({"arm": HARD, "query": HARD[::-1], "R@1": np.linspace(-1, 1, len(HARD)) / 3})
    write_results(tmp_path / "r.csv", frame, "coral-lab x")
    again = read_results(tmp_path / "r.csv")
    for name in frame:
        assert again[name].tolist() == frame[name].tolist(), name
    assert "\n=" not in (tmp_path / "r.csv").read_text()
    assert read_results(tmp_path / "r.csv", "query").index.tolist() == HARD[::-1]


@pytest.mark.parametrize(
    "values",
    [
        ["007", "1"],
        ["1e5", "2"],
        ["NA", "1"],
        ["nan", "0.5"],
        ["0x1", "1"],
        ["1_000", "2"],
        [1, 2**53 + 1],
        [0.1 + 0.2, -1e-300],
        [1.5, float("nan")],
        [True, False],
        [float("inf"), 1.0],
        ["#", "x"],
    ],
)
def test_other_columns_come_back_with_their_kind(tmp_path, values):
    frame = pd.DataFrame({"arm": ["a", "b"], "x": values})
    write_results(tmp_path / "r.csv", frame, "command")
    again = read_results(tmp_path / "r.csv")["x"]
    pd.testing.assert_series_equal(again, frame["x"])


def test_settings_that_look_like_numbers_are_those_of_before(tmp_path):
    asked: list = []
    for _ in range(2):
        some = some_cells(asked, ("007", "#1", "NA"))
        measure_cells("trial", some, {"start": "007", "own": "1e5"}, "command", tmp_path)
    assert asked == ["007", "#1", "NA"]
    assert list(read_results(tmp_path / "trial-ranks.csv", "query")) == ["007 0", "#1 0", "NA 0"]
    assert len(read_results(tmp_path / "trial-queries.csv")) == 6


def test_a_column_s_name_may_be_anything_too(tmp_path):
    frame = pd.DataFrame({"#": [1], "=x": ["y"], "a#b": [2]})
    write_results(tmp_path / "r.csv", frame, "command --x '\n# y'")
    pd.testing.assert_frame_equal(read_results(tmp_path / "r.csv"), frame)


@pytest.mark.parametrize("file", sorted(shipped("data/results").glob("*.csv")), ids=lambda file: file.name)
def test_the_committed_files_have_the_values_that_pandas_reads(file):
    index = "query" if file.stem.endswith("-ranks") else None
    plain = pd.read_csv(file, comment="#", index_col=index, dtype={"commit": str})
    pd.testing.assert_frame_equal(read_results(file, index), plain, rtol=1e-15)


def test_results_are_written_through_no_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / "trial-ranks.csv").symlink_to(tmp_path / "precious")
    (out / "trial.part").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match=r"trial-ranks\.csv is a link"):
        measure_cells("trial", some_cells([]), {}, "command", out)
    (tmp_path / "no-table.csv").write_text("# command\na,b\n1,2\n")
    with pytest.raises(ValueError, match="has a column twice, or no query; measure it anew"):
        read_results(tmp_path / "no-table.csv", "query")
    (tmp_path / "twice.csv").write_text("# command\n=x,'=x\n1,2\n")
    with pytest.raises(ValueError, match="has a column twice, or no arm; measure it anew"):
        read_results(tmp_path / "twice.csv")
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(ValueError, match="link is a link; name the folder"):
        measure_cells("trial", some_cells([]), {}, "command", tmp_path / "link")
    assert (tmp_path / "precious").read_text() == "precious"
