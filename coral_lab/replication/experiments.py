"""The experiments behind the findings that train: which arms, and on which queries they are measured.

Three seeds each from one base: `loss-ablation` (which terms help, and weighed how), `methods` (LoRA, pasted
pictures) and `ood` (a class, language or attribute held back, beside a control of the same size).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import pandas as pd

from coral_lab.encoder import UNKEPT
from coral_lab.evaluation import evaluate
from coral_lab.mini.merit_mini import catalogue
from coral_lab.mini.pairs import mini_pairs
from coral_lab.models import fingerprints
from coral_lab.models.loading import load_network
from coral_lab.models.model import Model
from coral_lab.prompts import LANGUAGES
from coral_lab.query import Dataset, Query
from coral_lab.replication.cells import RESULTS, WORK, Cell, Measured, measure_cells, ranked
from coral_lab.training.config import StepConfig, TrainConfig
from coral_lab.training.from_data import train_pairs
from coral_lab.training.lora import add_lora
from coral_lab.training.reconstruction import CONTRASTIVE, Coral


@dataclass(frozen=True)
class Arm:
    """One way to train: the objective, LoRA's rank (None trains all), the queries' format, and an
    out-of-distribution split that is held back. The `control` has as many queries as that leaves, drawn from
    all.
    """

    coral: Coral
    lora: int | None = None
    format: str = "seq"
    held_back: str = ""
    control: bool = False


ARMS: Mapping[str, Mapping[str, Arm]] = {
    "loss-ablation": {
        "contrastive": Arm(CONTRASTIVE),
        "vision": Arm(Coral(language=0)),
        "language": Arm(Coral(vision=0)),
        "coral": Arm(Coral()),
        "reg only": Arm(Coral(lambda2=0)),
        "rec only": Arm(Coral(lambda1=0)),
        "coral 0.05": Arm(Coral(lambda1=0.05, lambda2=0.05)),
        "coral 1": Arm(Coral(lambda1=1, lambda2=1)),
    },
    "methods": {
        "contrastive lora": Arm(CONTRASTIVE, lora=16),
        "coral lora": Arm(Coral(), lora=16),
        "coral cat": Arm(Coral(), format="cat"),
    },
    "ood": {
        f"{kind} {name}": Arm(Coral(), held_back=kind, control=name == "control")
        for kind in ("language", "class", "attribute")
        for name in ("held back", "control")
    },
}
"""The trained experiments. All arms start from the same base; without a split they see the same pairs, seed
by seed.
"""

QUERIES = {"loss-ablation": 1000, "methods": 1000, "ood": 2000}
"""How many test queries a trained cell is measured on; what is held back is only a part of them."""

START = "mini-base"
"""What is trained starts from it, unless told otherwise."""


@dataclass(frozen=True)
class Plan:
    """How long and how often each arm is trained from `start`, and on how many test queries it is measured;
    by default as many as QUERIES says.
    """

    seeds: int = 3
    steps: int = 100
    batch_size: int = 64
    queries: int | None = None
    start: str = START


def train_and_measure(
    name: str,
    plan: Plan = Plan(),
    *,
    arms: Mapping[str, Arm] | None = None,
    out: Path = RESULTS,
    work: Path = WORK,
) -> pd.DataFrame:
    """Train every arm of a trained experiment with every seed, and rank MERIT-mini's test pool for the first
    queries.

    Files and errors are those of `measure_cells`.
    """
    arms, queries = arms or ARMS[name], plan.queries or QUERIES[name]
    start, steps, batch_size = plan.start, plan.steps, plan.batch_size
    fresh = partial(
        load_network, start, dtype="float32"
    )  # what parameters learn in, whatever the device runs best
    first = fresh()
    # One name may stand for other weights, trained anew; with a word before it a CSV never takes it for a
    # number.
    weights = f"xxh3 {fingerprints.weights(first.network)[:12]}"
    settings: dict[str, str | int] = {
        "start": start,
        "weights": weights,
        "steps": steps,
        "batch_size": batch_size,
        "queries": queries,
    }
    pixels = first.pixels  # every cell sees the same pictures: processed once
    pixels.limit = 4 * 2**30

    def measure(arm: Arm, label: str, seed: int) -> Measured:
        model = fresh()
        model.__dict__["pixels"] = pixels
        folder = work / weights.replace(" ", "-") / f"{name}-{label.replace(' ', '-')}-{seed}"
        _train(model, arm, steps, batch_size, seed, folder)
        test = catalogue("mini", "test")
        found = ranked(evaluate(model, test.queries[:queries], test.products, arm.format, settings=UNKEPT))
        return replace(found, row={**found.row, "coral": str(asdict(arm.coral))})

    cells = [
        Cell(label, seed, partial(measure, arms[label], label, seed))
        for seed in range(plan.seeds)
        for label in arms
    ]
    command = f"coral-lab experiment {name} --seeds {plan.seeds} --steps {steps}"
    return measure_cells(
        name, cells, settings, command if start == START else f"{command} --start {start}", out
    )


def _train(model: Model, arm: Arm, steps: int, batch_size: int, seed: int, folder: Path) -> None:
    config = TrainConfig(
        steps, learning_rate=1e-3, warmup=min(50, steps // 4), seed=seed, checkpoint_every=25
    )
    if arm.lora:
        add_lora(model, arm.lora, seed)
    shop = catalogue("mini", "train")
    languages: tuple[str, ...] = LANGUAGES
    if arm.held_back and arm.control:
        count = len(held_back(shop, arm.held_back).queries)
        shop = replace(shop, queries=tuple(Random(seed).sample(shop.queries, count)))
    elif arm.held_back:
        shop = held_back(shop, arm.held_back)
        languages = tuple(name for name in LANGUAGES if name not in shop.traits.held_back[arm.held_back])
    step = StepConfig(arm.coral, batch_size, format=arm.format, augmented=True)
    make = mini_pairs(shop, languages=languages)
    train_pairs(model, shop, make, folder, step, config)


def held_back(shop: Dataset, kind: str) -> Dataset:
    """MERIT-mini without what an out-of-distribution split holds back: neither asked for, nor pointed at, nor
    found.

    `kind` is "class", "language" or "attribute".
    """
    gone = set(shop.traits.held_back[kind])
    kept = shop.out_of_distribution(kind, unseen=False)
    if kind == "attribute":
        return replace(
            kept, queries=tuple(q for q in kept.queries if (shop.traits.stated(q) or ("",))[0] not in gone)
        )
    products = tuple(
        p for p in kept.products if (p.class_name if kind == "class" else p.language) not in gone
    )
    ids = {product.id for product in products}
    queries = tuple(q for q in map(lambda query: _within(query, ids), kept.queries) if q is not None)
    return replace(kept, products=products, queries=queries)


def _within(query: Query, ids: set[str]) -> Query | None:
    """The query with those of its positives that are left; None if its references or all positives are
    gone.
    """
    positives = tuple(id for id in query.positives if id in ids)
    left = positives and all(product.id in ids for product in query.references)
    return replace(query, positives=positives) if left else None
