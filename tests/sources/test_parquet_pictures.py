"""Parquet files of any size and make: memory is bounded before it is taken, and every dialect of the columns
is read as the same products.
"""

import random
from decimal import Decimal

import pyarrow as pa
import pytest
from pyarrow import parquet

import coral_lab as cl
from coral_lab.errors import ItemError
from coral_lab.sources import parquet_pictures
from coral_lab.sources.merit_files import read_products
from coral_lab.sources.parquet_pictures import KEPT, KeptGroups, PictureFile
from tests.sources.test_merit_files import jpeg, row, write_rows

FILE = "test-00000-of-00001.parquet"
BIG = 8 * 2**20
"""Bytes of a picture that a dictionary writes once: 300 of them are more than 2 GB, in a file of 400 kB."""


def repeated(value: bytes | str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def write(folder, rows: int, store_schema=False, **columns):
    texts = {key: pa.array([key] * rows) for key in ("title", "class", "country", "language")}
    texts |= {"attribute": pa.array(["{}"] * rows), "idx": pa.array(range(rows))}
    texts["image"] = pa.array([{"bytes": jpeg(i), "path": None} for i in range(rows)])
    options = {"dictionary_pagesize_limit": 2**30, "row_group_size": rows, "store_schema": store_schema}
    parquet.write_table(pa.table(texts | columns), folder / FILE, **options)
    (folder / "queries-test.json").write_bytes(b"")


def whole(rows: int) -> pa.StructArray:
    content = jpeg(1) + b"\0" * BIG  # decoders stop at the picture's end
    return pa.StructArray.from_arrays(
        [repeated(content, rows), pa.nulls(rows, pa.string())], names=["bytes", "path"]
    )


@pytest.mark.parametrize("kind", ["struct", "bytes"])
def test_a_row_group_of_more_than_two_gigabytes_is_read_a_few_rows_at_a_time(tmp_path, kind):
    image = whole(300)
    write(tmp_path, 300, image=image if kind == "struct" else image.field("bytes"))
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    products = cl.dataset(tmp_path).products
    for number in (0, 1, 12, 3):
        assert products[number].picture.size == (40, 30)
        kept = products[0].image.file._kept
        assert kept.size <= parquet_pictures.BYTES_AT_ONCE
        assert pa.total_allocated_bytes() - before < 4 * parquet_pictures.BYTES_AT_ONCE


@pytest.mark.parametrize("field", ["title", "country", "attribute"])
@pytest.mark.parametrize("store_schema", [False, True])
def test_a_text_repeated_beyond_memory_is_named(tmp_path, field, store_schema):
    text = '{"color": "' + "x" * 4_000_000 + '"}'
    write(tmp_path, 2000, store_schema, **{field: repeated(text, 2000)})
    with pytest.raises(
        ItemError, match=r"^.*test-00000-of-00001\.parquet, row \d+: .* more than 268,435,456"
    ):
        cl.dataset(tmp_path)


def test_pictures_of_many_files_stay_within_one_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_pictures, "BYTES_AT_ONCE", 5_000)
    for number in range(5):
        rows = pa.Table.from_pylist([row(10 * number + i) for i in range(10)])
        parquet.write_table(rows, tmp_path / f"test-0000{number}-of-00005.parquet", row_group_size=5)
    products = list(read_products(tmp_path, "test"))
    for product in products:
        assert product.picture.size == (40, 30)
        assert product.image.file._kept.size <= KEPT * 5_000
    assert len({id(product.image.file._kept) for product in products}) == 1


@pytest.mark.parametrize("bound", [1, 3_000, 2**26])
@pytest.mark.parametrize("group", [1, 7, 40])
def test_in_any_order_every_row_has_its_own_picture(tmp_path, monkeypatch, bound, group):
    monkeypatch.setattr(parquet_pictures, "BYTES_AT_ONCE", bound)
    write_rows(tmp_path, [row(i) for i in range(40)], row_group_size=group)
    file = PictureFile(tmp_path / FILE, tmp_path)
    order = [*range(40), *range(39, -1, -1), *random.Random(0).choices(range(40), k=60)]
    assert [file.read(number) for number in order] == [jpeg(number) for number in order]


def test_reading_in_order_reads_each_group_once(tmp_path, monkeypatch):
    opened = []
    batches = PictureFile._batches
    monkeypatch.setattr(PictureFile, "_batches", lambda *own: opened.append(own[1]) or batches(*own))
    monkeypatch.setattr(parquet_pictures, "BYTES_AT_ONCE", 3_000)
    write_rows(tmp_path, [row(i) for i in range(40)], row_group_size=8)
    file = PictureFile(tmp_path / FILE, tmp_path, kept=KeptGroups())
    for number in range(40):
        file.read(number)
    assert opened == [0, 1, 2, 3, 4]


PICTURE = {"bytes": b"x", "path": None}
TEXTS = {
    "large_string": lambda t: t.cast(pa.large_string()),
    "string_view": lambda t: t.cast(pa.string_view()),
    "dictionary": lambda t: t.dictionary_encode(),
    "large dictionary": lambda t: t.cast(pa.large_string()).dictionary_encode(),
}


