"""Tables as rows, a few at a time: frames, and files in CSV, TSV, JSON lines and Excel's format; parquet
files and tables of `datasets` are read by `table_columnar.py`.

Cells of CSV, TSV and JSON lines are texts as they are written there, so that 19.90 keeps its zero.
"""

import codecs
import csv
import json
import logging
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from coral_lab.errors import ItemError, one_line, require
from coral_lab.sources.border import brief
from coral_lab.sources.merit_files import LONGEST_LINE

log = logging.getLogger(__name__)

AT_ONCE = 1024
"""Rows."""

LARGEST_BOOK = 2**30
"""Bytes of an Excel file when it is unpacked."""

Rows = Iterator[tuple[str, Mapping[str, Any] | ItemError]]
"""Of each row how errors call it, and its cells by column; an error for a row that cannot be read."""


@dataclass(frozen=True)
class Table:
    """A table: its columns, and a function that begins to read its rows. `folder` is where paths in its cells
    may lead; None for what the caller made, whose paths are the caller's. `arrow` opens the rows of some
    columns in any order (`table_columnar.ArrowRows`), where that can be done.
    """

    name: str
    names: tuple[str, ...]
    rows: Callable[[], Rows]
    folder: Path | None = None
    arrow: Callable[[Sequence[str]], Any] | None = None


def opened_table(source: Any) -> Table:
    """A frame, a table of `datasets` or a file as a table, of which little is read until rows are asked for.

    Raises FileNotFoundError, ItemError for a file that is none or has a column twice, MissingExtraError, and
    ValueError for what is no table.
    """
    if isinstance(source, pd.DataFrame):
        return _frame(source)
    if isinstance(source, str | Path):
        return _file(Path(source).expanduser())
    if type(source).__module__.partition(".")[0] == "datasets" and hasattr(source, "num_rows"):
        from coral_lab.sources.table_columnar import of_datasets

        return of_datasets(source)
    kind = type(source).__name__
    raise ValueError(f"source is a {kind}; give a DataFrame, a datasets.Dataset, a file, a folder or a name")


def _file(file: Path) -> Table:
    if not file.exists():
        raise FileNotFoundError(one_line(f"{file} does not exist; check the path"))
    if not file.is_file():
        raise ItemError(str(file), "is no regular file; name the file itself")
    if file.suffix.lower() not in FILES:
        raise ItemError(str(file), f"is no table that is read; save it as one of {', '.join(FILES)}")
    return FILES[file.suffix.lower()](file)


def distinct(names: Iterable[object], table: str) -> tuple[str, ...]:
    """The columns' names as text; those without one are counted."""
    found = tuple(str(own) if str(own or "").strip() else f"unnamed {i}" for i, own in enumerate(names, 1))
    twice = [name for name, count in Counter(found).items() if count > 1]
    if not found or twice:
        problem = f"has column {brief(twice[0])} twice; rename one" if twice else "is empty; give it columns"
        raise ItemError(table, problem)
    return found


def _frame(frame: pd.DataFrame) -> Table:
    """Levels of the index that have a name are columns; of columns with several levels the names are
    joined.
    """
    levels = [i for i, name in enumerate(frame.index.names) if name is not None]
    whole = frame.reset_index(level=levels, allow_duplicates=True) if levels else frame
    joined = (" ".join(map(str, own)).strip() if isinstance(own, tuple) else own for own in whole.columns)
    names = distinct((own if own is not None else "" for own in joined), "table")
    named = whole.set_axis(list(names), axis=1)

    def rows() -> Rows:
        for start in range(0, len(named), AT_ONCE):
            records = named.iloc[start : start + AT_ONCE].to_dict("records")
            yield from ((f"table, row {start + i}", row) for i, row in enumerate(records))

    return Table("table", names, rows)


