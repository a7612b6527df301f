"""The study from `mini-pretrained`, as it was fixed before it was run (docs: *The design*): what is trained,
what is chosen on validation queries, how often, and which gates a comparison must pass.

    length       how many steps contrastive training takes to pass the gates
    selection    each arm's learning rate, and Coral's weight, by MRR@10 on validation queries
    objectives   the primary comparison, contrastive training against Coral, its readings and its control
    ladder       both from the rung below and the rung above
    variants     LoRA, pasted pictures and captions, trained
    unseen       without a class, language or attribute, from a base that never met any

Each builds on those before it, whose results it reads where it writes its own, or where they ship.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from coral_lab.replication.cells import RESULTS, WORK, hits_of, read_results, results_file
from coral_lab.replication.experiments import Arm, Plan, train_and_measure
from coral_lab.replication.seeds import Gate, Judgement, compare, gates, judge
from coral_lab.training.reconstruction import CONTRASTIVE, Coral

START = "mini-pretrained"
BASES = WORK / "bases"
"""Where `coral-lab mini` puts the rungs that do not ship: seeing, pretrained-without-all."""

LENGTHS = (150, 300, 450, 600)
RATES, LORA_RATES = (5e-4, 1e-3, 2e-3), (2e-3, 5e-3, 1e-2)
WEIGHTS = (0.05, 0.2, 1.0)
DECODERS_FIRST = 100
CHOOSING, SEEDS, FEW, FEWEST = 1, 8, 3, 2
"""Seeds that choose (from 100 on), of the primary comparison, of all others, and of `unseen` (from 0 on)."""

PILOT = Plan(1, 0, split="val", first_seed=100, queries=500, start=START)
CHOICE = replace(PILOT, seeds=CHOOSING)
STUDY = Plan(FEW, 0, queries=2000, start=START, curve=50)

coral = partial(Arm, decoders_first=DECODERS_FIRST)
"""An arm whose decoders learn alone at first: else they do not listen before half of a short run is over."""

CHOSEN: Mapping[str, Arm] = {
    "contrastive": Arm(CONTRASTIVE),
    "coral": coral(Coral()),
    "coral lora": coral(Coral(), lora=16),
}
"""Arms that have a learning rate of their own; other kinds of Coral take that of "coral", and its weight."""

ALIKE: Mapping[str, Mapping[str, tuple[str, Arm]]] = {
    "objectives": {
        "before": ("contrastive", Arm(CONTRASTIVE, steps=0, seeds=1)),
        "contrastive": ("contrastive", Arm(CONTRASTIVE, seeds=SEEDS)),
        "coral": ("coral", coral(Coral(), seeds=SEEDS)),
        "shuffled": ("coral", coral(Coral(shuffled=True))),
        "query": ("coral", coral(Coral(reconstruct="query"))),
        "both": ("coral", coral(Coral(reconstruct="both"))),
        "vision": ("coral", coral(Coral(language=0))),
        "language": ("coral", coral(Coral(vision=0))),
    },
    "ladder": {
        f"{rung} {name}": (name, replace(own, start=rung))
        for rung in ("seeing", "mini-base")
        for name, own in (("contrastive", Arm(CONTRASTIVE)), ("coral", coral(Coral())))
    },
    "variants": {
        "coral lora": ("coral lora", coral(Coral(), lora=16)),
        "coral cat": ("coral", coral(Coral(), format="cat")),
        "coral caption": ("coral", coral(Coral(), format="caption")),
    },
    "unseen": {
        f"{kind} {name}": (
            "coral",
            coral(
                Coral(),
                held_back=kind,
                control=name == "control",
                start="pretrained-without-all",
                seeds=FEWEST,
            ),
        )
        for kind in ("class", "language", "attribute")
        for name in ("held back", "control")
    },
}
"""What the other experiments train, and whose learning rate and weight each arm takes."""


@dataclass(frozen=True)
class Chosen:
    """What validation queries chose: steps, each arm's learning rate, and Coral's weight λ1 = λ2."""

    steps: int
    rates: Mapping[str, float]
    weight: float

    def __str__(self) -> str:
        rates = ", ".join(f"{arm} {rate:g}" for arm, rate in self.rates.items())
        return f"{self.steps} steps; {rates}; weight {self.weight:g}"


def run(name: str, *, out: Path = RESULTS, work: Path = WORK, bases: Path = BASES) -> pd.DataFrame:
    """Measure all cells of one of the experiments above that are not there yet, and return their rows.

    Raises FileNotFoundError with the command for results of an earlier one, or a base, that are missing, and
    ValueError for an experiment that there is not.
    """
    places = {"out": out, "work": work}
    if name == "length":
        steps = {f"contrastive {steps}": Arm(CONTRASTIVE, steps=steps) for steps in LENGTHS}
        return train_and_measure(name, PILOT, arms={"before": Arm(CONTRASTIVE, steps=0)} | steps, **places)
    if name == "selection":
        return _select(length(out), places)
    if name not in ALIKE:
        raise ValueError(f"{name!r} is not in the design; choose length, selection, {', '.join(ALIKE)}")
    chosen = choose(out)
    arms = {
        arm: replace(own, learning_rate=chosen.rates[like], coral=_weighed(own.coral, chosen.weight))
        for arm, (like, own) in ALIKE[name].items()
    }
    arms = {arm: replace(own, start=rung(own.start, bases)) for arm, own in arms.items()}
    return train_and_measure(
        name, replace(STUDY, steps=chosen.steps, chosen=str(chosen)), arms=arms, **places
    )


def _select(steps: int, places: Mapping[str, Path]) -> pd.DataFrame:
    """Rates at the weight as shipped, then Coral's weight at its best rate."""
    plan, arms = replace(CHOICE, steps=steps), _rated()
    table = train_and_measure("selection", plan, arms=arms, **places)
    _complete(table, arms)  # another process may still be at some
    weighed = _reweighed(_rate(table, _ranks(places["out"]), "coral"))
    return train_and_measure("selection", plan, arms=weighed, **places)


