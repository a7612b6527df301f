"""Checkpoints and adapters that strangers might send."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from coral_lab import load
from tests.hostile.case import WORKS, Case
from tests.models.layouts import Layout, read, write, write_json

MINI = Path(__file__).parents[2] / "data/coral-mini"
Break = Callable[[Path], object]
TODAYS = Layout()


def _checkpoint(break_it: Break, layout: Layout = TODAYS) -> Break:
    return lambda folder: break_it(write(MINI, folder / "mini", layout))


def _load(folder: Path) -> None:
    load(folder / "mini", device="cpu")


def _set(name: str, *parts: str, **values: object) -> Break:
    def break_it(folder: Path) -> None:
        content = part = read(folder / name)
        for inner in parts:
            part = part[inner]
        part.update(values)
        write_json(folder / name, content)

    return break_it


def _text(name: str, content: str) -> Break:
    return lambda folder: (folder / name).write_text(content)


def _code(*names: str) -> Break:
    """Code that would leave a mark, named by those files."""

    def break_it(folder: Path) -> None:
        (folder / "own.py").write_text(f"open({str(folder.parent / 'marks')!r}, 'w').write('ran')\n")
        kinds = ("Config", "ModelForImageTextToText", "Processor", "ImageProcessor", "VideoProcessor")
        code = {f"Auto{kind}": "own.Own" for kind in kinds} | {"AutoTokenizer": ["own.Own", "own.Own"]}
        for name in names:
            _set(name, auto_map=code)(folder)

    return break_it


class _Marks:
    def __init__(self, file: str):
        self.file = file

    def __reduce__(self) -> tuple:
        return open, (self.file, "w")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": _Marks(str(folder.parent / "marks"))}, folder / "pytorch_model.bin")


def _linked(name: str, target: str) -> Break:
    def break_it(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return break_it


def _linked_out(name: str) -> Break:
    """The file itself, moved out, and a link to it."""

    def break_it(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return break_it


def _pipe(name: str) -> Break:
    def break_it(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return break_it


def _sparse(name: str, size: int) -> Break:
    return lambda folder: os.truncate(folder / name, size)


def _header(size: int, content: bytes) -> Break:
    """Weights whose header claims a length, with that many bytes in the file, most of them nothing."""

    def break_it(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + content)
        os.truncate(folder / "model.safetensors", 8 + size)

    return break_it


def _much(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def _tokenizer(**parts: object) -> Break:
    return _set("tokenizer.json", **parts)


def _split(pattern: str) -> dict:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]}


def _replacement(text: str) -> dict:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": text}


def _without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tekken.json")


def _template(text: str) -> Break:
    return _text("chat_template.jinja", text)


INDEX = "model.safetensors.index.json"
SHARDS = Layout(shards=3)
A_LOT = 10**8
EACH = "{% for a in messages[0].content[1].text %}"
GROWING = "{% set x = 'abcdefgh' %}" + "{% set x = x + x %}" * 60 + "{{ x }}"

CHECKPOINTS: dict[str, tuple[Break, str]] = {
    "code in a config": (_checkpoint(_code("config.json")), WORKS),
    "code in a tokenizer": (_checkpoint(_code("tokenizer_config.json")), WORKS),
    "code in a processor": (_checkpoint(_code("processor_config.json", "config.json")), WORKS),
    "pickled weights": (_checkpoint(_pickled), "has no *.safetensors"),
    "an index of pickles": (
        _checkpoint(_set(INDEX, weight_map={"a": "a.bin"}), SHARDS),
        "which *.safetensors",
    ),
    "an index that leads up": (
        _checkpoint(_set(INDEX, weight_map={"a": "../a.safetensors"}), SHARDS),
        "which *.safetensors",
    ),
    "an index that leads to the root": (
        _checkpoint(_set(INDEX, weight_map={"a": "/etc/a.safetensors"}), SHARDS),
        "which *.safetensors",
    ),
    "a config that names other weights": (
        _checkpoint(_set("config.json", transformers_weights="../../a.safetensors")),
        WORKS,
    ),
    "attention from the hub": (
        _checkpoint(_set("config.json", attn_implementation="kernels-community/flash-attn")),
        WORKS,
    ),
    "attention from the hub, in private": (
        _checkpoint(_set("config.json", "text_config", _attn_implementation_internal="evil/kernel")),
        WORKS,
    ),
    "experts from the hub": (
        _checkpoint(_set("config.json", _experts_implementation_internal="evil/kernel", use_kernels=True)),
        WORKS,
    ),
    "a config that is a link": (_checkpoint(_linked_out("config.json")), "leads out of the folder"),
    "weights that are a link": (_checkpoint(_linked_out("model.safetensors")), "leads out of the folder"),
    "a template that is a link": (_checkpoint(_linked_out("chat_template.jinja")), "leads out of the folder"),
    "a link to itself": (_checkpoint(_linked("config.json", "config.json")), "config.json"),
    "a link to no end of zeros": (
        _checkpoint(_linked("config.json", "/dev/zero")),
        "leads out of the folder",
    ),
    "a pipe for a config": (_checkpoint(_pipe("config.json")), "no file but a pipe"),
    "a pipe for a tokenizer": (_checkpoint(_pipe("tokenizer.json")), "no file but a pipe"),
    "a pipe for weights": (_checkpoint(_pipe("model.safetensors")), "no file but a pipe"),
    "a config of 5 GB": (
        _checkpoint(_sparse("config.json", 5 * 10**9)),
        "has 5,000,000,000 bytes, more than",
    ),
    "a template of 5 GB": (_checkpoint(_sparse("chat_template.jinja", 5 * 10**9)), "has 5,000,000,000 bytes"),
    "a tokenizer of 5 GB": (_checkpoint(_sparse("tokenizer.json", 5 * 10**9)), "has 5,000,000,000 bytes"),
    "a tokenizer of many lists": (
        _checkpoint(_text("tokenizer.json", "[" + "[]," * 10**7 + "0]")),
        "values, more",
    ),
    "a config nested 100 deep": (
        _checkpoint(_set("config.json", a=json.loads("[" * 100 + "]" * 100))),
        "is nested more than 64 deep",
    ),
    "a config nested without end": (_checkpoint(_text("config.json", "[" * 10**6)), "config.json is no JSON"),
    "a vocabulary that is not there": (
        _checkpoint(_set("config.json", "text_config", vocab_size=A_LOT)),
        "model.embed_tokens.weight 2048×128, not 100000000×128",
    ),
    "layers that are not there": (
        _checkpoint(_set("config.json", "text_config", num_hidden_layers=A_LOT)),
        "there are 68 weights in all",
    ),
    "heads that are very wide": (
        _checkpoint(_set("config.json", "text_config", head_dim=A_LOT * 10)),
        "does not fit Qwen2.5-VL",
    ),
    "frequencies without end": (
        _checkpoint(_set("config.json", "text_config", "rope_parameters", partial_rotary_factor=1e8)),
        WORKS,
    ),
    "a tower that is very wide": (
        _checkpoint(_set("config.json", "vision_config", hidden_size=A_LOT * 16)),
        "mini",
    ),
    "a header of 5 GB": (_checkpoint(_header(5 * 10**9, b"{")), "its header has 5,000,000,000 bytes"),
    "a header of spaces": (_checkpoint(_header(2**23, b"{" + b" " * 1000)), "could not be loaded"),
    "weights beyond their file": (_checkpoint(_much), "could not be loaded"),
    "pictures blown up": (
        _checkpoint(
            _set(
                "processor_config.json",
                "image_processor",
                size={"shortest_edge": 10**10, "longest_edge": 10**10},
            )
        ),
        "pictures are to have from 10000000000",
    ),
    "a normalizer that expands": (
        _checkpoint(_tokenizer(normalizer=_replacement("b" * 10**6))),
        "its normalizer",
    ),
    "a normalizer in a sequence": (
        _checkpoint(_tokenizer(normalizer={"type": "Sequence", "normalizers": [_replacement("aa")] * 60})),
        "its normalizer is 'Sequence'",
    ),
    "a pattern that hangs": (_checkpoint(_tokenizer(pre_tokenizer=_split("(a+)+$"))), "its pre_tokenizer is"),
    "padding to a billion": (
        _checkpoint(
            _tokenizer(
                padding={
                    "strategy": {"Fixed": 10**9},
                    "direction": "Right",
                    "pad_id": 0,
                    "pad_to_multiple_of": None,
                    "pad_type_id": 0,
                    "pad_token": "a",
                }
            )
        ),
        "its padding is",
    ),
    "a thousand texts for one": (
        _checkpoint(
            _tokenizer(
                post_processor={
                    "type": "TemplateProcessing",
                    "special_tokens": {},
                    "pair": [],
                    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 10**4,
                }
            )
        ),
        "its post_processor is 'TemplateProcessing'",
    ),
    "a tokenizer of another kind": (
        _checkpoint(_tokenizer(model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]})),
        "its model is 'Unigram', wanted BPE",
    ),
    "a token of a million letters": (
        _checkpoint(_set("tokenizer.json", "model", "vocab", **{"a" * 10**6: 9})),
        "has 1,000,000 characters, more than 512",
    ),
    "a token beyond the network": (
        _checkpoint(_set("tokenizer.json", "model", "vocab", zz=10**9)),
        "below the",
    ),
    "ten thousand added tokens": (
        _checkpoint(_set("tokenizer_config.json", extra_special_tokens=[f"<{i}>" for i in range(10_000)])),
        "it adds 10,000 tokens, more than 4,096",
    ),
    "a tokenizer of Mistral's": (_checkpoint(_without_tokenizer), "tekken.json and no tokenizer.json"),
    "a tokenizer's other file": (
        _checkpoint(_set("tokenizer_config.json", fast_tokenizer_files=["../../etc/tokenizer.9.json"])),
        "sets fast_tokenizer_files",
    ),
    "a template that counts": (
        _checkpoint(_template("{% for i in range(10**9) %}x{% endfor %}")),
        "has range()",
    ),
    "a template that multiplies": (_checkpoint(_template("{{ 'a' * 10**10 }}")), "has mul in line 1"),
    "a template that grows": (_checkpoint(_template(GROWING)), "takes more characters than"),
    "a template that pads": (_checkpoint(_template("{{ 'a'.ljust(10000000000) }}")), "it calls ljust"),
    "a template that formats": (_checkpoint(_template("{{ '%9999999999d' % 1 }}")), "% is for whole numbers"),
    "a template of loops": (_checkpoint(_template(EACH * 5 + "{% endfor %}" * 5)), "loops more than 4 deep"),
    "a template that calls itself": (
        _checkpoint(_template("{% macro m(a) %}{{ m(a) }}{{ m(a) }}{% endmacro %}{{ m(1) }}")),
        "has no working processor",
    ),
    "a template that includes": (_checkpoint(_template("{% include '/etc/passwd' %}")), "has include"),
    "a template that looks for classes": (
        _checkpoint(_template("{{ ''.__class__.__mro__[1].__subclasses__() }}")),
        "unsafe",
    ),
    "a template in a tokenizer": (
        _checkpoint(
            _set("tokenizer_config.json", chat_template="{{ 'a' * 10**10 }}"), Layout(processor="tokenizer")
        ),
        "has mul in line 1",
    ),
}


def _adapter(break_it: Break) -> Break:
    """A small adapter on mini-base, and then what is done to it."""

    def make(folder: Path) -> None:
        at = folder / "mini"
        at.mkdir()
        name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora"
        save_file(
            {f"{name}_A.weight": torch.ones(2, 128), f"{name}_B.weight": torch.ones(128, 2)},
            at / "adapter_model.safetensors",
        )
        config = {"peft_type": "LORA", "base_model_name_or_path": "mini-base", "r": 2, "lora_alpha": 4}
        write_json(at / "adapter_config.json", config | {"target_modules": ".*layers.0.*q_proj"})
        break_it(at)

    return make


def _own_base(folder: Path) -> None:
    other = folder.parent / "base"
    shutil.copytree(folder, other)
    _set("adapter_config.json", base_model_name_or_path=str(other))(folder)


def _whole_and_adapter(folder: Path) -> None:
    """A whole checkpoint with an adapter in it, that is its own base and names one on the hub."""
    other = write(MINI, folder.parent / "base", Layout())
    shutil.copy(folder / "adapter_config.json", other)
    _set("adapter_config.json", base_model_name_or_path="evil/model")(other)
    _set("adapter_config.json", base_model_name_or_path=str(other))(folder)


def _cut_to_one(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict([weights.popitem()]), folder / "adapter_model.safetensors")


_CONFIG = "adapter_config.json"
ADAPTERS: dict[str, tuple[Break, str]] = {
    "an adapter": (_adapter(lambda _: None), WORKS),
    "a rank that is not there": (_adapter(_set(_CONFIG, r=A_LOT)), "says rank 100000000, and lora_A"),
    "a rank by pattern": (_adapter(_set(_CONFIG, rank_pattern={"q_proj": A_LOT})), "says rank 100000000"),
    "half an adapter": (_adapter(_cut_to_one), "no lora_A with its lora_B"),
    "a pattern that never ends": (
        _adapter(_set(_CONFIG, target_modules="(.*.*.*.*.*.*.*.*.*)*(a+)+$")),
        WORKS,
    ),
    "a rank pattern that never ends": (_adapter(_set(_CONFIG, rank_pattern={"(a+)+$": 2})), "rank_pattern"),
    "an adapter's class": (
        _adapter(_set(_CONFIG, auto_mapping={"base_model_class": "Popen", "parent_library": "subprocess"})),
        WORKS,
    ),
    "an adapter's megatron": (
        _adapter(_set(_CONFIG, megatron_config={"a": 1}, megatron_core="antigravity")),
        "sets megatron_config",
    ),
    "a base on the hub": (
        _adapter(_set(_CONFIG, base_model_name_or_path="evil/model")),
        "download it first: coral-lab download --model evil/model",
    ),
    "a base that is an adapter": (_adapter(_own_base), "is itself an adapter"),
    "a base with an adapter": (_adapter(_whole_and_adapter), "is itself an adapter"),
    "adapter weights that are a link": (
        _adapter(_linked_out("adapter_model.safetensors")),
        "leads out of the",
    ),
    "adapter settings that are a link": (_adapter(_linked_out(_CONFIG)), "leads out of the folder"),
    "an adapter of layers again": (_adapter(_set(_CONFIG, layer_replication=[[0, 9**9]])), "sets layer_repl"),
}

CASES = {name: Case(make, _load, says) for name, (make, says) in (CHECKPOINTS | ADAPTERS).items()}
