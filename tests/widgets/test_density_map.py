"""The density map counts what is in sight, and fetches what is asked for and nothing else."""

import numpy as np
import pytest

import coral_lab as cl
from coral_lab import Product, Settings
from coral_lab.metrics import Estimate
from coral_lab.study.large_maps import LargeMap
from coral_lab.widgets import DensityMap, density_map
from tests.store.embedders import Letters

NONE = Estimate(0.5, 0.4, 0.6, 10)


@pytest.fixture
def found():
    """5,000 products in a crowd, ten far from it."""
    random = np.random.default_rng(0)
    places = np.concatenate([random.standard_normal((5000, 2)), random.standard_normal((10, 2)) + 40])
    ids = np.array([f"p{i}" for i in range(5010)])
    return LargeMap(ids, places.astype(np.float32), np.ones(5010, bool), NONE, NONE, 0.01)


FAR = (35.0, 45.0, 35.0, 45.0)


@pytest.fixture
def fetched():
    return []


@pytest.fixture
def chart(found, fetched):
    def fetch(ids):
        fetched.append(list(ids))
        return [Product(id, f"title of {id}") for id in ids]

    return DensityMap(found, fetch)


def test_all_are_counted_and_none_is_drawn_or_fetched(chart, fetched):
    assert np.sum(chart.heat.customdata) == 5010
    assert len(chart.points.x) == 0
    assert "5,010 products in sight; zoom in to 2,000" in chart.message.value
    assert fetched == []


def test_a_zoom_draws_the_few_in_sight_and_a_click_fetches_one(chart, fetched):
    chart.figure.update_layout({"xaxis.range": FAR[:2], "yaxis.range": FAR[2:]})
    assert chart.window == FAR
    assert list(chart.points.text) == [f"p{i}" for i in range(5000, 5010)]
    assert np.sum(chart.heat.customdata) == 10
    assert fetched == []
    chart.select([3])
    assert fetched == [["p5003"]]
    assert "title of p5003" in chart.gallery.value
    chart.look_at(chart.found.window)
    assert len(chart.points.x) == 0


def test_only_what_is_shown_is_fetched(found, fetched, chart, monkeypatch):
    monkeypatch.setattr(density_map, "MOST", 6000)
    chart.look_at(found.window)
    chart.select(range(5010))
    assert [len(own) for own in fetched] == [24]
    assert "5,010 chosen, the first 24 shown" in chart.message.value


def test_what_goes_wrong_is_said_in_its_place(found):
    def fails(ids):
        raise OSError("the store is gone")

    chart = DensityMap(found, fails)
    chart.look_at(FAR)
    chart._chosen([0])
    assert "the store is gone" in chart.message.value
    with pytest.raises(ValueError, match="ends in order"):
        chart.look_at((1.0, 0.0, 0.0, 1.0))


def test_what_the_browser_gets_is_bounded(found):
    many = np.repeat(found.places, 40, axis=0)
    large = LargeMap(np.repeat(found.ids, 40), many, np.ones(len(many), bool), NONE, NONE, 0.01)
    sizes = [len(DensityMap(own, lambda _: []).figure.to_json()) for own in (found, large)]
    assert sizes[1] < 1.2 * sizes[0]


def test_the_static_twin_shows_what_is_in_sight(chart):
    assert len(chart.static().figure.data) == 1
    chart.look_at(FAR)
    chart.select([0, 1])
    frozen = chart.static()
    assert [len(trace.x) for trace in frozen.figure.data[1:]] == [10]
    assert "title of p5000" in frozen.gallery


def test_a_store_gives_what_a_map_needs(tmp_path):
    products = [Product(f"it's {i}", chr(97 + i % 16) * (1 + i % 9)) for i in range(60)]
    store = cl.open_store(tmp_path, Letters())
    store.add(products, Settings(progress=False))
    read = [(ids, len(rows)) for ids, rows in store.in_batches(25)]
    assert sorted(id for ids, _ in read for id in ids) == sorted(p.id for p in products)
    assert [own.title for own in store.products(["it's 7", "it's 3"])] == [
        products[7].title,
        products[3].title,
    ]
    with pytest.raises(KeyError, match="nowhere"):
        store.products(["nowhere"])
