"""The design chooses by its own rules, and what it trains is what it says."""

import numpy as np
import pandas as pd
import pytest

from coral_lab.cli import main, measuring
from coral_lab.replication import cells, design
from coral_lab.replication.cells import write_results
from coral_lab.replication.design import (
    ALIKE,
    CHOSEN,
    FEW,
    FEWEST,
    LENGTHS,
    SEEDS,
    choose,
    length,
    primary,
    run,
    rung,
)
from coral_lab.replication.seeds import BETTER, NOT_TESTABLE


def write_length(out, before: float, after: list[float]) -> None:
    arms = ["before", *(f"contrastive {steps}" for steps in LENGTHS)]
    write_results(out / "length.csv", pd.DataFrame({"arm": arms, "seed": 100, "R@1": [before, *after]}), "x")


def write_selection(out, best: dict[str, float], weight: float = 0.2) -> None:
    rows = []
    for arm in CHOSEN:
        for rate in design.LORA_RATES if "lora" in arm else design.RATES:
            rows += [{"arm": f"{arm} {rate:g}", "seed": 100, "MRR@10": 0.5 if rate == best[arm] else 0.4}]
    for own in design.WEIGHTS:
        if own != 0.2:
            value = 0.6 if own == weight else 0.3
            rows += [{"arm": f"coral {best['coral']:g} weight {own:g}", "seed": 100, "MRR@10": value}]
    write_results(out / "selection.csv", pd.DataFrame(rows), "x")
    write_ranks(out, rows)


def write_ranks(out, rows: list[dict], queries: int = 400) -> None:
    """Each query's rank is 1 or none, so that the MRR@10 of every cell is what its row says."""
    ranks = {
        f"{own['arm']} 100": np.where(np.arange(queries) < own["MRR@10"] * queries, 1, -1) for own in rows
    }
    frame = pd.DataFrame(ranks, pd.RangeIndex(queries, name="query").map(str)).rename_axis("query")
    write_results(out / "selection-ranks.csv", frame.reset_index(), "x")


BEST = {"contrastive": 1e-3, "coral": 2e-3, "coral lora": 5e-3}


@pytest.fixture
def places(tmp_path):
    """Results of `length` and `selection`, and empty rungs."""
    write_length(tmp_path, 0.02, [0.1, 0.35, 0.5, 0.6])
    write_selection(tmp_path, BEST, weight=0.05)
    for name in ("seeing", "pretrained-without-all"):
        (tmp_path / "bases" / name).mkdir(parents=True)
    return {"out": tmp_path, "work": tmp_path / "work", "bases": tmp_path / "bases"}


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        (0.02, [0.1, 0.35, 0.5, 0.6], 300),
        (0.02, [0.31, 0.35, 0.5, 0.6], 150),
        (0.25, [0.31, 0.35, 0.5, 0.6], 450),  # something must be gained
        (0.02, [0.1, 0.8, 0.9, 0.9], 600),  # nothing was left from 300 on: the gates will say so
        (0.02, [0.1, 0.1, 0.1, 0.2], 600),
    ],
)
def test_the_length_is_the_shortest_that_passes_both_gates(tmp_path, before, after, steps):
    write_length(tmp_path, before, after)
    assert length(tmp_path) == steps


def test_a_length_that_another_process_still_measures_is_named(tmp_path):
    rows = pd.DataFrame({"arm": ["before", "contrastive 150"], "seed": 100, "R@1": [0.02, 0.1]})
    write_results(tmp_path / "length.csv", rows, "x")
    with pytest.raises(ValueError, match="length has no cell 'contrastive 300' yet"):
        length(tmp_path)


def test_rates_are_the_best_and_the_weight_is_coral_s_at_its_rate(places):
    chosen = choose(places["out"])
    assert (chosen.steps, chosen.rates, chosen.weight) == (300, BEST, 0.05)
    write_selection(places["out"], BEST)
    assert choose(places["out"]).weight == 0.2
    assert str(chosen).startswith("300 steps; contrastive 0.001, coral 0.002, ")


@pytest.mark.parametrize(
    ("measured", "rate"),
    [
        ((0.495, 0.489, 0.513), 5e-4),  # 400 queries: a standard error is 0.025
        ((0.485, 0.489, 0.513), 1e-3),
        ((0.485, 0.486, 0.513), 2e-3),
        ((0.5, 0.4, 0.4), 5e-4),
        ((0.4, 0.5, 0.49), 1e-3),
    ],
)
def test_of_rates_that_cannot_be_told_apart_the_smallest_is_taken(tmp_path, measured, rate):
    rows = [
        {"arm": f"coral {own:g}", "seed": 100, "MRR@10": value}
        for own, value in zip(design.RATES, measured, strict=True)
    ]
    write_ranks(tmp_path, rows)
    ranks = cells.read_results(tmp_path / "selection-ranks.csv", "query")
    assert design._rate(pd.DataFrame(rows), ranks, "coral") == rate


@pytest.mark.parametrize("lacks", ["coral 0.002", "coral lora 0.005", "coral 0.002 weight 1"])
def test_nothing_is_chosen_while_a_cell_is_missing(places, lacks):
    table = cells.read_results(places["out"] / "selection.csv")
    write_results(places["out"] / "selection.csv", table[table["arm"] != lacks], "x")
    with pytest.raises(ValueError, match=f"no cell '{lacks}' yet, of 1 that it lacks"):
        choose(places["out"])


