"""What several processes do together in test_parallel.py: `-m tests.training.worker CHECKPOINT OUT MODE…`.

Each mode trains five steps on eight pairs and leaves its log in OUT; "+" joins what it is made of. In
"control" queries and targets are rebuilt from other rows, after two steps of the decoders alone.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import coral_lab as cl
from coral_lab.training import Coral, StepConfig, TrainConfig, add_lora, contrastive, distributed

CORAL = Coral(learn_temperature=True)
CONTROL = Coral(learn_temperature=True, reconstruct="both", shuffled=True)
STEPS = 5


def run(checkpoint: str, out: Path, mode: str) -> None:
    """Train in folder `out`/mode, or in the one that stands before "@" in a mode such as "fsdp@stopped"."""
    own, _, folder = mode.partition("@")
    parts = set(own.split("+"))
    model = cl.load(checkpoint, device="cpu", dtype="float32")
    if "lora" in parts:
        add_lora(model, 4)
    rows = []

    def on_step(row) -> None:
        rows.append(dict(row))
        if "stop" in parts and row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # the first process alone is told

    chunk = 1 if "cache" in parts else None
    coral = CONTROL if "control" in parts else CORAL
    step = StepConfig(coral, 8, chunk, negatives=1, checkpointing="checkpointing" in parts)
    contrastive.OTHERS = 2  # said at two of the five steps
    precision = "bfloat16" if "bfloat16" in parts else "float32"
    how = {
        "shard": "fsdp" in parts,
        "evaluate_every": 3 if "held" in parts else STEPS,
        "precision": precision,
        "decoders_first": 2 if "control" in parts else 0,
    }
    config = TrainConfig(STEPS, learning_rate=1e-4, warmup=2, **how)
    held = 12 if "held" in parts else 0
    try:
        cl.train(
            model,
            cl.dataset(*(out / "merit", "train") if "files" in parts else ("mini", "val")),
            out / (folder or own),
            step,
            config,
            on_step=on_step,
            held_out=held,
        )
    except SystemExit as ended:
        rows.append({"ended": ended.code})
    if distributed.rank() == 0:
        name = f"{mode.replace('@', '-at-')}-{distributed.world_size()}.json"
        (out / name).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.start("cpu")
    for mode in sys.argv[3:]:
        run(sys.argv[1], Path(sys.argv[2]), mode)
    distributed.end()
