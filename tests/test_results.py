"""Pieces of HTML: escaped, balanced, and readable without colour or network."""

from html.parser import HTMLParser

import pytest

from coral_lab import Product, Query
from coral_lab.images import img
from coral_lab.results import RED, flow, grey, hits, page, paragraph, tick, tile

HOSTILE = '"><script>alert(1)</script>'


class Reader(HTMLParser):
    """Collects the text and the attributes, and whether every tag that was opened is closed."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br", "html", "body"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("html", "body"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "piece",
    [
        img("data:,", 96, HOSTILE),
        img(None, 96, HOSTILE),
        grey(HOSTILE),
        tick(HOSTILE, None),
        page(HOSTILE, flow([tile(img(None, 9, ""), [grey("a"), ""], accent="#123456")])),
        paragraph(tick("color", True)),
    ],
)
def test_pieces_are_balanced_and_escaped(piece):
    reader = Reader(piece)
    assert not reader.open
    assert "script" not in [tag for tag, _ in reader.tags]


def test_a_picture_has_its_size_and_its_words():
    [(tag, attributes)] = Reader(img("data:,x", 96, HOSTILE)).tags
    assert tag == "img"
    assert (attributes["src"], attributes["alt"]) == ("data:,x", HOSTILE)
    assert "width:96px;height:96px" in attributes["style"]


def test_no_picture_is_said_in_words():
    reader = Reader(img(None, 96, "bag"))
    assert reader.text == "no picture"
    assert [tag for tag, _ in reader.tags] == ["span"]


@pytest.mark.parametrize(("met", "sign"), [(True, "✓"), (False, "✗"), (None, "?")])
def test_a_verdict_can_be_read_without_colour(met, sign):
    assert Reader(tick("color & size", met)).text == f"{sign} color & size"


def test_the_three_verdicts_differ_in_colour_too():
    assert len({Reader(tick("color", met)).tags[0][1]["style"] for met in (True, False, None)}) == 3


def test_a_card_has_a_line_for_each_line_that_says_something():
    reader = Reader(tile("", ["one", "", "two"], width=77, accent=RED))
    assert [tag for tag, _ in reader.tags] == ["div"] * 3
    assert reader.text == "onetwo"
    assert "width:77px" in reader.tags[0][1]["style"]
    assert RED in reader.tags[0][1]["style"]
    assert RED not in tile("", ["one"])


def test_a_page_asks_the_network_for_nothing():
    whole = page("Title", img("data:,x", 9, "bag"))
    reader = Reader(whole)
    assert whole.startswith("<!doctype html>")
    assert "http" not in whole.replace("http-equiv", "")
    assert not {"link", "script", "iframe"} & {tag for tag, _ in reader.tags}
    assert reader.text.count("Title") == 2


def test_hits_steer_no_terminal_and_have_a_line_each():
    products = [
        (Product("1\x1b[2J", "a\n  9. forged\x07", language="\x1b"), 0.5),
        (Product("2", "ถุง  สีแดง"), 0.25),
    ]
    said = repr(hits(Query("q\r", "bag", text="a"), products)).split("\n")
    assert said == ["2 hits for query q", "  1. +0.5000   1 [2J a 9. forged", "  2. +0.2500   2 ถุง สีแดง"]
