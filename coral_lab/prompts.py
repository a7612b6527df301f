r"""How a query is worded: formats, and chat messages as on the model card.

A format is a function from a query to its parts: text, and products standing for their pictures. `messages`
turns parts into what a chat template takes. A format of one's own is five lines:

    def bullets(query):
        yield f"Find a {query.class_name}:"
        for condition in query.conditions:
            yield f"\n- {condition.attribute} of "
            yield condition.product
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from coral_lab.errors import ItemError
from coral_lab.images import digest, identity, paste_together
from coral_lab.query import Product, Query, name_of
from coral_lab.sources.border import brief, text_of
from coral_lab.sources.instructions import instruction_parts
from coral_lab.sources.package_files import shipped

LANGUAGES = ("en", "id", "ms", "th", "vi")
"""Languages that the instruction is worded in."""


@dataclass(frozen=True)
class Pasted:
    """Products' pictures side by side, made when they are looked at: those of MERIT's queries together would
    take more memory than there is.
    """

    products: tuple[Product, ...]

    def __call__(self) -> Image.Image:
        """Raises ItemError naming the product whose picture cannot be opened."""
        found = (product.picture for product in self.products)
        return paste_together([picture for picture in found if picture is not None])

    @property
    def identity(self) -> str:
        """Of the pictures in their order, without making it."""
        own = ((p.image, name_of(p)) for p in self.products)
        return digest(["pasted", *(identity(image, name) for image, name in own if image is not None)])


Part = str | Product | Image.Image | Pasted
Format = Callable[[Query], Iterable[Part]]


@lru_cache(maxsize=1)
def instructions() -> Mapping[str, dict]:
    """MERIT's instruction in five languages, with words for attributes and classes:
    `data/instructions.json`.
    """
    return json.loads(shipped("data/instructions.json").read_text(encoding="utf-8"))


def _words(query: Query, sentence: Mapping[str, str]) -> tuple[str, list[str]]:
    """The instruction's opening, and the words before each reference; MERIT's own keys stay as they are."""
    table = instructions()
    if query.language not in table:
        problem = f"language is {brief(query.language)}; choose one of {', '.join(table)}"
        raise ItemError(f"query {query.id!r}", problem)
    words = {**table[query.language], **sentence}
    name = words["classes"].get(query.class_name, _spoken(query.class_name))
    opening = words["find"].format(**{"class": name}) if name else words["anything"]
    asked = [words["attributes"].get(c.attribute, _spoken(c.attribute)) for c in query.conditions]
    return opening, [words["next" if i else "first"].format(attribute=key) for i, key in enumerate(asked)]


def _spoken(name: str) -> str:
    """A shop's own name as words: "Shoes > Boots" is "Boots", base_color "base color"."""
    return name.rpartition(" > ")[2].replace("_", " ")


def seq(query: Query, sentence: Mapping[str, str] = MappingProxyType({})) -> Iterator[Part]:
    """The model card's format: every picture where it is spoken of (the paper's `Seq`).

    `sentence` are words in place of the instruction's, by their names in `instructions`: find, anything,
    first and next.
    """
    text, asked = _words(query, sentence)
    for number, (condition, words) in enumerate(zip(query.conditions, asked, strict=True), 1):
        # The card breaks the line before the first picture only.
        yield f"{text}{words}<Product {number}> " + ("\n " if number == 1 else "")
        yield condition.product
        text = f"\n {condition.product.title} </Product {number}>"
    yield text + query.text


def merit(query: Query) -> Iterator[Part]:
    """MERIT's own instruction as its files word it, which is not quite the card's; in English always."""
    yield from instruction_parts(query)


def cat(query: Query, wording: Format = seq) -> Iterator[Part]:
    """All pictures pasted into one, in front of the text (the paper's `Cat`)."""
    if shown := tuple(product for product in query.references if product.image is not None):
        yield Pasted(shown)
    yield from (part for part in wording(query) if isinstance(part, str))


