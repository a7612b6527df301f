"""How much input a model needs, by dose: pictures blurred or made smaller, of a query's references or of the
whole catalogue, and the instruction said in other words.

    table = sturdiness(index(model, shop.products), shop.queries)
    compare_edits(table, "edit", AS_ASKED)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from coral_lab.errors import ItemError
from coral_lab.images import digest, identity, open_image
from coral_lab.metrics import DEPTH, MISS, recall_at
from coral_lab.prompts import Format, Part, seq
from coral_lab.query import Product, Query, name_of
from coral_lab.retrieval import Index, index
from coral_lab.sources.border import brief
from coral_lab.study.comparison import change
from coral_lab.study.edits import AS_ASKED, Edit, Edited
from coral_lab.study.sweeps import sweep

BLURS, SIZES = (0.01, 0.02, 0.04, 0.08), (0.5, 0.25, 0.125)

Change = Callable[[Product], Product]


@dataclass(frozen=True, eq=False)
class Altered:
    """A product's picture with something done to it, opened and done when it is looked at; `name` says what
    it is.
    """

    product: Product
    name: str
    alter: Callable[[Image.Image], Image.Image]

    def __call__(self) -> Image.Image:
        """Raises ItemError naming the product whose picture cannot be opened."""
        assert self.product.image is not None
        return self.alter(open_image(self.product.image, name_of(self.product)))

    @property
    def identity(self) -> str:
        """By the picture's own and the name, without opening it."""
        assert self.product.image is not None
        return digest([self.name, identity(self.product.image, name_of(self.product))])


def blurred(share: float) -> Change:
    """A product's picture blurred by a Gaussian whose radius is this share of its shorter side. Raises
    ValueError for a share that is not above 0 and at most 1.
    """

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))

    return _changing("blur", share, blur)


def shrunk(share: float) -> Change:
    """A product's picture made smaller, its sides this share of what they were; a pixel at least. A model
    that enlarges small pictures sees it enlarged. Raises ValueError as `blurred` does.
    """

    def shrink(image: Image.Image) -> Image.Image:
        width, height = (max(1, round(side * share)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)

    return _changing("size", share, shrink)


def _changing(what: str, share: float, alter: Callable[[Image.Image], Image.Image]) -> Change:
    if not 0 < share <= 1:
        raise ValueError(f"share is {brief(share)}; give a number above 0 and at most 1, of a picture's side")

    def changed(product: Product) -> Product:
        """A product without a picture stays as it is."""
        if product.image is None:
            return product
        return replace(product, image=Altered(product, f"{what} {share}", alter))

    return changed


CHANGES: Mapping[str, Change] = MappingProxyType(
    {f"blur {share:.0%}": blurred(share) for share in BLURS}
    | {f"size {share:.3g}": shrunk(share) for share in SIZES}
)
"""Doses of what is done to pictures: a blur in hundredths of the shorter side, a size as a share of both."""


def references(name: str, how: Change) -> Edit:
    """The query with each of its references changed."""

    def edit(query: Query) -> Iterator[Edited]:
        conditions = tuple(replace(c, product=how(c.product)) for c in query.conditions)
        yield f"references {name}", query.edited(conditions=conditions)

    return edit


def paraphrase(find: str, first: str, following: str) -> Format:
    """The card's format with its sentence said otherwise, in English: `find` has a slot {class}, `first`
    (before the first reference) and `following` (before each other one) one for {attribute}. It raises
    ItemError for a query in another language.
    """
    anything = find.format(**{"class": "product"})
    sentence = {"find": find, "anything": anything, "first": first, "next": following}

    def format(query: Query) -> Iterator[Part]:
        if query.language != "en":
            problem = f"its language is {brief(query.language)}, and paraphrases are in English"
            raise ItemError(name_of(query), f"{problem}; ask query.edited(language='en')")
        yield from seq(query, sentence)

    return format


WORDINGS: Mapping[str, Format] = MappingProxyType(
    {
        "show me": paraphrase(
            "Show me a {class}", " with the same {attribute} as ", " and the same {attribute} as "
        ),
        "looking for": paraphrase(
            "I am looking for a {class}",
            " whose {attribute} is that of ",
            " and whose {attribute} is that of ",
        ),
        "which": paraphrase(
            "Which {class}", " has the same {attribute} as ", " and the same {attribute} as "
        ),
        "search": paraphrase(
            "Search for a product of {class}",
            " that shares its {attribute} with ",
            " and its {attribute} with ",
        ),
        "retrieve": paraphrase(
            "Retrieve an item of type {class}", " matching the {attribute} of ", " and the {attribute} of "
        ),
        "attributes unsaid": paraphrase("Find a product of {class}", " like ", " and like "),
    }
)
"""Five sentences that ask what the card's asks, and last, as a control, one that does not say which attribute
is meant.
"""


def sturdiness(
    pool: Index,
    queries: Sequence[Query],
    changes: Mapping[str, Change] = CHANGES,
    wordings: Mapping[str, Format] = WORDINGS,
) -> pd.DataFrame:
    """Queries as asked, with references changed, in other words, and over a catalogue changed: `sweep`'s
    rows, one a query and edit, for `comparison.compare_edits`.

    Edits are "references NAME" and "catalogue NAME" by `changes`, and "words NAME" by `wordings`. The pool is
    encoded once for each change. Raises ValueError for a pool that is not in the card's format, and for
    settings that skip, for then edits would be compared on different queries.
    """
    if pool.format != "seq" or pool.settings.on_error != "raise":
        raise ValueError("the pool's format is not 'seq', or its on_error not 'raise'; paraphrases need both")
    edits = [references(name, how) for name, how in changes.items()]
    tables = [sweep(pool, queries, edits)]
    for name, wording in wordings.items():
        tables.append(_as_edit(sweep(pool, queries, formats={name: wording}), f"words {name}"))
    for name, how in changes.items():
        other = index(pool.model, [how(product) for product in pool.products], settings=pool.settings)
        tables.append(_as_edit(sweep(other, queries), f"catalogue {name}"))
    return pd.concat(tables, ignore_index=True)


def edit_names(
    changes: Mapping[str, Change] = CHANGES, wordings: Mapping[str, Format] = WORDINGS
) -> tuple[str, ...]:
    """The edits of `sturdiness` in their order, the query as asked first."""
    shown = (f"references {name}" for name in changes), (f"catalogue {name}" for name in changes)
    return AS_ASKED, *shown[0], *(f"words {name}" for name in wordings), *shown[1]


def edit_row(table: pd.DataFrame, edit: str) -> tuple[dict[str, float], pd.Series]:
    """R@1 of one edit in a table of `sturdiness`, with its change against the query as asked, paired; and
    each query's rank (-1 beyond 10). Raises ValueError for an edit that was not tried.
    """
    if edit not in (known := pd.unique(table["edit"])):
        raise ValueError(f"edit is {brief(edit)}; use one of {', '.join(known)}")
    ranks = table.pivot(index="query", columns="edit", values="rank").loc[pd.unique(table["query"])]
    own, asked = (recall_at(np.where(ranks[name] > 0, ranks[name], MISS), 1) for name in (edit, AS_ASKED))
    found = ranks[edit].where(ranks[edit].between(1, DEPTH), MISS)
    return {"R@1": float(own.mean())} | change(own, asked), found


def _as_edit(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table["edit"] == AS_ASKED].assign(edit=name)
