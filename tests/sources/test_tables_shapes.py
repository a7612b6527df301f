"""Twelve files of the shapes that public ones have: each gives the dataset that is written here, or one error
of one line; and a table at the command line.
"""

import json
import unicodedata

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import coral_lab as cl
from coral_lab import sources
from coral_lab.cli import main, measuring
from coral_lab.errors import ItemError
from tests.conftest import noise
from tests.sources.test_tables import facts


def text(content, encoding="utf-8"):
    return lambda file: file.write_bytes(content.encode(encoding))


def lines(*records):
    return text("".join(json.dumps(own, ensure_ascii=False) + "\n" for own in records))


def table(**cells):
    return lambda file: parquet.write_table(pa.table(cells), file)


def multi_index(file):
    own = pd.DataFrame(
        {"title": ["Red chair", "Blue bag"], "color": ["red", "blue"]},
        index=pd.MultiIndex.from_tuples([("Acme", "A-1"), ("Brix", "B-2")], names=["brand", "sku"]),
    )
    own.to_parquet(file)


LONG = (1234567890123456789, 1234567890123456790)
VIETNAMESE = unicodedata.normalize(
    "NFD", "mã,tên sản phẩm,màu sắc,ngôn ngữ\n1,Ghế gỗ đỏ,đỏ,vi\n2,Túi xanh,xanh,vi\n"
)