def merit_cat(query: Query) -> Iterator[Part]:
    """MERIT's own instruction after one pasted picture."""
    yield from cat(query, merit)


def describe(product: Product) -> str:
    """What the picture shows, in words: a stand-in for a captioner, written from the product's facts."""
    facts = ", ".join(
        f"{key} {' '.join(product.attributes[key])}" for key in _SEEN if key in product.attributes
    )
    return f"[{product.class_name}{': ' if facts else ''}{facts}]"


_SEEN = ("color", "pattern", "brand", "shape", "trim", "product style", "style")


def caption(query: Query, describe: Callable[[Product], str] = describe) -> Iterator[Part]:
    """Each picture replaced by a description (the paper's ablation without images)."""
    for part in seq(query):
        yield describe(part) if isinstance(part, Product) and part.image is not None else part


FORMATS: Mapping[str, Format] = MappingProxyType(
    {"seq": seq, "cat": cat, "caption": caption, "merit": merit, "merit cat": merit_cat}
)


def candidate(product: Product) -> Iterator[Part]:
    """The model card's text for a product to be found."""
    yield "Represent the given product: "
    yield product
    if product.title:
        yield f"\n {product.title}"


def parts(item: Product | Query, format: str | Format = "seq") -> list[Part]:
    """What an item is read as: texts, joined where they meet, and products or pictures where a picture goes.

    `format` is a name in FORMATS or a function of the query; products have one form only. A product without
    a picture stands for nothing. Raises ItemError for an item of which nothing is left and for what is no
    part, ValueError for an unknown format.
    """
    found = candidate(item) if isinstance(item, Product) else formatted(item, format)
    return joined(found, name_of(item))


def joined(found: Iterable[Part], name: str) -> list[Part]:
    """Texts joined where they meet, without what stands for nothing. Raises ItemError, calling the item by
    `name`, if nothing is left.
    """
    left: list[Part] = []
    for part in found:
        if isinstance(part, Product) and part.image is None:
            continue
        if isinstance(part, str) and left and isinstance(left[-1], str):
            left[-1] += part
        elif part != "":
            left.append(part)
    if not any(part.strip() if isinstance(part, str) else True for part in left):
        raise ItemError(name, "its format gives neither text nor picture; yield at least one part")
    return left


def formatted(query: Query, format: str | Format) -> Iterable[Part]:
    """What a format makes of a query; a format of the user's own is checked as any text that comes in."""
    found = format_of(format)(query)
    return found if isinstance(format, str) else _checked(found, name_of(query))


def _checked(found: object, name: str) -> Iterator[Part]:
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise ItemError(name, f"its format gives {brief(found)}; yield texts, products and pictures")
    for part in found:
        yield part if isinstance(part, Product | Image.Image | Pasted) else text_of(part, name, "format")


def messages(item: Product | Query, format: str | Format = "seq") -> list[dict]:
    """Chat messages for `processor.apply_chat_template` and `process_vision_info`, as on the model card.

    Paths stay paths; drawn and encoded pictures are opened. Arguments and errors are those of `parts`.
    """
    return [{"role": "user", "content": [_entry(part) for part in parts(item, format)]}]


def _entry(part: Part) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    picture = part.image if isinstance(part, Product) else part
    if isinstance(part, Pasted):
        picture = part()
    elif isinstance(part, Product) and (isinstance(picture, bytes) or callable(picture)):
        picture = part.picture
    return {"type": "image", "image": str(picture) if isinstance(picture, Path) else picture}


def format_of(format: str | Format) -> Format:
    """The function of that name, or the function itself. Raises ValueError for an unknown name."""
    if callable(format):
        return format
    if not isinstance(format, str) or format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"format is {brief(format)}; use one of {known} or a function of the query")
    return FORMATS[format]


def format_name(format: str | Format) -> str:
    """What a format is called: its name in FORMATS, or the function's own."""
    if isinstance(format, str):
        return format
    known = {function: name for name, function in FORMATS.items()}
    return known.get(format) or str(getattr(format, "__name__", repr(format)))
