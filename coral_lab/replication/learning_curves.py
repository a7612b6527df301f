"""When does Coral help? R@1 over contrastive training and Coral, from each rung of the ladder, at equal steps
and at equal seconds.
"""

from contextlib import suppress
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats

from coral_lab.replication.cells import read_results, results_file
from coral_lab.replication.design import START
from coral_lab.study.plots import PALETTE, TEMPLATE

RUNGS = ("seeing", START, "mini-base")
ARMS = ("contrastive", "coral")


def learning_curves(out: Path | None = None) -> pd.DataFrame:
    """One row a rung, arm and evaluation: rung, arm, step, seconds, R@1, low, high (mean and 95% t interval
    over `seeds`, on validation queries). Rungs that were not run are left out.

    Seconds are steps times the arm's median step over all its seeds, and with Coral those of the decoders
    before: what a machine does besides is not in them. `out` is a folder of `coral-lab experiment`'s files,
    by default those that ship. Raises FileNotFoundError with the command if `objectives` was not run.
    """
    tables = [_of_experiment("objectives", out)]
    with suppress(FileNotFoundError):
        tables.append(_of_experiment("ladder", out))
    table = pd.concat(tables, ignore_index=True)
    places = table["rung"].map(RUNGS.index) * len(ARMS) + table["arm"].map(ARMS.index)
    return table.assign(place=places).sort_values(["place", "step"], ignore_index=True).drop(columns="place")


def _of_experiment(name: str, out: Path | None) -> pd.DataFrame:
    cells = read_results(results_file(name, out))
    curves = read_results(results_file(f"{name}-curves", out))
    costs = cells.groupby("arm")[["first_seconds", "step_seconds"]].median()
    rows = []
    for (label, step), own in curves.groupby(["arm", "step"], sort=False):
        rung, _, arm = label.rpartition(" ")
        if arm not in ARMS:
            continue
        mean, reach = own["R@1"].mean(), _reach(own["R@1"])
        first, each = costs.loc[label]
        rows.append(
            {
                "rung": rung or START,
                "arm": arm,
                "step": int(step),
                "seconds": float(first + each * step),
                "R@1": mean,
                "low": mean - reach,
                "high": mean + reach,
                "seeds": len(own),
            }
        )
    return pd.DataFrame(rows)


def _reach(values: pd.Series) -> float:
    """Half of the t interval; endless for one seed, which says nothing of others."""
    if len(values) < 2:
        return float("inf")
    return float(stats.t.isf(0.025, len(values) - 1) * values.std() / len(values) ** 0.5)


def learning_figure(table: pd.DataFrame) -> go.Figure:
    """The table as small multiples: a column a rung, over steps above and over seconds below, with bands."""
    rungs = [rung for rung in RUNGS if rung in set(table["rung"])]
    figure = make_subplots(2, len(rungs), shared_yaxes=True, column_titles=rungs, vertical_spacing=0.16)
    for column, rung in enumerate(rungs, 1):
        for place, axis in enumerate(("step", "seconds"), 1):
            for arm, colour in zip(ARMS, PALETTE, strict=False):
                own = table[(table["rung"] == rung) & (table["arm"] == arm)]
                _draw(figure, own, axis, (place, column), colour)
            figure.update_xaxes(title=axis, rangemode="tozero", row=place, col=column)
    figure.update_yaxes(title="R@1, validation", rangemode="tozero", col=1)
    margin, legend = {"l": 60, "r": 10, "t": 70, "b": 50}, {"orientation": "h", "y": 1.16}
    return figure.update_layout(template=TEMPLATE, height=520, margin=margin, legend=legend)


def _draw(figure: go.Figure, own: pd.DataFrame, axis: str, place: tuple[int, int], colour: str) -> None:
    if own.empty:
        return
    at = {"row": place[0], "col": place[1]}
    arm, x = own["arm"].iloc[0], own[axis]
    band = own.replace([float("inf"), float("-inf")], float("nan"))
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*band["high"], *band["low"][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=arm,
        **at,
    )
    figure.add_scatter(
        x=x,
        y=own["R@1"],
        name=arm,
        legendgroup=arm,
        showlegend=place == (1, 1),
        mode="lines+markers",
        line={"color": colour},
        customdata=own[["low", "high", "seeds"]],
        hovertemplate="%{x:.0f}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]",
        **at,
    )
