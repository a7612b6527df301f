"""What trains Qwen2.5-VL trains Qwen2-VL and Qwen3-VL too: Coral, InfoNCE, in parts, all or adapters."""

from pathlib import Path

import pytest
import torch

import coral_lab as cl
from coral_lab.models.architectures import ARCHITECTURES, Architecture
from coral_lab.training import CONTRASTIVE, Coral, StepConfig, TrainConfig, add_lora
from tests.models.test_architectures import made

WAYS = {
    "Coral": StepConfig(Coral(), 4, negatives=1),
    "Coral in parts, no states kept": StepConfig(Coral(), 4, chunk=2, negatives=1, checkpointing=True),
    "InfoNCE": StepConfig(CONTRASTIVE, 4),
}


@pytest.fixture(
    scope="module", params=list(ARCHITECTURES.values()), ids=lambda architecture: architecture.title
)
def folder(request, tmp_path_factory) -> Path:
    architecture: Architecture = request.param
    return made(architecture, tmp_path_factory.mktemp("architectures") / architecture.title)


def trained(
    folder: Path, out: Path, shop, step: StepConfig, lora: bool = False
) -> tuple[list[dict], set[str]]:
    """Rows of two steps, and the names of the weights that moved."""
    model, rows = cl.load(folder, device="cpu", dtype="float32"), []
    if lora:
        add_lora(model, 2)
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    config = TrainConfig(steps=2, warmup=1, learning_rate=1e-3)
    cl.train(model, shop, out, step, config, on_step=rows.append)
    return rows, {name for name, p in model.network.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("way", WAYS)
def test_an_architecture_learns_and_what_it_learnt_is_loaded(folder, shop, tmp_path, way):
    rows, moved = trained(folder, tmp_path, shop, WAYS[way])
    assert {name.partition(" ")[0] for name in WAYS[way].coral.weights} <= {"reg", "rec"}
    assert all(rows[0][name] > 0 for name in ("contrastive", *WAYS[way].coral.weights))
    for part in ("visual.blocks.0", "language_model.layers.0", "visual.merger"):
        assert any(part in name for name in moved), part
    model = cl.load(tmp_path, device="cpu")
    assert cl.encode(model, shop.queries[:2]).shape == (2, model.dim)


def test_parts_and_no_kept_states_give_the_losses_of_the_whole(folder, shop, tmp_path):
    whole, parts = (trained(folder, tmp_path / way, shop, WAYS[way])[0] for way in list(WAYS)[:2])
    for row, other in zip(whole, parts, strict=True):
        for name in ("contrastive", *Coral().weights, "gradient_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-4), name


def test_adapters_alone_move(folder, shop, tmp_path):
    _, moved = trained(folder, tmp_path, shop, WAYS["Coral"], lora=True)
    assert moved
    assert all("lora" in name for name in moved)
