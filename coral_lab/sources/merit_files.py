"""MERIT (arXiv 2506.03144): its products and queries, from the hub, a download, or a folder of the same
files.

`data/{split}-*.parquet` hold the products (idx, image, title, class, country, language, attribute), and
`queries-{split}.json` one query a line. Pictures stay in their files until they are looked at. What the files
say is not trusted: paths lead nowhere outside the folder, addresses are not fetched unless that is allowed,
and whatever cannot be right is an error that names file, line and field.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coral_lab.errors import ItemError
from coral_lab.query import Condition, Dataset, Product, Query, Traits, text_of
from coral_lab.sources.hub import download
from coral_lab.sources.instructions import read_instruction
from coral_lab.sources.parquet_pictures import PictureFile, StoredPicture

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
        raise ValueError(f"split is {split!r} and on_error {on_error!r}; use train or test, raise or skip")
    folder = Path(source)
    if not folder.is_dir():
        if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)):
            raise FileNotFoundError(
                f"{str(source)!r} is no folder and no hub id (owner/name) such as {HUB}; check the spelling"
            )
        folder = download(str(source), files(split), kind="dataset", revision=revision, offline=offline)
    skipped: list[ItemError] = []
    refuse = _raise if on_error == "raise" else skipped.append
    products = tuple(read_products(folder, split, refuse, remote_images))
    pool = Dataset(f"{source}/{split}", products, ())
    queries = tuple(read_queries(folder / f"queries-{split}.json", pool, split, refuse))
    return Dataset(pool.name, products, queries, tuple(skipped), TRAITS)


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
        raise FileNotFoundError(
            f"{folder / 'data'} has no {split}-*.parquet; download {HUB} or write MERIT-mini with "
            "`coral-lab data`"
        )
    known: set[str] = set()
    for file in found:
        pictures = PictureFile(file, folder, remote_images)
        for number, row in enumerate(pictures.rows()):
            at = f"{file}, row {number}"
            try:
                product = _product(row, at, pictures.picture(number))
                if product.id in known:
                    raise ItemError(at, f"idx {product.id} was there before; ids must be distinct")
            except ItemError as error:
                refuse(error)
            else:
                known.add(product.id)
                yield product


def _product(row: Mapping, at: str, picture: StoredPicture) -> Product:
    if not _is_id(row["idx"]):
        raise ItemError(at, f"field 'idx' is {row['idx']!r}; it must be a number")
    texts = {key: _text(row[key], at, key) for key in ("title", "class", "country", "language")}
    language = (
        "vi" if texts["language"] == "vn" else texts["language"]
    )  # as the card's front matter writes it
    return Product(
        str(row["idx"]),
        texts["title"],
        picture,
        texts["class"],
        language,
        texts["country"],
        _attributes(row["attribute"], at),
    )


def _attributes(value, at: str) -> dict[str, tuple[str, ...]]:
    """`{key: value or [values]}`, as a struct or as JSON; a struct has all keys of its file, most of them
    null.
    """
    if isinstance(value, str):
        value = _json(value, at, "attribute")
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ItemError(at, f"field 'attribute' is {_brief(value)}; it must map keys to values")
    found = {key: [own] if isinstance(own, str) else own for key, own in value.items() if own is not None}
    for key, own in found.items():
        if not isinstance(own, list) or not all(isinstance(word, str) for word in own):
            raise ItemError(
                at, f"field 'attribute', {key!r} is {_brief(own)}; it must be text or a list of texts"
            )
    return {
        _text(key, at, "attribute"): tuple(_text(word, at, "attribute") for word in own)
        for key, own in found.items()
    }


def read_queries(
    file: Path, pool: Dataset, split: str = "test", refuse: Callable[[ItemError], None] = _raise
) -> Iterator[Query]:
    """The queries of a json-lines file over the products of `pool`; each that cannot be used is given to
    `refuse`.

    Raises FileNotFoundError if there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing; it holds the queries of split {split}, one JSON object a line"
        )
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _query(line, f"{file}, line {number}", f"merit-{split}-{number - 1:06d}", pool)
                except ItemError as error:
                    refuse(error)


