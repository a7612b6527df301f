"""Any table: what was written comes back from every format, columns are guessed right on headers that are in
use, and whatever is wrong is named by row and column.
"""

import base64
import datetime
import io
import json
import logging
import pickle
import zipfile
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import coral_lab as cl
from coral_lab.errors import ItemError
from coral_lab.query import Product
from coral_lab.sources import Columns, columns_of, fetching, lazy_products, opening, table_files, tables
from coral_lab.sources.border import composed
from coral_lab.sources.columns import ABSENT
from tests.conftest import noise


def png(seed=0, size=(9, 7)):
    file = io.BytesIO()
    noise(*size, seed=seed).save(file, "PNG")
    return file.getvalue()


def facts(product):
    own = (product.id, product.title, product.class_name, product.language, product.country)
    return (*own, dict(product.attributes))


# What was written comes back

COLUMNS = Columns("key", "words", "", "kind", "lang", "land", ("color", "größe", "แบรนด์"))
LETTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn", "Zl", "Zp"))
TEXTS = st.text(LETTERS, max_size=20).map(lambda own: composed(own).strip())
WORDS = TEXTS.filter(lambda own: own and own not in ABSENT and own[0] not in "[{=" and "_x" not in own)
VALUES = WORDS.filter(lambda own: not set("|;") & set(own))
ATTRIBUTES = st.dictionaries(
    st.sampled_from(COLUMNS.attributes), st.lists(VALUES, min_size=1, max_size=3, unique=True).map(tuple)
)
PLAIN = st.one_of(st.just(""), WORDS)
PRODUCTS = st.lists(
    st.tuples(WORDS, WORDS, st.none(), PLAIN, PLAIN, PLAIN, ATTRIBUTES),
    min_size=1,
    max_size=5,
    unique_by=lambda cells: cells[0],
)


def as_frame(products):
    rows = []
    for product in products:
        row = dict(zip(("key", "words", "kind", "lang", "land"), facts(product)[:5], strict=True))
        cells = {name: "|".join(product.attributes.get(name, ())) for name in COLUMNS.attributes}
        rows.append(row | cells)
    return pd.DataFrame(rows)


WRITERS = {
    ".csv": lambda frame, file: frame.to_csv(file, index=False),
    ".tsv": lambda frame, file: frame.to_csv(file, index=False, sep="\t"),
    ".jsonl": lambda frame, file: frame.to_json(file, orient="records", lines=True),
    ".parquet": lambda frame, file: frame.to_parquet(file),
    ".xlsx": lambda frame, file: frame.to_excel(file, index=False),
}


@pytest.mark.parametrize("suffix", ["frame", "datasets", *WRITERS])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=PRODUCTS)
def test_random_products_come_back_from_every_format(tmp_path, suffix, cells):
    products = [Product(*own) for own in cells]
    frame = as_frame(products)
    source = frame
    if suffix == "datasets":
        source = datasets.Dataset.from_pandas(frame)
    elif suffix != "frame":
        source = tmp_path / f"shop{suffix}"
        WRITERS[suffix](frame, source)
    found = cl.dataset(source, columns=COLUMNS)
    assert [facts(own) for own in found.products] == [facts(own) for own in products]
    assert found.queries == found.skipped == ()
    assert found.traits.languages == tuple(sorted({own.language for own in products} - {""}))


# Guesses on headers that are in use

