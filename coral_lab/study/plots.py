"""Tables → plotly figures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from coral_lab.metrics import Estimate, estimate

# Okabe and Ito's colours, which colour-blind readers can tell apart; black last.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

SYMBOLS = ("circle", "diamond", "cross", "triangle-up")
"""With more labels than colours a colour comes again in another shape."""

GREY = "#8c8c8c"
"""What is not spoken of, and what cannot be told apart."""

_AXIS = {"showline": True, "showgrid": False, "zeroline": False, "ticks": "outside", "linecolor": "#2a2a2a"}
TEMPLATE = go.layout.Template(
    layout={
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "colorway": PALETTE,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
"""As plotly's simple_white, in few words: a notebook keeps a template with every figure, and plotly's take 20
kB each.
"""


def plain(text: object) -> str:
    """A text as plotly shows it: plotly reads tags, with links, and between dollar signs formulas."""
    return escape(str(text), quote=False).replace("$", "&#36;")


NO_LOSS = {
    *("step", "seconds", "gradient_norm", "learning_rate"),
    *("padding", "pairs_per_second", "memory_gb"),
}


def curves(
    logs: dict[str, str | PathLike | pd.DataFrame],
    losses: list[str] | None = None,
    measures: list[str] | None = None,
    smooth: int = 20,
) -> go.Figure:
    """Training logs together: losses (running mean over `smooth` steps), and beside them what was measured.

    `logs` are `log.csv` files or frames by name. By default all terms that are logged at every step, and
    those of R@1, R@10 and MRR@10 that were measured; where nothing was, the losses stand alone. Raises
    ValueError for a log without rows.
    """
    frames = {name: log if isinstance(log, pd.DataFrame) else pd.read_csv(log) for name, log in logs.items()}
    lines = {name: _lines(name, frame, losses, measures) for name, frame in frames.items()}
    titles = ("losses", "on unseen products")[: 2 if any(shown for _, shown in lines.values()) else 1]
    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.1)
    for number, (name, kinds) in enumerate(lines.items()):
        for place, terms in enumerate(kinds, 1):
            for style, term in enumerate(terms):
                values = frames[name].dropna(subset=[term])
                y = values[term].rolling(smooth, min_periods=1).mean() if place == 1 else values[term]
                label = f"{name}: {term}" if len(logs) > 1 else term
                colour = PALETTE[(number if len(logs) > 1 else style) % len(PALETTE)]
                dash = ("solid", "dash", "dot", "dashdot", "longdash")[style % 5 if len(logs) > 1 else 0]
                mode = "lines" if place == 1 else "lines+markers"
                figure.add_scatter(
                    x=values["step"],
                    y=y,
                    name=plain(label),
                    mode=mode,
                    line={"color": colour, "dash": dash},
                    row=1,
                    col=place,
                    hovertemplate="step %{x}: %{y:.3f}",
                )
    figure.update_xaxes(title="step")
    figure.update_yaxes(type="log", row=1, col=1)
    figure.update_layout(template=TEMPLATE, height=360, margin={"l": 50, "r": 10, "t": 40, "b": 40})
    return figure


def _lines(
    name: str, frame: pd.DataFrame, losses: list[str] | None, measures: list[str] | None
) -> tuple[list[str], list[str]]:
    """The losses and the measures of a log that are to be drawn."""
    if frame.empty:
        raise ValueError(f"log {name!r} has no rows yet; wait for the first step")
    evaluated = [c for c in frame if c not in NO_LOSS and frame[c].isna().any()]
    terms = losses or [c for c in frame if c not in NO_LOSS and c not in evaluated]
    shown = measures or [c for c in ("R@1", "R@10", "MRR@10") if c in evaluated]
    return [c for c in terms if c in frame], [c for c in shown if c in frame]


Points = Float[np.ndarray, "point 2"]


def scatter(
    places: Points | Mapping[str, np.ndarray],
    labels: Sequence[str],
    texts: Sequence[str] = (),
    title: str = "",
    order: Sequence[str] = (),
    coloured: int | None = None,
) -> go.Figure:
    """A map of points coloured by label, commonest first; or several maps of the same points by name, side by
    side.

    More labels than colours share these in other shapes; with `coloured`, only so many are told apart, and
    the rest are grey behind them. `texts` show on hover; `order` names the labels in the order of their
    colours. Raises ValueError for labels or texts that are not one a point.
    """
    panels = places if isinstance(places, Mapping) else {"": places}
    for name, count in [
        *((name, len(own)) for name, own in panels.items()),
        ("texts", len(texts) or len(labels)),
    ]:
        if count != len(labels):
            raise ValueError(f"{len(labels)} labels for {count} {name or 'points'}; give one for each")
    figure = make_subplots(1, len(panels), subplot_titles=list(map(plain, panels)), horizontal_spacing=0.03)
    values = np.asarray([str(label) for label in labels], object)
    names = [str(label) for label in order or pd.Series(values).value_counts().index]
    rest = [] if coloured is None else names[coloured:]
    groups = [("the rest", np.isin(values, rest), "#d0d0d0", 0)] if rest else []
    for number, label in enumerate(names[: len(names) - len(rest)]):
        groups.append((label, values == label, PALETTE[number % len(PALETTE)], number // len(PALETTE)))
    for number, (label, inside, colour, shape) in enumerate(groups):
        own = np.flatnonzero(inside)
        symbol = SYMBOLS[shape % len(SYMBOLS)]
        marker = {"size": 5, "color": colour, "opacity": 0.75, "symbol": symbol}
        for column, (_, points) in enumerate(panels.items(), 1):
            points = np.asarray(points, np.float32)
            figure.add_scattergl(
                x=points[own, 0],
                y=points[own, 1],
                mode="markers",
                name=plain(label),
                legendgroup=label,
                legendrank=number or (len(groups) if rest else 0),
                showlegend=column == 1,
                marker=marker,
                text=[plain(texts[int(i)]) for i in own] if len(texts) else None,
                hoverinfo="text+name" if len(texts) else "name",
                row=1,
                col=column,
            )
    figure.update_layout(
        template=TEMPLATE,
        height=460 if len(panels) == 1 else 400,
        title=plain(title),
        legend={"itemsizing": "constant", "tracegroupgap": 0},
        margin={"l": 10, "r": 10, "t": 64, "b": 10},
    )
    figure.update_xaxes(visible=False)
    for column in range(1, len(panels) + 1):  # a unit is as long across as up, in each panel for itself
        figure.update_yaxes(visible=False, scaleanchor=f"x{column if column > 1 else ''}", row=1, col=column)
    return figure


def bars(
    estimates: Mapping[str, Estimate] | Mapping[str, Mapping[str, Estimate]], title: str = "", unit: str = ""
) -> go.Figure:
    """One bar an estimate, with its 95% interval; for estimates in named groups, a colour a group."""
    nested = all(isinstance(value, Mapping) for value in estimates.values())
    groups: Mapping[str, Any] = estimates if nested else {"": estimates}
    figure = go.Figure()
    for number, (name, own) in enumerate(groups.items()):
        figure.add_bar(
            x=list(map(plain, own)),
            y=[v.mean for v in own.values()],
            name=plain(name),
            marker_color=PALETTE[number % len(PALETTE)],
            error_y=_errors(own.values()),
            hovertemplate="%{x}: %{y:.3f}<extra></extra>",
        )
    figure.update_layout(
        template=TEMPLATE,
        height=360,
        title=plain(title),
        showlegend=nested,
        barmode="group",
        margin={"l": 50, "r": 10, "t": 50, "b": 40},
    )
    figure.update_xaxes(type="category", automargin=True)
    figure.update_yaxes(title=plain(unit))
    return figure


def differences(table: pd.DataFrame, title: str = "", unit: str = "difference") -> go.Figure:
    """Differences with their intervals beside a line at 0: a row each of `compare`'s or any table with such
    columns.

    The index names the rows; the columns are difference, low and high. With a column "p (Holm)", rows of
    0.05 or more are grey: they cannot be told apart, whatever their own interval.
    """
    figure, names = go.Figure(), list(map(plain, table.index))
    p = table.get("p (Holm)", pd.Series(0.0, table.index)).to_numpy(float)
    for inside, colour in ((p < 0.05, PALETTE[0]), (~(p < 0.05), GREY)):
        found = [Estimate(row.difference, row.low, row.high, 0) for row in table[inside].itertuples()]
        if found:
            figure.add_scatter(
                x=[v.mean for v in found],
                y=[name for name, own in zip(names, inside, strict=True) if own],
                mode="markers",
                marker={"color": colour, "size": 9},
                error_x=_errors(found),
                showlegend=False,
                hovertemplate="%{y}: %{x:+.3f}<extra></extra>",
            )
    figure.add_scatter(
        x=[0, 0],
        y=[plain(table.index[0]), plain(table.index[-1])],
        mode="lines",
        showlegend=False,
        hoverinfo="skip",
        line={"color": "#767676", "dash": "dot", "width": 1},
    )
    figure.update_layout(
        template=TEMPLATE,
        height=130 + 30 * len(table),
        title=plain(title),
        margin={"l": 90, "r": 10, "t": 50, "b": 50},
    )
    grey = " (grey: cannot be told apart)" if "p (Holm)" in table and not (p < 0.05).all() else ""
    figure.update_xaxes(title=plain(unit) + grey)
    figure.update_yaxes(type="category", autorange="reversed", automargin=True, categoryarray=names)
    return figure


def growth(table: pd.DataFrame, title: str = "", unit: str = "") -> go.Figure:
    """How columns grow with the index, a size: both axes by powers of ten, a line a column; what is missing
    breaks none.
    """
    figure = go.Figure()
    for number, name in enumerate(table):
        own = table[name].dropna()
        figure.add_scatter(
            x=own.index,
            y=own,
            name=plain(name),
            mode="lines+markers",
            line={"color": PALETTE[number % len(PALETTE)]},
            hovertemplate="%{x:,}: %{y:.3g}",
        )
    figure.update_layout(
        template=TEMPLATE,
        height=360,
        title=plain(title),
        showlegend=True,
        margin={"l": 60, "r": 10, "t": 50, "b": 50},
    )
    figure.update_xaxes(title=plain(table.index.name or ""), **_ticks(table.index.to_numpy()))
    figure.update_yaxes(title=plain(unit), **_ticks(table.to_numpy()))
    return figure


def _ticks(values: np.ndarray) -> dict[str, int | str]:
    """Powers of ten, and 2 and 5 times them where there would be few."""
    least, most = np.nanmin(values), np.nanmax(values)
    form = "~s" if least >= 1 else "~g"  # 1k, but not 100m for a tenth
    return {"type": "log", "dtick": "D2" if most < 100 * least else 1, "tickformat": form}


def beside_published(table: pd.DataFrame, title: str = "") -> go.Figure:
    """Ours with its interval, and the published figure where there is one: a row each of `findings`'
    table.
    """
    names = [plain(f"{row.number} {row.finding}") for row in table.itertuples()]
    ours = [Estimate(row.ours, row.low, row.high, 0) for row in table.itertuples()]
    figure = go.Figure()
    figure.add_scatter(
        x=[v.mean for v in ours],
        y=names,
        mode="markers",
        name="ours, 95% interval",
        error_x=_errors(ours),
        marker={"color": PALETTE[0], "size": 9},
        hovertemplate="%{x:+.3f}",
    )
    figure.add_scatter(
        x=table["published"],
        y=names,
        mode="markers",
        name="published",
        marker={"color": PALETTE[1], "size": 10, "symbol": "diamond-open"},
        hovertemplate="%{x:+.3f}",
    )
    figure.add_vline(x=0, line={"color": "#767676", "dash": "dot", "width": 1})
    figure.update_layout(
        template=TEMPLATE,
        height=150 + 32 * len(table),
        title=plain(title),
        margin={"l": 90, "r": 10, "t": 50, "b": 90},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
    )
    figure.update_xaxes(title="relative change")
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    return figure


def agreements(table: pd.DataFrame, title: str = "") -> go.Figure:
    """`geometry.label_agreement`'s table: how often neighbours share a label, beside what chance gives."""
    names = [plain(name) for name in table["label"]]
    spread = {"array": table["high"] - table["by chance"], "arrayminus": table["by chance"] - table["low"]}
    chance = go.Scatter(
        x=table["by chance"],
        y=names,
        mode="markers",
        name="by chance, 95%",
        error_x={"type": "data", "symmetric": False, **spread},
        marker={"color": "#8c8c8c", "symbol": "line-ns-open", "size": 12},
    )
    found = go.Scatter(
        x=table["agreement"],
        y=names,
        mode="markers",
        name="neighbours",
        marker={"color": PALETTE[0], "size": 10},
    )
    figure = go.Figure([chance, found])
    figure.update_layout(template=TEMPLATE, title=plain(title), height=140 + 32 * len(table))
    figure.update_xaxes(title="share of neighbours with the same label", range=[0, 1.02])
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    return figure


