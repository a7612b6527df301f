"""The bench's widgets make the queries they say, and show what a plain search finds; a browser comes on top
of this.
"""

import pytest

import coral_lab as cl
from coral_lab import Settings, index
from coral_lab.prompts import FORMATS
from coral_lab.query import right_answers
from coral_lab.study.composition import search
from coral_lab.widgets.query_bench import QueryBench, as_python


@pytest.fixture(scope="module")
def pool(random_model, shop):
    return index(random_model, shop.products[:120], settings=Settings(store=""))


@pytest.fixture(scope="module")
def asked(pool):
    first = pool.products[0]
    second = next(p for p in pool.products[1:] if p.class_name == first.class_name)
    conditions = (
        cl.Condition("color", first, first.attributes["color"][0]),
        cl.Condition("brand", second, second.attributes["brand"][0]),
    )
    return cl.Query("mine", first.class_name, conditions, ".")


@pytest.fixture
def bench(pool, asked):
    return QueryBench(pool, asked, k=6)


def press(bench, label, row=None):
    where = bench.rows.children[row].children if row is not None else bench.controls[1].children
    next(w for w in where if getattr(w, "description", "") == label).click()


def shown(bench):
    return [hit.product.id for hit in bench.hits]


def looks(bench):
    """What a reader sees of the query in the controls."""
    rows = [(row.attribute.value, row.title.value) for row in bench.rows.children]
    return bench.class_name.value, bench.text.value, bench.language.value, bench.format.value, rows


def test_it_shows_what_a_plain_search_finds(bench, pool):
    assert shown(bench) == [hit.product.id for hit in pool.search(bench.query, 6)]
    assert bench.gallery.value.count("<img") == 6
    assert len(bench.rows.children) == 2
    assert "2 conditions" in bench.message.value


def test_moving_a_condition_reorders_the_query_and_undo_brings_it_back(bench, pool):
    before = bench.query
    press(bench, "↓ down", 0)
    assert bench.query.conditions == before.conditions[::-1]
    assert bench.query.parent is before
    assert bench.query.positives == before.positives
    assert shown(bench) == [hit.product.id for hit in pool.search(bench.query, 6)]
    press(bench, "Undo")
    assert bench.query is before
    bench.move(1, -1)
    assert bench.query.conditions == before.conditions[::-1]
    assert bench.history["parent"].tolist()[1:] == [0, 0]
    with pytest.raises(IndexError, match="there are 2"):
        bench.move(1, 1)


def test_undo_goes_back_to_the_format_and_the_controls_too(bench):
    before, ranking = looks(bench), shown(bench)
    bench.format.value = "caption"
    bench.class_name.value = "phone"
    assert shown(bench) != ranking
    press(bench, "Undo")
    press(bench, "Undo")
    press(bench, "Undo")
    assert (looks(bench), shown(bench)) == (before, ranking)
    assert bench.history["format"].tolist() == ["seq", "caption", "caption"]


def test_the_picker_adds_and_swaps(bench, pool):
    press(bench, "remove", 0)
    assert [c.attribute for c in bench.query.conditions] == ["brand"]
    assert bench.picker.layout.display == "none"
    press(bench, "+ condition")
    assert bench.picker.layout.display == "flex"
    wanted = pool.products[7]
    bench.picker.search.value = wanted.title
    assert bench.picker.found == [p for p in pool.products if wanted.title in p.title]
    bench.picker.buttons[0].click()
    assert bench.query.references[1].title == wanted.title
    assert bench.picker.layout.display == "none"
    press(bench, "swap", 0)
    bench.picker.search.value = ""
    bench.picker.only_class.value = "phone"
    bench.picker.only_language.value = bench.picker.found[0].language
    chosen = bench.picker.found[0]
    bench.picker.buttons[0].click()
    assert (chosen.class_name, bench.query.conditions[0].product) == ("phone", chosen)
    assert bench.query.conditions[0].attribute == "brand"


def test_the_picker_leafs_through_all_products(bench, pool):
    press(bench, "+ condition")
    seen = []
    while True:
        page = bench.picker.found[bench.picker.start :][:12]
        assert [card.layout.display for card in bench.picker.cards].count("flex") == len(page)
        assert all(p.title.split()[0] in w.value for p, w in zip(page, bench.picker.pictures, strict=False))
        seen += page
        if bench.picker.later.disabled:
            break
        bench.picker.later.click()
    assert seen == list(pool.products)
    bench.picker.search.value = "no such words"
    assert "no product fits" in bench.picker.count.value


