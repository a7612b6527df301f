"""MERIT (arXiv 2506.03144): its products and queries, from the hub, a download, or a folder of the same
files.

`data/{split}-*.parquet` hold the products (idx, image, title, class, country, language, attribute), and
`queries-{split}.json` one query a line, of a judged set with its grades. Pictures stay in their files until
they are looked at. What the files say is not trusted: paths lead nowhere outside the folder, addresses are
not fetched unless that is allowed, and whatever cannot be right is an error that names file, line and field.
"""

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from coral_lab.errors import ItemError, one_line
from coral_lab.query import Condition, Dataset, Product, Query, Traits
from coral_lab.sources.border import attributes_of, brief, grades_of, text_of
from coral_lab.sources.files import check_own_file
from coral_lab.sources.hub import download
from coral_lab.sources.instructions import read_instruction
from coral_lab.sources.parquet_pictures import KeptGroups, PictureFile, StoredPicture

HUB = "WeiChow/merit"
SPLITS = ("train", "test")

TRAITS = Traits(
    visual=("color", "pattern", "pattern/print", "shape", "style", "product style"),
    languages=("en", "id", "ms", "th", "vi"),
    held_back={
        "language": ("th", "ms", "id"),
        "class": ("drink", "table", "phone"),
        "attribute": ("brand", "pattern/print", "region of origin", "pattern", "origin"),
    },
)
"""`held_back` is the authors' own; the last two attributes are what MERIT-mini's files call them. Which
attributes are visual MERIT does not say: these are taken to be.
"""


def merit(
    source: str | Path = HUB,
    split: str = "test",
    *,
    revision: str | None = None,
    offline: bool = False,
    on_error: str = "raise",
    remote_images: bool = False,
) -> Dataset:
    """All products of a split, which are the candidate pool, and its queries.

    `source` is a hub repository or a folder with its files, downloaded or written by `coral-lab data`.
    `on_error` "skip" leaves out what cannot be used and lists it in `Dataset.skipped`. `remote_images` lets
    pictures be fetched from http(s) addresses. Raises HubError, FileNotFoundError, and ItemError naming file,
    line and field; ValueError for unknown arguments.
    """
    if split not in SPLITS or on_error not in ("raise", "skip"):
        asked = f"split is {brief(split)} and on_error {brief(on_error)}"
        raise ValueError(f"{asked}; use train or test, raise or skip")
    folder = _folder(source)
    if folder is None:
        if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)):
            problem = f"{brief(str(source))} is no folder and no hub id (owner/name) such as {HUB}"
            raise FileNotFoundError(f"{problem}; check the spelling")
        folder = download(str(source), files(split), kind="dataset", revision=revision, offline=offline)
    skipped: list[ItemError] = []
    refuse = _raise if on_error == "raise" else skipped.append
    products = tuple(read_products(folder, split, refuse, remote_images))
    pool = Dataset(f"{source}/{split}", products, ())
    queries = tuple(read_queries(folder / f"queries-{split}.json", pool, split, refuse))
    return Dataset(pool.name, products, queries, tuple(skipped), TRAITS)


def _folder(source: str | Path) -> Path | None:
    try:
        folder = Path(source).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # a name that is too long, a user that there is not
        return None


def files(split: str) -> list[str]:
    """Patterns of a split's files."""
    return [f"data/{split}-*.parquet", f"queries-{split}.json"]


def _raise(error: ItemError) -> None:
    raise error


