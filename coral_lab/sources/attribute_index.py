"""Which products have and show which values: what queries are sampled from, a million products in memory at
once.

A value of an attribute is a number here, and a product the place of its id among all ids in order, so that
nothing depends on the order of the products.
"""

from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from coral_lab.errors import ItemError
from coral_lab.query import AS_IMAGE, Dataset, Product, all_attributes
from coral_lab.sources.border import brief, refused
from coral_lab.sources.columns import plain

Listing = str | Callable[[Product], str | None]
"""An attribute that names a product's listing, or a function that does."""

LISTINGS = (
    "parent asin; parent id; parent sku; parent product id; item group id; product group id; spu; spu id; "
    "listing; listing id; handle"
)
"""Attributes that name a listing wherever they are, the surest first; as `columns.plain` writes names."""

OF_THE_SALE = (
    "price prices cost msrp preis prix precio preço harga giá ราคา 价格 qty quantity stock inventory sku ean "
    "gtin upc barcode grams rating ratings review reviews"
)
"""Words in the names of attributes that products share by chance, with spaces between."""

NEARLY_ALL = 0.95
"""A value that this share of an attribute's products have tells nothing. An attribute is left out if this
share of its products have such a value and no other, or values that no other product has.
"""

HAS, SHOWS = 1, 2


@dataclass(frozen=True)
class _Read:
    """What one look at every product gives: which of `values` it has and which of them it shows, by rows and
    columns; `holders` counts the products of each attribute.
    """

    ids: list[str]
    classes: list[str]
    values: list[tuple[str, str]]
    holders: Mapping[str, int]
    rows: np.ndarray
    columns: np.ndarray
    shows: np.ndarray
    named: list[str | None]


@dataclass(frozen=True)
class AttributeIndex:
    """Products by the values that can be asked for: two products have them, and not nearly all.

    `places` says where in the dataset each product stands. `left_out` are the attributes that cannot be asked
    for, each with the reason; `listings` tells in words how variants of one listing are known.
    """

    places: np.ndarray
    ids: list[str]
    class_names: list[str]
    classes: np.ndarray
    values: list[tuple[str, str]]
    left_out: Mapping[str, str]
    listings: str
    _by_product: csr_matrix
    _listing: np.ndarray

    @cached_property
    def _by_value(self) -> csc_matrix:
        return self._by_product.tocsc()

    @cached_property
    def by_attribute(self) -> Mapping[str, list[int]]:
        """The values of each attribute that some product shows."""
        shown = np.bincount(self._by_product.indices[self._by_product.data == SHOWS], None, len(self.values))
        askable = np.flatnonzero(shown).tolist()
        return {key: [*own] for key, own in groupby(askable, lambda value: self.values[value][0])}

    @cached_property
    def showing_some(self) -> np.ndarray:
        """Every product that shows a value."""
        shown = self._by_product.data == SHOWS
        rows = np.repeat(np.arange(len(self.ids)), np.diff(self._by_product.indptr))
        return np.unique(rows[shown])

    @cached_property
    def variants(self) -> np.ndarray:
        """Every product that shows a value and whose listing has another product."""
        sizes = np.bincount(self._listing + 1)
        sizes[0] = 0
        return self.showing_some[sizes[self._listing[self.showing_some] + 1] > 1]

    def having(self, value: int) -> np.ndarray:
        """Every product with a value, in order."""
        table = self._by_value
        return table.indices[table.indptr[value] : table.indptr[value + 1]]

    def showing(self, value: int) -> np.ndarray:
        table = self._by_value
        return self.having(value)[table.data[table.indptr[value] : table.indptr[value + 1]] == SHOWS]

    def shown_by(self, product: int) -> list[int]:
        """The values that a product shows, in order."""
        table = self._by_product
        own = slice(table.indptr[product], table.indptr[product + 1])
        return table.indices[own][table.data[own] == SHOWS].tolist()

    def values_of(self, product: int) -> set[int]:
        table = self._by_product
        return set(table.indices[table.indptr[product] : table.indptr[product + 1]].tolist())

    def siblings(self, product: int) -> list[int]:
        """The other products of its listing."""
        order, sorted_listings = self._by_listing
        first, last = np.searchsorted(sorted_listings, self._listing[product] + np.arange(2))
        return [own for own in order[first:last].tolist() if own != product]

    @cached_property
    def _by_listing(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self._listing, kind="stable")
        return order, self._listing[order]

    def meeting(self, class_name: int, wanted: Collection[int]) -> np.ndarray:
        """Every product of the class with all wanted values, in order."""
        first, *rest = sorted(map(self.having, wanted), key=len)
        found = first[self.classes[first] == class_name]
        for own in rest:
            found = found[among(found, own)]
        return found


