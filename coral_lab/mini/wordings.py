"""What `mini-pretrained` is taught, in words of its own: what it sees, what it reads, and what it is asked.

    see      a picture alone        -> class color pattern brand shape trim
    read     a title alone          -> class color pattern brand material size origin, "-" where it names none
    ask      one thing, some of it  -> one word for each, "-" where neither picture nor title tells
    several  two to four things     -> one word for each that is asked, in the order asked
    compare  two things             -> yes or no, first or second

Every other answer to `ask` and `several` is a list, "size M color red": with the word to look for in front of
it, a value is found much sooner.

Nothing here is the model card's: no word to retrieve, to search or to represent, no numbered tags. What is
asked may stand before a thing or after all of them. So a model that knows these can say what a query wants,
and has never seen one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from coral_lab.images import Picture
from coral_lab.mini.cards import cards
from coral_lab.mini.drawing import Drawing
from coral_lab.mini.lessons import UNKNOWN
from coral_lab.mini.merit_mini import TRAITS
from coral_lab.mini.titles import ATTRIBUTES, TEXTUAL, VISUAL, named_in_title, title
from coral_lab.prompts import LANGUAGES, instructions
from coral_lab.query import Product

NONE = "none"
"""What a word is that answers what nobody tells."""

SEEN = ("class", *VISUAL)
READ = ("class", "color", "pattern", "brand", *TEXTUAL)


@dataclass(frozen=True)
class Scope:
    """What may be seen, read and asked about: no product of other classes, no title in other languages, and
    no other attribute in a picture, a title or a question.
    """

    classes: tuple[str, ...]
    languages: tuple[str, ...]
    attributes: tuple[str, ...]


WITHOUT = ("class", "language", "attribute", "all")
"""What can be left out; "all" is the three together."""


def scope(without: str | None = None) -> Scope:
    """All of MERIT-mini, or less by what out-of-distribution splits hold back (`merit_mini.TRAITS`), one of
    `WITHOUT`. Raises ValueError for another.
    """
    every = {"class": tuple(cards()["classes"]), "language": LANGUAGES, "attribute": ATTRIBUTES}
    if without is not None and without not in WITHOUT:
        raise ValueError(f"without is {without!r}; choose one of {', '.join(WITHOUT)}")
    held_back = TRAITS.held_back.items()
    gone = {value for kind, values in held_back if without in (kind, "all") for value in values}
    left = {kind: tuple(value for value in values if value not in gone) for kind, values in every.items()}
    return Scope(left["class"], left["language"], left["attribute"])


@dataclass(frozen=True)
class Exchange:
    """Something said to the model, as chat messages, what it should answer, and what each word of that is: an
    attribute's value or "class", NONE, or "" for the name of an attribute.
    """

    said: list[dict]
    answer: str
    slots: tuple[str, ...]


@dataclass(frozen=True)
class Thing:
    """A product as a question shows it: its picture, its title in some language, or both."""

    product: Product
    image: Picture | None
    title: str
    tells: frozenset[str]

    def word(self, key: str) -> str:
        """In one word: its class, or an attribute's value; "-" for what it does not tell."""
        if key == "class":
            return self.product.class_name
        return self.product.attributes[key][0].replace(" ", "_") if key in self.tells else UNKNOWN


def limited(product: Product, within: Scope) -> Product:
    """The product as it is seen within the scope: plain where no pattern may be, and without a badge where no
    brand may.
    """
    drawing = product.image
    assert isinstance(drawing, Drawing)
    if {"pattern", "brand"} <= {*within.attributes}:
        return product
    pattern = drawing.pattern if "pattern" in within.attributes else "plain"
    brand = drawing.brand if "brand" in within.attributes else ""
    return replace(product, image=replace(drawing, pattern=pattern, brand=brand))