def read_products(
    folder: Path, split: str, refuse: Callable[[ItemError], None] = _raise, remote_images: bool = False
) -> Iterator[Product]:
    """The products of a split, in the order of its files; each that cannot be used is given to `refuse`.

    Raises FileNotFoundError without files, ItemError for a file that is none of MERIT's.
    """
    found = sorted((folder / "data").glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}-*.parquet"))
    if not found:
        way = f"download {HUB} or write MERIT-mini with `coral-lab data`"
        raise FileNotFoundError(one_line(f"{folder / 'data'} has no {split}-*.parquet; {way}"))
    known: set[str] = set()
    kept = KeptGroups()
    for file in found:
        check_own_file(file, folder)
        pictures = PictureFile(file, folder, remote_images, kept)
        for number, row in enumerate(pictures.rows()):
            try:
                product = _product(row, pictures.picture(number))
                if product.id in known:
                    raise ItemError(product.id, f"idx {product.id} was there before; ids must be distinct")
            except ItemError as error:
                refuse(ItemError(f"{file}, row {number}", error.problem))
            else:
                known.add(product.id)
                yield product


def _product(row: dict | ItemError, picture: StoredPicture) -> Product:
    if isinstance(row, ItemError):
        raise row
    if (id := _id(row["idx"])) is None:
        raise ItemError("idx", f"field 'idx' is {brief(row['idx'])}; it must be a number")
    for key in ("title", "class", "language"):
        if row[key] is None:
            raise ItemError(id, f"field {key!r} is None; it must be text")
    title, class_name, country, language = (
        text_of(row[key], id, key) for key in ("title", "class", "country", "language")
    )
    attributes = attributes_of(_mapping(row["attribute"]), id, "attribute")
    # "vn" as the card's front matter writes it
    own = "vi" if language == "vn" else language
    return Product(id, title, picture, class_name, own, country, attributes)


def _mapping(value: object) -> object:
    """`{key: value or values}` of a struct, a map, a list of keys and values, or JSON."""
    if isinstance(value, str):
        value = _json(value, "attribute")
    if isinstance(value, list) and all(isinstance(own, dict) and own.keys() == PAIR for own in value):
        value = [(own["key"], own["value"]) for own in value]
    if isinstance(value, list) and all(isinstance(own, tuple) and len(own) == 2 for own in value):
        value = _distinct(value)
    return value


LONGEST_LINE = 2**24
"""Bytes of a query's line."""

PAIR = {"key", "value"}


def read_queries(
    file: Path, pool: Dataset, split: str = "test", refuse: Callable[[ItemError], None] = _raise
) -> Iterator[Query]:
    """The queries of a json-lines file over the products of `pool`; each that cannot be used is given to
    `refuse`.

    Raises FileNotFoundError if there is no such file, ItemError for one that is none.
    """
    if not file.exists():
        problem = f"{file} is missing; it holds the queries of split {split}, one JSON object a line"
        raise FileNotFoundError(one_line(problem))
    check_own_file(file, file.parent)
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), 1):
            if len(line) > LONGEST_LINE:
                problem = f"has more than {LONGEST_LINE:,} bytes; a query takes some thousand"
                raise ItemError(f"{file}, line {number}", problem)
            if not line.strip():
                continue
            try:
                query = _query(line, f"merit-{split}-{number - 1:06d}", pool)
            except ItemError as error:
                refuse(ItemError(f"{file}, line {number}", error.problem))
            else:
                yield query


def _query(line: bytes, id: str, pool: Dataset) -> Query:
    record = _record(line, id)
    for key in ("query", "pos_candidate", "query instruction"):
        if key not in record:
            raise ItemError(id, f"field {key!r} is missing; it has {', '.join(map(brief, record)) or 'none'}")
    conditions = tuple(_conditions(record["query"], id, pool))
    words = text_of(record["query instruction"], id, "query instruction")
    try:
        class_name, titles, rest = read_instruction(words, conditions)
    except ValueError as error:
        raise ItemError(id, f"field 'query instruction': {error}") from None
    # What was asked is what the instruction says, should it word a title differently from the product.
    said = tuple(
        condition
        if condition.product.title == title
        else replace(condition, product=replace(condition.product, title=title))
        for condition, title in zip(conditions, titles, strict=True)
    )
    positives = _ids(record["pos_candidate"], id, "pos_candidate", pool)
    if not positives:
        raise ItemError(id, "field 'pos_candidate' is empty; a query needs a right answer")
    hard = _ids(record.get("hard_negative", []), id, "hard_negative", pool)
    relevance = _grades(record.get("relevance", {}), id, pool)
    return Query(id, class_name, said, rest, positives, hard, relevance=relevance)


