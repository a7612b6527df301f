"""Each family's words, sizes and positions against a reference written from its publisher's description, on
tiny checkpoints of its real architecture.

A reference writes the whole text by hand, hands pictures over as the publisher's code does, and asks
transformers for the hidden state of one token.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers import AutoModelForImageTextToText, AutoProcessor

from coral_lab import Condition, Product, Query, Settings, encode, evaluate, index, load
from coral_lab.errors import CheckpointError, ItemError
from coral_lab.images import paste_together
from coral_lab.models.architectures import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, Architecture
from coral_lab.models.families import FAMILIES, Family, Turn
from coral_lab.models.model import same_embeddings
from coral_lab.models.saving import save
from coral_lab.prompts import parts
from tests.conftest import noise
from tests.models import test_architectures as tiny
from tests.models.layouts import change, read

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
HELPFUL = SYSTEM.format("You are a helpful assistant.")
ASKED = "<|im_end|>\n<|im_start|>assistant\n"


def pieces(item, picture=IMAGE) -> str:
    """A query's format with what stands for a picture in the pictures' places."""
    return "".join(part if isinstance(part, str) else picture for part in parts(item))


def words(item) -> str:
    return "".join(part for part in parts(item) if isinstance(part, str))


def by_utils(least: int, most: int, patch: int = 14) -> Callable[[Image.Image], Image.Image]:
    return lambda image: fetch_image({"image": image, "min_pixels": least, "max_pixels": most}, patch)


def coral(item):
    if isinstance(item, Query):
        return HELPFUL + pieces(item) + ASKED
    shown = IMAGE if item.image else ""
    return f"{HELPFUL}Represent the given product: {shown}\n {item.title}{ASKED}"


def gme(item):
    """One picture in front of the text; every prompt ends in <|endoftext|>, which is read."""
    if isinstance(item, Query):
        own = (IMAGE if item.references else "") + words(item)
    else:
        own = (IMAGE if item.image else "") + item.title
    return HELPFUL + own + ASKED + "<|endoftext|>"


def lamra(item):
    """The token before <emb> is read: the end of `<|im_start|>assistant\\n`."""
    if isinstance(item, Query):
        own, shown = pieces(item), bool(item.references)
    else:
        own, shown = (IMAGE if item.image else "") + item.title, item.image is not None
    what = "image and sentence" if shown else "sentence"
    return f"{HELPFUL}{own}\nSummarize above {what} in one word: {ASKED}<emb>.<|im_end|>\n"


def vlm2vec(item):
    if isinstance(item, Query):
        return pieces(item, "<|image_pad|> ")
    return ("<|image_pad|> " if item.image else "") + item.title


def qwen3(item):
    own = pieces(item) if isinstance(item, Query) else (IMAGE if item.image else "") + item.title
    return SYSTEM.format("Represent the user's input.") + own + ASKED


def nomic(item):
    if isinstance(item, Query):
        return f"Query: {words(item)}<|endoftext|>"
    return f"<|im_start|>user\n{IMAGE}Describe the image.<|im_end|><|endoftext|>"


@dataclass(frozen=True)
class Reference:
    """What a publisher does: the text, how a picture is handed to the image processor, and which sizes that
    makes of it.
    """

    architecture: Architecture
    write: Callable[[Any], str]
    picture: Callable[[Image.Image], Image.Image]
    sizes: tuple[int, int] | None = None
    read_before: str | None = None
    flat: bool = False


STRAIGHT = lambda image: image  # noqa: E731
REFERENCES = {
    "coral": Reference(QWEN2_5_VL, coral, lambda image: fetch_image({"image": image}, 14)),
    "gme": Reference(QWEN2_VL, gme, lambda image: fetch_image({"image": image}, 14), (200_704, 1_003_520)),
    "lamra": Reference(QWEN2_VL, lamra, by_utils(3136, 235_200), read_before="<emb>"),
    "vlm2vec": Reference(QWEN2_VL, vlm2vec, STRAIGHT, (3136, 1_003_520), flat=True),
    "qwen3-vl-embedding": Reference(QWEN3_VL, qwen3, by_utils(4096, 1_843_200, 16)),
    "nomic": Reference(QWEN2_5_VL, nomic, STRAIGHT, (3136, 602_112)),
}
NAMES = [*REFERENCES]

SIZES = [(56, 56), (224, 112), (100, 300), (33, 84), (500, 320)]
PRODUCTS = [
    Product(f"p{i}", f"title {i} " + "long " * i, noise(*size, seed=i), "bag") for i, size in enumerate(SIZES)
]
QUERIES = [
    Query(f"q{i}", "bag", tuple(Condition("brand", product) for product in group), f" and {i} straps.")
    for i, group in enumerate([PRODUCTS[:1], [], PRODUCTS[1:4]])
]
TEXTS = [replace(PRODUCTS[1], image=None)]


def items_of(name: str) -> list:
    if name == "nomic":  # no pictures in queries, no products without
        return [QUERIES[1], *PRODUCTS]
    return [*QUERIES, *PRODUCTS, *TEXTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("families")
    kinds = {reference.architecture.title: reference.architecture for reference in REFERENCES.values()}
    made = {title: tiny.made(kind, place / title) for title, kind in kinds.items()}
    for folder in made.values():
        config = read(folder / "config.json")
        change(folder / "config.json", text_config=config["text_config"] | {"max_position_embeddings": 4096})
    return {name: made[own.architecture.title] for name, own in REFERENCES.items()}


@pytest.fixture(scope="module")
def models(folders):
    return {name: load(folder, family=name, quick=False) for name, folder in folders.items()}


def referred(name: str, network, processor, item) -> np.ndarray:
    """One item by transformers alone."""
    own = REFERENCES[name]
    shown = [part for part in parts(item) if not isinstance(part, str)]
    images = [part.image if isinstance(part, Product) else part for part in shown]
    if name == "gme" and len(images) > 1:
        images = [paste_together(images)]
    images = [own.picture(image) for image in images] or None
    resized = {"do_resize": False} if own.architecture is QWEN3_VL else {}
    inputs = processor(text=[own.write(item)], images=images, return_tensors="pt", **resized)
    if own.flat:
        count = inputs["input_ids"].shape[1]
        inputs["position_ids"] = torch.arange(count).expand(3, 1, count)
    place = -1
    if own.read_before:
        marks = processor.tokenizer(own.read_before + ".<|im_end|>\n")["input_ids"]
        place = inputs["input_ids"].shape[1] - len(marks) - 1
    with torch.inference_mode():
        states = network.model(**inputs).last_hidden_state[:, place]
    return torch.nn.functional.normalize(states, dim=-1).numpy()


@pytest.fixture(scope="module")
def expected(folders):
    found = {}
    for name, own in REFERENCES.items():
        network = AutoModelForImageTextToText.from_pretrained(folders[name], dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(folders[name])
        if own.sizes:
            processor.image_processor.size = dict(
                zip(("shortest_edge", "longest_edge"), own.sizes, strict=True)
            )
        found[name] = np.concatenate([referred(name, network, processor, item) for item in items_of(name)])
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_embeddings_are_the_publishers_in_any_order_and_batches(models, expected, name, batch_size):
    items = items_of(name)
    for order in (
        list(range(len(items))),
        [*range(len(items))][::-1],
        [*range(1, len(items), 2), *range(0, len(items), 2)],
    ):
        found = encode(models[name], [items[i] for i in order], settings=Settings(batch_size=batch_size))
        np.testing.assert_allclose(found, expected[name][order], atol=1e-5)


def differs(model, family: Family, items, expected) -> bool:
    """Whether any embedding is another once the family is changed, or none can be made."""
    try:
        found = encode(replace(model, family=family, quick=False), items)
    except ItemError:
        return True
    return bool(np.abs(found - expected).max() > 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_words_that_are_wrong_by_one_token_are_seen(models, expected, name):
    """So the test above would not pass with another word, space or line break anywhere."""
    model, family, every = models[name], FAMILIES[name], items_of(name)
    few = [0, 1] if name == "nomic" else [0, 3, 8]  # a query, a product and, where it can be, a text
    items, own = [every[i] for i in few], expected[name][few]
    assert not differs(model, family, items, own)
    wrong = [
        replace(family, ending=family.ending + " "),
        replace(family, instruction=family.instruction + " a b"),
    ]
    for field in ("query", "product"):
        turn = getattr(family, field)
        for part in (own.name for own in fields(Turn)):
            if part == "between" and (field == "query" or not family.titles):
                continue  # which is of products with their titles
            words = getattr(turn, part)
            changed = [words + " ", f"\n{words}", *([words[:-1]] if words and words[-2:] != "} " else [])]
            wrong += [replace(family, **{field: replace(turn, **{part: new})}) for new in changed]
    if family.picture:
        wrong.append(replace(family, picture=family.picture.strip() + "\n"))
    seen = [differs(model, other, items, own) for other in wrong]
    instructed = "{instruction}" in family.query.system + family.query.before
    assert not [other for other, told in zip(wrong[2:], seen[2:], strict=True) if not told]
    assert seen[:2] == [True, instructed]


@pytest.mark.parametrize("name", ["gme", "lamra", "vlm2vec", "qwen3-vl-embedding", "nomic"])
def test_sizes_and_positions_are_the_familys(models, expected, name):
    model, items, family = models[name], items_of(name), FAMILIES[name]
    if family.limits:
        least, most = (number for _, number in family.limits)
        assert differs(
            model,
            replace(family, limits=(("min_pixels", 4 * least), ("max_pixels", most))),
            items,
            expected[name],
        )
    if family.straight:
        found = encode(replace(model, family=replace(family, straight=False)), items)
        assert np.abs(found - expected[name]).max() > 2e-5
    if family.flat_positions:
        assert differs(model, replace(family, flat_positions=False), items, expected[name])
        with pytest.raises(ValueError, match=r"VLM2Vec-V2, whose positions quick .* use quick=False"):
            load("mini", family="vlm2vec", quick=True)
        assert not load("mini", family="vlm2vec").quick
    if family.sizes:
        size = model.processor.image_processor.size
        assert (size["shortest_edge"], size["longest_edge"]) == family.sizes == REFERENCES[name].sizes


@pytest.mark.parametrize("name", ["coral", "nomic"])
def test_the_quick_path_says_the_same(folders, expected, name):
    model = load(folders[name], family=name, quick=True)
    np.testing.assert_allclose(encode(model, items_of(name)), expected[name], atol=1e-5)


def test_instructions_stand_where_the_family_has_them(models):
    def asked(name: str, **changes) -> str:
        from coral_lab.models.inputs import prompt

        return prompt(replace(models[name], family=replace(FAMILIES[name], **changes)), QUERIES[1]).text

    own = words(QUERIES[1])
    assert asked("gme", instruction="Find it.").startswith("<|im_start|>system\nFind it.<|im_end|>\n")
    assert asked("lamra", instruction="Find it.").startswith(f"{HELPFUL}Find it. {own}")
    assert asked("lamra").startswith(f"{HELPFUL}{own}")
    assert asked("vlm2vec", instruction="Find it.") == f"Find it. {own}"
    for given, said in (("Find it", "Find it."), ("Find it?", "Find it?"), (" Find it」 ", "Find it」")):
        told = asked("qwen3-vl-embedding", instruction=given)
        assert told.startswith(f"<|im_start|>system\n{said}<|im_end|>\n"), told


def test_a_family_of_one_picture_gets_cat_and_says_so(models, caplog):
    pool = index(models["gme"], PRODUCTS)
    queries = [replace(query, positives=("p4",)) for query in QUERIES]
    with caplog.at_level(logging.WARNING):
        found = pool.evaluate(queries)
    assert "GME: of 1 queries it gets all pictures pasted into one (Cat)" in caplog.text
    assert found.format == "seq as cat"
    assert pool.evaluate(queries, "cat").format == "cat"
    assert pool.evaluate(queries, "caption").format == "caption"
    assert pool.evaluate(queries[:1]).format == "seq"
    several = [{"role": "user", "content": [{"type": "image", "image": own.image} for own in PRODUCTS[:2]]}]
    with pytest.raises(ItemError, match="shows 2 pictures, and GME takes 1; paste them together"):
        encode(models["gme"], [several])

    def pictures(query):
        yield from (product.image for product in query.references)

    with pytest.raises(
        ItemError, match="shows 3 pictures, and GME takes 1 in a query; use a format that shows"
    ):
        encode(models["gme"], QUERIES[2], pictures)


def test_what_nomic_cannot_read_is_said(models, caplog):
    with pytest.raises(
        ItemError, match=r"query q0: shows 1 pictures, and nomic.* takes 0 in a query; use format='cap"
    ):
        encode(models["nomic"], QUERIES)
    assert len(encode(models["nomic"], QUERIES, "caption")) == 3
    with pytest.raises(
        ItemError, match="product p1: has no picture, and nomic-embed-multimodal reads nothing"
    ):
        encode(models["nomic"], TEXTS)
    with caplog.at_level(logging.WARNING):
        encode(models["nomic"], PRODUCTS)
    assert "of 5 products it reads the picture and no title" in caplog.text
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ItemError, match="has 2 turns, and nomic-embed-multimodal knows none; put all in one"):
        encode(models["nomic"], turns)


def test_a_picture_that_says_its_own_size_keeps_it(models):
    shown = {"type": "image", "image": PRODUCTS[4].image}
    chats = [[{"role": "user", "content": [shown | limits]}] for limits in ({}, {"max_pixels": 4000})]
    own, smaller = (encode(models["lamra"], chat) for chat in chats)
    assert np.abs(own - smaller).max() > 1e-3


@pytest.mark.parametrize("name", ["gme", "lamra", "vlm2vec", "qwen3-vl-embedding", "nomic"])
def test_a_checkpoint_is_known_by_its_hub_id_or_folder(folders, name, tmp_path):
    repository = FAMILIES[name].repositories[0]
    for place in (
        repository.rpartition("/")[2],
        f"models--{repository.replace('/', '--')}/snapshots/0123abc",
        repository.rpartition("/")[2].upper(),
    ):
        folder = tmp_path / place
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(folders[name])
        found = load(folder)
        assert found.family is FAMILIES[name]
        assert f"asked as {FAMILIES[name].title}" in repr(found)
        assert load(folder, family="coral").family is FAMILIES["coral"]
    assert load(folders[name]).family is FAMILIES["coral"]


@pytest.mark.parametrize("name", ["gme", "lamra", "qwen3-vl-embedding"])
def test_what_is_saved_is_asked_in_the_same_words(models, expected, name, tmp_path):
    save(models[name], tmp_path / "mine")
    again = load(tmp_path / "mine", quick=False)
    assert again.family is FAMILIES[name]
    np.testing.assert_allclose(encode(again, items_of(name)), expected[name], atol=1e-5)
    assert (tmp_path / "mine/modules.json").exists() == FAMILIES[name].by_template
    assert FAMILIES[name].title in (tmp_path / "mine/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lamra", "Qwen2VLRetForConditionalGeneration"), ("nomic", "BiQwen2_5")],
)
def test_publishers_own_classes_are_known_networks(folders, models, name, kind, tmp_path):
    folder = shutil.copytree(folders[name], tmp_path / "theirs")
    change(folder / "config.json", architectures=[kind])
    items = items_of(name)[:2]
    found = encode(load(folder, family=name, quick=False), items)
    np.testing.assert_array_equal(found, encode(models[name], items))


def test_a_store_tells_families_apart(models, tmp_path):
    """What one made is never handed to another that puts pictures elsewhere, or sizes them otherwise."""
    kept = Settings(store=tmp_path, progress=False)
    model, product = models["vlm2vec"], PRODUCTS[4]
    changes = [{}, {"straight": False}, {"flat_positions": False}]
    others = [replace(model, family=replace(model.family, **change)) for change in changes]
    found = [encode(other, product, settings=kept) for other in others]
    for other, own in zip(others, found, strict=True):
        np.testing.assert_array_equal(encode(other, product, settings=kept), own)
        np.testing.assert_allclose(encode(other, product), own, atol=1e-6)
    assert len({own.tobytes() for own in found}) == 3


def test_families_of_other_words_make_other_embeddings(folders):
    same = load(folders["lamra"], family="coral"), load(folders["lamra"], family="coral")
    other = load(folders["lamra"], family="lamra")
    assert same_embeddings(*same)
    assert not same_embeddings(same[0], other)


def test_an_unknown_family_is_refused(folders):
    with pytest.raises(ValueError, match=r"family is 'clip'; choose one of coral, gme, .* or give a Family"):
        load(folders["coral"], family="clip")
    with pytest.raises(CheckpointError):
        load(folders["coral"] / "no", family="gme")


def test_a_family_of_ones_own(folders):
    mine = Family("mine", "Mine", query=Turn(before="Seek: "), product=Turn(after=" (for sale)"))
    model = load(folders["coral"], family=mine)
    assert model.family is mine
    queries = [replace(query, positives=("p4",)) for query in QUERIES]
    assert len(evaluate(model, queries, PRODUCTS).queries) == 3