def thing(product: Product, within: Scope, how: str = "both", language: str = "en") -> Thing:
    """A `limited` product by its "picture", by a "title" in this language, or by "both"."""
    tells: set[str] = set()
    words = ""
    if how != "title":
        tells |= {*VISUAL}
    if how != "picture":
        facts = {key: product.attributes[key][0] for key in within.attributes}
        words = title(product.id, product.class_name, facts, language)
        tells |= {*named_in_title(product)}
    image = product.image if how != "title" else None
    return Thing(product, image, words, frozenset(tells.intersection(within.attributes)))


SEE = (
    ("What is in the picture? ", ""),
    ("Describe it in a few words. ", ""),
    ("A photo: ", " Caption:"),
    ("", " What is this?"),
    ("", "\nWhat can be seen here?"),
)
READ_ALOUD = (
    ("What does this label say? ", ""),
    ("A label: ", "\nWhat is it about?"),
    ("In short: ", ""),
    ("", "\nWhat is on sale?"),
    ("", " In other words:"),
)
"""Words before and after a picture, or a title."""

ASK = (
    ("{keys}? ", ""),
    ("What {keys} has this? ", ""),
    ("Tell me its {keys}. ", ""),
    ("", " What {keys} is it?"),
    ("", "\nIts {keys}:"),
)
IN_OTHER_WORDS = {
    "id": ("Apa {keys} barang ini? ", ""),
    "ms": ("Apakah {keys} barang ini? ", ""),
    "th": ("{keys}อะไร ", ""),
    "vi": ("Cái này {keys} gì? ", ""),
}

ASKED_FIRST = (
    ("In words: ", "{key} of ", ", ", ""),
    ("Say ", "the {key} of this: ", "; ", "."),
    ("", "{key} here: ", "\n", " A word each."),
    ("Imagine ", "the {key} as in ", " and ", ": what is that?"),
    ("Tell me ", "which {key} it is: ", "\nand ", " - thank you."),
    ("", "its {key}? ", " | ", ""),
)
"""Opening, words before each thing, between two, and at the end."""

ASKED_AFTER = (
    ("First: ", "Second: ", "Third: ", "Fourth: ", "the {key} of the {place}", "What is ", "?"),
    ("A: ", "B: ", "C: ", "D: ", "{key} of {place}", "Name ", "."),
    ("one) ", "two) ", "three) ", "four) ", "{place}'s {key}", "", "?"),
)
"""A label for each thing, then words for one that is asked, and those around all of them."""


def see(own: Thing, within: Scope, rng: Random) -> Exchange:
    """A picture's caption: its class and all that it shows."""
    keys = [key for key in SEEN if key == "class" or key in within.attributes]
    return _about(own, keys, rng.choice(SEE))


def read(own: Thing, within: Scope, rng: Random) -> Exchange:
    """A title's caption: its class and all that titles may name, "-" for what this one does not."""
    keys = [key for key in READ if key == "class" or key in within.attributes]
    return _about(own, keys, rng.choice(READ_ALOUD))


FOREIGN = 0.25  # share of questions about one thing that are not in English
MOST_KEYS = 3
TEXTUAL_WEIGHT = 2
"""What only titles tell is asked about so much more often: it is learnt last."""
LISTED = 0.5  # share of answers that are lists
LIST = "As a list. "
"""What asks for one."""


def _keys(keys: Sequence[str], count: int, rng: Random) -> list[str]:
    """So many different ones to ask about."""
    left, found = list(keys), []
    for _ in range(count):
        key = rng.choices(left, [TEXTUAL_WEIGHT if key in TEXTUAL else 1 for key in left])[0]
        left.remove(key)
        found.append(key)
    return found


def ask(own: Thing, within: Scope, rng: Random) -> Exchange:
    """One to three attributes of a thing, told or not."""
    keys = _keys(("class", *within.attributes), rng.randint(1, MOST_KEYS), rng)
    language = rng.choice(within.languages) if rng.random() < FOREIGN else "en"
    template = IN_OTHER_WORDS.get(language) or rng.choice(ASK)
    words = ", ".join(_named(key, language) for key in keys)
    before, after = (text.format(keys=words) for text in template)
    return _about(own, keys, (before, after), rng.random() < LISTED)


