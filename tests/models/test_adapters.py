"""LoRA adapters: whichever release of transformers named their weights, merged alike; what is no adapter of
the base is refused in one line.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from coral_lab import load
from coral_lab.errors import CheckpointError
from tests.models.layouts import change

peft = pytest.importorskip("peft")

BASE = "mini-base"


def older(name: str) -> str:
    """What an adapter's weight was called up to transformers 4.51."""
    name = name.replace("base_model.model.model.language_model.", "base_model.model.model.", 1)
    return name.replace("base_model.model.model.visual.", "base_model.model.visual.", 1)


def adapter(folder, **settings):
    """A LoRA adapter on mini-base that changes what it is on, by the names of today."""
    torch.manual_seed(0)
    model = peft.get_peft_model(load(BASE).network, peft.LoraConfig(r=2, **settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    change(folder / "adapter_config.json", base_model_name_or_path=BASE)
    return folder


def by_older_names(folder, other, **settings):
    """The same adapter as older releases wrote it."""
    shutil.copytree(folder, other)
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {older(name): tensor for name, tensor in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, other / "adapter_model.safetensors")
    change(other / "adapter_config.json", **settings)
    return other


KINDS = [
    pytest.param({"target_modules": ["q_proj", "v_proj"]}, {}, id="text"),
    pytest.param({"target_modules": ["qkv", "gate_proj"], "use_rslora": True}, {}, id="vision and text"),
    pytest.param({"target_modules": "all-linear"}, {}, id="all"),
    pytest.param({"target_modules": ["q_proj", "up_proj"], "use_dora": True}, {}, id="DoRA"),
    pytest.param({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, {}, id="saved whole"),
    pytest.param(
        {"target_modules": ".*language_model.*(down_proj|gate_proj|up_proj|q_proj)$"},
        {"target_modules": "(.*(model).*(down_proj|gate_proj|up_proj|q_proj).*$|.*(custom_text_proj).*$)"},
        id="colpali",  # today's names of the vision tower's modules match too
    ),
    pytest.param(
        {
            "target_modules": ["model.language_model.layers.0.self_attn.q_proj", "layers.2.mlp.up_proj"],
            "alpha_pattern": {"model.language_model.layers.0.self_attn.q_proj": 7},
            "rank_pattern": {"up_proj": 3},
        },
        {
            "target_modules": ["model.layers.0.self_attn.q_proj", "layers.2.mlp.up_proj"],
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 7},
        },
        id="whole names",
    ),
]


@pytest.mark.parametrize(("settings", "written"), KINDS)
def test_older_names_merge_as_todays(settings, written, tmp_path):
    new = adapter(tmp_path / "new", **settings)
    mine = load(by_older_names(new, tmp_path / "old", **written)).network.state_dict()
    theirs, base = load(new).network.state_dict(), load(BASE).network.state_dict()
    assert mine.keys() == theirs.keys() == base.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    changed = [name for name in base if not torch.equal(mine[name], base[name])]
    assert 2 <= len(changed) <= len(base) // 2


@pytest.mark.parametrize("settings", [kind.values[0] for kind in KINDS], ids=[kind.id for kind in KINDS])
def test_merged_as_peft_merges(settings, tmp_path):
    mine = load(adapter(tmp_path / "new", **settings)).network.state_dict()
    model = peft.PeftModel.from_pretrained(load(BASE).network, tmp_path / "new", local_files_only=True)
    theirs = model.merge_and_unload().state_dict()
    for name in mine.keys() - {"lm_head.weight"}:  # tied to what "saved whole" replaces
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-6)


@pytest.fixture
def small(tmp_path):
    return adapter(tmp_path / "new", target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda file: change(file, peft_type="LOHA"), "adapter_config.json has peft_type 'LOHA'; only LORA"),
        (lambda file: change(file, peft_type=None), "has peft_type None; only LORA is merged"),
        (lambda file: change(file, base_model_name_or_path=None), "names no base model, but None; set"),
        (lambda file: change(file, base_model_name_or_path=["a"]), "names no base model, but "),
        (lambda file: change(file, base_model_name_or_path="no-such"), "'no-such' is no folder, no hub id"),
        (lambda file: file.write_text("[]"), "is a list, not an object"),
        (lambda file: file.write_text("{"), "is no JSON"),
        (lambda file: file.write_text("version https://git-lfs.github.com"), "is a git-lfs pointer"),
        (lambda file: change(file, r="two"), "has r 'two', wanted a positive number; save"),
        (
            lambda file: change(file, r=3),
            r"says rank 3, and lora_A and lora_B are \(2, 128\) and \(128, 2\) in model.*q_proj",
        ),
        (
            lambda file: change(file, target_modules=["no_such"]),
            "3 adapter weights do not fit its base .*q_proj",
        ),
        (lambda file: change(file, target_modules=["q_proj", "v_proj"]), "3 adapter weights .*v_proj"),
        (lambda file: change(file, target_modules=[3]), "has target_modules '.3.', wanted names"),
        (lambda file: change(file, modules_to_save="q"), "has modules_to_save 'q', wanted names"),
        (lambda file: change(file, r=10**8), "says rank 100000000, and lora_A and lora_B are"),
        (
            lambda file: change(file, rank_pattern={"q_proj": 10**8}),
            "says rank 100000000, and lora_A and lora_B",
        ),
        (lambda file: change(file, rank_pattern={"(a+)+$": 2}), "has rank_pattern .*wanted names of layers"),
        (lambda file: change(file, alpha_pattern=[1]), "has alpha_pattern '.1.', wanted names and numbers"),
        (
            lambda file: change(file, alpha_pattern={"q_proj": "x"}),
            "has alpha_pattern 'x', wanted a positive",
        ),
        (
            lambda file: change(file, lora_alpha=float("inf")),
            "has lora_alpha 'inf', wanted a positive number",
        ),
        (lambda file: change(file, use_dora=True), "use_dora, and .* has no 128 magnitudes of model.*q_proj"),
        (lambda file: change(file, use_dora="yes"), "has use_dora 'yes', wanted true or false"),
        (lambda file: change(file, layer_replication=[[0, 9]]), "sets layer_replication, and only LoRA"),
        (lambda file: change(file, bias="all"), "has bias 'all', wanted 'none'"),
        (
            lambda file: change(file, init_lora_weights="pissa"),
            "has init_lora_weights 'pissa', which changes",
        ),
        (lambda file: change(file, use_rslora="yes"), "has use_rslora 'yes', wanted true or false"),
    ],
)
def test_what_is_no_lora_adapter_is_refused_in_one_line(small, break_it, says):
    break_it(small / "adapter_config.json")
    with pytest.raises(CheckpointError, match=says) as refusal:
        load(small)
    assert len(str(refusal.value)) <= 300
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("rename", [str, older])
@pytest.mark.parametrize(
    "more", ["custom_text_proj.weight", "model.language_model.layers.9.self_attn.q_proj"]
)
def test_what_the_base_lacks_is_named(small, rename, more):
    file = small / "adapter_model.safetensors"
    weights = load_file(file) | {f"base_model.model.{more}": torch.zeros(2)}
    save_file({rename(name): tensor for name, tensor in weights.items()}, file)
    with pytest.raises(
        CheckpointError, match=r"1 adapter weights do not fit its base \(.*; use the base it"
    ) as no:
        load(small)
    assert more.rpartition(".")[0].replace("language_model.", "") in str(no.value).replace(
        "language_model.", ""
    )


def test_two_adapters_of_one_layer_are_refused(small):
    file = small / "adapter_model.safetensors"
    weights = load_file(file)
    save_file(weights | {older(name): tensor.clone() for name, tensor in weights.items()}, file)
    with pytest.raises(CheckpointError, match="6 adapter weights do not fit its base"):
        load(small)


@pytest.mark.parametrize("content", [None, b"", b"not weights", b"\xff" * 200])
def test_weights_that_are_none_are_refused_before_the_base_is_read(small, content, monkeypatch):
    from coral_lab.models import loading

    monkeypatch.setattr(loading, "checked", lambda _: pytest.fail("the base was read"))
    file = small / "adapter_model.safetensors"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"adapter_model.safetensors (is missing; save|could not be loaded)"
    ):
        load(small)


def test_an_adapter_with_its_tokenizer_takes_the_pictures_from_its_base(small):
    plain = load(small)
    (small / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    found = load(small)
    assert found.processor.chat_template == plain.processor.chat_template
