"""A picture is its content from one call to the next, and limits of its own are the card's."""

import base64
import io
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from qwen_vl_utils import process_vision_info

from coral_lab import Product, dataset, encode, load
from coral_lab.encoder import Settings, encode_all
from coral_lab.errors import ItemError
from coral_lab.images import Sized, identity
from coral_lab.mini.merit_mini import catalogue
from coral_lab.models.pixels import Pixels, key
from coral_lab.sources import parquet_pictures, writing
from coral_lab.sources.parquet_pictures import PictureFile
from coral_lab.sources.writing import write_merit
from tests.conftest import noise


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def shown(picture, **limits) -> list[dict]:
    content = [{"type": "image", "image": picture, **limits}, {"type": "text", "text": "\n A bag"}]
    return [{"role": "user", "content": content}]


class Changing:
    """One picture that its owner draws on; each form of it is handed out by `forms`."""

    def __init__(self, file):
        self.image, self.file = noise(84, 84, seed=1), file
        self.image.save(file)

    def draw_on(self) -> None:
        before = self.file.stat()
        ImageDraw.Draw(self.image).rectangle((10, 10, 70, 70), fill="red")
        self.image.save(self.file, compress_level=6)
        os.utime(self.file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a coarse clock would leave it


FORMS = {
    "an image": lambda own: own.image,
    "a function": lambda own: own.__dict__.setdefault("draw", lambda: own.image),
    "a path": lambda own: own.file,
    "an address": lambda own: f"file://{own.file}",
    "bytes": lambda own: own.file.read_bytes(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [False, True], ids=["memory", "store"])
def test_a_picture_drawn_on_between_two_calls_is_a_new_picture(random_model, tmp_path, form, kept):
    own, settings = Changing(tmp_path / "p.bmp"), Settings(store=str(tmp_path / "store") if kept else None)
    before = encode_all(random_model, shown(FORMS[form](own)), settings=settings).embeddings
    own.draw_on()
    after = encode_all(random_model, shown(FORMS[form](own)), settings=settings).embeddings
    fresh = encode(random_model, shown(own.image.copy()))
    np.testing.assert_allclose(after, fresh, atol=1e-6)
    assert np.abs(after - before).max() > 1e-3


def test_the_same_content_is_processed_once_whatever_form_it_has(random_model, tmp_path, monkeypatch):
    image = noise(90, 60, seed=2)
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    processed = []
    process = random_model.pixels._process
    monkeypatch.setattr(
        random_model.pixels, "_process", lambda images: processed.extend(images) or process(images)
    )
    forms = [
        tmp_path / "a.png",
        tmp_path / "b.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
    ]
    for form in forms:
        encode(random_model, Product("p", "A bag", form))
    encode(random_model, [Product("p", "A bag", form) for form in (image, image.copy(), lambda: image)])
    assert len(processed) == 2  # the file's bytes, and pixels that never were a file
    assert len({identity(form, "p") for form in forms}) == 1
    assert identity(image, "p") == identity(image.copy(), "p") != identity(noise(90, 60, seed=3), "p")


LIMITS = [
    {},
    {"max_pixels": 28 * 28 * 4},
    {"min_pixels": 300 * 300},
    {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 2},
    {"resized_height": 56, "resized_width": 140},
    {"resized_height": 140, "resized_width": 57, "max_pixels": 28 * 28},
    {"max_pixels": None, "min_pixels": None},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("quick", [True, False])
def test_limits_of_a_message_give_the_cards_own_embedding(limits, quick):
    model = load("mini", quick=quick)
    asked = shown(noise(150, 120, seed=5), **limits)
    given = shown(noise(150, 120, seed=5), **{key: own for key, own in limits.items() if own is not None})
    images, _ = process_vision_info(given)
    text = model.processor.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
    inputs = model.processor(text=[text], images=images, return_tensors="pt")
    with torch.inference_mode():
        states = model.network.model(**inputs).last_hidden_state[:, -1]
    card = torch.nn.functional.normalize(states, dim=-1).numpy()
    np.testing.assert_allclose(encode(model, asked), card, atol=1e-5)


def test_one_picture_under_several_limits_is_several_in_memory_and_in_a_store(random_model, tmp_path):
    picture = noise(150, 120, seed=5)
    asked = [shown(picture, **limits) for limits in LIMITS[:6]]
    alone = np.concatenate([encode(random_model, one) for one in asked])
    for _ in range(2):  # made, then read
        kept = encode_all(random_model, asked, settings=Settings(store=str(tmp_path))).embeddings
        np.testing.assert_allclose(kept, alone, atol=1e-5)
    assert min(np.abs(a - b).max() for i, a in enumerate(alone) for b in alone[:i]) > 1e-4


@pytest.mark.parametrize("limits", LIMITS[:6], ids=str)
def test_image_tokens_under_limits_are_told_beforehand(random_model, limits):
    picture = Sized(noise(150, 120, seed=5), tuple(limits.items()))
    _, grid = random_model.pixels([(picture, "it")])[key(picture)]
    assert random_model.pixels.tokens(picture) == int(grid.prod()) // 4


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"min_pixels": "many"}, "min_pixels is 'many'"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"max_pixels": True}, "max_pixels is True"),
        ({"max_pixels": 1e6}, "max_pixels is 1000000.0"),
        ({"resized_height": 10**9, "resized_width": 28}, "resized_height is 1000000000"),
        ({"resized_height": 10**5, "resized_width": 10**5}, "resized to more"),
        ({"resized_height": 56}, "one of resized_height and resized_width"),
        ({"resized_height": 10**6, "resized_width": 28}, "does not fit"),
        ({"min_pixels": 10**6, "max_pixels": 10**5}, "min_pixels is more"),
        ({"min_pixels": 80_000_000}, "does not fit"),
        ({"max_pixel": 10**6}, "'max_pixel'"),
        ({"fps": 2}, "'fps'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("quick", [True, False])
def test_limits_that_cannot_be_met_are_refused(random_folder, limits, says, quick):
    model = load(random_folder, quick=quick)
    with pytest.raises(ItemError, match=says):
        encode(model, shown(noise(60, 60, seed=1), **limits))
    skipped = encode_all(model, [shown(noise(60, 60, seed=1), **limits)], settings=Settings(on_error="skip"))
    assert [place for place, _ in skipped.skipped] == [0]


def test_limits_without_a_picture_are_refused(random_model):
    with pytest.raises(ItemError, match="'max_pixels', which is not read"):
        encode(random_model, [{"role": "user", "content": [{"type": "text", "text": "a", "max_pixels": 9}]}])


def test_a_data_address_with_line_breaks_is_read_as_the_cards_code_does(random_model):
    content = png(noise(90, 60, seed=2))
    lines = base64.encodebytes(content).decode()
    assert "\n" in lines
    for text in (lines, lines.replace("\n", "\r\n"), f" {lines} ", lines.replace("\n", "")):
        found = encode(random_model, shown(f"data:image/png;base64,{text}"))
        np.testing.assert_array_equal(found, encode(random_model, shown(content)))


def test_pictures_in_rows_of_a_file_are_read_as_they_lie_there(random_model, tmp_path, monkeypatch):
    """In whatever order they are asked for, by several threads: each row group is read once."""
    monkeypatch.setattr(writing, "BATCH", 20)
    write_merit(catalogue("mini", "val"), tmp_path, "test", limit=40)
    monkeypatch.setattr(parquet_pictures, "KEPT", 1)
    opened, groups = [], PictureFile._batches
    monkeypatch.setattr(PictureFile, "_batches", lambda *own: opened.append(own[1]) or groups(*own))
    products = list(dataset(tmp_path).products)
    wanted = [(product.image, product.id) for product in random.Random(0).sample(products, 60)]
    opened.clear()
    pixels = Pixels(random_model.processor.image_processor, limit=0)
    found = pixels(wanted)
    assert len(opened) > 3
    assert sorted(opened) == sorted(set(opened))
    for picture, item in wanted:
        alone = pixels([(picture(), item)])
        torch.testing.assert_close(found[key(picture)][0], next(iter(alone.values()))[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "image", "text": "a bag"},
        {"type": "image", "image": b"1", "text": "a bag"},
        {"type": "text", "image": b"1"},
        {"text": "a bag", "image": b"1"},
        {"image": b"1", "image_url": b"2"},
        {"type": "image_url", "image": b"1"},
        {"type": "audio", "text": "a bag"},
        {"type": "text"},
        {"type": np.array(["text", None], object), "text": "a bag"},
        {"type": ["text"], "text": "a bag"},
        {},
    ],
    ids=str,
)
def test_an_entry_of_which_something_would_stay_unread_is_refused(random_model, entry):
    with pytest.raises(ItemError, match="give it a text or an image, and that type"):
        encode(random_model, [{"role": "user", "content": [entry]}])
