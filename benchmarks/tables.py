"""A table of a million products, parquet and CSV: what it takes to open it, and to search it in a store.

python benchmarks/tables.py [FOLDER] [ROWS]    writes table and store into FOLDER, if they are not there

Vectors have 64 dimensions and come from words, so that no model is needed. Each figure is of a process of its
own; memory is over what its imports take.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from table import keep, megabytes, row

import coral_lab as cl
from coral_lab import Query, Settings
from coral_lab.models.protocol import Conversation
from coral_lab.sources import lazy_products, tables  # noqa: F401, imported before memory is looked at
from coral_lab.store.store import Store, open_store

ROWS, DIM, PORTION, SEARCHES, LOOKS = 1_000_000, 64, 50_000, 100, 1000
WORDS = [
    "red",
    "blue",
    "green",
    "black",
    "white",
    "oak",
    "beech",
    "steel",
    "glass",
    "linen",
    "cotton",
    "leather",
    "small",
    "large",
    "low",
    "high",
    "round",
    "square",
    "modern",
    "classic",
    "soft",
    "firm",
    "light",
    "dark",
    "folding",
    "stacking",
    "outdoor",
    "indoor",
    "plain",
    "striped",
]
CLASSES = [
    "chair",
    "table",
    "lamp",
    "bag",
    "shoe",
    "sofa",
    "shelf",
    "mirror",
    "clock",
    "rug",
    "bed",
    "desk",
    "vase",
    "bowl",
    "coat",
    "hat",
]

BOUNDS = {
    "parquet: s to open": "≤ 10",
    "parquet: peak over the imports, MB": "≤ 1000",
    "table, store and 100 exact searches: peak over the imports, MB": "≤ 1000",
}


class Words:
    """The mean of random vectors of the words that are said."""

    name, dim, fingerprint = "words", DIM, "1"

    def embed(self, conversations: Sequence[Conversation]) -> np.ndarray:
        return np.stack([np.sum([_vector(word) for word in own.text.split()], 0) for own in conversations])


@cache
def _of_word(word: str) -> np.ndarray:
    return np.random.default_rng(crc32(word.encode())).standard_normal(DIM).astype(np.float32)


def _vector(word: str) -> np.ndarray:
    """Numbers are many, and made of their figures."""
    return (
        np.sum([_of_word(f"{i} {own}") for i, own in enumerate(word)], 0)
        if word.isdigit()
        else _of_word(word)
    )


def write_tables(folder: Path, rows: int) -> None:
    """A table of ten columns, of which two descriptions and prices are no attributes."""
    random = np.random.default_rng(0)
    words, classes = np.array(WORDS, object), np.array(CLASSES, object)
    said = [words[random.integers(0, len(words), rows)] for _ in range(4)]
    kinds, numbers = (
        classes[random.integers(0, len(classes), rows)],
        np.arange(rows).astype(str).astype(object),
    )
    frame = pd.DataFrame({"sku": "s" + numbers, "product_name": said[0] + " " + said[1] + " " + kinds})
    frame["product_name"] += " with " + said[2] + " " + said[3] + " parts, no. " + numbers
    frame["category"], frame["language"] = kinds, np.where(np.arange(rows) % 2, "en", "de")
    frame["color"], frame["material"] = said[0], said[1]
    frame["brand"] = "brand " + numbers[random.integers(0, min(rows, 5000), rows)]
    frame["price"] = random.integers(100, 99_999, rows) / 100
    frame["sizes"] = random.choice(np.array(["S", "S|M", "M|L|XL", ""], object), rows)
    frame["description"] = "A thing for the home, made to last and to be mended, described at length. " * 2
    frame.to_parquet(folder / "shop.parquet", index=False)
    frame.to_csv(folder / "shop.csv", index=False)


def fill(folder: Path) -> dict[str, list[float]]:
    """The table's products into a store, a portion at a time; goes on where it was killed."""
    products = cl.dataset(folder / "shop.parquet").products
    store = open_store(folder / "store", Words())
    if len(store) == len(products):
        return {}
    started, before = time.perf_counter(), megabytes("VmHWM")
    for start in range(len(store) // PORTION * PORTION, len(products), PORTION):
        store.add(products[start : start + PORTION], Settings(batch_size=1024, progress=False))
    seconds = time.perf_counter() - started
    store.make_index() if len(products) >= 100_000 else None
    return {
        "into the store, products a second": [len(products) / seconds],
        "into the store: peak over the imports, MB": [megabytes("VmHWM") - before],
    }


def opened(file: Path) -> dict[str, list[float]]:
    """Seconds and memory to open a table, and seconds to look at one of its products."""
    imports, started = megabytes("VmHWM"), time.perf_counter()
    shop = cl.dataset(file)
    seconds, places = (
        time.perf_counter() - started,
        np.random.default_rng(1).integers(0, len(shop.products), LOOKS),
    )
    peak, name = megabytes("VmHWM") - imports, file.suffix[1:]
    started = time.perf_counter()
    for place in places.tolist():
        shop.products[place]
    looked = time.perf_counter() - started
    return {
        f"{name}: rows": [len(shop.products)],
        f"{name}: s to open": [seconds],
        f"{name}: peak over the imports, MB": [peak],
        f"{name}: imports, MB": [imports],
        f"{name}: ms to look at a product anywhere": [1000 * looked / LOOKS],
    }


def searched(folder: Path) -> dict[str, list[float]]:
    """The table opened, its store opened, and searched; each hit is looked up in the table."""
    imports, started = megabytes("VmHWM"), time.perf_counter()
    shop = cl.dataset(folder / "shop.parquet")
    store: Store = open_store(folder / "store", Words())
    assert len(store) == len(shop.products)
    ready = time.perf_counter() - started
    exact = [_search(shop, store, number, approximate=False) for number in range(SEARCHES)]
    found = {
        "table and store: s to open": [ready],
        "exact search of the store, s": exact,
        "table, store and 100 exact searches: peak over the imports, MB": [megabytes("VmHWM") - imports],
    }
    if len(store) >= 100_000:
        near = [_search(shop, store, number, approximate=True) for number in range(SEARCHES)]
        found["approximate search of the store, s"] = near
    return found


def _search(shop: cl.Dataset, store: Store, number: int, *, approximate: bool) -> float:
    random = np.random.default_rng(number)
    text = " ".join([*random.choice(WORDS, 2), random.choice(CLASSES)])
    started = time.perf_counter()
    hits = store.search(Query(f"q{number}", "", text=text), 10, approximate=approximate)
    seconds = time.perf_counter() - started
    assert [shop.product(hit.product.id).title for hit in hits] == [hit.product.title for hit in hits]
    return seconds


def _apart(*command: str) -> dict[str, list[float]]:
    done = subprocess.run([sys.executable, __file__, *command], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def measured(folder: Path, rows: int) -> dict[str, list[float]]:
    """All figures."""
    if not (folder / "shop.csv").is_file():
        write_tables(folder, rows)
    found = _apart("--opened", str(folder / "shop.parquet")) | _apart("--opened", str(folder / "shop.csv"))
    return found | _apart("--fill", str(folder)) | _apart("--searched", str(folder))


if __name__ == "__main__":
    parts = {"--opened": opened, "--fill": fill, "--searched": searched}
    if sys.argv[1:] and sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]](Path(sys.argv[2]))))
    else:
        rows = int(sys.argv[2]) if len(sys.argv) > 2 else ROWS
        with tempfile.TemporaryDirectory() as made:
            folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(made)
            folder.mkdir(parents=True, exist_ok=True)
            found = measured(folder, rows)
        table = [row(name, values, BOUNDS.get(name, "")) for name, values in found.items()]
        print(
            keep("tables", table).to_string(index=False) if rows == ROWS else pd.DataFrame(table).to_string()
        )
