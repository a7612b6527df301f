"""Checkpoints of other releases, and with what training left in them, load as the plain one: equal to the
bit.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from coral_lab import encode, load
from coral_lab.errors import CheckpointError
from coral_lab.models.checkpoint_files import checked
from tests.models.layouts import DECODER_WEIGHTS, LAYOUTS, LEFTOVERS, Layout, change, new_name, read, write

MINI = Path(__file__).parents[2] / "data/coral-mini"
FIRST = Layout("flat", "old", shards=3, processor="first")
"""As Qwen2.5-VL was first published."""


@pytest.fixture(scope="module")
def plain():
    return load(MINI, dtype="float32", device="cpu")


@pytest.mark.parametrize("leftovers", ["none", "both"])
@pytest.mark.parametrize("layout", [LAYOUTS[7 * i % len(LAYOUTS)] for i in range(20)], ids=str)
def test_every_layout_gives_the_same_weights_and_processor(layout, leftovers, plain, tmp_path, caplog):
    found = load(write(MINI, tmp_path / "other", replace(layout, leftovers=leftovers)), dtype="float32")
    mine, theirs = found.network.state_dict(), plain.network.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert found.network.config.text_config.rope_parameters["mrope_section"] == [4, 6, 6]
    assert (
        found.processor.image_processor.to_json_string() == plain.processor.image_processor.to_json_string()
    )
    assert found.processor.chat_template == plain.processor.chat_template
    assert found.processor.tokenizer.get_vocab() == plain.processor.tokenizer.get_vocab()
    assert len(caplog.records) == (leftovers == "both")


@pytest.mark.parametrize(
    "layout",
    [
        FIRST,
        replace(FIRST, leftovers="both"),
        Layout("both", "new", "beside", leftovers="weights"),
        Layout("nested", "new", "only", processor="tokenizer"),
    ],
    ids=str,
)
def test_embeddings_are_equal_to_the_last_bit(layout, plain, shop, tmp_path):
    items = [*shop.queries[:2], *shop.products[:2]]
    found = load(write(MINI, tmp_path / "other", layout), dtype="float32", device="cpu")
    assert abs(encode(found, items) - encode(plain, items)).max() == 0.0


def test_the_processor_is_transformers_own(plain):
    theirs = AutoProcessor.from_pretrained(MINI, local_files_only=True)
    assert type(plain.processor) is type(theirs)
    for part in ("image_processor", "video_processor"):
        mine, other = getattr(plain.processor, part), getattr(theirs, part)
        assert (type(mine), mine.to_json_string()) == (type(other), other.to_json_string())
    assert plain.processor.chat_template == theirs.chat_template


@pytest.mark.parametrize("kind", ["Qwen2_5_VLImageProcessorFast", "Qwen2VLImageProcessorFast", None])
def test_older_names_of_the_picture_processor_are_known(kind, plain, tmp_path):
    folder = write(MINI, tmp_path / "other", FIRST)
    change(folder / "preprocessor_config.json", image_processor_type=kind, processor_class=None)
    assert type(load(folder).processor.image_processor) is type(plain.processor.image_processor)


@pytest.mark.parametrize("leftovers", LEFTOVERS)
def test_one_warning_names_what_is_not_used(leftovers, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(write(MINI, tmp_path / "other", Layout(leftovers=leftovers)))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (leftovers != "none")
    for line in said:
        assert line.startswith(str(tmp_path))
        assert len(line.splitlines()) == 1
        assert len(line) <= 300
        settings = "5 settings of config.json (decoder, encoder, decoders …)"
        assert (settings in line) == (leftovers in ("config", "both"))
        assert ("3 weights (decoder.layer.0." in line) == (leftovers in ("weights", "both"))


@pytest.mark.parametrize(
    "values",
    [
        {"decoder_config": {"a": 1}},
        {"generation_config": {"temperature": 1e-6}},
        {"text_encoder": {"model_type": "t5"}, "generator": {"model_type": "gpt2"}},
        {"encoder": "bert-base", "decoder": 3},
        {"is_decoder": False, "heads": [{"name": "mask"}]},
    ],
    ids=str,
)
def test_settings_of_other_parts_are_no_fault(values, plain, tmp_path):
    folder = write(MINI, tmp_path / "other", Layout())
    change(folder / "config.json", **values)
    config = load(folder).network.config
    assert config.get_text_config().to_dict() == plain.network.config.text_config.to_dict()


def test_each_missing_weight_is_refused_and_named_with_the_leftovers(tmp_path):
    folder = write(MINI, tmp_path / "other", Layout(leftovers="weights"))
    weights = load_file(folder / "model.safetensors")
    for name in weights.keys() - DECODER_WEIGHTS.keys():
        rest = {other: tensor for other, tensor in weights.items() if other != name}
        save_file(rest, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError) as refusal:
            checked(folder)
        assert f"1 missing keys ({new_name(name)}) and 3 unexpected keys (decoder.layer.0." in str(
            refusal.value
        )


def _renamed(folder: Path, rename) -> Path:
    weights = load_file(folder / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (lambda name: f"module.{name}", r"68 missing keys .*begin with 'module\.', save the model inside"),
        (lambda name: f"base_model.model.{name}", r"68 missing keys .*begin with 'base_model\."),
        (lambda name: name.replace("blocks.1.", "blocks.7."), r"12 missing .* and 12 unexpected keys"),
        (
            lambda name: name.replace("q_proj.bias", "q_proj.bais"),
            r"3 missing .* and 3 unexpected .*q_proj.bais",
        ),
        (
            lambda name: name.replace("layers.0.", "decoder.0."),
            r"12 missing .* and 12 unexpected .*decoder.0",
        ),
    ],
)
def test_a_leftover_is_never_a_misnamed_weight(rename, says, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        load(_renamed(write(MINI, tmp_path / "other", Layout()), rename))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "1 unexpected keys .*lora_A"),
        ("visual.blocks.0.attn.extra.weight", "1 unexpected keys .*extra"),
        ("model.visual.merger.ln_q.weight", "1 weights under two names .*visual.merger.ln_q"),
    ],
)
def test_what_lies_within_the_network_is_no_leftover(more, says, tmp_path):
    folder = write(MINI, tmp_path / "other", Layout())
    weights = load_file(folder / "model.safetensors") | {more: torch.zeros(128)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=says):
        load(folder)


def test_frequencies_that_older_releases_saved_are_no_fault(tmp_path):
    folder = write(MINI, tmp_path / "other", Layout())
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}
    save_file(load_file(folder / "model.safetensors") | more, folder / "model.safetensors", {"format": "pt"})
    assert load(folder).dim == 128


@pytest.mark.parametrize("layout", [Layout(), FIRST, Layout("both", processor="tokenizer")], ids=str)
@pytest.mark.parametrize("tokenizer", ["TokenizersBackend", "OwnTokenizer"])
def test_code_of_a_checkpoint_neither_asks_nor_runs(layout, tokenizer, tmp_path, monkeypatch):
    folder = write(MINI, tmp_path / "other", layout)
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    kinds = ("Config", "Model", "ModelForImageTextToText", "Processor", "ImageProcessor")
    code = {f"Auto{kind}": "code.Own" for kind in kinds} | {"AutoTokenizer": ["code.Own", None]}
    for file in folder.glob("*config.json"):
        change(file, auto_map=code, processor_class=None)
    change(folder / "tokenizer_config.json", tokenizer_class=tokenizer)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    load(folder)
    assert not ran.exists()


def test_a_shard_that_no_index_names_is_not_read(tmp_path):
    folder = write(MINI, tmp_path / "other", FIRST)
    shutil.copy(MINI / "decoders.safetensors", folder)
    assert load(folder).dim == 128
    assert "decoders.safetensors" not in read(folder / "model.safetensors.index.json")["weight_map"].values()
