"""What widgets are made of: a line that says what happened, buttons, wrapping rows, live figures, frozen
twins.

JupyterLab hides an error in a callback, so a callback runs through `Message.attempt`, which shows it in its
place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML, display

from coral_lab.results import RED, grey, paragraph
from coral_lab.study.plots import NO_LOSS, PALETTE, curves, plain

LABELLED = {"description_width": "initial"}
"""A style that gives a control's label the room it needs."""

QUIET = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
"""Plotly's settings for a live figure: no link to share data with a server."""


class Message(widgets.HTML):
    """One line for the reader, read out by screen readers: what is shown, or what went wrong."""

    def say(self, text: str) -> None:
        self.value = paragraph(f'<span role="status">{grey(text)}</span>')

    def attempt(self, action: Callable[[], object]) -> bool:
        """Run an action; an error is shown here and nowhere else. Returns whether it went well."""
        try:
            action()
        except Exception as error:
            said = f"<b>✗ {escape(type(error).__name__)}</b>: {escape(str(error))}"
            self.value = paragraph(f'<span role="alert" style="color:{RED}">{said}</span>')
            return False
        return True


def button(
    label: str, help: str, action: Callable[[], object], width: str = "auto", disabled: bool = False
) -> widgets.Button:
    """A button with a label to read and a sentence of help; give an action that shows its own errors."""
    made = widgets.Button(description=label, tooltip=help, disabled=disabled, layout={"width": width})
    made.on_click(lambda _: action())
    return made


def wrapped(*children: widgets.Widget, gap: int = 8) -> widgets.HBox:
    """Widgets beside one another, wrapping where the page ends."""
    layout = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": f"{gap}px", "overflow": "visible"}
    return widgets.HBox(children, layout=layout)


def live_figure(*traces: go.Scatter | go.Scattergl | go.Heatmap, **layout) -> go.FigureWidget:
    """A figure that can be changed while it is shown, without plotly's share link."""
    figure = go.FigureWidget(list(traces), layout={"template": "simple_white", **layout})
    figure._config = QUIET
    return figure


@dataclass(frozen=True)
class Frozen:
    """What a widget shows, without widgets: a figure, a gallery as HTML, or both. It survives nbconvert and
    GitHub.
    """

    figure: go.Figure | None = None
    gallery: str = ""

    def _ipython_display_(self) -> None:
        if self.figure is not None:
            display(self.figure)
        if self.gallery:
            display(HTML(self.gallery))


class LivePlot:
    """The losses of a running training: give it to `cl.train` or `train_loop` as `on_step`, and show it
    before you start.

    Redrawn every `every` steps; `.static()` is the same as a plain figure, with evaluations.
    """

    def __init__(self, every: int = 5):
        self.every = every
        self.rows: list[dict[str, float | int]] = []
        margin = {"l": 50, "r": 10, "t": 20, "b": 40}
        self.figure = live_figure(height=320, yaxis_type="log", xaxis_title="step", margin=margin)

    def __call__(self, row: Mapping[str, float | int]) -> None:
        self.rows.append(dict(row))
        if len(self.rows) % self.every == 0:
            self._draw()

    def _draw(self) -> None:
        shown = {trace.name for trace in self.figure.data}
        terms = [name for name in self.rows[0] if name not in NO_LOSS]
        with self.figure.batch_update():
            for number, term in enumerate(terms):
                if plain(term) not in shown:
                    self.figure.add_scatter(name=plain(term), line={"color": PALETTE[number % len(PALETTE)]})
                trace = next(trace for trace in self.figure.data if trace.name == plain(term))
                trace.x = [row["step"] for row in self.rows]
                trace.y = [row.get(term) for row in self.rows]

    def static(self) -> go.Figure:
        """Raises ValueError before the first step."""
        return curves({"run": pd.DataFrame(self.rows)})

    def _repr_mimebundle_(self, **kwargs):
        return self.figure._repr_mimebundle_(**kwargs)