def _errors(estimates: Iterable[Estimate]) -> dict:
    return {
        "type": "data",
        "symmetric": False,
        "array": [v.high - v.mean for v in estimates],
        "arrayminus": [v.mean - v.low for v in estimates],
    }


def estimates_by(table: pd.DataFrame, group: str, value: str) -> dict[str, Estimate]:
    """Mean of a column with its interval, by another column's values in the order they come; for `bars`.

    A table's rows are taken to be independent: one a query. Rows without a value do not count.
    """
    found = table.dropna(subset=[value]).groupby(group, sort=False)[value]
    return {str(name): estimate(values.to_numpy(float)) for name, values in found}


def matrix(frame: pd.DataFrame, title: str = "", unit: str = "", middle: float | None = None) -> go.Figure:
    """A table as a heat map with its values written in; with a `middle`, blue below and orange above it.

    Values have two decimals, or up to four where it takes them to see which are larger.
    """
    values = frame.to_numpy(float)
    cells = pd.Series(values.ravel())
    spread = cells.max() - cells.min()
    decimals = 2 if not spread > 0 else min(4, max(2, 1 - math.floor(math.log10(spread))))
    scale = "Blues" if middle is None else [[0, PALETTE[0]], [0.5, "#ffffff"], [1, PALETTE[1]]]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(map(plain, frame.columns)),
            y=list(map(plain, frame.index)),
            colorscale=scale,
            zmid=middle,
            texttemplate=f"%{{z:.{decimals}f}}",
            colorbar={"title": plain(unit)},
        )
    )
    figure.update_layout(
        template=TEMPLATE,
        height=140 + 36 * len(frame),
        title=plain(title),
        margin={"l": 90, "r": 10, "t": 50, "b": 40},
    )
    figure.update_xaxes(title=plain(frame.columns.name or ""), type="category", automargin=True)
    figure.update_yaxes(
        title=plain(frame.index.name or ""), type="category", autorange="reversed", automargin=True
    )
    return figure