SHOPIFY = {
    "Handle": ["red-chair", "blue-bag"],
    "Title": ["Red chair", "Blue bag"],
    "Body (HTML)": ["<p>" + "A chair of good wood. " * 9, "<p>" + "A bag for long days. " * 9],
    "Vendor": ["Acme", "Brixelo"],
    "Type": ["chair", "bag"],
    "Option1 Name": ["Color", "Color"],
    "Option1 Value": ["red", "blue"],
    "Variant Price": ["19.90", "5.00"],
    "Image Src": ["https://cdn.shop.example/a.jpg?v=1", "https://cdn.shop.example/b.jpg?v=2"],
    "Image Position": ["1", "1"],
}
AMAZON = {
    "parent_asin": ["B0012ABC", "B0034DEF"],
    "main_category": ["Home", "Bags"],
    "title": ["Chair with arms", "Bag with straps"],
    "average_rating": [4.5, 3.0],
    "images": [["https://m.example/1.jpg", "https://m.example/2.jpg"], ["https://m.example/3.jpg"]],
    "store": ["Acme", "Brixelo"],
}
ETSY = {
    "TITLE": ["Ring of silver", "Cup of clay"],
    "DESCRIPTION": ["Made by hand in a small place, " * 5, "Fired twice and glazed by hand, " * 5],
    "PRICE": ["10.00", "12.50"],
    "TAGS": ["ring,silver", "cup,clay"],
    "IMAGE1": ["https://i.example/1.png", "https://i.example/2.png"],
    "IMAGE2": ["https://i.example/3.png", ""],
    "SKU": ["R-1", "C-2"],
}
H_AND_M = {
    "article_id": ["0108775015", "0108775044"],
    "prod_name": ["Strap top", "Strap top (1)"],
    "product_type_name": ["Vest top", "Vest top"],
    "colour_group_name": ["Black", "White"],
}
FASHION = {
    "id": [15970, 39386],
    "gender": ["Men", "Men"],
    "articleType": ["Shirts", "Jeans"],
    "baseColour": ["Navy Blue", "Blue"],
    "productDisplayName": ["Turtle Check Men Navy Shirt", "Peter England Party Jeans"],
}
GERMAN = {
    "Artikelnr.": ["A-1", "A-2"],
    "Bezeichnung": ["Roter Stuhl", "Blaue Tasche"],
    "Warengruppe": ["Stühle", "Taschen"],
    "Farbe": ["rot", "blau"],
    "Bilddatei": ["stuhl.jpg", "tasche.jpg"],
    "Land": ["DE", "AT"],
    "Sprache": ["de", "de"],
}
THAI = {
    "รหัสสินค้า": ["ส1", "ส2"],
    "ชื่อสินค้า": ["เก้าอี้ไม้สีแดง", "กระเป๋าสีน้ำเงิน"],
    "หมวดหมู่": ["เก้าอี้", "กระเป๋า"],
    "สี": ["แดง", "น้ำเงิน"],
    "รูปภาพ": ["1.jpg", "2.jpg"],
}
UNKNOWN_GERMAN = {
    "Nr": ["K1", "K2", "K3"],
    "Was": ["Roter Stuhl aus Buche", "Blaue Tasche mit Riemen", "Grüner Tisch für draußen"],
    "Farbton": ["rot", "blau", "grün"],
    "Ansicht": ["k1.JPG", "k2.jpeg", "k3.webp"],
    "Zunge": ["de", "de", "en"],
}
UNKNOWN_THAI = {
    "ก": ["เก้าอี้ไม้สีแดงขนาดใหญ่", "กระเป๋าสีน้ำเงินมีสาย"],
    "ข": ["แดง", "น้ำเงิน"],
    "ค": ["a.png", "b.png"],
}
HUB = {
    "image": [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}],
    "text": ["a red chair", "a bag"],
}
PRICES_NAMED_IMAGE = {"name": ["chair", "bag"], "image": [3, 4], "photo_url": ["a.jpg", "b.jpg"]}
FLIPKART = {
    "uniq_id": ["c2d7", "7f70"],
    "product_url": ["http://f.example/a", "http://f.example/b"],
    "product_name": ["Alisha cycling shorts", "FabHome double sofa bed"],
    "product_category_tree": ['["Clothing >> Shorts"]', '["Furniture >> Sofas"]'],
    "image": ['["http://i.example/1.jpeg", "http://i.example/2.jpeg"]', '["http://i.example/3.jpeg"]'],
    "brand": ["Alisha", "FabHomeDecor"],
}

