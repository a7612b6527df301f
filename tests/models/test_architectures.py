"""Checkpoints of each architecture load, and give transformers' own embeddings; what is no whole one is
refused.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from qwen_vl_utils import process_vision_info
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2VLImageProcessor,
)

from coral_lab import Condition, Product, Query, Settings, encode, evaluate, load
from coral_lab.errors import CheckpointError
from coral_lab.models import vision as vision_module
from coral_lab.models.architectures import (
    ARCHITECTURES,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_VL,
    Architecture,
    architecture_of,
)
from coral_lab.models.checkpoint_files import checked
from coral_lab.models.forward import forward, tokenize
from coral_lab.models.inputs import prompt
from coral_lab.models.layers import AtLayer
from coral_lab.models.pixels import key
from coral_lab.models.prefixes import last_states
from coral_lab.models.saving import save
from coral_lab.models.vision import Vision, vision_of
from coral_lab.prompts import messages
from tests.conftest import noise
from tests.models.layouts import change, read

MINI = Path(__file__).parents[2] / "data/coral-mini"
ALL = pytest.mark.parametrize(
    "architecture", ARCHITECTURES.values(), ids=lambda architecture: architecture.title
)
OTHERS = pytest.mark.parametrize(
    "architecture", [QWEN2_VL, QWEN3_VL], ids=lambda architecture: architecture.title
)

WHOLE = {"image_token_id": 6, "video_token_id": 7, "vision_start_token_id": 3, "vision_end_token_id": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
TEXT = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_parameters": ROPE,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {"depth": 3, "hidden_size": 32, "num_heads": 2}
PARTS = {
    "Qwen2.5-VL": (
        {},
        {"intermediate_size": 48, "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [1]},
    ),
    "Qwen2-VL": ({}, {"embed_dim": 16, "mlp_ratio": 2}),
    "Qwen3-VL": (
        {"head_dim": 8, "rope_parameters": ROPE | {"mrope_interleaved": True}},
        {
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 2],
        },
    ),
}


def made(architecture: Architecture, folder: Path) -> Path:
    """A whole checkpoint of random weights, saved by transformers alone."""
    text, vision = PARTS[architecture.title]
    config = architecture.kinds[0](
        text_config=TEXT | text, vision_config=VISION | vision, tie_word_embeddings=True, **WHOLE
    )
    torch.manual_seed(0)
    network = architecture.network(config)
    with torch.no_grad():  # so that different inputs give clearly different embeddings
        for parameter in network.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    side = 2 * config.vision_config.patch_size
    pictures = {"patch_size": side // 2, "size": {"shortest_edge": side**2, "longest_edge": 9 * side**2}}
    if architecture is QWEN3_VL:
        pictures |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = architecture.processor(
        Qwen2VLImageProcessor(**pictures),
        AutoTokenizer.from_pretrained(MINI),
        architecture.video_processor(),
        chat_template=(MINI / "chat_template.jinja").read_text() + "{# its own #}",
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("architectures")
    return {title: made(architecture, place / title) for title, architecture in by_title().items()}


def by_title() -> dict[str, Architecture]:
    return {architecture.title: architecture for architecture in ARCHITECTURES.values()}


@pytest.fixture(scope="session")
def models(folders) -> dict:
    return {title: load(folder, quick=False) for title, folder in folders.items()}


@pytest.fixture
def model(models, architecture):
    return models[architecture.title]


@pytest.fixture
def copy(folders, architecture, tmp_path) -> Path:
    """A checkpoint that a test may break."""
    return shutil.copytree(folders[architecture.title], tmp_path / "copy")


SIZES = [(56, 56), (224, 112), (100, 300), (33, 84), (140, 224)]
PRODUCTS = [
    Product(f"p{i}", f"title {i} " + "long " * i, noise(*size, seed=i), "bag") for i, size in enumerate(SIZES)
]
QUERIES = [
    Query(f"q{i}", "bag", tuple(Condition("brand", product) for product in group), f" and {i} straps.")
    for i, group in enumerate([PRODUCTS[:1], [], PRODUCTS[1:4]])
]
ITEMS = [*QUERIES, PRODUCTS[4], replace(PRODUCTS[0], image=None)]


def by_the_card(folder: Path, architecture: Architecture, conversation: list[dict]) -> np.ndarray:
    """transformers' own, as the architectures' cards have it: one conversation, its last token, L2."""
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(network) is architecture.network
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    resized = {"do_resize": False} if architecture is QWEN3_VL else {}
    images, _ = process_vision_info(conversation, image_patch_size=16 if architecture is QWEN3_VL else 14)
    inputs = processor(text=[text], images=images, return_tensors="pt", **resized)
    with torch.inference_mode():
        states = network.model(**inputs).last_hidden_state[:, -1]
    return torch.nn.functional.normalize(states, dim=-1).numpy()


@ALL
def test_embeddings_are_transformers_own_in_any_order_and_batches(model, folders, architecture):
    expected = [by_the_card(folders[architecture.title], architecture, messages(item)) for item in ITEMS]
    expected = np.concatenate(expected)
    for batch_size in (1, 2, 5):
        for order in ([0, 1, 2, 3, 4], [2, 4, 0, 3, 1]):
            found = encode(model, [ITEMS[i] for i in order], settings=Settings(batch_size=batch_size))
            np.testing.assert_allclose(found, expected[order], atol=1e-5)
    assert min(np.abs(a - b).max() for i, a in enumerate(expected) for b in expected[:i]) > 1e-2


@ALL
def test_a_folder_says_which_family_it_is(model, architecture):
    assert model.architecture is architecture
    assert (model.dim, model.longest, model.attention) == (32, 1024, "sdpa")
    assert not model.quick


@ALL
def test_limits_of_a_picture_are_the_cards(model, folders, architecture):
    shown = {"type": "image", "image": noise(150, 120, seed=5)}
    for limits in (
        {"max_pixels": 5000},
        {"min_pixels": 30_000},
        {"resized_height": 64, "resized_width": 160},
    ):
        chat = [{"role": "user", "content": [shown | limits, {"type": "text", "text": "a bag"}]}]
        card = by_the_card(folders[architecture.title], architecture, chat)
        np.testing.assert_allclose(encode(model, chat), card, atol=1e-5)


@ALL
def test_a_pool_is_searched(model):
    queries = [replace(query, positives=("p4",)) for query in QUERIES]
    found = evaluate(model, queries, PRODUCTS)
    assert len(found.queries) == len(QUERIES)


def inputs_of(model, items):
    prompts = [prompt(model, item) for item in items]
    vision = vision_of(model, prompts)
    return prompts, vision, tokenize(model, prompts, vision)


def by_transformers(model, prompts, batch):
    """The network's own states, from pixels on."""
    shown = [(picture, own.name) for own in prompts for picture in own.pictures]
    pixels = model.pixels(shown)
    values = torch.cat([pixels[key(picture)][0] for picture, _ in shown])
    inputs = {name: value for name, value in batch.items() if name != "answer_lengths"}
    return model.network.model(**inputs, pixel_values=values).last_hidden_state


