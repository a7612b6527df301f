"""MERIT-mini: a rendered catalogue with the structure of MERIT (arXiv 2506.03144), made from a seed.

Nothing is stored: `catalogue()` makes facts, titles and queries in about a second, and a product's
picture is drawn when it is asked for. Titles are in `titles.py`, queries in `queries.py`, pictures
in `drawing.py`, and the words and colours in `data/cards.json`.
"""

import io
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random

from tqdm.auto import tqdm

from coral_lab.interleaved import Dataset, Product, Query
from coral_lab.mini.cards import cards
from coral_lab.mini.drawing import Drawing
from coral_lab.mini.queries import LISTING_ATTRIBUTES, VARIANT_ATTRIBUTES, Pool, sample_queries, stated
from coral_lab.mini.titles import ATTRIBUTES, LANGUAGES, TEXTUAL, VISUAL, named_in_title, retitle, title
from coral_lab.sources.instructions import instruction

__all__ = ["TEXTUAL", "VISUAL", "catalogue", "named_in_title", "retitle", "stated", "write_merit"]

# split: (first digit of the ids, products, queries); the digit keeps ids of splits apart
SPLITS = {"train": (1, 15_000, 40_000), "test": (2, 3_000, 2_000), "val": (3, 1_500, 500)}
NAMES = ("mini",)


@cache
def catalogue(name: str = "mini", split: str = "test", seed: int = 0) -> Dataset:
    """The rendered catalogue's products and queries of one split: "train", "test" or "val".

    Train has 15,000 products and 40,000 queries, test 3,000 and 2,000, val 1,500 and 500. Equal
    arguments give the same object. Raises ValueError for an unknown name or split.
    """
    if name not in NAMES:
        raise ValueError(f"catalogue {name!r} is not known; the names are {', '.join(NAMES)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} of {name!r} is not known; the splits are {', '.join(SPLITS)}")
    _, product_count, query_count = SPLITS[split]
    products, listings = _products(split, product_count, Random(f"{name}/{split}/{seed}/products"))
    rng = Random(f"{name}/{split}/{seed}/queries")
    queries = sample_queries(Pool(products, listings), query_count, f"{name}-{split}", rng)
    return Dataset(f"{name}/{split}", products, queries)


def _products(split: str, count: int, rng: Random) -> tuple[tuple[Product, ...], list[int]]:
    """`count` products, and the number of the listing that each belongs to."""
    products, listings, number = [], [], 0
    while len(products) < count:
        class_name, variants = _listing(rng)
        for facts in variants[: count - len(products)]:
            id = str(SPLITS[split][0] * 1_000_000 + len(products))
            products.append(_product(id, class_name, facts, rng))
            listings.append(number)
        number += 1
    return tuple(products), listings


def _listing(rng: Random) -> tuple[str, list[dict[str, str]]]:
    """A class and 1 to 4 variants of one listing, which differ in color, pattern, trim or size."""
    class_name = rng.choice(list(cards()["classes"]))
    base = {key: rng.choice(values) for key, values in _values(class_name).items()}
    variants = [base]
    for _ in range(rng.randrange(4)):
        changed = rng.sample(VARIANT_ATTRIBUTES, rng.choice((1, 1, 2)))
        variant = base | {key: rng.choice(_values(class_name)[key]) for key in changed}
        if variant not in variants:
            variants.append(variant)
    return class_name, variants


@cache
def _values(class_name: str) -> dict[str, list[str]]:
    """The values each attribute may take for a class."""
    card = cards()["classes"][class_name]
    own = {"shape": card["shapes"], "material": cards()["materials_of"][card["category"]]}
    return {key: own.get(key) or list(cards()[key]) for key in (*LISTING_ATTRIBUTES, *VARIANT_ATTRIBUTES)}


def _product(id: str, class_name: str, facts: dict[str, str], rng: Random) -> Product:
    language = rng.choice(LANGUAGES)
    seen = {key: facts[key] for key in VISUAL}
    return Product(
        id=id,
        title=title(id, class_name, facts, language),
        image=Drawing(class_name, **seen, seed=rng.getrandbits(32)),
        class_name=class_name,
        language=language,
        country=rng.choice(cards()["languages"][language]["countries"]),
        attributes={key: (facts[key],) for key in ATTRIBUTES},
    )


def write_merit(
    folder: str | Path, splits: Sequence[str] = ("train", "test"), limit: int | None = None, seed: int = 0
) -> None:
    """Write MERIT-mini in MERIT's file formats, so that what reads one reads the other.

    `data/{split}-00000-of-00001.parquet` holds the products, with JPEG pictures as `datasets` stores
    them and the attributes as a JSON string; `queries-{split}.json` one query a line. With `limit`,
    only the first so many queries of a split, and the products that they name. Pictures are drawn
    and written in batches. Raises ValueError for an unknown split.
    """
    folder = Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split in splits:
        shop = catalogue("mini", split, seed)
        queries, products = shop.queries, shop.products
        if limit is not None:
            queries = queries[:limit]
            mentioned = {id for query in queries for id in _mentioned(query)}
            products = [product for product in products if product.id in mentioned]
        _write_products(folder / "data" / f"{split}-00000-of-00001.parquet", products, split)
        lines = (json.dumps(_query_record(query), ensure_ascii=False) + "\n" for query in queries)
        (folder / f"queries-{split}.json").write_text("".join(lines), encoding="utf-8")


def _mentioned(query: Query) -> Iterator[str]:
    yield from (product.id for product in query.references)
    yield from query.positives
    yield from query.hard_negatives


def _query_record(query: Query) -> dict:
    """One line of MERIT's query files."""
    wanted = {condition.product.id: {condition.attribute: condition.value} for condition in query.conditions}
    return {
        "query": wanted,
        "pos_candidate": [int(id) for id in query.positives],
        "hard_negative": [int(id) for id in query.hard_negatives],
        "query instruction": instruction(query),
    }


def _write_products(path: Path, products, split: str, batch: int = 256) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema()
    with (
        parquet.ParquetWriter(path, schema) as writer,
        tqdm(total=len(products), desc=f"{split} products", unit="product") as progress,
    ):
        for start in range(0, len(products), batch):
            rows = [_product_record(product) for product in products[start : start + batch]]
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


def _product_record(product: Product) -> dict:
    file = io.BytesIO()
    product.image().save(file, "JPEG", quality=92)
    attributes = {key: values[0] for key, values in product.attributes.items()}
    return {
        "idx": int(product.id),
        "image": {"bytes": file.getvalue(), "path": f"{product.id}.jpg"},
        "title": product.title,
        "class": product.class_name,
        "country": product.country,
        "language": product.language,
        "attribute": json.dumps(attributes, ensure_ascii=False),
    }
