"""The right answers to the notebooks' exercises, from what a notebook has at hand (`exercises.check`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from coral_lab.evaluation import Asked, Result
from coral_lab.metrics import holm
from coral_lab.prompts import Format
from coral_lab.query import AS_IMAGE, Dataset, Product, Query, right_answers
from coral_lab.retrieval import Index, ranking
from coral_lab.sources.judgements import Session
from coral_lab.study.comparison import judged
from coral_lab.study.edits import orders, text_only
from coral_lab.study.languages import Parallel
from coral_lab.study.scaling import CODE, Assumptions
from coral_lab.study.splits import compositional_split
from coral_lab.study.sweeps import sweep


def found_only_by(one: Result, other: Result) -> int:
    """The number of queries whose first hit is right by one result and not by the other."""
    return int((one.relevant[:, 0] & ~other.relevant[:, 0]).sum())


def leaves_training(shop: Dataset, kind: str, share: float) -> float:
    """The share of products that have a pair which is held out, counted from their attributes."""
    pairs = compositional_split(shop, kind, share).held_out
    halves = [
        {(own.class_name,), *((key, value) for key, values in own.attributes.items() for value in values)}
        for own in shop.products
    ]
    return sum(any(own.issuperset(pair) for pair in pairs) for own in halves) / len(halves)


def contrastive_loss(degrees: list[int], temperature: float) -> float:
    """Of a query at 0° and candidates at so many, of which the first is its answer."""
    scores = np.cos(np.deg2rad(degrees)) / temperature
    return float(np.log(np.exp(scores - scores[0]).sum()))


def told_without_correction(findings: pd.DataFrame) -> set[str]:
    """The numbers of findings whose p is below 0.05 before Holm's correction, and not after it."""
    p = findings.set_index("number")["p"]
    return {str(number) for number in p.index[(p < 0.05) & (holm(p.to_numpy()) >= 0.05)]}


def wrong_among_surest(hits: pd.DataFrame, share: float) -> int:
    """The number of wrong first hits in so large a share of the queries, largest gap first."""
    return int(hits.nlargest(int(share * len(hits)), "gap")["wrong"].sum())


def never_found(result: Result) -> int:
    """The number of products that are among the hits of no query."""
    found = {row for own in result.ranked.tolist() for row in own}
    return len(set(range(len(result.products))) - found)


def gpus_for(products: int, days: float, assumed: Assumptions) -> int:
    """The fewest GPUs that encode so many products in so many days."""
    operations = products * assumed.flop
    return math.ceil(operations / (days * 24 * 3600 * assumed.share * assumed.peak))


