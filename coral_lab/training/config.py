"""What a training is set to: how long and how fast to learn, and what a step is made of."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch

from coral_lab.prompts import Format
from coral_lab.training.reconstruction import CORAL, Coral


@dataclass(frozen=True)
class StepConfig:
    """What a contrastive step is made of: the objective's weights, `batch_size` pairs with so many hard
    `negatives` a query, queries in `format`, and `batches` as `pairs.BATCHES` names them.

    `chunk` pairs are in memory at a time (all by default), and with `checkpointing` no states inside the
    layers: these two change nothing but memory and time. Pictures are moved a little if `augmented`.
    """

    coral: Coral = CORAL
    batch_size: int = 128
    chunk: int | None = None
    negatives: int = 0
    format: str | Format = "seq"
    augmented: bool = False
    batches: str = "closer"
    checkpointing: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn. AdamW, linear warm-up, cosine decay to a tenth, gradients clipped by
    norm.

    Coral's decoders, which begin at random, learn at `decoder_learning_rate`, by default the network's. In
    `decoders_first` steps before all others they learn alone, and the network stays as it is to the bit. A
    run lasts `steps` after these, or `epochs` of the queries that are trained on. `accumulate` steps of the
    objective make one step of the optimizer; `precision` "bfloat16" runs the network in mixed precision, what
    learns stays in float32. With `patience` training ends when so many evaluations in a row were no better
    than the best (MRR@10), and that one's weights are saved. `shard` keeps a part of every parameter on each
    process (FSDP2). `tracker` is "tensorboard" or "wandb".
    """

    steps: int = 0
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 200
    checkpoint_every: int = 100
    accumulate: int = 1
    precision: str = "float32"
    decoder_learning_rate: float | int = 0
    epochs: float | int = 0
    patience: int | None = None
    shard: bool = False
    tracker: str | None = None
    decoders_first: int = 0

    def __post_init__(self):
        if self.learning_rate <= 0 or min(self.steps, self.epochs) < 0 or not (self.steps or self.epochs):
            said = f"epochs is {self.epochs}" if self.epochs else f"steps is {self.steps}"
            raise ValueError(f"{said} and learning_rate {self.learning_rate}; both must be positive")
        if self.steps and self.epochs:
            raise ValueError(f"steps is {self.steps} and epochs {self.epochs}; give one of the two")
        if self.accumulate < 1 or self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"accumulate is {self.accumulate} and precision {self.precision!r}; use 1 or more, and "
                "float32 or bfloat16"
            )
        for name in ("decoder_learning_rate", "decoders_first"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}; give a number of evaluations from 1 on")

    @property
    def all_steps(self) -> int:
        """Those of the decoders alone, and those after them."""
        return self.decoders_first + self.steps

    def autocast(self, device: torch.device) -> Callable:
        """A context in which the network runs in this precision."""
        if self.precision == "float32":
            return nullcontext
        return partial(torch.autocast, device.type, torch.bfloat16)

    def lasting(self, queries: int, batch_size: int) -> "TrainConfig":
        """The same with epochs as steps, of so many queries in batches of this size."""
        if self.steps:
            return self
        steps = math.ceil(self.epochs * queries / (batch_size * self.accumulate))
        return replace(self, steps=steps, epochs=0)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate at `step` (from 0): linear up over `warmup` steps, then a cosine down to a tenth. While decoders
    learn alone it goes up and stays there; then it begins anew.
    """
    if step < config.decoders_first:
        return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup))
    step -= config.decoders_first
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item()))
