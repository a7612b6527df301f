"""The query bench: build an interleaved query by hand, and see at once what becomes of its ranking.

Every click is a plain method: each edit is a new `Query` that remembers its parent, `history` is a table, and
`as_python` is the line that makes the query again. Nothing but ipywidgets: the kernel's own channel, no
server.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import ipywidgets as widgets
import pandas as pd

from coral_lab.prompts import FORMATS, LANGUAGES, Format, format_name, format_of
from coral_lab.query import Condition, Product, Query, right_answers
from coral_lab.results import Hits, flow
from coral_lab.retrieval import Index
from coral_lab.sources.judgements import Session
from coral_lab.study.composition import search
from coral_lab.widgets.condition_row import ConditionRow, condition_of
from coral_lab.widgets.judged_hits import JudgedHits, marked_html
from coral_lab.widgets.parts import LABELLED, Frozen, Message, button, wrapped
from coral_lab.widgets.picker import Picker

REMEMBERED = 100  # ranks that a pinned ranking remembers
ONE_BY_ONE = "one by one"
"""Beside the formats: each condition asked alone, and the mean of the embeddings (`study.composition`)."""


def as_python(query: Query) -> str:
    """The line that makes this query again, given `import coral_lab as cl` and its dataset as `shop`."""
    conditions = "".join(
        f"cl.Condition({c.attribute!r}, shop.product({c.product.id!r}), {c.value!r}), "
        for c in query.conditions
    )
    language = f", language={query.language!r}" if query.language != "en" else ""
    return f"cl.Query({query.id!r}, {query.class_name!r}, ({conditions.rstrip()}), {query.text!r}{language})"


def _wanted(query: Query) -> tuple:
    """What decides which answers are right: neither the order of the conditions nor the language."""
    return query.class_name, query.text, {(c.attribute, c.product.id, c.value) for c in query.conditions}


def _said(query: Query) -> str:
    return f"{query.id}: " + " ".join([query.class_name, *(c.attribute for c in query.conditions)])


@dataclass(frozen=True)
class Shown:
    """What the bench once showed. `ranking` goes down to REMEMBERED, `parent` is the number of the step it
    came from.
    """

    query: Query
    format: str
    model: str
    ranking: Hits
    parent: int | None
    seconds: float


class QueryBench(widgets.VBox):
    """Widgets around a query: wanted class, conditions with their pictures, free text, language, format and
    model.

    `indexes` is one index or several by name, over the same products; `query` is where to start, by default
    an empty one, in the first index's format. The format "one by one" asks each condition alone, in the
    index's format, and searches by the mean of the embeddings. `query` and `hits` are what is shown, `steps`
    and `history` all that ever was. With a `session` hits can be marked, by mouse and by keys; the bench then
    begins with the query that was judged last, and what is asked anew gets an id of its own. An edit that
    fails changes nothing: called from Python it raises, clicked it says why below the conditions.
    """

    def __init__(
        self,
        indexes: Index | Mapping[str, Index],
        query: Query | None = None,
        *,
        session: Session | None = None,
        formats: Mapping[str, Format] = FORMATS,
        k: int = 10,
    ):
        self.indexes = dict(indexes) if isinstance(indexes, Mapping) else {indexes.model.name: indexes}
        self.products: Sequence[Product] = next(iter(self.indexes.values())).products
        first = next(iter(self.indexes.values())).format
        self.formats, self.k = {format_name(first): format_of(first), **formats}, k
        self.classes = sorted({product.class_name for product in self.products})
        self.steps: list[Shown] = []
        self.at = -1
        self.pinned: Mapping[str, int] | None = None
        self._quiet = False
        self._swapping: int | None = None
        self.session = session
        self._build()
        shown = [self.gallery] if self.judged is None else [self.judged]
        self.set(query or self._left() or Query("mine", self.classes[0], text="."))
        super().__init__([*self.controls, self.rows, self.picker, self.message, self.code, *shown])

    def __repr__(self) -> str:
        return f"QueryBench({len(self.query.conditions)} conditions, step {self.at} of {len(self.steps)})"

    @property
    def step(self) -> Shown:
        return self.steps[self.at]

    @property
    def query(self) -> Query:
        return self.step.query

    @property
    def queries(self) -> list[Query]:
        return [step.query for step in self.steps]

    @property
    def hits(self) -> Hits:
        return replace(self.step.ranking, hits=self.step.ranking.hits[: self.k])

    @property
    def history(self) -> pd.DataFrame:
        """One row a step, the oldest first: what was asked and how, how it went, and the row of the step
        before.

        `first right` is the rank of the best-placed right answer; missing beyond the first 100.
        """
        rows = [
            {
                "class": step.query.class_name,
                "conditions": " + ".join(f"{c.attribute} of {c.product.id}" for c in step.query.conditions),
                "text": step.query.text,
                "language": step.query.language,
                "format": step.format,
                "model": step.model,
                "right answers": len(step.query.positives),
                "first right": next((hit.rank for hit in step.ranking if hit.positive), None),
                "parent": step.parent,
            }
            for step in self.steps
        ]
        return pd.DataFrame(rows).astype({"parent": "Int64", "first right": "Int64"})

    def static(self) -> Frozen:
        """The query and its gallery, with the rank shifts if a ranking is pinned."""
        cards = self.hits.cards(self.pinned)
        if self.session is not None:
            marks = [marked_html(self.session, self.query, hit.product.id) for hit in self.hits]
            cards = [f"<div>{card}{mark}</div>" for card, mark in zip(cards, marks, strict=True)]
        return Frozen(gallery=self.query._repr_html_() + flow(cards))

    # What a click does

    def set(self, query: Query) -> None:
        """Show another query; the one before stays in the history. Errors are those of `Index.search`."""
        self._search(query, self.format.value, self.model.value)

    def edit(self, **changes) -> None:
        """Change fields of the query. Right answers are looked up anew if what is wanted has changed."""
        edited = self.query.edited(**changes)
        if _wanted(edited) != _wanted(self.query):
            answers = right_answers(edited, self.products)
            edited = replace(edited, positives=answers, hard_negatives=(), relevance={})
        self.set(edited)

    def ask_again(self, *, format: str | None = None, model: str | None = None) -> None:
        """The same query in another format or by another model, by name."""
        self._search(self.query, format or self.step.format, model or self.step.model)

    def add(self, product: Product, attribute: str | None = None) -> None:
        """One more condition: share `attribute` with `product`; by default the first that is not asked
        yet.
        """
        asked = {condition.attribute for condition in self.query.conditions}
        names = [name for name in product.attributes if name not in asked] or [*product.attributes, "style"]
        self.edit(conditions=(*self.query.conditions, condition_of(attribute or names[0], product)))

    def swap(self, i: int, product: Product) -> None:
        """Point at another product in the i-th condition (from 0)."""
        self._exchange(i, condition_of(self.query.conditions[i].attribute, product))

    def move(self, i: int, by: int) -> None:
        """Ask the i-th condition (from 0) earlier (`by` < 0) or later. Raises IndexError where there is no
        place.
        """
        order = list(range(len(self.query.conditions)))
        if not (0 <= i < len(order) and 0 <= i + by < len(order)):
            raise IndexError(
                f"condition {i} cannot move by {by}: there are {len(order)}, from 0; choose places among them"
            )
        order.insert(i + by, order.pop(i))
        self.set(self.query.reordered(order))

    def remove(self, i: int) -> None:
        """Leave the i-th condition (from 0) out."""
        self.edit(conditions=self.query.conditions[:i] + self.query.conditions[i + 1 :])

    def undo(self) -> None:
        """Back to the step this one came from, its format and model too. The history keeps both."""
        if self.step.parent is None:
            return self.message.say("this is the first query: nothing to undo")
        self.at = self.step.parent
        self._show(self.hits.cards(self.pinned))

    def pin(self) -> None:
        """Keep this ranking: from now on every hit says how far it has moved against it."""
        self._compare({hit.product.id: hit.rank for hit in self.step.ranking})

    def unpin(self) -> None:
        self._compare(None)

    def _compare(self, ranks: Mapping[str, int] | None) -> None:
        self.pinned = ranks
        self.pin_button.description = "Unpin" if ranks else "Pin"
        self._show(self.hits.cards(ranks))

    def _exchange(self, i: int, condition: Condition) -> None:
        self.edit(conditions=(*self.query.conditions[:i], condition, *self.query.conditions[i + 1 :]))

    def _search(self, query: Query, format: str, model: str) -> None:
        started = perf_counter()
        pool, k = self.indexes[model], max(self.k, REMEMBERED)
        if format == ONE_BY_ONE and format not in self.formats:
            found = search(pool, query, k)
        else:
            found = pool.search(query, k, format=self.formats[format])
        cards = replace(found, hits=found.hits[: self.k]).cards(self.pinned)
        parent = self.at if self.steps else None
        self.steps.append(Shown(query, format, model, found, parent, perf_counter() - started))
        self.at = len(self.steps) - 1  # only now: what fails above leaves all as it was
        self._show(cards)

    def _name(self) -> None:
        """Give what is shown its id: of a step gone back to it may have become another question's since."""
        if self.session is not None:
            query = self.session.under_its_id(self.query)
            ranking = replace(self.step.ranking, query=query)
            self.steps[self.at] = replace(self.step, query=query, ranking=ranking)

    def _left(self) -> Query | None:
        """The query that the session judged last."""
        if self.session is None or not self.session.queries:
            return None
        known = self.session.queries
        last = next(reversed(self.session.judgements), (next(reversed(known)), ""))[0]
        return self._answered(known[last])

    def _answered(self, query: Query) -> Query:
        return replace(query, positives=right_answers(query, self.products))

    # What the reader sees

    def _build(self) -> None:
        def dropdown(options, description: str, width: str) -> widgets.Dropdown:
            return widgets.Dropdown(
                options=options, description=description, style=LABELLED, layout={"width": width}
            )

        self.class_name = dropdown(self.classes, "Find a", "200px")
        self.text = widgets.Text(
            description="and say",
            placeholder=" with a chain strap.",
            continuous_update=False,
            style=LABELLED,
            layout={"width": "300px"},
        )
        self.language = dropdown(LANGUAGES, "Language", "130px")
        self.format = dropdown([*{**self.formats, ONE_BY_ONE: None}], "Format", "170px")
        self.model = dropdown(list(self.indexes), "Model", "220px")
        self.pin_button = self._button(
            "Pin",
            "Keep this ranking, and show how the next ones differ",
            lambda: self.unpin() if self.pinned else self.pin(),
        )
        buttons = [
            self._button("+ condition", "Choose a product to point at", self._ask),
            self._button("Undo", "Back to the step before", self.undo),
            self.pin_button,
            self._button("Copy as Python", "Show the line that makes this query", self._show_python),
        ]
        self.controls: tuple[widgets.HBox, ...] = (
            wrapped(self.class_name, self.text, self.language, self.format, self.model),
            wrapped(*buttons),
        )
        self.rows, self.message, self.gallery = widgets.VBox(), Message(), widgets.HTML()
        self.judged = None if self.session is None else JudgedHits(self.session, self.message, self._sync)
        self.asked_before = dropdown([("", None)], "Judged", "220px")
        if self.session is not None:
            self.controls = (*self.controls, wrapped(self.asked_before))
        self.picker = Picker(
            self.products, lambda product: self._attempt(lambda: self._use(product)), self.message
        )
        self.code = widgets.Textarea(description="Python", layout={"display": "none", "width": "98%"})
        self._when(self.class_name, lambda value: self.edit(class_name=value))
        self._when(self.text, lambda value: self.edit(text=value))
        self._when(self.language, lambda value: self.edit(language=value))
        self._when(self.format, lambda value: self.ask_again(format=value))
        self._when(self.model, lambda value: self.ask_again(model=value))
        self._when(self.asked_before, self._ask_before)

    def _when(self, control: widgets.Widget, action: Callable[[str], None]) -> None:
        """Run an action when the reader changes a control, not when the bench itself does."""

        def changed(change) -> None:
            if not self._quiet:
                self._attempt(lambda: action(change["new"]))

        control.observe(changed, "value")

    def _attempt(self, action: Callable[[], None]) -> None:
        """Run an action; after an error the controls say again what is shown."""
        if not self.message.attempt(action):
            self._sync()

    def _button(self, label: str, help: str, action: Callable[[], None], width: str = "auto"):
        return button(label, help, lambda: self._attempt(action), width)

    def _ask_before(self, id: str | None) -> None:
        if id is not None and self.session is not None:
            self.set(self._answered(self.session.queries[id]))

    def _show(self, cards: Sequence[str]) -> None:
        self._name()
        self._sync()
        if self.judged is None:
            self.gallery.value = flow(cards)
        else:
            self.judged.show(self.query, [hit.product for hit in self.hits], cards)
        query, step = self.query, self.step
        known = (
            f"{len(query.positives)} right answers in the pool"
            if query.positives
            else "right answers unknown"
        )
        said = [f"{len(query.conditions)} conditions", known, f"{1000 * step.seconds:.0f} ms"]
        if self.pinned:
            stay = sum(self.pinned.get(hit.product.id, REMEMBERED) <= self.k for hit in self.hits)
            said.append(f"{stay} of the {self.k} pinned hits are here")
        self.message.say(" · ".join(said))

    def _sync(self) -> None:
        """The controls as the step has them. Rows are kept, so that a button pressed by keyboard keeps the
        focus.
        """
        step, query = self.step, self.query
        self._quiet = True
        try:
            if query.class_name in self.classes:
                self.class_name.value = query.class_name
            self.text.value, self.language.value = query.text, query.language
            if self.session is not None:
                known = self.session.queries
                self.asked_before.options = [("", None), *((_said(own), id) for id, own in known.items())]
                self.asked_before.value = query.id if query.id in known else None
            self.format.value, self.model.value = step.format, step.model
            rows = self.rows.children[: len(query.conditions)]
            rows += tuple(ConditionRow(self, i) for i in range(len(rows), len(query.conditions)))
            self.rows.children = rows
            for row, condition in zip(rows, query.conditions, strict=True):
                row.show(condition)
        finally:
            self._quiet = False
        self.code.value = as_python(query)

    def _show_python(self) -> None:
        hidden = self.code.layout.display == "none"
        self.code.layout.display = "flex" if hidden else "none"

    def _ask(self, i: int | None = None) -> None:
        """Open the picker, for a new condition or another reference of the i-th."""
        self._swapping = i
        self.picker.ask(
            "Point at a product" if i is None else f"Point at another product in condition {i + 1}"
        )

    def _use(self, product: Product) -> None:
        self.picker.close_up()
        if self._swapping is None:
            self.add(product)
        else:
            self.swap(self._swapping, product)