def several(things: Sequence[Thing], rng: Random) -> Exchange:
    """One attribute of each thing, one that it tells, asked before it or after all of them in any order."""
    keys = [_keys(("class", *sorted(own.tells)), 1, rng)[0] for own in things]
    listed = rng.random() < LISTED
    if rng.random() < 0.7:
        opening, before, between, end = rng.choice(ASKED_FIRST)
        parts: list[str | Thing] = [opening]
        for number, (own, key) in enumerate(zip(things, keys, strict=True)):
            parts += [between if number else "", before.format(key=_named(key)), own]
        return _exchange([*parts, end], things, keys, listed)
    *labels, words, opening, end = rng.choice(ASKED_AFTER)
    order = rng.sample(range(len(things)), len(things))
    parts = [part for label, own in zip(labels, things, strict=False) for part in (label, own, "\n")]
    places = [label.strip(" :)").lower() if len(label) > 3 else label[0] for label in labels]
    asked = " and ".join(words.format(key=_named(keys[i]), place=places[i]) for i in order)
    ordered = [things[i] for i in order], [keys[i] for i in order]
    return _exchange([*parts, f"{opening}{asked}{end}"], *ordered, listed)


ALIKE = (
    "Are both of the same {key}?",
    "Do these two agree in {key}?",
    "One {key} for both?",
)
WHICH = (
    "Which one has {key} {value}, the first or the second?",
    "{key} {value}: first or second?",
)


def alike(first: Thing, second: Thing, key: str, rng: Random) -> Exchange:
    """Whether two things that both tell it have the same value."""
    answer = "yes" if first.word(key) == second.word(key) else "no"
    return _compared(first, second, rng.choice(ALIKE).format(key=_named(key)), answer, key, rng)


def which(first: Thing, second: Thing, key: str, is_first: bool, rng: Random) -> Exchange:
    """Which of two things has a value; the other tells that it has another."""
    value = (first if is_first else second).word(key)
    words = rng.choice(WHICH).format(key=_named(key), value=value)
    return _compared(first, second, words, "first" if is_first else "second", key, rng)


def _compared(first: Thing, second: Thing, words: str, answer: str, key: str, rng: Random) -> Exchange:
    parts: list[str | Thing] = [first, " - ", second]
    parts = [f"{words} ", *parts] if rng.random() < 0.7 else [*parts, f" {words}"]
    return Exchange(_said(parts), answer, (key,))


def _named(key: str, language: str = "en") -> str:
    if key == "class":
        return "kind"
    return instructions()[language]["attributes"].get(key, key)


def _about(own: Thing, keys: Sequence[str], words: tuple[str, str], listed: bool = False) -> Exchange:
    before, after = words
    return _exchange([before, own, after], [own] * len(keys), keys, listed)


def _exchange(
    parts: Sequence[str | Thing], things: Sequence[Thing], keys: Sequence[str], listed: bool
) -> Exchange:
    """Answered by each thing's word for its key, or by a list of both."""
    words = [own.word(key) for own, key in zip(things, keys, strict=True)]
    slots = [NONE if word == UNKNOWN else key for word, key in zip(words, keys, strict=True)]
    if listed:
        words = [word for key, own in zip(keys, words, strict=True) for word in (_named(key), own)]
        slots = [slot for own in slots for slot in ("", own)]
    return Exchange(_said([LIST if listed else "", *parts]), " ".join(words), tuple(slots))


def _said(parts: Sequence[str | Thing]) -> list[dict]:
    """One user turn: texts, and things as picture and title."""
    content: list[dict] = []
    for part in parts:
        if isinstance(part, Thing):
            if part.image is not None:
                content.append({"type": "image", "image": part.image})
            text = f"{' ' if part.image is not None else ''}{part.title}" if part.title else ""
        else:
            text = part
        if text:
            content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]
