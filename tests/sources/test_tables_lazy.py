"""A table in Arrow's form: its products are made when they are looked at, and are what reading it row by row
makes, in every field, with the same errors.
"""

import datetime
import pickle
import re
import threading
from dataclasses import replace
from decimal import Decimal
from functools import cache
from zlib import crc32

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import coral_lab as cl
from coral_lab.errors import ItemError
from coral_lab.query import Product
from coral_lab.sources import lazy_products, parquet_pictures, parquet_texts, tables
from coral_lab.sources.columns import SINGLE, Columns
from coral_lab.sources.lazy_products import LazyProducts
from coral_lab.sources.table_columnar import in_order
from coral_lab.sources.table_files import opened_table
from tests.sources.test_tables import facts, png

COLUMNS = Columns("key", "words", "photo", "kind", "lang", "land", ("hue", "size", "more"))
CELLS = """
|" "|nan|<NA>|#N/A|!| red|red\x1c|\x85red|e\u0301t\u00e9|\u00e9|[|["a", 1]
|{"hue": "x"}|{"deep": {"a": 1}}|a;b;a
|$19.90|\u0e2a\u0e351|None!|7|[x]|en|th
"""
TEXTS = st.one_of(
    st.none(),
    st.sampled_from([*CELLS.replace("\n", "").split("|"), "", " ", "a|b;a", "x" * 40]),
    st.text(max_size=4),
)
IDS = st.one_of(st.integers(0, 30).map(str), TEXTS)
PATHS = (
    "a.png b/a.png ../a.png b/../a.png link.png no.png a.png|b/a.png /a.png b//a.png data:image/png;base64,AA"
)
ADDRESSES = ["http://x.example/1.png", "https://x.example/1.png, https://x.example/2.png"]
PHOTOS = st.sampled_from([None, "", "a.png ", *PATHS.split(), *ADDRESSES])
NUMBERS = st.one_of(st.none(), st.floats(width=64), st.sampled_from([7.0, 2.0**53, 0.1]))
KINDS = [
    (TEXTS, pa.string()),
    (TEXTS, pa.large_string()),
    (TEXTS.map(lambda own: own), pa.dictionary(pa.int32(), pa.string())),
    (NUMBERS, pa.float64()),
    (st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), pa.int64()),
    (st.one_of(st.none(), st.booleans()), pa.bool_()),
    (st.one_of(st.none(), st.decimals(-999, 999, places=2)), pa.decimal128(9, 2)),
    (st.one_of(st.none(), st.dates()), pa.date32()),
    (st.integers(-(2**60), 2**60), pa.timestamp("us")),
    (st.one_of(st.none(), st.lists(TEXTS, max_size=3)), pa.list_(pa.string())),
    (st.one_of(st.none(), st.lists(NUMBERS, max_size=3)), pa.list_(pa.float64())),
    (st.one_of(st.none(), st.fixed_dictionaries({"hue": TEXTS, "b": NUMBERS})),
     pa.struct([("hue", pa.string()), ("b", pa.float64())])),
    (st.one_of(st.none(), st.binary(max_size=3)), pa.binary()),
]  # fmt: skip
ROWS = st.integers(1, 9)


