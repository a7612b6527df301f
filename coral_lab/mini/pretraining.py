"""The base that stands for a pretrained model: it says in words what it sees and reads, and embeds nothing.

Its rungs: `seeing` (captions of pictures, and of titles), then `pretrained` from it (questions about one
thing, several, or two to compare as well). All of it is in `wordings.py`'s words, from catalogues whose seeds
nothing else uses; no query of MERIT-mini is seen.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coral_lab.errors import CheckpointError
from coral_lab.mini import wordings
from coral_lab.mini.architecture import untrained
from coral_lab.mini.lessons import Lesson, predictions, words_right
from coral_lab.mini.merit_mini import SIZES, drawn
from coral_lab.mini.wordings import Exchange, Scope, Thing, limited, thing
from coral_lab.models.inputs import prompt
from coral_lab.models.loading import best_device
from coral_lab.models.model import Model
from coral_lab.prompts import instructions
from coral_lab.query import Product
from coral_lab.sources.border import brief
from coral_lab.training import distributed
from coral_lab.training.config import TrainConfig
from coral_lab.training.loop import Objective, Step, backward, train_loop

SEEDS = {"seeing": (100,), "pretrained": (100, 101, 102)}
"""Of the catalogues that are seen. The experiments train on seed 0, `recipe`'s base on 0, 1 and 2. Few
pictures are seen again sooner, and learnt sooner; of more of them the finest things, marks and patterns, are
learnt of others too.
"""


@dataclass(frozen=True)
class Lessons:
    """How many of each kind a step has, about so many products, until this share of the steps is done."""

    until: float
    products: int
    see: int
    read: int
    ask: int = 0
    several: int = 0
    compare: int = 0
    moved: bool = False


SEEING = (Lessons(0.6, 96, see=96, read=32), Lessons(1.0, 96, see=96, read=32, moved=True))
ANSWERING = (
    Lessons(0.5, 112, see=96, read=16, ask=48, several=64),
    Lessons(1.0, 112, see=96, read=16, ask=32, several=64, compare=16, moved=True),
)
HOW, SHARES = ("both", "picture", "title"), (6, 1, 3)
"""How things are shown that are asked about, and how often."""
COMPARED = 40
"""Things of which two are compared: few enough to be quick, enough that two agree in something."""
PIXEL_CACHE = 8 * 2**30
DEFAULTS = {
    "seeing": TrainConfig(steps=2400, learning_rate=2e-3),
    "pretrained": TrainConfig(steps=2000, learning_rate=2e-3, warmup=50),
}
MIXTURES = {"seeing": SEEING, "pretrained": ANSWERING}
KINDS = ("see", "read", "ask", "several", "compare")


FIELD = "coral_lab_lessons"
"""Of a checkpoint's config: its rung, and what it was taught without, which what is trained from it keeps."""


@dataclass(frozen=True)
class Taught:
    """What a checkpoint was taught in `wordings`: whether it answers questions, and about what."""

    answers: bool
    scope: Scope


def taught(model: Model) -> Taught | None:
    """None for a checkpoint that was not taught in `wordings`. Raises CheckpointError for lessons that there
    are not.
    """
    field = getattr(model.network.config, FIELD, None)
    if field is None:
        return None
    stage, _, without = field.partition(" without ") if isinstance(field, str) else ("", "", "")
    if stage not in MIXTURES or without not in ("", *wordings.WITHOUT):
        problem = f"config.json has {FIELD} {brief(field)}; wanted {' or '.join(MIXTURES)}"
        raise CheckpointError(f"{model.name}: {problem}, as `coral-lab mini` writes it")
    return Taught(stage == "pretrained", wordings.scope(without or None))


def products_for(
    within: Scope, split: str = "train", seeds: Sequence[int] = SEEDS["seeing"]
) -> list[Product]:
    """What there is to see and to read: the products of the seeds' catalogues, as far as they are in
    scope.
    """
    digit, count, _ = SIZES[split]
    ids = [str(digit * 1_000_000 + number) for number in range(count)]
    products = [own for seed in seeds for own in drawn(f"mini/{split}", ids, 0, seed).products]
    return [limited(product, within) for product in products if product.class_name in within.classes]


