"""A model of one's own, with three members, works wherever a loaded one does."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import coral_lab as cl
from coral_lab import Condition, Product, Query, Settings
from coral_lab.encoder import encode_all
from coral_lab.errors import ItemError, ModelMismatchError, NotFiniteError
from coral_lab.images import Sized
from coral_lab.models.families import CORAL
from coral_lab.models.inputs import conversation
from coral_lab.models.model import same_embeddings
from coral_lab.models.protocol import Conversation, Embedder, rows
from coral_lab.prompts import messages
from coral_lab.replication import report
from coral_lab.study import attribution, geometry, sweep
from coral_lab.study.edits import orders
from tests.conftest import noise


class Colour:
    """The mean colour of what is shown, and a count of letters."""

    name, dim, fingerprint = "colour", 29, "1"

    def __init__(self) -> None:
        self.asked: list[list[Conversation]] = []

    def embed(self, conversations):
        self.asked.append(list(conversations))
        return np.stack([self.one(conversation) for conversation in conversations])

    def one(self, conversation):
        colours = [np.asarray(image, float).mean((0, 1)) / 255 for image in conversation.images] or [
            [0, 0, 0]
        ]
        letters = Counter(conversation.text.lower())
        return [*np.mean(colours, 0), *(letters[chr(97 + i)] / 9 for i in range(26))]


BRANDS = ["alto", "brixo", "corde", "dunes"]
PRODUCTS = [
    Product(
        f"p{i}",
        f"{BRANDS[i % 4]} bag {i}",
        noise(40, 30 + i, seed=i),
        "bag",
        attributes={"brand": (BRANDS[i % 4],)},
    )
    for i in range(12)
]
QUERIES = [
    Query(
        f"q{i}",
        "bag",
        (Condition("brand", PRODUCTS[i], BRANDS[i % 4]), Condition("brand", PRODUCTS[i + 4], BRANDS[i % 4])),
        positives=(f"p{i + 8}",),
    )
    for i in range(4)
]


@pytest.fixture
def colour():
    return Colour()


def test_three_members_are_enough(colour):
    assert isinstance(colour, Embedder)
    assert isinstance(cl.load("mini"), Embedder)
    pool = cl.index(colour, PRODUCTS)
    found = cl.evaluate(colour, QUERIES, pool)
    assert found.model == "colour"
    assert found.metrics["R@10"].mean == 1
    assert "colour" in repr(pool)
    hits = pool.search(QUERIES[0], k=3)
    assert hits[0].product in PRODUCTS
    table = sweep(pool, QUERIES, [orders])
    assert len(table) == 12  # as asked, and both orders
    assert {*attribution(pool, QUERIES[0], k=2)["condition"]} == {0, 1}


def test_items_reach_a_model_as_they_are(colour):
    """No words of CORAL's for a model that never saw them; pictures in their order."""
    cl.encode(colour, [PRODUCTS[0], QUERIES[1]])
    product, query = colour.asked[0]
    assert (product.kind, product.text, product.item) == ("product", "alto bag 0", PRODUCTS[0])
    assert (query.kind, query.name, query.item) == ("query", "query q1", QUERIES[1])
    assert query.pictures == (PRODUCTS[1].image, PRODUCTS[5].image)
    assert query.messages == messages(QUERIES[1])
    assert cl.encode(colour, messages(QUERIES[1])).tolist() == cl.encode(colour, QUERIES[1]).tolist()
    assert colour.asked[1][0].kind == "messages"


def test_a_family_of_its_own_words_items(colour):
    colour.family = CORAL
    cl.encode(colour, PRODUCTS[:1])
    assert colour.asked[0][0].messages == messages(PRODUCTS[0])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_rows_do_not_depend_on_batches(colour, batch_size):
    items = [*PRODUCTS, *QUERIES]
    found = cl.encode(colour, items, settings=Settings(batch_size=batch_size))
    expected = np.stack([colour.one(conversation(item)) for item in items])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert found.dtype == np.float32
    assert max(map(len, colour.asked)) <= batch_size


