"""Writing files: whole or not at all, and never through a link.

What is written goes to a new file of a name that nobody can guess, which is then moved into place: a kill
leaves the old file or the new one, and a link that somebody left there is no way to another file.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from coral_lab.errors import ItemError, one_line

if TYPE_CHECKING:
    import pandas as pd

_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR
_MORE = os.O_CREAT | os.O_APPEND | os.O_WRONLY
_OWN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def fresh_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, and is gone if it fails.

    Its mode is as the umask says. Raises ValueError for a link, and for what is no regular file.
    """
    path = Path(path)
    check_target(path)
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(part, _NEW | _OWN, 0o666), "w+b") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text as UTF-8. Raises ValueError as `fresh_file` does."""
    with fresh_file(path) as file:
        file.write(text.encode("utf-8"))


def append_text(path: str | os.PathLike, text: str) -> None:
    """Add a text at the end of a file that was written before. Raises ValueError as `fresh_file` does."""
    check_target(Path(path))
    with os.fdopen(os.open(path, _MORE | _OWN, 0o666), "ab") as file:  # no link that came since is followed
        file.write(text.encode("utf-8"))


def check_target(path: Path) -> None:
    """Whether a file may be written there, or read again. Raises ValueError for a link, and for what is no
    regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise ValueError(one_line(f"{path} is a link, which is not followed; remove it, or name another"))
    if not stat.S_ISREG(mode):
        raise ValueError(one_line(f"{path} is no regular file and cannot be written; name another"))


def output_folder(path: str | os.PathLike) -> Path:
    """A folder to write into, made if it is not there. Raises ValueError for a link or a file."""
    folder = Path(path)
    if folder.is_symlink():
        raise ValueError(one_line(f"{folder} is a link; name the folder that it leads to, or another"))
    if folder.exists() and not folder.is_dir():
        raise ValueError(one_line(f"{folder} is a file; name a folder"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_no_links(folder: Path) -> None:
    """Raises ValueError for a link in a folder of which many files are written anew."""
    for entry in folder.iterdir():
        if entry.is_symlink():
            check_target(entry)


def leads_out(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is a link to elsewhere. The hub's cache has its files in `blobs`, and links
    to them in `snapshots/<commit>`, folders below it included.
    """
    home, target = folder.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    return not target.is_relative_to(home) and not target.is_relative_to(blobs)


def check_own_file(file: Path, folder: Path) -> None:
    """Whether a file of somebody's folder may be opened. Raises ItemError for a link that leads out of it,
    and for what is no regular file.
    """
    if leads_out(file, folder):
        raise ItemError(str(file), f"is a link that leads out of {folder}; put the file itself there")
    if file.exists() and not file.is_file():
        raise ItemError(str(file), "is no regular file; put the file itself there")


def check_can_be_written(path: Path, name: str, is_folder: bool = False) -> None:
    """Whether a path can be written, asked before anything is computed. Raises ValueError with `name`."""
    if path.is_symlink():
        way = "name the folder that it leads to, or another" if is_folder else "remove it, or name another"
        raise ValueError(f"{name} is {path}, which is a link; {way}")
    if path.exists() and path.is_dir() != is_folder:
        raise ValueError(f"{name} is {path}, which is {'no' if is_folder else 'a'} folder; name another")
    start = path.absolute() if is_folder else path.absolute().parent  # a file is made anew, in its folder
    there = next(parent for parent in (start, *start.parents) if parent.exists())
    if not there.is_dir():
        raise ValueError(f"{name} is {path}, below the file {there}; name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name} is {path}, and {there} cannot be written; name another")
    if not is_folder:
        check_target(path)


_RUN = re.compile(r"'*[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def cell(value: object) -> object:
    """A value as a CSV holds it: before a text that a spreadsheet would run goes an apostrophe."""
    if isinstance(value, str) and _RUN.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def cell_text(value: object) -> object:
    """What `cell` was given."""
    if isinstance(value, str) and value.startswith("'") and _RUN.match(value):
        return value[1:]
    return value


def csv_text(frame: "pd.DataFrame") -> str:
    """A table as CSV, without its index; `cell_text` has every cell and column's name back."""
    texts = frame.rename(columns=cell)
    for i, kind in enumerate(texts.dtypes):
        if kind.kind not in "biuf":
            texts.isetitem(i, texts.iloc[:, i].astype(object).map(cell))
    return texts.to_csv(index=False)
