"""Queries for products that come without any, sampled from their attributes as MERIT's authors sample theirs
(arXiv 2506.03144 and their annotation scripts).

A draw is a target, two to four of its values, and for each another product that shows it. Three ways lead to
a target: a product first (`item_normal`), an attribute first (`attr_normal`), or two variants of one listing,
of which the other shows what they share and is itself a close wrong answer (`spu_first`). The authors draw
references and throw away what has no answer; here the target comes first, so that few draws are in vain.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np

from coral_lab.query import Condition, Dataset, Product, Query
from coral_lab.sources.attribute_index import AttributeIndex, among, attribute_index
from coral_lab.sources.border import brief

log = logging.getLogger(__name__)

IN_VAIN = 2000
"""Draws in a row that give no query, after which no more are made."""


WAYS: Mapping[str, float | int] = {"item_normal": 0.3, "attr_normal": 0.2, "spu_first": 0.5}
CONDITIONS: Mapping[int, float | int] = {2: 0.55, 3: 0.20, 4: 0.25}
"""The authors' shares, before anything is refused."""


@dataclass(frozen=True)
class Sampling:
    """How queries are drawn: shares of the three `ways`, without variants the first two in proportion; the
    weight of each number of `conditions`; and the share of the pool that right answers stay below, one answer
    in the smallest pools aside.

    By default the authors'. Raises ValueError.
    """

    ways: Mapping[str, float | int] = field(default_factory=lambda: WAYS)
    conditions: Mapping[int, float | int] = field(default_factory=lambda: CONDITIONS)
    most: float | int = 0.05

    def __post_init__(self) -> None:
        if not self.ways.keys() <= WAYS.keys() or not _are_weights(self.ways.values()):
            raise ValueError(
                f"ways are {brief(dict(self.ways))}; give some of {', '.join(WAYS)} with weights"
            )
        if min(self.conditions, default=1) < 1 or not _are_weights(self.conditions.values()):
            raise ValueError(
                f"conditions are {brief(dict(self.conditions))}; give numbers from 1 on with weights"
            )
        if not 0 < self.most <= 1:
            raise ValueError(f"most is {self.most}; it is a share of the pool, above 0 and up to 1")


def _are_weights(own: Collection[float | int]) -> bool:
    return len(own) > 0 and min(own) >= 0 and 0 < sum(own) < float("inf")


AUTHORS = Sampling()


