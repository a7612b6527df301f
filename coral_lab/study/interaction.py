"""Do the conditions of a query get in one another's way? All 2^k subsets of them, asked of the same pool.

Three questions. Is a condition met less often when another is asked beside it (`by_asking`)? Is it met less
often when the other is met (`by_meeting`)? Is it harder to meet more of them, when right answers and near
misses are as many (`by_number`)? The unit of every interval is the query, with all its subsets.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32

from coral_lab.encoder import UNKEPT, encode_all
from coral_lab.errors import ItemError
from coral_lab.metrics import Difference, estimate, holm, paired_difference
from coral_lab.prompts import Format
from coral_lab.query import Query, Traits, name_of
from coral_lab.retrieval import Index
from coral_lab.study.edits import Edited
from coral_lab.study.facts import Facts, asked_values, candidates, is_known
from coral_lab.study.scores import auroc

MOST = 6
"""Conditions of a query whose subsets are asked: 64."""

FEWEST = 5
"""Pairs of conditions of a kind, below which no interval is given."""

NONE = "none"
RESAMPLES = 2000


def subsets(query: Query) -> Iterator[Edited]:
    """The query with every subset of its conditions, the class alone ("none") first and all of them ("0-1")
    last; the free text stays. No query without anything to ask.
    """
    places = range(len(query.conditions))
    for count in range(len(query.conditions) + 1):
        for chosen in combinations(places, count):
            if chosen or query.class_name or query.text.strip():
                name = "-".join(map(str, chosen)) or NONE
                yield name, query.edited(conditions=tuple(query.conditions[i] for i in chosen))


def ask_subsets(
    index: Index, queries: Iterable[Query], traits: Traits = Traits(), format: str | Format | None = None
) -> pd.DataFrame:
    """Rank the pool for every subset of each query's conditions: one row a query and subset.

    Columns: query, subset ("0-2"; "none"), conditions (how many are asked), attributes (of all the query's
    conditions), met (whether the first hit meets each of them, asked or not; None without a word for it),
    first (the first hit's id), right (it has the class and all that is asked), positives and near misses (how
    many products do, and how many of the class fail exactly one of the conditions asked), near AUROC (the
    chance that one of the first kind scores higher than one of the second). The last four count the free text
    by `traits`, and are NaN where no word says all that is asked, or for lack of products.

    The query's references stay out of all its rankings, asked or not, unless they are positives. Raises
    ItemError for more than MOST conditions, or two queries with one id, ValueError for no queries.
    """
    queries = tuple(queries)
    _check(queries)
    facts = Facts(index.products)
    rows: list[dict] = []
    for query in queries:
        edits = list(subsets(query))
        own = replace(UNKEPT, batch_size=len(edits))  # each picture of a query is looked at once
        found = encode_all(index.model, [edited for _, edited in edits], format or index.format, own)
        rows += _ranked(index, facts, traits, query, edits, found.embeddings)
    return pd.DataFrame(rows)


def _check(queries: Sequence[Query]) -> None:
    if not queries:
        raise ValueError("0 queries are given; give one, or sample some: cl.dataset(…, sample=500)")
    seen: set[str] = set()
    for query in queries:
        if len(query.conditions) > MOST:
            problem = (
                f"it has {len(query.conditions)} conditions, and 2 to that power would be asked; give up to"
            )
            raise ItemError(name_of(query), f"{problem} {MOST}")
        if query.id in seen:
            raise ItemError(name_of(query), "its id stands twice; give each its own")
        seen.add(query.id)


def _ranked(
    index: Index,
    facts: Facts,
    traits: Traits,
    query: Query,
    edits: Sequence[Edited],
    embeddings: Float32[np.ndarray, "edit dim"],
) -> Iterator[dict]:
    """A row an edit."""
    left = candidates(query, index)
    if not left.any():
        raise ItemError(name_of(query), "the pool has nothing but its references; give a larger one")
    for (name, edited), embedding in zip(edits, embeddings, strict=True):
        scores = np.where(left, index.embeddings @ embedding, -np.inf)
        first = index.products[int(scores.argmax())]
        yield {
            "query": query.id,
            "subset": name,
            "conditions": len(edited.conditions),
            "attributes": tuple(condition.attribute for condition in query.conditions),
            "met": tuple(condition.met_by(first) for condition in query.conditions),
            "first": first.id,
        } | _difficulty(facts, traits, edited, scores, left)


def _difficulty(
    facts: Facts, traits: Traits, query: Query, scores: np.ndarray, left: Bool[np.ndarray, " product"]
) -> dict[str, float | int]:
    names = ("right", "positives", "near misses", "near AUROC")
    if not is_known(query, traits):
        return dict.fromkeys(names, float("nan"))
    meets = facts.meeting(asked_values(query, traits))
    conditions, text = meets[: len(query.conditions)], meets[len(query.conditions) :]
    own = left & facts.of_class(query.class_name) & text.all(0)
    failed = (~conditions).sum(0)
    right, near = own & (failed == 0), own & (failed == 1)
    if not right.any():
        return dict.fromkeys(names, float("nan"))
    values = (right[scores.argmax()], right.sum(), near.sum(), auroc(scores[right], scores[near]))
    return dict(zip(names, map(float, values), strict=True))


def by_asking(table: pd.DataFrame) -> pd.DataFrame:
    """Is a condition met less often when another is asked beside it? Indexed by attribute, "all" first.

    `table` is `ask_subsets`'. Columns: queries, not asked (share met with nothing asked but the class), alone
    (with this condition alone), together (with one other, mean over these), difference (together less alone,
    paired by query, with low, high, p and, over attributes, p (Holm)), and interaction: what asking for it
    adds beside another one less what it adds alone, with low, high and p. The other reference may have the
    value too, so that asking for that one alone adds a little: it is counted. Raises ValueError without a
    query of two conditions with words.
    """
    cells = pd.DataFrame([row for _, own in table.groupby("query", sort=False) for row in _asking(own)])
    if cells.empty:
        raise ValueError("no query has two conditions with words for them; give queries that do")
    parts = {"all": cells} | {str(name): own for name, own in cells.groupby("attribute")}
    rows = {
        name: _asked_row(own.drop(columns="attribute").groupby("query").mean()) for name, own in parts.items()
    }
    found = pd.DataFrame.from_dict(rows, orient="index").rename_axis("attribute")
    found.loc[found.index != "all", "p (Holm)"] = holm(found["p"].to_numpy()[1:])
    return found


def _asking(own: pd.DataFrame) -> Iterator[dict]:
    """A row for each condition of a query with two or more: how it is met in the subsets that matter."""
    met = dict(zip(own["subset"], own["met"], strict=True))
    attributes = own["attributes"].iloc[0]
    for i, attribute in enumerate(attributes):
        others = [j for j in range(len(attributes)) if j != i]
        if NONE in met and others and met[NONE][i] is not None:
            yield {
                "query": own["query"].iloc[0],
                "attribute": attribute,
                "not asked": float(met[NONE][i]),
                "alone": float(met[str(i)][i]),
                "other": np.mean([met[str(j)][i] for j in others]),
                "together": np.mean([met[_pair(i, j)][i] for j in others]),
            }


def _pair(i: int, j: int) -> str:
    return f"{min(i, j)}-{max(i, j)}"


def _asked_row(own: pd.DataFrame) -> dict[str, float | int]:
    none, alone, other, together = (
        own[name].to_numpy(float) for name in ("not asked", "alone", "other", "together")
    )
    row = {"queries": len(own), "not asked": none.mean(), "alone": alone.mean(), "together": together.mean()}
    row |= _told("difference", paired_difference(together, alone))
    return row | _told("interaction", paired_difference(together - other, alone - none), "interaction ")


def _told(name: str, found: Difference, before: str = "") -> dict[str, float | int]:
    return {name: found.mean, f"{before}low": found.low, f"{before}high": found.high, f"{before}p": found.p}


def by_meeting(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Are two conditions met together more often, or less, than independent ones of the same attributes?

    Rows: "together" (both asked, one first hit), "apart" (each asked alone, so that only an easy query ties
    them) and "difference", what one ranking does to them. Columns: queries, pairs, the shares of pairs of
    which both, one or neither is met, both by chance (if independent within each pair of attributes) and p
    (of that, by exchanging the second of such pairs between queries); and the log odds ratio of meeting one
    and the other, pooled over pairs of attributes (Mantel and Haenszel 1959), 0 for independent ones, with
    low and high (95%, queries drawn anew). Its bounds are NaN with fewer than FEWEST pairs of a kind,
    for draws cannot show what never happened. Raises as `by_asking`.
    """
    pairs = pd.DataFrame([row for _, own in table.groupby("query", sort=False) for row in _meeting(own)])
    if pairs.empty:
        raise ValueError("no query has two conditions with words for them; give queries that do")
    strata, place = pd.factorize(pairs["attributes"])[0], pd.factorize(pairs["query"])[0]
    weights = _draws(int(place.max()) + 1, seed)[:, place]
    counts = {"queries": int(place.max()) + 1, "pairs": len(pairs)}
    rows, odds = {}, {}
    for name in ("together", "apart"):
        met = np.array(pairs[name].tolist(), bool)
        odds[name] = _log_odds(met, strata, weights)
        rows[name] = counts | _shares(met, strata, seed) | _interval(odds[name], "log odds ratio")
    with np.errstate(invalid="ignore"):
        gap = odds["together"] - odds["apart"]
    gap[~np.isfinite(gap)] = np.nan  # from what never happened nothing can be taken away
    rows["difference"] = counts | _interval(gap, "log odds ratio")
    return pd.DataFrame.from_dict(rows, orient="index")


