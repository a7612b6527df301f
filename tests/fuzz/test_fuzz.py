"""Whatever comes in ends in a documented error of one line, or is read; soon. `make fuzz` tries many more."""

import warnings

import jaxtyping
import numpy as np
import pytest
from hypothesis import given

from tests.fuzz.carry import KINDS, mini, outcome
from tests.fuzz.strategies import BAG
from tests.fuzz.values import JPEG, nested
from tests.test_bad_input import examples

COUNTS = {"checkpoint": 10}

LARGE = 10**5000  # Python refuses to write it out


def said(content, **more) -> list[dict]:
    return [{"role": "user", "content": content, **more}]


SEEDS = [
    ("messages", [{"role": LARGE, "content": []}]),
    ("messages", [{"role": None, "content": "\ud83d"}]),
    ("messages", [LARGE]),
    ("messages", nested(5000)),
    ("messages", said(nested(5000))),
    ("messages", said([nested(5000)])),
    ("messages", said([{"type": "text", "text": nested(5000)}])),
    ("messages", said([{"type": "text", "text": "a bag", LARGE: 1}])),
    ("messages", said([{"type": "image", "image": JPEG, "min_pixels": LARGE}])),
    ("messages", said("a bag", name="Ada")),
    ("messages", said([{"type": np.array(["text", None], object), "text": "a bag"}])),
    ("product", {"id": LARGE}),
    ("product", {"id": "p", "image": nested(5000)}),
    ("product", {"id": "p\n\ud83d", "title": "\ud83d"}),
    ("query", {"id": "q", "class_name": "bag", "conditions": [BAG]}),
    ("query", {"id": "q", "class_name": "bag", "positives": LARGE}),
    (
        "query file",
        b'{"query": {"1": {"color": "red"}}, "pos_candidate": ["\\ud800"], "query instruction": ""}',
    ),
    ("query file", b'{"pos_candidate": [' + b"9" * 5000 + b"]}"),
    ("query file", b"[" * 100_000),
]
"""Inputs that once ended as none should, and some of their kind."""


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Nobody checks annotations before the border does, and the model is there."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mini()
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_inputs_are_read_or_named(kind):
    def ends_well(value) -> None:
        outcome(kind, value)

    examples(COUNTS.get(kind, 40))(given(KINDS[kind][0])(ends_well))()


@pytest.mark.parametrize(("kind", "value"), SEEDS, ids=[f"{i} {kind}" for i, (kind, _) in enumerate(SEEDS)])
def test_what_once_failed_is_named(kind, value):
    error, _ = outcome(kind, value)
    assert error is not None
