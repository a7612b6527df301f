"""What a training step takes in memory, as `train_loop` does it with its optimizer, each in its own process.

python benchmarks/train_memory.py               the 124 M shape: with and without gradient checkpointing, in
                                                parts (GradCache), with adapters; drawn pictures of 224 px
python benchmarks/train_memory.py 3b FOLDER     Qwen2.5-VL-3B's shape (`coral-lab rehearse`): one step of two
                                                pairs, LoRA of rank 8, frozen weights in bfloat16
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from encode import checkpoint
from table import keep, megabytes, row

import coral_lab as cl
from coral_lab.mini.drawing import Drawing
from coral_lab.query import Dataset, Product
from coral_lab.training import Coral, StepConfig, TrainConfig, add_lora

PAIRS, RUNS = 8, 1
SIDE = 224  # of pictures, in pixels
WAYS = {
    "at once": {},
    "gradient checkpointing": {"checkpointing": True},
    "GradCache, 2 at a time": {"chunk": 2},
    "both": {"checkpointing": True, "chunk": 2},
    "both, LoRA of rank 8": {"checkpointing": True, "chunk": 2, "lora": 8},
}


def enlarged(shop: Dataset, queries: int, side: int) -> Dataset:
    """A few queries and their products, with pictures as large as a shop's."""

    def large(product: Product) -> Product:
        image = product.image
        assert isinstance(image, Drawing)
        picture = image().resize((side, side))
        return replace(product, image=picture)

    asked = shop.queries[:queries]
    shown = {p.id: large(p) for p in shop.smaller_pool(asked, 0)}
    shown |= {p.id: large(p) for query in asked for p in query.references}
    asked = tuple(
        replace(q, conditions=tuple(replace(c, product=shown[c.product.id]) for c in q.conditions))
        for q in asked
    )
    return replace(shop, products=tuple(shown.values()), queries=asked)


def peak() -> float:
    """The most that this process has taken so far, in GB of 1e9 bytes."""
    return megabytes("VmHWM") * 2**20 / 1e9


def step(folder: str, pairs: int, dtype: str, side: int, way: dict) -> dict[str, float]:
    """GB and seconds of one step, Coral's terms on, its state and the checkpoint written."""
    started = time.perf_counter()
    lora = way.pop("lora", None)
    model = cl.load(folder, device="cpu", dtype=dtype)
    if lora:
        add_lora(model, lora)
    loaded = time.perf_counter() - started
    before = peak()
    shop, rows, marks = enlarged(cl.dataset("mini", "val"), pairs, side), [], []

    def on_step(own) -> None:
        rows.append(own)
        marks.append(peak())

    config = StepConfig(Coral(), batch_size=pairs, **way)
    with tempfile.TemporaryDirectory() as out:
        cl.train(model, shop, out, config, TrainConfig(steps=1, warmup=1), on_step=on_step)
    frozen = {str(p.dtype)[6:] for p in model.network.parameters() if not p.requires_grad}
    learns = {str(p.dtype)[6:] for p in model.network.parameters() if p.requires_grad}
    assert learns == {"float32"}, learns
    assert not frozen or frozen == {dtype}, frozen
    assert all(torch.isfinite(torch.tensor(rows[0][name])) for name in ("contrastive", *Coral().weights))
    return {
        "loaded": before,
        "peak": marks[0],
        "whole": peak(),
        "load": loaded,
        "seconds": pairs / rows[0]["pairs_per_second"],
    }


def measured(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "step", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def small() -> list[dict]:
    rows, peaks = [], {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(Path(folder))
        for name, way in WAYS.items():
            found = [measured(folder, str(PAIRS), "float32", str(SIDE), json.dumps(way)) for _ in range(RUNS)]
            peaks[name] = [own["peak"] - own["loaded"] for own in found]
            head = f"124 M, {PAIRS} pairs, {name}"
            rows.append(row(f"{head}: peak of a step over the loaded model, GB", peaks[name]))
            rows.append(row(f"{head}: s", [own["seconds"] for own in found]))
    saved = [1 - b / a for a, b in zip(peaks["at once"], peaks["gradient checkpointing"], strict=True)]
    return [*rows, row("124 M: share of a step's peak that gradient checkpointing saves", saved, "≥ 0.40")]


def large(folder: str) -> list[dict]:
    way = json.dumps({"checkpointing": True, "lora": 8})
    found = measured(folder, "2", "bfloat16", str(SIDE), way)
    head = f"3B, LoRA of rank 8, 2 pairs, pictures of {SIDE} px"
    return [
        row(f"{head}: peak of a step, weights included, GB", [found["peak"]], "< 13"),
        row(f"{head}: with its state and adapters written, GB", [found["whole"]]),
        row(f"{head}: loaded in bfloat16, GB", [found["loaded"]]),
        row(f"{head}: a step, s", [found["seconds"]]),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        folder, pairs, dtype, side, way = sys.argv[2:]
        print(json.dumps(step(folder, int(pairs), dtype, int(side), json.loads(way))))
    else:
        found = large(sys.argv[2]) if sys.argv[1:2] == ["3b"] else small()
        print(keep("train_memory", found).to_string(index=False))
