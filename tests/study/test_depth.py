"""Measures by layer agree with those of the model read there."""

import numpy as np
import pytest

import coral_lab as cl
from coral_lab.errors import CheckpointError
from coral_lab.models.layers import AtLayer
from coral_lab.study.depth import by_layer, figure
from coral_lab.study.geometry import anisotropy
from coral_lab.study.sweeps import heeded
from tests.models.test_protocol import Colour


@pytest.fixture(scope="module")
def shop():
    return cl.dataset("mini")


@pytest.fixture(scope="module")
def measured(shop):
    queries = shop.queries[:20]
    return by_layer(cl.load("mini"), queries, shop.smaller_pool(queries, 80))


@pytest.mark.parametrize("layer", [1, 3])
def test_a_layers_row_is_what_measuring_it_alone_gives(measured, shop, layer):
    queries = shop.queries[:20]
    pool = cl.index(AtLayer(cl.load("mini"), layer), shop.smaller_pool(queries, 80))
    row = measured.set_index("layer").loc[layer]
    assert row["R@1"] == pool.evaluate(queries).metrics["R@1"].mean
    assert row["anisotropy"] == pytest.approx(anisotropy(pool.embeddings), abs=1e-6)
    assert row["gain"] == pytest.approx(heeded(pool, queries)["gain"].mean(), abs=1e-5)


def test_the_last_layer_is_the_model(measured, shop):
    model, queries = cl.load("mini"), shop.queries[:20]
    found = cl.evaluate(model, queries, shop.smaller_pool(queries, 80))
    assert measured["R@1"].iloc[-1] == found.metrics["R@1"].mean
    assert measured["anisotropy"].iloc[0] == pytest.approx(1, abs=1e-5)  # one token, the same for all
    assert np.all(measured["R@1 low"] <= measured["R@1"])


def test_the_figure_has_a_curve_a_measure(measured):
    drawn = figure(measured)
    assert [trace.name for trace in drawn.data] == ["R@1", "anisotropy", "gain"]
    assert all(len(trace.x) == 4 for trace in drawn.data)


def test_a_model_that_only_embeds_has_no_layers(shop):
    with pytest.raises(
        CheckpointError, match=r"'colour' only embeds, and a layer's states needs a network of"
    ):
        by_layer(Colour(), shop.queries[:2], shop.products[:5])
    with pytest.raises(CheckpointError):
        cl.encode(Colour(), shop.products[:1], layer=1)