HEADERS = {
    "Shopify": (SHOPIFY, "Handle", "Title", "Image Src", "Type"),
    "Amazon": (AMAZON, "parent_asin", "title", "images", "main_category"),
    "Etsy": (ETSY, "SKU", "TITLE", "IMAGE1", ""),
    "H&M": (H_AND_M, "article_id", "prod_name", "", ""),
    "fashion": (FASHION, "id", "productDisplayName", "", "articleType"),
    "German": (GERMAN, "Artikelnr.", "Bezeichnung", "Bilddatei", "Warengruppe"),
    "Thai": (THAI, "รหัสสินค้า", "ชื่อสินค้า", "รูปภาพ", "หมวดหมู่"),
    "unknown German": (UNKNOWN_GERMAN, "Nr", "Was", "Ansicht", ""),
    "unknown Thai": (UNKNOWN_THAI, "", "ก", "ค", ""),
    "hub": (HUB, "", "text", "image", ""),
    "prices named image": (PRICES_NAMED_IMAGE, "", "name", "photo_url", ""),
    "Flipkart": (FLIPKART, "uniq_id", "product_name", "image", "product_category_tree"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_columns_are_guessed_right(name):
    cells, id, title, picture, class_name = HEADERS[name]
    found = columns_of(pd.DataFrame(cells))
    assert (found.id, found.title, found.picture, found.class_name) == (id, title, picture, class_name)


def test_what_is_left_is_an_attribute_or_named_as_left_out():
    found = columns_of(pd.DataFrame(SHOPIFY))
    assert found.attributes == (
        "Vendor", "Option1 Name", "Option1 Value", "Variant Price", "Image Position"
    )  # fmt: skip
    assert found.left_out == ("Body (HTML)",)
    german = columns_of(pd.DataFrame(GERMAN))
    assert (german.language, german.country, german.attributes) == ("Sprache", "Land", ("Farbe",))
    assert columns_of(pd.DataFrame(UNKNOWN_GERMAN)).language == "Zunge"
    assert columns_of(pd.DataFrame(ETSY)).left_out == ("DESCRIPTION", "IMAGE2")


def test_the_guess_is_shown_and_logged(caplog):
    frame = pd.DataFrame({"product_name": ["chair"], "color": ["red"], "brand": ["<b>"]})
    said = "id ← numbers of rows, title ← product_name, attributes ← color, brand"
    assert repr(columns_of(frame)) == said
    shown = columns_of(frame)._repr_html_()
    places = [shown.index(own) for own in ("title", "product_name", "attributes", "color, brand")]
    assert places == sorted(places)
    assert "&lt;b&gt;" in Columns(title="<b>")._repr_html_()
    with caplog.at_level(logging.INFO, "coral_lab"):
        cl.dataset(frame)
    assert [record.getMessage() for record in caplog.records] == [f"table: {said}"]


def test_a_wrong_guess_is_set_by_hand():
    frame = pd.DataFrame(
        {"name": ["n1", "n2"], "what": ["chair", "bag"], "code": ["7", "7"], "x": ["1", "2"]}
    )
    with pytest.raises(ItemError, match=r"table, row 1: field 'code': id '7' was there before, in row 0"):
        cl.dataset(frame)
    by_hand = {"title": "what", "id": None, "attributes": ["x", "name"]}
    found = cl.dataset(frame, columns=by_hand)
    assert [facts(own) for own in found.products] == [
        ("row-000000", "chair", "", "", "", {"x": ("1",), "name": ("n1",)}),
        ("row-000001", "bag", "", "", "", {"x": ("2",), "name": ("n2",)}),
    ]
    own = columns_of(frame, by_hand)
    assert own.left_out == ("code",)
    assert columns_of(frame, own) == own, "Columns are taken as they are"
    assert columns_of(frame, {"attributes": "x", "id": "name"}).attributes == ("x",)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"titel": "a"}, r"columns has 'titel'; it may have id, title, .* and attributes"),
        ({"title": "b"}, r"columns names 'b' as title, and table has no such column; it has \['a'\]"),
        ({"attributes": ["a", "c"]}, r"columns names 'c' as attributes"),
        (Columns(title="z"), r"columns names 'z' as title"),
        ({"title": None}, r"table has no column that seems to be a title or a picture; set columns="),
    ],
)
def test_columns_that_are_not_there_are_refused(columns, said):
    with pytest.raises(ValueError, match=said):
        cl.dataset(pd.DataFrame({"a": ["chair"]}), columns=columns)


