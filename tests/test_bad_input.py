"""Damaged files end in an ItemError or are read; never in another error, a crash, or a wait of over two
seconds.
"""

import io
import json
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coral_lab import Product
from coral_lab.errors import ItemError
from coral_lab.images import open_image
from coral_lab.query import Dataset
from coral_lab.sources.merit_files import read_queries
from tests.conftest import noise

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    noise(24, 20, seed=0).save(file, kind)
    return file.getvalue()


PICTURES = {kind: encoded(kind) for kind in FORMATS}
POOL = Dataset("pool", tuple(Product(str(i), f"t{i}", class_name="chair") for i in range(5)), ())
LINE = json.dumps(
    {
        "query": {"1": {"color": "red"}, "2": {"size": "M"}},
        "pos_candidate": [3, 4],
        "hard_negative": [0],
        "query instruction": "Find a product of chair that has the same color with <Product 1> "
        "<image>\nt1 </Product 1> "
        "and the same size with <Product 2> <image>\nt2 </Product 2> with arms.",
    }
).encode()

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("put", "cut", "insert", "repeat", "end")),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def damaged(content: bytes, changes) -> bytes:
    for kind, where, new in changes:
        at = int(where * len(content))
        match kind:
            case "put":
                content = content[:at] + new + content[at + len(new) :]
            case "cut":
                content = content[:at] + content[at + len(new) :]
            case "insert":
                content = content[:at] + new + content[at:]
            case "repeat":
                content = content[:at] + content[at : at + 40] * len(new) + content[at:]
            case "end":
                content = content[: max(at, 1)]
    return content


def examples(count):
    return settings(
        max_examples=count,
        deadline=timedelta(seconds=2),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def read_picture(kind, changes):
    try:
        image = open_image(damaged(PICTURES[kind], changes), "product x")
    except ItemError:
        return
    assert image.mode == "RGB"


def read_line(changes, file):
    content = damaged(LINE, changes)
    file.write_bytes(content)
    refused = []
    found = list(read_queries(file, POOL, "test", refused.append))
    lines = sum(1 for line in content.split(b"\n") if line.strip())
    assert len(found) + len(refused) == lines
    for query in found:
        assert query.conditions
        assert query.positives
    for error in refused:
        assert isinstance(error, ItemError)
        assert f"{file}, line " in error.item


def test_damaged_pictures():
    examples(250)(given(st.sampled_from(FORMATS), CHANGES)(read_picture))()


def test_damaged_lines(tmp_path):
    examples(250)(given(CHANGES)(lambda changes: read_line(changes, tmp_path / "queries-test.json")))()


@pytest.mark.slow
def test_five_thousand_damaged_inputs(tmp_path):
    examples(2500)(given(st.sampled_from(FORMATS), CHANGES)(read_picture))()
    examples(2500)(given(CHANGES)(lambda changes: read_line(changes, tmp_path / "queries-test.json")))()


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["query", "pos_candidate", "query instruction", "1", "color"]), inner
            )
        ),
        max_leaves=12,
    )
)
@settings(
    max_examples=150, derandomize=True, database=None, suppress_health_check=list(HealthCheck), deadline=None
)
def test_any_json_is_a_query_or_named(tmp_path_factory, value):
    file = tmp_path_factory.mktemp("any") / "queries-test.json"
    file.write_text(json.dumps(value))
    refused = []
    assert not list(read_queries(file, POOL, "test", refused.append)) or not refused