def exchanges(
    products: Sequence[Product], within: Scope, counts: Lessons, rng: Random
) -> dict[str, list[Exchange]]:
    """A step's lessons by kind. They share `counts.products` products, drawn by `rng`: each picture is looked
    at once.
    """
    places = sorted(rng.sample(range(len(products)), counts.products))
    own = [products[place] for place in places]

    def shown(product: Product, how: str = "") -> Thing:
        how = how or rng.choices(HOW, SHARES)[0]
        return thing(product, within, how, rng.choice(within.languages))

    def few(count: int) -> list[Product]:
        return rng.sample(own, count)

    few_compared = min(COMPARED, counts.products)
    sizes = [rng.choices((2, 3, 4), (5, 3, 2))[0] for _ in range(counts.several)]
    return {
        "see": [wordings.see(shown(p, "picture"), within, rng) for p in few(counts.see)],
        "read": [wordings.read(shown(p, "title"), within, rng) for p in few(counts.read)],
        "ask": [wordings.ask(shown(p), within, rng) for p in few(counts.ask)],
        "several": [wordings.several([shown(p) for p in few(size)], rng) for size in sizes],
        "compare": [compared([shown(p) for p in few(few_compared)], rng) for _ in range(counts.compare)],
    }


def compared(things: Sequence[Thing], rng: Random) -> Exchange:
    """Two of the things compared: either answer is as likely, whatever they are asked about. Raises
    ValueError for things of which no two agree in an attribute where a third differs.
    """
    for first in rng.sample(things, len(things)):
        for key in rng.sample(sorted(first.tells), len(first.tells)):
            others = [own for own in things if own.product != first.product and key in own.tells]
            same = [own for own in others if own.word(key) == first.word(key)]
            different = [own for own in others if own.word(key) != first.word(key)]
            if not (same and different):
                continue
            heads = rng.random() < 0.5
            if rng.random() < 0.5:
                return wordings.alike(first, rng.choice(same if heads else different), key, rng)
            return wordings.which(first, rng.choice(different), key, heads, rng)
    raise ValueError(f"{len(things)} things cannot be compared; take more")


def corpus(products: Sequence[Product], within: Scope, limit: int = 4000) -> Iterator[str]:
    """Texts from which the vocabulary is learnt: titles, what is said and answered, and the instructions'
    words, which the weights never see.
    """
    rng = Random(0)
    counts = Lessons(1.0, 100, 50, 50, 100, 100, 50)
    for start in range(0, min(limit, len(products)), 100):
        some = products[start : start + 100]
        for product in some:
            yield from (thing(product, within, "title", language).title for language in within.languages)
        for asked in exchanges(some, within, counts, rng).values() if len(some) == 100 else ():
            for one in asked:
                yield from (part["text"] for part in one.said[0]["content"] if part["type"] == "text")
                yield one.answer
    yield from _instructions(within)


def _instructions(within: Scope, often: int = 100) -> Iterator[str]:
    for language in within.languages:
        words = instructions()[language]
        for _ in range(often):
            for name in within.classes:
                yield words["find"].format(**{"class": words["classes"].get(name, name)})
            for key in within.attributes:
                attribute = words["attributes"].get(key, key)
                yield words["first"].format(attribute=attribute)
                yield words["next"].format(attribute=attribute)
            yield "Represent the given product: "


def pretraining_objective(
    model: Model,
    products: Sequence[Product],
    within: Scope,
    config: TrainConfig,
    mixtures: Sequence[Lessons],
) -> Objective:
    """Next-token loss on the answers, one term a kind of lesson. Across processes each has its share of every
    kind. Raises ValueError for a number of lessons that cannot be shared.
    """
    autocast = config.autocast(model.device)

    def objective(step: int) -> Step:
        counts = next(own for own in mixtures if step < own.until * config.steps * config.accumulate)
        rng = Random(f"{config.seed}/pretraining/{step}")
        kinds = exchanges(products, within, counts, rng)
        own = {name: [_lesson(some[i]) for i in distributed.share(len(some))] for name, some in kinds.items()}
        own = {name: lessons for name, lessons in own.items() if lessons}
        with autocast():
            losses = _losses(model, own, counts.moved)
        terms = backward(losses)
        return Step(
            dict(zip(terms, distributed.total(list(terms.values()), model.device), strict=True)),
            [prompt(model, said) for lessons in own.values() for said, _ in lessons],
        )

    return objective


