"""The border: what comes in can be written and compared, or is an error that names item and field."""

import json
import unicodedata
from inspect import unwrap

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab import Condition, Product, Query, Settings, encode, load, open_store
from coral_lab.encoder import encode_all
from coral_lab.errors import CheckpointError, ItemError, NotFiniteError
from coral_lab.query import text_of
from coral_lab.sources.merit_files import read_queries
from coral_lab.sources.writing import write_merit


def made(kind, *args, **values):
    """As outside of the tests, where nobody checks annotations before the border does."""
    item = object.__new__(kind)
    unwrap(kind.__init__)(item, *args, **values)
    return item


VIETNAMESE = "áo sơ mi dài tay, Hà Nội"


@pytest.mark.parametrize("field", ["title", "class_name", "language", "country"])
@pytest.mark.parametrize("value", [float("nan"), pd.NA, 3, b"bag", ["bag"], True])
def test_a_value_from_a_table_that_is_no_text_is_named(field, value):
    with pytest.raises(ItemError, match=rf"product p: field '{field}' is .*; it must be text"):
        made(Product, "p", **{field: value})


def test_nothing_and_none_are_the_same():
    assert made(Product, "p", title=None, class_name=None, attributes=None).title == ""
    assert made(Product, "p", attributes={"color": None, "size": "S"}).attributes == {"size": ("S",)}
    assert made(Query, "q", None, text="a bag").class_name == ""
    assert made(Condition, "color", Product("p"), None).value == ""


@pytest.mark.parametrize(
    "values", [{"size": 42}, {"size": [42]}, {"size": float("nan")}, {3: "S"}, {"size": {"a": 1}}]
)
def test_attributes_are_texts(values):
    with pytest.raises(ItemError, match="product p: field 'attributes"):
        made(Product, "p", attributes=values)


@pytest.mark.parametrize(
    "make",
    [
        lambda text: Product("p", title=text),
        lambda text: Product("p", attributes={"color": (text,)}),
        lambda text: Product(text),
        lambda text: Query("q", "bag", text=text),
        lambda text: Condition(text, Product("p")),
    ],
)
def test_half_a_character_is_named(make):
    with pytest.raises(ItemError, match="holds half a character"):
        make("a bag \ud83d")


@settings(deadline=None)
@given(st.text())
def test_texts_that_pass_can_be_written_and_are_composed(value):
    try:
        value.encode()
    except UnicodeEncodeError:
        with pytest.raises(ItemError, match="half a character"):
            text_of(value, "item", "field")
    else:
        found = text_of(value, "item", "field")
        assert unicodedata.is_normalized("NFC", found)
        assert text_of(found, "item", "field") == found


def test_composed_and_decomposed_letters_are_one():
    apart = unicodedata.normalize("NFD", VIETNAMESE)
    assert apart != VIETNAMESE
    shirt = Product("p", apart, attributes={"origin": (unicodedata.normalize("NFD", "Hà Nội"),)})
    assert shirt.title == VIETNAMESE
    assert Condition("origin", shirt, "Hà Nội").met_by(shirt)


BAD_MESSAGES = {
    "content None": [{"role": "user", "content": None}],
    "content a number": [{"role": "user", "content": 3}],
    "an entry that is no dict": [{"role": "user", "content": ["a bag"]}],
    "text that is no text": [{"role": "user", "content": [{"type": "text", "text": 3}]}],
    "half a character": [{"role": "user", "content": [{"type": "text", "text": "\ud83d"}]}],
    "nothing but None": [{"role": "user", "content": [{"type": "text", "text": None}]}],
    "a video": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}],
    "a key that is not read": [{"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}],
}


@pytest.mark.parametrize("messages", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_messages_that_cannot_be_read_are_named_and_can_be_skipped(random_model, messages):
    with pytest.raises(ItemError, match=r"^(messages|item 0): .{1,250}$"):
        encode(random_model, messages)
    found = encode_all(random_model, [messages, Product("p", "a bag")], settings=Settings(on_error="skip"))
    assert [place for place, _ in found.skipped] == [0]
    assert np.isfinite(found.embeddings[1]).all()


def test_none_beside_a_picture_counts_as_absent(random_model, shop):
    picture = shop.products[0].picture
    plain = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    padded = [{"role": "user", "content": [{"type": "image", "image": picture, "video": None, "text": None}]}]
    np.testing.assert_array_equal(encode(random_model, plain), encode(random_model, padded))


@pytest.mark.parametrize(
    ("dtype", "way"), [("float16", "bfloat16' or 'float32'"), ("float32", "may be damaged")]
)
def test_embeddings_that_are_not_finite_are_never_handed_out(random_folder, shop, dtype, way, tmp_path):
    model = load(random_folder, dtype=dtype)
    with torch.no_grad():
        model.network.model.language_model.norm.weight.mul_(1e38 if dtype == "float32" else 60_000)
        model.network.model.language_model.norm.weight.mul_(1e38 if dtype == "float32" else 60_000)
    some = shop.products[:5]
    with pytest.raises(NotFiniteError, match=rf"product {some[0].id}|not finite in {dtype}.*{way}") as caught:
        encode(model, some, settings=Settings(store=tmp_path, on_error="skip"))
    assert len(str(caught.value)) <= 300
    assert way in str(caught.value)
    assert len(open_store(tmp_path, model)) == 0


def test_a_store_in_the_home_folder_is_one_folder(random_model, shop, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    open_store("~/store", random_model).add(shop.products[:2])
    encode(random_model, shop.products[:3], settings=Settings(store="~/x/../store"))
    assert len(open_store(tmp_path / "store", random_model)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_says_what_it_is(random_folder, tmp_path, name):
    for file in random_folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(
        CheckpointError, match=rf"{name} is a git-lfs pointer, not the file; run `git lfs pull`"
    ):
        load(tmp_path)


def test_query_files_may_begin_with_a_mark_and_have_other_rows_keys(shop, tmp_path):
    write_merit(shop, tmp_path, "test", limit=1)
    file = tmp_path / "queries-test.json"
    plain = list(read_queries(file, shop))
    record = json.loads(file.read_text(encoding="utf-8"))
    record["query"] = {"999": None, **{id: {**asked, "other": None} for id, asked in record["query"].items()}}
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(record).encode())
    assert list(read_queries(file, shop)) == plain