def test_class_text_language_attribute_format_and_model(pool, asked):
    bench = QueryBench({"one": pool, "two": pool}, asked, formats={**FORMATS, "mine": lambda query: ["x"]})
    bench.class_name.value = "phone"
    bench.text.value = " with a chain strap."
    bench.language.value = "th"
    query = bench.query
    assert (query.class_name, query.text, query.language) == ("phone", " with a chain strap.", "th")
    bench.rows.children[0].attribute.value = "pattern"
    assert bench.query.conditions[0].attribute == "pattern"
    assert bench.query.conditions[0].value == bench.query.conditions[0].product.attributes["pattern"][0]
    bench.format.value = "mine"
    bench.model.value = "two"
    assert bench.history[["format", "model"]].values.tolist()[-2:] == [["mine", "one"], ["mine", "two"]]
    assert len(bench.history) == 7


def test_conditions_can_be_asked_one_by_one(pool, asked):
    bench = QueryBench(pool, asked)
    bench.format.value = "one by one"
    assert bench.step.format == "one by one"
    expected = search(pool, asked)
    assert [hit.product for hit in bench.hits] == [hit.product for hit in expected]
    bench.undo()
    assert (bench.format.value, bench.step.format) == ("seq", "seq")
    own = QueryBench(pool, asked, formats={"one by one": lambda query: ["x"]})  # a name of the reader's own
    own.format.value = "one by one"
    alone = pool.search(asked, format=lambda query: ["x"])
    assert [hit.product for hit in own.hits] == [hit.product for hit in alone]


def test_a_pinned_ranking_shows_how_the_next_differs(bench, pool):
    assert "▲" not in bench.gallery.value
    before = {hit.product.id: hit.rank for hit in pool.search(bench.query, 100)}
    press(bench, "Pin")
    assert bench.gallery.value.count("</b> =") == 6
    bench.remove(0)
    for hit in bench.hits:
        shift = before.get(hit.product.id, 999) - hit.rank
        sign = "=" if not shift else f"▲{shift}" if 0 < shift < 900 else f"▼{-shift}" if shift < 0 else "new"
        assert f"<b>{hit.rank}</b> {sign} " in bench.gallery.value
    assert bench.static().gallery.endswith(bench.gallery.value)
    press(bench, "Unpin")
    assert not any(sign in bench.gallery.value for sign in ("▲", "▼", "</b> =", "</b> new"))


def test_right_answers_are_those_that_meet_everything(bench, pool):
    query = bench.query
    expected = [
        p.id
        for p in pool.products
        if p.class_name == query.class_name
        and all(c.met_by(p) for c in query.conditions)
        and p not in query.references
    ]
    assert list(right_answers(query, pool.products)) == expected
    assert right_answers(query.edited(text=" in red."), pool.products) == ()


def test_given_answers_stay_until_something_else_is_wanted(bench):
    bench.set(bench.query.edited(positives=("17",)))
    bench.move(0, 1)
    bench.edit(language="th")
    assert bench.query.positives == ("17",)
    bench.remove(0)
    assert bench.query.positives == right_answers(bench.query, bench.products) != ("17",)
    assert bench.history["right answers"].tolist()[-1] == len(bench.query.positives)


def test_the_line_of_python_makes_the_query_again(bench, shop):
    again = eval(as_python(bench.query), {"cl": cl, "shop": shop})
    assert again == bench.query.edited(positives=())
    bench.language.value = "vi"
    press(bench, "Copy as Python")
    assert bench.code.layout.display == "flex"
    assert eval(bench.code.value, {"cl": cl, "shop": shop}).language == "vi"


def test_an_error_is_shown_and_leaves_the_bench_as_it_was(bench, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of <memory>")

    before, ranking, steps = looks(bench), shown(bench), len(bench.steps)
    with monkeypatch.context() as broken:
        broken.setattr("coral_lab.widgets.query_bench.Index.search", fail)
        bench.text.value = " in blue."
        assert 'role="alert"' in bench.message.value
        assert "out of &lt;memory&gt;" in bench.message.value
        assert (looks(bench), shown(bench), len(bench.steps)) == (before, ranking, steps)
        bench.format.value = "caption"
        assert looks(bench) == before
        with pytest.raises(RuntimeError):
            bench.edit(text=" in blue.")
    bench.text.value = " in blue."
    assert bench.query.text == " in blue."
    assert 'role="alert"' not in bench.message.value


def test_every_control_has_a_label_and_every_button_a_sentence(bench):
    press(bench, "+ condition")
    stack, seen = [bench], []
    while stack:
        widget = stack.pop()
        stack += getattr(widget, "children", ())
        if type(widget).__name__ in ("Button", "Dropdown", "Text", "Textarea"):
            seen.append(widget)
    assert len(seen) > 25
    assert all(widget.description for widget in seen)
    assert all(widget.tooltip for widget in seen if type(widget).__name__ == "Button")


def test_rows_are_kept_so_that_a_pressed_button_keeps_the_focus(bench):
    rows = bench.rows.children
    bench.move(0, 1)
    assert bench.rows.children == rows
    assert [row.up.disabled for row in rows] == [True, False]
    assert [row.down.disabled for row in rows] == [False, True]
