"""Quantised weights: half a step from what they were, the same ranking nearly, and nothing that would need
the old ones.
"""

import copy
import logging
import shutil
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from coral_lab import Settings, encode, load
from coral_lab.errors import CheckpointError, MissingExtraError
from coral_lab.models import adapters, fingerprints, quantizing
from coral_lab.models.model import same_embeddings
from coral_lab.models.quantizing import Int8Linear
from coral_lab.models.saving import save
from coral_lab.retrieval import Index
from coral_lab.study.comparison import judged
from coral_lab.training.config import TrainConfig
from coral_lab.training.loop import train_loop
from coral_lab.training.lora import add_lora

pytest.importorskip("torchao")
KEEP_NONE = Settings(store="", progress=False)


@pytest.fixture(scope="module")
def whole():
    return load("mini", device="cpu")


@pytest.fixture(scope="module")
def small():
    return load("mini", device="cpu", quantize="int8")


def layers(model):
    return {name: own for name, own in model.network.named_modules() if isinstance(own, Int8Linear)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_is_at_most_half_a_step_from_what_it_was(dtype):
    before = dict(load("mini", device="cpu", dtype=dtype).network.named_parameters())
    found = layers(load("mini", device="cpu", dtype=dtype, quantize="int8"))
    assert len(found) == 33  # 3 layers of 7, 2 vision layers of 5, 2 of the merger
    for name, layer in found.items():
        was, step = before[f"{name}.weight"].detach().float(), layer.weight.scale
        assert layer.weight.qdata.dtype == torch.int8
        torch.testing.assert_close(step[:, 0], was.abs().amax(1) / 127.5)
        assert ((was - layer.weight.qdata * step).abs() <= step * 0.5001).all(), name


def test_what_is_no_linear_layer_stays_to_the_bit(whole, small):
    mine, theirs = quantizing.tensors(small.network), quantizing.tensors(whole.network)
    same = [name for name in theirs if name in mine]
    assert len(same) == len(theirs) - 33
    assert all(torch.equal(mine[name], theirs[name]) for name in same)
    network = small.network
    assert network.lm_head.weight is network.model.language_model.embed_tokens.weight
    assert type(network.lm_head.weight) is nn.Parameter
    assert not isinstance(network.lm_head, Int8Linear)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(70, 20), (3, 70, 20), (1, 20), (20,), (0, 20)])
@pytest.mark.parametrize("block", [1, 100, 2**21])
def test_blocks_give_the_product_with_the_scaled_weights(shape, bias, block, monkeypatch):
    monkeypatch.setattr(quantizing, "BLOCK", block)
    torch.manual_seed(0)
    rows, numbers = torch.randn(shape), torch.randint(-128, 128, (12, 20), dtype=torch.int8)
    scale, added = torch.rand(12), torch.randn(12) if bias else None
    found = quantizing._by_blocks(rows, numbers, scale, added)
    torch.testing.assert_close(
        found, nn.functional.linear(rows, numbers * scale[:, None], added), rtol=1e-5, atol=1e-4
    )