def _query(line: bytes, at: str, id: str, pool: Dataset) -> Query:
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")  # some tools begin a file so
    except UnicodeDecodeError as error:
        raise ItemError(at, f"it is no UTF-8 ({error})") from None
    record = _json(text, at, "the line")
    if not isinstance(record, dict):
        raise ItemError(at, f"it is {_brief(record)}; a query is a JSON object")
    for key in ("query", "pos_candidate", "query instruction"):
        if key not in record:
            raise ItemError(at, f"field {key!r} is missing; it has {', '.join(map(repr, record)) or 'none'}")
    conditions = tuple(_conditions(record["query"], at, pool))
    words = _text(record["query instruction"], at, "query instruction")
    try:
        class_name, titles, rest = read_instruction(words, conditions)
    except ValueError as error:
        raise ItemError(at, f"field 'query instruction': {error}") from None
    # What was asked is what the instruction says, should it word a title differently from the product.
    said = tuple(
        condition
        if condition.product.title == title
        else replace(condition, product=replace(condition.product, title=title))
        for condition, title in zip(conditions, titles, strict=True)
    )
    positives = _ids(record["pos_candidate"], at, "pos_candidate", pool)
    if not positives:
        raise ItemError(at, "field 'pos_candidate' is empty; a query needs a right answer")
    hard = _ids(record.get("hard_negative") or [], at, "hard_negative", pool)
    return Query(id, class_name, said, rest, positives, hard)


def _conditions(wanted, at: str, pool: Dataset) -> Iterator[Condition]:
    if not isinstance(wanted, dict) or not wanted:
        raise ItemError(
            at, f"field 'query' is {_brief(wanted)}; it maps reference ids to {{attribute: value}}"
        )
    for id, asked in wanted.items():
        if asked is None:  # as parquet and pandas write the keys of other rows
            continue
        if isinstance(asked, dict):
            asked = {attribute: value for attribute, value in asked.items() if value is not None}
        if not isinstance(asked, dict) or len(asked) != 1:
            raise ItemError(
                at, f"field 'query', {id!r} is {_brief(asked)}; it must be one {{attribute: value}}"
            )
        ((attribute, value),) = asked.items()
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        yield Condition(
            _text(attribute, at, "query"), _known(id, at, "query", pool), _text(value, at, "query")
        )


def _ids(values, at: str, name: str, pool: Dataset) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(_is_id(value) for value in values):
        raise ItemError(at, f"field {name!r} is {_brief(values)}; it must be a list of product ids")
    ids = tuple(_known(str(value), at, name, pool).id for value in values)
    if len(set(ids)) < len(ids):
        raise ItemError(at, f"field {name!r} names a product twice: {_brief(values)}")
    return ids


def _known(id: str, at: str, name: str, pool: Dataset) -> Product:
    if id not in pool.by_id:
        raise ItemError(
            at, f"field {name!r} names product {id[:80]!r}, which is not among the {len(pool.products):,}"
        )
    return pool.by_id[id]


def _is_id(value) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and bool(value)
    )


def _json(text: str, at: str, name: str):
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ItemError(at, f"{name} is nested too deeply to be one of MERIT's") from None
    except ValueError as error:
        raise ItemError(at, f"{name} is no JSON ({error})") from None


def _distinct(pairs: Sequence[tuple[str, object]]) -> dict:
    """A JSON object; a key that comes twice would silently lose a condition."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} comes twice")
    return found


def _text(value, at: str, name: str) -> str:
    if value is None and name != "country":
        raise ItemError(at, f"field {name!r} is None; it must be text")
    return text_of(value, at, name)


def _brief(value) -> str:
    """The value for an error, cut short: a data file may hold anything."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