def among(some: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of `some` are in `known`, which is in order and not empty."""
    return known[np.searchsorted(known, some).clip(max=len(known) - 1)] == some


def attribute_index(
    dataset: Dataset, listing: Listing | None = None, attributes: Collection[str] | None = None
) -> AttributeIndex:
    """The index of a dataset's products. `attributes` are those to ask for; of the others by themselves.

    Raises ItemError for a product of two listings, ValueError for attributes that no product has.
    """
    read = _read(dataset, listing)
    for name in [*(attributes or ()), *([listing] if isinstance(listing, str) else ())]:
        if name not in read.holders:
            known = ", ".join(sorted(read.holders)) or "none"
            raise ValueError(f"no product of {dataset.name} has the attribute {brief(name)}; it has {known}")
    by, listings = _listings(read, listing)
    by_key: dict[str, list[int]] = {key: [] for key in sorted(read.holders)}
    for column, (key, _) in enumerate(read.values):
        by_key[key].append(column)
    counts = np.bincount(read.columns, minlength=len(read.values))
    left_out, askable = {}, np.zeros(len(read.values), bool)
    for key, own in by_key.items():
        if reason := _left_out(key, by, attributes) or _tells_nothing(counts[own], read.holders[key]):
            left_out[key] = reason
        else:
            askable[own] = (counts[own] > 1) & (counts[own] < NEARLY_ALL * read.holders[key])
    return _indexed(read, askable, left_out, listings)


def _read(dataset: Dataset, listing: Listing | None) -> _Read:
    ids: list[str] = []
    classes: list[str] = []
    named: list[str | None] = []
    known: dict[tuple[str, str], int] = {}
    holders: dict[str, int] = {}
    columns, shows, sizes = array("i"), array("b"), array("i")
    for id, class_name, attributes, shown, own in _facts(dataset, listing):
        ids.append(id)
        classes.append(class_name)
        named.append(own)
        before = len(columns)
        for key, texts in attributes.items():
            values = [value for value in dict.fromkeys(texts) if value and value != AS_IMAGE]
            holders[key] = holders.get(key, 0) + bool(values)
            for value in values:
                columns.append(known.setdefault((key, value), len(known)))
                shows.append(SHOWS if key in shown else HAS)
        sizes.append(len(columns) - before)
    rows = np.repeat(np.arange(len(ids)), np.array(sizes, int))
    held = {key: count for key, count in holders.items() if count}
    return _Read(ids, classes, [*known], held, rows, np.array(columns, int), np.array(shows), named)


def _facts(dataset: Dataset, listing: Listing | None) -> Iterator[tuple]:
    """Of each product the id, class, attributes, which of these it shows, and its listing by a function."""
    quick = getattr(dataset.products, "facts", None)  # of a sequence that makes products when looked at
    if quick is not None and not callable(listing) and dataset.traits.shown is all_attributes:
        yield from ((*own, own[2], None) for own in quick())  # each has a title or a picture
        return
    for product in dataset.products:
        shown = dataset.traits.shown(product) if product.title or product.image is not None else ()
        own = _named(product, listing) if callable(listing) else None
        yield product.id, product.class_name, product.attributes, shown, own


def _named(product: Product, listing: Callable[[Product], str | None]) -> str | None:
    own = listing(product)
    if own is not None and not isinstance(own, str):
        raise refused(f"product {product.id}", "listing", own, "the function must give text or None")
    return own or None


def _listings(read: _Read, listing: Listing | None) -> tuple[str, str]:
    """The attribute that names listings, which are added to `read.named`; and how that is said."""
    known = {
        name: [key for key in sorted(read.holders) if plain(key) == name] for name in LISTINGS.split("; ")
    }
    guessed = [] if listing is not None else [key for keys in known.values() for key in keys]
    for key in [listing] if isinstance(listing, str) else guessed:
        own = [column for column, (name, _) in enumerate(read.values) if name == key]
        entries = np.flatnonzero(np.isin(read.columns, own))
        rows = read.rows[entries]
        if twice := rows[1:][rows[1:] == rows[:-1]].tolist():
            if listing is None:
                continue
            problem = f"has several values of {brief(key)}, wanted one listing"
            raise ItemError(f"product {read.ids[twice[0]]}", problem)
        if len(own) < len(rows):
            for row, column in zip(rows.tolist(), read.columns[entries].tolist(), strict=True):
                read.named[row] = read.values[column][1]
            return key, f"variants have the same {key}"
    if callable(listing):
        return "", "variants are told by a function"
    why = f"no two products share {listing}" if listing else "no attribute names a listing, see listing="
    return listing or "", f"no variants: {why}"


def _left_out(key: str, listing: str, attributes: Collection[str] | None) -> str:
    """Why an attribute is not wanted, or ""."""
    if key == listing:
        return "it names the listing"
    if attributes is not None:
        return "" if key in attributes else "not wanted"
    of_the_sale = {*OF_THE_SALE.split()}.intersection(plain(key).split())
    return "by its name about the sale, see attributes=" if of_the_sale else ""


def _tells_nothing(counts: np.ndarray, holders: int) -> str:
    """Why an attribute cannot be asked for, or ""; `counts` are the products of each value."""
    if holders == 1:
        return "one product has it"
    if counts.max() == 1:
        return "different for every product"
    if (counts == 1).sum() >= NEARLY_ALL * holders:
        return "different for nearly every product"
    if len(counts) == 1:
        return "the same for every product"
    others = counts[counts < NEARLY_ALL * holders].sum()
    return "the same for nearly every product" if others <= (1 - NEARLY_ALL) * holders else ""


def _indexed(read: _Read, askable: np.ndarray, left_out: Mapping[str, str], listings: str) -> AttributeIndex:
    """The index of the askable values, with products and values in order."""
    places = np.array(sorted(range(len(read.ids)), key=read.ids.__getitem__), int)
    ranks = np.argsort(places)
    order = sorted(np.flatnonzero(askable).tolist(), key=read.values.__getitem__)
    numbers = np.zeros(len(read.values), int)
    numbers[order] = np.arange(len(order))
    kept = askable[read.columns] if len(read.columns) else np.zeros(0, bool)
    where = ranks[read.rows[kept]], numbers[read.columns[kept]]
    table = csr_matrix((read.shows[kept], where), (len(read.ids), max(1, len(order))), np.int8)
    table.sort_indices()
    class_names, classes = _codes([read.classes[place] for place in places.tolist()])
    named, listing = _codes([read.named[place] or "" for place in places.tolist()])
    return AttributeIndex(
        places,
        [read.ids[place] for place in places.tolist()],
        class_names,
        classes,
        [read.values[own] for own in order],
        left_out,
        listings,
        table,
        np.where(listing == named.index(""), -1, listing) if "" in named else listing,
    )


def _codes(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """The different texts in order, and which of them each is."""
    different = sorted(set(texts))
    numbers = {text: number for number, text in enumerate(different)}
    return different, np.array([numbers[text] for text in texts], int)
