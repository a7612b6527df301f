"""Hits that can be marked right, partly right or wrong, by mouse and by keys, into a session's file.

The front end is one file of plain JavaScript (anywidget): it shows cards that are escaped here, sends what
was pressed, and shows the marks that were kept.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from coral_lab.metrics import DEPTH
from coral_lab.query import Product, Query
from coral_lab.results import grey, paragraph, product_img, tile
from coral_lab.sources.border import brief, text_of
from coral_lab.sources.judgements import GRADES, Session, check_same
from coral_lab.study.judging import Pool
from coral_lab.widgets.parts import Message, button, wrapped

LONGEST_WORD = 200
"""Characters of a word why."""


class MarkedCards(anywidget.AnyWidget):
    """Cards of HTML, each with what it is marked: `cards` are shown, `marks` are grades and words by id,
    `query` is the id of what they answer.

    A click or a key asks for a mark: `on_mark` is called with the message of the front end.
    """

    _esm = Path(__file__).with_name("judged_hits.js")
    _css = Path(__file__).with_name("judged_hits.css")
    query = traitlets.Unicode().tag(sync=True)
    cards = traitlets.List(traitlets.Dict()).tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)

    def __init__(self, on_mark: Callable[[Mapping[str, Any]], object]):
        super().__init__()
        self.on_msg(lambda _, content, __: on_mark(content))


class JudgedHits(widgets.VBox):
    """A query's products as cards to be marked, and how many of them are; marks are a session's, and `marked`
    is called after each.
    """

    def __init__(self, session: Session, message: Message, marked: Callable[[], object] = lambda: None):
        self.session, self.message, self.marked = session, message, marked
        self.query: Query | None = None
        self.cards = MarkedCards(lambda content: self.message.attempt(lambda: self._asked(content)))
        self.progress = widgets.HTML()
        super().__init__([self.progress, self.cards])

    def show(self, query: Query, products: Sequence[Product], cards: Sequence[str]) -> None:
        """Show a query's products, each as the card of HTML that stands for it."""
        self.query = query
        pairs = zip(products, cards, strict=True)
        made = [{"id": p.id, "label": p.title or p.id, "html": card} for p, card in pairs]
        with self.cards.hold_sync():
            self.cards.query, self.cards.cards = query.id, made
            self._tell(query)

    def mark(self, id: str, grade: str | None, word: str = "") -> None:
        """What a key does; errors are those of `Session.mark`, and nothing is marked then."""
        if self.query is None:
            raise ValueError("no query is shown; call show first")
        self.session.mark(self.query, id, grade, word)
        self._tell(self.query)
        self.marked()

    def _asked(self, content: Mapping[str, Any]) -> None:
        """A message of the front end, which anything may have sent."""
        ids = {card["id"] for card in self.cards.cards}
        id, grade, word = (content.get(name) for name in ("id", "grade", "word"))
        if not isinstance(id, str) or id not in ids or grade not in (None, *GRADES):
            raise ValueError(f"mark {brief(grade)} of {brief(id)} is none of these hits'; reload the page")
        if content.get("query") != self.cards.query:  # pressed while the kernel was at another
            asked = brief(content.get("query"))
            raise ValueError(
                f"query {asked} is no longer shown, and its mark not kept; go back to it and mark again"
            )
        self.mark(id, grade, text_of(word, f"product {id}", "word")[:LONGEST_WORD])

    def _tell(self, query: Query) -> None:
        own = {i: j for (asked, i), j in self.session.judgements.items() if asked == query.id}
        shown = [card["id"] for card in self.cards.cards]
        self.cards.marks = {id: {"grade": own[id].grade, "word": own[id].word} for id in shown if id in own}
        self.progress.value = paragraph(grey(progress_line(self.session, query, shown)))


def progress_line(session: Session, query: Query, shown: Sequence[str], depth: int = DEPTH) -> str:
    """How much is judged: of what is shown, and of how many queries `depth` products or more."""
    counts = {id: len(session.relevance(id)) for id in session.queries}
    here = sum(id in session.relevance(query) for id in shown)
    whole = sum(count >= depth for count in counts.values())
    begun = sum(0 < count < depth for count in counts.values())
    queries = f"{whole} queries with {depth} or more judged, {begun} begun"
    return f"judged {here} of these {len(shown)} · {queries} · keys: 1 right, 2 partly, 3 wrong, 0 none"


