"""MERIT-mini: a rendered catalogue with the structure of MERIT (arXiv 2506.03144), made from a seed.

Nothing is stored: `catalogue()` makes facts, titles and queries in about a second, and a product's
picture is drawn when it is asked for. Titles are in `titles.py`, queries in `queries.py`, pictures
in `drawing.py`, and the words and colours in `data/cards.json`.
"""

from collections.abc import Sequence
from functools import cache
from random import Random

from coral_lab.mini.cards import cards
from coral_lab.mini.drawing import Drawing
from coral_lab.mini.queries import LISTING_ATTRIBUTES, VARIANT_ATTRIBUTES, Lookup, sample_queries, stated
from coral_lab.mini.titles import ATTRIBUTES, TEXTUAL, VISUAL, retitle, shown, title
from coral_lab.prompts import LANGUAGES
from coral_lab.query import Dataset, Product, Traits

TRAITS = Traits(
    visual=VISUAL,
    textual=TEXTUAL,
    languages=LANGUAGES,
    held_back={
        "language": ("th", "ms", "id"),
        "class": ("drink", "table", "phone"),
        "attribute": ("brand", "pattern", "origin"),
    },
    stated=stated,
    shown=shown,
    retitle=retitle,
)
"""As MERIT's authors hold values back, in the words of these cards."""

# split: (first digit of the ids, products, queries); the digit keeps ids of splits apart
SIZES = {"train": (1, 15_000, 40_000), "test": (2, 3_000, 2_000), "val": (3, 1_500, 500)}
NAMES = ("mini",)
FEWEST = 200  # products; among fewer, some queries have no reference that is no answer too


@cache
def catalogue(name: str = "mini", split: str = "test", seed: int = 0) -> Dataset:
    """The rendered catalogue's products and queries of one split: "train", "test" or "val".

    Train has 15,000 products and 40,000 queries, test 3,000 and 2,000, val 1,500 and 500. Equal
    arguments give the same object. Raises ValueError for an unknown name or split.
    """
    if name not in NAMES:
        raise ValueError(f"catalogue {name!r} is not known; the names are {', '.join(NAMES)}")
    if split not in SIZES:
        raise ValueError(f"split {split!r} of {name!r} is not known; the splits are {', '.join(SIZES)}")
    digit, product_count, query_count = SIZES[split]
    ids = [str(digit * 1_000_000 + number) for number in range(product_count)]
    return drawn(f"{name}/{split}", ids, query_count, seed)


def drawn(name: str, ids: Sequence[str], queries: int, seed: int = 0) -> Dataset:
    """A catalogue of any size: a product for each id, and so many queries over them. `name` is
    "mini/test", say.

    Equal arguments give an equal catalogue. Raises ValueError for fewer ids than queries can be asked about.
    """
    if len(ids) < FEWEST:
        raise ValueError(f"{name} would have {len(ids)} products; queries need at least {FEWEST}")
    products, listings = _products(ids, Random(f"{name}/{seed}/products"))
    rng = Random(f"{name}/{seed}/queries")
    asked = sample_queries(Lookup(products, listings), queries, name.replace("/", "-"), rng)
    return Dataset(name, products, asked, traits=TRAITS)


def _products(ids: Sequence[str], rng: Random) -> tuple[tuple[Product, ...], list[int]]:
    """A product for each id, and the number of the listing that each belongs to."""
    products: list[Product] = []
    listings: list[int] = []
    number = 0
    while len(products) < len(ids):
        class_name, variants = _listing(rng)
        for facts in variants[: len(ids) - len(products)]:
            products.append(_product(ids[len(products)], class_name, facts, rng))
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
