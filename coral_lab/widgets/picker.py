"""Choosing a product from thumbnails: words of the title, class and language narrow the choice."""

from collections.abc import Callable, Sequence
from functools import partial
from html import escape

import ipywidgets as widgets

from coral_lab.query import Product
from coral_lab.results import FRAME, PLAIN, grey, paragraph, product_img
from coral_lab.sources.border import text_of
from coral_lab.widgets.parts import LABELLED, Message, button, wrapped

PAGE = 12  # products seen at once
ANY = ("any class", "any language")


class Picker(widgets.VBox):
    """A page of products with a button each, which calls `choose` with the product; hidden until `ask`.

    `found` are the products that fit `search`, `only_class` and `only_language`.
    """

    def __init__(self, products: Sequence[Product], choose: Callable[[Product], object], message: Message):
        self.products, self.found, self.start = products, list(products), 0
        classes = sorted({product.class_name for product in products})
        languages = sorted({product.language for product in products})
        self.search = widgets.Text(description="Search", placeholder="words of a title", style=LABELLED)
        self.only_class = widgets.Dropdown(options=[ANY[0], *classes], description="Class", style=LABELLED)
        self.only_language = widgets.Dropdown(
            options=[ANY[1], *languages], description="Language", style=LABELLED
        )
        for control in (self.search, self.only_class, self.only_language):
            control.layout.width = "190px"
            control.observe(lambda _: message.attempt(self._look), "value")
        self.earlier = button("‹ earlier", "The products before these", lambda: self._turn(-PAGE), "84px")
        self.later = button("later ›", "The products after these", lambda: self._turn(PAGE), "84px")
        self.asked, self.count = widgets.HTML(), widgets.HTML()
        self.pictures = [widgets.HTML() for _ in range(PAGE)]
        self.buttons = [button("Use", "", partial(self._chosen, choose, n), "100%") for n in range(PAGE)]
        self.cards = [
            widgets.VBox(pair, layout={"width": "116px", "align_items": "stretch"})
            for pair in zip(self.pictures, self.buttons, strict=True)
        ]
        close = button("Close", "Choose none", self.close_up, "72px")
        filters = wrapped(
            self.search, self.only_class, self.only_language, self.earlier, self.later, close, self.count
        )
        frame = {"border": "1px solid #8886", "padding": "8px", "margin": "4px 0", "display": "none"}
        super().__init__([self.asked, filters, wrapped(*self.cards)], layout=frame)

    def _chosen(self, choose: Callable[[Product], object], n: int) -> None:
        choose(self.found[self.start + n])

    def ask(self, question: str) -> None:
        """Open, with a line that says what is chosen."""
        self.asked.value = paragraph(f"<b>{escape(question)}</b>")
        self._look()
        self.layout.display = "flex"

    def close_up(self) -> None:
        self.layout.display = "none"

    def _look(self) -> None:
        words = text_of(self.search.value, "the search", "words").lower().split()
        self.found = [product for product in self.products if self._fits(product, words)]
        self._turn(-self.start)

    def _fits(self, product: Product, words: Sequence[str]) -> bool:
        fits_class = self.only_class.value in (ANY[0], product.class_name)
        fits_language = self.only_language.value in (ANY[1], product.language)
        title = product.title.lower()
        return fits_class and fits_language and all(word in title for word in words)

    def _turn(self, by: int) -> None:
        self.start = max(0, min(self.start + by, len(self.found) - 1))
        page = self.found[self.start : self.start + PAGE]
        for n, card in enumerate(self.cards):
            card.layout.display = "flex" if n < len(page) else "none"
        for product, picture, use in zip(page, self.pictures, self.buttons, strict=False):
            picture.value = _card(product)
            use.tooltip = f"Use {product.title}"
        end = self.start + len(page)
        self.earlier.disabled, self.later.disabled = self.start == 0, end >= len(self.found)
        shown = (
            f"{self.start + 1}–{end} of {len(self.found):,}" if page else "no product fits; use fewer words"
        )
        self.count.value = paragraph(grey(shown))


def _card(product: Product) -> str:
    picture = product_img(product, 100)
    style = "height:2.9em;overflow:hidden;font-size:12px"
    whole = escape(product.title, quote=True)
    title = f'<div style="{style}" title="{whole}">{escape(product.title)}</div>'
    facts = grey(f"{product.class_name} · {product.language}")
    return f'<div class="{PLAIN}" style="{FRAME};overflow-wrap:anywhere">{picture}{title}{facts}</div>'
