"""Model families: checkpoints of a known architecture that are asked in words of their own, as data.

An embedding is always the last hidden state of the text's last token. Models that read another place are
asked up to that place: text that follows it is not seen from there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coral_lab.errors import ItemError
from coral_lab.models.folder_files import look_over, read_json
from coral_lab.prompts import Format, Part, Pasted, formatted, joined
from coral_lab.query import Product, Query, name_of
from coral_lab.sources.border import brief


@dataclass(frozen=True)
class Turn:
    """The words around an item: a system turn ("" for what the chat template says by itself), and what comes
    before it, between its picture and its title, and after it.

    In `after`, {what} is what was shown: "image", "sentence", or "image and sentence".
    """

    system: str = ""
    before: str = ""
    between: str = ""
    after: str = ""


@dataclass(frozen=True)
class Family:
    """How a family's checkpoints are asked, and which they are.

    `ending` follows what the chat template writes, which is the checkpoint's own unless `template` is one.
    Queries with more pictures than `most_pictures` are asked with one pasted picture (the paper's *Cat*).
    `limits` are a picture's, by qwen-vl-utils' names. `repositories` are the hub ids of its checkpoints, and
    `source` says where all this is published.
    """

    name: str
    title: str
    query: Turn = Turn()
    product: Turn = Turn()
    ending: str = ""
    template: str | None = None
    most_pictures: int | None = None
    limits: tuple[tuple[str, int], ...] = ()
    repositories: tuple[str, ...] = ()
    source: str = ""


PLAIN = Family("plain", "a model of no family")
"""An item as it is: a product's picture and title, a query's format."""

CORAL = Family(
    "coral",
    "CORAL",
    product=Turn(before="Represent the given product: ", between="\n "),
    repositories=("Bia/CORAL",),
    source="the model card, huggingface.co/Bia/CORAL",
)

SENTENCE_TRANSFORMERS = "sentence-transformers"
"""The name that asks for what a folder's own modules do, whatever else it is."""

FIELD = "coral_lab_family"
"""Where a config.json says which family a checkpoint that was saved here is of."""

FAMILIES: Mapping[str, Family] = MappingProxyType({own.name: own for own in (CORAL, PLAIN)})
"""By the name that `load` takes as `family`."""


def family_for(asked: Family | str | None, name: str, folder: Path) -> Family | None:
    """The family that was asked for, or else the one of the hub id or folder that `name` is, or that a
    checkpoint saved here says in its config; None where nothing tells. Raises ValueError for an unknown name.
    """
    if isinstance(asked, Family):
        return asked
    if asked is not None and asked not in FAMILIES:
        known = ", ".join([*FAMILIES, SENTENCE_TRANSFORMERS])
        raise ValueError(f"family is {brief(asked)}; choose one of {known}, or give a Family")
    told = asked or _told(folder)
    if told in FAMILIES:
        return FAMILIES[told]
    cached = next((part for part in folder.parts if part.startswith("models--")), "").replace("--", "/")
    named = {own.rpartition("/")[2].lower() for own in (name, cached, folder.name)}
    for family in FAMILIES.values():
        if named & {repository.rpartition("/")[2].lower() for repository in family.repositories}:
            return family
    return None


def _told(folder: Path) -> str:
    look_over(folder)
    file = folder / "config.json"
    found = read_json(file).get(FIELD) if file.is_file() else None
    return found if isinstance(found, str) else ""


def worded(item: Product | Query, format: str | Format, family: Family) -> tuple[dict[str, Any], ...]:
    """Chat messages about an item in the family's words, pictures as the item has them.

    Raises ItemError for an item of which nothing is left, and for pictures that cannot be pasted together
    where the family takes fewer.
    """
    turn = family.product if isinstance(item, Product) else family.query
    own = _pasted([part for part in _parts(item, format, turn.between) if part != ""], name_of(item), family)
    shown = {"sentence" if isinstance(part, str) else "image" for part in own}
    said = joined((turn.before, *own, turn.after.format(what=" and ".join(sorted(shown)))), name_of(item))
    system = [{"role": "system", "content": [_entry(turn.system)]}] if turn.system else []
    return *system, {"role": "user", "content": [_entry(part) for part in said]}


def _parts(item: Product | Query, format: str | Format, between: str) -> Iterator[Part]:
    found = (
        formatted(item, format) if isinstance(item, Query) else (item, item.title and between + item.title)
    )
    yield from (part for part in found if not isinstance(part, Product) or part.image is not None)


def _pasted(own: list[Part], name: str, family: Family) -> list[Part]:
    """As the format `cat` has it, if there are more pictures than the family takes."""
    pictures = [part for part in own if not isinstance(part, str)]
    if family.most_pictures is None or len(pictures) <= family.most_pictures:
        return own
    products = tuple(part for part in pictures if isinstance(part, Product))
    if len(products) < len(pictures):
        problem = f"shows {len(pictures)} pictures, and {family.title} takes {family.most_pictures}"
        raise ItemError(name, f"{problem}; use a format that shows products")
    return [Pasted(products), *(part for part in own if isinstance(part, str))]


def _entry(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": part.image if isinstance(part, Product) else part}