@dataclass(frozen=True)
class SampledQueries:
    """`dataset` is the same pool with the queries; `drawn` of them were drawn for the `wanted`, and `refused`
    says how many for what reason. `left_out` are the attributes that nothing is asked about, each with the
    reason; `listings` tells how variants were known.
    """

    dataset: Dataset = field(repr=False)
    wanted: int
    drawn: int
    refused: Mapping[str, int]
    left_out: Mapping[str, str]
    listings: str

    def __str__(self) -> str:
        kept = len(self.dataset.queries)
        short = f", where {self.wanted:,} were wanted: there are hardly any others" * (kept < self.wanted)
        lines = [f"{kept:,} {'query' if kept == 1 else 'queries'} of {self.drawn:,} drawn{short}"]
        lines += [f"refused: {count:,} {reason}" for reason, count in self.refused.items()]
        lines += [self.listings]
        lines += [f"not asked about: {name} ({reason})" for name, reason in self.left_out.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from coral_lab.results import grey, paragraph

        first, *rest = str(self).splitlines()
        return paragraph(f"<b>{first}</b><br>" + "<br>".join(map(grey, rest)))


def sample_queries(
    dataset: Dataset,
    count: int,
    seed: int = 0,
    *,
    listing: str | Callable[[Product], str | None] | None = None,
    attributes: Collection[str] | None = None,
    how: Sampling = AUTHORS,
) -> SampledQueries:
    """`count` queries over a dataset's products, in place of those that it has.

    A query is kept if it has right answers, and fewer than a share of the pool (`Sampling.most`). Its
    references are distinct, each shows the value it contributes, and none is a right answer. Right answers
    have the class and the values as they are written; products without a class are asked for without.

    `listing` says which products are variants of one another: an attribute such as "parent_asin", or a
    function of a product; by itself an attribute of a name that is sure (LISTINGS). `attributes` are those to
    ask about; by themselves all but those that tell nothing (NEARLY_ALL) or are about the sale (OF_THE_SALE).
    The same products, count and seed give the same queries, in whatever order products are.

    Draws end when IN_VAIN in a row gave no query: then there are fewer, and that is said. Raises ValueError
    where no query can be made, or for arguments; ItemError for a product of two listings.
    """
    if count < 1:
        raise ValueError(f"count is {count}; sample at least 1 query")
    if isinstance(attributes, str):
        attributes = [attributes]
    index = attribute_index(dataset, listing, attributes)
    drawing = _Drawing(index, how, Random(f"queries {seed}"), max(2, how.most * len(dataset.products)))
    kept, refused = _drawn(drawing, count) if index.by_attribute else ([], Counter[str]())
    if not kept:
        raise ValueError(_no_query(dataset, index, refused))
    queries = tuple(own.query(dataset, index, f"sampled-{seed}-{n:05}") for n, own in enumerate(kept))
    drawn = len(kept) + refused.total()
    reasons = dict(sorted(refused.items(), key=lambda own: (-own[1], own[0])))
    made = replace(dataset, queries=queries)
    found = SampledQueries(made, count, drawn, reasons, index.left_out, index.listings)
    said = "; ".join(str(found).splitlines())
    log.info("%s: %s", dataset.name, said)
    return replace(found, dataset=replace(made, traits=replace(dataset.traits, sampled=said)))


def _no_query(dataset: Dataset, index: AttributeIndex, refused: Counter[str]) -> str:
    if refused:
        reason, times = refused.most_common(1)[0]
        why = f"{times:,} of {refused.total():,} draws {reason}; loosen how=Sampling(most=…, conditions=…)"
    elif index.left_out:
        why = "; ".join(f"{name} is left out ({why})" for name, why in [*index.left_out.items()][:4])
        why += "; give attributes that two products share and not all"
    else:
        why = "no product has attributes; name their columns in columns=, or make queries by hand"
    return f"no query can be sampled from the {len(dataset.products):,} products of {dataset.name}: {why}"


class _Refused(Exception):
    """Why a draw is no query."""


@dataclass(frozen=True)
class _Draw:
    """A query as places and values of the index."""

    class_name: int
    asked: tuple[tuple[int, int], ...]
    positives: tuple[int, ...]
    hard_negatives: tuple[int, ...]

    def query(self, dataset: Dataset, index: AttributeIndex, id: str) -> Query:
        products = [dataset.products[int(index.places[place])] for _, place in self.asked]
        values = [index.values[value] for value, _ in self.asked]
        return Query(
            id=id,
            class_name=index.class_names[self.class_name],
            conditions=tuple(Condition(k, p, v) for (k, v), p in zip(values, products, strict=True)),
            text=".",
            positives=tuple(index.ids[place] for place in self.positives),
            hard_negatives=tuple(index.ids[place] for place in self.hard_negatives),
        )


@dataclass(frozen=True)
class _Drawing:
    """What draws are made by; right answers are fewer than `limit`."""

    index: AttributeIndex
    how: Sampling
    rng: Random
    limit: float | int


def _drawn(drawing: _Drawing, count: int) -> tuple[list[_Draw], Counter[str]]:
    """Up to `count` different draws, and how many were refused for what reason."""
    kept: dict[object, _Draw] = {}
    refused = Counter[str]()
    in_vain = 0
    while len(kept) < count and in_vain < IN_VAIN:
        try:
            own = _draw(drawing)
            if kept.setdefault((own.class_name, frozenset(own.asked)), own) is not own:
                raise _Refused("were drawn before")
            in_vain = 0
        except _Refused as reason:
            refused[str(reason)] += 1
            in_vain += 1
    return list(kept.values()), refused


def _draw(drawing: _Drawing) -> _Draw:
    """One query. Raises _Refused with the reason where the draw gives none."""
    index, rng = drawing.index, drawing.rng
    possible = {"item_normal", "attr_normal"} | ({"spu_first"} if len(index.variants) else set())
    ways = {way: share for way, share in drawing.how.ways.items() if way in possible}
    if not any(ways.values()):
        raise _Refused("want variants, of which there are none")
    (way,), (number,) = (rng.choices([*own], [*own.values()]) for own in (ways, drawing.how.conditions))
    target, wanted, sibling = _target(index, way, number, rng)
    class_name = int(index.classes[target])
    positives = index.meeting(class_name, wanted)
    if len(positives) >= drawing.limit:
        raise _Refused("have too many right answers")
    siblings = [] if sibling is None else index.siblings(target)
    chosen = [] if sibling is None else [sibling]
    for value in wanted[len(chosen) :]:
        chosen.append(_reference(index, value, positives, {*chosen, *siblings}, rng))
    asked = [*zip(wanted, chosen, strict=True)]
    rng.shuffle(asked)
    right = tuple(positives.tolist())
    return _Draw(class_name, tuple(asked), right, tuple(sorted({*siblings}.difference(right))))


def _target(index: AttributeIndex, way: str, number: int, rng: Random) -> tuple[int, list[int], int | None]:
    """A target, its values that are wanted, and for `spu_first` a variant that has the first and not the
    second.
    """
    if way == "spu_first":
        return _variant(index, number, rng)
    first: list[int] = []
    if way == "attr_normal":
        first = [rng.choice(index.by_attribute[rng.choice([*index.by_attribute])])]
    targets = index.showing(first[0]) if first else index.showing_some
    target = int(rng.choice(targets))
    return target, _with_more(index, target, first, number, rng), None


def _with_more(index: AttributeIndex, target: int, first: list[int], number: int, rng: Random) -> list[int]:
    """Values of `number` different attributes that the target shows, the `first` among them."""
    by_key: dict[str, list[int]] = {}
    for value in index.shown_by(target):
        by_key.setdefault(index.values[value][0], []).append(value)
    for value in first:
        by_key.pop(index.values[value][0])
    if len(by_key) < number - len(first):
        raise _Refused("want more conditions than the product has attributes to ask about")
    return first + [rng.choice(by_key[key]) for key in rng.sample([*by_key], number - len(first))]


def _variant(index: AttributeIndex, number: int, rng: Random) -> tuple[int, list[int], int]:
    target = int(rng.choice(index.variants))
    sibling = rng.choice(index.siblings(target))
    own, others, seen = index.shown_by(target), index.values_of(sibling), {*index.shown_by(sibling)}
    shared = [value for value in own if value in seen]
    differing = [value for value in own if value not in others]
    pairs = [(a, b) for a in shared for b in differing if index.values[a][0] != index.values[b][0]]
    if not pairs or number < 2:
        raise _Refused("want variants that share one attribute and differ in another")
    return target, _with_more(index, target, [*rng.choice(pairs)], number, rng), sibling


def _reference(index: AttributeIndex, value: int, positives: np.ndarray, gone: set[int], rng: Random) -> int:
    """A product that shows the value, is no right answer and not `gone`."""
    showing = index.showing(value)
    for _ in range(5):  # most products are free, where they are many
        own = int(rng.choice(showing))
        if own not in gone and not among(np.array([own]), positives)[0]:
            return own
    free = [own for own in showing[~among(showing, positives)].tolist() if own not in gone]
    if not free:
        raise _Refused("have no other product to point at")
    return rng.choice(free)
