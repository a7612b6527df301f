"""BEIR's folders (arXiv 2104.08663) for products and queries with pictures.

    corpus.jsonl       a product a line: _id, title, text, image, metadata
    queries.jsonl      a query a line: _id, text, images, metadata
    qrels/test.tsv     query-id, corpus-id, score: 1 for a right answer, 0 for a hard negative, or a grade
    images/            the pictures, named after their content

`_id`, `title`, `text` and the judgements are what any tool for BEIR reads; `metadata` holds what else is
known, so that nothing is lost. A folder that somebody else made has none of it: its titles and texts are the
products' titles, its texts the queries'. What the files say is not trusted: no path leads out of the folder.
`beir_writing.py` writes them. TREC's judgements, which are lines of the same kind, are read here too.
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from coral_lab.errors import ItemError, one_line
from coral_lab.query import Condition, Dataset, Product, Query, name_of
from coral_lab.sources.border import HIGHEST_GRADE, attributes_of, brief, text_of
from coral_lab.sources.files import check_own_file
from coral_lab.sources.merit_files import LONGEST_LINE

CORPUS, QUERIES, HEADER = "corpus.jsonl", "queries.jsonl", "query-id\tcorpus-id\tscore"

Judged = dict[str, dict[str, int]]
"""Of each query its products in order, and their scores."""

Refuse = Callable[[ItemError], None]


def is_beir(source: str | Path) -> bool:
    """Whether a source is a folder that holds a corpus and queries as BEIR names them."""
    try:
        folder = Path(source).expanduser()
        return (folder / CORPUS).exists() and (folder / QUERIES).exists()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, a user that there is not
        return False


def check_split(split: str) -> None:
    """Raises ValueError for a split that is no file's name."""
    if not isinstance(split, str) or not re.fullmatch(r"\w[\w.-]{0,99}", split):
        raise ValueError(f"split is {brief(split)}; give the name of a file in qrels, such as test")


def read_beir(folder: str | Path, split: str = "test", *, on_error: str = "raise") -> Dataset:
    """The products and queries of a BEIR folder: the queries that its qrels of a split judge.

    A product with a score of 1 or more is a positive, as mteb has it, any other a hard negative. Where a
    score of the split is above 1, scores are grades, and kept as `relevance` (below 0 as 0); of 0 and 1 alone
    nobody can tell whether they are. In a folder of `write_beir` `metadata` says both: which queries have
    grades, and which of their answers are positives. `text` and `images` of a query are for other tools:
    where `metadata` has its conditions, they are not read. Answers may be products that the corpus has not.
    `on_error` "skip" leaves out what cannot be used and lists it in `Dataset.skipped`. Raises
    FileNotFoundError, ItemError naming file and line, and ValueError for unknown arguments.
    """
    check_split(split)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {brief(on_error)}; use raise or skip")
    home = Path(folder).expanduser()
    skipped: list[ItemError] = []
    refuse = skipped.append if on_error == "skip" else _raise
    products = tuple(_read_products(home, refuse))
    pool = Dataset(f"{folder}/{split}", products, ())
    judged = _read_qrels(home, split, refuse)
    queries = tuple(_read_queries(home, pool, split, judged, refuse))
    return Dataset(pool.name, products, queries, tuple(skipped))


def _raise(error: ItemError) -> None:
    raise error


def _read_products(folder: Path, refuse: Refuse) -> Iterator[Product]:
    known: set[str] = set()
    for at, line in _lines(folder / CORPUS, folder):
        try:
            product = _product(_record(line), folder)
            if product.id in known:
                raise ItemError(product.id, f"_id {brief(product.id)} was there before; ids must be distinct")
        except ItemError as error:
            refuse(ItemError(at, error.problem))
        else:
            known.add(product.id)
            yield product


def _read_queries(folder: Path, pool: Dataset, split: str, judged: Judged, refuse: Refuse) -> Iterator[Query]:
    known: set[str] = set()
    graded = any(score > 1 for scores in judged.values() for score in scores.values())
    for at, line in _lines(folder / QUERIES, folder):
        try:
            record = _record(line)
            id = _id(record)
            own = record["metadata"].get("split") == split
            if id not in judged and not own:  # BEIR keeps the queries of all splits in one file
                continue
            if id in known:
                raise ItemError(id, f"_id {brief(id)} was there before; ids must be distinct")
            known.add(id)
            query = _answered(_query(record, pool, folder), record, judged.get(id, {}), graded)
        except ItemError as error:
            refuse(ItemError(at, error.problem))
        else:
            yield query
    for id in (own for own in judged if own not in known):
        refuse(ItemError(f"{folder / 'qrels'}/{split}.tsv", f"query-id {brief(id)} is not in {QUERIES}"))


