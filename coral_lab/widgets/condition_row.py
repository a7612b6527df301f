"""One condition of the query bench: what it asks for, its reference, and what can be done with it."""

from html import escape
from typing import TYPE_CHECKING

import ipywidgets as widgets

from coral_lab.query import Condition, Product
from coral_lab.results import FRAME, PLAIN, grey, product_img
from coral_lab.widgets.parts import LABELLED

if TYPE_CHECKING:
    from coral_lab.widgets.query_bench import QueryBench


def condition_of(attribute: str, product: Product) -> Condition:
    """The condition that asks for what the product is known to have; value "" where it is not known."""
    return Condition(attribute, product, " ".join(product.attributes.get(attribute, ())))


class ConditionRow(widgets.HBox):
    """The `i`-th condition (from 0) of a bench."""

    def __init__(self, bench: "QueryBench", i: int):
        self.bench, self.i = bench, i
        self.attribute = widgets.Dropdown(
            description=f"{i + 1}. the same", style=LABELLED, layout={"width": "230px"}
        )
        self.picture, self.title = widgets.HTML(), widgets.HTML(layout={"width": "300px"})
        name = f"condition {i + 1}"
        self.up = bench._button("↑ up", f"Ask {name} earlier", lambda: bench.move(i, -1), "72px")
        self.down = bench._button("↓ down", f"Ask {name} later", lambda: bench.move(i, 1), "72px")
        swap = bench._button("swap", f"Point at another product in {name}", lambda: bench._ask(i), "72px")
        remove = bench._button("remove", f"Leave {name} out", lambda: bench.remove(i), "80px")
        bench._when(self.attribute, self._ask_for)
        layout = {"align_items": "center", "grid_gap": "6px", "flex_flow": "row wrap"}
        super().__init__(
            [self.attribute, self.picture, self.title, self.up, self.down, swap, remove], layout=layout
        )

    def show(self, condition: Condition) -> None:
        product = condition.product
        self.attribute.options = list(dict.fromkeys([condition.attribute, *product.attributes]))
        self.attribute.value = condition.attribute
        self.picture.value = product_img(product, 56, inline=True)
        said = f"{escape(product.title)}<br>{grey(condition.value)}"
        self.title.value = f'<div class="{PLAIN}" style="{FRAME};line-height:1.3">{said}</div>'
        self.up.disabled = self.i == 0
        self.down.disabled = self.i == len(self.bench.query.conditions) - 1

    def _ask_for(self, attribute: str) -> None:
        product = self.bench.query.conditions[self.i].product
        self.bench._exchange(self.i, condition_of(attribute, product))
