"""What a score says: does it tell products that meet a query from those that do not, does it warn of a wrong
first hit, and how many errors are left if the doubtful queries are not answered?

A ranking uses the order of scores only within a query. AUROC within a query is the chance that a product that
meets it scores higher than one that does not (0.5 is none), whatever the number of either; AUROC over queries
asks whether scores can be compared between queries, which no training for retrieval promises.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from scipy import stats

from coral_lab.evaluation import Asked, Result
from coral_lab.metrics import DEPTH, Estimate, estimate
from coral_lab.query import Query, Traits
from coral_lab.study.facts import Facts, asked_values, candidates, is_known
from coral_lab.study.plots import PALETTE, TEMPLATE, plain

SIGNS = ("gap", "top", "spread")
"""What may warn of a wrong first hit: its score less the second's, its score, its score less the tenth's."""

RESAMPLES = 999
COLUMNS = ["query", "conditions", "met", "against", "n met", "n unmet", "AUROC"]


def auroc(
    met: Float[np.ndarray, "*some met"], unmet: Float[np.ndarray, "*some unmet"], axis: int = -1
) -> Any:
    """The chance that one of `met` is higher than one of `unmet`, ties counting half; NaN for none of either.

    The U statistic over the number of pairs (Mann and Whitney 1947), along an axis.
    """
    pairs = met.shape[axis] * unmet.shape[axis]
    if pairs == 0:
        return float("nan")
    return stats.mannwhitneyu(met, unmet, axis=axis, method="asymptotic").statistic / pairs


def met_against_unmet(asked: Asked, traits: Traits) -> pd.DataFrame:
    """For each query, how well its scores tell the products that meet it: one row a query and comparison.

    Columns: query, conditions (n of them, the free text's among them), met ("all" of them, or "1 of 3": at
    least so many; the class as well always), against ("all others" of the pool, "others of the class", or
    "only brand": products that fail the brand and nothing else, "only class" likewise), n met, n unmet and
    AUROC (NaN where there is none of either). References stay out unless they are positives. A query of
    which no word says all that it asks has one row, with NaN.
    """
    facts, rows = Facts(asked.index.products), []
    for query, embedding in zip(asked.queries, asked.embeddings, strict=True):
        scores = (asked.index.embeddings @ embedding).astype(np.float64)
        left = candidates(query, asked.index)
        unknown = [("all", "all others", np.zeros(facts.count, bool), np.zeros(facts.count, bool))]
        known = is_known(query, traits)
        values = asked_values(query, traits)
        for met, against, right, wrong in _compared(facts, query, values) if known else unknown:
            right, wrong = right & left, wrong & left
            row = (query.id, len(values), met, against, int(right.sum()), int(wrong.sum()))
            rows.append((*row, float(auroc(scores[right], scores[wrong]))))
    return pd.DataFrame(rows, columns=COLUMNS)


def _compared(
    facts: Facts, query: Query, values: tuple[tuple[str, str], ...]
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """What is met, against what, and the masks of both."""
    own, meets = facts.of_class(query.class_name), facts.meeting(values)
    number = meets.sum(0)
    for least in range(len(values), 0, -1):
        enough = own & (number >= least)
        met = "all" if least == len(values) else f"{least} of {len(values)}"
        yield met, "all others", enough, ~enough
        yield met, "others of the class", enough, own & ~enough
    right, one = own & (number == len(values)), number == len(values) - 1
    for (attribute, _), mask in zip(values, meets, strict=True):
        yield "all", f"only {attribute}", right, own & one & ~mask
    if query.class_name:
        yield "all", "only class", right, ~own & (number == len(values))


def separation(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean AUROC over queries with its 95% interval, by what is met and against what: `met_against_unmet`'s
    rows.

    Columns: met, against, queries (those that have both kinds of products), AUROC, low, high.
    """
    known = rows.dropna(subset="AUROC")
    by_query = known.groupby(["met", "against", "query"], sort=False)["AUROC"].mean()
    found = []
    for (met, against), values in by_query.groupby(level=[0, 1], sort=False):
        own = estimate(values.to_numpy())
        found.append((met, against, own.n, own.mean, own.low, own.high))
    return pd.DataFrame(found, columns=["met", "against", "queries", "AUROC", "low", "high"])


def signs(result: Result) -> pd.DataFrame:
    """What may warn of a wrong first hit: one row a query with query, wrong (the first hit is no positive),
    and the SIGNS gap, top and spread.

    Raises ValueError for a ranking of fewer than ten hits.
    """
    if result.ranked.shape[1] < DEPTH or (result.ranked[:, :DEPTH] < 0).any():
        raise ValueError(f"a query has fewer than {DEPTH} hits; rank a larger pool, to depth {DEPTH} or more")
    scores = result.scores[:, :DEPTH].astype(np.float64)
    first = scores[:, 0]
    own = {"gap": first - scores[:, 1], "top": first, "spread": first - scores[:, -1]}
    ids = [query.id for query in result.queries]
    return pd.DataFrame({"query": ids, "wrong": ~result.relevant[:, 0], **own})


def warned(sign: Float[np.ndarray, " sign"], wrong: Bool[np.ndarray, " query"], seed: int = 0) -> Estimate:
    """AUROC of a sign: the chance that a query whose first hit is right has more of it than one whose is
    wrong, with its 95% bootstrap interval over both kinds of queries.

    NaN where all are right or all wrong; its bounds are NaN with one of a kind. Raises ValueError unless
    there is one finite sign a query.
    """
    _check(sign, wrong)
    right, failed = sign[~wrong], sign[wrong]
    mean = float(auroc(right, failed))
    if min(len(right), len(failed)) < 2:
        return Estimate(mean, float("nan"), float("nan"), len(sign))
    way = {"method": "percentile", "n_resamples": RESAMPLES, "batch": 100}
    found = stats.bootstrap((right, failed), auroc, vectorized=True, rng=seed, **way).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), len(sign))


