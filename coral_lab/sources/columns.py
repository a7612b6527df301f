"""Which column of a table is what: found by names and contents, shown, and set by hand where that is wrong.

    title ← product_name, picture ← image_url, attributes ← color, brand

Names are known in several languages. Where no name is known, contents tell: pictures by what they are or by
their file names, titles by being different and not long, languages by their codes.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coral_lab.sources.border import brief, composed

NAMES: Mapping[str, str] = {
    "id": "id; product id; item id; listing id; idx; uid; uniq id; uuid; handle; asin; parent asin; sku; "
    "seller sku; article id; product code; item number; code; artikelnummer; artikelnr; artikel nr; "
    "produkt id; produktnummer; référence; referencia; mã sản phẩm; kode produk; รหัสสินค้า; รหัส; 商品编号",
    "title": "title; product title; product name; product display name; item name; listing title; name; "
    "prod name; titel; produkttitel; produktname; artikelname; artikelbezeichnung; bezeichnung; titre; "
    "nom du produit; nom; título; nombre; nama produk; tên sản phẩm; ชื่อสินค้า; ชื่อ; 商品名; 商品名称; 标题; "
    "product; caption; text",
    "picture": "image; picture; photo; image src; image url; picture url; photo url; image link; "
    "main image; main image url; primary image; image path; image file; picture path; img; img url; images; "
    "image urls; pictures; photos; image 1; image1; photo 1; bild; bild url; produktbild; bilddatei; foto; "
    "gambar; hình ảnh; รูปภาพ; รูป; รูปสินค้า; 图片; file name; filename; thumbnail",
    "class_name": "class; class name; category; product type; product category; product category tree; "
    "item type; article type; type; main category; category name; kategorie; produktart; warengruppe; "
    "catégorie; categoría; kategori; danh mục; หมวดหมู่; ประเภทสินค้า; 类别; label",
    "language": "language; lang; locale; sprache; langue; idioma; bahasa; ngôn ngữ; ภาษา; 语言",
    "country": "country; country code; market; marketplace; land; pays; país; negara; quốc gia; ประเทศ; 国家",
}
"""What columns are called, the likeliest first; written as `plain` writes a name."""

SINGLE = tuple(NAMES)
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""How files of pictures end that are read."""

LANGUAGES = (
    "ar bg bn cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv ms nl no pl pt ro ru sk sl sr sv "
    "sw ta te th tl tr uk ur vi vn zh"
)
"""Codes of languages, with spaces between."""

PROSE = 80
"""Characters on average; what is longer describes, and is no attribute and the last that could be a title."""

ABSENT = frozenset({"nan", "NaN", "None", "NaT", "<NA>", "null", "NULL", "#N/A"})
"""Texts that other programs write where there is nothing."""

Sample = Mapping[str, Sequence[Any]]
"""Of each column the first values, without those that are absent."""


@dataclass(frozen=True, repr=False)
class Columns:
    """Which column of a table is what, by the columns' names; "" where there is none.

    Without `id` products are called after their rows, "row-000012". Each of `attributes` becomes an attribute
    of its column's name; where cells hold objects, their keys are the names. `left_out` are the columns that
    are not read. Shows itself as a table.
    """

    id: str = ""
    title: str = ""
    picture: str = ""
    class_name: str = ""
    language: str = ""
    country: str = ""
    attributes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return ", ".join(f"{role} ← {', '.join(names)}" for role, names in self._rows())

    def _repr_html_(self) -> str:
        from coral_lab.results import FRAME, GREY, PLAIN

        rows = "".join(
            f'<tr><th style="text-align:left;font-weight:normal;{GREY}">{escape(role)}</th>'
            f'<td style="text-align:left">{escape(", ".join(names))}</td></tr>'
            for role, names in self._rows()
        )
        return f'<table class="{PLAIN}" style="{FRAME}">{rows}</table>'

    def _rows(self) -> Iterator[tuple[str, Sequence[str]]]:
        yield "id", (self.id or "numbers of rows",)
        for role in SINGLE[1:]:
            if own := getattr(self, role):
                yield role, (own,)
        for role, own in (("attributes", self.attributes), ("left out", self.left_out)):
            if own:
                yield role, own


Given = Columns | Mapping[str, Any] | None


def chosen(names: Sequence[str], sample: Sample, given: Given = None, table: str = "table") -> Columns:
    """The columns of a table: all of them as given, or those that a mapping names, `{"title": "Name",
    "picture": None}`, and the others as `guessed`.

    Raises ValueError for an unknown role, a column that is not there, and a table in which nothing is a title
    or a picture.
    """
    if isinstance(given, Columns):
        given = {own.name: getattr(given, own.name) for own in fields(Columns) if own.name != "left_out"}
    set_by_hand = _checked(names, given or {}, table)
    found = guessed(names, sample, set_by_hand)
    if not found.title and not found.picture:
        way = f"set columns={{'title': …}}; it has {brief(list(names))}"
        raise ValueError(f"{table} has no column that seems to be a title or a picture; {way}")
    return found


def _checked(names: Sequence[str], given: Mapping[str, Any], table: str) -> dict[str, Any]:
    """What is set by hand, with "" for no column and a tuple of attributes."""
    found: dict[str, Any] = {}
    for role, own in given.items():
        if role not in (*SINGLE, "attributes"):
            raise ValueError(f"columns has {brief(role)}; it may have {', '.join(SINGLE)} and attributes")
        several = role == "attributes" and not isinstance(own, str)
        wanted = tuple(own or ()) if several else (own,) if own else ()
        for name in wanted:
            if name not in names:
                problem = f"columns names {brief(name)} as {role}, and {table} has no such column"
                raise ValueError(f"{problem}; it has {brief(list(names))}")
        found[role] = wanted if role == "attributes" else "".join(wanted)
    return found


