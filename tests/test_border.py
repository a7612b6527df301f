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

from coral_lab import Condition, Product, Query, Settings, encode, load, open_store, prompts
from coral_lab.encoder import encode_all
from coral_lab.errors import CheckpointError, ItemError, NotFiniteError
from coral_lab.query import Dataset
from coral_lab.sources.border import text_of
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


def apart(text: str) -> str:
    return unicodedata.normalize("NFD", text)


NO_PICTURES = [3.5, float("nan"), 7, [b"bytes"], {"bytes": b"", "path": None}, bytearray(3), np.zeros((2, 2))]
BAG, RED = Product("p", "a bag"), Condition("color", Product("p"), "red")

MISFITS = {
    "image": [(Product, ("p",), {"image": value}) for value in NO_PICTURES],
    "attributes": [
        (Product, ("p",), {"attributes": value})
        for value in (3, [("color", "red")], "color", {None: "S"}, {"é": "S", apart("é"): "M"})
    ],
    "product": [(Condition, ("color", value), {}) for value in (None, "p", 3, RED)],
    "attribute": [(Condition, (value, BAG), {}) for value in (3, b"color", ["color"])],
    "value": [(Condition, ("color", BAG, value), {}) for value in (3, b"red", ["red"], float("nan"))],
    "conditions": [
        (Query, ("q", "bag", value), {})
        for value in ([1], [None], [BAG], [RED, "color"], "color", 3, RED, {"color": RED}, np.array(3))
    ],
    "positives": [
        (Query, ("q", "bag"), {"positives": value})
        for value in (
            "abc",
            b"abc",
            3,
            [1],
            [None],
            [""],
            {"p": 1},
            [b"p"],
            [float("nan")],
            [["p"]],
            np.array(3),
        )
    ],
    "hard_negatives": [
        (Query, ("q", "bag"), {"hard_negatives": value}) for value in ("abc", [1], ["\ud83d"])
    ],
    "parent": [(Query, ("q", "bag"), {"parent": value}) for value in ("q", 3, BAG)],
    "text": [(Query, ("q", "bag"), {"text": value}) for value in (3, b"in red", ["in red"])],
}


@pytest.mark.parametrize("field", MISFITS)
def test_a_field_of_another_type_is_named(field):
    for kind, args, values in MISFITS[field]:
        with pytest.raises(ItemError, match=rf"field '{field}") as caught:
            made(kind, *args, **values)
        assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("kind", [Product, Query])
@pytest.mark.parametrize("id", [None, "", 3, 3.5, b"p", ["p"], np.int64(3), float("nan")])
def test_an_id_is_text(kind, id):
    with pytest.raises(ItemError, match=r"the id is no text; give a non-empty str"):
        made(kind, id, "bag")


def test_none_is_absent_in_a_query_and_in_lists_of_values():
    query = made(Query, "q", "bag", None, None, None, None, None)
    assert query == Query("q", "bag")
    assert query.language == "en"
    assert made(Product, "p", attributes={"size": ["S", None]}).attributes == {"size": ("S",)}
    assert made(Product, "p", attributes={"size": np.array(["S", None])}).attributes == {"size": ("S",)}


def test_ids_and_names_are_composed_wherever_they_come_in():
    word = "Hà Nội"
    home = Product(apart(word), attributes={apart(word): (apart(word),)})
    query = Query("q", word, (Condition(apart(word), home, word),), "", (apart(word),), (apart(word),))
    assert home.id == word
    assert (query.positives, query.hard_negatives) == ((word,), (word,))
    shop = Dataset("shop", [home], [query])
    assert shop.product(apart(word)) is shop.product(word) is home
    for chosen in (shop.where(class_name=apart(word)), shop.where(attribute=["x", apart(word)])):
        assert chosen.queries == (query,)
    assert query.conditions[0].met_by(home)


