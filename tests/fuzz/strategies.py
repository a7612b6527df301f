"""Inputs that are nearly right: valid ones with something odd in a place or two."""

import io
import json
from collections.abc import Callable

import pandas as pd
import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import parquet

from coral_lab import Condition, Product
from tests.fuzz.values import ADDRESSES, JPEG, changed, encoded, good_pictures, odd, texts
from tests.test_bad_input import CHANGES, LINE, damaged


@st.composite
def products(draw) -> dict:
    """What `Product` is called with."""
    valid = {
        "id": "p1",
        "title": draw(texts),
        "image": draw(good_pictures),
        "class_name": "bag",
        "language": "en",
        "country": "VN",
        "attributes": draw(attributes),
    }
    return changed(draw, valid) if draw(st.booleans()) else valid


attributes = st.dictionaries(texts, st.lists(texts, max_size=2) | texts, max_size=3) | st.dictionaries(
    texts, odd, max_size=2
)


def safely(kind: Callable, values: dict) -> object:
    """The item, or None where it is refused: what holds it is what is tried."""
    try:
        return kind(**values)
    except ValueError:
        return None


BAG = Product("bag", "a bag", JPEG, "bag", "en")


@st.composite
def queries(draw) -> dict:
    """What `Query` is called with."""

    def condition() -> object:
        product = safely(Product, draw(products())) if draw(st.booleans()) else BAG
        valid = {"attribute": draw(texts), "product": product, "value": draw(texts)}
        return safely(Condition, valid) if draw(st.integers(0, 6)) else draw(odd)

    valid = {
        "id": "q1",
        "class_name": draw(texts),
        "conditions": [condition() for _ in range(draw(st.integers(0, 3)))],
        "text": draw(texts),
        "positives": ("p1",),
        "hard_negatives": draw(st.lists(texts, max_size=2)),
        "language": draw(st.sampled_from(("en", "vi", "th", "vn"))),
        "parent": None,
    }
    valid["conditions"] = [own for own in valid["conditions"] if own is not None]
    return changed(draw, valid) if draw(st.booleans()) else valid


@st.composite
def messages(draw) -> object:
    """Raw chat messages."""

    def entry() -> object:
        valid = draw(st.sampled_from(("text", "image", "image", "image_url", "bare")))
        if valid == "text":
            found = {"type": "text", "text": draw(texts)}
        elif valid == "bare":
            found = {draw(st.sampled_from(("text", "image"))): draw(texts)}
        else:
            found = {"type": "image", valid: draw(good_pictures)}
        if valid != "text" and not draw(st.integers(0, 2)):
            found[draw(st.sampled_from(LIMITS))] = draw(numbers)
            found[draw(st.sampled_from(LIMITS))] = draw(numbers)
        if not draw(st.integers(0, 4)):
            more = draw(st.sampled_from(("cache", "video", "text", "role", 10**5000, None, ("a",))))
            found = changed(draw, found) | {more: draw(odd)}
        return found if draw(st.integers(0, 9)) else draw(odd)

    def message() -> object:
        content = (
            [entry() for _ in range(draw(st.integers(0, 3)))] if draw(st.integers(0, 4)) else draw(texts)
        )
        valid = {"role": draw(st.sampled_from(("user", "user", "system", "assistant"))), "content": content}
        return changed(draw, valid) if not draw(st.integers(0, 3)) else valid

    found = [message() for _ in range(draw(st.integers(0, 2)))]
    return found if draw(st.integers(0, 9)) else draw(odd)


LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
numbers = st.sampled_from((28, 56, 280, 3136, 50_176)) | st.integers(-5, 10**6) | odd


# ---- tables

COLUMNS = ("id", "title", "class_name", "language", "country")
CASTS = ("category", "string", "Int64", "float64", "datetime64[ns]", "bool")


@st.composite
def tables(draw) -> pd.DataFrame:
    """Rows of a table, as pandas hands them out."""
    count = draw(st.integers(1, 3))
    columns = {name: [f"{name} {i}" for i in range(count)] for name in COLUMNS}
    columns["attributes"] = draw(st.lists(attributes, min_size=count, max_size=count))
    for name in draw(st.lists(st.sampled_from(sorted(columns)), max_size=2)):
        columns[name][draw(st.integers(0, count - 1))] = draw(st.none() | st.just(float("nan")) | odd)
    frame = pd.DataFrame({name: pd.Series(own, dtype=object) for name, own in columns.items()})
    for name in draw(st.lists(st.sampled_from(COLUMNS), max_size=1)):
        try:
            frame[name] = frame[name].astype(draw(st.sampled_from(CASTS)))
        except Exception:  # pandas raises many kinds; such a table cannot be had
            continue
    return frame


# ---- query files

RECORD = json.loads(LINE)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
ids = st.sampled_from((1, 2, 3, "1", "2", 1.0, 9, "9", None, True, "\u0661", 10**400))