def marked_html(session: Session, query: Query, id: str) -> str:
    """What a product was marked, as a line of HTML; "" if it was not."""
    own = session.judgements.get((query.id, id))
    if own is None:
        return ""
    return f"<b>{own.grade}</b> {grey(' · '.join(filter(None, (own.judge, own.word))))}"


def blind_card(product: Product, lines: Sequence[str] = ()) -> str:
    """A product as a card that does not say who found it."""
    said = [f'<div style="min-height:3em">{escape(product.title)}</div>', *lines]
    return tile(product_img(product, 116, pixels=128), said)


class JudgingBench(widgets.VBox):
    """Pools of several models' hits (`study.pools`), to be judged blind: one query at a time, its products
    shuffled, without names, ranks or scores.

    Opens at the first query that is not judged to its end. Raises ValueError without pools.
    """

    def __init__(self, pools: Sequence[Pool], session: Session):
        if not pools:
            raise ValueError("0 pools are given; make some with study.pools(results)")
        self.pools, self.session, self.at = list(pools), session, 0
        self.message, self.asked, self.place = Message(), widgets.HTML(), widgets.HTML()
        self.hits = JudgedHits(session, self.message)
        self.earlier = button("‹ earlier", "The query before this one", lambda: self.go(self.at - 1))
        self.later = button("later ›", "The query after this one", lambda: self.go(self.at + 1))
        following = button("next unjudged", "The next query with products to judge", self.go_on)
        super().__init__(
            [wrapped(self.earlier, self.later, following, self.place), self.asked, self.hits, self.message]
        )
        self.go(0)
        if not self._left(0):
            self.go_on()

    def __repr__(self) -> str:
        left = sum(bool(self._left(i)) for i in range(len(self.pools)))
        return f"JudgingBench({len(self.pools):,} queries, {left:,} not judged to the end)"

    @property
    def pool(self) -> Pool:
        return self.pools[self.at]

    def go(self, at: int) -> None:
        """Show the pool at this place, from 0."""
        self.at = at
        query, products = self.pool.query, self.pool.products
        self.place.value = paragraph(grey(f"query {at + 1} of {len(self.pools):,}"))
        # The answers that are known are not told.
        self.asked.value = Query(
            query.id, query.class_name, query.conditions, query.text, language=query.language
        )._repr_html_()
        self.earlier.disabled, self.later.disabled = at == 0, at == len(self.pools) - 1
        self.hits.show(query, products, [blind_card(product) for product in products])

    def go_on(self) -> None:
        """Show the next pool, from here around, in which something is not judged."""
        places = [*range(self.at + 1, len(self.pools)), *range(self.at + 1)]
        found = next((place for place in places if self._left(place)), None)
        if found is None:
            self.message.say("everything is judged")
        else:
            self.go(found)

    def _left(self, at: int) -> list[str]:
        pool = self.pools[at]
        judged = self.session.relevance(pool.query)
        return [product.id for product in pool.products if product.id not in judged]


def disagreements(first: Session, second: Session) -> widgets.HTML:
    """Products that two people marked differently, with both marks and words, those furthest apart first.

    Raises ValueError as `check_same` does.
    """
    check_same((first, second))
    keys = [key for key in first.judgements if key in second.judgements]
    apart = {k: abs(first.judgements[k].relevance - second.judgements[k].relevance) for k in keys}
    rows = []
    for id, product in sorted((key for key in keys if apart[key]), key=lambda key: -apart[key]):
        query = first.queries[id]
        marks = [marked_html(own, query, product) for own in (first, second)]
        rows.append(query._repr_html_() + blind_card(first.dataset.product(product), marks))
    said = f"{len(rows):,} of {len(keys):,} products that both judged are marked differently"
    return widgets.HTML(paragraph(grey(said)) + "".join(rows))