def products_of(tmp_path, rows, **columns):
    """The rows read, with some columns as these arrays."""
    table = pa.Table.from_pylist(rows)
    for name, array in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, array)
    parquet.write_table(table, tmp_path / FILE)
    return list(read_products(tmp_path, "test"))


def facts(products):
    return [
        (p.id, p.title, p.class_name, p.language, p.country, dict(p.attributes), p.picture.tobytes())
        for p in products
    ]


@pytest.fixture
def rows():
    return [row(i, title=f"áo {i}", country=None if i == 1 else "VN") for i in range(3)]


@pytest.fixture
def plain(tmp_path_factory, rows):
    return facts(products_of(tmp_path_factory.mktemp("plain"), rows))


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_of_any_type(tmp_path, rows, plain, kind):
    table = pa.Table.from_pylist(rows)
    keys = ("title", "class", "country", "language", "attribute")
    columns = {key: TEXTS[kind](table.column(key).combine_chunks()) for key in keys}
    assert facts(products_of(tmp_path, rows, **columns)) == plain


IMAGES = {
    "path first": lambda c: pa.array(
        [{"path": None, "bytes": x} for x in c], pa.struct({"path": pa.string(), "bytes": pa.binary()})
    ),
    "large": lambda c: pa.array(
        [{"bytes": x} for x in c], pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})
    ),
    "bytes alone": lambda c: pa.array([{"bytes": x} for x in c]),
    "binary": lambda c: pa.array(c, pa.binary()),
    "large_binary": lambda c: pa.array(c, pa.large_binary()),
    "binary_view": lambda c: pa.array(c, pa.binary_view()),
    "dictionary": lambda c: pa.array(c, pa.binary()).dictionary_encode(),
    "more fields": lambda c: pa.array([{"bytes": x, "path": None, "sha": "0"} for x in c]),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_pictures_of_any_type(tmp_path, rows, plain, kind):
    image = IMAGES[kind]([r["image"]["bytes"] for r in rows])
    assert facts(products_of(tmp_path, rows, image=image)) == plain