def risk_coverage(sign: Float[np.ndarray, " sign"], wrong: Bool[np.ndarray, " query"]) -> pd.DataFrame:
    """The share of wrong first hits (risk) among the queries with most of a sign, by the share of queries
    that are answered (coverage): one row a query more (Geifman and El-Yaniv 2017, arXiv 1705.08500).

    Queries with the same sign come in any order, so each counts with their mean. Raises as `warned`.
    """
    _check(sign, wrong)
    coverage = np.arange(1, len(sign) + 1) / len(sign)
    return pd.DataFrame({"coverage": coverage, "risk": _risks(sign, wrong)})


def _risks(sign: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    _, group = np.unique(sign, return_inverse=True)
    tied = np.bincount(group, wrong) / np.bincount(group)
    return tied[group][np.argsort(-sign, kind="stable")].cumsum() / np.arange(1, len(sign) + 1)


def aurc(sign: Float[np.ndarray, " sign"], wrong: Bool[np.ndarray, " query"], seed: int = 0) -> Estimate:
    """The area under `risk_coverage`'s curve: the mean risk over all coverages, with its 95% bootstrap
    interval over queries; lower is better (Geifman et al. 2019, arXiv 1805.08206).

    A sign that says nothing has the risk of answering all; `least_aurc` is what the best sign could have.
    Raises as `warned`.
    """
    _check(sign, wrong)
    mean = float(_risks(sign, wrong).mean())
    if len(sign) < 2 or wrong.all() or not wrong.any():
        return Estimate(mean, mean, mean, len(sign))
    found = stats.bootstrap(
        (sign, wrong),
        lambda some, failed: _risks(some, failed).mean(),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=RESAMPLES,
        rng=seed,
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), len(sign))


def least_aurc(wrong: Bool[np.ndarray, " query"]) -> float:
    """The area if every wrong first hit were answered last."""
    return float(_risks((~wrong).astype(float), wrong).mean())


def _check(sign: np.ndarray, wrong: np.ndarray) -> None:
    if len(sign) != len(wrong) or len(sign) == 0 or not np.isfinite(sign).all():
        raise ValueError(f"{len(sign)} signs for {len(wrong)} queries; give one finite number for each query")


def predictors(table: pd.DataFrame) -> pd.DataFrame:
    """How well each of the SIGNS warns: indexed by sign, with AUROC and AURC, their 95% intervals, the risk
    of answering all queries, and the least AURC that so many errors allow. `table` is `signs`'.
    """
    wrong, rows = table["wrong"].to_numpy(bool), {}
    for name in SIGNS:
        sign = table[name].to_numpy(float)
        row = _told("AUROC", warned(sign, wrong)) | _told("AURC", aurc(sign, wrong))
        rows[name] = row | {"risk": float(wrong.mean()), "least AURC": least_aurc(wrong)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("sign")


def _told(name: str, found: Estimate) -> dict[str, float]:
    return {name: float(found.mean), f"{name} low": float(found.low), f"{name} high": float(found.high)}


def coverage_curves(tables: Mapping[str, pd.DataFrame], title: str = "") -> go.Figure:
    """`risk_coverage`'s tables by name: what is answered across, what of it is wrong upwards.

    Raises ValueError for more curves than there are colours.
    """
    if len(tables) > len(PALETTE):
        raise ValueError(f"{len(tables)} curves are given; show up to {len(PALETTE)} in one figure")
    figure = go.Figure()
    for (name, table), colour in zip(tables.items(), PALETTE, strict=False):
        figure.add_scatter(
            x=table["coverage"],
            y=table["risk"],
            name=plain(name),
            mode="lines",
            line={"color": colour},
            hovertemplate="%{x:.0%} answered: %{y:.3f} wrong",
        )
    figure.update_layout(
        template=TEMPLATE, height=360, title=plain(title), margin={"l": 70, "r": 10, "t": 50, "b": 55}
    )
    figure.update_xaxes(title="coverage: share of queries answered, surest first", range=[0, 1.02])
    figure.update_yaxes(
        title="risk: share of these that are wrong", title_standoff=12, automargin=True, rangemode="tozero"
    )
    return figure


def figures(asked: Asked, traits: Traits) -> tuple[dict[str, float | int], pd.DataFrame]:
    """A row about a checkpoint's scores, `separation`'s and `predictors`' figures by name, and `signs`' rows
    with each query's AUROC against all others and others of the class.
    """
    rows, hits = met_against_unmet(asked, traits), signs(asked.ranked(DEPTH))
    row: dict[str, float | int] = {"known": int(rows.dropna(subset="AUROC")["query"].nunique())}
    for own in separation(rows).itertuples(index=False):
        name = f"AUROC {own.met}, {own.against}"
        row |= {name: own.AUROC, f"{name} low": own.low, f"{name} high": own.high}
    for sign, values in predictors(hits).iterrows():
        row |= {f"{sign} {name}": float(value) for name, value in values.items()}
    of_all = rows[rows["met"] == "all"].drop_duplicates(["query", "against"])
    wide = of_all.pivot(index="query", columns="against", values="AUROC")
    chosen = wide.reindex(columns=["all others", "others of the class"]).add_prefix("AUROC, ").reset_index()
    return row, hits.merge(chosen, on="query").round(5)
