"""A column of pictures in a table of `datasets`, opened when they are looked at: few are in memory at a time,
whatever they are made of.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

from PIL import Image

from coral_lab.errors import ItemError, require
from coral_lab.images import open_image
from coral_lab.prompts import Part
from coral_lab.query import Product, name_of

datasets: Any = require("datasets", "data")


@dataclass(eq=False)
class Shelf:
    """What the pictures of a column are of. A column holds places on a shelf; it is open while somebody has
    the shelf.
    """

    parts: list[Part]
    _last: tuple[int, Image.Image] | None = None

    def open(self, place: int) -> Image.Image:
        """The picture at a place as RGB. `datasets` asks for the first of a list twice, at once. Raises
        ItemError if it cannot be opened.
        """
        if self._last is None or self._last[0] != place:
            part: Any = self.parts[place]
            product = isinstance(part, Product)
            opened = open_image(part.image if product else part, name_of(part) if product else "picture")
            self._last = place, opened
        return self._last[1]


_SHELVES: WeakValueDictionary[str, Shelf] = WeakValueDictionary()


def shelved(found: Iterable[Part]) -> tuple[Shelf, list[str]]:
    """A shelf of products and pictures, and the value that a column has for each."""
    shelf, name = Shelf(list(found)), uuid4().hex
    _SHELVES[name] = shelf
    return shelf, [f"{name}/{place}" for place in range(len(shelf.parts))]


@dataclass
class Shown(datasets.Image):
    """The column's kind: a picture of `datasets`, with a place on a shelf as its path. Another process has
    the shelf if it was forked.
    """

    _type: str = field(default="CoralLabShown", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        """Raises ItemError for a picture that cannot be opened, or whose shelf is gone."""
        if not isinstance(value, dict):  # it is one already
            return value
        name, _, place = value["path"].partition("/")
        if name not in _SHELVES:
            raise ItemError("picture", "what it is of is not in this process; make the table here, or fork")
        return _SHELVES[name].open(int(place))


with warnings.catch_warnings():  # it says that it may change; the tests would tell
    warnings.simplefilter("ignore")
    require("datasets.features.features", "data").register_feature(Shown, "CoralLabShown")
