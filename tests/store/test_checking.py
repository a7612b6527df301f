"""A store by somebody else: it is all in its folder, and holds what stores hold."""

import os
import time
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from coral_lab.errors import StoreError
from coral_lab.store import checking
from coral_lab.store.tables import MARKER, Record, Table, schema

UNIT = np.eye(4, dtype=np.float32)


@pytest.fixture
def table(tmp_path):
    found = Table(str(tmp_path / "store"), "table", 4, {"model": "toy"})
    found.commit([Record(f"k{i}", "product", str(i), "a bag") for i in range(3)], UNIT[:3])
    return found


def read_everything(table) -> list[str]:
    """What each way of reading says."""
    ways = (
        lambda: table.to_numpy(),
        lambda: table.nearest(UNIT[0], 3, "kind = 'product'"),
        lambda: list(table.batches()),
        lambda: table.to_parquet(os.path.join(table.uri, "..", "out.parquet")),
    )
    said = []
    for way in ways:
        with pytest.raises(StoreError) as caught:
            way()
        said.append(str(caught.value))
    return said


def assert_one_line(said: str) -> None:
    assert "\n" not in said
    assert len(said) <= 300


def tamper(table, **values):
    """A row of the same table by other hands."""
    row = {name: "x" for name in ("key", "kind", "id", "title", "class", "language", "country")}
    row |= {"row": "product:x", "kind": "product", "attributes": [], "thumbnail": None, "vector": UNIT[3]}
    row |= values
    row["vector"] = None if row["vector"] is None else list(row["vector"])
    own = lancedb.connect(table.uri).open_table(table.name)
    own.add(pa.Table.from_pylist([row], schema(4, table.space).remove_metadata()), on_bad_vectors="fill")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"vector": UNIT[3] * 2}, "row 'product:x' has a vector of norm 2, and it must be 1"),
        ({"vector": UNIT[3] * 0}, "has a vector of norm 0,"),
        ({"vector": UNIT[3] * 1.01}, "has a vector of norm 1.01,"),
    ],
)
def test_a_vector_that_is_no_embedding_is_refused_however_it_is_read(table, values, says):
    tamper(table, **values)
    said = read_everything(table)
    assert any(says in line for line in said)
    for line in said:
        assert f"store {table.uri!r}: " in line
        assert "of norm" in line
        assert_one_line(line)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_rows_that_are_not_finite_are_refused(value):
    rows = pa.table({"row": ["a", "b"], "vector": matrix([UNIT[0], [value, 0, 0, 0]])})
    with pytest.raises(StoreError, match=r"row 'b' has a vector of norm (nan|inf)"):
        checking.check_rows("here", rows)


def matrix(rows) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(rows, np.float32).reshape(-1)), 4)


@pytest.mark.parametrize("kind", [pa.table, lambda columns: pa.table(columns).to_batches()[0]])
@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"key": ["a", None], "vector": matrix(UNIT[:2])}, "row None has nothing for key"),
        ({"row": ["a", "b"], "title": ["t", None]}, "row 'b' has nothing for title"),
        (
            {"row": ["a", "b"], "vector": pa.array([[1, 0], None], pa.list_(pa.float32(), 2))},
            "row 'b' has no",
        ),
        ({"row": ["a"], "vector": pa.array([[1, None]], pa.list_(pa.float32(), 2))}, "row 'a' has a vector"),
        ({"row": ["a", "b"], "attributes": [["x=y"], None]}, "row 'b' has nothing for attributes"),
        ({"row": ["a"], "attributes": [["x=y", None]]}, "a row has nothing for attributes"),
    ],
)
def test_nulls_are_refused_and_named(kind, columns, says):
    with pytest.raises(StoreError, match=says):
        checking.check_rows("here", kind(columns))


def test_rows_as_they_should_be_are_read():
    rounded = UNIT * np.float32(1 + 1e-6)
    checking.check_rows(
        "here", pa.table({"row": list("abcd"), "thumbnail": [None] * 4, "vector": matrix(rounded)})
    )
    checking.check_rows("here", pa.table({"row": pa.array([], pa.string()), "vector": matrix(UNIT[:0])}))


def test_a_row_under_another_s_name_is_refused(table):
    tamper(table, id="0")
    with pytest.raises(StoreError, match="row 'product:x' is of 'product:0'"):
        table.nearest(UNIT[3], 1)


def test_a_table_that_refers_to_another_folder_is_refused(table, tmp_path):
    """LanceDB's own shallow copy: it reads the other folder's rows."""
    other = Table(str(tmp_path / "other"), "table", 4, {"model": "toy"})
    other.make_own()
    database = lancedb.connect(other.uri)
    database.drop_table("table")
    copy = database.clone_table("table", os.path.join(table.uri, "table.lance"), is_shallow=True)
    assert copy.count_rows() == 3
    for line in (*read_everything(other), said_by(lambda: len(other)), said_by(lambda: other.find(["k0"]))):
        assert "of table table refers to data outside the store; do not use it" in line
    with pytest.raises(StoreError, match="outside the store"):
        other.commit([Record("k", "product", "9")], UNIT[:1])


def said_by(way) -> str:
    with pytest.raises(StoreError) as caught:
        way()
    return str(caught.value)


