"""Training on a dataset: what `cl.train` does."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from coral_lab.images import digest
from coral_lab.models.loading import Model
from coral_lab.prompts import format_name
from coral_lab.query import Dataset
from coral_lab.training.contrastive import StepConfig, contrastive_objective
from coral_lab.training.loop import TrainConfig, train_loop
from coral_lab.training.pairs import MakePair, pair_sampler, plain_pairs
from coral_lab.training.reconstruction import CONTRASTIVE, CORAL, decoders

OBJECTIVES: Mapping[str, StepConfig] = {"coral": StepConfig(CORAL), "contrastive": StepConfig(CONTRASTIVE)}
DEFAULT = TrainConfig(steps=1000, learning_rate=1e-5)


def train(
    model: Model,
    dataset: Dataset,
    out: str | Path,
    objective: str | StepConfig = "coral",
    config: TrainConfig = DEFAULT,
    on_step: Callable[[Mapping[str, float | int]], None] | None = None,
) -> Model:
    """Train `model` in place on a dataset's queries and their positives, and save it in folder `out`.

    `objective` is "coral" (arXiv 2506.03144), "contrastive", or a StepConfig with weights and batch size of
    one's own; by default steps have 128 pairs. `config` says how long and how fast, by default 1,000 steps at
    1e-5. Parameters learn in the dtype they were loaded in: load with dtype="float32". Errors are those of
    `train_loop`, and ValueError for an unknown objective or queries without positives.
    """
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}; use {' or '.join(OBJECTIVES)}, or a StepConfig")
        objective = OBJECTIVES[objective]
    make = plain_pairs(dataset, objective.negatives)
    return train_pairs(model, dataset, make, out, objective, config, on_step=on_step)


def train_pairs(
    model: Model,
    dataset: Dataset,
    make: MakePair,
    out: str | Path,
    step: StepConfig,
    config: TrainConfig,
    *,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    on_step: Callable[[Mapping[str, float | int]], None] | None = None,
) -> Model:
    """As `train`, with pairs that `make` makes of the queries, and `evaluate` every so many steps.

    (Eight parameters: what is trained, on what, how, and where that is told.)
    """
    heads = decoders(model, step.coral, config.seed)
    count = config.steps * config.accumulate
    pairs = pair_sampler(dataset, make, step.batch_size, count, config.seed)
    objective = contrastive_objective(model, heads, pairs, step, config.autocast(model.device))
    learns = step.coral.weights or step.coral.learn_temperature
    kept = heads if learns else None
    facts = _facts(dataset, make, step)
    return train_loop(model, objective, config, out, evaluate, decoders=kept, on_step=on_step, facts=facts)


def _facts(dataset: Dataset, make: MakePair, step: StepConfig) -> dict[str, object]:
    """What steps depend on beside the config; `chunk` only says how much of a batch is in memory at a
    time.
    """
    products = (
        text for product in dataset.products for text in (product.id, product.title, product.class_name)
    )
    queries = (
        text
        for query in dataset.queries
        for text in (query.id, query.class_name, query.text, query.language, *query.positives)
    )
    asked = (
        text
        for query in dataset.queries
        for condition in query.conditions
        for text in (condition.attribute, condition.product.id, condition.value)
    )
    return {
        **asdict(step.coral),
        "batch_size": step.batch_size,
        "negatives": step.negatives,
        "format": format_name(step.format),
        "augmented": step.augmented,
        "pairs": make.__qualname__.partition(".")[0],
        "data": f"{dataset.name} {digest([*products, *queries, *asked])}",
    }
