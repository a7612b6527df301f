"""Interleaved queries over a catalogue, sampled as MERIT's authors do (arXiv 2506.03144)."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from random import Random

from coral_lab.mini.cards import cards
from coral_lab.mini.titles import ATTRIBUTES, TEXTUAL, material_phrase, shown, word
from coral_lab.prompts import LANGUAGES
from coral_lab.query import Condition, Product, Query

LISTING_ATTRIBUTES = ("brand", "shape", "material", "origin")
VARIANT_ATTRIBUTES = ("color", "pattern", "trim", "size")

SAMPLING = {"item_normal": 0.3, "attr_normal": 0.2, "spu_first": 0.5}
CONDITIONS = {2: 0.55, 3: 0.30, 4: 0.15}
SAME_LANGUAGE = 0.7  # share of queries whose references' titles are all in one language
WITH_TEXT = 0.2  # share of queries whose free text states one more value
SAME_CLASS = 0.5  # share of references that are sought in the wanted class first
MOST_POSITIVES = 0.05  # of the pool, as in MERIT

_PHRASES = {
    "color": " in {}.",
    "pattern": " with a {} pattern.",
    "brand": " by {}.",
    "shape": " in {} style.",
    "trim": " with {} trim.",
    "size": " in size {}.",
    "origin": " from {}.",
}


def free_text(class_name: str, attribute: str, value: str) -> str:
    """English words that ask for one value: ("shoes", "origin", "Penang") → " from Penang."."""
    if attribute == "material":
        name = word("material", value, "en")
        is_made = material_phrase(class_name, value, "en") == name
        return f" made of {name}." if is_made else f" packed in {name}."
    words = value if attribute == "shape" else word(attribute, value, "en")
    return _PHRASES[attribute].format(words)


def stated(query: Query) -> tuple[str, str] | None:
    """The (attribute, value) that a catalogue query's free text asks for; None when it asks for nothing.

    Raises ValueError for words that this catalogue does not use.
    """
    if query.text in ("", "."):
        return None
    try:
        return _meanings(query.class_name)[query.text]
    except KeyError:
        raise ValueError(f"query {query.id!r} says {query.text!r}; free_text() never writes that") from None


@cache
def _meanings(class_name: str) -> dict[str, tuple[str, str]]:
    values = {key: list(cards()[key]) for key in ATTRIBUTES if key != "shape"}
    values["shape"] = cards()["classes"][class_name]["shapes"]
    return {free_text(class_name, key, value): (key, value) for key in values for value in values[key]}


class Lookup:
    """Products of one split, indexed by what they have and what they show (positions in `products`)."""

    def __init__(self, products: Sequence[Product], listings: Sequence[int]):
        self.products = products
        self.facts = [{key: product.attributes[key][0] for key in ATTRIBUTES} for product in products]
        self.shown = [shown(product) for product in products]
        self.siblings = defaultdict(list)
        self.having = defaultdict(set)
        self.showing: dict[tuple[str, ...], list[int]] = defaultdict(list)
        naming = defaultdict(list)
        for i, product in enumerate(products):
            self.siblings[listings[i]].append(i)
            naming[self.shown[i].intersection(TEXTUAL)].append(i)
            for key, value in self.facts[i].items():
                self.having[product.class_name, key, value].add(i)
                if key in self.shown[i]:
                    self.showing[key, value].append(i)
                    self.showing[key, value, product.language].append(i)
                    self.showing[key, value, product.language, product.class_name].append(i)
        self.values = {key: sorted({facts[key] for facts in self.facts}) for key in ATTRIBUTES}
        self.naming_all = _naming_all(naming)
        self.siblings_of = [self.siblings[listing] for listing in listings]

    def meeting(self, class_name: str, wanted: dict[str, str]) -> set[int]:
        """Every product of the class with every wanted value."""
        return set.intersection(*(self.having[class_name, key, value] for key, value in wanted.items()))


def _naming_all(naming: dict[frozenset, list[int]]) -> dict[frozenset, list[int]]:
    """For every set of textual attributes, the products whose titles name at least these, in order."""
    subsets = [frozenset(keys) for size in range(len(TEXTUAL) + 1) for keys in combinations(TEXTUAL, size)]
    return {keys: sorted(i for named in naming if keys <= named for i in naming[named]) for keys in subsets}


def sample_queries(pool: Lookup, count: int, prefix: str, rng: Random) -> tuple[Query, ...]:
    """`count` queries over the pool, with ids `{prefix}-00000`, ….

    Every query has at least one positive and at most 5% of the pool, none of them a reference of its
    own; each reference shows the value it contributes.
    """
    return tuple(_query(pool, f"{prefix}-{number:05d}", rng) for number in range(count))


def _query(pool: Lookup, id: str, rng: Random) -> Query:
    how, count = _weighted(SAMPLING, rng), _weighted(CONDITIONS, rng)
    has_text = rng.random() < WITH_TEXT
    keys = _keys(how, count + has_text, rng)
    # The attributes are settled first and kept, so that what is hard to find is not asked for less.
    while True:
        target, sibling = _target(pool, how, keys, rng)
        wanted = {key: pool.facts[target][key] for key in keys}
        class_name = pool.products[target].class_name
        positives = pool.meeting(class_name, wanted)
        if len(positives) > MOST_POSITIVES * len(pool.products):
            continue
        references = _references(pool, class_name, keys[:count], wanted, positives, sibling, rng)
        if references is not None:
            break
    conditions = [Condition(key, pool.products[i], wanted[key]) for key, i in references.items()]
    rng.shuffle(conditions)
    hard = [] if sibling is None else [i for i in pool.siblings_of[target] if i not in positives]
    return Query(
        id=id,
        class_name=class_name,
        conditions=tuple(conditions),
        text=free_text(class_name, keys[-1], wanted[keys[-1]]) if has_text else ".",
        positives=tuple(pool.products[i].id for i in sorted(positives)),
        hard_negatives=tuple(pool.products[i].id for i in hard),
    )


def _weighted(weights: dict, rng: Random):
    """A key, drawn with its weight; what random.choices does, in a third of the time."""
    point = rng.random()
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return key


def _keys(how: str, count: int, rng: Random) -> list[str]:
    """Distinct attributes to ask for; spu_first starts with a shared and a differing one."""
    if how != "spu_first":
        return rng.sample(ATTRIBUTES, count)
    first = [rng.choice(LISTING_ATTRIBUTES), rng.choice(VARIANT_ATTRIBUTES)]
    others = [key for key in ATTRIBUTES if key not in first]
    return first + rng.sample(others, count - 2)


def _target(pool: Lookup, how: str, keys: list[str], rng: Random) -> tuple[int, int | None]:
    """A product that shows all the attributes and, for spu_first, a sibling that differs as asked."""
    needed = frozenset(keys).intersection(TEXTUAL)
    while True:
        if how == "attr_normal":  # a value first, each as likely as the others, then a product for it
            target = rng.choice(pool.showing[keys[0], rng.choice(pool.values[keys[0]])])
            if needed <= pool.shown[target]:
                return target, None
            continue
        target = rng.choice(pool.naming_all[needed])
        if how == "item_normal":
            return target, None
        sibling = rng.choice(pool.siblings_of[target])
        shared, differing = keys[:2]
        if pool.facts[sibling][differing] != pool.facts[target][differing] and shared in pool.shown[sibling]:
            return target, sibling


def _references(
    pool: Lookup,
    class_name: str,
    keys: list[str],
    wanted: dict[str, str],
    positives: set[int],
    sibling: int | None,
    rng: Random,
) -> dict[str, int] | None:
    """One product an attribute that shows the wanted value and is no answer itself; None if there is none."""
    languages = rng.sample(LANGUAGES, len(keys))
    if sibling is not None:  # the sibling comes first, in the language it has
        own = pool.products[sibling].language
        languages = [own, *(language for language in languages if language != own)][: len(keys)]
    if rng.random() < SAME_LANGUAGE:
        languages = languages[:1] * len(keys)
    chosen = {} if sibling is None else {keys[0]: sibling}
    excluded = positives.union(chosen.values())
    for key, language in list(zip(keys, languages, strict=True))[len(chosen) :]:
        found = _reference(pool, (key, wanted[key], language), class_name, excluded, rng)
        if found is None:
            return None
        chosen[key] = found
        excluded.add(found)
    return chosen


def _reference(pool: Lookup, sought: tuple, class_name: str, excluded: set[int], rng: Random) -> int | None:
    """A product showing `sought` (attribute, value, title language), half of the time of the wanted class."""
    options = [(*sought, class_name), sought] if rng.random() < SAME_CLASS else [sought]
    for option in options:
        candidates = pool.showing.get(option, [])
        for _ in range(6 if candidates else 0):
            found = rng.choice(candidates)
            if found not in excluded:
                return found
    return None