# Cells


def attributes(**cells):
    frame = pd.DataFrame(
        {"title": ["t"], **{name: pd.Series([own], dtype=object) for name, own in cells.items()}}
    )
    return dict(cl.dataset(frame, columns={"attributes": list(cells)}).products[0].attributes)


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ("red|blue ; green", ("red", "blue", "green")),
        ("red, warm", ("red, warm",)),
        ('["red", "blue, pale", 19.90]', ("red", "blue, pale", "19.90")),
        ("[not a list]", ("[not a list]",)),
        ("Salt &amp; Pepper", ("Salt &amp; Pepper",)),
        (["red", None, "red", 3], ("red", "3")),
        (np.array(["a", "b"]), ("a", "b")),
        (True, ("true",)),
        (20.0, ("20",)),
        (19.9, ("19.9",)),
        (np.float32(0.5), ("0.5",)),
        (np.int64(7), ("7",)),
        (Decimal("19.90"), ("19.90",)),
        (pd.Timestamp("2024-03-01"), ("2024-03-01",)),
        (datetime.datetime(2024, 3, 1, 12), ("2024-03-01T12:00:00",)),
        ("0", ("0",)),
    ],
)
def test_values_of_a_cell(cell, values):
    assert attributes(own=cell) == {"own": values}


@pytest.mark.parametrize(
    "cell", [None, float("nan"), pd.NA, pd.NaT, "", "  ", "nan", "None", Decimal("nan"), [], "[]", "|", "{}"]
)
def test_what_is_absent_is_no_value(cell):
    assert attributes(own=cell, other="x") == {"other": ("x",)}


def test_an_object_in_a_cell_is_several_attributes():
    wanted = {"color": ("red",), "size": ("M", "L")}
    assert attributes(all={"color": "red", "size": ["M", "L"], "age": None}) == wanted
    assert attributes(all='{"color": "red", "size": "M|L"}') == wanted
    assert attributes(all=[("color", "red"), ("size", ["M", "L"])]) == wanted
    with pytest.raises(ItemError, match=r"row 0: field 'color' has 'color', which another column has"):
        attributes(all={"color": "red"}, color="blue")


def test_numbers_stay_as_they_are_written(tmp_path):
    (tmp_path / "a.csv").write_text("title,price,code\nchair,19.90,007\n")
    (tmp_path / "a.jsonl").write_text('{"title": "chair", "price": 19.90, "code": "007"}\n')
    for name in ("a.csv", "a.jsonl"):
        (product,) = cl.dataset(tmp_path / name).products
        assert (product.id, dict(product.attributes)) == ("007", {"price": ("19.90",)})


def test_ids_are_whole_where_a_column_has_gaps():
    frame = pd.DataFrame({"id": [7, 8.0], "title": ["a", "b"]})
    assert [own.id for own in cl.dataset(frame).products] == ["7", "8"]
    with pytest.raises(ItemError, match=r"table, row 1: field 'id' is empty; give an id, or set"):
        cl.dataset(pd.DataFrame({"id": [7, None], "title": ["a", "b"]}))
    with pytest.raises(ItemError, match=r"row 0: field 'id' is 9007199254740992.0, .* may have lost digits"):
        cl.dataset(pd.DataFrame({"id": [2.0**53], "title": ["a"]}))


# Pictures


def test_pictures_in_memory(tmp_path):
    noise(9, 7, 3).save(tmp_path / "a.png")
    pixels = np.asarray(noise(9, 7, 4))
    cells = [png(), noise(9, 7, 2), tmp_path / "a.png", str(tmp_path / "a.png"), pixels, pixels[:, :, 0]]
    cells += [{"bytes": png(), "path": None}, "data:image/png;base64," + base64.b64encode(png()).decode()]
    cells += [pixels[:, :, :1], [png(), png(1)], lambda: noise(9, 7, 5)]
    frame = pd.DataFrame({"picture": pd.Series(cells, dtype=object)})
    for product in cl.dataset(frame).products:
        assert product.picture.size == (9, 7)


