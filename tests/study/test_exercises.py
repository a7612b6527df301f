"""Guesses and answers are marked by what is right, and the mark of a wrong answer does not say what is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from coral_lab.study.exercises import check, guessed

NUMBERS = some.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("answer", "wanted", "hint"),
    [
        (0.4, 0.5, "too low"),
        (7, np.int64(3), "too high"),
        (float("nan"), 0.5, "no number"),
        ("brand", "origin", "try another"),
        ({"brand", "size"}, {"size", "origin"}, "1 of 2 are in it, and 1 that should not be"),
        (["a", "c"], ["a", "b"], "look at place 2"),
        (["a"], ["a", "b"], "wanted are 2"),
        (True, False, "try another"),
    ],
)
def test_a_wrong_answer_fails_with_a_hint_and_the_right_one_passes(answer, wanted, hint):
    wrong, right = check(answer, wanted), check(wanted, wanted)
    assert wrong.right is False
    assert hint in wrong.line
    assert right.right is True
    assert right.line.startswith("✓")


@given(NUMBERS, NUMBERS, some.floats(0, 1e3))
def test_a_number_is_right_within_its_tolerance(answer, wanted, within):
    distance = abs(answer - wanted)
    if abs(distance - within) > 1e-2:  # where rounding does not decide
        assert check(answer, wanted, within).right == (distance < within)


def test_a_hint_never_says_what_is_wanted():
    assert "0.8125" not in check(0.2, 0.8125).line
    assert "origin" not in check("brand", "origin").line


def test_nothing_said_yet_is_neither_right_nor_wrong():
    assert check(None, 3).right is None
    assert "put yours" in check(None, 3).line
    silent = guessed(None, 0.25)
    assert silent.right is None
    assert "it is 0.25" in silent.line


def test_a_guess_is_told_what_it_is_either_way():
    assert guessed(3, 3.4, within=0.5).line == "✓ You guessed 3: it is 3.4."
    assert guessed("first", "last", of=("first", "last")).line == "✗ You guessed first: it is last."


@pytest.mark.parametrize(
    ("answer", "wanted"), [("3", 3), (3, "three"), ({"a"}, ["a"]), (True, 1), ("a", {"a"})]
)
def test_an_answer_of_another_kind_is_named(answer, wanted):
    for mark in (check, guessed):
        with pytest.raises(ValueError, match="wanted is"):
            mark(answer, wanted)


def test_a_mistyped_guess_is_named():
    with pytest.raises(ValueError, match="'frist'; choose one of first, last"):
        guessed("frist", "last", of=("first", "last"))


def test_markup_in_an_answer_is_text():
    assert "<b>" not in check("<b>x</b>", "y")._repr_html_()
