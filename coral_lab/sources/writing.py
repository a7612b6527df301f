"""Writing a dataset in MERIT's file formats."""

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from coral_lab.errors import ItemError
from coral_lab.query import Dataset, Product, Query, name_of
from coral_lab.sources.border import brief
from coral_lab.sources.files import fresh_file, output_folder, write_text
from coral_lab.sources.instructions import instruction

BATCH = 256
"""Products whose pictures are in memory at a time: a row group of a file."""


def write_merit(dataset: Dataset, folder: str | Path, split: str, limit: int | None = None) -> None:
    """Write a dataset in MERIT's file formats, so that what reads one reads the other.

    `data/{split}-00000-of-00001.parquet` holds the products, with JPEG pictures as `datasets` stores them and
    the attributes as a JSON string; `queries-{split}.json` one query a line, with a key "relevance" of our
    own where it has grades, `{"id": grade}`, which other readers pass over. With `limit`, only the first so
    many queries, and the products that they name. Pictures are opened and written in batches. Raises
    ItemError for what these formats cannot hold: ids that are no whole numbers, a product without a picture,
    two conditions on one product.
    """
    folder = output_folder(Path(folder).expanduser())
    output_folder(folder / "data")
    queries, products = dataset.queries, dataset.products
    if limit is not None:
        queries = queries[:limit]
        mentioned = {id for query in queries for id in _mentioned(query)}
        products = [product for product in products if product.id in mentioned]
    write_products(folder / "data" / f"{split}-00000-of-00001.parquet", products, f"{split} products")
    write_queries(folder / f"queries-{split}.json", queries)


def write_queries(path: Path, queries: Sequence[Query]) -> None:
    """Write queries as MERIT's json lines. Raises ItemError as `write_merit` does."""
    lines = (json.dumps(_query_record(query), ensure_ascii=False) + "\n" for query in queries)
    write_text(path, "".join(lines))


def _mentioned(query: Query) -> Iterator[str]:
    yield from (product.id for product in query.references)
    yield from query.positives
    yield from query.hard_negatives
    yield from query.relevance


def _query_record(query: Query) -> dict:
    """One line of MERIT's query files."""
    name = name_of(query)
    wanted = {condition.product.id: {condition.attribute: condition.value} for condition in query.conditions}
    if len(wanted) < len(query.conditions):
        raise ItemError(name, "has two conditions on one product, and MERIT's files hold one; leave it out")
    record = {
        "query": wanted,
        "pos_candidate": [_number(id, name) for id in query.positives],
        "hard_negative": [_number(id, name) for id in query.hard_negatives],
        "query instruction": instruction(query),
    }
    grades = {str(_number(id, name)): grade for id, grade in query.relevance.items()}
    return record | ({"relevance": grades} if grades else {})


def _number(id: str, item: str) -> int:
    if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", id) or not -(2**63) <= int(id) < 2**63:
        problem = f"id {brief(id)} is no whole number of 64 bits, as MERIT's are; number the products"
        raise ItemError(item, problem)
    return int(id)


def write_products(path: Path, products: Sequence[Product], says: str, mapped: Callable = map) -> None:
    """Write products as one of MERIT's parquet files; `says` is what its progress is called.

    `mapped` is what applies a function to batches in their order: `map`, or that of several processes.
    Raises ItemError as `write_merit` does.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema()
    with (
        fresh_file(path) as file,
        parquet.ParquetWriter(file, schema) as writer,
        tqdm(total=len(products), desc=says, unit="product") as progress,
    ):
        starts = range(0, len(products), BATCH)
        for rows in mapped(_product_records, [products[start : start + BATCH] for start in starts]):
            writer.write_table(pa.Table.from_pylist(rows, schema))
            progress.update(len(rows))


def _schema():
    import pyarrow as pa

    text = pa.string()
    fields = {"idx": pa.int64(), "image": pa.struct({"bytes": pa.binary(), "path": text})}
    fields |= {key: text for key in ("title", "class", "country", "language", "attribute")}
    # `datasets` reads this note and hands out pictures instead of bytes.
    kinds = {key: {"dtype": str(kind), "_type": "Value"} for key, kind in fields.items()}
    note = {"info": {"features": kinds | {"image": {"_type": "Image"}}}}
    return pa.schema(list(fields.items()), metadata={"huggingface": json.dumps(note)})


def _product_records(products: Sequence[Product]) -> list[dict]:
    return [_product_record(product) for product in products]


def _product_record(product: Product) -> dict:
    file = io.BytesIO()
    if (picture := product.picture) is None:
        raise ItemError(name_of(product), "has no picture, and MERIT's products all have one; leave it out")
    picture.save(file, "JPEG", quality=92)
    attributes = {
        key: values[0] if len(values) == 1 else values for key, values in product.attributes.items()
    }
    return {
        "idx": _number(product.id, name_of(product)),
        "image": {"bytes": file.getvalue(), "path": f"{product.id}.jpg"},
        "title": product.title,
        "class": product.class_name,
        "country": product.country,
        "language": product.language,
        "attribute": json.dumps(attributes, ensure_ascii=False),
    }