def test_pictures_are_not_opened_on_reading(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "a.csv").write_text("title,image\nchair,a.jpg\n")
    (product,) = cl.dataset(tmp_path / "a.csv").products
    assert product.image == tmp_path / "a.jpg"
    with pytest.raises(ItemError, match="cannot be read"):
        product.picture  # noqa: B018


def test_several_pictures_are_told(tmp_path, caplog):
    for name in "ab":
        noise(9, 7, 1).save(tmp_path / f"{name}.png")
    (tmp_path / "a.csv").write_text("title,image\nchair,a.png|b.png\nbag,b.png\n")
    with caplog.at_level(logging.INFO, "coral_lab"):
        found = cl.dataset(tmp_path / "a.csv")
    assert [own.image.name for own in found.products] == ["a.png", "b.png"]
    assert "1 cells hold several pictures; the first is taken" in caplog.text


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_pictures_of_parquet_files_stay_there(tmp_path, gap, plain):
    own = [png(i) if not (gap and i == 1) else None for i in range(5)]
    cells = own if plain else [one and {"bytes": one, "path": None} for one in own]
    table = pa.table({"Foto": cells, "Name": [f"chair {i}" for i in range(5)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = cl.dataset(tmp_path / "a.parquet")
    assert [own.image is None for own in found.products] == [False, gap, False, False, False]
    for i, product in enumerate(found.products):
        if product.image is not None:
            assert product.image() == png(i), "in order"
    assert found.products[0].image() == png(0), "and again"
    assert len({own.image.identity for own in found.products if own.image}) == 5 - gap


def test_parquet_with_pictures_alone_and_paths(tmp_path):
    noise(9, 7, 1).save(tmp_path / "a.png")
    parquet.write_table(pa.table({"image": [png(0), png(1)]}), tmp_path / "a.parquet")
    assert [own.id for own in cl.dataset(tmp_path / "a.parquet").products] == ["row-000000", "row-000001"]
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "../a.png"}]
    parquet.write_table(pa.table({"image": cells}), tmp_path / "b.parquet")
    found = cl.dataset(tmp_path / "b.parquet", on_error="skip")
    assert found.products[0].picture.size == (9, 7)
    assert "b.parquet, row 1: field 'image' is '../a.png'" in str(found.skipped[0])


def test_tables_of_datasets():
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["chair", "bag"]),
            "hue": datasets.Value("string"),
        }
    )
    rows = {"image": [noise(9, 7, 1), None, noise(9, 7, 2)], "label": [1, 0, 0], "hue": ["a b", "c d", "e f"]}
    table = datasets.Dataset.from_dict(rows, features=features).select([2, 0])
    found = cl.dataset(table, columns={"title": None})
    assert [own.class_name for own in found.products] == ["chair", "bag"]
    assert [np.asarray(own.picture).tolist() for own in found.products] == [
        np.asarray(noise(9, 7, seed)).tolist() for seed in (2, 1)
    ]
    both = datasets.DatasetDict({"train": table})
    assert len(cl.dataset(both, "train").products) == 2
    with pytest.raises(ValueError, match=r"split 'test' is not there; it has \['train'\]"):
        cl.dataset(both)
    with pytest.raises(ValueError, match="source is a IterableDataset; give a DataFrame"):
        cl.dataset(table.to_iterable_dataset())


def test_addresses_are_fetched_only_when_that_is_allowed(monkeypatch):
    frame = pd.DataFrame(FLIPKART)
    with pytest.raises(
        ItemError, match=r"row 0: field 'image' is the address 'http://i.example/1.jpeg'; set rem"
    ):
        cl.dataset(frame)
    found = cl.dataset(frame, on_error="skip")
    assert (len(found.products), [own.item for own in found.skipped]) == (0, ["table, row 0", "table, row 1"])
    assert len(cl.dataset(frame, columns={"picture": None}).products) == 2
    asked = []
    monkeypatch.setattr(fetching, "fetch", lambda address, item: asked.append((address, item)) or png())
    products = cl.dataset(frame, remote_images=True).products
    assert asked == []
    assert products[1].picture.size == (9, 7)
    assert asked == [("http://i.example/3.jpeg", "table, row 1")]


