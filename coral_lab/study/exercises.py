"""Guesses and exercises of the notebooks: marked against what was measured.

A guess is shown what was found; an answer only whether it is right, and in which direction not. `solutions`
has the right answers.
"""

import math
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from html import escape
from numbers import Real

import numpy as np

Answer = Real | str | Sequence | Set
"""A number, a word, words in order (list or tuple), or words in any order (set)."""


@dataclass(frozen=True)
class Marked:
    """Whether it was right (None: nothing was said yet), and a line that says so."""

    right: bool | None
    line: str

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        colour = {True: "#1a7f37", False: "#b3261e", None: "inherit"}[self.right]
        return f'<span style="color: {colour}">{escape(self.line)}</span>'


def guessed(guess: Answer | None, found: Answer, within: float = 0.0, of: Collection[str] = ()) -> Marked:
    """A prediction, beside what was found; a number counts as right `within` so much of it.

    `of` are the words that can be guessed. Raises ValueError for a guess of another kind, or of none of them.
    """
    it_is = f"it is {_shown(found)}"
    if guess is None:
        return Marked(None, f"No guess was made: {it_is}.")
    _same_kind("guess", guess, found)
    if unknown := [word for word in ([guess] if isinstance(guess, str) else []) if of and word not in of]:
        raise ValueError(f"guess is {unknown[0]!r}; choose one of {', '.join(of)}")
    right = _agree(guess, found, within)
    return Marked(right, f"{'✓' if right else '✗'} You guessed {_shown(guess)}: {it_is}.")


def check(answer: Answer | None, wanted: Answer, within: float = 0.0) -> Marked:
    """Whether an exercise's answer is right; a number may be off by `within`. Does not say what is wanted.

    Raises ValueError for an answer of another kind.
    """
    if answer is None:
        return Marked(None, "No answer yet: put yours in place of None.")
    _same_kind("answer", answer, wanted)
    if _agree(answer, wanted, within):
        return Marked(True, f"✓ {_shown(answer)} is right.")
    return Marked(False, f"✗ {_shown(answer)} is not right: {_hint(answer, wanted)}.")


def _kind(value: Answer) -> str:
    if isinstance(value, bool | np.bool_):
        return "True or False"
    if isinstance(value, Real):
        return "a number"
    if isinstance(value, str):
        return "a word"
    return "a set" if isinstance(value, Set) else "a list in order"


def _same_kind(name: str, value: Answer, wanted: Answer) -> None:
    if (own := _kind(value)) != (other := _kind(wanted)):
        raise ValueError(f"{name} is {value!r}, {own}; wanted is {other}")


def _agree(value, wanted, within: float) -> bool:
    if _kind(wanted) == "a number":
        return math.isclose(value, wanted, rel_tol=1e-9, abs_tol=within + 1e-12)
    return list(value) == list(wanted) if _kind(wanted) == "a list in order" else bool(value == wanted)


def _hint(answer, wanted) -> str:
    if _kind(wanted) == "a number":
        return "too low" if answer < wanted else "too high" if answer > wanted else "no number"
    if _kind(wanted) == "a set":
        found, others = len(answer & wanted), len(answer - wanted)
        return f"{found} of {len(wanted)} are in it, and {others} that should not be"
    if _kind(wanted) == "a list in order":
        at = next((i for i, pair in enumerate(zip(answer, wanted, strict=False)) if pair[0] != pair[1]), None)
        return f"wanted are {len(wanted)}" if at is None else f"look at place {at + 1}"
    return "try another"


def _shown(value) -> str:
    if _kind(value) == "a number":
        return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)
    if isinstance(value, Set):
        return ", ".join(sorted(map(str, value))) or "an empty set"
    return ", ".join(map(str, value)) if _kind(value) == "a list in order" else str(value)