def gradients_of(model, states, mask):
    """Of a weighing of the states, the padding left out."""
    model.network.zero_grad()
    torch.manual_seed(0)
    (states * mask[..., None] * torch.randn_like(states)).sum().backward()
    found = {name: p.grad for name, p in model.network.named_parameters() if p.grad is not None}
    model.network.zero_grad()
    return found


@ALL
def test_states_and_gradients_are_transformers_own(model, architecture):
    prompts, vision, batch = inputs_of(model, [QUERIES[2], QUERIES[1], QUERIES[0]])
    ours, theirs = forward(model, prompts, vision, batch), by_transformers(model, prompts, batch)
    mask = batch["attention_mask"]
    torch.testing.assert_close(ours * mask[..., None], theirs * mask[..., None], atol=1e-5, rtol=1e-5)
    found, expected = gradients_of(model, ours, mask), gradients_of(model, theirs, mask)
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() / largest < 1e-5, name
    assert found["model.visual.patch_embed.proj.weight"].abs().max() / largest > 1e-4
    deepstack = [name for name in found if "deepstack_merger_list" in name and "weight" in name]
    assert len(deepstack) == (6 if architecture is QWEN3_VL else 0)
    assert all(found[name].abs().max() > 0 for name in deepstack)


def test_features_of_earlier_layers_reach_the_text_model(models):
    model = models["Qwen3-VL"]
    prompts, vision, batch = inputs_of(model, QUERIES[:1])
    (features,), (layers,) = vision.features.values(), vision.deepstack.values()
    assert [layer.shape for layer in layers] == [features.shape] * 2
    whole = forward(model, prompts, vision, batch)
    for changed in ({}, {k: own[::-1] for k, own in vision.deepstack.items()}):
        other = Vision(vision.features, vision.grids, changed)
        assert (forward(model, prompts, other, batch) - whole)[:, -1].abs().max() > 1e-3


