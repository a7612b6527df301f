"""The two stages that make coral-mini: a base that sees, reads and answers, then contrastive training from it.

The base stands for the pretrained MLLM. It first looks at single pictures, then also reads single titles, then also
answers about products and queries: each skill is kept in the mixture, or it is forgotten.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from coral_lab.catalogue import LANGUAGES, catalogue, retitle
from coral_lab.evaluation import evaluate
from coral_lab.inputs import Prompt, embed, prompt, see
from coral_lab.interleaved import Dataset, Product, Query, parts
from coral_lab.lessons import (
    answer_loss,
    picture_lesson,
    product_lesson,
    query_lesson,
    slot_accuracy,
    title_lesson,
)
from coral_lab.losses import info_nce
from coral_lab.mini import untrained
from coral_lab.models import Model
from coral_lab.training import Objective, TrainConfig, train


@dataclass(frozen=True)
class Mixture:
    """How many of each lesson a step has, until this share of the steps is done; pictures may be `moved` a little."""

    until: float
    pictures: int
    titles: int = 0
    products: int = 0
    queries: int = 0
    moved: bool = False


BASE = (
    Mixture(0.42, pictures=160),
    Mixture(0.70, pictures=96, titles=96),
    Mixture(1.00, pictures=48, titles=48, products=32, queries=48),
)
REVIEW = (
    Mixture(0.60, pictures=128, titles=32, moved=True),
    Mixture(1.00, pictures=64, titles=32, products=32, queries=48, moved=True),
)
"""After BASE the finest things, brand marks and patterns, are still being learnt: look again, at moved pictures."""

TRANSLATED = 0.5  # share of products whose title is put in another language
FOREIGN = 0.2  # share of queries whose instruction is not English


def corpus(shop: Dataset, limit: int = 4000):
    """Texts from which coral-mini's vocabulary is learnt: titles and instructions in five languages, answers."""
    for product in shop.products[:limit]:
        yield from (retitle(product, language).title for language in LANGUAGES)
        yield product_lesson(product)[1]
    for query in shop.queries[:limit]:
        for language in LANGUAGES:
            yield from (part for part in parts(replace(query, language=language)) if isinstance(part, str))


def base_objective(
    model: Model, shop: Dataset, config: TrainConfig, mixtures: Sequence[Mixture] = BASE
) -> Objective:
    """Next-token loss on lessons in the given mixtures, one term a kind of lesson."""

    def objective(step: int) -> Mapping[str, Tensor]:
        mixture = next(mix for mix in mixtures if step < mix.until * config.steps)
        rng = Random(f"{config.seed}/base/{step}")
        pick = partial(_pick, shop, rng)
        kinds = {
            "see": [picture_lesson(product) for product in pick(mixture.pictures)],
            "read": [title_lesson(product) for product in pick(mixture.titles)],
            "know": [product_lesson(product) for product in pick(mixture.products)],
            "ask": [query_lesson(_varied(query, rng)) for query in rng.sample(shop.queries, mixture.queries)],
        }
        return {
            name: answer_loss(model, lessons, mixture.moved) for name, lessons in kinds.items() if lessons
        }

    return objective


def _pick(shop: Dataset, rng: Random, count: int) -> list[Product]:
    return [_translated(product, rng) for product in rng.sample(shop.products, count)]


def _translated(product: Product, rng: Random) -> Product:
    return retitle(product, rng.choice(LANGUAGES)) if rng.random() < TRANSLATED else product


def _varied(query: Query, rng: Random) -> Query:
    """The query with some titles and at times its instruction in another language: the same question."""
    conditions = tuple(replace(c, product=_translated(c.product, rng)) for c in query.conditions)
    language = rng.choice(LANGUAGES[1:]) if rng.random() < FOREIGN else query.language
    return replace(query, conditions=conditions, language=language)


def base_evaluation(model: Model, products: int = 256) -> Callable[[], dict[str, float]]:
    """Accuracy by attribute on unseen products: "see class", …, "read class", …"""
    shop = catalogue("mini", "val").products[:products]
    kinds = {"see": [picture_lesson(p) for p in shop], "read": [title_lesson(p) for p in shop]}
    return lambda: {
        f"{kind} {slot}": accuracy
        for kind, lessons in kinds.items()
        for slot, accuracy in slot_accuracy(model, lessons).items()
    }


