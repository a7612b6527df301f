"""The paper's findings beside ours: every figure from a results file, every verdict from the figures.

A finding is `replicated` if our effect goes the paper's way and cannot be chance (p < 0.05 after Holm's
correction over the whole table); `not replicated` if it surely goes the other way, or if our interval leaves
out the published size; else `not testable at this scale`: the interval leaves room for the paper's effect and
for none. Trained arms are compared over seeds, checkpoints that are only asked over queries, and every
interval is its own test turned round (`seeds`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from coral_lab.metrics import Difference, Estimate, holm
from coral_lab.mini.merit_mini import catalogue
from coral_lab.replication.cells import hits_of, read_results, results_file
from coral_lab.replication.seeds import compare, difference, share
from coral_lab.sources.package_files import shipped

REPLICATED, NOT_REPLICATED, NOT_TESTABLE = "replicated", "not replicated", "not testable at this scale"
ATTRIBUTE_ERRORS = ("visual attribute", "textual attribute", "several attributes")


@dataclass(frozen=True)
class Effect:
    """What we measured, with the p-value of its difference from `null`: no effect, or a finding's bound."""

    ours: Estimate
    p: float
    null: float = 0.0


def findings(results: Path | None = None) -> pd.DataFrame:
    """One row a finding: number, finding, measure, published, ours, low, high, p, p (Holm), verdict, why,
    files, source.

    `results` is a folder of `coral-lab experiment`'s files; by default those that ship with the package.
    Raises FileNotFoundError naming the command for a results file that is missing.
    """
    table = pd.read_csv(shipped("data/published-findings.csv"))
    effects = [EFFECTS[row.number](results, row.bound) for row in table.itertuples()]
    corrected = holm(np.array([effect.p for effect in effects]))
    rows = []
    for row, effect, p in zip(table.itertuples(), effects, corrected, strict=True):
        size = None if np.isnan(row.published) or not np.isnan(row.bound) else row.published
        ours = effect.ours
        rows.append(
            {
                "number": row.number,
                "finding": row.finding,
                "measure": row.measure,
                "published": row.published,
                "ours": ours.mean,
                "low": ours.low,
                "high": ours.high,
                "p": effect.p,
                "p (Holm)": p,
                "verdict": verdict(effect, p, row.comparison, size),
                "why": why(effect, p, row.comparison, size),
                "files": row.files,
                "source": row.source,
            }
        )
    return pd.DataFrame(rows)


def verdict(effect: Effect, p: float, comparison: str, published: float | None) -> str:
    """One of the three, by the rule above. `comparison` is "above" or "below" the null; `p` is corrected."""
    sign = {"above": 1, "below": -1}[comparison]
    ours = effect.ours
    if p < 0.05:
        return REPLICATED if sign * (ours.mean - effect.null) > 0 else NOT_REPLICATED
    if published is not None and not ours.low <= published <= ours.high:
        return NOT_REPLICATED
    return NOT_TESTABLE


def why(effect: Effect, p: float, comparison: str, published: float | None) -> str:
    """The numbers that the verdict rests on, in one sentence."""
    ours, null = effect.ours, "no effect" if effect.null == 0 else f"the bound {effect.null:g}"
    interval = f"[{ours.low:+.3f}, {ours.high:+.3f}]"
    chance = "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    if p < 0.05:
        side = "above" if ours.mean > effect.null else "below"
        way = "as" if side == comparison else "against what is"
        size = (
            ""
            if published is None
            else f"; the published {published:+.3f} is {_where(published, ours)} the interval"
        )
        return f"Ours {interval} is {side} {null} ({chance}), {way} published{size}."
    if published is None:
        return f"Ours {interval} is not told from {null} ({chance}), and no size is published to rule out."
    told = f"Ours {interval} is not told from {null} ({chance})"
    return f"{told}; the published {published:+.3f} is {_where(published, ours)} it."


