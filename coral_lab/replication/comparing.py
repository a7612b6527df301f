"""Models side by side on the same queries: `cl.compare`.

Quality with intervals, paired tests with Holm's correction, breakdowns, where one model finds what another
does not, and what each costs; the paper's published rows stand beside, never among ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from coral_lab import metrics
from coral_lab.encoder import Settings
from coral_lab.errors import ItemError
from coral_lab.evaluation import Asked, Result
from coral_lab.models.protocol import Embedder
from coral_lab.prompts import Format, format_name
from coral_lab.query import Dataset, Query
from coral_lab.replication.comparing_cost import Cost
from coral_lab.replication.comparing_runs import check, encoded, named, same_items
from coral_lab.sources.border import brief
from coral_lab.sources.package_files import shipped
from coral_lab.store.external import vectors
from coral_lab.store.vector_files import is_vector_file

if TYPE_CHECKING:
    import plotly.graph_objects as go

TESTED = ["model", "against", "difference", "low", "high", "p", "p (Holm)", "wins", "losses", "ties"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` measured: each model's `results` and `costs` by its name, all over the same queries and
    the same pool.

    `asked` are the encoded queries and pools, to be ranked anew, fused or truncated (`study.fusion`); they
    take 4 bytes a dimension and item. What one model could not use is left out for all and is in `skipped`.
    `facts` say what it all depends on.
    """

    results: Mapping[str, Result]
    costs: Mapping[str, Cost]
    asked: Mapping[str, Asked]
    skipped: tuple[ItemError, ...]
    facts: Mapping[str, Any]

    def table(self) -> pd.DataFrame:
        """One row a model: each metric from 0 to 1 with its 95% interval over queries, and the columns of
        `Cost.row`.
        """
        rows = {}
        for name, result in self.results.items():
            row: dict[str, Any] = {}
            for metric, value in result.metrics.items():
                row |= {metric: value.mean, f"{metric} low": value.low, f"{metric} high": value.high}
            rows[name] = row | self.costs[name].row()
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")

    def tests(self, metric: str = "R@1", baseline: str | None = None) -> pd.DataFrame:
        """Paired permutation tests of a metric on the same queries: a row a pair of models.

        Columns: model, against, difference with low and high (95% interval), p, p (Holm: corrected for being
        several), wins, losses and ties (queries). Of all pairs the better model stands first; with a
        `baseline` the others stand against it. Raises ValueError for another metric or model.
        """
        self._check_metric(metric)
        if baseline is None:
            pairs = [self._better_first(pair, metric) for pair in combinations(self.results, 2)]
        else:
            self._result(baseline)
            pairs = [(name, baseline) for name in self.results if name != baseline]
        table = pd.DataFrame([self._test(*pair, metric) for pair in pairs])
        return table.assign(**{"p (Holm)": metrics.holm(table["p"].to_numpy(float))})[TESTED]

    def by(self, group: str, metric: str = "R@1") -> pd.DataFrame:
        """A metric by "language", "class", "attribute" or "conditions", models side by side.

        A row a value and the number of its queries, and of each model the columns metric, low and high.
        Raises ValueError for another group or metric.
        """
        self._check_metric(metric)
        parts = {}
        for name, result in self.results.items():
            rows = result.by(group).rename(columns={"value": group})
            rows = rows.rename(columns={f"{metric} low": "low", f"{metric} high": "high"})
            parts[name] = rows.set_index([group, "queries"])[[metric, "low", "high"]]
        return pd.concat(parts, axis=1, names=["model", ""])

    def published(self) -> pd.DataFrame:
        """The paper's rows and those of others, each with its source. `attrs["note"]` says on what they were
        measured, and on what ours: they are another table.
        """
        table = pd.read_csv(shipped("data/published.csv"))
        table.attrs["note"] = self.note
        return table

    @property
    def note(self) -> str:
        """Whether published figures may be set beside ours."""
        data = self.facts["data"]
        return (
            "Published figures are of MERIT's 10,000 test queries over 51,177 products. Ours are of "
            f"{data['name']}, {data['queries']:,} queries over {data['products']:,} products: they compare "
            "only if these are the same."
        )

    def differing(self, a: str, b: str, count: int = 4, k: int = 1) -> "Differing":
        """The queries of which `a` has a right answer among its first `k` and `b` has not; `count` of them
        show themselves, those first in which `b` is furthest from it. Raises ValueError for another model.
        """
        mine, theirs = self._result(a), self._result(b)
        if not 1 <= k <= mine.ranked.shape[1]:
            raise ValueError(f"k is {k}; give 1 to {mine.ranked.shape[1]}, to which the ranking goes")
        ranks = self.ranks
        gets, misses = metrics.recall_at(ranks[a].to_numpy(), k), metrics.recall_at(ranks[b].to_numpy(), k)
        places = [i for i in range(len(ranks)) if gets[i] and not misses[i]]
        beyond = mine.ranked.shape[1] + 1
        far = {i: int(ranks[b].iloc[i]) if ranks[b].iloc[i] > 0 else beyond for i in places}
        return Differing(a, b, mine, theirs, tuple(sorted(places, key=lambda i: (-far[i], i))), count)

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """Rank of each query's best right answer by model, -1 beyond the depth that was ranked; indexed by
        query.
        """
        first = next(iter(self.results.values()))
        found = {name: metrics.best_ranks(result.relevant) for name, result in self.results.items()}
        return pd.DataFrame(found, index=pd.Index([query.id for query in first.queries], name="query"))

    def figure(self, metric: str = "R@1") -> "go.Figure":
        """A metric of each model with its interval."""
        from coral_lab.replication.comparing_page import quality_figure

        self._check_metric(metric)
        return quality_figure(self, metric)

    def heat_map(self, group: str = "attribute", metric: str = "R@1") -> "go.Figure":
        """A breakdown as a heat map, models side by side."""
        from coral_lab.replication.comparing_page import breakdown_figure

        return breakdown_figure(self, group, metric)

    def cost_figure(self, metric: str = "R@1") -> "go.Figure":
        """A metric against the milliseconds that a query takes."""
        from coral_lab.replication.comparing_page import cost_figure

        self._check_metric(metric)
        return cost_figure(self, metric)

    def write(self, folder: str | PathLike, command: str = "") -> Path:
        """Write `compare.html`, `comparison.json` and `ranks.csv` into a folder; `command` is kept with them.

        Returns the page. Raises ValueError for a link.
        """
        from coral_lab.replication.comparing_page import write

        return write(self, Path(folder), command)

    def __repr__(self) -> str:
        from coral_lab.replication.comparing_page import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from coral_lab.replication.comparing_page import summary

        return summary(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics, the same for all models."""
        return next(iter(self.results.values())).names

    def _check_metric(self, metric: str) -> None:
        if metric not in self.names:
            raise ValueError(f"metric is {brief(metric)}; choose from {', '.join(self.names)}")

    def _result(self, name: str) -> Result:
        if name not in self.results:
            raise ValueError(f"model {brief(name)} was not compared; there are {', '.join(self.results)}")
        return self.results[name]

    def _values(self, name: str, metric: str):
        return self.results[name].per_query[metric].to_numpy(float)

    def _better_first(self, pair: tuple[str, str], metric: str) -> tuple[str, str]:
        """By name if they are equal, so that the order in which models were given changes nothing."""
        first, second = sorted(pair, key=lambda name: (-self._values(name, metric).mean(), name))
        return first, second

    def _test(self, name: str, against: str, metric: str) -> dict[str, Any]:
        mine, theirs = self._values(name, metric), self._values(against, metric)
        found = metrics.paired_difference(mine, theirs)
        counts = {"wins": mine > theirs, "losses": mine < theirs, "ties": mine == theirs}
        return {
            "model": name,
            "against": against,
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            **{kind: int(own.sum()) for kind, own in counts.items()},
        }


@dataclass(frozen=True, eq=False)
class Differing:
    """Queries that model `a` gets and `b` does not, by their `places` in the results of both; shows the first
    `count` of them, each with both first hits.
    """

    a: str
    b: str
    mine: Result
    theirs: Result
    places: tuple[int, ...]
    count: int = 4

    @property
    def queries(self) -> tuple[Query, ...]:
        return tuple(self.mine.queries[place] for place in self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __repr__(self) -> str:
        return f"{len(self):,} queries that {self.a} gets and {self.b} does not"

    def _repr_html_(self) -> str:
        from coral_lab.replication.comparing_page import gallery

        return gallery(self)


def compare(
    models: Sequence[str | PathLike | Embedder] | Mapping[str, str | PathLike | Embedder],
    dataset: Dataset,
    *,
    format: str | Format = "seq",
    settings: Settings = Settings(),
    k: int = 100,
    **options: Any,
) -> Comparison:
    """Measure several models on the same queries and pool, each ranked to depth `k`.

    A model is what `cl.load` takes, which is loaded with `options` when its turn comes and let go of before
    the next, or one that is loaded, or a file that `cl.vectors` reads; a mapping gives them names of your
    own. With `on_error` "skip" what one model cannot use is left out for all. Embeddings of all models are in
    memory together: 0.4 GB a model for MERIT's products at 2048 dimensions. How costs are timed is said by
    `comparing_cost.Cost`.

    Raises ValueError before any model is loaded for fewer than two, two of one name, an unknown format or
    option, k < 10 or a dataset with nothing in it, CheckpointError for a name that is no checkpoint, and
    what `evaluate` does.
    """
    known = {
        name: vectors(Path(str(model)), dataset, format=format) if is_vector_file(model) else model
        for name, model in named(models).items()
    }
    check(known, dataset, format, settings, k, options)
    runs = {name: encoded(name, model, dataset, format, settings, options) for name, model in known.items()}
    asked, skipped = same_items({name: run.asked for name, run in runs.items()})
    results = {name: own.ranked(k) for name, own in asked.items()}
    first = next(iter(asked.values()))
    data = {
        "name": dataset.name,
        "products": len(first.index.products),
        "queries": len(first.queries),
        "skipped": [str(error) for error in dataset.skipped],
    }
    facts = {"data": data, "format": format_name(format), "depth": k}
    facts["models"] = {name: run.facts for name, run in runs.items()}
    return Comparison(results, {name: run.cost for name, run in runs.items()}, asked, skipped, facts)