@st.composite
def arrow_tables(draw):
    """A table with a column for each role, of kinds that are right more often than not."""
    count = draw(ROWS)
    plain = st.sampled_from([KINDS[0], KINDS[1]])

    def column(cells, kind):
        own = draw(st.lists(cells, min_size=count, max_size=count))
        return pa.array(own, kind)

    found = {"key": column(IDS, pa.string()), "photo": column(PHOTOS, pa.string())}
    if draw(st.booleans()):
        found["key"] = column(*draw(st.sampled_from(KINDS)))
    for name in ("words", "kind", "lang", "land"):
        found[name] = column(*draw(st.one_of(plain, plain, plain, st.sampled_from(KINDS))))
    for name in ("hue", "size", "more"):
        found[name] = column(*draw(st.sampled_from(KINDS)))
    return pa.table(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("shop")
    (found / "b").mkdir()
    for name in ("a.png", "b/a.png"):
        (found / name).write_bytes(png())
    (found / "link.png").symlink_to("a.png")
    return found


def eagerly(source, columns, on_error, remote):
    """Products, errors and languages by reading row after row; None of them where the first error is
    raised.
    """
    errors, table = [], opened_table(source)
    chosen = tables._columns(table, columns)
    used = {own: None for role in SINGLE if (own := getattr(chosen, role))} | dict.fromkeys(chosen.attributes)
    arrow = table.arrow
    table = replace(table, rows=lambda: in_order(arrow(list(used))))  # others are not read
    reading = tables.Reading(table, chosen, remote)
    products = list(tables._products(reading, errors.append))
    if errors and on_error == "raise":
        return plain(errors[0])
    languages = tuple(sorted({product.language for product in products} - {""}))
    pictures = [own.image if not callable(own.image) else type(own.image) for own in products]
    return [facts(own) for own in products], pictures, list(map(plain, errors)), languages


def lazily(source, columns, on_error, remote):
    try:
        found = cl.dataset(source, columns=columns, on_error=on_error, remote_images=remote)
    except ItemError as error:
        return plain(error)
    assert isinstance(found.products, LazyProducts)
    pictures = [own.image if not callable(own.image) else type(own.image) for own in found.products]
    errors = list(map(plain, found.skipped))
    return [facts(own) for own in found.products], pictures, errors, found.traits.languages


def plain(error):
    """As a line, without the places of objects in memory."""
    return re.sub("0x[0-9a-f]+", "0x", str(error))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=arrow_tables(),
    without=st.sets(st.sampled_from(["id", "picture", "language", "attributes"]), max_size=2),
    on_error=st.sampled_from(["raise", "skip", "skip"]),
    remote=st.booleans(),
    groups=st.integers(1, 4),
)
def test_lazy_products_are_those_of_reading_row_by_row(folder, table, without, on_error, remote, groups):
    columns = {role: getattr(COLUMNS, role) for role in ("id", "title", "picture", "class_name", "language")}
    columns |= {"country": "land", "attributes": COLUMNS.attributes}
    columns |= dict.fromkeys(without)
    parquet.write_table(table, folder / "a.parquet", row_group_size=groups)
    how = (columns, on_error, remote)
    assert lazily(folder / "a.parquet", *how) == eagerly(folder / "a.parquet", *how)


@settings(max_examples=15, deadline=None)
@given(table=arrow_tables())
def test_tables_of_datasets_too(table):
    own = datasets.Dataset(table).select(range(len(table) - 1, -1, -1))
    columns = {
        "id": "key",
        "title": "words",
        "picture": None,
        "language": "lang",
        "attributes": ["hue", "size"],
    }
    how = (columns, "skip", False)
    assert lazily(own, *how) == eagerly(own, *how)