def _record(line: bytes, id: str) -> dict:
    """A line's fields, without those that are null."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ItemError(id, "the file is UTF-16 or UTF-32; write it as UTF-8")
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8")  # some tools begin a file so
    except UnicodeDecodeError as error:
        raise ItemError(id, f"it is no UTF-8 ({error}); write the file as UTF-8") from None
    record = _json(text, "the line")
    if not isinstance(record, dict):
        raise ItemError(id, f"it is {brief(record)}; a query is a JSON object")
    return {key: value for key, value in record.items() if value is not None}


def _conditions(wanted: object, id: str, pool: Dataset) -> Iterator[Condition]:
    if not isinstance(wanted, dict) or not wanted:
        raise ItemError(
            id, f"field 'query' is {brief(wanted)}; it maps reference ids to {{attribute: value}}"
        )
    for reference, asked in wanted.items():
        if asked is None:  # as parquet and pandas write the keys of other rows
            continue
        if isinstance(asked, dict):
            asked = {attribute: value for attribute, value in asked.items() if value is not None}
        if not isinstance(asked, dict) or len(asked) != 1:
            problem = (
                f"field 'query', {brief(reference)} is {brief(asked)}; it must be one {{attribute: value}}"
            )
            raise ItemError(id, problem)
        ((attribute, value),) = asked.items()
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        attribute, value = text_of(attribute, id, "query"), text_of(value, id, "query")
        yield Condition(attribute, _known(reference, id, "query", pool), value)


def _ids(values: object, id: str, name: str, pool: Dataset) -> tuple[str, ...]:
    own = [_id(value) for value in values] if isinstance(values, list) else [None]
    if None in own:
        raise ItemError(id, f"field {name!r} is {brief(values)}; it must be a list of product ids")
    ids = tuple(_known(value, id, name, pool).id for value in own if value is not None)
    if len(set(ids)) < len(ids):
        raise ItemError(id, f"field {name!r} names a product twice: {brief(values)}")
    return ids


def _grades(values: object, id: str, pool: Dataset) -> dict[str, int]:
    """What `writing.py` adds to MERIT's fields: the grades of judged products."""
    if isinstance(values, dict):  # parquet and pandas write the keys of other rows, as None
        values = {own: grade for own, grade in values.items() if grade is not None}
    found = grades_of(values, id)
    return {_known(own, id, "relevance", pool).id: grade for own, grade in found.items()}


def _known(own: str, id: str, name: str, pool: Dataset) -> Product:
    try:
        return pool.product(own)
    except KeyError:
        problem = f"names product {brief(own)}, which is not among the {len(pool.products):,}"
        raise ItemError(id, f"field {name!r} {problem}") from None


def _id(value: object) -> str | None:
    """A product's id as text; None for what is none. A table with gaps makes floats of whole numbers; those
    from 2**53 on may have lost their last digits.
    """
    if isinstance(value, float) and abs(value) >= 2**53:
        return None
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value, "id", "id") or None if isinstance(value, str) else None


def _json(text: str, name: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
    except RecursionError:
        raise ItemError(name, f"{name} is nested too deeply to be one of MERIT's") from None
    except ItemError:
        raise
    except ValueError as error:
        raise ItemError(name, f"{name} is no JSON ({one_line(str(error), 100)})") from None


def _no_number(constant: str) -> None:
    raise ValueError(f"it has {constant}")


def _distinct(pairs: Sequence[tuple[str, object]]) -> dict:
    """An object; a key that comes twice would silently lose a condition."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ItemError("object", f"key {brief(twice)} comes twice; keep one")
    return found