def _read_qrels(folder: Path, split: str, refuse: Refuse) -> Judged:
    file = folder / "qrels" / f"{split}.tsv"
    if not file.exists():
        found = ", ".join(sorted(own.stem for own in file.parent.glob("*.tsv"))[:9]) or "none"
        raise FileNotFoundError(one_line(f"{file} is missing; the splits of this folder are: {found}"))
    judged: Judged = {}
    for at, line in _lines(file, folder):
        try:
            text = _text(line)
            if not (at.endswith(", line 1") and text.split("\t")[-1] == "score"):
                _judge(judged, text.split("\t"), "query-id, corpus-id and a score, with tabs between")
        except ItemError as error:
            refuse(ItemError(at, error.problem))
    return judged


def read_qrels(file: str | Path, dataset: Dataset, least: int = 1) -> Dataset:
    """The queries of a dataset with the grades that TREC's file gives their answers (a line `query 0 product
    grade`) as `relevance`.

    Products graded `least` or better are positives, those graded 0 or below hard negatives. Judged products
    may be such as the pool has not. Queries of which nothing is as good are left out and listed in `skipped`.
    Raises FileNotFoundError, ItemError naming file and line, or a query that is not the dataset's, and
    ValueError for another `least`.
    """
    if isinstance(least, bool) or not 0 <= least <= HIGHEST_GRADE:
        raise ValueError(f"least is {brief(least)}; give a grade from 0 to {HIGHEST_GRADE}")
    place, judged = Path(file).expanduser(), Judged()
    for at, line in _lines(place, place.parent):
        try:
            _judge(judged, _text(line).split(), "query, 0, product and grade, with blanks between", 4)
        except ItemError as error:
            raise ItemError(at, error.problem) from None
    if other := sorted(judged.keys() - {query.id for query in dataset.queries}):
        raise ItemError(str(place), f"judges query {brief(other[0])}, which {dataset.name} has not; add it")
    queries = [query.judged(judged.get(query.id, {}), least) for query in dataset.queries]
    lost = tuple(
        ItemError(name_of(query), f"none of its {len(query.relevance)} judged products is graded {least}")
        for query in queries
        if not query.positives
    )
    kept = tuple(query for query in queries if query.positives)
    return replace(dataset, name=f"{dataset.name}, judged", queries=kept, skipped=lost)


def _judge(judged: Judged, fields: Sequence[str], wanted: str, count: int = 3) -> None:
    """Add the score of a line, which begins with the query's id and ends with the product's and a score."""
    try:
        score = float(fields[-1])
    except ValueError:
        score = math.nan
    if len(fields) != count or not all(fields) or not score.is_integer() or score > HIGHEST_GRADE:
        problem = f"it reads {brief(fields)}; write {wanted}, a whole number up to {HIGHEST_GRADE}"
        raise ItemError("line", problem)
    query, id = text_of(fields[0], "line", "id"), text_of(fields[-2], "line", "id")
    if id in judged.setdefault(query, {}):
        raise ItemError(id, f"corpus-id {brief(id)} is judged twice for query {brief(query)}")
    judged[query][id] = max(0, int(score))