def _shares(met: Bool[np.ndarray, "pair 2"], strata: np.ndarray, seed: int) -> dict[str, float | int]:
    """What is met, and whether chance does that: the margins of every stratum stay."""
    number, both, expected = met.sum(1), met.all(1).sum(), 0.0
    random, dealt = np.random.default_rng(seed), np.zeros(RESAMPLES)
    for stratum in range(int(strata.max()) + 1):
        first, second = met[strata == stratum].T
        expected += first.sum() * second.sum() / len(first)
        dealt += (random.permuted(np.tile(second, (RESAMPLES, 1)), axis=1) & first).sum(1)
    p = (1 + (np.abs(dealt - expected) >= abs(both - expected) - 1e-9).sum()) / (1 + RESAMPLES)
    shares = {"both": (number == 2).mean(), "one": (number == 1).mean(), "neither": (number == 0).mean()}
    return shares | {"both by chance": float(expected / len(met)), "p": float(p)}


def _meeting(own: pd.DataFrame) -> Iterator[dict]:
    met = dict(zip(own["subset"], own["met"], strict=True))
    attributes = own["attributes"].iloc[0]
    for i, j in combinations(range(len(attributes)), 2):
        together, apart = (met[_pair(i, j)][i], met[_pair(i, j)][j]), (met[str(i)][i], met[str(j)][j])
        if None not in together:
            if attributes[i] > attributes[j]:
                together, apart = together[::-1], apart[::-1]
            names = " ".join(sorted((attributes[i], attributes[j])))
            yield {
                "query": own["query"].iloc[0],
                "attributes": names,
                "together": together,
                "apart": apart,
            }


