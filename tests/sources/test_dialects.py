"""Query files as other tools write them: read as the same queries, or one line that names file and line."""

import json
import time
import unicodedata

import pytest

from coral_lab.errors import ItemError
from coral_lab.query import Dataset, Product
from coral_lab.sources.merit_files import read_queries
from coral_lab.sources.writing import write_merit
from tests.sources.test_merit_files import line

ID = "Hà Nội"
POOL = Dataset("pool", [Product("1", "t1"), Product("2", "t2"), Product(ID, "t3")], ())


def read(tmp_path, content: bytes, **options):
    file = tmp_path / "queries-test.json"
    file.write_bytes(content)
    return list(read_queries(file, POOL, **options))


@pytest.fixture
def plain(tmp_path):
    return read(tmp_path, line())[0]


READ = {
    "a mark": b"\xef\xbb\xbf" + line(),
    "carriage returns": line() + b"\r\n",
    "blank lines after": line() + b"\n\r\n  \n\t\r\n",
    "no hard negatives": line(hard_negative=None),
    "hard negatives left out": line(hard_negative=...),
    "keys of other rows": line(query={"1": {"color": "red", "size": None}, "2": None}),
    "fields of other files": line(score=None, source={"a": [1]}),
    "ids as texts": line(pos_candidate=["2"]),
    "ids of a table with gaps": line(pos_candidate=[2.0]),
    "a value in a list": line(query={"1": {"color": ["red"]}}),
    "escapes": line().replace(b"red", b"\\u0072\\u0065d"),
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_other_tools_lines_are_the_same_query(tmp_path, plain, content):
    assert read(tmp_path, content) == [plain]


def test_ids_may_be_decomposed(tmp_path, plain):
    apart = unicodedata.normalize("NFD", ID)
    assert apart != ID
    asked = json.dumps(apart).encode()
    content = line(pos_candidate=[2, apart], hard_negative=[1], query={apart: {"color": "red"}})
    assert asked in content
    [query] = read(tmp_path, content.replace(b"\\nt1", b"\\nt3"))
    assert query.references[0].id == ID
    assert query.positives == ("2", ID)


REFUSED = {
    "UTF-16": (line().decode().encode("utf-16"), "the file is UTF-16 or UTF-32; write it as UTF-8"),
    "UTF-16, the other way": (b"\xfe\xff" + line().decode().encode("utf-16-be"), "UTF-16"),
    "a number that is none": (line(score=float("nan")), r"is no JSON \(it has NaN\)"),
    "infinity": (line(pos_candidate=[float("inf")]), r"it has Infinity"),
    "too large a number": (
        line().replace(b'"pos_candidate": [2]', b'"pos_candidate": [' + b"9" * 5000 + b"]"),
        "no JSON",
    ),
    "a large float": (line(pos_candidate=[1e300]), "must be a list of product ids"),
    "a float that may have lost digits": (line(pos_candidate=[1234567890123456789.0]), "list of product ids"),
    "half an id": (line(pos_candidate=["\ud800"]), "half a character"),
    "half a key": (line(query={"1": {"co\ud800": "red"}}), "half a character"),
    "half a character in a field that is not read": (
        line(**{"x\ud800": 1, "query": ...}),
        "'query' is missing",
    ),
    "half a title": (line(**{"query instruction": "Find \ud800"}), "half a character"),
    "deep": (
        line(query=...)[:-1] + b', "query": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        "nested too deeply",
    ),
    "deep, not too deep for JSON": (line(query={"1": {"color": [[[[[[[[["red"]]]]]]]]]}}), "must be text"),
    "a half": (line(pos_candidate=[2.5]), "must be a list of product ids"),
    "null among ids": (line(pos_candidate=[2, None]), "must be a list of product ids"),
    "no list": (line(hard_negative=0), "'hard_negative' is 0"),
    "false": (line(hard_negative=False), "'hard_negative' is False"),
    "null": (line(pos_candidate=None), "'pos_candidate' is missing"),
    "only other rows' keys": (line(query={"1": None}), "no reference product"),
    "a large value": (line(query={"1": {"color": ["red"] * 100_000}}), "'query'"),
    "a long id": (line(pos_candidate=["9" * 100_000]), "names product '999"),
    "many keys": (line(query=..., **{"k" * 50 + str(i): 1 for i in range(1000)}), "field 'query' is missing"),
    "long words": (line(**{"query instruction": "Find " * 10_000}), "does not begin with"),
    "a long attribute": (line(query={"1": {"color" * 1000: "red"}}), "does not begin with"),
}


@pytest.mark.parametrize(("content", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_right_is_one_line(tmp_path, content, says):
    with pytest.raises(ItemError, match=says) as caught:
        read(tmp_path, content)
    assert "queries-test.json, line 1: " in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert str(caught.value).isprintable()


def test_a_long_path_keeps_file_and_line(tmp_path):
    folder = tmp_path
    for _ in range(6):
        folder = folder / ("long name " * 15)
    folder.mkdir(parents=True)
    with pytest.raises(ItemError) as caught:
        read(folder, b"\n\n{")
    assert "queries-test.json, line 3: the line is no JSON" in str(caught.value)
    assert len(str(caught.value)) <= 300
    with pytest.raises(FileNotFoundError, match=r"^.{1,300}$"):
        list(read_queries(folder / "gone" / "queries-test.json", POOL))


def test_a_key_that_comes_twice_among_very_many_is_found_at_once(tmp_path):
    keys = ", ".join(f'"{i}": null' for i in range(100_000))
    content = b'{"query": {' + keys.encode() + b', "99999": null}}'
    start = time.perf_counter()
    with pytest.raises(ItemError, match="key '99999' comes twice; keep one"):
        read(tmp_path, content)
    assert time.perf_counter() - start < 2


def test_what_merit_s_files_cannot_hold_is_refused_when_it_is_written(tmp_path, shop):
    from coral_lab import Condition, Query

    first, second = shop.products[:2]
    twice = Query("q", "bag", (Condition("color", first, "red"), Condition("size", first, "M")))
    with pytest.raises(ItemError, match="query q: has two conditions on one product"):
        write_merit(Dataset("x", [first], [twice]), tmp_path, "test")
    for id in ("sku-7", "007", "1.0", "-0", " 1", "9" * 30, "١"):
        with pytest.raises(ItemError, match=rf"id '{id}' is no whole number"):
            write_merit(Dataset("x", [Product(id, image=second.image)], []), tmp_path, "test")


def test_all_values_of_an_attribute_are_written(tmp_path, shop):
    from coral_lab.sources.merit_files import read_products

    values = {"color": ("red", "blue"), "size": ("M",), "trim": ()}
    product = Product("5", "a bag", shop.products[0].image, "bag", "en", attributes=values)
    write_merit(Dataset("x", [product], []), tmp_path, "test")
    [found] = read_products(tmp_path, "test")
    assert dict(found.attributes) == values


def test_a_folder_in_the_home(tmp_path, shop, monkeypatch):
    import coral_lab as cl

    monkeypatch.setenv("HOME", str(tmp_path))
    write_merit(shop, "~/own data", "test", limit=2)
    assert len(cl.dataset("~/own data").queries) == 2
    for name in ("~nobody-has-this-name/x", "a" * 5000, "x\0y", "y\n" * 400):
        with pytest.raises(FileNotFoundError, match=r"^.* is no folder and no hub id") as caught:
            cl.dataset(name)
        assert len(str(caught.value)) <= 300
        assert str(caught.value).isprintable()
