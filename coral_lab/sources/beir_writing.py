"""Writing a dataset as a BEIR folder, and its judgements in TREC's format."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from coral_lab.errors import ItemError
from coral_lab.images import FORMATS, digest, open_image
from coral_lab.query import Dataset, Product, Query, name_of
from coral_lab.sources.beir import CORPUS, HEADER, QUERIES, check_split
from coral_lab.sources.border import brief
from coral_lab.sources.files import fresh_file, output_folder
from coral_lab.sources.instructions import instruction


def write_beir(dataset: Dataset, folder: str | Path, split: str = "test") -> None:
    """Write a dataset as a BEIR folder, which `read_beir` and `cl.dataset` read as the same dataset.

    Pictures are written one at a time: bytes and files as they are, what is drawn as PNG, equal ones once.
    Qrels hold every grade of a judged query, of others 1 for a positive and 0 for a hard negative. Traits are
    not written, and no query's parent is. A folder holds one split: another one written there
    replaces its corpus and queries. Raises ItemError for what these files cannot hold: an id
    that stands twice or has a tab, a quotation mark or control characters, an answer that is named twice or
    has no grade where others of its query have, a picture that cannot be opened; ValueError for a split that
    is no file's name.
    """
    check_split(split)
    folder = output_folder(Path(folder).expanduser())
    pictures = _Pictures(output_folder(folder / "images"))
    shown: dict[str, str | None] = {}
    with fresh_file(folder / CORPUS) as corpus:
        for product in tqdm(dataset.products, desc="BEIR corpus", unit="product", disable=None):
            _check_id(product.id, name_of(product), shown)
            record = _product_record(product, pictures)
            shown[product.id] = record.get("image")
            corpus.write(_line(record))
    with fresh_file(folder / QUERIES) as queries:
        asked: dict[str, None] = {}
        for query in dataset.queries:
            _check_id(query.id, name_of(query), asked)
            asked[query.id] = None
            queries.write(_line(_query_record(query, split, dataset.by_id, shown, pictures)))
    with fresh_file(output_folder(folder / "qrels") / f"{split}.tsv") as qrels:
        qrels.write(f"{HEADER}\n".encode())
        for query_id, id, score in _judgements(dataset):
            qrels.write(f"{query_id}\t{id}\t{score}\n".encode())


def write_qrels(dataset: Dataset, file: str | Path) -> None:
    """The judgements in TREC's format, `query 0 product relevance`: grades, or 1 for a positive and 0 for a
    hard negative where a query has none.

    It goes with `Result.write_trec` into trec_eval, whose nDCG takes a grade itself for its gain, and not
    2^grade - 1; `read_qrels` reads it. Raises ItemError for an id with white space or control characters, one
    that stands twice, and an answer that is named twice or has no grade where others of its query have.
    """
    seen: dict[str, None] = {}
    for query in dataset.queries:
        _check_id(query.id, name_of(query), seen)
        seen[query.id] = None
    with fresh_file(file) as handle:
        for query_id, id, score in _judgements(dataset):
            for own in (query_id, id):
                if any(map(str.isspace, own)):
                    raise ItemError(f"id {own!r}", "has white space, which TREC's files cannot; rename it")
            handle.write(f"{query_id} 0 {id} {score}\n".encode())


def _judgements(dataset: Dataset) -> Iterator[tuple[str, str, int]]:
    for query in dataset.queries:
        seen: dict[str, None] = {}
        for id, score in _scores(query):
            _check_id(id, f"{name_of(query)}, answer {brief(id)}", seen)
            seen[id] = None
            yield query.id, id, score


def _scores(query: Query) -> Iterator[tuple[str, int]]:
    """Products and their scores: positives first and hard negatives next, as they are read again."""
    for ids, score in ((query.positives, 1), (query.hard_negatives, 0)):
        for id in ids:
            if query.relevance and id not in query.relevance:
                item = f"{name_of(query)}, answer {brief(id)}"
                raise ItemError(item, "has no grade, and others of its query have; grade all or none")
            yield id, query.relevance.get(id, score)
    answers = {*query.positives, *query.hard_negatives}
    yield from ((id, grade) for id, grade in query.relevance.items() if id not in answers)


def _check_id(id: str, item: str, seen: Mapping[str, object]) -> None:
    if not id.isprintable() or id.startswith('"'):
        problem = "its id has control characters, or begins with a quotation mark; rename it"
        raise ItemError(item, problem)
    if id in seen:
        raise ItemError(item, "its id stands twice; keep one")


def _line(record: dict) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"


@dataclass(frozen=True)
class _Pictures:
    """The folder of pictures, and the names of those that are in it."""

    folder: Path
    written: set[str] = field(default_factory=set)

    def write(self, product: Product) -> str | None:
        """The picture's path inside the dataset's folder. Raises ItemError if it cannot be opened."""
        if product.image is None:
            return None
        content, kind = _content(product)
        name = f"{digest([content])}.{kind}"
        if name not in self.written:
            with fresh_file(self.folder / name) as file:
                file.write(content)
            self.written.add(name)
        return f"{self.folder.name}/{name}"


def _content(product: Product) -> tuple[bytes, str]:
    """The bytes of a product's picture as it came, or as PNG if it is in memory, and what they are."""
    picture, name = product.image, name_of(product)
    picture = picture() if callable(picture) else picture
    assert picture is not None
    opened = open_image(picture, name)
    if isinstance(picture, str) and not picture.startswith("data:"):
        picture = Path(picture.removeprefix("file://"))
    content = picture.read_bytes() if isinstance(picture, Path) else picture
    if isinstance(content, bytes):
        kind = Image.open(io.BytesIO(content), formats=FORMATS).format or "PNG"
        return content, kind.lower()
    file = io.BytesIO()
    opened.save(file, "PNG")
    return file.getvalue(), "png"


