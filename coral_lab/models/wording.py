"""Items in a family's words, as chat messages whose pictures are not opened yet; and what a family leaves
out.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from coral_lab.errors import ItemError
from coral_lab.models.families import PLAIN, Family
from coral_lab.models.protocol import Embedder
from coral_lab.prompts import Format, Part, Pasted, format_name, formatted, joined
from coral_lab.query import Product, Query, name_of
from coral_lab.sources.border import brief


def family_of(model: Embedder) -> Family:
    """How items are worded for a model: as its family has it, and as they are for one without. Raises
    ValueError for what is no Family.
    """
    found = getattr(model, "family", PLAIN)
    if not isinstance(found, Family):
        problem = f"the family of {brief(model.name)} is {brief(found)}"
        raise ValueError(f"{problem}; give it a Family, such as families.FAMILIES has, or none")
    return found


def worded(item: Product | Query, format: str | Format, family: Family) -> tuple[dict[str, Any], ...]:
    """Chat messages about an item in the family's words, pictures as the item has them.

    Raises ItemError for an item of which nothing is left, and for what the family does not take.
    """
    name, turn = name_of(item), family.product if isinstance(item, Product) else family.query
    own = [part for part in _parts(item, format, turn.between) if part != ""]
    own = _fitting(item, own, family)
    shown = {"sentence" if isinstance(part, str) else "image" for part in own}
    after = turn.after.replace("{what}", " and ".join(sorted(shown)))
    said = joined((_instructed(turn.before, family), *own, after), name)
    system = _instructed(turn.system, family)
    chat = [{"role": "system", "content": [_entry(system)]}] if system else []
    return *chat, {"role": "user", "content": [_entry(part) for part in said]}


def _instructed(words: str, family: Family) -> str:
    told = family.instruction.strip()
    if family.punctuated and told and not unicodedata.category(told[-1]).startswith("P"):
        told += "."
    return words.replace("{instruction} ", f"{told} " if told else "").replace("{instruction}", told)


def _parts(item: Product | Query, format: str | Format, between: str) -> Iterator[Part]:
    found = (
        formatted(item, format) if isinstance(item, Query) else (item, item.title and between + item.title)
    )
    yield from (part for part in found if not isinstance(part, Product) or part.image is not None)


def _fitting(item: Product | Query, own: list[Part], family: Family) -> list[Part]:
    """Parts as the family takes them: of a query's pictures one in front, pasted as the format `cat` has it,
    and of a product the picture alone.
    """
    pictures: list[Part] = [part for part in own if not isinstance(part, str)]
    if isinstance(item, Product):
        if not (family.titles or pictures):
            problem = f"has no picture, and {family.title} reads nothing else of a product"
            raise ItemError(name_of(item), f"{problem}; leave it out")
        return own if family.titles else pictures
    most = family.most_pictures
    if most is None or not pictures:
        return own
    products = tuple(part for part in pictures if isinstance(part, Product))
    if len(pictures) > most and (most == 0 or len(products) < len(pictures)):
        way = "use a format that shows products" if most else "use format='caption'"
        problem = f"shows {len(pictures)} pictures, and {family.title} takes {most} in a query"
        raise ItemError(name_of(item), f"{problem}; {way}")
    shown = [Pasted(products)] if len(pictures) > most else pictures
    return [*shown, *(part for part in own if isinstance(part, str))]


def unread(items: Sequence[Any], format: str | Format, family: Family) -> str:
    """What the family leaves out or puts otherwise, of items that it was given; "" for nothing."""
    said = []
    if not family.titles:
        count = sum(isinstance(item, Product) and bool(item.title) for item in items)
        said += [f"of {count:,} products it reads the picture and no title"] if count else []
    if count := sum(isinstance(item, Query) and _is_pasted(item, format, family) for item in items):
        said.append(f"of {count:,} queries it gets all pictures pasted into one (Cat)")
    return f"{family.title}: {'; '.join(said)}" if said else ""


def read_as(queries: Iterable[Query], format: str | Format, family: Family) -> str:
    """What a format is called in results: with a word where the family gets some query otherwise."""
    pasted = any(_is_pasted(query, format, family) for query in queries)
    return f"{format_name(format)} as cat" if pasted else format_name(format)


def _is_pasted(query: Query, format: str | Format, family: Family) -> bool:
    if family.most_pictures != 1 or len(query.references) < 2:
        return False
    with suppress(ItemError):  # which is said where the query is read
        found = _parts(query, format, "")
        return sum(not isinstance(part, str) for part in found) > family.most_pictures
    return False


def _entry(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": part.image if isinstance(part, Product) else part}