def _rated() -> dict[str, Arm]:
    """Each arm at each of its rates."""
    return {
        f"{arm} {rate:g}": replace(own, learning_rate=rate)
        for arm, own in CHOSEN.items()
        for rate in (LORA_RATES if own.lora else RATES)
    }


def _reweighed(rate: float) -> dict[str, Arm]:
    """Coral at its rate with each weight but the one that ships, which it has been measured with."""
    own = replace(CHOSEN["coral"], learning_rate=rate)
    return {
        f"coral {rate:g} weight {weight:g}": replace(own, coral=_weighed(own.coral, weight))
        for weight in WEIGHTS
        if weight != Coral().lambda1
    }


def _complete(table: pd.DataFrame, arms: Iterable[str]) -> None:
    """Nothing is chosen among some of the arms."""
    if missing := [arm for arm in arms if arm not in {*table["arm"]}]:
        problem = f"selection has no cell {missing[0]!r} yet, of {len(missing)} that it lacks"
        raise ValueError(f"{problem}; run it to its end: coral-lab experiment selection")


def _weighed(coral: Coral, weight: float) -> Coral:
    return replace(coral, lambda1=weight, lambda2=weight) if coral.weights else coral


def _ranks(out: Path | None) -> pd.DataFrame:
    """Each validation query's rank by cell of `selection`."""
    return read_results(_file("selection", out).with_name("selection-ranks.csv"), "query")


def _rate(table: pd.DataFrame, ranks: pd.DataFrame, arm: str) -> float:
    """The smallest learning rate of an arm whose MRR@10 is at most one standard error over queries below that
    of its best one, in the mean over seeds: what is no better is not worth being nearer to where training
    breaks (the rule of Breiman and others, Classification and Regression Trees, 1984).
    """
    own = table[table["arm"].isin(name for name in _rated() if name.rpartition(" ")[0] == arm)]
    means = own.groupby("arm")["MRR@10"].mean()
    best = means.idxmax()
    cells = [f"{best} {seed}" for seed in own.loc[own["arm"] == best, "seed"]]
    queries = (1 / ranks[cells]).where(ranks[cells] > 0, 0.0).mean(axis=1)
    enough = means.index[means >= means[best] - queries.sem()]
    return min(float(name.rpartition(" ")[2]) for name in enough)