@pytest.mark.parametrize(
    "asked", [{"class_name": 3}, {"language": [None]}, {"attribute": b"color"}, {"conditions": "2"}]
)
def test_where_asks_for_texts_and_numbers(shop, asked):
    [name] = asked
    with pytest.raises(ValueError, match=rf"^{name} is .*; give one (str|int) or several$"):
        unwrap(Dataset.where)(shop, **asked)


class Word(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [np.str_("bag"), np.str_("áo"), Word("bag"), Word("áo")])
def test_texts_of_other_kinds_become_plain(value):
    assert type(Product("p", value).title) is str
    assert type(Product(value).id) is str
    assert type(Query("q", "bag", positives=(value,)).positives[0]) is str


HUGE = {
    "an id": lambda: made(Product, "p\n\x1b[31m" + "x" * 5000, 3),
    "half an id": lambda: Product("bag \ud83d\n"),
    "a list": lambda: made(Product, "p", ["x" * 1000] * 100_000),
    "a deep list": lambda: made(Product, "p", deep()),
    "a number": lambda: made(Product, "p", 10**5000),
    "a dict": lambda: made(Product, "p", attributes={"size": {"x" * 5000: "\n"}}),
    "a key": lambda: Product("p", attributes={"x" * 5000: ("\ud83d",)}),
    "bytes": lambda: made(Query, "q\n", "bag", positives=b"\0" * 10_000_000),
    "an attribute": lambda: made(Condition, "x" * 5000, None),
    "an array": lambda: made(Product, "p", np.zeros((1000, 1000))),
    "a frame": lambda: made(Product, "p", pd.DataFrame({"a": range(1000)})),
    "a language": lambda: prompts.parts(Query("q" * 400, "bag", language="vn\n" * 400)),
    "no text": lambda: Query("q" * 400, "", text=" "),
}


def deep():
    inner = []
    for _ in range(5000):
        inner = [inner]
    return inner


@pytest.mark.parametrize("make", HUGE.values(), ids=HUGE)
def test_an_error_is_one_line(make):
    with pytest.raises(ItemError) as caught:
        make()
    assert len(str(caught.value)) <= 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "format", [lambda q: None, lambda q: "a text", lambda q: 3, lambda q: [3], lambda q: [b"x"]]
)
def test_a_format_that_gives_what_is_no_part_is_named(format):
    with pytest.raises(ItemError, match=r"query q: (its format gives .*; yield|field 'format' is)"):
        prompts.parts(Query("q", "bag"), format)


def test_texts_of_a_format_of_ones_own_are_composed_and_whole():
    assert prompts.parts(Query("q", "bag"), lambda q: [apart("áo")]) == ["áo"]
    with pytest.raises(ItemError, match="query q: field 'format' holds half a character"):
        prompts.parts(Query("q", "bag"), lambda q: ["\ud83d"])


@pytest.mark.parametrize("format", [["seq"], 3, None, {"seq"}, "seq" * 1000])
def test_an_unknown_format_is_one_line(format):
    with pytest.raises(ValueError, match=r"^format is .{1,250}function of the query$"):
        unwrap(prompts.format_of)(format)


LONG = "long\n" * 1000
BORING = Dataset(LONG, [BAG], [])
ASKED = {
    "a product": lambda: BORING.product(LONG),
    "a product of no kind": lambda: unwrap(Dataset.product)(BORING, deep()),
    "an order": lambda: Query("q" * 1000, "bag").reordered(range(5000)),
    "an order of texts": lambda: unwrap(Query.reordered)(Query("q", "bag", (RED,) * 3), ["0", None, 2]),
    "a split": lambda: BORING.out_of_distribution(LONG),
    "a split of no kind": lambda: unwrap(Dataset.out_of_distribution)(BORING, ["language"]),
    "a class": lambda: unwrap(Dataset.where)(BORING, class_name=deep()),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_what_there_is_not_is_named_in_one_line(ask):
    with pytest.raises((KeyError, ValueError)) as caught:
        ask()
    [message] = caught.value.args
    assert len(message) <= 300
    assert message.isprintable()
