"""Loading: whole checkpoints load, everything else ends in one error that says what to do."""

import errno
import json
import shutil

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file

from coral_lab import encode, load
from coral_lab.errors import CheckpointError
from coral_lab.models import loading
from coral_lab.sources import hub


@pytest.fixture
def copy(random_folder, tmp_path):
    """A checkpoint that a test may break."""
    return shutil.copytree(random_folder, tmp_path / "check point")


def test_a_saved_folder_gives_the_same_embeddings(random_model, random_folder, shop):
    again = load(random_folder)
    np.testing.assert_allclose(
        encode(again, shop.queries[:2]), encode(random_model, shop.queries[:2]), atol=1e-6
    )
    assert again.dim == 128
    assert again.dtype == torch.float32
    assert str(again.device) == "cpu"
    assert "1.7 M parameters" in repr(again)
    assert "Qwen2VLImageProcessor" in repr(again)
    assert "float32" in again._repr_html_()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_can_be_set_and_changes_nothing(random_model, random_folder, shop, attention):
    other = load(random_folder, attention=attention)
    assert other.attention == attention
    np.testing.assert_allclose(
        encode(other, shop.queries[0]), encode(random_model, shop.queries[0]), atol=1e-5
    )


def test_dtype_can_be_set(random_folder):
    assert load(random_folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="use float32, bfloat16 or float16"):
        load(random_folder, dtype="int8")


def test_defaults_follow_the_device(monkeypatch):
    for device in ("cuda", "mps"):
        assert loading._best_dtype(torch.device(device), torch.float32) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.best_device() == "cuda"


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("saved", ["float32", "bfloat16", "float16", None])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_cpu_that_computes_in_bfloat16_does_so_for_checkpoints_saved_in_it(
    copy, monkeypatch, native, saved, name
):
    monkeypatch.setattr(loading, "computes_bfloat16", lambda: native)
    config = json.loads((copy / "config.json").read_text())
    config.pop("dtype", None)
    (copy / "config.json").write_text(json.dumps(config | ({name: saved} if saved else {})))
    half = native and saved == "bfloat16"
    assert load(copy, device="cpu").dtype == (torch.bfloat16 if half else torch.float32)
    assert load(copy, device="cpu", dtype="float32").dtype == torch.float32


def test_coral_mini_is_float32_on_every_cpu(monkeypatch):
    monkeypatch.setattr(loading, "computes_bfloat16", lambda: True)
    assert load("mini", device="cpu").dtype == torch.float32


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_instructions_for_bfloat16_are_looked_for(monkeypatch, name):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert loading.computes_bfloat16.__wrapped__()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert not loading.computes_bfloat16.__wrapped__()


def test_missing_weights_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("merger.mlp.0.weight")))
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys \(.*merger.mlp.0.weight\).*download it again"):
        load(copy)


def test_one_layer_more_than_the_config_says_is_named(copy):
    weights = load_file(copy / "model.safetensors")
    first = [name for name in weights if name.startswith("model.layers.0.")]
    more = {name.replace(".0.", ".3."): weights[name].clone() for name in first}
    save_file(weights | more, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"12 unexpected keys \(model.layers.3.*download it again"):
        load(copy)


def test_weights_of_another_size_are_named(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"9 mismatched keys .*down_proj.weight 128×384, not 128×768"):
        load(copy)


def test_another_architecture_is_refused(copy):
    config = json.loads((copy / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (copy / "config.json").write_text(json.dumps(config))
    wanted = r"LlamaForCausalLM.*reads Qwen2_5_VLFor\w+, Qwen2VLFor\w+ and Qwen3VLFor\w+ only"
    with pytest.raises(CheckpointError, match=wanted):
        load(copy)


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
        load(copy)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "{half", "is no JSON"),
        ("tokenizer.json", None, "no working processor"),
        ("model.safetensors", "not weights", "could not be loaded"),
    ],
)
def test_broken_files_are_named(copy, file, content, says):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    with pytest.raises(CheckpointError, match=says):
        load(copy)


@pytest.mark.parametrize("name", ["no/such/folder/at/all", "./nowhere", "minni", "C:\\models"])
def test_a_name_that_is_nothing_is_refused(name):
    with pytest.raises(CheckpointError, match=r"no folder, no hub id \(owner/name\) and none of mini"):
        load(name)


def _hub_error(kind):
    return kind("refused", response=httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid")))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (_hub_error(RepositoryNotFoundError), "not on the hub, or private"),
        (_hub_error(RevisionNotFoundError), "one of its branches, tags or commits"),
        (LocalEntryNotFoundError("nothing cached"), "neither downloaded nor reachable; check the network"),
        (OSError(errno.ENOSPC, "No space left on device"), "no disk space left"),
        (ConnectionError("refused"), "could not be downloaded"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_says_becomes_one_clear_error(monkeypatch, error, says):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=says):
        load("Bia/CORAL", revision="main")


def test_offline_mode_never_asks_the_network(monkeypatch):
    with pytest.raises(CheckpointError, match="load it once without offline"):
        load("Bia/CORAL-never-downloaded", offline=True)


def test_a_hub_id_loads_what_was_downloaded(monkeypatch, random_folder):
    asked = {}

    def download(name, **options):
        asked.update(name=name, **options)
        return str(random_folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert load("Bia/CORAL", revision="abc").name == "Bia/CORAL"
    assert asked["revision"] == "abc"
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])


@pytest.fixture
def adapter(random_folder, tmp_path):
    """A LoRA folder whose adapter changes something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(load(random_folder).network, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "lora")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(random_folder)
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "lora", model


def test_a_lora_folder_is_merged_into_its_base(adapter, random_model, shop):
    folder, trained = adapter
    merged = load(folder)
    assert abs(encode(merged, shop.products[0]) - encode(random_model, shop.products[0])).max() > 1e-3
    before = encode(merged, shop.products[0])
    live = loading.Model("live", trained.eval().base_model.model, merged.processor)
    np.testing.assert_allclose(encode(live, shop.products[0]), before, atol=1e-5)


def test_an_adapter_with_missing_weights_is_refused(adapter):
    folder, _ = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="1 adapter weights do not fit its base"):
        load(folder)


def test_unknown_name_of_the_package_is_named():
    import coral_lab

    with pytest.raises(AttributeError, match="coral_lab has no 'lod'"):
        _ = coral_lab.lod
    assert "load" in dir(coral_lab)
