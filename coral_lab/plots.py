"""Tables → plotly figures."""

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from coral_lab.metrics import Estimate

# Okabe and Ito's colours, which colour-blind readers can tell apart; black last.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

NO_LOSS = {"step", "seconds", "gradient_norm", "learning_rate"}


def curves(
    logs: dict[str, str | PathLike | pd.DataFrame],
    losses: list[str] | None = None,
    measures: list[str] | None = None,
    smooth: int = 20,
) -> go.Figure:
    """Training logs side by side: losses on the left (running mean over `smooth` steps), measures on the right.

    `logs` are `log.csv` files or frames by name. By default all terms that are logged at every step, and those of
    R@1, R@10 and MRR@10 that were measured. Raises ValueError for a log without rows.
    """
    figure = make_subplots(1, 2, subplot_titles=("losses", "on unseen products"), horizontal_spacing=0.1)
    for number, (name, log) in enumerate(logs.items()):
        frame = log if isinstance(log, pd.DataFrame) else pd.read_csv(log)
        if frame.empty:
            raise ValueError(f"log {name!r} has no rows yet; wait for the first step")
        evaluated = [c for c in frame if c not in NO_LOSS and frame[c].isna().any()]
        terms = losses or [c for c in frame if c not in NO_LOSS and c not in evaluated]
        shown = measures or [c for c in ("R@1", "R@10", "MRR@10") if c in evaluated]
        for kind, column, places in (("loss", terms, 1), ("measure", shown, 2)):
            for style, term in enumerate(c for c in column if c in frame):
                values = frame.dropna(subset=[term])
                y = values[term].rolling(smooth, min_periods=1).mean() if kind == "loss" else values[term]
                label = f"{name}: {term}" if len(logs) > 1 else term
                colour = PALETTE[(number if len(logs) > 1 else style) % len(PALETTE)]
                dash = ("solid", "dash", "dot", "dashdot", "longdash")[style % 5 if len(logs) > 1 else 0]
                line = {"color": colour, "dash": dash}
                mode = "lines" if kind == "loss" else "lines+markers"
                figure.add_scatter(x=values["step"], y=y, name=label, mode=mode, line=line, row=1, col=places,
                                   hovertemplate="step %{x}: %{y:.3f}")  # fmt: skip
    figure.update_xaxes(title="step")
    figure.update_yaxes(type="log", row=1, col=1)
    figure.update_layout(template="simple_white", height=360, margin={"l": 50, "r": 10, "t": 40, "b": 40})
    return figure


def scatter(
    places: Float[np.ndarray, "point 2"], labels: Sequence[str], texts: Sequence[str] = (), title: str = ""
) -> go.Figure:
    """A map of points coloured by label, commonest first; more labels than colours share the last. `texts` on hover."""
    counts = pd.Series(list(labels)).value_counts()
    figure = go.Figure()
    for number, label in enumerate(counts.index):
        own = [i for i, name in enumerate(labels) if name == label]
        symbol = ("circle", "diamond", "cross", "triangle-up")[number // len(PALETTE) % 4]
        marker = {"size": 5, "color": PALETTE[number % len(PALETTE)], "symbol": symbol, "opacity": 0.75}
        figure.add_scattergl(x=places[own, 0], y=places[own, 1], mode="markers", name=str(label), marker=marker,
                             text=[texts[i] for i in own] if texts else None, hoverinfo="text+name" if texts else "name")  # fmt: skip
    figure.update_layout(template="simple_white", height=460, title=title, legend={"itemsizing": "constant"},
                         margin={"l": 10, "r": 10, "t": 40, "b": 10})  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def bars(estimates: Mapping[str, Estimate], title: str = "", unit: str = "") -> go.Figure:
    """One bar an estimate, with its 95% interval."""
    values = list(estimates.values())
    errors = {"array": [v.high - v.mean for v in values], "arrayminus": [v.mean - v.low for v in values]}
    figure = go.Figure(go.Bar(x=list(estimates), y=[v.mean for v in values], error_y={"type": "data", "symmetric": False, **errors},
                              marker_color=PALETTE[0], hovertemplate="%{x}: %{y:.3f}<extra></extra>"))  # fmt: skip
    figure.update_layout(
        template="simple_white", height=340, title=title, margin={"l": 50, "r": 10, "t": 40, "b": 40}
    )
    figure.update_yaxes(title=unit)
    return figure


def matrix(frame: pd.DataFrame, title: str = "", unit: str = "", middle: float | None = None) -> go.Figure:
    """A table as a heat map with its values written in; with a `middle`, blue below and orange above it."""
    scale = "Blues" if middle is None else [[0, PALETTE[0]], [0.5, "#ffffff"], [1, PALETTE[1]]]
    figure = go.Figure(go.Heatmap(z=frame.to_numpy(float), x=[str(c) for c in frame.columns], y=[str(i) for i in frame.index],
                                  colorscale=scale, zmid=middle, texttemplate="%{z:.2f}", colorbar={"title": unit}))  # fmt: skip
    figure.update_layout(template="simple_white", height=120 + 36 * len(frame), title=title,
                         xaxis_title=frame.columns.name, yaxis={"title": frame.index.name, "autorange": "reversed"},
                         margin={"l": 90, "r": 10, "t": 50, "b": 40})  # fmt: skip
    return figure
