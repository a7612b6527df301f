"""Thin ipywidgets views."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from coral_lab.plots import PALETTE, curves


class LivePlot:
    """The losses of a running training: give it to `train` or `run` as `on_step`, and show it before you start.

    Redrawn every `every` steps; `.static()` is the same as a plain figure, with evaluations.
    """

    def __init__(self, every: int = 5):
        self.every, self.rows = every, []
        self.figure = go.FigureWidget(layout={"template": "simple_white", "height": 320, "yaxis_type": "log"})
        self.figure.update_layout(xaxis_title="step", margin={"l": 50, "r": 10, "t": 20, "b": 40})

    def __call__(self, row: Mapping[str, float | int]) -> None:
        self.rows.append(dict(row))
        if len(self.rows) % self.every == 0:
            self._draw()

    def _draw(self) -> None:
        shown = {trace.name for trace in self.figure.data}
        terms = [
            name for name in self.rows[0] if name not in ("step", "seconds", "gradient_norm", "learning_rate")
        ]
        with self.figure.batch_update():
            for number, term in enumerate(terms):
                if term not in shown:
                    self.figure.add_scatter(name=term, line={"color": PALETTE[number % len(PALETTE)]})
                trace = next(trace for trace in self.figure.data if trace.name == term)
                trace.x = [row["step"] for row in self.rows]
                trace.y = [row.get(term) for row in self.rows]

    def static(self) -> go.Figure:
        """Raises ValueError before the first step."""
        return curves({"run": pd.DataFrame(self.rows)})

    def _repr_mimebundle_(self, **kwargs):
        return self.figure._repr_mimebundle_(**kwargs)