# Texts: CSV, TSV, JSON lines


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Where each line stands, and its bytes. Raises ItemError for one that is too long."""
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), 1):
            at = f"{file}, line {number}"
            if len(line) > LONGEST_LINE:
                raise ItemError(
                    at, f"has more than {LONGEST_LINE:,} bytes; split it, or keep pictures in files"
                )
            yield at, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _text(line: bytes, at: str) -> str:
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ItemError(at, "the file is UTF-16 or UTF-32; write it as UTF-8")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ItemError(at, f"it is no UTF-8 ({error}); write the file as UTF-8") from None


def _csv(file: Path) -> Table:
    separator = "\t" if file.suffix.lower() == ".tsv" else _separator(file)

    def cells() -> Iterator[tuple[str, list[str]]]:
        reader = csv.reader((_text(line, at) for at, line in _lines(file)), delimiter=separator)
        while True:
            at = f"{file}, line {reader.line_num + 1}"
            try:
                row = next(reader, None)
            except csv.Error as error:
                problem = f"cannot be read ({error}); repair the line, or keep pictures in files"
                raise ItemError(at, problem) from None
            if row is None:
                return
            if row:
                yield at, row

    header = next(cells(), ("", []))[1]
    names = distinct(header, str(file))

    def rows() -> Rows:
        for at, row in islice(cells(), 1, None):
            yield at, _by_column(names, row, at)

    return Table(str(file), names, rows, file.absolute().parent)


def _by_column(names: Sequence[str], row: Sequence[Any], at: str) -> Mapping[str, Any] | ItemError:
    if len(row) != len(names):
        return ItemError(at, f"has {len(row)} cells, and the header {len(names)}; repair the row")
    return dict(zip(names, row, strict=True))


def _separator(file: Path) -> str:
    """What stands between cells: what gives the first rows equally many, and most of them."""
    head = [_text(line, at) for at, line in islice(_lines(file), 30)]
    best, most = ",", (False, 0)
    for separator in ",;\t|":
        try:
            widths = [len(row) for row in csv.reader(head, delimiter=separator) if row]
        except csv.Error:  # reading it says where
            continue
        equal = len(set(widths[:-1] or widths)) == 1 and widths[0] > 1  # the last may go on
        if widths and (equal, widths[0]) > most:
            best, most = separator, (equal, widths[0])
    return best


def _json_lines(file: Path) -> Table:
    def rows() -> Rows:
        for at, line in _lines(file):
            if line.strip():
                try:
                    yield at, _record(_text(line, at), at)
                except ItemError as error:
                    yield at, error

    found = dict.fromkeys(key for _, row in rows() if isinstance(row, Mapping) for key in row)
    if not found:  # the first line says what is wrong
        _, error = next(rows(), ("", None))
        raise error if isinstance(error, ItemError) else ItemError(str(file), "is empty; give it columns")
    return Table(str(file), distinct(found, str(file)), rows, file.absolute().parent)


def _record(text: str, at: str) -> dict[str, Any]:
    """A line's cells; numbers as they are written."""
    way = "write one JSON object a line"
    try:
        pairs = json.loads(
            text, object_pairs_hook=_once, parse_float=str, parse_int=str, parse_constant=lambda _: None
        )
    except RecursionError:
        raise ItemError(at, f"it is nested too deeply; {way}") from None
    except ValueError as error:
        problem = error.problem if isinstance(error, ItemError) else f"it is no JSON ({error}); {way}"
        raise ItemError(at, problem) from None
    if not isinstance(pairs, dict):
        raise ItemError(at, f"it is {brief(pairs)}; {way}")
    return pairs


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ItemError("line", f"one of the keys {brief(list(found))} comes twice; keep one")
    return found


# Excel


def _excel(file: Path) -> Table:
    """The first sheet; formulas as the values that were last computed, absent if none ever was."""
    _check_unpacked(file)
    cells = _sheet(file, log.info)
    _, header = next(cells, ("", ()))
    while header and header[-1] is None:
        header = header[:-1]
    names = distinct(header, str(file))

    def rows() -> Rows:
        for at, row in islice(_sheet(file), 1, None):
            width = max((i for i, own in enumerate(row, 1) if own is not None), default=0)
            if width:
                filled = row[: max(width, len(names))] + (None,) * (len(names) - len(row))
                yield at, _by_column(names, filled, at)

    return Table(str(file), names, rows, file.absolute().parent)


def _check_unpacked(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as parts:
            size = sum(part.file_size for part in parts.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ItemError(str(file), f"is no Excel file ({error}); save it as .xlsx") from None
    if size > LARGEST_BOOK:
        problem = f"takes {size:,} bytes when unpacked, more than {LARGEST_BOOK:,}; save it as CSV"
        raise ItemError(str(file), problem)


def _sheet(file: Path, tell: Callable[..., None] | None = None) -> Iterator[tuple[str, tuple]]:
    """The first sheet's rows; `tell` is told where there are others."""
    openpyxl: Any = require("openpyxl", "data")
    book = None
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        if tell and len(book.worksheets) > 1:
            tell("%s: sheet %r is read, the first of %d", file, sheet.title, len(book.worksheets))
        sheet.reset_dimensions()  # what a file says of its size may be wrong
        for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
            yield f"{file}, row {number}", tuple(row)
    except Exception as error:  # on broken files openpyxl raises whatever it runs into
        raise ItemError(str(file), f"cannot be read ({one_line(str(error), 100)}); save it again") from None
    finally:
        if book is not None:
            book.close()


def _parquet(file: Path) -> Table:
    from coral_lab.sources.table_columnar import of_parquet

    return of_parquet(file)


FILES: Mapping[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
    ".xlsx": _excel,
    ".xlsm": _excel,
}
"""How a file ends, and what opens it."""
