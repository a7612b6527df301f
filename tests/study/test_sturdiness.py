"""Pictures and sentences changed by dose, before readers that need them and readers that do not."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from coral_lab import Condition, Product, Query, index
from coral_lab.encoder import Settings
from coral_lab.errors import ItemError
from coral_lab.images import identity
from coral_lab.prompts import cat, parts, seq
from coral_lab.study.edits import AS_ASKED
from coral_lab.study.sturdiness import (
    CHANGES,
    WORDINGS,
    blurred,
    edit_names,
    edit_row,
    paraphrase,
    references,
    shrunk,
    sturdiness,
)
from tests.conftest import noise

QUIET = Settings(progress=False)
VALUES = {"brand": ("north", "south"), "color": ("red", "blue"), "size": ("S", "L")}


def stripes(across: bool) -> Image.Image:
    """A grey picture of lines, two pixels wide, one way or the other: as bright on the whole."""
    lines = np.tile(np.repeat([0, 255], 2), 16).astype(np.uint8)
    pixels = np.tile(lines, (64, 1))
    return Image.fromarray(pixels.T if across else pixels).convert("RGB")


def product(id, *values):
    facts = dict(zip(VALUES, ((value,) for value in values), strict=True))
    return Product(id, f"title {id}", stripes(across=values[0] == "north"), "bag", attributes=facts)


POOL = [
    product(f"{a}{b}{c}", a, b, c) for a in VALUES["brand"] for b in VALUES["color"] for c in VALUES["size"]
]


def query(id, first, second, wanted, language="en"):
    """Two conditions on references that agree in nothing else, and the one product that meets them, and is
    of a size of its own.
    """
    conditions = tuple(Condition(key, ref, ref.attributes[key][0]) for key, ref in (first, second))
    return Query(id, "bag", conditions, positives=(wanted,), language=language)


BY_ID = {product.id: product for product in POOL}
QUERIES = [
    query("q0", ("brand", BY_ID["northblueS"]), ("color", BY_ID["southredS"]), "northredL"),
    query("q1", ("color", BY_ID["northblueS"]), ("size", BY_ID["southredL"]), "southblueL"),
    query("q2", ("size", BY_ID["southblueL"]), ("brand", BY_ID["northredS"]), "northblueL"),
    query("q3", ("brand", BY_ID["southredS"]), ("color", BY_ID["northblueS"]), "southblueL"),
]


class Reader:
    """Reads which attribute is named before each reference, and takes its value from there; else all values
    of the reference. Where two products meet the same, the right one of the query stands first.
    """

    name, dim = "reader", 6

    def embed(self, conversations):
        return [self.row(own) for own in conversations]

    def row(self, own):
        values, item = [value for own in VALUES.values() for value in own], own.item
        found = np.zeros(6)
        if isinstance(item, Product):
            for (value,) in item.attributes.values():
                found[values.index(value)] = 1
            return found
        named = re.findall(r"(brand|color|size)[^<]*<Product (\d)>", own.text)
        asked = [(key, item.references[int(n) - 1]) for key, n in named]
        asked = asked or [(key, ref) for ref in item.references for key in VALUES]
        for key, ref in asked:
            found[values.index(ref.attributes[key][0])] += 1
        return found


class Seer:
    """Sees which way the lines of pictures go, and nothing else."""

    name, dim = "seer", 2

    def embed(self, conversations):
        return [np.mean([self.row(image) for image in own.images], axis=0) + 1e-6 for own in conversations]

    def row(self, image):
        pixels = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST).convert("L"), float)
        along, down = (np.abs(np.diff(pixels, axis=axis)).mean() for axis in (1, 0))
        return np.array([along > 20, (down > 20) + 1e-3], float)


class Titled:
    """Reads titles alone."""

    name, dim = "titled", 8

    def embed(self, conversations):
        sums = [sum(map(ord, own.text)) for own in conversations]
        return [np.random.default_rng(own).normal(size=8) for own in sums]


def swept(model, changes=(), wordings=(), queries=QUERIES):
    return sturdiness(
        index(model, POOL, settings=QUIET),
        queries,
        {name: CHANGES[name] for name in changes},
        {name: WORDINGS[name] for name in wordings},
    )


def test_a_reader_understands_every_sentence_but_the_one_that_does_not_ask():
    table = swept(Reader(), wordings=WORDINGS)
    ranks = table.pivot(index="query", columns="edit", values="score")
    for name in WORDINGS:
        same = np.allclose(ranks[f"words {name}"], ranks[AS_ASKED])
        assert same == (name != "attributes unsaid"), name
    assert edit_row(table, "words show me")[0]["R@1 change"] == 0


def test_whoever_sees_lines_loses_them_in_a_blur_and_in_a_small_picture():
    queries = [
        Query(f"like {p.id}", "bag", (Condition("brand", p),), positives=tuple(same - {p.id}))
        for same in ({p.id for p in POOL if p.id.startswith(brand)} for brand in VALUES["brand"])
        for p in POOL
        if p.id in same
    ]
    table = swept(Seer(), ["blur 1%", "blur 8%", "size 0.125"], queries=queries)
    found = {edit: edit_row(table, edit)[0] for edit in table["edit"].unique()}
    assert found.pop(AS_ASKED)["R@1"] == 1
    for edit, row in found.items():
        assert (row["R@1"] == 1) == edit.endswith("blur 1%"), edit
        assert (row["R@1 change high"] < 0) == (not edit.endswith("blur 1%")), edit


def test_whoever_reads_titles_does_not_care_for_pictures():
    table = swept(Titled(), CHANGES)
    for name in edit_names(CHANGES, {}):
        row, ranks = edit_row(table, name)
        assert (row["R@1 change"], row["R@1 change low"], row["R@1 change p"]) == (0, 0, 1)
        assert ranks.index.tolist() == [query.id for query in QUERIES]


def test_every_edit_is_there_once_for_each_query():
    some, said = ["blur 2%", "size 0.5"], ["which"]
    table = swept(Reader(), some, said)
    names = edit_names({name: CHANGES[name] for name in some}, {"which": WORDINGS["which"]})
    assert table["edit"].value_counts().to_dict() == dict.fromkeys(names, len(QUERIES))
    assert names == (
        AS_ASKED,
        "references blur 2%",
        "references size 0.5",
        "words which",
        "catalogue blur 2%",
        "catalogue size 0.5",
    )
    assert len(edit_names()) == 1 + 2 * len(CHANGES) + len(WORDINGS)


def test_a_row_by_hand():
    """Three of four are found, and with the edit one of these is not."""
    ranks = {AS_ASKED: [1, 1, 1, 2], "blur": [1, 1, 12, 0]}
    tables = [pd.DataFrame({"query": list("dcba"), "edit": edit, "rank": own}) for edit, own in ranks.items()]
    table = pd.concat(tables)
    row, found = edit_row(table, "blur")
    assert row["R@1"] == 0.5
    assert row["R@1 change"] == -0.25
    assert found.to_dict() == {"d": 1, "c": 1, "b": -1, "a": -1}
    with pytest.raises(ValueError, match="edit is 'noise'; use one of as asked, blur"):
        edit_row(table, "noise")


def test_pictures_are_changed_as_pillow_does_when_they_are_looked_at():
    own = Product("p", "title", noise(120, 80, seed=0), "bag", attributes={"color": ("red",)})
    soft, small = blurred(0.05)(own), shrunk(0.25)(own)
    expected = own.picture.filter(ImageFilter.GaussianBlur(4.0))
    np.testing.assert_array_equal(np.asarray(soft.picture), np.asarray(expected))
    assert small.picture.size == (30, 20)
    assert shrunk(0.001)(own).picture.size == (1, 1)
    assert (soft.id, soft.title, soft.attributes["color"]) == ("p", "title", ("red",))
    assert np.asarray(own.picture).std() > np.asarray(soft.picture).std()


def test_an_altered_picture_is_known_by_what_it_was_and_what_was_done():
    own, other = (Product("p", image=noise(40, 40, seed=seed)) for seed in (0, 1))
    found = [
        identity(change(product).image, "p")
        for product in (own, other)
        for change in (blurred(0.05), blurred(0.06), shrunk(0.05))
    ]
    assert len({*found, identity(own.image, "p")}) == 7
    assert identity(blurred(0.05)(own).image, "p") == found[0]


def test_no_picture_stays_none_and_a_broken_one_is_named():
    assert blurred(0.1)(Product("p", "title")).image is None
    broken = shrunk(0.5)(Product("p7", image=b"no picture"))
    with pytest.raises(ItemError, match="product p7: picture cannot be read"):
        _ = broken.picture


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_said(share):
    for make in (blurred, shrunk):
        with pytest.raises(ValueError, match="give a number above 0 and at most 1, of a picture's side"):
            make(share)


def test_an_edit_changes_references_and_nothing_else():
    ((name, edited),) = references("blur", blurred(0.1))(QUERIES[0])
    assert name == "references blur"
    assert edited.parent is QUERIES[0]
    assert [c.value for c in edited.conditions] == [c.value for c in QUERIES[0].conditions]
    pairs = zip(edited.references, QUERIES[0].references, strict=True)
    assert all(mine == other and mine.image is not other.image for mine, other in pairs)


def said(query, format=seq):
    return "".join(part if isinstance(part, str) else "‹picture›" for part in parts(query, format))


def test_a_paraphrase_changes_the_sentence_alone():
    asked, found = said(QUERIES[0]), said(QUERIES[0], WORDINGS["show me"])
    assert found == asked.replace("Find a product of bag", "Show me a bag").replace(
        " that have the same brand with ", " with the same brand as "
    ).replace(" and the same color with ", " and the same color as ")
    assert "title northblueS" in found
    words = " that have the same {attribute} with ", " and the same {attribute} with "
    assert said(QUERIES[0], paraphrase("Find a product of {class}", *words)) == asked


def test_every_paraphrase_names_class_and_attributes_and_the_control_does_not():
    for name, wording in WORDINGS.items():
        words = said(QUERIES[1], wording)
        assert ("color" in words and "size" in words) == (name != "attributes unsaid"), name
        assert "bag" in words
        assert words.count("‹picture›") == 2
    anything = QUERIES[0].edited(class_name="")
    assert said(anything, WORDINGS["show me"]).startswith("Show me a product with the same brand")


def test_paraphrases_are_in_english():
    with pytest.raises(ItemError, match=r"query q0: its language is 'th', and .* English; ask query.edited"):
        said(QUERIES[0].edited(language="th"), WORDINGS["which"])


def test_the_cards_own_sentence_is_as_it_was():
    words = "Find a product of bag that have the same brand with <Product 1> \n ‹picture›"
    assert said(QUERIES[0]).startswith(words)
    assert said(QUERIES[0].edited(language="vi")).startswith("Tìm sản phẩm")


def test_other_formats_and_settings_that_skip_are_refused():
    skipping = Settings(progress=False, on_error="skip")
    for other in (index(Reader(), POOL, cat, QUIET), index(Reader(), POOL, settings=skipping)):
        with pytest.raises(ValueError, match="paraphrases need both"):
            sturdiness(other, QUERIES)
