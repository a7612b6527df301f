"""Batches are full but not too full, pictures are looked at once, and the next ones are on their way."""

import threading
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from coral_lab import Condition, Product, Query, Settings, encode, encoder
from coral_lab.errors import ItemError
from coral_lab.models import batching, embedding
from coral_lab.models.forward import call_cost, tokenize
from coral_lab.models.model import Model
from coral_lab.models.pixels import USUAL, key
from tests.conftest import noise

LENGTHS = st.lists(st.integers(1, 50), max_size=30).map(sorted)
BOUNDS = st.builds(batching.Bounds, st.integers(1, 8), st.integers(1, 200), st.integers(0, 100))


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 50), BOUNDS)
def test_groups_are_within_their_bounds_and_as_few_as_can_be(lengths, beginning, bounds):
    alike = [min(length, beginning) for length in lengths]
    found = list(batching.groups(lengths, alike, bounds))
    assert [i for group in found for i in group] == list(range(len(lengths)))

    def fits(start, stop):
        own = (stop - start) * lengths[stop - 1] - sum(alike[start + 1 : stop])
        added = [n * (lengths[start + n] - lengths[start + n - 1]) for n in range(1, stop - start)]
        return stop - start == 1 or (
            stop - start <= bounds.count and own <= bounds.tokens and max(added) <= bounds.padding
        )

    assert all(fits(group.start, group.stop) for group in found)
    assert not any(fits(group.start, group.stop + 1) for group in found[:-1])


@settings(deadline=None)
@given(LENGTHS, BOUNDS)
def test_padding_never_costs_more_than_the_calls_it_saves(lengths, bounds):
    found = list(batching.groups(lengths, [0] * len(lengths), bounds))
    for group in found:
        own = lengths[group.start : group.stop]
        assert len(own) * own[-1] - sum(own) <= (len(own) - 1) * bounds.padding


@settings(deadline=None)
@given(LENGTHS.filter(len), BOUNDS, st.integers(0, 30))
def test_what_is_left_after_some_groups_is_grouped_as_before(lengths, bounds, done):
    alike = [length // 2 for length in lengths]
    found = list(batching.groups(lengths, alike, bounds))
    done = min(done, len(found) - 1)
    start = found[done].start
    again = batching.groups(lengths[start:], alike[start:], bounds)
    assert [range(group.start + start, group.stop + start) for group in again] == found[done:]


def test_a_call_costs_more_tokens_the_smaller_the_layers(random_model, monkeypatch):
    assert 64 <= call_cost(random_model) <= 128
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.zeros(1).expand(77_000_000))  # the 3B's
    text_model = random_model.network.model.language_model
    monkeypatch.setitem(text_model._modules, "layers", nn.ModuleList([layer]))
    assert call_cost(random_model) == 16
    monkeypatch.setattr(Model, "device", torch.device("cuda"))
    assert 512 <= call_cost(random_model) <= 1024


@pytest.fixture
def related(shop):
    """Products, and queries that show two of them each."""
    shown = [
        Product(f"p{i}", f"title {i}", noise(60 + 28 * i, 84, seed=i), shop.products[i].class_name)
        for i in range(5)
    ]
    pairs = [(0, 1), (1, 2), (4, 0), (3, 3), (2, 4)]
    return shown + [
        Query(f"q{i}", "bag", (Condition("color", shown[a]), Condition("brand", shown[b])))
        for i, (a, b) in enumerate(pairs)
    ]


@pytest.fixture
def looked(monkeypatch):
    """Keys of the pictures that the vision tower looks at, and what is kept of them after each batch."""
    keys, kept = [], []
    look, forget = batching.vision_of_pixels, batching.forget

    def counted(model, found):
        keys.extend(found)
        return look(model, found)

    def told(batch):
        forget(batch)
        kept.append({k: len(v) for k, v in batch.seen.features.items()})
        assert batch.seen.features.keys() == batch.seen.grids.keys()

    monkeypatch.setattr(batching, "vision_of_pixels", counted)
    monkeypatch.setattr(batching, "forget", told)
    return keys, kept


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_a_picture_is_looked_at_once_in_a_call_and_forgotten_after_its_last_item(
    random_model, related, looked, batch_size
):
    alone = np.concatenate([encode(random_model, item) for item in related])
    keys, kept = looked
    keys.clear()
    kept.clear()
    np.testing.assert_allclose(
        encode(random_model, related, settings=Settings(batch_size=batch_size)), alone, atol=1e-5
    )
    assert sorted(keys) == sorted(key(item.image) for item in related[:5])
    assert kept[-1] == {}


def test_what_is_kept_stays_within_its_bytes(random_model, related, looked, monkeypatch):
    alone = np.concatenate([encode(random_model, item) for item in related])
    keys, kept = looked
    most = 20
    monkeypatch.setattr(batching, "KEPT", most * random_model.dim * 4)
    for bound in (most, 0):
        keys.clear()
        kept.clear()
        monkeypatch.setattr(batching, "KEPT", bound * random_model.dim * 4)
        np.testing.assert_allclose(
            encode(random_model, related, settings=Settings(batch_size=1)), alone, atol=1e-5
        )
        assert max(sum(own.values()) for own in kept) <= bound
        assert len(keys) > 5
    assert set(keys) == {key(item.image) for item in related[:5]}


