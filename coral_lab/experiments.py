"""Experiments of many training runs: each cell is run once, kept in data/results, and never repeated."""

import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from coral_lab.catalogue import catalogue
from coral_lab.contrastive import contrastive_objective
from coral_lab.coral import CONTRASTIVE, Coral, decoders
from coral_lab.evaluation import evaluate
from coral_lab.interleaved import Dataset
from coral_lab.metrics import crossed_estimate, holm, paired_difference, recall_at
from coral_lab.models import DATA, Model, load
from coral_lab.pairs import mini_pairs, pair_sampler
from coral_lab.training import TrainConfig, train

ARMS = {
    "contrastive": CONTRASTIVE,
    "vision": Coral(language=0),
    "language": Coral(vision=0),
    "coral": Coral(),
    "reg only": Coral(lambda2=0),
    "rec only": Coral(lambda1=0),
}
"""The loss ablation: which terms are on. All start from the same base and see the same batches, seed by seed."""

RESULTS, WORK = DATA / "results", DATA.parent / "build" / "experiments"


def loss_ablation(
    seeds: int = 3,
    steps: int = 200,
    batch_size: int = 64,
    queries: int = 1000,
    *,
    start: str = "mini-base",
    arms: Mapping[str, Coral] = ARMS,
    out: Path = RESULTS,
    work: Path = WORK,
) -> pd.DataFrame:
    """Train and measure every arm with every seed: one row a cell in `out/loss-ablation.csv`.

    `out/loss-ablation-ranks.csv` has each query's rank (-1 beyond 10), a column a cell. Runs go on where they were
    stopped; cells that are there are not run again. Raises ValueError if they were run with other settings.
    """
    table, ranks = out / "loss-ablation.csv", out / "loss-ablation-ranks.csv"
    settings = {"start": start, "steps": steps, "batch_size": batch_size, "queries": queries}
    done = pd.read_csv(table) if table.is_file() else pd.DataFrame(columns=["arm", "seed", *settings])
    other = done[(done[list(settings)] != pd.Series(settings)).any(axis=1)]
    if len(other):
        raise ValueError(
            f"{table} has cells of {other.iloc[0][list(settings)].to_dict()}, not {settings}; move it"
        )
    out.mkdir(parents=True, exist_ok=True)
    finished = set(zip(done["arm"], done["seed"], strict=True))
    cells = [(arm, seed) for seed in range(seeds) for arm in arms if (arm, seed) not in finished]
    shop = catalogue("mini", "train")
    made_with = provenance()  # the code as it is now, whatever is edited while it runs
    pixels = None
    for arm, seed in tqdm(cells, desc="loss ablation", unit="cell", disable=not cells):
        started = time.perf_counter()
        model = load(start)
        pixels = pixels or model.pixels  # every cell sees the same pictures: processed once
        model.__dict__["pixels"] = pixels
        pixels.limit = 4 * 2**30
        _train(
            model,
            shop,
            arms[arm],
            steps,
            batch_size,
            seed,
            work / f"loss-ablation-{arm.replace(' ', '-')}-{seed}",
        )
        test = catalogue("mini", "test")
        result = evaluate(model, test.queries[:queries], test.products, progress=False, store="")
        column = pd.DataFrame(
            {f"{arm} {seed}": result.per_query["rank"].to_numpy()}, index=result.per_query["query"]
        )
        known = pd.read_csv(ranks, index_col="query") if ranks.is_file() else pd.DataFrame(index=column.index)
        known.drop(columns=column.columns, errors="ignore").join(column).to_csv(ranks, index_label="query")
        row = {"arm": arm, "seed": seed, **settings}
        row |= {name: value.mean for name, value in result.metrics.items()} | result.met_by_first()
        row |= {
            "seconds": round(time.perf_counter() - started),
            "coral": str(asdict(arms[arm])),
            **made_with,
        }
        done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
        done.to_csv(table, index=False)
    return done


def _train(
    model: Model, shop: Dataset, coral: Coral, steps: int, batch_size: int, seed: int, folder: Path
) -> None:
    config = TrainConfig(
        steps, learning_rate=1e-3, warmup=min(50, steps // 4), seed=seed, checkpoint_every=25
    )
    heads = decoders(model, coral, seed)
    pairs = pair_sampler(shop, mini_pairs(shop), batch_size, steps, seed)
    objective = contrastive_objective(model, heads, pairs, coral, augmented=True)
    train(model, objective, config, folder, decoders=heads if coral.weights else None)


def compare(ranks: pd.DataFrame, baseline: str = "contrastive", k: int = 1) -> pd.DataFrame:
    """R@k of each arm against the baseline on the same queries and seeds, p-values corrected by Holm's method.

    `ranks` [query, cell] as `loss_ablation` writes them. Intervals are over queries and seeds; p is of a paired test
    over queries, each with its mean over seeds, and `seeds` shows the difference seed by seed. Raises ValueError
    without the baseline.
    """
    arms = dict.fromkeys(column.rpartition(" ")[0] for column in ranks)
    if baseline not in arms:
        raise ValueError(f"no cell of {baseline!r} among {', '.join(arms)}; run it first")
    found = ranks.apply(lambda column: pd.Series(recall_at(column.to_numpy(), k), index=column.index))
    by_arm = {arm: found[[c for c in found if c.rpartition(" ")[0] == arm]] for arm in arms}
    rows = []
    for arm, values in by_arm.items():
        seeds = [c.rpartition(" ")[2] for c in values if f"{baseline} {c.rpartition(' ')[2]}" in found]
        own, base = values[[f"{arm} {s}" for s in seeds]], found[[f"{baseline} {s}" for s in seeds]]
        gains = own.to_numpy() - base.to_numpy()
        difference = crossed_estimate(gains)
        p = paired_difference(own.to_numpy().mean(1), base.to_numpy().mean(1)).p
        rows.append({"arm": arm, f"R@{k}": own.mean(axis=None), "difference": difference.mean, "low": difference.low,
                     "high": difference.high, "p": p, "seeds": gains.mean(0).round(3).tolist()})  # fmt: skip
    table = pd.DataFrame(rows)
    tested = table["arm"] != baseline
    table.loc[tested, "p (Holm)"] = holm(table.loc[tested, "p"].to_numpy())
    return table


def provenance() -> dict[str, str]:
    """What a result was made with: commit, torch and processor."""
    git = ["git", "-C", str(DATA.parent), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    return {
        "commit": commit,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