def length(out: Path | None = None) -> int:
    """The fewest steps that pass both gates of contrastive training on validation queries; the most there
    are if none does. Raises FileNotFoundError if `length` was not run, ValueError if not so far.
    """
    table = read_results(_file("length", out)).set_index("arm")["R@1"]
    for steps in LENGTHS:
        before, after = (_measured(table, arm) for arm in ("before", f"contrastive {steps}"))
        if all(gate.met for gate in gates(before, after)):
            return steps
    return LENGTHS[-1]


def _measured(table: pd.Series, arm: str) -> float:
    """A cell's figure. Another process may still be at it."""
    if arm not in table:
        raise ValueError(f"length has no cell {arm!r} yet; run it to its end: coral-lab experiment length")
    return float(table[arm])


def choose(out: Path | None = None) -> Chosen:
    """What the results of `length` and `selection` choose. Raises FileNotFoundError if they were not run,
    ValueError if not to their end.
    """
    table = read_results(_file("selection", out))
    _complete(table, _rated())
    rates = {arm: _rate(table, _ranks(out), arm) for arm in CHOSEN}
    _complete(table, _reweighed(rates["coral"]))
    weighed = table[table["arm"].str.startswith(f"coral {rates['coral']:g}")].groupby("arm")["MRR@10"].mean()
    best = weighed.idxmax()
    return Chosen(length(out), rates, float(best.split()[-1]) if "weight" in best else Coral().lambda1)


def _file(name: str, out: Path | None) -> Path:
    """Where it was run, or else what ships."""
    return results_file(name, out if out and (out / f"{name}.csv").is_file() else None)


def rung(name: str, bases: Path = BASES) -> str:
    """The checkpoint of a rung: one that ships, "" for the study's own start, or a folder of `bases`.

    Raises FileNotFoundError with the command that makes it.
    """
    if not name or name.startswith("mini-"):
        return name
    if not (folder := bases / name).is_dir():
        stage, _, without = name.partition("-without-")
        more = f" --without {without}" if without else ""
        seeing = "" if stage == "seeing" else f" --model {bases / name.replace(stage, 'seeing')}"
        command = f"coral-lab mini --stage {stage}{seeing}{more} --out {folder}"
        raise FileNotFoundError(f"{folder} is missing; `{command}` makes it")
    return str(folder)


@dataclass(frozen=True)
class Primary:
    """The primary comparison, Coral against contrastive training at R@1: its gates, and what it comes to."""

    start: float
    contrastive: float
    gates: Sequence[Gate]
    judgement: Judgement

    def __str__(self) -> str:
        lines = [f"{'met   ' if gate.met else 'missed'} {gate}" for gate in self.gates]
        return "\n".join([*lines, f"{self.judgement.verdict}: {self.judgement.why}"])


def primary(out: Path | None = None) -> Primary:
    """What the results of `objectives` come to. Raises FileNotFoundError if it was not run, ValueError while
    its two arms have other numbers of seeds.
    """
    table = read_results(_file("objectives", out))
    ranks = read_results(_file("objectives", out).with_name("objectives-ranks.csv"), "query")
    own, base = hits_of(ranks, "coral"), hits_of(ranks, "contrastive")
    before = float(hits_of(ranks, "before").mean())
    saved = float(table.loc[table["arm"] == "coral", "saved"].mean())
    found = gates(before, float(base.mean()), saved)
    return Primary(before, float(base.mean()), found, judge(compare(own, base), float(base.mean()), found))


def told(name: str, out: Path | None = None) -> str:
    """What an experiment comes to, in a line or two: what it chose, or the primary comparison."""
    if name == "length":
        return f"chosen: {length(out)} steps"
    if name == "selection":
        return f"chosen: {choose(out)}"
    return str(primary(out)) if name == "objectives" else ""
