"""Does a model bind each condition to its own reference, or take a value from any product that it is shown?

Two ways to ask. Of every wrong first hit: whose value is it (`whose_value`, `taken`)? And by intervention:
the other references of a query are exchanged for products that say the same of what is asked, something
else, or nothing (`binding`, `errors`, `effects`). A model that binds does not care.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pandas as pd
from jaxtyping import Bool

from coral_lab.encoder import encode_all
from coral_lab.errors import NotShownError
from coral_lab.evaluation import Result
from coral_lab.metrics import DEPTH, estimate, holm, paired_difference
from coral_lab.prompts import Format, format_name
from coral_lab.query import AS_IMAGE, Condition, Product, Query, Traits
from coral_lab.retrieval import Index, ranking
from coral_lab.sources.border import brief
from coral_lab.study.edits import AS_ASKED

SAME, ELSE, NOTHING = VARIANTS = ("same", "else", "nothing")
"""What the other references say of the asked attribute: its wanted value, another one, nothing."""

ASKED, ANOTHER, NOBODY = ("asked", "another", "nobody")
"""Whose value a wrong first hit has: the asked reference's (of those with several values), another
reference's, or nobody's.
"""

GROUPS = ("all", "attribute", "place", "language")

COLUMNS = [
    "query",
    "place",
    "attribute",
    "language",
    "first",
    "failed",
    "chance failed",
    "fails",
    "whose",
    "chance another",
]


def whose_value(result: Result) -> pd.DataFrame:
    """One row for each query and condition whose wanted value is known: did the first hit meet it, and if
    not, whose value has it?

    Columns: query, place (of the condition, from 0), attribute, language (of the references' titles), first
    (the hit's id), failed (1 or 0), chance failed (the share of the wanted class's products that fail it),
    fails (how many of the conditions the hit fails), whose ("asked", "another", "nobody", "" where it is met)
    and chance another: how often another reference's value would be taken if the hit were any product of its
    class that meets and fails the same conditions. Values count by the catalogue's facts, whether a picture
    or title tells them or not. References are no candidates. Raises NotShownError where no query has two
    conditions of which one's value is known.
    """
    rows = _rows(result, [None] * len(result.queries))
    if not rows:
        raise NotShownError(
            f"none of {len(result.queries)} queries has two conditions and a value that is known of one; "
            "binding is about those, as mini's or sampled ones are"
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(result: Result, chosen: Sequence[int | None]) -> list[dict]:
    """Of each query the row of the condition at a place, or of all with None."""
    classes: dict[str, list[Product]] = defaultdict(list)
    for product in result.products:
        classes[product.class_name].append(product)
    rows = []
    for query, ranked, place in zip(result.queries, result.ranked, chosen, strict=True):
        if len(query.conditions) > 1 and ranked[0] >= 0:
            own = _of_query(query, result.products[ranked[0]], classes)
            rows += [row for row in own if place in (None, row["place"])]
    return rows


def _of_query(query: Query, first: Product, classes: Mapping[str, Sequence[Product]]) -> Iterator[dict]:
    known = [place for place, own in enumerate(query.conditions) if _is_known(own)]
    asked = [query.conditions[place] for place in known]
    gone = {product.id for product in _left_out(query)} - {first.id}
    wanted, own = (
        [product for product in classes.get(name, ()) if product.id not in gone]
        for name in (query.class_name, first.class_name)
    )
    met, right = _met(asked, wanted), _met(asked, [first])[0]
    alike = [product for product, row in zip(own, _met(asked, own), strict=True) if (row == right).all()]
    for i, (place, condition) in enumerate(zip(known, asked, strict=True)):
        row = {"query": (query.parent or query).id, "place": place, "attribute": condition.attribute}
        row |= {"language": query.title_language, "first": first.id, "failed": int(not right[i])}
        row |= {"chance failed": float((~met[:, i]).mean()) if wanted else float("nan")}
        row |= {"fails": int((~right).sum()), "whose": "", "chance another": float("nan")}
        if not right[i]:
            taken = [_whose(query, condition, product) for product in alike]
            row |= {
                "whose": _whose(query, condition, first),
                "chance another": taken.count(ANOTHER) / len(taken),
            }
        yield row


def _is_known(condition: Condition) -> bool:
    return condition.value not in ("", AS_IMAGE)


def _left_out(query: Query) -> Iterator[Product]:
    """References of a query and of the one that it was edited from, which are no answers to either."""
    for own in (query, query.parent or query):
        yield from (product for product in own.references if product.id not in query.positives)


def _met(
    conditions: Sequence[Condition], products: Sequence[Product]
) -> Bool[np.ndarray, "product condition"]:
    met = [[bool(own.met_by(product)) for own in conditions] for product in products]
    return np.array(met, bool).reshape(len(products), len(conditions))


def _whose(query: Query, condition: Condition, hit: Product) -> str:
    """Whose value of the asked attribute a hit has that fails the condition."""
    key = condition.attribute
    values = set(hit.attributes.get(key, ()))
    if values.intersection(condition.product.attributes.get(key, ())):
        return ASKED
    others = (p for p in query.references if p != condition.product)
    return ANOTHER if any(values.intersection(p.attributes.get(key, ())) for p in others) else NOBODY


@dataclass(frozen=True)
class Counterfactual:
    """An edited `query` whose other references than that at `place` say `variant` of what is asked there. A
    query as asked has no place.
    """

    query: Query
    place: int | None
    variant: str


def counterfactuals(
    queries: Iterable[Query], products: Iterable[Product], traits: Traits = Traits(), seed: int = 0
) -> list[Counterfactual]:
    """For each query and condition the same query with its other references exchanged, once so that all of
    them say the same value of the asked attribute, once another, once nothing of it.

    All else stays: an exchanged reference shows the value that it stands for, with a title in the same
    language; what is right stays right. It is of another class than the wanted one, in all three, for one of
    that class which says the same would often be an answer. `traits` are the dataset's: they know what a
    product's picture and title tell. Of those in `products` that fit one is drawn by the seed and the
    query's id; where none fits there is no such query (every picture of mini's shows the colour, so that
    none says nothing of it). Raises NotShownError where there is none at all.
    """
    queries = tuple(queries)
    showing: dict[tuple[str, str, str], list[Product]] = defaultdict(list)
    for product in products:
        for key in _told(product, traits):
            for value in product.attributes.get(key, ()):
                showing[key, value, product.language].append(product)
    found = []
    for query in queries:
        for place in range(len(query.conditions)):
            for variant in VARIANTS:
                edited = _exchanged(query, place, variant, showing, traits, seed)
                found += [Counterfactual(edited, place, variant)] if edited else []
    if not found:
        raise NotShownError(
            f"of {len(queries)} queries none has another reference that could say something else; it takes "
            "two conditions with known values, and products of other classes that show them"
        )
    return found


def _told(product: Product, traits: Traits) -> set[str]:
    return {*traits.shown(product)} if product.title or product.image is not None else set()


def _exchanged(
    query: Query,
    place: int,
    variant: str,
    showing: Mapping[tuple[str, str, str], Sequence[Product]],
    traits: Traits,
    seed: int,
) -> Query | None:
    asked, taken = query.conditions[place], {*query.positives, *(p.id for p in query.references)}
    if len(query.conditions) < 2 or not all(map(_is_known, query.conditions)):
        return None
    conditions = list(query.conditions)
    for i, own in enumerate(query.conditions):
        if i == place:
            continue
        fits = [
            product
            for product in showing.get((own.attribute, own.value, own.product.language), ())
            if product.id not in taken
            and product.class_name != query.class_name
            and _says(product, asked, traits) == variant
        ]
        if not fits:
            return None
        other = Random(f"{seed}/{query.id}/{place}/{i}/{variant}").choice(fits)
        taken.add(other.id)
        conditions[i] = replace(own, product=other)
    return query.edited(conditions=tuple(conditions))


def _says(product: Product, asked: Condition, traits: Traits) -> str:
    values = product.attributes.get(asked.attribute, ())
    if not values or asked.attribute not in _told(product, traits):
        return NOTHING
    return SAME if asked.value in values else ELSE


@dataclass(frozen=True, eq=False)
class Binding:
    """Queries as asked and their counterfactuals, ranked: a `Result` for "as asked" and for each of VARIANTS
    that there is, in which a query stands once for each condition; and `rows`.

    `rows` are `whose_value`'s of all of them, with a column variant; of a counterfactual only the row of the
    condition that it is about.
    """

    results: Mapping[str, Result]
    rows: pd.DataFrame


def binding(
    index: Index,
    queries: Iterable[Query],
    traits: Traits = Traits(),
    *,
    format: str | Format | None = None,
    seed: int = 0,
) -> Binding:
    """Ask queries of an index as they are and with their other references exchanged (`counterfactuals`, from
    the index's products).

    Neither a query's own references nor those that were exchanged are in its ranking. `format` is the
    index's own by default. Raises NotShownError as `whose_value` and `counterfactuals` do, before anything is
    encoded, and ItemError for what cannot be read.
    """
    queries = tuple(query for query in queries if len(query.conditions) > 1)
    edits = counterfactuals(queries, index.products, traits, seed)
    asked = {AS_ASKED: [Counterfactual(query, None, AS_ASKED) for query in queries]}
    asked |= {name: [own for own in edits if own.variant == name] for name in VARIANTS}
    results, tables = {}, []
    for name, own in asked.items():
        if own:
            results[name] = _ranked(index, [edit.query for edit in own], format or index.format)
            rows = pd.DataFrame(_rows(results[name], [edit.place for edit in own]), columns=COLUMNS)
            tables.append(rows.assign(variant=name))
    return Binding(results, pd.concat(tables, ignore_index=True))


def _ranked(index: Index, queries: Sequence[Query], format: str | Format) -> Result:
    settings = replace(index.settings, on_error="raise")
    embeddings = encode_all(index.model, queries, format, settings).embeddings
    told = [
        query.edited(conditions=query.conditions + (query.parent or query).conditions) for query in queries
    ]
    scores, rows = ranking(told, embeddings, index, DEPTH)
    return Result(index.model.name, queries, index.products, rows, scores, format_name(format))


def taken(rows: pd.DataFrame, by: str = "all", alone: bool = True) -> pd.DataFrame:
    """Whose value wrong first hits have, beside chance, by one of GROUPS; `rows` are `whose_value`'s.

    `alone` counts hits that fail nothing but this condition, so that nothing else is wrong with them. A query
    counts once. Columns: by, value, hits, asked, another and nobody (shares), low and high (95% interval of
    another), chance (of another), beyond (another less chance) with its interval, p and p (Holm: corrected
    for being several). Empty where nothing failed. Raises ValueError for another group.
    """
    wrong = rows[(rows["failed"] == 1) & ((rows["fails"] == 1) | (not alone))]
    found = []
    for value, part in _groups(wrong, by):
        shares = {name: (part["whose"] == name).astype(float) for name in (ASKED, ANOTHER, NOBODY)}
        means = pd.DataFrame(shares | {"chance": part["chance another"]}).groupby(part["query"]).mean()
        interval = estimate(means[ANOTHER].to_numpy())
        row = {"by": by, "value": value, "hits": len(part), **means[[*shares]].mean()}
        row |= {"low": interval.low, "high": interval.high, "chance": means["chance"].mean()}
        found.append(row | _difference(means[ANOTHER], means["chance"], "beyond"))
    return _tests(found)


def errors(rows: pd.DataFrame, by: str = "all") -> pd.DataFrame:
    """How often the first hit fails what is asked, by variant and one of GROUPS; `rows` are `Binding.rows`.

    Not every condition has every variant: `effects` compares them on those that have both. A query counts
    once. Columns: by, value, variant, queries, error with low and high (95% interval), chance (of a product
    of the wanted class), beyond (error less chance: below 0 the condition is heeded) with its interval, p and
    p (Holm). Raises ValueError for another group.
    """
    found = []
    for value, group in _groups(rows[rows["chance failed"].notna()], by):
        for variant, part in group.groupby("variant", sort=False):
            means = part.groupby("query")[["failed", "chance failed"]].mean()
            interval = estimate(means["failed"].to_numpy())
            row = {"by": by, "value": value, "variant": variant, "queries": len(means)}
            row |= {"error": interval.mean, "low": interval.low, "high": interval.high}
            row |= {"chance": means["chance failed"].mean()}
            found.append(row | _difference(means["failed"], means["chance failed"], "beyond"))
    return _tests(found)


CONTRASTS = ((ELSE, SAME), (ELSE, NOTHING), (NOTHING, SAME))


def effects(rows: pd.DataFrame, by: str = "all") -> pd.DataFrame:
    """What other references do to the error: each of CONTRASTS on the same queries and conditions, by one of
    GROUPS; `rows` are `Binding.rows`.

    0 for a model that binds. A query counts once. Columns: by, value, contrast, queries, error and against
    (of the two variants), difference with its interval, p and p (Holm). A contrast that no query has both
    sides of is not there. Raises ValueError for another group.
    """
    found = []
    for value, group in _groups(rows, by):
        table = group.pivot_table("failed", ["query", "place"], "variant")
        for own, other in CONTRASTS:
            pairs = table.reindex(columns=[own, other]).dropna().groupby("query").mean()
            if len(pairs):
                row = {"by": by, "value": value, "contrast": f"{own} − {other}", "queries": len(pairs)}
                row |= {"error": pairs[own].mean(), "against": pairs[other].mean()}
                found.append(row | _difference(pairs[own], pairs[other], "difference"))
    return _tests(found)


def in_words(rows: pd.DataFrame) -> str:
    """`taken` in a line: how often a wrong value is another reference's, of all and by attribute."""
    if taken(rows).empty:
        return "binding: no first hit fails one condition alone"
    every = taken(rows).iloc[0]
    parts = ", ".join(
        f"{row['value']} {row[ANOTHER]:.0%} ({row['chance']:.0%}, {row['hits']} hits)"
        for row in taken(rows, "attribute").sort_values("hits", ascending=False).to_dict("records")
    )
    return (
        f"binding: where the first hit fails one condition alone, its value is another reference's in "
        f"{every[ANOTHER]:.0%} [{every['low']:.0%}, {every['high']:.0%}] of {every['hits']} "
        f"(chance {every['chance']:.0%}, p {every['p']:.2g}); by attribute, chance in brackets: {parts}"
    )


def _groups(rows: pd.DataFrame, by: str) -> Iterator[tuple[str | int, pd.DataFrame]]:
    if by not in GROUPS:
        raise ValueError(f"by is {brief(by)}; use one of {', '.join(GROUPS)}")
    if by == "all":
        yield from [("all", rows)] if len(rows) else []
    else:
        yield from rows.groupby(by)


def _difference(own: pd.Series, other: pd.Series, name: str) -> dict[str, float]:
    found = paired_difference(own.to_numpy(float), other.to_numpy(float))
    return {name: found.mean, f"{name} low": found.low, f"{name} high": found.high, "p": found.p}


def _tests(rows: Sequence[dict]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    return table.assign(**{"p (Holm)": holm(table["p"].to_numpy())}) if len(table) else table