@pytest.fixture
def asked(monkeypatch):
    """What would be trained, by call."""
    found: list = []

    def note(name, plan, *, arms, out, work):
        found.append((name, plan, arms))
        rows = [{"arm": arm, "seed": 100, "MRR@10": 200 * own.learning_rate} for arm, own in arms.items()]
        return pd.DataFrame(rows)

    monkeypatch.setattr(design, "train_and_measure", note)
    return found


def test_pilots_never_see_the_test_split_nor_the_study_its_seeds(asked, places):
    for name in ("length", "selection", *ALIKE):
        run(name, **places)
    by_name = {name: plan for name, plan, _ in asked}
    for name, plan in by_name.items():
        chooses = name in ("length", "selection")
        assert plan.split == ("val" if chooses else "test")
        assert plan.first_seed == (100 if chooses else 0)
        assert plan.start == "mini-pretrained"
        assert plan.chosen == ("" if chooses else str(choose(places["out"])))
    assert by_name["objectives"].steps == by_name["selection"].steps == 300


def test_the_weight_is_chosen_at_the_best_rate(asked, places):
    run("selection", **places)
    (_, _, rates), (_, _, weights) = asked
    assert sum(name.startswith("coral lora") for name in rates) == len(design.LORA_RATES)
    assert len(rates) == 2 * len(design.RATES) + len(design.LORA_RATES)
    assert {name: arm.coral.lambda2 for name, arm in weights.items()} == {
        "coral 0.002 weight 0.05": 0.05,  # the note's MRR@10 grows with the rate
        "coral 0.002 weight 1": 1.0,
    }
    assert {arm.learning_rate for arm in weights.values()} == {2e-3}


@pytest.mark.parametrize("name", ALIKE)
def test_every_arm_has_its_own_rate_and_coral_s_weight(name, asked, places):
    run(name, **places)
    ((_, plan, arms),) = asked
    for arm, own in arms.items():
        like = ALIKE[name][arm][0]
        assert own.learning_rate == BEST[like]
        assert own.decoders_first == (100 if own.coral.weights else 0)
        on = {*own.coral.weights.values()}
        assert on == ({0.05} if "contrastive" not in arm and arm != "before" else set())
    seeds = {arm: own.seeds or plan.seeds for arm, own in arms.items()}
    if name == "objectives":
        assert [seeds[arm] for arm in ("contrastive", "coral", "shuffled")] == [SEEDS, SEEDS, FEW]
        assert arms["before"].steps == 0
    else:
        assert {*seeds.values()} == {FEWEST if name == "unseen" else FEW}


def test_both_sides_start_from_a_base_that_never_met_what_is_held_back(asked, places):
    run("unseen", **places)
    ((_, _, arms),) = asked
    for arm, own in arms.items():
        assert own.held_back == arm.split()[0]
        assert own.control == arm.endswith("control")
        assert own.start == str(places["bases"] / "pretrained-without-all")


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cells, "shipped", lambda name: tmp_path / name)  # where nothing was run yet
    with pytest.raises(FileNotFoundError, match="`coral-lab experiment length` makes it"):
        run("selection", out=tmp_path)
    command = r"coral-lab mini --stage seeing --out .*seeing` makes it"
    with pytest.raises(FileNotFoundError, match=command):
        rung("seeing", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"--stage pretrained --model \S+seeing-without-class --without class --out"
    ):
        rung("pretrained-without-class", tmp_path)
    with pytest.raises(ValueError, match="'other' is not in the design"):
        run("other", out=tmp_path)
    assert main(["experiment", "length", "--steps", "3", "--out", str(tmp_path)]) == 2
    assert "experiment length takes no --steps" in capsys.readouterr().err


def test_the_command_line_knows_all_of_them():
    assert ("length", "selection", *ALIKE) == measuring.DESIGNED


def write_objectives(out, contrastive: float, coral: float, saved: float) -> None:
    """Of 200 queries so many are found, a few more or fewer by seed."""
    columns = {"before 0": np.where(np.arange(200) < 4, 1, -1)}
    for arm, mean in (("contrastive", contrastive), ("coral", coral)):
        for seed in range(SEEDS):
            columns[f"{arm} {seed}"] = np.where(
                np.arange(200) < 200 * mean + (seed % 3) * (arm == "coral"), 1, -1
            )
    ranks = pd.DataFrame(columns, pd.Index([f"q{n}" for n in range(200)], name="query"))
    write_results(out / "objectives-ranks.csv", ranks.reset_index(), "x")
    table = pd.DataFrame({"arm": ["coral", "contrastive"], "seed": 0, "saved": [saved, np.nan]})
    write_results(out / "objectives.csv", table, "x")


def test_the_primary_comparison_says_its_gates_and_then_its_verdict(tmp_path):
    write_objectives(tmp_path, 0.4, 0.5, 0.1)
    found = primary(tmp_path)
    assert found.judgement.verdict == BETTER
    assert [gate.met for gate in found.gates] == [True] * 3
    assert (found.start, found.contrastive) == (0.02, 0.4)
    write_objectives(tmp_path, 0.4, 0.5, 0.01)
    assert primary(tmp_path).judgement.verdict == NOT_TESTABLE
    assert "missed the share of the loss" in str(primary(tmp_path))