def _lesson(own: Exchange) -> Lesson:
    return own.said, own.answer


def _losses(model: Model, kinds: dict[str, list[Lesson]], moved: bool) -> dict[str, Tensor]:
    """Mean cross-entropy of each kind's answer tokens: this process's part of the mean over all of them."""
    logits, targets, lengths = predictions(model, [own for some in kinds.values() for own in some], moved)
    each = cross_entropy(logits, targets, reduction="none").split(lengths)
    found, at = {}, 0
    for name, lessons in kinds.items():
        own = torch.cat(each[at : at + len(lessons)])
        found[name] = own.sum() / distributed.total([float(len(own))], model.device)[0]
        at += len(lessons)
    return found


def pretraining_evaluation(
    model: Model, within: Scope, mixtures: Sequence[Lessons], count: int = 256
) -> Callable[[], dict[str, float]]:
    """Accuracy by kind of lesson and attribute on unseen products, given the right words before: "see class",
    …, "several brand", …, where an answer is a list "list brand"; "none" is where "-" is right.
    """
    taught = [name for name in KINDS if any(getattr(own, name) for own in mixtures)]
    see, read, ask, several, compare = (count if name in taught else 0 for name in KINDS)
    counts = Lessons(1.0, count, see, read, ask, several, compare)
    unseen = products_for(within, "val")
    kinds = exchanges(unseen, within, counts, Random("evaluation"))

    def evaluation() -> dict[str, float]:
        found: dict[str, list[bool]] = defaultdict(list)
        for name in taught:
            asked = kinds[name]
            rights = words_right(model, [_lesson(own) for own in asked])
            for own, row in zip(asked, rights, strict=True):
                for slot, right in zip(own.slots, row, strict=True):
                    if slot:
                        found[f"{name if own.slots[0] else 'list'} {slot}"].append(right)
        return {name: sum(row) / len(row) for name, row in sorted(found.items())}

    return evaluation


def pretrain(
    stage: str,
    model: Model | None,
    out: str | Path,
    config: TrainConfig | None = None,
    *,
    without: str | None = None,
    device: str | None = None,
    on_step: Callable | None = None,
) -> Model:
    """Train a rung and save it in `out`: "seeing" from scratch, or "pretrained" from it. `without` is what an
    out-of-distribution split holds back, "class", "language", "attribute" or "all" three: it is absent from
    all of it.

    (Seven parameters, as the command line has them.) Raises ValueError for another stage or split, and for a
    model that is not the rung before.
    """
    if stage not in MIXTURES:
        raise ValueError(f"stage is {stage!r}; choose one of {', '.join(MIXTURES)}")
    within, config = wordings.scope(without), config or DEFAULTS[stage]
    _check_start(stage, model, without)
    products = products_for(within, seeds=SEEDS[stage])
    if model is None:
        model = untrained(corpus(products, within), config.seed)
        network: Any = model.network
        network.to(device or best_device())
    model.pixels.limit = PIXEL_CACHE
    model.network.config.update({FIELD: _rung(stage, without)})
    mixtures = MIXTURES[stage]
    facts = {"stage": stage, "mixtures": mixtures, "without": without, "seeds": SEEDS[stage]}
    objective = pretraining_objective(model, products, within, config, mixtures)
    evaluation = pretraining_evaluation(model, within, mixtures)
    return train_loop(model, objective, config, out, evaluation, on_step=on_step, facts=facts)


def _rung(stage: str, without: str | None) -> str:
    return f"{stage} without {without}" if without else stage


def _check_start(stage: str, model: Model | None, without: str | None) -> None:
    """What was ever held back or in the card's words would not be absent from a rung made of it."""
    if stage == "seeing" and model is not None:
        raise ValueError(f"seeing starts from scratch, and the model is {model.name}; leave it out")
    if stage != "seeing" and model is None:
        raise ValueError(f"{stage} training starts from a model; make one with --stage seeing")
    wanted = _rung("seeing", without)
    found = getattr(model.network.config, FIELD, "no rung") if model else wanted
    if found != wanted:
        raise ValueError(f"{stage} would start from {brief(found)}, wanted {wanted!r}; make it first")