# What is wrong is named by row and column


def nothing(**cells):
    return {"title": "t", "id": "i", "image": None, "color": None} | cells


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (nothing(title=b"\x80"), "field 'title' is .*, of type bytes; give text or a number"),
        (nothing(title=["a", "b"]), "field 'title' is .*, of type list; give text"),
        (nothing(title=""), "field 'title' and 'image' is empty; a product needs a title or a picture"),
        (nothing(title="x\ud800"), "field 'title' holds half a character"),
        (nothing(title="x" * 200_000), "field 'title' has 200,000 characters, more than 131,072"),
        (nothing(id=""), "field 'id' is empty"),
        (nothing(id="first"), "field 'id': id 'first' was there before, in row 0; .* columns="),
        (nothing(color=object()), "field 'color' is <object object at .*, of type object; give text"),
        (nothing(color=float("inf")), "field 'color' is inf"),
        (nothing(color=10**5000), "field 'color' is <int>, of type int"),
        (nothing(color=[{"a": 1}]), "field 'color' is {'a': 1}, of type dict"),
        (nothing(image=3), "field 'image' is 3, of type int; give a path, bytes"),
        (nothing(image="no.jpg"), "field 'image' is 'no.jpg', which does not exist; give the path"),
        (nothing(image="s3://b/a.jpg"), "field 'image' is 's3://b/a.jpg', no path of a picture"),
        (nothing(image="x" * 5000), "field 'image' is 'xxx.*, no path of a picture"),
        (nothing(image="a\0.jpg"), "field 'image' is .*, no path of a picture"),
        (
            nothing(image=np.zeros((2, 2))),
            r"field 'image' is an array of shape \(2, 2\) and type float64; give",
        ),
        (nothing(image=np.zeros((0, 2), np.uint8)), r"field 'image' is an array of shape \(0, 2\)"),
        (nothing(image=np.zeros((2, 2, 7), np.uint8)), r"field 'image' is an array of shape \(2, 2, 7\)"),
    ],
)
def test_every_error_names_row_and_column_and_skip_lists_it(row, said):
    frame = pd.DataFrame([nothing(id="first"), row, nothing(id="last")], dtype=object)
    columns = {"id": "id", "title": "title", "picture": "image", "attributes": ["color"]}
    with pytest.raises(ItemError, match=f"^table, row 1: {said}"):
        cl.dataset(frame, columns=columns)
    found = cl.dataset(frame, columns=columns, on_error="skip")
    assert [own.id for own in found.products] == ["first", "last"]
    (error,) = found.skipped
    assert error.item == "table, row 1"
    assert "\n" not in str(error)
    assert len(str(error)) <= 300


