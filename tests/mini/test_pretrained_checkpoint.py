"""The base that ships for a pretrained model: it names what it sees and reads, and embeds nothing yet."""

import json

import pandas as pd
import pytest

from coral_lab.mini.merit_mini import catalogue
from coral_lab.mini.naming import name_attributes
from coral_lab.mini.pretraining import taught
from coral_lab.models.loading import load
from coral_lab.sources.package_files import shipped


@pytest.fixture(scope="module")
def model():
    return load("mini-pretrained", device="cpu", dtype="float32")


def test_it_was_taught_all_of_the_catalogue_s_facts_and_to_answer(model):
    found = taught(model)
    assert found.answers
    assert len(found.scope.classes) == 16
    assert len(found.scope.languages) == 5


def test_what_was_measured_of_it_is_what_a_base_must_be():
    written = json.loads(shipped("data/results/pretrained-test.json").read_text(encoding="utf-8"))
    assert written["metrics"]["R@1"] <= 0.05
    assert (written["n_queries"], written["pool"]) == (2000, 3000)
    table = pd.read_csv(shipped("data/results/pretrained-attributes.csv"))
    known = table[table["source"].str.startswith(("picture", "title"))]
    assert len(known) == 6 + 5 * 7  # what a picture shows, and what titles in five languages tell
    assert known["accuracy"].min() >= 0.95


def test_what_is_said_of_it_is_what_was_measured():
    table = pd.read_csv(shipped("data/results/pretrained-attributes.csv"))
    by_source = table.groupby(table["source"].str.split().str[0])["accuracy"]
    text = " ".join(shipped("docs/pages/results.md").read_text(encoding="utf-8").split())
    lows, highs = by_source.min(), by_source.max()
    assert f"{lows['picture']:.3f} and more of everything that a picture shows" in text
    assert f"{lows['title'] - 5e-4:.3f} and more of what a title tells" in text
    assert f"it names {lows['one']:.2f} (pattern) to {highs['one']:.2f} right" in text
    assert (
        f"of several things at once {lows['several']:.2f} (pattern) to {highs['several']:.2f} (size)" in text
    )


def test_it_names_what_it_sees_and_reads(model):
    """A few products of the 300: nearly all of their values, in its own words."""
    table = name_attributes(model, catalogue("mini").products[:12])
    weights = table["n"] / table["n"].sum()
    assert (table["accuracy"] * weights).sum() > 0.9