def test_what_it_cannot_read_is_named_or_skipped(colour, caplog):
    broken = replace(PRODUCTS[3], image=b"no picture")
    with pytest.raises(ItemError, match=r"product p3: picture cannot be read"):
        cl.encode(colour, [*PRODUCTS[:3], broken])
    found = encode_all(colour, [*PRODUCTS[:3], broken, PRODUCTS[4]], settings=Settings(on_error="skip"))
    assert [i for i, _ in found.skipped] == [3]
    assert np.isnan(found.embeddings[3]).all()
    assert np.isfinite(found.embeddings[[0, 1, 2, 4]]).all()


@pytest.mark.parametrize(
    ("gives", "error", "says"),
    [
        (np.ones((2, 28)), ValueError, r"'colour' gives float64 of shape \(2, 28\) .* shape \(2, 29\)"),
        (np.ones((1, 29)), ValueError, r"shape \(1, 29\) for 2 items"),
        (np.array([["a"] * 29] * 2), ValueError, r"gives <U1 of shape"),
        (np.zeros((2, 29)), ItemError, r"product p0: 'colour' gives zeros for it"),
        (np.full((2, 29), np.nan), NotFiniteError, r"product p0, product p1: the embedding is not finite"),
    ],
)
def test_what_is_no_embedding_is_refused(colour, monkeypatch, gives, error, says):
    monkeypatch.setattr(colour, "embed", lambda conversations: gives[: len(conversations)], raising=False)
    with pytest.raises(error, match=says):
        cl.encode(colour, PRODUCTS[:2])


@given(
    arrays.arrays(np.float64, (3, 29), elements=st.floats(0.5, 1e6)),
    st.sampled_from(["numpy", "torch", "list"]),
)
def test_rows_are_normalised_whatever_they_are_kept_in(numbers, kind):
    model = Colour()
    made = {"numpy": numbers, "torch": torch.tensor(numbers, dtype=torch.bfloat16), "list": numbers.tolist()}[
        kind
    ]
    model.embed = lambda conversations: made
    found = rows(model, [conversation(product) for product in PRODUCTS[:3]])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    tolerance = 1e-2 if kind == "torch" else 1e-6
    np.testing.assert_allclose(
        found, numbers / np.linalg.norm(numbers, axis=1, keepdims=True), atol=tolerance
    )


def test_a_store_keeps_what_has_a_fingerprint(colour, tmp_path, caplog):
    kept = Settings(store=tmp_path / "store", progress=False)
    first = cl.encode(colour, PRODUCTS, settings=kept)
    again, changed, silent = Colour(), Colour(), Colour()
    np.testing.assert_array_equal(cl.encode(again, PRODUCTS, settings=kept), first)
    assert not again.asked
    changed.fingerprint = "2"
    cl.encode(changed, PRODUCTS, settings=kept)
    assert changed.asked
    silent.fingerprint = None
    cl.encode(silent, PRODUCTS, settings=kept)
    assert silent.asked
    assert "'colour' has no fingerprint: its embeddings are not kept" in caplog.text
    store = cl.open_store(tmp_path / "store", colour)
    assert len(store) == len(PRODUCTS)
    found = store.search(QUERIES[0], k=2)
    assert [hit.product.id for hit in found] == [
        hit.product.id for hit in cl.index(colour, PRODUCTS).search(QUERIES[0], k=2)
    ]
    with pytest.raises(ValueError, match="give it one, a text that changes"):
        cl.open_store(tmp_path / "store", silent).search(QUERIES[0])
    changed.fingerprint = 3
    with pytest.raises(ValueError, match="the fingerprint of 'colour' is 3; give a text"):
        cl.encode(changed, PRODUCTS, settings=kept)