def _draws(queries: int, seed: int) -> Float[np.ndarray, "draw query"]:
    """How often each query is drawn: once each at first, then anew so many times."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(queries, np.full(queries, 1 / queries), RESAMPLES)
    return np.vstack([np.ones(queries), drawn]).astype(float)


def _log_odds(
    met: Bool[np.ndarray, "pair 2"], strata: np.ndarray, weights: Float[np.ndarray, "draw pair"]
) -> Float[np.ndarray, " draw"]:
    first, second = met.T
    cells = (first & second, ~first & ~second, first & ~second, ~first & second)
    total = np.maximum(_sums(weights, strata), 1)
    both, neither, one, other = (_sums(weights * cell, strata) for cell in cells)
    with np.errstate(invalid="ignore", divide="ignore"):
        odds = np.log((both * neither / total).sum(1) / (one * other / total).sum(1))
    if min(cell.sum() for cell in cells) < FEWEST:
        odds[1:] = np.nan
    return odds


def _sums(values: Float[np.ndarray, "draw pair"], strata: np.ndarray) -> Float[np.ndarray, "draw stratum"]:
    """Sums over the pairs of each stratum."""
    return values @ np.eye(int(strata.max()) + 1)[strata]


def _interval(draws: Float[np.ndarray, " draw"], name: str) -> dict[str, float | int]:
    """The first is the estimate, the others are its draws."""
    known = draws[1:][np.isfinite(draws[1:])]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (float("nan"), float("nan"))
    return {name: float(draws[0]), "low": float(low), "high": float(high)}


def by_number(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Is it harder to meet one condition more? Indexed by "1 to 2", "2 to 3", …; `table` is `ask_subsets`'.

    A query of more conditions has fewer right answers and fewer near misses, which pull both ways. So subsets
    are compared within strata that have as many of each, by halves of a doubling, and the strata's
    differences are averaged by how much each can tell (Mantel and Haenszel's risk difference; Greenland and
    Robins 1985). That keeps every subset which has a counterpart, where matching one to one keeps fewer and
    depends on an order. Columns: queries; fewer and more (share of right first hits) and difference, as they
    are, paired by query; matched fewer and matched more (subsets left), matched difference (NaN for none
    left); what the matched subsets have: positives and near misses, fewer and more; and near AUROC change, of
    the same queries, which no number of products moves. Each with low and high (95% over queries). Raises
    ValueError without subsets of one condition and of two whose answers are known.
    """
    known = table[(table["conditions"] > 0) & table["right"].notna()]
    sizes = sorted(map(int, known["conditions"].unique()))
    rows = {f"{size} to {size + 1}": _one_more(known, size, seed) for size in sizes if size + 1 in sizes}
    if not rows:
        raise ValueError(
            "no query has subsets of one and of two conditions with known answers; give some that do"
        )
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("conditions")