def test_a_marker_that_refers_to_another_folder_is_refused(table, tmp_path):
    database = lancedb.connect(str(tmp_path / "other"))
    database.clone_table(MARKER, os.path.join(table.uri, f"{MARKER}.lance"), is_shallow=True)
    with pytest.raises(StoreError, match=f"of table {MARKER} refers to data outside the store"):
        Table(str(tmp_path / "other"), "table", 4, {})


@pytest.mark.parametrize("varint", [b"\x92\x01", b"\x92\x81\x00", b"\x92\x81\x80\x80\x00"])
def test_base_paths_are_found_however_their_number_is_written(tmp_path, varint):
    message = b"\x18\x07" + varint + b"\x02\x08\x01" + b"\x69" + bytes(8) + b"\x7d" + bytes(4)
    assert base_paths(tmp_path, message)
    inside = b"\x0a" + bytes([len(varint) + 3]) + varint + b"\x02\x08\x01"  # in another field
    assert not base_paths(tmp_path, inside)


def base_paths(folder, message: bytes) -> bool:
    file = folder / "1.manifest"
    file.write_bytes(
        b"before" + len(message).to_bytes(4, "little") + message + (6).to_bytes(8, "little") + b"\0\0\2\0LANC"
    )
    checking._has_base_paths.cache_clear()
    return checking._has_base_paths(file, 0, 0)


@pytest.mark.parametrize("rest", [b"\x92\x01\x7f", b"\x92\x01\x00\x0c", b"\x92\x01\x00\x80"])
def test_a_damaged_manifest_is_refused(table, rest):
    [*_, file] = sorted(
        (p for p in os.scandir(f"{table.uri}/table.lance/_versions") if p.name.endswith("manifest")),
        key=lambda p: p.name,
    )
    with open(file, "wb") as handle:
        handle.write(len(rest).to_bytes(4, "little") + rest + bytes(8) + b"\0\0\2\0LANC")
    assert "damaged" in said_by(lambda: len(table)) or "outside" in said_by(lambda: len(table))


@pytest.mark.parametrize("place", ["table.lance/data", "table.lance/data/x.lance", ".coral_lab.lock", "link"])
@pytest.mark.parametrize("kind", ["folder", "nowhere", "pipe"])
def test_a_link_or_a_pipe_in_a_store_is_refused(table, tmp_path, place, kind):
    path = tmp_path / "store" / place
    if path.exists():
        path.rename(tmp_path / "moved")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("moved" if kind == "folder" else "nowhere"))
    says = f"{place} is {'no file' if kind == 'pipe' else 'a link'}; a store is all in its folder"
    with pytest.raises(StoreError, match=says):
        Table(table.uri, "table", 4, {"model": "toy"})


def test_what_may_name_tables_elsewhere_is_refused(table):
    os.mkdir(f"{table.uri}/__manifest.lance")
    with pytest.raises(StoreError, match=r"__manifest\.lance may name tables elsewhere"):
        Table(table.uri, "table", 4, {"model": "toy"})


def test_notes_beside_a_field_are_refused(table):
    """Lance has columns whose content is elsewhere; a note says so."""
    database = lancedb.connect(table.uri)
    database.drop_table("table")
    fields = [
        field.with_metadata({"lance-encoding:blob": "true"} if field.name == "title" else {})
        for field in schema(4, {})
    ]
    database.create_table("table", schema=pa.schema(fields))
    with pytest.raises(StoreError, match="has other columns"):
        len(table)


def test_a_damaged_file_is_one_line(table):
    [file] = Path(table.uri, "table.lance", "data").iterdir()
    content = file.read_bytes()
    for cut in (b"", content[:100], content[: len(content) // 2], content[:-20] + bytes(20)):
        file.write_bytes(cut)
        for line in read_everything(Table(table.uri, "table", 4, {"model": "toy"})):
            assert "cannot be read" in line
            assert_one_line(line)


def test_checking_takes_no_time_to_speak_of():
    vectors = np.random.default_rng(0).standard_normal((1024, 2048)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 2048)
    rows = pa.record_batch({"row": [str(i) for i in range(1024)], "vector": flat})
    times = []
    for _ in range(5):
        started = time.process_time()
        checking.check_rows("here", rows)
        times.append(time.process_time() - started)
    assert min(times) < 0.05  # 8 MB read once: about a millisecond


def test_a_store_is_exported_through_no_link(table, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match=r"link\.parquet is a link, which is not followed"):
        table.to_parquet(tmp_path / "link.parquet")
    assert (tmp_path / "precious").read_text() == "precious"
    table.to_parquet(tmp_path / "own.parquet")
    assert parquet.read_table(tmp_path / "own.parquet")["id"].to_pylist() == ["0", "1", "2"]


class PanicException(BaseException):
    """As Rust's are called."""


@pytest.mark.parametrize(
    "error", [RuntimeError("x\ny" * 500), PanicException("index out of bounds"), KeyError("k")]
)
def test_whatever_lancedb_runs_into_is_one_line(error):
    says = r"^'here' cannot be read .*; it is damaged, make it anew$"
    with pytest.raises(StoreError, match=says) as caught, checking.readable("here"):
        raise error
    assert_one_line(str(caught.value))


def test_an_interrupt_is_no_damage():
    with pytest.raises(KeyboardInterrupt), checking.readable("here"):
        raise KeyboardInterrupt
