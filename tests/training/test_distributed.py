"""Two processes, each with half of a batch, add up to the gradients of one: gloo on this machine."""

import pickle
import subprocess
import sys

import pytest

CONTRASTIVE = """
torch.manual_seed(0)
shop, coral = dataset("mini", "val"), Coral(learn_temperature=True)
heads = decoders(model, coral)
batch = make_batch(model, pair_sampler(shop, mini_pairs(shop, 1), 4, 10)(9), heads.longest, True)
terms = gradients(model, heads, batch, coral)
modules = [model.network, heads]
"""

LESSONS = """
mixture = Mixture(1.0, pictures=4, titles=2, products=2, queries=4, disputed=0.5)
terms = base_objective(model, dataset("mini", "val"), TrainConfig(steps=1), [mixture])(0).terms
modules = [model.network]
"""

WORKER = """
import pickle, sys
import torch
torch.set_num_threads(1)
from coral_lab import dataset, load
from coral_lab.training import distributed
from coral_lab.training.contrastive import gradients, make_batch
from coral_lab.training.reconstruction import Coral, decoders
from coral_lab.mini.pairs import mini_pairs
from coral_lab.training.pairs import pair_sampler
from coral_lab.mini.recipe import Mixture, base_objective
from coral_lab.training.loop import TrainConfig
distributed.start()
model = load(sys.argv[1])
{objective}
named = [pair for module in modules for pair in module.named_parameters()]
distributed.sum_gradients(p for _, p in named)
found = {{name: p.grad for name, p in named if p.grad is not None}}
with open(f"{{sys.argv[2]}}-{{distributed.rank()}}", "wb") as file:
    pickle.dump({{"terms": terms, "gradients": found}}, file)
"""


@pytest.mark.parametrize("objective", [CONTRASTIVE, LESSONS], ids=["contrastive", "lessons"])
def test_two_processes_give_the_gradients_of_one(random_folder, tmp_path, objective):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(objective=objective), encoding="utf-8")
    one = [sys.executable, str(script), str(random_folder)]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *one[1:]]
    for name, command in (("one", one), ("two", two)):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True, timeout=240)
    one, two, second = (pickle.loads((tmp_path / name).read_bytes()) for name in ("one-0", "two-0", "two-1"))
    assert one["terms"] == pytest.approx(two["terms"], rel=1e-5)
    assert two["terms"] == second["terms"]
    largest = max(gradient.abs().max() for gradient in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        assert (two["gradients"][name] - gradient).abs().max() / largest < 1e-5, name
        assert (two["gradients"][name] == second["gradients"][name]).all(), name