LISTED = {"color": ["red", "blue"], "size": ["M"]}
ATTRIBUTES = {
    "struct of lists": pa.array([LISTED | {"brand": None}] * 3),
    "struct of large lists": pa.array(
        [LISTED] * 3, pa.struct({k: pa.large_list(pa.string()) for k in LISTED})
    ),
    "struct of fixed lists": pa.array([{"color": ["red", "blue"], "size": ["M", None]}] * 3).cast(
        pa.struct({k: pa.list_(pa.string(), 2) for k in LISTED})
    ),
    "map": pa.array([list(LISTED.items())] * 3, pa.map_(pa.string(), pa.list_(pa.string()))),
    "map of large": pa.array(
        [list(LISTED.items())] * 3, pa.map_(pa.large_string(), pa.large_list(pa.large_string()))
    ),
    "keys and values": pa.array([[{"key": k, "value": v} for k, v in LISTED.items()]] * 3),
    "values and keys": pa.array([[{"value": v, "key": k} for k, v in LISTED.items()]] * 3),
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_of_any_type(tmp_path, rows, plain, kind):
    assert facts(products_of(tmp_path, rows, attribute=ATTRIBUTES[kind])) == plain


@pytest.mark.parametrize("kind", ["map", "keys and values", "json"])
def test_an_attribute_that_comes_twice_is_named(tmp_path, rows, kind):
    pairs = [("color", "red"), ("color", "blue")]
    column = {
        "map": pa.array([pairs] * 3, pa.map_(pa.string(), pa.string())),
        "keys and values": pa.array([[{"key": k, "value": v} for k, v in pairs]] * 3),
        "json": pa.array(['{"color": "red", "color": "blue"}'] * 3),
    }[kind]
    with pytest.raises(ItemError, match=r"parquet, row 0: key 'color' comes twice; keep one"):
        products_of(tmp_path, rows, attribute=column)


@pytest.mark.parametrize(
    "idx",
    [
        pa.array([0, 1, 2], pa.uint64()),
        pa.array([0, 1, 2], pa.int32()),
        pa.array([0, 1, 2], pa.uint8()),
        pa.array([0.0, 1.0, 2.0]),
        pa.array([Decimal(0), Decimal(1), Decimal(2)], pa.decimal128(20, 2)),
        pa.array(["0", "1", "2"], pa.large_string()),
    ],
    ids=lambda a: str(a.type),
)
def test_ids_of_any_type(tmp_path, rows, plain, idx):
    assert facts(products_of(tmp_path, rows, idx=idx)) == plain


@pytest.mark.parametrize(
    "idx", [[0.5, 1.0, 2.0], [float("nan"), 1.0, 2.0], [float("inf"), 1.0, 2.0], [True, False, True]]
)
def test_ids_that_are_no_whole_numbers_are_named(tmp_path, rows, idx):
    with pytest.raises(ItemError, match=r"row 0: field 'idx' is .*; it must be a number"):
        products_of(tmp_path, rows, idx=pa.array(idx))


def test_a_column_that_nobody_asked_for_is_not_read(tmp_path, rows, plain):
    table = pa.Table.from_pylist(rows).append_column("embedding", pa.array([[0.5] * 8] * 3))
    parquet.write_table(table, tmp_path / FILE)
    assert facts(read_products(tmp_path, "test")) == plain


def test_a_row_that_is_no_utf8_is_named_and_the_others_are_read(tmp_path, rows):
    bad = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    with pytest.raises(ItemError, match=r"parquet, row 1: cannot be read"):
        products_of(tmp_path, rows, title=bad)
    refused = []
    assert [p.title for p in read_products(tmp_path, "test", refused.append)] == ["a", "c"]
    assert [error.item.rpartition(", ")[2] for error in refused] == ["row 1"]


def test_a_picture_that_is_no_picture_is_named_with_its_row(tmp_path, rows):
    listed = pa.array([{"bytes": [255, 216], "path": None}] * 3)
    for image in (
        listed,
        pa.array([1, 2, 3]),
        pa.array([[1, 2]] * 3),
        pa.array([None, "", None], pa.string()),
    ):
        found = products_of(tmp_path, rows, image=image)
        with pytest.raises(
            ItemError, match=r"parquet, row 1: field 'image' is .{1,80}; the picture should be"
        ):
            found[1].picture  # noqa: B018


def test_a_damaged_page_of_pictures_is_named_with_its_row(tmp_path, rows):
    products = products_of(tmp_path, rows)
    content = bytearray((tmp_path / FILE).read_bytes())
    group = parquet.read_metadata(tmp_path / FILE).row_group(0)
    places = {group.column(i).path_in_schema: group.column(i).data_page_offset for i in range(3)}
    at = places["image.bytes"]
    content[at : at + 20] = b"\xff" * 20
    (tmp_path / FILE).write_bytes(content)
    product = list(read_products(tmp_path, "test"))[2]
    for _ in range(2):  # what failed is not remembered as read
        with pytest.raises(ItemError, match=r"parquet, row 2: .*image.* cannot be read") as caught:
            product.picture  # noqa: B018
        assert len(str(caught.value)) <= 300
    assert len(products) == 3


def identities(folder) -> list[str | None]:
    return [product.image.identity for product in cl.dataset(folder).products]


def test_a_picture_that_a_row_points_to_is_its_content(tmp_path):
    """The parquet file stays as it is, and the picture changes under its name."""
    images = [
        {"bytes": None, "path": "0.jpg"},
        {"bytes": jpeg(1), "path": "1.jpg"},
        {"bytes": None, "path": "2.jpg"},
    ]
    write(tmp_path, 3, image=pa.array(images))
    for name, seed in (("0.jpg", 0), ("1.jpg", 5), ("2.jpg", 0)):
        (tmp_path / name).write_bytes(jpeg(seed))
    before = identities(tmp_path)
    assert before[0] == before[2] != before[1]
    (tmp_path / "0.jpg").write_bytes(jpeg(7))
    (tmp_path / "1.jpg").write_bytes(jpeg(7))  # that row has a picture of its own
    after = identities(tmp_path)
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, True, True]
    opened = cl.dataset(tmp_path).products[0].image
    (tmp_path / "0.jpg").write_bytes(jpeg(8))
    assert opened.identity not in (after[0], before[0])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_paths_alone_are_told_by_content_too(tmp_path, kind):
    write(tmp_path, 2, image=pa.array(["0.jpg", "gone.jpg"]).cast(kind), store_schema=True)
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    first, gone = identities(tmp_path)
    assert gone is None
    (tmp_path / "0.jpg").write_bytes(jpeg(1))
    assert identities(tmp_path)[0] not in (first, None)


@pytest.mark.parametrize("kind", ["struct", "bytes", "dictionary"])
def test_no_picture_is_read_to_tell_a_row_that_has_bytes(tmp_path, kind, monkeypatch):
    content = pa.array([jpeg(i) for i in range(3)])
    names = pa.array([f"{i}.jpg" for i in range(3)])
    image = pa.StructArray.from_arrays([content, names], names=["bytes", "path"])
    write(
        tmp_path,
        3,
        image={"struct": image, "bytes": content, "dictionary": content.dictionary_encode()}[kind],
    )
    monkeypatch.setattr(PictureFile, "read", lambda *_: pytest.fail("read"))
    assert len(set(identities(tmp_path))) == 3


def test_statistics_that_do_not_hold_lead_to_no_other_picture(tmp_path):
    write(tmp_path, 1, image=pa.array([{"bytes": b"", "path": "0.jpg"}]))
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    [product] = cl.dataset(tmp_path).products
    with pytest.raises(ItemError, match="has no bytes, and the file says that it does"):
        product.picture  # noqa: B018