def test_a_batch_has_no_more_tokens_than_it_may(random_model, related, monkeypatch):
    found, plain = [], embedding._embed

    def counted(model, batch):
        lengths = tokenize(model, batch.prompts, batching.vision_of_batch(model, batch))[
            "attention_mask"
        ].sum(1)
        assert lengths.tolist() == batch.lengths
        found.append((len(batch), batch.tokens))
        return plain(model, batch)

    monkeypatch.setattr(embedding, "_embed", counted)
    monkeypatch.setattr(embedding, "CPU_TOKENS", 200)
    encode(random_model, related)
    assert sum(rows for rows, _ in found) == len(related)
    assert all(rows == 1 or tokens <= 200 for rows, tokens in found)
    assert len(found) < len(related)


@pytest.mark.parametrize("cost", [0, 8, 10**6])
def test_items_are_not_padded_for_more_than_a_call_costs(random_model, related, monkeypatch, cost):
    alone = np.concatenate([encode(random_model, item) for item in related])
    found, plain = [], embedding._embed
    monkeypatch.setattr(embedding, "_embed", lambda m, batch: found.append(batch) or plain(m, batch))
    monkeypatch.setattr(embedding, "call_cost", lambda model: cost)
    np.testing.assert_allclose(encode(random_model, [*related, *related]), np.tile(alone, (2, 1)), atol=1e-5)
    padding = sum(len(batch) * batch.lengths[-1] - sum(batch.lengths) for batch in found)
    assert padding <= cost * (2 * len(related) - len(found))
    assert len(found) == 1 if cost == 10**6 else 1 < len(found) <= len(related)


def test_wordings_that_begin_alike_share_a_batch(random_model, related, monkeypatch):
    found, plain = [], embedding._embed
    monkeypatch.setattr(embedding, "_embed", lambda m, batch: found.append(batch) or plain(m, batch))
    monkeypatch.setattr(embedding, "CPU_TOKENS", 400)
    conditions = tuple(map(Condition, ("color", "brand", "shape"), related[:3]))
    query = Query("q", "bag", conditions)
    orders = [query.reordered(order) for order in permutations(range(3))]
    encode(random_model, orders)
    assert len(found[0]) > 400 // found[0].lengths[0]


def test_reading_ahead_takes_one_core_and_leaves_the_others_theirs(random_model, related, monkeypatch):
    before, found, prepare = torch.get_num_threads(), [], batching._prepare

    def told(*args):
        found.append(torch.get_num_threads())
        return prepare(*args)

    monkeypatch.setattr(batching, "_prepare", told)
    encode(random_model, related)
    assert set(found) == {1}
    assert torch.get_num_threads() == before


def test_the_next_pictures_are_opened_while_the_model_works(random_model, monkeypatch):
    opened, plain = threading.Event(), embedding._embed

    def second():
        opened.set()
        return noise(60, 60, seed=0)

    def waits(model, batch):
        assert opened.wait(20), "the next batch's picture was not opened"
        return plain(model, batch)

    monkeypatch.setattr(embedding, "_embed", waits)
    items = [Product("first", "short", noise(60, 60, seed=1)), Product("second", "a longer title", second)]
    assert np.isfinite(encode(random_model, items, settings=Settings(batch_size=1))).all()


def test_items_of_a_batch_that_cannot_be_used_are_named_and_the_others_are_done(random_model, related):
    long, broken = Product("long", "word1 " * 40_000, related[0].image), Product("broken", "", b"no picture")
    query = Query("q", "bag", (Condition("color", broken), Condition("color", related[1])))
    items = [*related[:3], long, broken, query, *related[3:]]
    alone = encode(random_model, related)
    found = encoder.encode_all(random_model, items, settings=Settings(on_error="skip"))
    assert [(place, error.item) for place, error in found.skipped] == [
        (3, "product long"),
        (4, "product broken"),
        (5, "query q"),
    ]
    np.testing.assert_allclose(np.delete(found.embeddings, [3, 4, 5], 0), alone, atol=1e-5)
    with pytest.raises(ItemError, match=r"product long|product broken|query q"):
        encode(random_model, items)


@pytest.mark.parametrize("size", [(1, 1), (2000, 10), (57, 57), (84, 84), (301, 57), (500, 400)])
def test_image_tokens_are_told_from_the_size(random_model, size, tmp_path):
    picture = noise(*size, seed=0)
    picture.save(tmp_path / "p.png")
    expected = random_model.pixels([(picture, "it")])[key(picture)][1].prod() // 4
    for form in (picture, tmp_path / "p.png", f"file://{tmp_path}/p.png", (tmp_path / "p.png").read_bytes()):
        assert random_model.pixels.tokens(form) == expected
    assert expected > 0


def test_image_tokens_that_cannot_be_told(random_model, tmp_path):
    usual = random_model.pixels.tokens(Image.new("RGB", USUAL))
    assert random_model.pixels.tokens(lambda: pytest.fail("it was drawn")) == usual
    strip = Image.new("RGB", (8000, 10))
    for broken in (b"no picture", tmp_path / "none.png", "https://example.com/a.png", strip):
        assert random_model.pixels.tokens(broken) == 0