@ALL
def test_pictures_are_looked_at_once_and_in_lots(model, architecture, monkeypatch):
    prompts = [prompt(model, item) for item in (QUERIES[2], PRODUCTS[1])]
    whole = vision_of(model, prompts)
    monkeypatch.setattr(vision_module, "CPU_PATCHES", 1)
    lots = vision_of(model, prompts)
    assert list(lots.features) == list(whole.features) == list(lots.grids)
    assert len(whole.features) == 3
    assert list(lots.deepstack) == (list(lots.features) if architecture is QWEN3_VL else [])
    for k, features in whole.features.items():
        torch.testing.assert_close(lots.features[k], features, atol=1e-5, rtol=1e-5)
        for a, b in zip(lots.deepstack.get(k, ()), whole.deepstack.get(k, ()), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@ALL
def test_image_tokens_are_told_from_a_size(model, architecture):
    for picture in (own.image for own in PRODUCTS):
        _, grid = model.pixels([(picture, "it")])[key(picture)]
        assert model.pixels.tokens(picture) == int(grid.prod()) // 4
    assert model.pixels.tokens(noise(300, 300, seed=9)) == (81 if architecture is QWEN3_VL else 9)


@ALL
def test_what_training_asks_for_are_the_last_states(model):
    prompts, vision, _ = inputs_of(model, ITEMS)
    states = torch.nn.functional.normalize(last_states(model, prompts, vision, chunk=2), dim=-1)
    np.testing.assert_allclose(states.detach().numpy(), encode(model, ITEMS), atol=1e-5)


@ALL
def test_a_saved_folder_gives_the_same_embeddings(model, architecture, tmp_path):
    save(model, tmp_path / "again")
    again = load(tmp_path / "again", quick=False)
    np.testing.assert_allclose(encode(again, ITEMS), encode(model, ITEMS), atol=1e-6)
    kind = read(tmp_path / "again/config.json")["model_type"]
    card = (tmp_path / "again/README.md").read_text(encoding="utf-8")
    assert f"interleaved-queries, {kind}, coral]" in card
    assert architecture.network.__name__ in card
    assert read(tmp_path / "again/1_Pooling/config.json")["pooling_mode"] == "lasttoken"


@OTHERS
def test_an_adapter_is_merged_into_its_base(folders, architecture, tmp_path):
    pytest.importorskip("peft")
    from coral_lab.training.lora import add_lora

    learning = load(folders[architecture.title])
    learning = replace(learning, name=str(folders[architecture.title]))
    add_lora(learning, rank=2)
    with torch.no_grad():
        for name, parameter in learning.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save(learning, tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
    merged = load(tmp_path / "adapter")
    np.testing.assert_allclose(encode(merged, ITEMS), encode(learning, ITEMS), atol=1e-5)


@OTHERS
def test_quick_is_for_qwen2_5_vl_alone(folders, models, architecture):
    folder = folders[architecture.title]
    with pytest.raises(
        ValueError, match=rf"is {architecture.title}, and quick .* Qwen2.5-VL only; use quick=False"
    ):
        load(folder, quick=True)
    with pytest.raises(ValueError, match="use quick=False"):
        replace(models[architecture.title], quick=True)
    assert not load(folder).quick


def test_the_family_that_has_a_quick_path_gives_the_same_by_it(models, folders):
    quick = load(folders["Qwen2.5-VL"], quick=True)
    np.testing.assert_allclose(encode(quick, ITEMS), encode(models["Qwen2.5-VL"], ITEMS), atol=1e-5)


def test_another_model_is_of_no_family():
    with pytest.raises(
        ValueError, match=r"LlamaConfig is of no architecture .* Qwen2.5-VL, Qwen2-VL, Qwen3-VL"
    ):
        architecture_of(AutoConfig.for_model("llama"))


# What the hub's own folders look like: Qwen2-VL-2B-Instruct's, and Qwen3-VL-4B-Instruct's.
def flat(config: dict) -> dict:
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "torch_dtype": "bfloat16", "vision_token_id": 5}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    del config["dtype"], text["model_type"], config["vision_config"]["rope_parameters"]
    config["vision_config"] |= {"model_type": "qwen2_vl", "in_chans": 3, "spatial_patch_size": 14}
    return text | config


def nested(config: dict) -> dict:
    text = config["text_config"]
    text["rope_theta"] = text["rope_parameters"].pop("rope_theta")
    text["rope_scaling"] = text.pop("rope_parameters")
    text["dtype"] = "bfloat16"
    del config["dtype"], config["vision_config"]["rope_parameters"]
    config["vision_config"]["model_type"] = "qwen3_vl"
    return config


@pytest.mark.parametrize(("architecture", "older"), [(QWEN2_VL, flat), (QWEN3_VL, nested)], ids=["2", "3"])
def test_folders_as_older_releases_wrote_them_load(copy, model, older):
    (copy / "config.json").write_text(json.dumps(older(read(copy / "config.json"))))
    settings = read(copy / "processor_config.json")
    (copy / "processor_config.json").unlink()
    pictures = settings["image_processor"] | {"processor_class": settings["processor_class"]}
    (copy / "preprocessor_config.json").write_text(json.dumps(pictures))
    assert checked(copy).dtype == torch.bfloat16
    again = load(copy, dtype="float32")
    np.testing.assert_allclose(encode(again, ITEMS), encode(model, ITEMS), atol=1e-6)


@OTHERS
def test_weights_that_are_missing_more_or_misshapen_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    part = next(name for name in weights if name.endswith("blocks.1.attn.qkv.weight"))

    def refuses(changed: dict, says: str) -> None:
        save_file(changed, copy / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=says):
            load(copy)

    refuses(
        {name: own for name, own in weights.items() if name != part}, r"1 missing keys \(.*blocks.1.attn.qkv"
    )
    refuses(weights | {part.replace(".1.", ".9."): weights[part].clone()}, r"1 unexpected keys \(.*blocks.9")
    refuses(weights | {part: weights[part][:-1].clone()}, r"1 mismatched keys \(.*qkv.weight \d+×\d+, not ")


BREAKS = {
    "a part of another type": (QWEN2_VL, {"vision_config": {"num_heads": "2"}}, "does not fit Qwen2-VL: "),
    "no division": (QWEN2_VL, {"text_config": {"rope_parameters": None}}, "mrope_section is [16, 24, 24]"),
    "patches of two sides": (QWEN2_VL, {"vision_config": {"patch_size": [14, 14]}}, "does not fit Qwen2-VL"),
    "a million blocks": (QWEN2_VL, {"vision_config": {"depth": 10**9}}, "says depth 1000000000"),
    "a head more": (QWEN3_VL, {"text_config": {"head_dim": 16}}, "mrope_section is [2, 1, 1], wanted three"),
    "default division": (QWEN3_VL, {"text_config": {"rope_parameters": {}}}, "mrope_section is [24, 20, 20]"),
    "a layer beyond": (
        QWEN3_VL,
        {"vision_config": {"deepstack_visual_indexes": [0, 3]}},
        "deepstack_visual_indexes are [0, 3], wanted different layers from 0 to 2",
    ),
    "a layer twice": (
        QWEN3_VL,
        {"vision_config": {"deepstack_visual_indexes": [1, 1]}},
        "are [1, 1], wanted",
    ),
    "a million layers": (
        QWEN3_VL,
        {"vision_config": {"deepstack_visual_indexes": [0] * 10**5}},
        "says deepstack_visual_indexes 100000, and there are",
    ),
    "no square": (
        QWEN3_VL,
        {"vision_config": {"num_position_embeddings": 35}},
        "num_position_embeddings is 35, wanted a square",
    ),
    "wider merging": (
        QWEN3_VL,
        {"vision_config": {"spatial_merge_size": 4}},
        "spatial_merge_size is 4, wanted",
    ),
    "another picture token": (QWEN3_VL, {"image_token_id": 9}, "comes to 0 tokens 9 (image_token_id), not 4"),
}


@pytest.mark.parametrize(("architecture", "changes", "says"), BREAKS.values(), ids=BREAKS)
def test_a_config_that_does_not_fit_is_refused_before_weights_are_read(
    copy, architecture, changes, says, monkeypatch
):
    monkeypatch.setattr(
        architecture.network, "from_pretrained", lambda *_, **__: pytest.fail("weights were read")
    )
    config = read(copy / "config.json")
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        load(copy)
    assert says in str(error.value)
    assert len(str(error.value)) <= 300


@ALL
def test_another_architecture_or_processor_is_refused_in_one_line(copy, architecture):
    change(copy / "processor_config.json", processor_class="LlavaProcessor")
    with pytest.raises(
        CheckpointError, match=rf"LlavaProcessor.*reads {architecture.processor.__name__} only"
    ):
        load(copy)
    change(copy / "config.json", architectures=["Qwen3VLMoeForConditionalGeneration"])
    with pytest.raises(CheckpointError) as error:
        load(copy)
    assert all(name in str(error.value) for name in ARCHITECTURES)
    assert len(str(error.value)) <= 300
    other = QWEN2_VL if architecture is QWEN2_5_VL else QWEN2_5_VL
    change(copy / "config.json", architectures=[other.network.__name__])
    with pytest.raises(CheckpointError):
        load(copy)


@ALL
def test_states_by_layer_are_transformers_own(model):
    prompts, _, batch = inputs_of(model, ITEMS)
    shown = [(picture, own.name) for own in prompts for picture in own.pictures]
    pixels = model.pixels(shown)
    values = torch.cat([pixels[key(picture)][0] for picture, _ in shown])
    inputs = {name: value for name, value in batch.items() if name != "answer_lengths"}
    with torch.inference_mode():
        theirs = model.network.model(**inputs, pixel_values=values, output_hidden_states=True).hidden_states
    expected = torch.stack([torch.nn.functional.normalize(own[:, -1], dim=-1) for own in theirs]).numpy()
    found = encode(model, ITEMS, layer="all", settings=Settings(batch_size=2))
    assert found.shape == (4, len(ITEMS), 32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found[3], encode(model, ITEMS), atol=1e-5)
    assert np.ptp(found[0], axis=0).max() < 1e-6  # the same token for all
    for layer in range(4):
        np.testing.assert_allclose(encode(model, ITEMS, layer=layer), expected[layer], atol=1e-5)


def test_a_layer_that_there_is_not_is_refused(models):
    model = models["Qwen2.5-VL"]
    for layer in (4, -1, "last"):
        with pytest.raises(ValueError, match=r"has 3; use 0 to 3, or 'all'"):
            AtLayer(model, layer)


def test_a_layer_is_a_model_of_its_own(models, tmp_path):
    model = models["Qwen2.5-VL"]
    kept = Settings(store=tmp_path, progress=False)
    read = AtLayer(model, 1)
    found = encode(read, ITEMS, settings=kept)
    np.testing.assert_array_equal(encode(AtLayer(model, 1), ITEMS, settings=kept), found)
    assert np.abs(encode(AtLayer(model, 2), ITEMS, settings=kept) - found).max() > 1e-2
    queries = [replace(query, positives=("p4",)) for query in QUERIES]
    assert evaluate(read, queries, PRODUCTS).model.endswith(", layer 1")