def _product_record(product: Product, pictures: _Pictures) -> dict:
    known = {
        "class": product.class_name,
        "language": product.language,
        "country": product.country,
        "attributes": {key: list(values) for key, values in product.attributes.items()},
    }
    record = {"_id": product.id, "title": product.title, "text": "", "metadata": known}
    shown = pictures.write(product)
    return record | ({"image": shown} if shown else {})


def _query_record(
    query: Query,
    split: str,
    pool: Mapping[str, Product],
    shown: Mapping[str, str | None],
    pictures: _Pictures,
) -> dict:
    """A query's line. A reference is named by its id, and told in full where the pool has another or none."""
    conditions: list[dict[str, Any]] = []
    images: list[str] = []
    for condition in query.conditions:
        reference = condition.product
        asked: dict[str, Any] = {
            "attribute": condition.attribute,
            "value": condition.value,
            "product": reference.id,
        }
        image = shown.get(reference.id)
        if not _same(reference, pool.get(reference.id)):
            own = _product_record(reference, pictures)
            asked["product"], image = own, own.get("image")
        conditions.append(asked)
        images += [image] if image else []
    known: dict[str, Any] = {"split": split, "class": query.class_name, "language": query.language}
    known |= {"text": query.text, "conditions": conditions}
    if query.relevance:  # which of the graded are positives, qrels do not say
        own = {"positives": query.positives, "hard_negatives": query.hard_negatives}
        known["judged"] = {name: list(ids) for name, ids in own.items()}
    text = instruction(query) if query.class_name or query.conditions else query.text
    return {"_id": query.id, "text": text, "images": images, "metadata": known}


def _same(a: Product, b: Product | None) -> bool:
    if b is None or a is b:
        return b is not None
    facts = [(p.id, p.title, p.class_name, p.language, p.country, list(p.attributes.items())) for p in (a, b)]
    alike = a.image is b.image or (type(a.image) is type(b.image) and a.image == b.image)
    return facts[0] == facts[1] and alike