def guessed(names: Sequence[str], sample: Sample, set_by_hand: Mapping[str, Any] | None = None) -> Columns:
    """What each column is, by its name, then by its content; what is set by hand stays.

    What is left is an attribute, unless it is empty, prose, an address or a picture.
    """
    found = dict(set_by_hand or {})
    for way in (_by_name, _by_content):
        for role in ("picture", "title", "class_name", "language", "country", "id"):
            if role not in found:
                taken = {*found.values(), *found.get("attributes", ())}
                free = [name for name in names if name not in taken]
                if own := way(role, free, names, sample):
                    found[role] = own
    used = {own for role, own in found.items() if role in SINGLE}
    if "attributes" not in found:
        rest = [name for name in names if name not in used]
        found["attributes"] = tuple(own for own in rest if _is_attribute(own, sample[own]))
    left = tuple(name for name in names if name not in used and name not in found["attributes"])
    return replace(Columns(**found), left_out=left)


def plain(name: str) -> str:
    """A column's name as names are compared: small words with one space between."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", composed(name))
    return " ".join(re.sub(r"[\s_.,:;/()\[\]#-]+", " ", words).casefold().split())  # Thai's vowels are no \w


def _by_name(role: str, free: Sequence[str], names: Sequence[str], sample: Sample) -> str:
    ranks = {name: rank for rank, name in enumerate(NAMES[role].split("; "))}
    known = [name for name in free if plain(name) in ranks and _could_be(role, sample[name])]
    return min(known, key=lambda name: ranks[plain(name)], default="")


def _could_be(role: str, values: Sequence[Any]) -> bool:
    """Whether a column's content allows what its name says; a picture is no number, say."""
    if not values:
        return False
    if role == "picture":
        return _most(values, lambda own: isinstance(own, str | dict | list | tuple) or is_picture(own))
    return role == "id" or _most(values, lambda own: isinstance(own, str) and not is_picture(own))


def _by_content(role: str, free: Sequence[str], names: Sequence[str], sample: Sample) -> str:
    """For pictures, titles, languages and ids; nothing tells a class from an attribute."""
    if role == "title":
        return _title(free, sample)
    test = {"picture": _are_pictures, "language": _are_languages, "id": _are_ids}.get(role)
    tried = [name for name in free if role != "id" or name == names[0]]
    return next((name for name in tried if test and sample[name] and test(sample[name])), "")


def _title(free: Sequence[str], sample: Sample) -> str:
    """The longest texts that are mostly different; prose only where there is nothing else."""
    lengths = {name: _length(sample[name]) for name in free if _are_titles(sample[name])}
    short = {name: length for name, length in lengths.items() if length <= PROSE}
    if short:
        return max(short, key=short.__getitem__)
    return min(lengths, key=lengths.__getitem__, default="")


def _length(values: Sequence[Any]) -> float:
    return sum(len(own) for own in values if isinstance(own, str)) / max(1, len(values))


def _are_titles(values: Sequence[Any]) -> bool:
    texts = [own for own in values if isinstance(own, str) and not is_picture(own) and not is_address(own)]
    spoken = [own for own in texts if sum(map(str.isalpha, own)) * 2 > len(own)]
    return bool(values) and len(spoken) * 2 > len(values) and len(set(spoken)) * 2 > len(spoken)


def _are_pictures(values: Sequence[Any]) -> bool:
    return _most(values, is_picture)


def _are_languages(values: Sequence[Any]) -> bool:
    codes = LANGUAGES.split()
    return all(isinstance(own, str) and own.partition("-")[0] in codes for own in values)


def _are_ids(values: Sequence[Any]) -> bool:
    """Codes or whole numbers, all different; one alone says nothing."""
    codes = [str(own) for own in values if isinstance(own, str | int) and not isinstance(own, bool)]
    fits = all(re.fullmatch(r"(?=.*\d)[\w./:-]{1,64}", own) and not is_picture(own) for own in codes)
    return len(values) > 1 and len(set(codes)) == len(values) and fits


def _is_attribute(name: str, values: Sequence[Any]) -> bool:
    of_rows = plain(name).startswith(("unnamed", "index level"))  # as pandas calls the numbers of rows
    if not values or _are_pictures(values) or of_rows or not plain(name):
        return False
    return _length(values) <= PROSE and not _most(values, is_address)


def _most(values: Sequence[Any], test: Callable[[Any], bool]) -> bool:
    return sum(map(test, values)) * 2 > len(values)


def is_address(value: object) -> bool:
    return isinstance(value, str) and value.lstrip(' ["').startswith(("http://", "https://"))


def is_picture(value: object) -> bool:
    """Whether a value is a picture, or seems to name one."""
    if isinstance(value, str):
        own = value.strip(' "[]').lower()
        return own.startswith("data:image/") or own.partition("?")[0].endswith(SUFFIXES)
    if isinstance(value, Mapping):
        return bool(value) and value.keys() <= {"bytes", "path"}
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    return isinstance(value, bytes | Image.Image | Path) or callable(value)


def absent(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN, an empty text, or a text that stands for one of these."""
    if isinstance(value, str):
        return not (own := value.strip()) or own in ABSENT
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float | np.floating) and math.isnan(value)


def sample_of(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Sample:
    """Of each column the values of some rows that are there."""
    return {name: [row[name] for row in rows if not absent(row.get(name))] for name in names}