@pytest.mark.parametrize(
    ("name", "content", "said", "kept"),
    [
        ("a.csv", b"title,b\nchair,1,2\nbag,1\n", r"a.csv, line 2: has 3 cells, and the header 2; repair", 1),
        ("a.csv", b'title,b\n"a\nb",1\n\nbag\n', r"a.csv, line 5: has 1 cells, and the header 2", 1),
        (
            "a.jsonl",
            b'{"title": "a"}\n[1]\n',
            r"a.jsonl, line 2: it is \['1'\]; write one JSON object a line",
            1,
        ),
        ("a.json", b'[\n{"title": "a"}\n]\n', r"line 1: it is no JSON .*write one JSON object a line", 1),
        ("a.jsonl", b'{"title": "a"}\n{"title": \n', r"line 2: it is no JSON", 1),
        (
            "a.jsonl",
            b'{"title": "a"}\n{"title": "b", "title": "c"}\n',
            r"line 2: one of the keys .* comes twice",
            1,
        ),
        (
            "a.jsonl",
            b'{"title": "a"}\n{"title": "\xff"}\n',
            r"line 2: it is no UTF-8 .*write the file as UTF-8",
            1,
        ),
        (
            "a.jsonl",
            b'{"title": "a"}\n' + b"[" * 100_000 + b"\n",
            r"line 2: it is (nested too deeply|no JSON)",
            1,
        ),
    ],
)
def test_bad_rows_of_files(tmp_path, name, content, said, kept):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ItemError, match=said):
        cl.dataset(tmp_path / name)
    assert len(cl.dataset(tmp_path / name, on_error="skip").products) == kept


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "title\nStühle\n".encode("latin-1"), r"line 2: it is no UTF-8 .*write the file as UTF-8"),
        (
            "a.csv",
            "title\nchair\n".encode("utf-16"),
            r"line 1: the file is UTF-16 or UTF-32; write it as UTF-8",
        ),
        ("a.csv", b"", "a.csv: is empty; give it columns"),
        ("a.csv", b"title,title\na,b\n", "a.csv: has column 'title' twice; rename one"),
        ("a.csv", b"title,b\n" + b"x" * 200_000 + b",1\n", r"line 2: cannot be read \(field larger than"),
        ("a.csv", b"title,b\n" + b"x" * 2**24 + b"y,1\n", r"line 2: has more than 16,777,216 bytes"),
        ("a.jsonl", b"", "a.jsonl: is empty"),
        ("a.parquet", b"PAR1 no", "a.parquet: is no parquet file"),
        ("a.xlsx", b"no zip", "a.xlsx: is no Excel file .*save it as .xlsx"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    for on_error in ("raise", "skip"):
        with pytest.raises(ItemError, match=said):
            cl.dataset(tmp_path / name, on_error=on_error)


def test_arguments_that_mean_nothing_are_refused(tmp_path):
    frame = pd.DataFrame({"title": ["a"]})
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist; check the path"):
        cl.dataset(tmp_path / "none.csv")
    (tmp_path / "a.xls").write_bytes(b"x")
    with pytest.raises(ItemError, match=r"a\.xls: is no table that is read; save it as one of \.csv, "):
        cl.dataset(tmp_path / "a.xls")
    assert tuple(table_files.FILES) == opening.TABLES
    with pytest.raises(ValueError, match="on_error is 'no'; use raise or skip"):
        cl.dataset(frame, on_error="no")
    with pytest.raises(ValueError, match="split is 'train', and a table has none"):
        cl.dataset(frame, "train")
    with pytest.raises(ValueError, match="revision is 'v1', and a table is as it is"):
        cl.dataset(frame, revision="v1")
    with pytest.raises(ValueError, match="columns are those of a table, and 'mini' is none"):
        cl.dataset("mini", columns={})
    with pytest.raises(ValueError, match="source is a int; give a DataFrame"):
        cl.dataset(3)
    with pytest.raises(ItemError, match="table: has column 'a' twice"):
        cl.dataset(pd.DataFrame([[1, 2]], columns=["a", "a"]))


# Dialects


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_quotes_and_marks(tmp_path, separator, mark):
    lines = [["title", "note"], ['"A ""big"" chair, red; or so"', "1,5"], ['"two\nlines"', '"x"']]
    lines[1][1] = f'"{lines[1][1]}"' if separator == "," else lines[1][1]
    text = mark + "\r\n".join(separator.join(line) for line in lines)
    (tmp_path / "a.csv").write_bytes(text.encode())
    found = cl.dataset(tmp_path / "a.csv")
    assert [own.title for own in found.products] == ['A "big" chair, red; or so', "two\nlines"]
    assert dict(found.products[0].attributes) == {"note": ("1,5",)}


def test_one_column_needs_no_separator(tmp_path):
    (tmp_path / "a.csv").write_text("title\nred chair\nbag\n")
    assert [own.title for own in cl.dataset(tmp_path / "a.csv").products] == ["red chair", "bag"]


def test_keys_that_come_late_are_columns_too(tmp_path):
    lines = [{"title": f"chair {i}"} for i in range(300)] + [{"title": "bag", "hue": "red"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert columns_of(tmp_path / "a.jsonl").left_out == ("hue",), "named, though the sample has none"
    found = cl.dataset(tmp_path / "a.jsonl", columns={"attributes": ["hue"]})
    assert dict(found.products[-1].attributes) == {"hue": ("red",)}


def test_sheets(tmp_path, caplog):
    book = openpyxl.Workbook()
    book.active.append(["title", "price", "made", None])
    book.active.append(["chair", 19.5, datetime.date(2024, 1, 2)])
    book.active.append([])
    book.active.append(["=1+1", 20, None])
    book.active.append(["bag", 1, None, None, "stray"])
    book.create_sheet("more")
    book.save(tmp_path / "a.xlsx")
    with caplog.at_level(logging.INFO, "coral_lab"):
        found = cl.dataset(tmp_path / "a.xlsx", on_error="skip")
    assert "sheet 'Sheet' is read, the first of 2" in caplog.text
    (product,) = found.products
    assert dict(product.attributes) == {"price": ("19.5",), "made": ("2024-01-02",)}
    formula, stray = map(str, found.skipped)
    assert "row 4: field 'title' is empty" in formula, "a formula that was never computed has no value"
    assert "row 5: has 5 cells, and the header 3" in stray


# Hostile files


@pytest.mark.parametrize(
    "address", ["../secret.png", "/etc/secret.png", "..\\secret.png", "C:/secret.png", "link.png"]
)
@pytest.mark.parametrize("suffix", WRITERS)
def test_no_path_leads_out_of_the_folder(tmp_path, suffix, address):
    noise(9, 7, 1).save(tmp_path / "secret.png")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.png").symlink_to(tmp_path / "secret.png")
    file = inner / f"a{suffix}"
    WRITERS[suffix](pd.DataFrame({"title": ["chair"], "image": [address]}), file)
    with pytest.raises(ItemError, match=r"(line 1|line 2|row 0|row 2): field 'image' .*(out of|link)"):
        cl.dataset(file)


def test_nothing_is_unpickled_or_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    own = pickle.dumps(Trap())
    table = pa.table({"title": ["chair"], "note": [own], "image": [own]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert columns_of(tmp_path / "a.parquet").left_out == ("note",)
    with pytest.raises(ItemError, match="cannot be read"):
        cl.dataset(tmp_path / "a.parquet").products[0].picture  # noqa: B018
    with pytest.raises(ItemError, match=r"row 0: field 'note' is .*; give text or a number"):
        cl.dataset(tmp_path / "a.parquet", columns={"attributes": ["note"]})
    (tmp_path / "a.csv").write_text("title,x\n=cmd|'/C calc'!A0,\"['__import__(1)']\"\n")
    (product,) = cl.dataset(tmp_path / "a.csv").products
    assert product.title == "=cmd|'/C calc'!A0"
    assert dict(product.attributes) == {"x": ("['__import__(1)']",)}
    assert not (tmp_path / "sprung").exists()


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "LARGEST_BOOK", 1000)
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/workbook.xml", " " * 2000)
    with pytest.raises(ItemError, match="takes 2,000 bytes when unpacked, more than 1,000; save it as CSV"):
        cl.dataset(tmp_path / "a.xlsx")
    monkeypatch.setattr(tables, "LONGEST_TEXTS", 1000)
    pd.DataFrame({"title": ["x y" * 100] * 9}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ItemError, match="line 5: the texts up to here have more than 1,000 characters"):
        cl.dataset(tmp_path / "a.csv")
    monkeypatch.setattr(lazy_products, "LONGEST_TEXTS", 1000)
    long = pa.table({"id": [f"{i}-" + "x" * 300 for i in range(9)], "title": ["chair"] * 9})
    parquet.write_table(long, tmp_path / "a.parquet")
    with pytest.raises(ItemError, match="row 8: the ids up to here have more than 1,000 characters; split"):
        cl.dataset(tmp_path / "a.parquet")


def test_merit_s_own_parquet_is_a_table_too(tmp_path):
    cells = {"idx": [7], "image": [png()], "title": ["chair"], "class": ["chair"], "language": ["th"]}
    cells |= {"country": ["TH"], "attribute": ['{"color": ["red", "blue"]}']}
    parquet.write_table(pa.table(cells), tmp_path / "a.parquet")
    (product,) = cl.dataset(tmp_path / "a.parquet").products
    assert facts(product) == ("7", "chair", "chair", "th", "TH", {"color": ("red", "blue")})
    assert isinstance(product.picture, Image.Image)
