"""Product titles in five languages, written from a product's facts.

Which facts a title names depends only on the product's id, so that the titles of one product in
two languages say the same.
"""

from dataclasses import replace
from functools import cache, lru_cache
from hashlib import blake2b

from coral_lab.mini.cards import cards
from coral_lab.prompts import LANGUAGES, instructions
from coral_lab.query import Product

VISUAL = ("color", "pattern", "brand", "shape", "trim")
"""Attributes that every picture shows."""
TEXTUAL = ("material", "size", "origin")
"""Attributes that only a title can tell."""
ATTRIBUTES = (*VISUAL, *TEXTUAL)

# Share of titles that name an attribute; the class is always named, shape and trim never are.
NAMED_SHARE = {"material": 1.0, "size": 0.7, "origin": 0.7, "brand": 0.6, "color": 0.25, "pattern": 0.1}


def word(kind: str, value: str, language: str) -> str:
    """The word for a card's value, ("origin", "Hanoi", "vi") → "Hà Nội"; the value itself if neutral."""
    words = cards()[kind][value].get("words", {})
    if kind == "classes" and language != "en":
        words = instructions()[language]["classes"] | words
        return words[value]
    return words.get(language, value)


def material_phrase(class_name: str, material: str, language: str) -> str:
    """Material as a title says it: food is packed in its material, everything else is made of it."""
    name = word("material", material, language)
    is_food = cards()["classes"][class_name]["category"] == "food"
    return cards()["languages"][language]["packed"].format(name) if is_food else name


@lru_cache(maxsize=65536)
def _dice(id: str) -> bytes:
    """Eight bytes that look random and depend only on the product id."""
    return blake2b(id.encode(), digest_size=8).digest()


@lru_cache(maxsize=65536)
def _named(id: str) -> tuple[str, ...]:
    dice = _dice(id)
    return tuple(key for key, roll in zip(NAMED_SHARE, dice, strict=False) if roll < NAMED_SHARE[key] * 256)


def named_in_title(product: Product) -> tuple[str, ...]:
    """The attributes that this product's title names, whatever its language.

    Raises ValueError if the product is not from this catalogue.
    """
    _check_facts(product)
    return _named(product.id)


def shown(product: Product) -> frozenset[str]:
    """The attributes that picture or title of this product tell."""
    return _shown(named_in_title(product))


@cache  # 32 sets at most, shared by all products
def _shown(named: tuple[str, ...]) -> frozenset[str]:
    return frozenset(VISUAL).union(named)


def title(id: str, class_name: str, facts: dict[str, str], language: str) -> str:
    """Title of a product in `language`, in one of the language's word orders (chosen by the id). What is not
    among the facts is not named.
    """
    words = {"class": word("classes", class_name, language)}
    for key in filter(facts.__contains__, _named(id)):
        if key == "material":
            words[key] = material_phrase(class_name, facts[key], language)
        else:
            words[key] = word(key, facts[key], language)
    templates = _templates(language)
    order = templates[_dice(id)[-1] % len(templates)]
    return " ".join(text.format(**words) for key, text in order if not key or key in words)


@lru_cache(maxsize=len(LANGUAGES))
def _templates(language: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Word orders as ((attribute or "", text with a slot), …)."""
    orders = cards()["languages"][language]["templates"]
    return tuple(
        tuple((part.partition("{")[2].partition("}")[0], part) for part in order) for order in orders
    )


def retitle(product: Product, language: str) -> Product:
    """The same product with its parallel title in `language`; id, facts, country and picture stay.

    Raises ValueError for a language other than en, id, ms, th, vi, or a product without the facts.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; titles are written in {', '.join(LANGUAGES)}")
    _check_facts(product)
    facts = {key: values[0] for key, values in product.attributes.items()}
    return replace(product, title=title(product.id, product.class_name, facts, language), language=language)


def _check_facts(product: Product) -> None:
    missing = [key for key in ATTRIBUTES if not product.attributes.get(key)]
    if missing or product.class_name not in cards()["classes"]:
        raise ValueError(
            f"product {product.id!r} of class {product.class_name!r} lacks {missing or 'a known class'}; "
            "only products of catalogue() have the facts to write a title from"
        )
