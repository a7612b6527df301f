"""Marking on the bench and blind: what is shown is what the file has, and nothing else is told."""

import json
from dataclasses import replace
from pathlib import Path

import ipywidgets
import numpy as np
import pytest

import coral_lab as cl
from coral_lab.sources.judgements import Session
from coral_lab.study.judging import Pool
from coral_lab.widgets import judged_hits
from coral_lab.widgets.judged_hits import JudgingBench, disagreements, progress_line
from coral_lab.widgets.query_bench import QueryBench

HOSTILE = "<img src=x onerror=alert(1)> & \u202e$x^2$</script>"


class Oracle:
    """Embeds a query as the product that it points to first."""

    name, dim = "oracle", 30

    def embed(self, conversations):
        items = [own.item for own in conversations]
        places = [
            int(getattr(i, "references", (i,))[0].id) if hasattr(i, "references") else int(i.id)
            for i in items
        ]
        angles = np.abs(np.subtract.outer(places, range(30)))
        rows = np.exp(-angles / 3).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def shop():
    products = [
        cl.Product(str(i), HOSTILE if i == 1 else f"title {i}", None, "bag", attributes={"color": ("red",)})
        for i in range(30)
    ]
    return cl.Dataset("shop", tuple(products), ())


@pytest.fixture(scope="module")
def pool(shop):
    return cl.index(Oracle(), shop.products, settings=cl.Settings(store="", progress=False))


@pytest.fixture
def session(shop, tmp_path):
    return Session.open(tmp_path / "ada.json", shop, judge="ada")


def asked(shop, place=0, id="mine"):
    return cl.Query(id, "bag", (cl.Condition("color", shop.products[place], "red"),), ".")


def press(judged, id, grade, word=""):
    """What the front end sends."""
    content = {"query": judged.query.id, "id": id, "grade": grade, "word": word}
    judged.cards._handle_custom_msg(content, [])


def test_a_mark_is_shown_when_the_file_has_it(pool, shop, session):
    bench = QueryBench(pool, asked(shop), session=session, k=5)
    ids = [hit.product.id for hit in bench.hits]
    press(bench.judged, ids[0], "right", "the same strap")
    press(bench.judged, ids[1], "wrong")
    assert bench.judged.cards.marks == {
        ids[0]: {"grade": "right", "word": "the same strap"},
        ids[1]: {"grade": "wrong", "word": ""},
    }
    kept = json.loads(session.file.read_text(encoding="utf-8"))
    assert [(own["product"], own["grade"]) for own in kept["judgements"]] == [
        (ids[0], "right"),
        (ids[1], "wrong"),
    ]
    assert "judged 2 of these 5 · 0 queries with 10 or more judged, 1 begun" in bench.judged.progress.value
    press(bench.judged, ids[1], None)
    assert list(bench.judged.cards.marks) == ids[:1]
    assert "the same strap" in bench.static().gallery


def test_it_opens_where_one_was(pool, shop, session):
    bench = QueryBench(pool, asked(shop), session=session, k=5)
    first = bench.hits[0].product.id
    press(bench.judged, first, "partly")
    bench.swap(0, shop.products[9])
    assert bench.query.id == "mine-2"  # another question
    assert bench.judged.cards.marks == {}
    press(bench.judged, bench.hits[0].product.id, "right")
    again = QueryBench(pool, session=Session.open(session.file, shop), k=5)
    assert (again.query.id, again.query.references[0].id) == ("mine-2", "9")
    assert [label for label, _ in again.asked_before.options] == ["", "mine: bag color", "mine-2: bag color"]
    again.asked_before.value = "mine"
    assert again.query.references[0].id == "0"
    assert again.judged.cards.marks == {first: {"grade": "partly", "word": ""}}
    again.swap(0, shop.products[9])
    assert again.query.id == "mine-2"  # the same question again is the same query


def test_a_mark_that_cannot_be_kept_is_none(pool, shop, session, monkeypatch):
    bench = QueryBench(pool, asked(shop), session=session, k=5)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coral_lab.sources.judgements.write_text", full)
    press(bench.judged, bench.hits[0].product.id, "right")
    assert "No space left on device" in bench.message.value
    assert bench.judged.cards.marks == {}
    assert not session.judgements
    assert not session.queries


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"id": "29", "grade": "right", "word": ""},
        {"id": "1", "grade": "best", "word": ""},
        {"id": ["1"], "grade": None, "word": ""},
        {"id": "1", "grade": "right", "word": 7},
        {"id": "1", "grade": ["right"], "word": ""},
        {"query": "another", "id": "1", "grade": "right", "word": ""},
    ],
)
def test_what_the_front_end_never_sends_is_refused(pool, shop, session, content):
    bench = QueryBench(pool, asked(shop), session=session, k=5)
    bench.judged.cards._handle_custom_msg({"query": bench.query.id} | content, [])
    assert not session.judgements
    assert 'role="alert"' in bench.message.value


def test_an_undone_step_is_not_the_question_that_was_marked(pool, shop, session):
    bench = QueryBench(pool, asked(shop), session=session, k=5)
    bench.swap(0, shop.products[2])  # nothing is judged yet: both steps are "mine"
    press(bench.judged, "1", "right")
    bench.undo()
    assert (bench.query.references[0].id, bench.query.id) == ("0", "mine-2")
    assert bench.judged.cards.marks == {}
    press(bench.judged, "1", "wrong")
    assert session.relevance("mine") == {"1": 2}
    assert session.relevance("mine-2") == {"1": 0}


