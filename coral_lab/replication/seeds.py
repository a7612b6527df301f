"""Arms trained with several seeds, compared by statistics that see the seeds.

A trained arm is a draw: with another seed it would be another model, and all of its queries would move
together. So queries are no independent witnesses of a way to train, and a test over them alone finds
differences between seeds. Here the seed is the unit: each gives one number, the share of queries in favour of
an arm less that of the baseline trained with the same seed on the same batches.

    compare        over seeds, on these queries: the primary test (paired t; Welch's if seeds share nothing)
    sign_flips     the same without assuming a shape: all 2^n signs, so it needs six seeds to reach p < 0.05
    crossed        on other queries as well: seeds and queries both drawn (random effects)
    single_runs    two single runs, of which nothing is known but themselves: McNemar's exact test
    share          a share of queries against a bound: the exact binomial test

Every interval is its own test turned round: all differences that would have p >= 0.05. So an interval leaves
"none" out exactly where p is below 0.05. Odds ratios are the interval's ends as odds, for the same reason.

In the model y[arm, seed, query] with a random effect of the seed, of the arm in each seed, and of the query,
the paired t squared is the F test of the arm (its mean square over that of arm by seed): what a mixed model
says of balanced cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import optimize, stats

from coral_lab.metrics import Difference, Estimate

ALPHA = 0.05
MARGIN = 0.02
"""Differences of R@k below it, either way, count as none."""

PUBLISHED_ODDS = (0.6968 / 0.3032) / (0.4776 / 0.5224)
"""Coral against contrastive training, both full, as an odds ratio of R@1: 2.5 (arXiv 2506.03144: 69.68 and
47.76 per cent). A size that means the same wherever the baseline stands, which +0.22 does not.
"""

BETTER, WORSE, EQUIVALENT = "better", "worse", "equivalent"
EXCLUDED, UNDECIDED, NOT_TESTABLE = "published size excluded", "undecided", "not testable"

Hits = Float[np.ndarray, "query seed"]


@dataclass(frozen=True)
class Gain(Difference):
    """A difference with the standard `error` and the degrees of `freedom` that its t test has; `n` are
    seeds.
    """

    error: float
    freedom: float

    def equivalence(self, margin: float = MARGIN) -> float:
        """p of two one-sided tests (Schuirmann 1987): below 0.05 the difference is within `margin` of 0."""
        if not 0 < self.error < np.inf:
            return float(self.error > 0 or abs(self.mean) >= margin)
        nearest = (margin - abs(self.mean)) / self.error
        return float(stats.t.sf(nearest, self.freedom))


@dataclass(frozen=True)
class Runs(Difference):
    """Two single runs on `n` queries: how many only the one and only the other found, and the odds ratio of
    these (conditional on their number).
    """

    only_own: int
    only_base: int
    odds: Estimate


def compare(own: Hits, base: Float[np.ndarray, "query other"], paired: bool = True) -> Gain:
    """How much higher `own` is than `base`, over seeds on the same queries.

    `paired` is for seeds that share batches and start, column by column; else Welch's t test, and numbers of
    seeds may differ. Seeds that differ by exactly the same say nothing of their spread: p is 1 and the
    interval endless, unless that is 0 and the arms are the same. Raises ValueError for fewer than two seeds,
    or what does not pair up.
    """
    _check(own, base, paired)
    seeds = min(own.shape[1], base.shape[1])
    ours, theirs = own.mean(0), base.mean(0)
    if paired:
        gains = ours - theirs
        return _gain(gains.mean(), gains.std(ddof=1) / np.sqrt(seeds), seeds - 1, seeds)
    parts = [values.var(ddof=1) / len(values) for values in (ours, theirs)]
    below = sum(part**2 / (len(v) - 1) for part, v in zip(parts, (ours, theirs), strict=True))
    freedom = sum(parts) ** 2 / below if below else seeds - 1
    return _gain(ours.mean() - theirs.mean(), np.sqrt(sum(parts)), freedom, seeds)


def crossed(own: Hits, base: Hits) -> Gain:
    """The same for other queries of the kind too: both seeds and queries are random effects.

    The error is of the two-way analysis of variance of the differences, with Satterthwaite's degrees of
    freedom (Clark 1973 calls it quasi F). It is never below `compare`'s. Raises as `compare`.
    """
    _check(own, base, True)
    gains = own - base
    queries, seeds = gains.shape
    by_query, by_seed, mean = gains.mean(1), gains.mean(0), gains.mean()
    rest = gains - by_query[:, None] - by_seed + mean
    squares = [seeds * by_query.var() * queries, queries * by_seed.var() * seeds, (rest**2).sum()]
    freedoms = [queries - 1, seeds - 1, (queries - 1) * (seeds - 1)]
    of_query, of_seed, of_rest = (s / max(1, f) for s, f in zip(squares, freedoms, strict=True))
    if of_query <= of_rest:  # queries do not differ by more than chance
        return compare(own, base)
    total = of_query + of_seed - of_rest
    below = sum(s**2 / f for s, f in zip((of_query, of_seed, of_rest), freedoms, strict=True))
    return _gain(mean, np.sqrt(total / gains.size), total**2 / below, seeds)


def _check(own: np.ndarray, base: np.ndarray, paired: bool) -> None:
    if len(own) != len(base) or (paired and own.shape != base.shape):
        raise ValueError(
            f"values [query, seed] are of shape {own.shape} and {base.shape}; give both arms the same queries"
            + (", and the same seeds" if paired else "")
        )
    if min(own.shape[1], base.shape[1]) < 2 or not len(own):
        raise ValueError(
            f"{min(own.shape[1], base.shape[1])} seeds on {len(own)} queries have no spread; train two or "
            "more, or compare single runs (single_runs)"
        )


def _gain(mean: float, error: float, freedom: float | int, seeds: int) -> Gain:
    if error <= 1e-12:  # of rounding: each seed differs by the same
        same = abs(mean) <= 1e-12
        end = 0.0 if same else np.inf
        return Gain(float(mean), -end, end, 1.0, seeds, end, float(freedom))
    reach = stats.t.isf(ALPHA / 2, freedom) * error
    p = 2 * stats.t.sf(abs(mean) / error, freedom)
    low, high = float(mean - reach), float(mean + reach)
    return Gain(float(mean), low, high, float(p), seeds, float(error), float(freedom))


def sign_flips(gains: Float[np.ndarray, " seed"]) -> Difference:
    """The exact test over all 2^n signs of the seeds' differences, and its interval.

    By Hartigan's theorem (1969) the means of all subsets of the differences are where p changes, so the
    interval's ends are two of these. Below six seeds no p is below 0.05, and the interval is endless. Raises
    ValueError for no seeds or more than 20.
    """
    seeds = len(gains)
    if not 1 <= seeds <= 20:
        raise ValueError(f"{seeds} seeds have 2^{seeds} signs; give 1 to 20")
    chosen = (np.arange(1, 2**seeds)[:, None] >> np.arange(seeds)) & 1
    means = np.sort(chosen @ gains / chosen.sum(1))
    means[abs(means) <= 1e-12] = 0.0  # of rounding: a tie with no difference at all
    one_sided = (1 + min((means <= 0).sum(), (means >= 0).sum())) / 2**seeds
    place = int(np.ceil(ALPHA / 2 * 2**seeds - 1)) - 1
    low, high = (means[place], means[-1 - place]) if place >= 0 else (-np.inf, np.inf)
    return Difference(float(gains.mean()), float(low), float(high), float(min(1, 2 * one_sided)), seeds)


def single_runs(own: Float[np.ndarray, " query"], base: Float[np.ndarray, " query"]) -> Runs:
    """McNemar's exact test of two runs on the same queries, hits being 0 or 1.

    It knows nothing of other seeds: it says whether these two models differ, on other queries as well. The
    intervals are Clopper and Pearson's of the share among queries that one run alone found. Raises ValueError
    for what does not pair up or is no hit.
    """
    if own.shape != base.shape or own.ndim != 1 or not len(own):
        raise ValueError(
            f"hits are of shape {own.shape} and {base.shape}; give both runs' for the same queries"
        )
    if not np.isin([*own, *base], (0, 1)).all():
        raise ValueError("hits are 0 or 1 for McNemar's test; give what one run found of each query")
    more, fewer = int(((own == 1) & (base == 0)).sum()), int(((own == 0) & (base == 1)).sum())
    apart, scale = more + fewer, (more + fewer) / len(own)
    if not apart:
        nothing = Estimate(float("nan"), 0.0, float("inf"), 0)
        return Runs(0.0, 0.0, 0.0, 1.0, len(own), 0, 0, nothing)
    found = share(np.repeat([1.0, 0.0], [more, fewer]), 0.5)
    odds = Estimate(_odds(more / apart), _odds(found.low), _odds(found.high), apart)
    low, high = ((2 * end - 1) * scale for end in (found.low, found.high))
    return Runs((more - fewer) / len(own), low, high, found.p, len(own), more, fewer, odds)


def share(hits: Float[np.ndarray, " query"], bound: float) -> Difference:
    """A share of hits, 0 or 1, with Clopper and Pearson's interval, and the exact two-sided p that it is not
    `bound` (twice the smaller tail, which is that interval turned round). Raises ValueError for no queries.
    """
    count, n = int(hits.sum()), len(hits)
    if not n:
        raise ValueError("no queries have no share; give at least one")
    tails = stats.binom.cdf(count, n, bound), stats.binom.sf(count - 1, n, bound)
    low = stats.beta.ppf(ALPHA / 2, count, n - count + 1) if count else 0.0
    high = stats.beta.isf(ALPHA / 2, count + 1, n - count) if count < n else 1.0
    return Difference(count / n, float(low), float(high), float(min(1, 2 * min(tails))), n)


def difference(own: Hits, base: Hits) -> Gain | Runs:
    """Of several seeds `compare`, of single runs `single_runs`. Raises as they do."""
    if own.shape[1] == base.shape[1] == 1:
        return single_runs(own[:, 0], base[:, 0])
    return compare(own, base)


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else float("inf")


def odds_ratio(own: float, base: float) -> float:
    """How many times the baseline's odds: 0.4776 to 0.6968 is 2.5. NaN where both are 0 or both 1, or one is
    no share.
    """
    ours, theirs = _odds(own), _odds(base)
    if not (0 <= own <= 1 and 0 <= base <= 1) or ours == theirs in (0, float("inf")):
        return float("nan")
    return ours / theirs if theirs else float("inf")


def as_odds(gain: Difference, base: float) -> Estimate:
    """A difference from a baseline's mean share as an odds ratio, with the interval's ends: 1 is in it where
    0 is in the difference's. The baseline's own spread is left to the difference.
    """
    mean, low, high = (
        odds_ratio(min(1.0, max(0.0, base + value)), base) for value in (gain.mean, gain.low, gain.high)
    )
    return Estimate(mean, low, high, gain.n)


def power(difference: float, spread: float, seeds: int = 8) -> float:
    """How often the paired test has p < 0.05 if the true difference is this one and the seeds' differences
    have the standard deviation `spread`. Raises ValueError for fewer than two seeds or no spread.
    """
    if seeds < 2 or spread <= 0:
        raise ValueError(f"{seeds} seeds of spread {spread}; give two or more, and a spread above 0")
    shift, freedom = difference / spread * np.sqrt(seeds), seeds - 1
    reach = stats.t.isf(ALPHA / 2, freedom)
    return float(stats.nct.sf(reach, freedom, shift) + stats.nct.cdf(-reach, freedom, shift))


def detectable(spread: float, seeds: int = 8, wanted: float = 0.8) -> float:
    """The smallest true difference that the paired test finds in a share `wanted` of experiments, with the
    seeds' differences of standard deviation `spread`: 1.16 times the spread with 8 seeds. Raises as `power`.
    """
    power(0.0, spread, seeds)
    most = 1.0
    while power(most, 1.0, seeds) < wanted:
        most *= 2
    found = optimize.brentq(lambda size: power(size, 1.0, seeds) - wanted, 0.0, most)
    return spread * float(found)


@dataclass(frozen=True)
class Gate:
    """What an experiment must have reached for a verdict to mean something: `value` from `low` to `high`."""

    name: str
    value: float
    low: float = -np.inf
    high: float = np.inf

    @property
    def met(self) -> bool:
        return bool(self.low <= self.value <= self.high)

    def __str__(self) -> str:
        ends = [f"{end:.3g}" for end in (self.low, self.high) if np.isfinite(end)]
        wanted = (
            " to ".join(ends) if len(ends) == 2 else f"{'from' if self.high == np.inf else 'to'} {ends[0]}"
        )
        return f"{self.name} is {self.value:.3f}, wanted {wanted}"


def gates(start: float, contrastive: float, saved: float | None = None) -> tuple[Gate, ...]:
    """Those of an ablation. Of R@1 of the base and of contrastive training: there must be something to gain,
    and something left. And if there are decoders, they must listen: the share of the reconstruction loss that
    the right h_eos had `saved` by half-time.
    """
    trained = (
        Gate("contrastive training's gain in R@1", contrastive - start, 0.15),
        Gate("R@1 after contrastive training", contrastive, 0.3, 0.75),
    )
    name = "the share of the loss that the right h_eos saves by half-time"
    return trained if saved is None else (*trained, Gate(name, saved, 0.05))


def saved_by_half(log: pd.DataFrame, decoders_first: int = 0) -> float:
    """What the right h_eos saves of the reconstruction losses against another row's, 1 - own / other, over
    the second quarter of a log: all terms that are said both ways, summed. NaN where none is.
    """
    terms = [name for name in log if f"{name} other" in log]
    steps = log["step"] - decoders_first
    last = steps.max()
    rows = log[(steps > last / 4) & (steps <= last / 2)].dropna(subset=[f"{name} other" for name in terms])
    if not terms or rows.empty:
        return float("nan")
    return float(1 - rows[terms].sum().sum() / rows[[f"{name} other" for name in terms]].sum().sum())


@dataclass(frozen=True)
class Judgement:
    """What a comparison comes to, and the numbers that say so in one sentence."""

    verdict: str
    why: str


def judge(
    gain: Gain,
    base: float,
    gates: Sequence[Gate] = (),
    published: float = PUBLISHED_ODDS,
    margin: float = MARGIN,
) -> Judgement:
    """The verdict on an arm against a baseline whose mean share is `base`, the first of these that is true:

    a gate was missed: not testable · p < 0.05: better, or worse · two one-sided tests within `margin`:
    equivalent · the `published` odds ratio is outside the interval: published size excluded · undecided. What
    else is true is said in `why`.
    """
    if missed := [str(gate) for gate in gates if not gate.met]:
        return Judgement(NOT_TESTABLE, f"{'; '.join(missed)}.")
    odds = as_odds(gain, base)
    within, outside = gain.equivalence(margin), not odds.low <= published <= odds.high
    said = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], {_p(gain.p)} over {gain.n} seeds"
    said += f"; odds ratio {odds.mean:.2f} [{odds.low:.2f}, {odds.high:.2f}]"
    said += f", the published {published:.2f} is {'outside' if outside else 'in'} it"
    said += f"; within {margin:g} of none by {_p(within)}."
    if gain.p < ALPHA:
        return Judgement(BETTER if gain.mean > 0 else WORSE, said)
    if within < ALPHA:
        return Judgement(EQUIVALENT, said)
    return Judgement(EXCLUDED if outside else UNDECIDED, said)


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p {value:.3f}"