FILES = {
    "semicolons.csv": (
        text("Artikelnr.;Bezeichnung;Farbe;Preis\r\n007;Stuhl, rot;rot;19,90\r\n008;Tisch;weiß;5,00\r\n"),
        [
            ("007", "Stuhl, rot", "", "", "", {"Farbe": ("rot",), "Preis": ("19,90",)}),
            ("008", "Tisch", "", "", "", {"Farbe": ("weiß",), "Preis": ("5,00",)}),
        ],
    ),
    "mark.csv": (
        text("id,title\na1,Red chair\na2,Blue bag\n", "utf-8-sig"),
        [("a1", "Red chair", "", "", "", {}), ("a2", "Blue bag", "", "", "", {})],
    ),
    "windows.csv": (
        text("id,title\n1,Caf\u00e9 chair \u20ac5\n", "cp1252"),
        "windows.csv, line 2: it is no UTF-8",
    ),
    "nulls.jsonl": (
        lines(
            {"id": 1, "title": "Red chair", "brand": None, "lang": "en"},
            {"id": 2, "title": "Blue bag", "brand": "Acme"},
            {"id": 3, "title": "Lamp", "brand": "nan", "lang": None},
        ),
        [
            ("1", "Red chair", "", "en", "", {}),
            ("2", "Blue bag", "", "", "", {"brand": ("Acme",)}),
            ("3", "Lamp", "", "", "", {}),
        ],
    ),
    "nested.jsonl": (
        lines(
            {"asin": "B01", "title": "Red chair", "details": {"color": ["red", "warm red"], "fit": None}},
            {"asin": "B02", "title": "Blue bag", "details": {"color": "blue", "straps": 2}},
        ),
        [
            ("B01", "Red chair", "", "", "", {"color": ("red", "warm red")}),
            ("B02", "Blue bag", "", "", "", {"color": ("blue",), "straps": ("2",)}),
        ],
    ),
    "long_ids.parquet": (
        table(product_id=LONG, title=["Red chair", "Blue bag"]),
        [(str(LONG[0]), "Red chair", "", "", "", {}), (str(LONG[1]), "Blue bag", "", "", "", {})],
    ),
    "thai.tsv": (
        text("รหัสสินค้า\tชื่อสินค้า\tหมวดหมู่\tสี\nส1\tเก้าอี้ไม้\tเก้าอี้\tแดง|ขาว\nส2\tกระเป๋า\tกระเป๋า\t\n"),
        [
            ("ส1", "เก้าอี้ไม้", "เก้าอี้", "", "", {"สี": ("แดง", "ขาว")}),
            ("ส2", "กระเป๋า", "กระเป๋า", "", "", {}),
        ],
    ),
    "decomposed.csv": (
        text(VIETNAMESE),
        [
            ("1", "Ghế gỗ đỏ", "", "vi", "", {"màu sắc": ("đỏ",)}),
            ("2", "Túi xanh", "", "vi", "", {"màu sắc": ("xanh",)}),
        ],
    ),
    "dollars.csv": (
        text('sku,name,price\nR1,"Ring, $5 off until $9","$1,019.90"\nC2,Cup,$5.00\n'),
        [
            ("R1", "Ring, $5 off until $9", "", "", "", {"price": ("$1,019.90",)}),
            ("C2", "Cup", "", "", "", {"price": ("$5.00",)}),
        ],
    ),
    "twice.csv": (
        text("sku,title\nA,Red chair\nB,Blue bag\nA,Lamp\n"),
        "twice.csv, line 4: field 'sku': id 'A' was there before, in line 2",
    ),
    "missing.csv": (
        text("title,image\nRed chair,there.png\nBlue bag,gone.png\n"),
        "missing.csv, line 3: field 'image' is 'gone.png', which does not exist",
    ),
    "lists.parquet": (
        table(title=["Red chair", "Blue bag"], tags=[["wood", None, "new; boxed"], []]),
        [
            ("row-000000", "Red chair", "", "", "", {"tags": ("wood", "new; boxed")}),
            ("row-000001", "Blue bag", "", "", "", {}),
        ],
    ),
    "multi_index.parquet": (
        multi_index,
        [
            ("A-1", "Red chair", "", "", "", {"color": ("red",), "brand": ("Acme",)}),
            ("B-2", "Blue bag", "", "", "", {"color": ("blue",), "brand": ("Brix",)}),
        ],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_what_is_written_here_or_one_line(name, tmp_path):
    write, wanted = FILES[name]
    write(tmp_path / name)
    noise(9, 7, seed=0).save(tmp_path / "there.png")
    if isinstance(wanted, str):
        with pytest.raises(ItemError) as caught:
            cl.dataset(tmp_path / name)
        said = str(caught.value)
        assert wanted in said
        assert "\n" not in said
        return
    found = cl.dataset(tmp_path / name)
    assert [facts(own) for own in found.products] == wanted
    assert found.traits.languages == tuple(sorted({own[3] for own in wanted} - {""}))
    assert (found.queries, found.skipped) == ((), ())


def test_a_frame_s_named_index_is_columns_and_levels_of_columns_are_joined():
    index = pd.MultiIndex.from_tuples([("Acme", 1), ("Brix", 2)], names=["brand", None])
    frame = pd.DataFrame([["Red chair", "red"], ["Blue bag", "blue"]], index=index)
    frame.columns = pd.MultiIndex.from_tuples([("title", ""), ("look", "color")])
    found = cl.dataset(frame)
    assert facts(found.products[1])[1:] == (
        "Blue bag",
        "",
        "",
        "",
        {"brand": ("Brix",), "look color": ("blue",)},
    )
    named = pd.DataFrame({"title": ["Red chair"]}, index=pd.Index(["Blue"], name="title"))
    with pytest.raises(ItemError, match="table: has column 'title' twice; rename one"):
        cl.dataset(named)


def test_numbers_of_rows_that_pandas_writes_are_no_attribute(tmp_path):
    pd.DataFrame({"title": ["a", "b", "c"]}, index=[5, 9, 2]).to_parquet(tmp_path / "a.parquet")
    assert sources.columns_of(tmp_path / "a.parquet").left_out == ("__index_level_0__",)


def test_a_dataset_shows_itself(tmp_path):
    noise(9, 7, seed=0).save(tmp_path / "a.png")
    rows = (
        "sku,title,image,type,lang,hue\n1,Chair <b>,a.png,chair,en,red|blue\n2,Bag,,bag,th,red\n3,,,bag,th,\n"
    )
    (tmp_path / "shop.csv").write_text(rows)
    shown = cl.dataset(tmp_path / "shop.csv", on_error="skip")._repr_html_()
    for part in (
        "2 products · 0 queries · 1 left out",
        "title ← title, picture ← image",
        "2 classes",
        "en, th",
    ):
        assert part in shown
    for part in ("hue (2)", "Chair &lt;b&gt;", "line 4: field", "data:image/jpeg", "1 with a picture"):
        assert part in shown
    assert "<b>,a" not in shown
    frame = pd.DataFrame({"title": ["a"], "image": ["https://x.example/1.png"]})
    assert "not fetched yet" in cl.dataset(frame, remote_images=True)._repr_html_()
    many = cl.Dataset("many", tuple(cl.Product(f"p{i}", "chair") for i in range(1001)), ())._repr_html_()
    assert "1,001 products" in many
    assert "of the first 1,000: 0 with a picture · no classes · no attributes" in many


class Lengths:
    name, dim = "lengths", 2

    def embed(self, conversations):
        return [[len(own.text), 1] for own in conversations]


def test_a_table_at_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measuring, "loaded", lambda *_: Lengths())
    (tmp_path / "shop.csv").write_text("sku,title\nA,Red chair\nA,Lamp\nB,Blue bag\n")
    out = tmp_path / "v.parquet"
    encode = ["encode", "--data", str(tmp_path / "shop.csv"), "--out", str(out)]
    assert main(encode) == 2
    assert "line 3: field 'sku': id 'A' was there before, in line 2" in capsys.readouterr().err
    assert main([*encode, "--on-error", "skip"]) == 0
    assert "skipped" in capsys.readouterr().err
    assert pd.read_parquet(out)["id"].tolist() == ["A", "B"]