def contrastive_objective(
    model: Model, shop: Dataset, config: TrainConfig, batch_size: int = 128, temperature: float = 0.04
) -> Objective:
    """InfoNCE over the positives of a batch; candidates known to be right answers are no negatives.

    More and more batches come from two classes only, where wrong candidates are close.
    """
    by_class = defaultdict(list)
    for query in shop.queries:
        by_class[query.class_name].append(query)
    if not all(query.positives for query in shop.queries):
        raise ValueError(f"some queries of {shop.name} have no positives; training needs one for each")

    def objective(step: int) -> Mapping[str, Tensor]:
        rng = Random(f"{config.seed}/contrastive/{step}")
        close = rng.random() < 0.75 * min(1.0, 2 * step / config.steps)
        source = (
            [q for name in rng.sample(sorted(by_class), 2) for q in by_class[name]] if close else shop.queries
        )
        queries = rng.sample(source, min(batch_size, len(source)))
        positives = [shop.by_id[rng.choice(query.positives)] for query in queries]
        prompts = [prompt(model, _varied(query, rng)) for query in queries]
        candidates = [prompt(model, _translated(product, rng)) for product in positives]
        embeddings = embed_all(model, [prompts, candidates], augmented=True)
        ids = [product.id for product in positives]
        known = torch.tensor([[id in right for id in ids] for right in (set(q.positives) for q in queries)])
        return {"contrastive": info_nce(*embeddings, temperature, known.to(embeddings[0].device))}

    return objective


def embed_all(
    model: Model, groups: Sequence[Sequence[Prompt]], chunk: int = 32, augmented: bool = False
) -> list[Tensor]:
    """Embeddings [prompt, dim] of each group of prompts, with gradients.

    Each distinct picture is looked at once for all groups; prompts of like length are read together.
    """
    vision = see(model, [prompt for group in groups for prompt in group], augmented)
    return [_embed_sorted(model, group, vision, chunk) for group in groups]


def _embed_sorted(model: Model, prompts: Sequence[Prompt], vision, chunk: int) -> Tensor:
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].pictures), len(prompts[i].text)))
    rows = [
        embed(model, [prompts[i] for i in order[at : at + chunk]], vision)
        for at in range(0, len(order), chunk)
    ]
    back = torch.empty(len(order), dtype=torch.long)
    back[order] = torch.arange(len(order))
    return torch.cat(rows)[back.to(rows[0].device)]


def contrastive_evaluation(model: Model, queries: int = 250) -> Callable[[], dict[str, float]]:
    """R@1 and R@10 on unseen queries, and how often the first hit meets a condition, by its attribute."""
    shop = catalogue("mini", "val")

    def evaluation() -> dict[str, float]:
        result = evaluate(model, shop.queries[:queries], shop.products, progress=False)
        return {name: result.metrics[name].mean for name in ("R@1", "R@10", "MRR@10")} | result.met_by_first()

    return evaluation


PIXEL_CACHE = 4 * 2**30  # bytes; all of MERIT-mini at coral-mini's resolution

DEFAULTS = {
    "base": TrainConfig(steps=1600, learning_rate=2e-3, evaluate_every=100),
    "review": TrainConfig(steps=600, learning_rate=1.5e-3, warmup=50, evaluate_every=100),
    "contrastive": TrainConfig(steps=900, learning_rate=1e-3, evaluate_every=100),
}
"""What `make mini` trains coral-mini with."""


def run(stage: str, model: Model | None, out: str | Path, config: TrainConfig | None = None) -> Model:
    """Train one stage on MERIT-mini and save it in `out`: "base" (from scratch without a model), its "review", or
    "contrastive". Raises ValueError for another stage, or a later one without a model to start from.
    """
    if stage not in DEFAULTS:
        raise ValueError(f"stage is {stage!r}; choose one of {', '.join(DEFAULTS)}")
    config, shop = config or DEFAULTS[stage], catalogue("mini", "train")
    if stage == "base" and model is None:
        model = untrained(corpus(shop), config.seed)
    if model is None:
        raise ValueError(f"{stage} training starts from a model; name one, e.g. mini-base")
    if stage in ("base", "review"):
        mixtures = BASE if stage == "base" else REVIEW
        objective, evaluation = base_objective(model, shop, config, mixtures), base_evaluation(model)
    else:
        objective, evaluation = contrastive_objective(model, shop, config), contrastive_evaluation(model)
    model.pixels.limit = PIXEL_CACHE
    return train(model, objective, config, out, evaluation)
