"""Tables → plotly figures."""

from os import PathLike

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

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