def test_a_layer_computes_as_torchao_does_and_passes_gradients_on(small):
    layer = small.network.model.visual.blocks[0].attn.qkv
    rows = torch.randn(70, layer.in_features)
    torch.testing.assert_close(layer(rows), nn.Linear.forward(layer, rows), rtol=1e-4, atol=1e-4)
    rows.requires_grad_()
    layer(rows).sum().backward()
    expected = (layer.weight.qdata * layer.weight.scale).sum(0).expand_as(rows)
    torch.testing.assert_close(rows.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def both(whole, small, shop):
    """200 queries and one answer to each, embedded by both models."""
    queries = shop.queries[:200]
    wanted = {query.positives[0] for query in queries}
    small.__dict__["pixels"] = whole.pixels  # each picture is looked at once
    pool = [product for product in shop.products if product.id in wanted]
    found = [
        (model, *(encode(model, own, settings=KEEP_NONE) for own in (pool, queries)))
        for model in (whole, small)
    ]
    return queries, pool, found


def test_embeddings_are_nearly_the_same(both):
    """Of all 3,000 test products the least cosine is 0.99997 (benchmarks/quantize.csv)."""
    *_, (whole, small) = both
    for mine, theirs in zip(whole[1:], small[1:], strict=True):
        assert 0.9995 < (mine * theirs).sum(1).min() < 0.999999


def test_first_hits_are_nearly_the_same(both):
    queries, pool, found = both
    first = [
        judged(Index(model, pool, products, "seq", KEEP_NONE), queries, asked).metrics["R@1"].mean
        for model, products, asked in found
    ]
    assert abs(first[0] - first[1]) <= 0.02
    assert first[0] > 0.3


def test_the_plain_path_gives_the_same(small, shop):
    plain = load("mini", device="cpu", quantize="int8", quick=False)
    assert not plain.quick
    assert not layers(plain)
    assert plain.quantized == "int8"
    own = [shop.products[0], shop.queries[0]]
    np.testing.assert_allclose(
        encode(plain, own, settings=KEEP_NONE), encode(small, own, settings=KEEP_NONE), atol=2e-5
    )


def test_it_says_what_it_is(whole, small):
    assert "int8 weights, float32, cpu" in repr(small)
    assert "1.7 M parameters" in repr(small)
    assert "int8 weights" in small._repr_html_()
    assert "int8" not in repr(whole)
    assert (small.quantized, whole.quantized) == ("int8", None)
    assert small.dtype == torch.float32


def test_bfloat16_is_what_it_computes_in(shop):
    half = load("mini", device="cpu", dtype="bfloat16", quantize="int8")
    assert half.dtype == torch.bfloat16
    assert "int8 weights, bfloat16" in repr(half)
    assert np.isfinite(encode(half, shop.queries[0], settings=KEEP_NONE)).all()


def test_fingerprints_tell_them_apart(whole, small):
    again = load("mini", device="cpu", quantize="int8")
    names = [fingerprints.name(fingerprints.space(model)) for model in (whole, small, again)]
    assert names[0] != names[1] == names[2]
    assert same_embeddings(small, again)
    assert not same_embeddings(whole, small)
    assert not same_embeddings(small, whole)
    with torch.no_grad():
        next(iter(layers(again).values())).weight.scale[0] *= 2
    assert not same_embeddings(small, again)
    assert fingerprints.name(fingerprints.space(again)) != names[1]


def test_threads_get_what_one_gets(small, shop):
    own, found = list(shop.products[:4]), {}
    expected = encode(small, own, settings=KEEP_NONE)
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: encode(small, own, settings=KEEP_NONE)}))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[i], expected) for i in range(3))


def test_a_copy_computes_the_same(small):
    rows = torch.randn(5, 128)
    layer = small.network.model.language_model.layers[0].mlp.up_proj
    assert torch.equal(copy.deepcopy(layer)(rows), layer(rows))


@pytest.mark.parametrize(
    ("kind", "device", "says"),
    [
        ("int4", "cpu", "quantize is 'int4'; use 'int8', or leave it out"),
        ("", "cpu", "quantize is ''; use 'int8'"),
        ("int8", "mps", "device 'mps', where torchao has no int8; use cuda or cpu"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_read(kind, device, says):
    with pytest.raises(ValueError, match=says):
        load("no folder at all", device=device, quantize=kind)


def test_without_torchao_the_extra_is_named_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match=r"coral-lab\[quantize\]"):
        load("no folder at all", device="cpu", quantize="int8")


def test_saving_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="mini: its weights are int8 and cannot be saved; load it without"):
        save(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="its weights are int8 and cannot be trained; load it without"):
        train_loop(small, lambda step: None, TrainConfig(steps=1), tmp_path / "out")
    with pytest.raises(ValueError, match="its weights are int8 and cannot be given adapters; load it"):
        add_lora(small)
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_refused(tmp_path, monkeypatch):
    (tmp_path / adapters.CONFIG).write_text("{}")
    monkeypatch.setattr(adapters, "lora_of", lambda folder: adapters.Lora("mini", {}, {}, {}, (), None))
    with pytest.raises(CheckpointError, match=r"is an adapter, .* int8 weights.*without quantize, save that"):
        load(tmp_path, device="cpu", quantize="int8")


def test_missing_weights_and_leftovers_are_still_told(random_folder, tmp_path, caplog):
    folder = shutil.copytree(random_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"decoder.x": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        assert load(folder, device="cpu", quantize="int8").quantized == "int8"
    assert "left by training, not used" in caplog.text
    weights.pop(next(name for name in weights if name.endswith("up_proj.weight")))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="1 missing keys"):
        load(folder, device="cpu", quantize="int8")


def test_without_it_transformers_is_asked_for_nothing(whole):
    assert quantizing.config(None) is None
    assert not getattr(whole.network, "is_quantized", False)