def test_an_edit_leaves_the_datasets_own_query_its_id(pool, shop, tmp_path):
    own = replace(shop, queries=(asked(shop, 0, "q"),))
    session = Session.open(tmp_path / "ada.json", own)
    bench = QueryBench(pool, own.queries[0], session=session, k=5)
    bench.swap(0, shop.products[9])
    press(bench.judged, "8", "right")
    assert list(session.queries) == ["q-2"]
    bench.swap(0, shop.products[0])
    assert bench.query.id == "q"
    blind = JudgingBench([Pool(own.queries[0], tuple(shop.products[:3]))], session)
    press(blind.hits, "0", "right")
    assert session.relevance("q") == {"0": 2}


def test_it_opens_at_the_latest_mark(pool, shop, session):
    bench = QueryBench(pool, asked(shop), session=session, k=5)
    press(bench.judged, "1", "right")
    bench.swap(0, shop.products[9])
    press(bench.judged, "8", "right")
    bench.asked_before.value = "mine"
    press(bench.judged, "1", "wrong")  # another mind about an old mark
    assert QueryBench(pool, session=Session.open(session.file, shop), k=5).query.id == "mine"


def test_disagreements_are_about_one_question(shop, tmp_path):
    ada, bo = (Session.open(tmp_path / f"{name}.json", shop, judge=name) for name in ("ada", "bo"))
    ada.mark(asked(shop, 0), "1", "right")
    bo.mark(asked(shop, 5), "1", "wrong")
    with pytest.raises(ValueError, match="query 'mine' is another"):
        disagreements(ada, bo)


def test_titles_are_texts(pool, shop, session):
    bench = QueryBench(pool, asked(shop), session=session, k=5)
    card = next(card for card in bench.judged.cards.cards if card["id"] == "1")
    assert card["label"] == HOSTILE  # is set as an attribute, which holds any text
    assert "<img src=x" not in card["html"]
    assert "&lt;img src=x" in card["html"]


def test_blind_judging_tells_neither_names_nor_ranks_nor_answers(shop, session):
    query = cl.Query("q", "bag", asked(shop).conditions, ".", positives=("3",), hard_negatives=("4",))
    order = [shop.products[i] for i in (7, 3, 4, 12)]
    bench = JudgingBench([Pool(query, tuple(order)), Pool(asked(shop, 5, "r"), tuple(order[:2]))], session)
    state = json.dumps([widget.get_state() for widget in all_widgets(bench)], default=str)
    for told in ("oracle", "positive", "score", "rank", "hard"):
        assert told not in state.replace("0 positives", "").replace("1 positives", "")
    assert [card["id"] for card in bench.hits.cards.cards] == ["7", "3", "4", "12"]
    for product in order:
        press(bench.hits, product.id, "wrong")
    bench.go_on()
    assert bench.pool.query.id == "r"
    again = JudgingBench(bench.pools, Session.open(session.file, shop))
    assert again.at == 1  # where one was
    assert repr(again) == "JudgingBench(2 queries, 1 not judged to the end)"
    for product in order[:2]:
        press(again.hits, product.id, "right")
    again.go_on()
    assert "everything is judged" in again.message.value
    with pytest.raises(ValueError, match="0 pools are given"):
        JudgingBench([], session)


def all_widgets(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from all_widgets(child)


def test_what_people_disagree_on_is_laid_out_furthest_first(shop, tmp_path):
    sessions = [Session.open(tmp_path / f"{name}.json", shop, judge=name) for name in ("ada", "bo")]
    query = asked(shop)
    for session, grades in zip(
        sessions, (("right", "partly", "wrong"), ("right", "right", "right")), strict=True
    ):
        for id, grade in zip(("5", "6", "7"), grades, strict=True):
            session.mark(query, id, grade, f"{grade} says {session.judge}")
    shown = disagreements(*sessions).value
    assert "2 of 3 products that both judged are marked differently" in shown
    assert shown.index("wrong says ada") < shown.index("partly says ada")
    assert "right says bo" in shown


def test_the_line_counts_queries(shop, session):
    query = asked(shop)
    for place in range(10):
        session.mark(query, str(place), "wrong")
    session.mark(asked(shop, 3, "other"), "1", "right")
    line = progress_line(session, query, ["0", "1", "25"])
    assert line.startswith("judged 2 of these 3 · 1 queries with 10 or more judged, 1 begun")


def test_front_ends_that_speak_the_protocols_can_show_it(pool, shop, session):
    """VS Code's and Colab's ask for no more: known model modules, state as JSON, a module without imports."""
    bench = QueryBench(pool, asked(shop), session=session, k=5)
    for widget in all_widgets(bench):
        assert widget._model_module in ("@jupyter-widgets/base", "@jupyter-widgets/controls", "anywidget")
        json.dumps(ipywidgets.Widget.get_state(widget), default=lambda value: value.model_id)
    script = Path(judged_hits.__file__).with_name("judged_hits.js").read_text(encoding="utf-8")
    assert "import " not in script
    assert "http" not in script
    assert script.rstrip().endswith("export default { render };")


def test_a_plain_bench_is_as_before(pool, shop):
    bench = QueryBench(pool, asked(shop), k=5)
    assert bench.judged is None
    assert bench.gallery.value.count("✗") + bench.gallery.value.count("✓") > 0