@st.composite
def lines(draw) -> bytes:
    """A file of queries."""
    records = []
    for _ in range(draw(st.integers(1, 3))):
        record = RECORD | {"score": 1}
        what = draw(st.sampled_from(("as it was", "a field", "a field", "conditions", "ids")))
        if what == "a field":
            record = changed(draw, record, json_values, most=1)
        if what == "conditions":
            keys = st.sampled_from(("1", "2", "9", ""))
            record["query"] = RECORD["query"] | draw(st.dictionaries(keys, json_values, max_size=2))
        if what == "ids":
            record[draw(st.sampled_from(("pos_candidate", "hard_negative")))] = draw(
                st.lists(ids, max_size=3)
            )
        records.append(json.dumps(record, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    content = draw(st.sampled_from((b"\n", b"\r\n", b"\n\n"))).join(records)
    if not draw(st.integers(0, 2)):
        content = damaged(content, draw(CHANGES))
    if draw(st.integers(0, 9)):
        return draw(st.sampled_from((b"", b"\xef\xbb\xbf"))) + content
    return content.decode("utf-8", "replace").encode(draw(st.sampled_from(("utf-16", "utf-32", "utf-16-be"))))


# ---- parquet files

KINDS_OF_TEXT = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.binary(),
)
KINDS_OF_NUMBER = (
    pa.int64(),
    pa.int32(),
    pa.uint64(),
    pa.float64(),
    pa.decimal128(10, 1),
    pa.bool_(),
    pa.string(),
)
STRUCTS = (
    {"bytes": pa.binary(), "path": pa.string()},
    {"path": pa.string(), "bytes": pa.large_binary()},
    {"bytes": pa.binary()},
    {"path": pa.string()},
    {"bytes": pa.list_(pa.uint8()), "path": pa.int64()},
)
ATTRIBUTES: tuple[tuple[pa.DataType, list], ...] = (
    (
        pa.struct({"color": pa.string(), "size": pa.list_(pa.string())}),
        [{"color": "red", "size": ["M"]}, None],
    ),
    (pa.map_(pa.string(), pa.list_(pa.string())), [[("color", ["red"])], [("a", None), ("a", ["b"])], []]),
    (
        pa.list_(pa.struct({"key": pa.string(), "value": pa.string()})),
        [[{"key": "a", "value": "b"}], [None], []],
    ),
    (pa.string(), ['{"color": "red"}', "{}", "[", "null", "3", '{"a": {"b": 1}}', '{"a": 1, "a": 2}', None]),
    (pa.list_(pa.string()), [["a"], [], None]),
    (pa.int64(), [3, None]),
    (pa.timestamp("ns"), [2**62, None]),
)
plain_texts = texts.filter(lambda text: not {"\ud83d"} & set(text))
image_bytes = st.just(JPEG) | encoded


def array(draw: Callable, values: st.SearchStrategy, count: int, *kinds: pa.DataType) -> pa.Array:
    """So many values as one of the kinds that can hold them."""
    own = draw(st.lists(values, min_size=count, max_size=count))
    for kind in (draw(st.sampled_from(kinds)), kinds[0]):
        try:
            return pa.array(own, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
    return pa.nulls(count)


@st.composite
def parquets(draw) -> bytes:
    """A parquet file of products."""
    count = draw(st.integers(1, 4))
    valid = [{"bytes": JPEG, "path": None}] * count
    arrays = {"idx": pa.array(range(count)), "image": pa.array(valid), "more": pa.nulls(count)}
    arrays |= {name: pa.array([name] * count) for name in ("title", "class", "country", "language")}
    arrays["attribute"] = pa.array(['{"color": "red"}'] * count)
    for name in draw(st.lists(st.sampled_from(sorted(arrays)), max_size=3, unique=True)):
        if name == "idx":
            arrays[name] = array(draw, st.integers(0, 9), count, *KINDS_OF_NUMBER)
        elif name == "image" and draw(st.booleans()):
            arrays[name] = array(draw, image_bytes, count, pa.binary(), pa.large_binary(), pa.binary_view())
        elif name == "image":
            path = st.none() | st.sampled_from(ADDRESSES[:20])
            both = st.fixed_dictionaries({"bytes": image_bytes | st.none(), "path": path})
            arrays[name] = array(draw, both, count, pa.struct(draw(st.sampled_from(STRUCTS))))
        elif name == "attribute":
            kind, values = draw(st.sampled_from(ATTRIBUTES))
            arrays[name] = array(draw, st.sampled_from(values), count, kind)
        elif draw(st.integers(0, 5)):
            arrays[name] = array(draw, plain_texts, count, *KINDS_OF_TEXT)
        else:
            del arrays[name]
    return written(draw, pa.table(arrays))


def written(draw: Callable, table: pa.Table) -> bytes:
    options = {
        "row_group_size": draw(st.sampled_from((1, 2, 64))),
        "compression": draw(st.sampled_from(("none", "snappy", "zstd", "gzip"))),
        "use_dictionary": draw(st.booleans()),
        "store_schema": draw(st.booleans()),
        "data_page_version": draw(st.sampled_from(("1.0", "2.0"))),
    }
    file = io.BytesIO()
    try:
        parquet.write_table(table, file, **options)
    except pa.ArrowException:  # a type that parquet cannot hold
        return b"PAR1"
    return file.getvalue() if draw(st.integers(0, 2)) else damaged(file.getvalue(), draw(CHANGES))