def _lines(file: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Where each line stands and its bytes, without those that are empty. Raises FileNotFoundError, and
    ItemError for a file that is none or a line that is too long.
    """
    if not file.exists():
        problem = f"{file} is missing; a BEIR folder has {CORPUS}, {QUERIES} and qrels"
        raise FileNotFoundError(one_line(problem))
    check_own_file(file, folder)
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), 1):
            at = f"{file}, line {number}"
            if len(line) > LONGEST_LINE:
                raise ItemError(at, f"has more than {LONGEST_LINE:,} bytes; a line takes some thousand")
            if line.strip():
                yield at, line.rstrip(b"\r\n")


def _text(line: bytes) -> str:
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ItemError("line", "the file is UTF-16 or UTF-32; write it as UTF-8")
    try:
        return line.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ItemError("line", f"it is no UTF-8 ({error}); write the file as UTF-8") from None


def _record(line: bytes) -> dict:
    """A line's fields, with a mapping as its metadata."""
    text = _text(line)
    try:
        record = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ItemError("line", "it is nested too deeply to be one of BEIR's") from None
    except ItemError:
        raise
    except ValueError as error:
        raise ItemError("line", f"it is no JSON ({one_line(str(error), 100)})") from None
    if not isinstance(record, dict):
        raise ItemError("line", f"it is {brief(record)}; write a JSON object")
    return record | {"metadata": _mapping(record.get("metadata"), "metadata")}


def _mapping(value: object, name: str) -> dict:
    if value is not None and not isinstance(value, dict):
        raise ItemError("line", f"field {name!r} is {brief(value)}; it must be an object")
    return value or {}


def _distinct(pairs: Sequence[tuple[str, object]]) -> dict:
    """An object; of a key that comes twice one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ItemError("line", f"one of the keys {brief(list(found))} comes twice; keep one")
    return found


def _id(record: Mapping) -> str:
    id = record.get("_id")
    id = str(id) if isinstance(id, int) and not isinstance(id, bool) else id
    if not isinstance(id, str) or not id:
        raise ItemError("line", f"field '_id' is {brief(id)}; it must be text that is not empty")
    return text_of(id, "line", "_id")


def _product(record: Mapping, folder: Path) -> Product:
    known = _mapping(record.get("metadata"), "metadata")
    title, text = (text_of(record.get(key), "line", key) for key in ("title", "text"))
    class_name, language, country = (
        text_of(known.get(key), "line", f"metadata, {key}") for key in ("class", "language", "country")
    )
    attributes = attributes_of(known.get("attributes"), "line", "metadata, attributes")
    said = f"{title} {text}" if title and text else title or text
    image = _picture(record.get("image"), folder)
    return Product(_id(record), said, image, class_name, language, country, attributes)


def _picture(address: object, folder: Path) -> Path | None:
    """A picture's file inside the folder. Raises ItemError for one that leads out of it, or is missing."""
    if address is None:
        return None
    way = "give the path of a file in the folder, as images/1.png"
    if not isinstance(address, str) or not address or "\\" in address or ":" in address or "\0" in address:
        raise ItemError("line", f"field 'image' is {brief(address)}; {way}")
    inside = PurePosixPath(address)
    if inside.is_absolute() or ".." in inside.parts:
        raise ItemError("line", f"field 'image' leads to {brief(address)}, out of the folder; {way}")
    file = folder / inside
    try:
        check_own_file(file, folder)
        found = file.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a link to itself
        raise ItemError("line", f"field 'image' is {brief(address)}, no path ({error}); {way}") from None
    if not found:
        raise ItemError("line", f"field 'image' is {brief(address)}, which does not exist; {way}")
    return file


def _query(record: Mapping, pool: Dataset, folder: Path) -> Query:
    """A query without its answers."""
    known, id = record["metadata"], _id(record)
    text = text_of(record.get("text"), "line", "text")
    if "conditions" not in known:
        return Query(id, "", text=text)
    class_name, language, rest = (
        text_of(known.get(key), "line", f"metadata, {key}") for key in ("class", "language", "text")
    )
    conditions = tuple(_conditions(known["conditions"], pool, folder))
    return Query(id, class_name, conditions, rest, language=language)


def _answered(query: Query, record: Mapping, scores: Mapping[str, int], graded: bool) -> Query:
    """The query with its answers; `graded` says that the split's scores are grades."""
    known, judged = record["metadata"], query.judged(scores)
    if "conditions" not in known:  # somebody else's
        return judged if graded else replace(judged, relevance={})
    if "judged" not in known:
        return replace(judged, relevance={})
    answers = _mapping(known["judged"], "metadata, judged")
    positives, hard = (_scored(answers, name, scores) for name in ("positives", "hard_negatives"))
    return replace(judged, positives=positives, hard_negatives=hard)


def _scored(answers: Mapping, name: str, scores: Mapping[str, int]) -> tuple[str, ...]:
    ids = answers.get(name)
    if not isinstance(ids, list) or not all(isinstance(id, str) and id in scores for id in ids):
        problem = f"field 'metadata, judged, {name}' is {brief(ids)}; it must list products of qrels"
        raise ItemError("line", problem)
    return tuple(ids)


def _conditions(asked: object, pool: Dataset, folder: Path) -> Iterator[Condition]:
    if not isinstance(asked, list) or not all(isinstance(own, dict) for own in asked):
        raise ItemError(
            "line", f"field 'metadata, conditions' is {brief(asked)}; it must be a list of objects"
        )
    for own in asked:
        attribute, value = (text_of(own.get(key), "line", key) for key in ("attribute", "value"))
        reference = own.get("product")
        if isinstance(reference, dict):
            yield Condition(attribute, _product(reference, folder), value)
            continue
        found = pool.by_id.get(reference) if isinstance(reference, str) else None
        if found is None:
            problem = f"product {brief(reference)} of a condition is not in {CORPUS}; tell it in full"
            raise ItemError("line", problem)
        yield Condition(attribute, found, value)
