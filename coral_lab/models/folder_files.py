"""A checkpoint's files as they are on disk: which are read, how large they may be, that none leads out of its
folder; and the one line that refuses one.
"""

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coral_lab.errors import LONGEST, CheckpointError, one_line
from coral_lab.sources.files import leads_out

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickled weights, no code

LARGEST = {
    "tokenizer.json": 2**25,  # Qwen2.5's has 7 MB, Qwen3's 11
    "vocab.json": 2**23,
    "merges.txt": 2**23,
    "model.safetensors.index.json": 2**23,
    "chat_template.jinja": 2**16,
}
"""Bytes of a file; of others that are read, ORDINARY. Weights may have any size: headers are compared."""

ORDINARY = 2**20
READ = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *LARGEST,
)
"""What is read besides weights, by us or by transformers."""

VALUES = 2**20
"""Most values of a JSON file, and its commas and brackets: Qwen3's tokenizer has 600,000."""

DEEPEST = 64
"""How deep they may be nested."""


def refused(place: str | Path, problem: object, way: str) -> CheckpointError:
    """The error for a folder or file: where, what and the way out, on one line of at most 300 characters."""
    where = brief(place, 10_000)
    where = where if len(where) <= 90 else f"…{where[-89:]}"
    return CheckpointError(f"{where} {brief(problem, LONGEST - len(where) - len(way) - 3)}; {way}")


def brief(text: object, most: int = LONGEST) -> str:
    """A text or an error on one line of at most so many characters."""
    # of a KeyError the text is the name only
    return one_line(repr(text) if isinstance(text, LookupError) or not str(text) else str(text), most)


def few(names: Iterable[object], most: int = 3) -> str:
    """The first of some names."""
    listed = [brief(name, 70) for name in names]
    return ", ".join(listed[:most]) + (" …" if len(listed) > most else "")


def look_over(folder: Path) -> None:
    """Raises CheckpointError for a file that no one should open: a link out of the folder, a pipe, one that
    is too large, or the small text that a clone without git-lfs has in place of a large file.
    """
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern)}):
        if file.name not in READ and file.suffix != ".safetensors":
            continue
        try:
            if leads_out(file, folder):
                raise refused(file, "is a link that leads out of the folder", "put the file itself there")
            found = file.stat()
            small = stat.S_ISREG(found.st_mode) and found.st_size < 1024
            pointer = small and file.read_bytes().startswith(b"version https://git-lfs")
        except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
            problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
            raise refused(file, problem, "see to its permissions") from error
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise refused(file, "is no file but a pipe or a device", "take it out")
        if pointer:
            raise refused(file, "is a git-lfs pointer, not the file", "run `git lfs pull` there")
        _refuse_large(file, found.st_size)


def _refuse_large(file: Path, size: int) -> None:
    most = LARGEST.get(file.name, ORDINARY)
    if file.suffix != ".safetensors" and size > most:
        raise refused(
            file, f"has {size:,} bytes, more than {most:,}", "it is none of Qwen2.5-VL's, copy it again"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file. Raises CheckpointError for anything else, and for one of too many values."""
    try:
        _refuse_large(file, file.stat().st_size)
        text = file.read_text(encoding="utf-8")
        if (count := sum(map(text.count, ",[{"))) > VALUES:
            raise refused(file, f"has about {count:,} values, more than {VALUES:,}", "copy it again")
        found = json.loads(text)
        deep = _deeper(found, DEEPEST)
    except FileNotFoundError:
        raise refused(file, "is missing", "the folder is no whole checkpoint, copy it again") from None
    except OSError as error:
        raise refused(file, f"cannot be read ({error.strerror})", "see to its permissions") from error
    except (ValueError, RecursionError) as error:
        raise refused(file, f"is no JSON ({error})", "copy it again") from error
    if deep:
        raise refused(file, f"is nested more than {DEEPEST} deep", "copy it again")
    if not isinstance(found, dict):
        raise refused(
            file, f"is a {type(found).__name__}, not an object of names and values", "copy it again"
        )
    return found


def _deeper(value: object, most: int) -> bool:
    """Whether lists and objects are nested more than so deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most < 0 or any(_deeper(own, most - 1) for own in inner if isinstance(own, dict | list))
