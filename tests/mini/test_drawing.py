"""Pictures of the rendered catalogue."""

import pickle
import time

import numpy as np
import pytest

from coral_lab.mini.cards import cards
from coral_lab.mini.drawing import SIDE, Drawing, draw, layers_of
from coral_lab.mini.marks import FIELD, MARKS, PATTERNS, mark, pattern
from coral_lab.mini.shapes import SHAPES

BAG = {
    "class_name": "handbag",
    "shape": "tote",
    "color": "red",
    "pattern": "stripes",
    "brand": "Vokari",
    "trim": "gold",
    "seed": 3,
}


def pixels(**changes) -> np.ndarray:
    return np.asarray(draw(**BAG | changes), int)


def test_there_is_a_drawing_for_every_shape_on_the_cards():
    on_cards = {(name, shape) for name, card in cards()["classes"].items() for shape in card["shapes"]}
    assert set(SHAPES) == on_cards
    assert len(on_cards) == 48


@pytest.mark.parametrize(("class_name", "shape"), SHAPES)
def test_every_shape_draws_with_room_for_color_and_trim(class_name, shape):
    picture = draw(**BAG | {"class_name": class_name, "shape": shape})
    assert picture.size == (SIDE, SIDE)
    assert picture.mode == "RGB"
    body, trim = layers_of(class_name, shape).shares[:2]
    assert (body > 0.3).mean() > 0.2, "too little body to tell a pattern at 84 px"
    assert (trim > 0.3).mean() > 0.04, "too little trim to tell its colour at 84 px"


@pytest.mark.parametrize("key", ["color", "pattern", "brand", "trim"])
def test_every_value_of_an_attribute_looks_different(key):
    pictures = [pixels(**{key: value}) for value in cards()[key]]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert (np.abs(one - other).max(axis=-1) > 40).mean() > 0.002


def test_equal_arguments_give_equal_pictures_and_another_seed_another():
    assert np.array_equal(pixels(), pixels())
    assert not np.array_equal(pixels(), pixels(seed=4))


def test_a_picture_function_can_be_pickled():
    drawing = pickle.loads(pickle.dumps(Drawing(**BAG)))
    assert drawing().tobytes() == draw(**BAG).tobytes()


def test_a_drawing_s_identity_is_that_of_its_picture():
    assert Drawing(**BAG).identity == Drawing(**BAG).identity
    assert Drawing(**BAG).identity != Drawing(**BAG | {"seed": 99}).identity
    assert Drawing(**BAG).identity != Drawing(**BAG | {"color": "white"}).identity


def test_white_stands_out_from_the_background_and_black_keeps_its_details():
    white = pixels(class_name="backpack", shape="daypack", color="white", trim="white", pattern="plain")
    black = pixels(class_name="backpack", shape="daypack", color="black", trim="black", pattern="plain")
    for picture in (white, black):
        picture[50:110, 80:145] = picture[2, 2]  # without the badge
    assert ((white[2, 2] - white).max(axis=-1) > 60).mean() > 0.02, "outlines of a white product"
    body = black[black.max(axis=-1) < 150]
    assert (body.max(axis=-1) > 70).mean() > 0.05
    assert (body.max(axis=-1) < 60).mean() > 0.5


@pytest.mark.parametrize("changes", [{"color": "grey"}, {"shape": "hatbox"}, {"brand": "nobody"}])
def test_a_value_that_is_not_on_the_cards_is_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes.values()))):
        draw(**BAG | changes)


def test_patterns_are_wide_enough_for_84_px_and_marks_differ():
    tens = FIELD // 10
    for name in PATTERNS:
        field = pattern(name)
        assert field.shape == (FIELD, FIELD)
        assert field.min() >= 0
        assert field.max() <= 1
        if name != "plain":  # averaged over squares of 10 px, the two tones are still apart
            coarse = field[: tens * 10, : tens * 10].reshape(tens, 10, tens, 10).mean((1, 3))
            assert coarse.std() > 0.2
    marks = [mark(name, 14) for name in MARKS]
    assert all(np.abs(a - b).mean() > 0.08 for i, a in enumerate(marks) for b in marks[:i])


def test_a_picture_takes_a_few_milliseconds():
    layers_of("handbag", "tote")
    start = time.perf_counter()
    for seed in range(50):
        draw(**BAG | {"seed": seed})
    assert (time.perf_counter() - start) / 50 < 0.05, "5 ms on one idle core; ten times that is a mistake"