def _where(published: float, ours: Estimate) -> str:
    return "in" if ours.low <= published <= ours.high else "outside"


def _ranks(results: Path | None, *names: str) -> pd.DataFrame:
    """Each query's rank by cell, of several experiments side by side; those they have in common."""
    return pd.concat(
        [read_results(results_file(f"{name}-ranks", results), "query") for name in names],
        axis=1,
        join="inner",
    )


def _change(*names: str, arm: str, baseline: str, k: int = 1) -> Callable[[Path | None, float], Effect]:
    """Relative change of R@k between two arms on the same queries: of trained ones over the seeds that they
    share, of a checkpoint that was asked in two ways by McNemar's test.
    """

    def effect(results: Path | None, _: float) -> Effect:
        ranks = _ranks(results, *names)
        own, base = hits_of(ranks, arm, k), hits_of(ranks, baseline, k)
        return _relative(difference(own, base), base)

    return effect


def _relative(gain: Difference, base: np.ndarray) -> Effect:
    """A difference and its interval as shares of the baseline's mean: 0.5 is half as much again."""
    if not base.any():
        raise ValueError("the baseline finds nothing, so there is no relative change; train it longer")
    mean, low, high = (float(value / base.mean()) for value in (gain.mean, gain.low, gain.high))
    return Effect(Estimate(mean, low, high, gain.n), gain.p)


def _held_back(kind: str) -> Callable[[Path | None, float], Effect]:
    """Trained without it against trained with it, on the test queries that ask for it. They see other
    batches, so seeds are no pairs.
    """

    def effect(results: Path | None, _: float) -> Effect:
        asked = [query.id for query in catalogue("mini").out_of_distribution(kind).queries]
        ranks = _ranks(results, "ood").loc[asked]
        own, base = hits_of(ranks, f"{kind} held back"), hits_of(ranks, f"{kind} control")
        return _relative(compare(own, base, paired=False), base)

    return effect


def _near_zero(results: Path | None, bound: float) -> Effect:
    return _share(hits_of(_ranks(results, "formats"), "mini-base seq")[:, 0], bound)


def _attribute_errors(results: Path | None, bound: float) -> Effect:
    rows = read_results(results_file("mistakes-queries", results)).query("arm == 'mini'")
    return _share(rows["kind"].isin(ATTRIBUTE_ERRORS).to_numpy(float), bound)


def _share(values: np.ndarray, bound: float) -> Effect:
    found = share(values, bound)
    return Effect(Estimate(found.mean, found.low, found.high, found.n), found.p, bound)


def _swapped(results: Path | None, _: float) -> Effect:
    """First hits that stay when a condition is swapped: before training less after, each query's mean over
    its edits. Of two checkpoints nothing is known but themselves, so queries are what is drawn (paired t).
    """
    rows = read_results(results_file("conditions-queries", results)).query("edit == 'swapped'")
    kept = rows.pivot_table(index="query", columns="arm", values="kept")
    before, after = (kept[name].to_numpy()[None] for name in ("mini-base", "mini"))
    found = compare(before, after)  # the same paired t, over queries
    return Effect(Estimate(found.mean, found.low, found.high, found.n), found.p)


EFFECTS: Mapping[str, Callable[[Path | None, float], Effect]] = {
    "1": _near_zero,
    "2": _change("loss-ablation", arm="coral", baseline="contrastive"),
    "3a": _change("formats", arm="mini-base cat", baseline="mini-base seq", k=5),
    "3b": _change("loss-ablation", "methods", arm="coral", baseline="coral cat"),
    "4": _change("formats", arm="mini caption", baseline="mini seq"),
    "5": _change("loss-ablation", "methods", arm="coral", baseline="coral lora"),
    "6a": _held_back("class"),
    "6b": _held_back("language"),
    "6c": _held_back("attribute"),
    "7": _attribute_errors,
    "8": _swapped,
}
"""How each finding of published-findings.csv is measured here, by its number."""
