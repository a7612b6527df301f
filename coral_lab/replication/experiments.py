"""The experiments behind the findings that train: which arms, and on which queries they are measured.

Three seeds each from one base: `loss-ablation` (which terms help, and weighed how), `methods` (LoRA, pasted
pictures) and `ood` (a class, language or attribute held back, beside a control of the same size).
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import pandas as pd

from coral_lab.encoder import UNKEPT
from coral_lab.evaluation import evaluate
from coral_lab.mini.merit_mini import catalogue
from coral_lab.mini.pairs import mini_pairs
from coral_lab.mini.recipe import contrastive_evaluation
from coral_lab.models import fingerprints
from coral_lab.models.loading import load_network
from coral_lab.models.model import Model
from coral_lab.prompts import LANGUAGES
from coral_lab.query import Dataset, Query
from coral_lab.replication.cells import RESULTS, WORK, Cell, Measured, measure_cells, ranked, read_results
from coral_lab.replication.seeds import saved_by_half
from coral_lab.training.config import StepConfig, TrainConfig
from coral_lab.training.from_data import train_pairs
from coral_lab.training.lora import add_lora
from coral_lab.training.reconstruction import CONTRASTIVE, Coral


@dataclass(frozen=True)
class Arm:
    """One way to train: the objective, LoRA's rank (None trains all), the queries' format, and an
    out-of-distribution split that is held back. The `control` has as many queries as that leaves, drawn from
    all. `start`, `steps` and `seeds` are the plan's unless an arm has its own. In `decoders_first` steps
    before these decoders learn alone, and have a rate of their own ever after.
    """

    coral: Coral
    lora: int | None = None
    format: str = "seq"
    held_back: str = ""
    control: bool = False
    learning_rate: float = 1e-3
    decoders_first: int = 0
    start: str = ""
    steps: int | None = None
    seeds: int | None = None


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

DECODERS = 2e-3
"""The rate of decoders that learn first: they begin at random, whatever suits the network."""

QUERIES = {"loss-ablation": 1000, "methods": 1000, "ood": 2000}
"""How many test queries a trained cell is measured on; what is held back is only a part of them."""

START = "mini-base"
"""What is trained starts from it, unless told otherwise."""


@dataclass(frozen=True)
class Plan:
    """How long and how often each arm is trained from `start`, and on how many queries of which `split` it is
    measured; by default as many as QUERIES says.

    With `curve` R@1 on 250 validation queries is kept every so many steps. `chosen` are settings that other
    results chose, in words: cells of other choices are never mixed.
    """

    seeds: int = 3
    steps: int = 100
    batch_size: int = 64
    queries: int | None = None
    start: str = START
    split: str = "test"
    first_seed: int = 0
    curve: int = 0
    chosen: str = ""


def train_and_measure(
    name: str,
    plan: Plan = Plan(),
    *,
    arms: Mapping[str, Arm] | None = None,
    out: Path = RESULTS,
    work: Path = WORK,
) -> pd.DataFrame:
    """Train every arm of a trained experiment with every seed, and rank MERIT-mini's pool for the first
    queries.

    Files and errors are those of `measure_cells`.
    """
    arms, queries = arms or ARMS[name], plan.queries or QUERIES[name]
    starts = dict.fromkeys(arm.start or plan.start for arm in arms.values())
    bases = {start: _base(start) for start in starts}
    settings = _settings(plan, queries, bases)
    pixels = next(iter(bases.values())).pixels  # every cell sees the same pictures: processed once
    pixels.limit = 4 * 2**30
    work = work / str(settings["weights"]).replace(" ", "-")

    def measure(arm: Arm, label: str, seed: int) -> Measured:
        model = _base(arm.start or plan.start)
        model.__dict__["pixels"] = pixels
        folder = work / f"{name}-{label.replace(' ', '-')}-{seed}"
        if steps := plan.steps if arm.steps is None else arm.steps:
            _train(model, arm, replace(plan, steps=steps), seed, folder)
        shop = catalogue("mini", plan.split)
        found = ranked(evaluate(model, shop.queries[:queries], shop.products, arm.format, settings=UNKEPT))
        row = {**found.row, "coral": str(asdict(arm.coral))}
        if not (plan.curve and steps):
            return replace(found, row=row)
        log = read_results(folder / "log.csv")
        row |= {"rate": arm.learning_rate, "saved": saved_by_half(log, arm.decoders_first)}
        row |= _costs(log, arm.decoders_first)
        return replace(found, row=row, curve=_curve(log, arm.decoders_first))

    cells = [
        Cell(label, seed, partial(measure, arm, label, seed)) for seed, (label, arm) in _turns(plan, arms)
    ]
    return measure_cells(name, cells, settings, _command(name, plan), out)


def _base(start: str) -> Model:
    """In what parameters learn in, whatever the device runs best."""
    return load_network(start, dtype="float32")


def _settings(plan: Plan, queries: int, bases: Mapping[str, Model]) -> dict[str, str | int]:
    """What all cells have in common. One name may stand for other weights, trained anew."""
    weights = " ".join(fingerprints.weights(base.network)[:12] for base in bases.values())
    settings: dict[str, str | int] = {
        "start": plan.start,
        "weights": f"xxh3 {weights}",  # with a word before it a CSV never takes it for a number
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "queries": queries,
    }
    return settings | ({"chosen": plan.chosen} if plan.chosen else {})


def _turns(plan: Plan, arms: Mapping[str, Arm]) -> Iterator[tuple[int, tuple[str, Arm]]]:
    """Seed by seed: what is there after an interruption can be compared."""
    most = max(arm.seeds or plan.seeds for arm in arms.values())
    for seed in range(most):
        for label, arm in arms.items():
            if seed < (arm.seeds or plan.seeds):
                yield plan.first_seed + seed, (label, arm)


def _command(name: str, plan: Plan) -> str:
    if name not in ARMS:
        return f"coral-lab experiment {name}"
    command = f"coral-lab experiment {name} --seeds {plan.seeds} --steps {plan.steps}"
    return command if plan.start == START else f"{command} --start {plan.start}"


def _costs(log: pd.DataFrame, decoders_first: int) -> dict[str, float]:
    """Seconds of all steps of the decoders alone, and of one after them: medians, which leave out
    evaluations and what else the machine did.
    """
    alone = log["step"] <= decoders_first
    each = log["seconds"].diff().fillna(log["seconds"])
    first = float(each[alone].median()) * decoders_first if decoders_first else 0.0
    return {"first_seconds": first, "step_seconds": float(each[~alone].median())}


def _curve(log: pd.DataFrame, decoders_first: int) -> pd.DataFrame:
    """R@1 on validation queries over the network's steps."""
    rows = log.loc[log["R@1"].notna(), ["step", "R@1", "MRR@10"]].reset_index(drop=True)
    return rows.assign(step=rows["step"] - decoders_first)


def _train(model: Model, arm: Arm, plan: Plan, seed: int, folder: Path) -> None:
    config = TrainConfig(
        plan.steps,
        learning_rate=arm.learning_rate,
        warmup=min(50, plan.steps // 4),
        seed=seed,
        checkpoint_every=25,
        evaluate_every=plan.curve or plan.steps,
        decoders_first=arm.decoders_first,
        decoder_learning_rate=DECODERS if arm.decoders_first else 0,
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
    step = StepConfig(arm.coral, plan.batch_size, format=arm.format, augmented=True)
    make = mini_pairs(shop, languages=languages)
    followed = contrastive_evaluation(model) if plan.curve else None
    train_pairs(model, shop, make, folder, step, config, evaluate=followed)


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