def fit_in(memory: float, assumed: Assumptions) -> int:
    """How many products' index codes fit into so many GB."""
    return int(memory * 1e9 // (assumed.code + CODE))


def near_misses(query: Query, products: Sequence[Product]) -> int:
    """The number of products of the wanted class that have all but one of the values that have words."""
    wanted = {(c.attribute, c.value) for c in query.conditions if c.value not in ("", AS_IMAGE)}
    pool = [product.attributes for product in products if product.class_name == query.class_name]
    pairs = ({(key, value) for key, values in own.items() for value in values} for own in pool)
    return sum(len(wanted - own) == 1 for own in pairs)


def titles_alone(shop: Dataset) -> int:
    """The number of queries whose conditions all ask for what only titles tell."""
    asked = [{condition.attribute for condition in query.conditions} for query in shop.queries]
    return sum(own.issubset(shop.traits.textual) for own in asked)


def hits_kept(index: Index, query: Query, edited: Query, k: int) -> int:
    """The number of a query's first `k` hits that are among those of an edited one."""
    _, rows = ranking((query, edited), index.encode((query, edited)), index, k)
    return len(set(rows[0].tolist()).intersection(rows[1].tolist()))


def right_hits(index: Index, query: Query, k: int) -> int:
    """The number of a query's first `k` hits that are right answers, by facts."""
    _, rows = ranking((query,), index.encode(query), index, k)
    return len(right_answers(query, [index.products[row] for row in rows[0]]))


def half_torn(embeddings: np.ndarray, places: np.ndarray, k: int) -> int:
    """The number of products of whose `k` nearest in the space at least half are not so on the map."""
    count = 0
    for i in range(len(places)):
        far, away = -(embeddings @ embeddings[i]), np.square(places - places[i]).sum(1)
        near, shown = (order[order != i][:k] for order in map(np.argsort, (far, away)))
        count += 2 * len(set(near) - set(shown)) >= k
    return int(count)


def first_hits(index: Index, query: Query) -> int:
    """The number of products that come first in some order of the query's conditions."""
    return int(sweep(index, [query], orders)["first"].nunique())


def r_at_1_of_last(asked: Asked, dim: int) -> float:
    """R@1 of embeddings of which the last `dim` dimensions are kept."""
    pool, queries = (own[:, -dim:] for own in (asked.index.embeddings, asked.embeddings))
    pool = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    short = replace(asked.index, embeddings=pool.astype(np.float32))
    return judged(short, asked.queries, queries).metrics["R@1"].mean


def partly_answered(session: Session) -> int:
    """The number of queries of which some product is marked partly right, or right."""
    return len({query for (query, _), own in session.judgements.items() if own.grade != "wrong"})


def strict_kappa(session: Session) -> float:
    """Cohen's kappa of a judge and one who differs in calling wrong what the first calls partly right."""
    marks = pd.Series([own.grade for own in session.judgements.values()])
    shares, partly = marks.value_counts(normalize=True), (marks == "partly").mean()
    right, wrong = shares.get("right", 0.0), shares.get("wrong", 0.0)
    chance = right**2 + wrong * (wrong + partly)
    return float((1 - partly - chance) / (1 - chance))


def shared_by_titles(
    picture: np.ndarray, title: np.ndarray, facts: Mapping[str, Sequence[str]], k: int
) -> set[str]:
    """The facts that the `k` nearest share at least 0.1 more often by titles than by pictures."""
    near = [
        np.argsort(-(own @ own.T) + 9 * np.eye(len(own)), axis=1, kind="stable")[:, :k]
        for own in (picture, title)
    ]
    more = {
        fact: [np.mean([values[j] == values[i] for i, own in enumerate(rows) for j in own]) for rows in near]
        for fact, values in facts.items()
    }
    return {fact for fact, (by_picture, by_title) in more.items() if by_title >= by_picture + 0.1}


def mean_cosine(rows: np.ndarray) -> float:
    """Of all pairs of different rows, from their matrix."""
    cosines = rows.astype(np.float64) @ rows.T.astype(np.float64)
    return float(cosines[np.triu_indices(len(rows), 1)].mean())


def rescued_by_order(table: pd.DataFrame) -> int:
    """The number of queries whose answer comes first in some order, and not in the one asked: a sweep's rows
    of orders, that one first.
    """
    first = [own.tolist() for _, own in table.groupby("query")["rank"]]
    return sum(1 in ranks and ranks[0] != 1 for ranks in first)


def r_at_1_of_all_orders(index: Index, queries: Sequence[Query]) -> float:
    """R@1 of the mean of a query's embeddings in all orders of its conditions."""
    right = 0
    for query in queries:
        mean = index.encode([edited for _, edited in orders(query)]).mean(0, keepdims=True)
        _, rows = ranking((query,), mean, index, 1)
        right += index.products[rows[0, 0]].id in query.positives
    return right / len(queries)


def nearest_is_itself(own: Parallel) -> int:
    """The number of products whose title in the first language has another title of theirs nearest to it."""
    titles, count = own.products, 0
    for product, row in enumerate(titles[0]):
        cosines = titles @ row
        cosines[0, product] = -2
        count += int(cosines.argmax()) % titles.shape[1] == product
    return count


def queries_needed(differences: np.ndarray, size: float) -> float:
    """How many queries find a mean difference of that size 8 times of 10, from paired differences of some."""
    return float(np.var(differences, ddof=1) * ((1.959964 + 0.841621) / size) ** 2)


def r_at_1_of_titles(index: Index, queries: Sequence[Query]) -> float:
    """R@1 of queries whose references have no pictures."""
    table = sweep(index, queries, text_only)
    return float((table.loc[table["edit"] == "text only", "rank"] == 1).mean())


def first_hits_changed(index: Index, queries: Sequence[Query], format: str | Format) -> int:
    """The number of queries of two conditions whose first hit changes when these change places."""
    table = sweep(index, queries, orders, formats={"it": format})
    hits = table.pivot(index="query", columns="edit", values="first")
    return int((hits["0-1"] != hits["1-0"]).sum())
