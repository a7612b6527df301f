"""Two processes, each with half of a batch, add up to the gradients of one: gloo on this machine."""

import pickle
import subprocess
import sys

import pytest
import torch

from coral_lab.training import distributed

CONTRASTIVE = """
torch.manual_seed(0)
shop, coral = dataset("mini", "val"), Coral(learn_temperature=True)
heads = decoders(model, coral)
batch = make_batch(model, pair_sampler(shop, mini_pairs(shop, 1), 4, 10)(9), heads.longest, True)
terms = gradients(Learner(model, heads, coral), batch)
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
from coral_lab.training.batches import make_batch
from coral_lab.training.contrastive import gradients
from coral_lab.training.learner import Learner
from coral_lab.training.reconstruction import Coral, decoders
from coral_lab.mini.pairs import mini_pairs
from coral_lab.training.pairs import pair_sampler
from coral_lab.mini.recipe import Mixture, base_objective
from coral_lab.training.config import TrainConfig
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
    assert two["terms"] == second["terms"]
    for own in (one, two):
        own["terms"].pop("padding", None)  # rows of like length stand together in one process
    assert one["terms"] == pytest.approx(two["terms"], rel=1e-5)
    largest = max(gradient.abs().max() for gradient in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        assert (two["gradients"][name] - gradient).abs().max() / largest < 1e-5, name
        assert (two["gradients"][name] == second["gradients"][name]).all(), name


@pytest.mark.parametrize(
    ("size", "joined", "started"),
    [(None, False, []), ("1", False, []), ("2", False, [True]), ("2", True, [])],
)
def test_processes_are_joined_once_and_only_where_there_are_several(monkeypatch, size, joined, started):
    begun, states = [], pytest.importorskip("accelerate")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: joined)
    monkeypatch.setattr(states, "PartialState", lambda cpu: begun.append(cpu))
    distributed.start()
    assert begun == started


@pytest.mark.parametrize(
    ("gpus", "device", "on_cpu"),
    [(True, None, False), (True, "cpu", True), (True, torch.device("cuda"), False), (False, None, True)],
)
def test_processes_are_joined_on_the_device_that_is_asked_for(monkeypatch, gpus, device, on_cpu):
    begun = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(pytest.importorskip("accelerate"), "PartialState", lambda cpu: begun.append(cpu))
    distributed.start(device)
    assert begun == [on_cpu]


def test_a_single_process_has_nothing_to_shard_over():
    with pytest.raises(ValueError, match="one process, and nothing to shard over; start several, see"):
        distributed.shard(torch.nn.Linear(2, 2))


def test_whole_tensors_are_the_first_process_s(monkeypatch):
    module = torch.nn.Linear(2, 1)
    module.other = module.weight
    module.register_buffer("kept", torch.ones(1))
    found = distributed.whole(module)
    assert found.keys() == {"weight", "other", "bias", "kept"}
    assert found["weight"] is found["other"]
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())
    assert not found["weight"].requires_grad
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert distributed.whole(module) == {}
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]


@pytest.mark.parametrize(("rank", "own"), [(0, [0, 1]), (1, [2, 3]), (2, [4, 5])])
def test_each_process_has_its_share_of_the_rows(monkeypatch, rank, own):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    assert list(distributed.share(6)) == own
    with pytest.raises(ValueError, match="a batch of 7 for 3 processes"):
        distributed.share(7)


def test_a_single_process_has_everything_and_waits_for_nobody():
    rows, parameter = torch.randn(2, 3), torch.nn.Parameter(torch.zeros(2))
    assert distributed.gather(rows) is rows
    assert distributed.total([1.5, 2.0], torch.device("cpu")) == [1.5, 2]
    distributed.sum_gradients([parameter])
    distributed.wait()
    assert parameter.grad is None
    assert (distributed.rank(), distributed.world_size(), list(distributed.share(3))) == (0, 1, [0, 1, 2])


def test_gradients_and_numbers_are_summed_and_gathered_rows_keep_their_order(monkeypatch):
    """As the second of two processes, the first of which has twos where this one has its own."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(2))
    monkeypatch.setattr(torch.distributed, "all_gather", lambda rows, own: [row.fill_(2) for row in rows])
    one, none = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    one.grad = torch.ones(2)
    distributed.sum_gradients([one, none])
    assert (one.grad.tolist(), none.grad.tolist()) == ([3, 3], [2, 2])
    assert distributed.total([1.5, 2.0], torch.device("cpu")) == [3.5, 4]
    own = torch.ones(1, 2, requires_grad=True)
    gathered = distributed.gather(own)
    assert gathered.tolist() == [[2, 2], [1, 1]]
    gathered.sum().backward()
    assert own.grad.tolist() == [[1, 1]]
