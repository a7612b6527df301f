"""Verdicts follow from the numbers alone."""

import json
from inspect import unwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coral_lab.metrics import Estimate, crossed_change, crossed_estimate
from coral_lab.replication.cells import read_results, results_file
from coral_lab.replication.experiments import ARMS
from coral_lab.replication.verdicts import (
    EFFECTS,
    NOT_REPLICATED,
    NOT_TESTABLE,
    REPLICATED,
    Effect,
    findings,
    verdict,
    why,
)
from coral_lab.sources.package_files import shipped


@pytest.mark.parametrize(
    ("mean", "low", "high", "p", "comparison", "published", "expected"),
    [
        (0.4, 0.3, 0.5, 0.001, "above", 0.459, REPLICATED),
        (0.1, 0.05, 0.15, 0.001, "above", 0.459, REPLICATED),  # smaller, but surely there
        (-0.1, -0.15, -0.05, 0.001, "above", 0.459, NOT_REPLICATED),  # the other way
        (0.0, -0.02, 0.02, 0.7, "above", 0.459, NOT_REPLICATED),  # the published size is ruled out
        (0.1, -0.3, 0.5, 0.7, "above", 0.459, NOT_TESTABLE),  # it is not
        (0.0, -0.02, 0.02, 0.7, "above", None, NOT_TESTABLE),  # there is none
        (-0.7, -0.8, -0.6, 0.001, "below", -0.739, REPLICATED),
    ],
)
def test_the_rule(mean, low, high, p, comparison, published, expected):
    effect = Effect(Estimate(mean, low, high, 100), p)
    assert verdict(effect, p, comparison, published) == expected
    said = why(effect, p, comparison, published)
    assert f"[{low:+.3f}, {high:+.3f}]" in said
    assert (published is None) or f"{published:+.3f}" in said


def test_a_share_is_held_against_its_bound():
    near = Effect(Estimate(0.01, 0.0, 0.02, 100), 0.001, 0.05)
    assert verdict(near, near.p, "below", None) == REPLICATED
    assert verdict(near, near.p, "above", None) == NOT_REPLICATED


def test_every_published_finding_has_a_measure_and_a_source():
    published = pd.read_csv(shipped("data/published-findings.csv"))
    assert published["number"].tolist() == list(EFFECTS)
    assert published["source"].str.contains("arXiv 2506.03144", regex=False).all()
    assert published["comparison"].isin(["above", "below"]).all()


def test_a_missing_results_file_names_its_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"formats-ranks.csv is missing; `coral-lab experiment formats`"
    ):
        findings(tmp_path)


def test_the_relative_change_by_hand():
    base = np.repeat([[1.0, 1.0], [0.0, 0.0]], 50, axis=0)
    assert crossed_change(base, base) == Estimate(0.0, 0.0, 0.0, 100)
    half = base * (np.arange(100) % 2)[:, None]
    found = crossed_change(half, base)
    assert found.mean == pytest.approx(-0.5)
    assert -0.7 < found.low < -0.5 < found.high < -0.3
    assert crossed_estimate(half).mean == pytest.approx(0.25)
    for bad in (np.zeros((100, 2)), base[:, :1]):
        with pytest.raises(ValueError, match="give both systems' values for the same queries and seeds"):
            unwrap(crossed_change)(half, bad)


def test_the_notebook_prints_the_verdicts_that_follow_from_the_files():
    """Recomputed here from data/results; what the committed notebook shows must be the same."""
    notebook = json.loads(Path("notebooks/07_paper_findings.ipynb").read_text(encoding="utf-8"))
    printed = "".join(
        "".join(output.get("text", ()))
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream"
    )
    table = findings()
    assert len(table) == len(EFFECTS)
    assert table["verdict"].isin([REPLICATED, NOT_REPLICATED, NOT_TESTABLE]).all()
    assert (table["p (Holm)"] >= table["p"]).all()
    for row in table.itertuples():
        assert f"{row.number:>2} {row.verdict}: {row.why}" in printed, row.number
    trained = [name for names in table["files"] for name in names.split() if name in ARMS]
    for name in {*trained}:
        assert read_results(results_file(name)).groupby("arm")["seed"].nunique().min() >= 3, name
