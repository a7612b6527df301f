"""What mini-pretrained is taught: in words of its own, from seeds of its own, nothing that is held back."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab.cli import main
from coral_lab.errors import CheckpointError
from coral_lab.mini import pretraining, wordings
from coral_lab.mini.cards import cards
from coral_lab.mini.merit_mini import TRAITS, catalogue
from coral_lab.mini.naming import name_attributes
from coral_lab.mini.pretraining import (
    ANSWERING,
    FIELD,
    SEEDS,
    SEEING,
    Lessons,
    compared,
    corpus,
    exchanges,
    pretrain,
    pretraining_evaluation,
    pretraining_objective,
    products_for,
    taught,
)
from coral_lab.mini.titles import ATTRIBUTES, VISUAL, material_phrase, named_in_title, word
from coral_lab.mini.wordings import NONE, Scope, limited, scope, thing
from coral_lab.models.loading import load_network
from coral_lab.prompts import LANGUAGES, instructions
from coral_lab.training.config import TrainConfig

EVERY = Lessons(1.0, 60, see=20, read=20, ask=30, several=30, compare=20)
FEW = Lessons(1.0, 8, see=2, read=2, ask=2, several=2, compare=2)


@cache
def unseen(within):
    return products_for(within, "val")


@pytest.fixture(scope="module")
def products():
    return unseen(scope())


def text_of(own) -> str:
    return "".join(part.get("text", "[picture]") for part in own.said[0]["content"])


def some(within, steps=12, products=None):
    products = products or unseen(within)
    for step in range(steps):
        for name, asked in exchanges(products, within, EVERY, Random(step)).items():
            yield from ((name, own) for own in asked)


def named(own) -> list[tuple[str, str]]:
    """What the words of an answer are, and the words, without the names in a list."""
    found = list(zip(own.slots, own.answer.split(), strict=True))
    if own.slots[0] == "":
        for (_, name), (slot, _) in zip(found[::2], found[1::2], strict=True):
            assert slot in (NONE, {"kind": "class"}.get(name, name))
    return [(slot, word) for slot, word in found if slot]


def words_in(text: str) -> set[str]:
    return set(re.findall(r"[\w'-]+", text.lower()))


def test_no_lesson_speaks_as_the_card_does(products):
    phrases = ["<Product", "have the same", "and the same", "Represent the given product"]
    for language in LANGUAGES:
        own = instructions()[language]
        phrases += [
            own["anything"],
            *(own[key].format(attribute="|").split("|")[0] for key in ("first", "next")),
        ]
    phrases = [phrase.strip() for phrase in phrases if len(phrase.strip()) > 3]
    banned = {"represent", "given", "find", "product", "products", "retrieve", "search", "query", "embed"}
    for _, own in some(scope(), products=products):
        text = text_of(own)
        assert not banned & words_in(text), text
        assert not [phrase for phrase in phrases if phrase in text], text


def test_the_seed_is_that_of_no_experiment():
    assert min(min(seeds) for seeds in SEEDS.values()) >= 100
    assert {*pretraining.MIXTURES} == {*pretraining.DEFAULTS}
    ours = catalogue.__wrapped__("mini", "val", SEEDS["seeing"][0]).products
    assert [p.title for p in products_for(scope(), "val")] == [p.title for p in ours]
    facts = {tuple(p.attributes.items()) for p in ours}
    theirs = [tuple(p.attributes.items()) for p in catalogue("mini", "val").products]
    assert sum(own in facts for own in theirs) < 0.01 * len(theirs), "only by chance"


def test_equal_numbers_give_equal_lessons(products):
    first, second, other = (exchanges(products, scope(), EVERY, Random(seed)) for seed in (3, 3, 4))
    assert first == second != other
    assert {name: len(asked) for name, asked in first.items()} == {
        name: getattr(EVERY, name) for name in pretraining.KINDS
    }


@settings(max_examples=30, deadline=None)
@given(number=st.integers(0, 1499), seed=st.integers(0, 2**32), language=st.sampled_from(LANGUAGES))
def test_every_answer_is_what_picture_or_title_tells(number, seed, language):
    rng, within, product = Random(seed), scope(), unseen(scope())[number]
    facts = {key: values[0].replace(" ", "_") for key, values in product.attributes.items()}
    written = set(named_in_title(product))
    for how, tells in {"picture": {*VISUAL}, "title": written, "both": {*VISUAL} | written}.items():
        own = thing(product, within, how, language)
        assert own.tells == tells
        for teach in (wordings.see, wordings.read, wordings.ask):
            said = teach(own, within, rng)
            for slot, answer in named(said):
                right = product.class_name if slot == "class" else facts.get(slot, "-")
                assert answer == right
                assert slot in tells | {"class", NONE}
        for key in written if own.title else ():
            value = product.attributes[key][0]
            how = material_phrase(product.class_name, value, language) if key == "material" else ""
            assert (how or word(key, value, language)) in own.title


@settings(max_examples=20, deadline=None)
@given(numbers=st.lists(st.integers(0, 1499), min_size=2, max_size=4, unique=True), seed=st.integers(0, 999))
def test_several_things_are_answered_in_the_order_asked(numbers, seed):
    things = [thing(unseen(scope())[number], scope()) for number in numbers]
    asked = wordings.several(things, Random(seed))
    found, text = named(asked), text_of(asked)
    assert len(found) == len(things)
    assert "-" not in [word for _, word in found]
    places = [text.index(own.title) for own in things]
    assert places == sorted(places)
    if not text.removeprefix("As a list. ").startswith(("First: ", "A: ", "one) ")):
        assert all(own.word(slot) == word for own, (slot, word) in zip(things, found, strict=True))


def test_the_values_asked_last_stand_where_the_question_puts_them(products):
    """Asked after the things, in any order: each word is that of the place named in the question."""
    found = 0
    for seed in range(60):
        rng = Random(seed)
        things = [thing(product, scope()) for product in rng.sample(products, 3)]
        asked = wordings.several(things, rng)
        if not text_of(asked).removeprefix("As a list. ").startswith(("First: ", "A: ", "one) ")):
            continue
        found += 1
        question = text_of(asked).rpartition("\n")[2]
        order = sorted(range(3), key=partial(_place, question))
        for (slot, answer), i in zip(named(asked), order, strict=True):
            assert answer == things[i].word(slot)
    assert found > 5


def _place(question: str, i: int) -> int:
    forms = (
        ("of the first", "of A", "one's"),
        ("of the second", "of B", "two's"),
        ("of the third", "of C", "three's"),
    )
    return max(question.find(form) for form in forms[i])


def test_comparisons_are_right_and_either_answer_is_as_likely(products):
    answers, by_key = Counter(), {}
    for seed in range(600):
        rng = Random(seed)
        things = [thing(product, scope()) for product in rng.sample(products, 40)]
        asked = compared(things, rng)
        answers[asked.answer] += 1
        by_key.setdefault(asked.slots[0], Counter())[asked.answer] += 1
        pictures = [part["image"] for part in asked.said[0]["content"] if "image" in part]
        shown = [own for picture in pictures for own in things if own.image is picture]
        first, second = (own.word(asked.slots[0]) for own in shown)
        if asked.answer in ("yes", "no"):
            assert (asked.answer == "yes") == (first == second)
        else:
            value = first if asked.answer == "first" else second
            assert first != second
            assert f" {value}" in text_of(asked)
    assert {*by_key} == {*ATTRIBUTES}
    assert abs(answers["yes"] - answers["no"]) < 80
    assert abs(answers["first"] - answers["second"]) < 80


def test_things_that_cannot_be_compared_are_refused(products):
    with pytest.raises(ValueError, match="1 things cannot be compared; take more"):
        compared([thing(products[0], scope())], Random(0))


@pytest.mark.parametrize("kind", ["class", "language", "attribute"])
def test_what_is_held_back_is_absent_from_every_lesson_and_from_the_vocabulary_s_corpus(kind):
    within, gone = scope(kind), set(TRAITS.held_back[kind])
    own = unseen(within)
    lessons = [asked for _, asked in some(within, 4, own)]
    texts = [*map(text_of, lessons), *(asked.answer for asked in lessons), *corpus(own[:300], within)]
    pictures = [part["image"] for asked in lessons for part in asked.said[0]["content"] if "image" in part]
    if kind == "class":
        assert not {product.class_name for product in own} & gone
        assert not {picture.class_name for picture in pictures} & gone
        names = {word("classes", value, language).lower() for value in gone for language in LANGUAGES} | gone
        pattern = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names))
        assert not [text for text in texts if pattern.search(text.lower())]
    elif kind == "language":
        thai = re.compile("[\u0e00-\u0e7f]")
        assert not [text for text in texts if thai.search(text)]
        theirs = {
            "saiz",
            "ukuran",
            "corak",
            "motif",
            "bahan",
            "asal",
            "buatan",
            "baharu",
            "jenama",
            "merek",
            "cari",
        }
        assert not [text for text in texts if theirs & words_in(text)]
    else:
        names = {value.lower() for key in gone for value in cards()[key] if value != "plain"}
        for key in gone:
            for value, card in cards()[key].items():
                names |= {name.lower() for name in card.get("words", {}).values() if value != "plain"}
        pattern = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names | gone)))
        assert not [text for text in texts if pattern.search(text.lower())]
        assert {(picture.pattern, picture.brand) for picture in pictures} == {("plain", "")}
        assert not [asked for asked in lessons if {*asked.slots} & gone]
    assert "Represent the given product: " in texts, "the vocabulary has the card's words"


def test_without_a_brand_there_is_no_badge_and_the_rest_stays(products):
    product = products[0]
    plain = limited(product, scope("attribute"))
    assert limited(product, scope()) is product
    bare, marked = plain.image(), replace(product.image, pattern="plain")()
    assert bare.size == marked.size
    assert bare.tobytes() != marked.tobytes()


def test_without_all_is_without_each_of_the_three():
    assert scope("all") == Scope(
        scope("class").classes, scope("language").languages, scope("attribute").attributes
    )
    assert scope().classes != scope("all").classes


def test_an_unknown_split_stage_and_a_missing_start_are_named(tmp_path):
    with pytest.raises(ValueError, match="'colour'; choose one of class, language, attribute, all"):
        scope("colour")
    with pytest.raises(ValueError, match="stage is 'dreaming'; choose one of seeing, pretrained"):
        pretrain("dreaming", None, tmp_path)
    with pytest.raises(ValueError, match="pretrained training starts from a model"):
        pretrain("pretrained", None, tmp_path)


def test_a_rung_starts_from_the_one_before_with_the_same_held_back(random_model, tmp_path, monkeypatch):
    for name, wanted in {"no rung": "seeing", "seeing": "seeing without class"}.items():
        monkeypatch.setattr(random_model.network.config, FIELD, name, raising=False)
        without = "class" if name == "seeing" else None
        with pytest.raises(ValueError, match=f"would start from '{name}', wanted '{wanted}'"):
            pretrain("pretrained", random_model, tmp_path, without=without)
    with pytest.raises(ValueError, match="seeing starts from scratch"):
        pretrain("seeing", random_model, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("base --without class", "--stage base takes no --without; seeing and pretrained do"),
        ("seeing --lora 4 --chunk 2", "--stage seeing takes no chunk, lora; leave it out"),
        ("pretrained", "pretrained training starts from a model"),
    ],
)
def test_the_command_says_what_a_stage_does_not_take(arguments, says, tmp_path, capsys):
    assert main(["mini", "--stage", *arguments.split(), "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_a_step_depends_on_its_number_alone(random_model, products):
    config = TrainConfig(steps=10)
    objective = pretraining_objective(
        random_model, products, scope(), config, [replace(FEW, moved=True, compare=0)]
    )
    found = []
    for _ in range(2):
        torch.manual_seed(9)  # as the loop does before each step
        found.append(objective(9).terms)
    random_model.network.zero_grad()
    assert found[0] == found[1]
    assert {*found[0]} == {"see", "read", "ask", "several"}


def test_every_skill_that_a_rung_has_is_followed(random_model):
    found = pretraining_evaluation(random_model, scope(), SEEING, count=8)()
    assert {name.split()[0] for name in found} == {"see", "read"}
    found = pretraining_evaluation(random_model, scope(), ANSWERING, count=40)()
    assert {name.split()[0] for name in found} == {*pretraining.KINDS, "list"}
    assert all(0 <= share <= 1 for share in found.values())


@pytest.fixture(scope="module")
def rungs(tmp_path_factory):
    """Both rungs without brand, pattern and origin, two steps each, as the command makes them."""
    folder = tmp_path_factory.mktemp("ladder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "products_for", lambda within, *_, **__: unseen(within)[:300])
        patch.setattr(pretraining, "corpus", lambda products, within: corpus(products[:100], within))
        mixtures = {
            "seeing": [replace(FEW, ask=0, several=0, compare=0)],
            "pretrained": [replace(FEW, products=60)],
        }
        patch.setattr(pretraining, "MIXTURES", mixtures)
        words = ["mini", "--steps", "2", "--without", "attribute", "--device", "cpu"]
        assert main([*words, "--stage", "seeing", "--out", str(folder / "seeing")]) == 0
        start = ["--model", str(folder / "seeing")]
        assert main([*words, "--stage", "pretrained", *start, "--out", str(folder / "pretrained")]) == 0
    return folder


def test_two_steps_of_each_rung_make_a_checkpoint_that_says_what_it_was_taught(rungs):
    for name, answers in {"seeing": False, "pretrained": True}.items():
        assert len((rungs / name / "log.csv").read_text().splitlines()) == 3
        model = load_network(rungs / name)
        assert getattr(model.network.config, FIELD) == f"{name} without attribute"
        found = taught(model)
        assert found.answers == answers
        assert found.scope == scope("attribute")


def test_attributes_are_asked_in_the_words_that_a_checkpoint_knows(rungs, products):
    model = load_network(rungs / "pretrained")
    table = name_attributes(model, products[:6])
    assert set(table["source"]) == {"picture", "one", "several", *(f"title {name}" for name in LANGUAGES)}
    assert not set(table["attribute"]) & {"brand", "pattern", "origin", NONE}
    first = name_attributes(load_network(rungs / "seeing"), products[:2])
    assert set(first["source"]) == {"picture", *(f"title {name}" for name in LANGUAGES)}


def test_what_was_taught_is_none_for_other_checkpoints_and_checked_where_it_is_said(
    random_model, monkeypatch
):
    assert taught(random_model) is None
    for wrong in ("dreaming", "seeing without hope", 7):
        monkeypatch.setattr(random_model.network.config, FIELD, wrong, raising=False)
        with pytest.raises(CheckpointError, match=f"config.json has {FIELD}"):
            taught(random_model)
