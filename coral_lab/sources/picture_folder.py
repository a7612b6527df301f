"""A folder of pictures as products: names of files become titles, names of folders classes.

chairs/red-chair_01.jpg → id "chairs/red-chair_01.jpg", title "red chair 01", class "chairs"
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from coral_lab.errors import ItemError, one_line
from coral_lab.images import FORMATS
from coral_lab.query import Dataset, Product
from coral_lab.sources.border import brief, text_of
from coral_lab.sources.columns import SUFFIXES
from coral_lab.sources.files import check_own_file

log = logging.getLogger(__name__)

UNREAD = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".raw")
"""How pictures end that are not read."""


def is_picture_folder(source: str | Path) -> bool:
    """Whether a source is a folder that holds pictures, and no files of MERIT's."""
    try:
        folder = Path(source).expanduser()
        if not folder.is_dir() or any(folder.glob("queries-*.json")) or any(folder.glob("*.parquet")):
            return False
        if any((folder / "data").glob("*.parquet")):
            return False
        return any(file.suffix.lower() in SUFFIXES for file in _files(folder))
    except (OSError, RuntimeError, ValueError):  # a name that is too long, a user that there is not
        return False


def read_pictures(folder: str | Path, *, on_error: str = "raise") -> Dataset:
    """The pictures of a folder and of those below it as products, in the order of their paths.

    A product's id is its path in the folder, its class the folder that it lies in, if that is below. Files
    whose names begin with a dot are none of one's own and left; how many others are no pictures is in the
    log. Pictures are opened when they are looked at. `on_error` "skip" leaves out what cannot be used and
    lists it in `Dataset.skipped`. Raises ItemError for links that lead out of the folder, names that are no
    UTF-8 and formats that are not read; FileNotFoundError without a picture, ValueError for arguments.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {brief(on_error)}; use raise or skip")
    home = Path(folder).expanduser()
    found = list(_files(home))
    pictures = [file for file in found if file.suffix.lower() in SUFFIXES + UNREAD]
    if not pictures:
        raise FileNotFoundError(one_line(f"{home} holds no pictures; it should have {', '.join(SUFFIXES)}"))
    products: list[Product] = []
    skipped: list[ItemError] = []
    for file in pictures:
        try:
            products.append(_product(file, home))
        except ItemError as error:
            if on_error == "raise":
                raise
            skipped.append(error)
    others = len(found) - len(pictures)
    log.info("%s: title ← names of files, class_name ← folders; %d files are no pictures", home, others)
    return Dataset(str(folder), tuple(products), (), tuple(skipped))


def _files(folder: Path) -> Iterator[Path]:
    """All files in order, those of hidden folders and behind links to folders left."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(own for own in folders if not own.startswith("."))
        yield from (Path(place) / own for own in sorted(names) if not own.startswith("."))


def _product(file: Path, home: Path) -> Product:
    inside = file.relative_to(home)
    at = brief(str(file))
    if file.suffix.lower() in UNREAD:
        raise ItemError(at, f"is no {', '.join(FORMATS)}; convert it")
    id = text_of(inside.as_posix(), at, "name")
    check_own_file(file, home)
    if not file.exists():
        raise ItemError(at, "is a link to nothing; put the file itself there")
    class_name = text_of(inside.parent.name, at, "folder")
    return Product(id, title_of(file.stem), file, class_name)


def title_of(stem: str) -> str:
    """A file's name as a title: its words with one space between."""
    return " ".join(re.sub(r"[_\s-]+", " ", stem).split())
