"""Training on a dataset: what `cl.train` does."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from coral_lab.images import digest
from coral_lab.models.fingerprints import weights
from coral_lab.models.model import Model, network_of
from coral_lab.models.protocol import Embedder
from coral_lab.prompts import format_name
from coral_lab.query import Dataset
from coral_lab.training import distributed
from coral_lab.training.batches import Pair, PairBatch, ahead, make_batch, with_pixels
from coral_lab.training.config import StepConfig, TrainConfig
from coral_lab.training.contrastive import contrastive_objective
from coral_lab.training.held_out import evaluation, split
from coral_lab.training.learner import Learner
from coral_lab.training.loop import train_loop
from coral_lab.training.pairs import MakePair, pair_sampler, plain_pairs
from coral_lab.training.reconstruction import CONTRASTIVE, CORAL, decoders

log = logging.getLogger(__name__)

OBJECTIVES: Mapping[str, StepConfig] = {"coral": StepConfig(CORAL), "contrastive": StepConfig(CONTRASTIVE)}
DEFAULT = TrainConfig(steps=1000, learning_rate=1e-5)

Evaluate = Callable[[], Mapping[str, float]]
OnStep = Callable[[Mapping[str, float | int]], None]


def train(
    model: Embedder,
    dataset: Dataset,
    out: str | Path,
    objective: str | StepConfig = "coral",
    config: TrainConfig = DEFAULT,
    on_step: OnStep | None = None,
    *,
    held_out: int = 0,
) -> Model:
    """Train `model` in place on a dataset's queries and their positives, and save it in folder `out`.

    `objective` is "coral" (arXiv 2506.03144), "contrastive", or a StepConfig with weights and batch size of
    one's own; by default steps have 128 pairs. `config` says how long and how fast, by default 1,000 steps at
    1e-5. What learns must be in float32: load with dtype="float32", or add adapters to a model in bfloat16.
    `held_out` queries are kept back, with all variants of their answers (`held_out.split`), and searched
    every so many steps. Under `torchrun` and the like each process takes its share of every batch; a model
    whose parameters are sharded stays so, and is loaded again from `out`. (Seven parameters: what learns, on
    what, how, where, who looks on, and what is kept back.)

    Errors are those of `train_loop`, `pair_sampler` and `held_out.split`, ValueError for an unknown
    objective, and CheckpointError for a model that only embeds.
    """
    model = network_of(model, "training")
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}; use {' or '.join(OBJECTIVES)}, or a StepConfig")
        objective = OBJECTIVES[objective]
    distributed.start(model.device)
    kept = None
    if held_out:
        parts = split(dataset, held_out, config.seed)
        dataset, kept, counts = parts.training, parts.held_out, (held_out, parts.neither)
        log.info("%d queries are trained on, %d held out, %d in neither", len(dataset.queries), *counts)
    make = plain_pairs(dataset, objective.negatives)
    return train_pairs(model, dataset, make, out, objective, config, held=kept, on_step=on_step)


def train_pairs(
    model: Model,
    dataset: Dataset,
    make: MakePair,
    out: str | Path,
    step: StepConfig,
    config: TrainConfig,
    *,
    evaluate: Evaluate | None = None,
    held: Dataset | None = None,
    on_step: OnStep | None = None,
) -> Model:
    """As `train`, with pairs that `make` makes of the queries, and `evaluate` every so many steps, by default
    on the queries `held` out.

    (Nine parameters: what is trained, on what, how, and where that is told.)
    """
    config = config.lasting(len(dataset.queries), step.batch_size)
    distributed.share(step.batch_size)  # before anything is computed
    heads = decoders(model, step.coral, config.seed)
    count, first = config.steps * config.accumulate, config.decoders_first * config.accumulate
    pairs = pair_sampler(dataset, make, step.batch_size, count, config.seed, step.batches)
    learner = Learner(model, heads, step.coral, step.checkpointing)
    facts = _facts(model, dataset, make, step) | {"start": weights(model.network)}
    if config.shard:
        learner.shard(config.precision == "bfloat16")
    if evaluate is None and held is not None:
        evaluate = evaluation(learner, held, step.format)
    learns = step.coral.weights or step.coral.learn_temperature

    def make_ready(number: int) -> PairBatch:
        """The network meets the same batches whether decoders came first or not; these see the first of
        them, with other tokens hidden.
        """
        chosen = pairs(number if number < first else number - first)
        return batch_of(learner, chosen, step, config.seed, number - first)

    with ahead(make_ready, first + count) as batches:
        objective = contrastive_objective(learner, batches, step.chunk, config.autocast(model.device), first)
        return train_loop(
            model,
            objective,
            config,
            out,
            evaluate,
            decoders=heads if learns else None,
            on_step=on_step,
            facts=facts,
            card=_card(dataset, held, step),
        )


def batch_of(learner: Learner, pairs: Sequence[Pair], step: StepConfig, seed: int, number: int) -> PairBatch:
    """The batch of a step, which depends on seed and number alone; this process's pictures are processed.
    Decoders that learn alone have numbers below 0.
    """
    longest = learner.decoders.longest if step.coral.weights else 0
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    batch = make_batch(learner.model, pairs, longest, step.augmented, step.format, generator)
    if step.coral.shuffled:
        batch = batch.shuffled(step.coral.rebuilt)
    return with_pixels(learner.model, batch)


def _facts(model: Model, dataset: Dataset, make: MakePair, step: StepConfig) -> dict[str, object]:
    """What steps depend on beside the config; `chunk` and `checkpointing` only say what is in memory at a
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
    hard = (f"{query.id} {id}" for query in dataset.queries for id in query.hard_negatives)
    later = {"reconstruct": "target", "shuffled": False}  # settings that came after the first states
    coral = asdict(step.coral)
    return {
        **{name: value for name, value in coral.items() if value != later.get(name, ...)},
        "batch_size": step.batch_size,
        "negatives": step.negatives,
        "format": format_name(step.format),
        "augmented": step.augmented,
        "batches": step.batches,
        "pictures": digest([model.processor.image_processor.to_json_string()]),
        "pairs": make.__qualname__.partition(".")[0],
        "data": f"{dataset.name} {digest([*products, *queries, *asked, *hard])}",
    }


def _card(dataset: Dataset, held: Dataset | None, step: StepConfig) -> dict[str, object]:
    """What the model card says of data and objective."""
    coral = step.coral
    weights = ", ".join(f"{name} {weight:g}" for name, weight in coral.weights.items())
    objective = f"Coral (arXiv 2506.03144): contrastive, {weights}" if weights else "contrastive (InfoNCE)"
    if coral.shuffled:
        objective += ", each from another row's h_eos, as a control"
    how = f"{step.batch_size} pairs a step, {step.batches} batches, {step.negatives} hard negatives a query"
    data = f"{dataset.name}: {len(dataset.queries):,} queries, {len(dataset.products):,} products"
    if held is not None:
        data += f"; results are of {len(held.queries):,} queries held out by listing, among "
        data += f"{len(held.products):,} products"
    return {
        "data": data,
        "objective": f"{objective}; temperature {coral.temperature:g}",
        "batches": f"{how}, queries as {format_name(step.format)}",
    }
