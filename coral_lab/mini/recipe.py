"""The stages that make coral-mini: a base that sees, reads and answers, then contrastive training or Coral
from it.

The base stands for the pretrained MLLM. It first looks at single pictures, then also reads single titles,
then also answers about products and queries: each skill is kept in the mixture, or it is forgotten.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from coral_lab.encoder import UNKEPT
from coral_lab.evaluation import evaluate
from coral_lab.mini.architecture import untrained
from coral_lab.mini.lessons import (
    Lesson,
    answer_loss,
    picture_lesson,
    product_lesson,
    query_lesson,
    slot_accuracy,
    summary_loss,
    title_lesson,
)
from coral_lab.mini.merit_mini import catalogue
from coral_lab.mini.pairs import fewer, mini_pairs, sometimes_retitled, varied
from coral_lab.mini.titles import named_in_title, retitle
from coral_lab.models.inputs import prompt
from coral_lab.models.loading import best_device, load_network
from coral_lab.models.model import Model
from coral_lab.prompts import LANGUAGES, parts
from coral_lab.query import Dataset, Product, Query
from coral_lab.training import distributed
from coral_lab.training.config import StepConfig, TrainConfig
from coral_lab.training.from_data import OBJECTIVES, train_pairs
from coral_lab.training.loop import Objective, Step, backward, train_loop
from coral_lab.training.lora import add_lora


@dataclass(frozen=True)
class Mixture:
    """How many of each lesson a step has, until this share of the steps is done; pictures may be `moved` a
    little.

    `further` train splits, made from other seeds, give pictures. This share of the queries is `disputed`: see
    there.
    """

    until: float
    pictures: int
    titles: int = 0
    products: int = 0
    queries: int = 0
    moved: bool = False
    further: int = 0
    disputed: float = 0.0


BASE = (
    Mixture(0.40, pictures=160),
    Mixture(1.00, pictures=128, titles=48, further=2),
)
ANSWERS = (
    Mixture(0.10, pictures=64, titles=32, products=32, queries=48, moved=True, further=2),
    Mixture(0.40, pictures=64, titles=16, products=32, queries=96, moved=True, further=2, disputed=0.5),
    Mixture(1.00, pictures=128, titles=8, products=48, queries=64, moved=True, further=2, disputed=0.5),
)
"""Then also products and queries, at moved pictures. Which picture shows the wanted brand, and which title
the wanted size where two name one, are skills of their own; the finest things, small marks and patterns, are
learnt last. Pictures that move from the first step on are learnt more slowly.
"""

MIXTURES = {"base": BASE, "answers": ANSWERS}


def corpus(shop: Dataset, limit: int = 4000):
    """Texts from which coral-mini's vocabulary is learnt: titles and instructions in five languages,
    answers.
    """
    for product in shop.products[:limit]:
        yield from (retitle(product, language).title for language in LANGUAGES)
        yield product_lesson(product)[1]
    for query in shop.queries[:limit]:
        for language in LANGUAGES:
            yield from (part for part in parts(replace(query, language=language)) if isinstance(part, str))


def base_objective(
    model: Model, shop: Dataset, config: TrainConfig, mixtures: Sequence[Mixture] = BASE
) -> Objective:
    """Next-token loss on lessons in the given mixtures: one term a kind of lesson, two where `summary_loss`
    has two.

    Across processes each has its share of every kind. Raises ValueError for a number of lessons that cannot
    be shared.
    """

    autocast = config.autocast(model.device)
    further = range(1, 1 + max(mixture.further for mixture in mixtures))
    splits = [shop.products, *(catalogue("mini", "train", seed).products for seed in further)]
    sized = [query for query in shop.queries if disputed(query)]

    def objective(step: int) -> Step:
        mixture = next(mix for mix in mixtures if step < mix.until * config.steps * config.accumulate)
        rng = Random(f"{config.seed}/base/{step}")
        pick = partial(_pick, shop.products, rng)
        seen = [product for split in splits[: 1 + mixture.further] for product in split]

        def ask(count: int) -> list[Lesson]:
            hard = round(count * mixture.disputed)
            asked = [fewer(varied(query, rng), rng) for query in rng.sample(shop.queries, count - hard)]
            asked += [varied(query, rng) for query in rng.sample(sized, hard)]
            rng.shuffle(asked)
            return [query_lesson(query) for query in _own(asked)]

        kinds = {
            "see": [picture_lesson(product) for product in _pick(seen, rng, mixture.pictures)],
            "read": [title_lesson(product) for product in pick(mixture.titles)],
            "know": [product_lesson(product) for product in pick(mixture.products)],
            "ask": ask(mixture.queries),
        }
        losses: dict[str, Tensor] = {}
        with autocast():
            for name, lessons in kinds.items():
                if lessons and name in ("know", "ask"):
                    both = summary_loss(model, lessons, mixture.moved)
                    losses |= zip((f"{name} first", name), both, strict=True)
                elif lessons:
                    losses[name] = answer_loss(model, lessons, mixture.moved)
        terms = backward(losses)
        return Step(
            dict(zip(terms, distributed.total(list(terms.values()), model.device), strict=True)),
            [prompt(model, item) for lessons in kinds.values() for item, _ in lessons],
        )

    return objective


def _pick(products: Sequence[Product], rng: Random, count: int) -> list[Product]:
    """This process's share, in the catalogue's order: each process mostly draws pictures that no other
    draws.
    """
    places = sorted(rng.sample(range(len(products)), count))
    return _own([sometimes_retitled(products[place], rng) for place in places])


def _own(rows: list) -> list:
    return [rows[i] for i in distributed.share(len(rows))]


def disputed(query: Query) -> bool:
    """Whether a size is asked for while the title of another reference names another one."""
    for condition in query.conditions:
        if condition.attribute == "size":
            titled = (c.product for c in query.conditions if "size" in named_in_title(c.product))
            return any(product.attributes["size"][0] != condition.value for product in titled)
    return False


def base_evaluation(model: Model, products: int = 256) -> Callable[[], dict[str, float]]:
    """Accuracy by attribute on unseen products and queries: "see class", …, "read class", …, "ask color",
    …
    """
    val = catalogue("mini", "val")
    shop = val.products[:products]
    kinds = {
        "see": [picture_lesson(product) for product in shop],
        "read": [title_lesson(product) for product in shop],
        "ask": [query_lesson(query) for query in val.queries[:products]],
    }
    return lambda: {
        f"{kind} {slot}": accuracy
        for kind, lessons in kinds.items()
        for slot, accuracy in slot_accuracy(model, lessons).items()
        if (kind, slot) != ("ask", "class")  # the first word, which may be any
    }


def contrastive_evaluation(model: Model, queries: int = 250) -> Callable[[], dict[str, float]]:
    """R@1 and R@10 on unseen queries, and how often the first hit meets a condition, by its attribute."""
    shop = catalogue("mini", "val")

    def evaluation() -> dict[str, float]:
        result = evaluate(model, shop.queries[:queries], shop.products, settings=UNKEPT)
        return {name: result.metrics[name].mean for name in ("R@1", "R@10", "MRR@10")} | result.met_by_first()

    return evaluation


PIXEL_CACHE = 8 * 2**30  # bytes; three train splits at coral-mini's resolution

DEFAULTS = {
    "base": TrainConfig(steps=1800, learning_rate=2e-3),
    "answers": TrainConfig(steps=2200, learning_rate=1.5e-3, warmup=50),
    "contrastive": TrainConfig(steps=600, learning_rate=1e-3),
    "coral": TrainConfig(steps=600, learning_rate=1e-3),
}
"""What `make mini` trains coral-mini with. "contrastive" and "coral" differ in nothing but the objective."""


@dataclass(frozen=True)
class Leg:
    """A stage from one folder to another, `start` None from scratch."""

    stage: str
    start: str | None
    out: str


RECIPE = (
    Leg("base", None, "coral-mini-first"),
    Leg("answers", "coral-mini-first", "coral-mini-base"),
    Leg("contrastive", "coral-mini-base", "coral-mini-contrastive"),
    Leg("coral", "coral-mini-base", "coral-mini"),
)


def train_all(
    folder: str | Path, changes: Mapping[str, Any] | None = None, device: str | None = None
) -> None:
    """Every leg of `RECIPE` in turn, below `folder`, goes on where it was stopped; `changes` are settings for
    all.

    One process for all of them draws each picture once.
    """
    pixels = None
    for leg in RECIPE:
        model = load_network(Path(folder) / leg.start, device=device, dtype="float32") if leg.start else None
        if model and pixels:
            model.__dict__["pixels"] = pixels
        config = replace(DEFAULTS[leg.stage], **(changes or {}))
        pixels = train_stage(leg.stage, model, Path(folder) / leg.out, config, device=device).pixels


def train_stage(
    stage: str,
    model: Model | None,
    out: str | Path,
    config: TrainConfig | None = None,
    *,
    step: StepConfig | None = None,
    lora: int | None = None,
    device: str | None = None,
    on_step: Callable | None = None,
) -> Model:
    """Train one stage on MERIT-mini and save it in `out`: "base" (from scratch without a model), "answers",
    "contrastive" or "coral".

    `step` is what the last two do at each step; their pictures are moved a little in any case. `lora` is the
    rank of adapters to train instead of all parameters. `device` is where a model from scratch is trained;
    another is trained where it is. (Eight parameters, as the command line has them.) Raises ValueError for
    another stage, or a later one without a model to start from.
    """
    if stage not in DEFAULTS:
        raise ValueError(f"stage is {stage!r}; choose one of {', '.join(DEFAULTS)}")
    if model is None and stage != "base":
        raise ValueError(f"{stage} training starts from a model; name one, e.g. mini-base")
    config, shop = config or DEFAULTS[stage], catalogue("mini", "train")
    if model is None:
        model = untrained(corpus(shop), config.seed)
        network: Any = model.network
        network.to(device or best_device())
    if lora:
        add_lora(model, lora, config.seed)
    model.pixels.limit = PIXEL_CACHE
    if stage in MIXTURES:
        objective, evaluation = base_objective(model, shop, config, MIXTURES[stage]), base_evaluation(model)
        facts = {"stage": stage, "mixtures": MIXTURES[stage], "data": shop.name}
        return train_loop(model, objective, config, out, evaluation, on_step=on_step, facts=facts)
    step = replace(step or OBJECTIVES[stage], augmented=True)
    make = mini_pairs(shop, step.negatives)
    measured = contrastive_evaluation(model)
    return train_pairs(model, shop, make, out, step, config, evaluate=measured, on_step=on_step)
