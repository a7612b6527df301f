"""The experiments about languages, vectors and inputs, on a model that is made of numbers drawn by what it is
told.
"""

from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest

from coral_lab.mini.merit_mini import catalogue
from coral_lab.replication import asked
from coral_lab.replication.cells import hits_of, read_results


class Drawn:
    """Knows what it is told by heart, and nothing that is alike; opens no picture."""

    name, dim = "drawn", 16

    def embed(self, conversations):
        return [np.random.default_rng(crc32(own.text.encode())).normal(size=16) for own in conversations]


@pytest.fixture(scope="module")
def shop():
    whole = catalogue("mini")
    some = [query for query in whole.queries if int(query.positives[0]) < 2000200][:6]
    return replace(whole, products=whole.products[:200], queries=tuple(some))


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    monkeypatch.setattr(asked, "load", lambda name: Drawn())


def test_languages_are_measured_as_they_are_and_less_what_tells_them(shop, tmp_path):
    table = asked.languages(shop, ["drawn"], command="coral-lab experiment languages", out=tmp_path)
    assert table["arm"].tolist() == ["drawn", "drawn less language", "drawn less other labels"]
    table = table.set_index("arm")
    assert np.isnan(table.loc["drawn", "R@1 change"])
    assert table.loc["drawn less language", "R@1 change"] == pytest.approx(
        table.loc["drawn less language", "R@1"] - table.loc["drawn", "R@1"], abs=1e-9
    )
    assert table.loc["drawn", "titles apart"] == pytest.approx(1, abs=0.1)  # of one who sees nothing alike
    assert table.loc["drawn", "language read within"] < 0.5
    rows = read_results(tmp_path / "languages-queries.csv")
    assert rows.groupby("arm")["query"].apply(list).tolist() == [[query.id for query in shop.queries]] * 3
    assert (tmp_path / "languages.csv").read_text().startswith("# coral-lab experiment languages\n")


def test_vectors_are_measured_in_every_way_on_every_other_query(shop, tmp_path):
    many = tuple(replace(query, id=f"{query.id} {n}") for query in shop.queries for n in "abcd")
    table = asked.vectors(replace(shop, queries=many), ["drawn"], out=tmp_path)
    names = ["as it is", "8 dimensions", "8 bits", "4 bits", "1 bit", "qb-norm", "csls"]
    assert table["arm"].tolist() == [f"drawn {name}" for name in names]
    assert table["asked"].tolist() == [12] * 7
    assert table["bytes"].tolist() == [64, 32, 16, 8, 2, 64, 64]
    ranks = read_results(tmp_path / "vectors-ranks.csv", "query")
    assert ranks.index.tolist() == [query.id for query in many[::2]]
    changes = hits_of(ranks, "drawn 1 bit").mean() - hits_of(ranks, "drawn as it is").mean()
    assert table.set_index("arm").loc["drawn 1 bit", "R@1 change"] == pytest.approx(changes, abs=1e-9)


def test_inputs_are_measured_by_every_edit(shop, tmp_path):
    few = replace(shop, products=shop.smaller_pool(shop.queries, 40))
    table = asked.sturdiness(few, ["drawn"], out=tmp_path).set_index("arm")
    assert table.index.tolist() == [f"drawn {name}" for name in asked.edit_names()]
    unseen = [name for name in table.index if "blur" in name or "size" in name]
    assert (table.loc[unseen, "R@1 change"] == 0).all()  # it opens no picture
    ranks = read_results(tmp_path / "sturdiness-ranks.csv", "query")
    assert ranks.index.tolist() == [query.id for query in shop.queries]