def test_a_kept_embedding_is_of_what_was_said_and_shown(colour, tmp_path):
    kept = Settings(store=tmp_path / "store", progress=False)
    cl.encode(colour, PRODUCTS, settings=kept)
    for other in (replace(PRODUCTS[0], title="other"), replace(PRODUCTS[0], image=noise(40, 30, seed=99))):
        colour.asked.clear()
        cl.encode(colour, other, settings=kept)
        assert colour.asked


def test_an_index_is_of_the_model_with_its_fingerprint(colour):
    pool, other = cl.index(colour, PRODUCTS), Colour()
    assert same_embeddings(colour, other)
    assert len(cl.evaluate(other, QUERIES, pool).queries) == 4
    other.fingerprint = "2"
    with pytest.raises(ModelMismatchError):
        cl.evaluate(other, QUERIES, pool)
    other.fingerprint = colour.fingerprint = None
    assert not same_embeddings(colour, other)
    assert not same_embeddings(colour, cl.load("mini"))


def test_a_conversation_is_told_apart_by_all_that_is_said_and_shown(tmp_path):
    picture = noise(20, 20, seed=0)
    file = io.BytesIO()
    picture.save(file, "PNG")
    Path(tmp_path / "a.png").write_bytes(file.getvalue())

    def said(*entries, role="user"):
        return conversation([{"role": role, "content": list(entries)}]).identity

    text, image = {"type": "text", "text": "a"}, {"type": "image", "image": picture}
    different = [
        said(text),
        said(image),
        said(text, image),
        said(image, text),
        said(text, role="system"),
        said(image | {"max_pixels": 900}),
        said(image | {"min_pixels": 900}),
        said({"type": "text", "text": "b"}),
        said(text, text),
    ]
    assert len({*different}) == len(different)
    assert said({"type": "image", "image": tmp_path / "a.png"}) == said(
        {"type": "image", "image": file.getvalue()}
    )


def test_limits_of_a_picture_stay_with_it():
    entry = {"type": "image", "image": noise(20, 20, seed=0), "max_pixels": 900}
    said = conversation([{"role": "user", "content": [entry]}])
    assert isinstance(said.pictures[0], Sized)
    assert said.messages[0]["content"][0]["max_pixels"] == 900
    assert isinstance(said.images[0], Image.Image)


def test_a_loaded_model_embeds_conversations_itself():
    model = cl.load("mini")
    items = [QUERIES[0], PRODUCTS[0], messages(PRODUCTS[1])]
    asked = [conversation(item, family=model.family) for item in items]
    np.testing.assert_allclose(model.embed(asked), cl.encode(model, items), atol=1e-5)
    with pytest.raises(ItemError, match="picture cannot be read"):
        model.embed([conversation(replace(PRODUCTS[0], image=b"none"), family=model.family)])


def test_widgets_and_the_report_take_it(colour, tmp_path):
    widgets = pytest.importorskip("coral_lab.widgets")
    pool = cl.index(colour, PRODUCTS)
    bench = widgets.QueryBench(pool, QUERIES[0])
    assert "2 conditions" in repr(bench)
    view = widgets.AttributionView(pool, QUERIES[0], k=3)
    assert {*view.table["condition"]} == {0, 1}
    places, _ = geometry.pca(pool.embeddings)
    drawn = widgets.NeighbourhoodMap(PRODUCTS, pool.embeddings, places, k=3)
    assert "12 products" in repr(drawn)
    shop = cl.Dataset("bags", tuple(PRODUCTS), tuple(QUERIES))
    found = report(pool, shop, tmp_path / "report.html")
    assert found.model == "colour"
    assert "colour" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_attributes_of_ones_own_are_not_taken_for_ours(colour, tmp_path):
    colour.pixels = 12
    cl.encode(colour, PRODUCTS, settings=Settings(store=tmp_path, progress=False))
    colour.family = "gme"
    with pytest.raises(ValueError, match=r"the family of 'colour' is 'gme'; give it a Family"):
        cl.encode(colour, PRODUCTS)