def _one_more(known: pd.DataFrame, size: int, seed: int) -> dict[str, float | int]:
    both = known[known["conditions"].isin((size, size + 1))]
    means = both.pivot_table(index="query", columns="conditions", values="right").dropna()
    fewer, more = means[size].to_numpy(), means[size + 1].to_numpy()
    gap = paired_difference(more, fewer)
    row: dict[str, float | int] = {"queries": len(means), "fewer": fewer.mean(), "more": more.mean()}
    row |= _told("difference", gap) | _matched(both, size, seed)
    near = both.pivot_table(index="query", columns="conditions", values="near AUROC")
    near = near.reindex(columns=[size, size + 1]).dropna()
    if len(near):
        own = estimate((near[size + 1] - near[size]).to_numpy(), seed=seed)
        row |= {"near AUROC fewer": near[size].mean(), "near AUROC more": near[size + 1].mean()}
        row |= {"near AUROC change": own.mean, "near AUROC low": own.low, "near AUROC high": own.high}
    return row


def _matched(both: pd.DataFrame, size: int, seed: int) -> dict[str, float | int]:
    """The stratified difference, and what is left on either side."""
    bins = (np.log2(both[["positives", "near misses"]] + 1) * 2).astype(int)
    strata = pd.factorize(bins["positives"] * 1000 + bins["near misses"])[0]
    place = pd.factorize(both["query"])[0]
    weights = _draws(int(place.max()) + 1, seed)[:, place]
    more = (both["conditions"] == size + 1).to_numpy()
    numbers = [_sums(weights * own, strata) for own in (~more, more)]
    share = numbers[0] * numbers[1] / np.maximum(numbers[0] + numbers[1], 1)

    def mean(column: str) -> list[np.ndarray]:
        values = both[column].to_numpy(float)
        sums = [_sums(weights * own * values, strata) for own in (~more, more)]
        with np.errstate(invalid="ignore"):
            return [
                (share * own / np.maximum(n, 1)).sum(1) / share.sum(1)
                for own, n in zip(sums, numbers, strict=True)
            ]

    fewer, other = mean("right")
    left = share[0] > 0
    row = {"matched fewer": numbers[0][0, left].sum(), "matched more": numbers[1][0, left].sum()}
    found = _interval(other - fewer, "matched difference")
    row |= {"matched difference": found["matched difference"]}
    row |= {"matched low": found["low"], "matched high": found["high"]}
    for column in ("positives", "near misses"):
        row |= {f"{column} {name}": own[0] for name, own in zip(("fewer", "more"), mean(column), strict=True)}
    return row


def figures(table: pd.DataFrame) -> tuple[dict[str, float | int], pd.DataFrame]:
    """A row about a checkpoint: `by_asking`, `by_meeting` and `by_number` by name; and `table` with `met` and
    `attributes` as words.
    """
    row: dict[str, float | int] = {}
    for attribute, own in by_asking(table).iterrows():
        row |= {f"{attribute} {name}": float(value) for name, value in own.items()}
    for way, own in by_meeting(table).iterrows():
        row |= {f"{way} {name}": float(value) for name, value in own.items()}
    for step, own in by_number(table).iterrows():
        row |= {f"{step} {name}": float(value) for name, value in own.items()}
    words = table.assign(
        attributes=table["attributes"].map(" ".join),
        met=table["met"].map(lambda own: " ".join("?" if met is None else str(int(met)) for met in own)),
    )
    return row, words.round(4)
