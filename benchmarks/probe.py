"""What the embeddings of the shipped checkpoints hold: linear probes on unseen products and queries.

python benchmarks/probe.py        writes data/results/probes.csv; about a minute a checkpoint
"""

import pandas as pd

from coral_lab import dataset, load
from coral_lab.study.probing import probe_checkpoint

if __name__ == "__main__":
    train, test = dataset("mini", "train"), dataset("mini", "test")
    tables = [
        probe_checkpoint(load(name), train, test).assign(checkpoint=name)
        for name in ("mini-base", "mini-contrastive", "mini")
    ]
    table = pd.concat(tables).round(4)
    table.to_csv("data/results/probes.csv", index=False)
    print(table.pivot_table(index=["item", "attribute"], columns="checkpoint", values="accuracy").to_string())