# A sequence as any other


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Four thousand products in row groups of 700, every 1,000th without a title."""
    file = tmp_path_factory.mktemp("shop") / "a.parquet"
    n = 4000
    titles = [f"chair {i}" if i % 1000 else "" for i in range(n)]
    cells = {"id": [f"s{7 * i % n}" for i in range(n)], "title": titles, "language": ["en", "th"] * (n // 2)}
    parquet.write_table(pa.table(cells | {"hue": ["red", "blue|green"] * (n // 2)}), file, row_group_size=700)
    return cl.dataset(file, on_error="skip")


def test_a_sequence_of_products(shop):
    products = shop.products
    assert (len(products), len(shop.skipped)) == (3996, 4)
    assert str(shop.skipped[1]).endswith(
        "row 1000: field 'title' is empty; a product needs a title or a picture"
    )
    assert [p.title for p in products] == [f"chair {i}" for i in range(4000) if i % 1000]
    assert facts(products[-1]) == ("s3993", "chair 3999", "", "th", "", {"hue": ("blue", "green")})
    assert products[999].title == "chair 1001"
    assert [p.title for p in products[998:1000]] == ["chair 999", "chair 1001"]
    assert [p.title for p in products[::-1000]] == [p.title for p in list(products)[::-1000]]
    assert [p.title for p in reversed(products[:3])] == ["chair 3", "chair 2", "chair 1"]
    assert products[5] in products
    assert products[:2] == tuple(products[:2]) == products[:2] != products[1:3]
    assert repr(products[:2]).startswith("<2 products of ")
    assert shop.traits.languages == ("en", "th")
    for place in (3996, -3997):
        with pytest.raises(IndexError):
            products[place]


def test_products_are_found_by_their_ids(shop):
    assert isinstance(shop.by_id, lazy_products.ById)
    assert shop.product("s14").title == "chair 2"
    assert list(shop.by_id)[:2] == ["s7", "s14"]
    assert len(shop.by_id) == 3996
    assert "s0" not in shop.by_id
    assert 7 not in shop.by_id
    for id in ("s0", "", "\ud800", "s"):
        with pytest.raises(KeyError, match=r"no product .* among the 3996"):
            shop.product(id)
    small = shop.products[10:0:-3]
    assert [small.by_id[p.id].title for p in small] == [p.title for p in small]


def test_products_that_are_called_after_their_rows(tmp_path):
    parquet.write_table(pa.table({"title": ["a", "", "c"]}), tmp_path / "a.parquet")
    found = cl.dataset(tmp_path / "a.parquet", on_error="skip")
    assert list(found.by_id) == ["row-000000", "row-000002"]
    assert found.product("row-000002").title == "c"
    for id in ("row-000001", "row-2", "row-0000002", "row-9" * 9, "x"):
        assert id not in found.by_id


def test_several_threads_look_at_once(shop, monkeypatch):
    monkeypatch.setattr(parquet_texts, "KEPT_BYTES", 10_000)
    wrong, products = [], shop.products

    def look(seed):
        for place in np.random.default_rng(seed).integers(0, 999, 30).tolist():
            for at in (place, place + 2997):
                if products[at].title != f"chair {at + 1 + at // 999}":
                    wrong.append(at)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickled_as_the_tuple_of_its_products(shop):
    own = pickle.loads(pickle.dumps(shop.products[:3]))
    assert isinstance(own, tuple)
    assert [facts(p) for p in own] == [facts(p) for p in shop.products[:3]]


def test_a_table_that_changed_is_told(tmp_path):
    table = datasets.Dataset.from_dict({"id": ["1", "2"], "title": ["a", "b"]})
    found = cl.dataset(table)
    found.products._rows._own = table.select([1, 0]).with_format("arrow")
    with pytest.raises(
        ItemError, match="table, row 0: has id '2', and had '1' on opening; open the table again"
    ):
        found.products[0]


def test_the_first_error_is_told_before_the_others_are_looked_at(tmp_path):
    cells = {"id": ["1", "1", "2", "3"], "title": ["a", "b", "", ""]}
    parquet.write_table(pa.table(cells), tmp_path / "a.parquet")
    with pytest.raises(ItemError, match="row 1: field 'id': id '1' was there before, in row 0"):
        cl.dataset(tmp_path / "a.parquet")
    skipped = cl.dataset(tmp_path / "a.parquet", on_error="skip").skipped
    assert [own.item.rpartition(" ")[2] for own in skipped] == ["1", "2", "3"]


def test_texts_that_are_no_utf8_are_told(tmp_path):
    words = pa.array([b"chair", b"\xff\xfe", b"bag"]).view(pa.string())
    parquet.write_table(pa.table({"title": words, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    columns = {"title": "title", "attributes": ["n"]}
    with pytest.raises(ItemError, match=r"row 1: cannot be read .*; repair the row"):
        cl.dataset(tmp_path / "a.parquet", columns=columns)
    found = cl.dataset(tmp_path / "a.parquet", columns=columns, on_error="skip")
    assert [own.title for own in found.products] == ["chair", "bag"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_value_that_is_written_once_and_repeated_is_read_a_few_rows_at_a_time(tmp_path, nested):
    """Two megabytes in a dictionary, 300 rows of them: 600 MB if they were read at once."""
    long, count = "x" * 2**21, 300
    column = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [long])
    if nested:
        column = pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), column)
    table = pa.table({"id": [str(i) for i in range(count)], "note": column})
    parquet.write_table(table, tmp_path / "a.parquet", store_schema=False, dictionary_pagesize_limit=2**30)
    texts = parquet_texts.ParquetTexts(tmp_path / "a.parquet")
    read = [len(batch) for batch in texts.batches(0, ("id", "note"))]
    assert max(read) * len(long) <= parquet_pictures.BYTES_AT_ONCE
    assert sum(read) == count


def test_what_is_read_stays_in_bounded_memory(shop, monkeypatch):
    monkeypatch.setattr(parquet_texts, "KEPT_BYTES", 15_000)
    monkeypatch.setattr(parquet_texts, "MOST_ROWS", 100)
    texts = parquet_texts.ParquetTexts(shop.products._rows._texts.file)
    for row in (0, 699, 1, 3999, 700, 10, 0):
        start, batch = texts.around(row, ("id", "title"))
        assert batch.column("title")[row - start].as_py() == (f"chair {row}" if row % 1000 else "")
        assert sum(own.size for own in texts._windows.values()) <= 15_000


def test_names_with_dots_and_kinds_that_are_rare(tmp_path):
    cells = {
        "Artikelnr.": ["A-1", "A-2"],
        "a.b": ["Roter Stuhl", "Blaue Tasche"],
        "at": [Decimal("1.50")] * 2,
    }
    cells |= {"day": [datetime.date(2024, 3, 1)] * 2, "when": [datetime.datetime(2024, 3, 1, 12)] * 2}
    cells |= {
        "clock": [datetime.time(12)] * 2,
        "map": pa.array([[("hue", "red")]] * 2, pa.map_("str", "str")),
    }
    parquet.write_table(pa.table(cells), tmp_path / "a.parquet")
    columns = {"title": "a.b", "attributes": ["at", "day", "when", "clock", "map"]}
    found = cl.dataset(tmp_path / "a.parquet", columns=columns)
    wanted = {"at": ("1.50",), "day": ("2024-03-01",), "when": ("2024-03-01T12:00:00",)}
    assert dict(found.product("A-1").attributes) == wanted | {"clock": ("12:00:00",), "hue": ("red",)}
    assert isinstance(found.products[1], Product)


class Words:
    """The mean of random vectors of the words that are said."""

    name, dim, fingerprint = "words", 16, "1"

    def embed(self, conversations):
        return [np.sum([self.of(word) for word in own.text.split()], 0) for own in conversations]

    @staticmethod
    @cache
    def of(word):
        return np.random.default_rng(crc32(word.encode())).standard_normal(16)


def test_twenty_thousand_rows_are_opened_without_a_product_and_searched_through_a_store(
    tmp_path, monkeypatch
):
    """benchmarks/tables.py does this with a million."""
    n, made = 20_000, []
    monkeypatch.setattr(
        lazy_products, "product_of", lambda *given: made.append(given[3]) or tables.product_of(*given)
    )
    cells = {"sku": [f"s{i}" for i in range(n)], "name": [f"chair of make {i}" for i in range(n)]}
    cells |= {"color": ["red", "blue", "green"][:2] * (n // 2), "price": np.arange(n) / 4}
    parquet.write_table(pa.table(cells), tmp_path / "a.parquet")
    shop = cl.dataset(tmp_path / "a.parquet")
    assert (len(shop.products), len(shop.by_id)) == (n, n)
    assert len(made) < 20, "by those who check types, one at random"
    store = cl.open_store(tmp_path / "store", Words())
    store.add(shop.products[7000:7060])
    hits = store.search(cl.Query("q", "", text="chair of make 7031"), 3)
    assert shop.product(hits[0].product.id).title == hits[0].product.title == "chair of make 7031"
    assert len(made) < 200
