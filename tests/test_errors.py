"""Every error that a user can mend is one line of at most 300 characters, whatever it quotes."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral_lab import errors
from coral_lab.errors import ItemError, WorkbenchError, one_line, printable

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WorkbenchError)
]


@given(st.text(max_size=2000), st.integers(20, 300))
def test_a_line_is_printable_short_and_made_of_the_text(text, longest):
    line = one_line(text, longest)
    assert len(line) <= longest
    assert line.isprintable()
    if text.isprintable() and len(text) <= longest:
        assert line == " ".join(text.split())


@pytest.mark.parametrize("length", [301, 3001, 10**6])
def test_both_ends_of_a_long_text_are_kept(length):
    line = one_line("the folder " + "\n" * 9 + "x" * length + " do this")
    assert line.startswith("the folder x")
    assert line.endswith("x do this")
    assert 290 < len(line) <= 300


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_of_every_kind_are_one_line(kind):
    error = kind("a\n\x1b[31mb\r\n" + "c" * 10**6)
    assert str(error).startswith("a [31mb ccc")
    assert len(str(error)) == 300
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("length", [10, 1000, 10**6])
def test_an_item_keeps_the_end_of_its_name_which_says_row_or_line(length):
    error = ItemError("/data/" + "f" * length + "/test.parquet, row 7", "title\n" + "t" * length)
    assert "test.parquet, row 7: title t" in str(error)
    assert len(str(error)) <= 300
    assert len(error.problem) <= 200
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.item, copy.problem) == (str(error), error.item, error.problem)


def test_what_is_printable_keeps_its_lines_and_steers_nothing():
    assert printable("a\n ถุง é\x1b[2J\r\x07\u202e\u2028b") == "a\n ถุง é [2J    b"
