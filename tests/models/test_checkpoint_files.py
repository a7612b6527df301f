"""Every bad folder is refused before its weights are read, in one line from the folder to the way out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from coral_lab import load
from coral_lab.errors import CheckpointError
from coral_lab.models import checkpoint_files
from coral_lab.models.folder_files import brief, refused
from tests.models.layouts import Layout, change, read, write, write_json

MINI = Path(__file__).parents[2] / "data/coral-mini"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 6659376\n"


@pytest.fixture
def no_weights(monkeypatch):
    """Reading weights is a failure."""
    monkeypatch.setattr(
        Qwen2_5_VLForConditionalGeneration,
        "from_pretrained",
        lambda *_, **__: pytest.fail("weights were read"),
    )


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as error:
        load(folder)
    said = str(error.value)
    assert len(said) <= 300
    assert said.isprintable()
    assert said.startswith((str(folder), "…"))
    return said


def _set(name: str, part: str | None = None, **values: object):
    """A break: values set in a file, or in one part of it."""

    def break_it(folder: Path) -> None:
        content = read(folder / name)
        (content[part] if part else content).update(values)
        write_json(folder / name, content)

    return break_it


def _text(name: str, content: str | bytes):
    def break_it(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return break_it


def _gone(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _whole_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in weights.items()}, folder / "model.safetensors")


BREAKS = {
    "config is a list": (_text("config.json", "[1]"), "config.json is a list, not an object of names"),
    "config is null": (_text("config.json", "null"), "config.json is a NoneType, not an object"),
    "config is no text": (_text("config.json", b"\xff\xfe{}"), "config.json is no JSON"),
    "config is deep": (_text("config.json", "[" * 200_000), "config.json is no JSON"),
    "a number as text": (_set("config.json", "text_config", hidden_size="64"), "'hidden_size' expected int"),
    "a part as a list": (_set("config.json", vision_config=[]), "config.json does not fit Qwen2.5-VL"),
    "no heads": (_set("config.json", "text_config", num_attention_heads=0), "does not fit Qwen2.5-VL"),
    "no such dtype": (_set("config.json", dtype={}), "dtype is {}, wanted float32, bfloat16 or float16"),
    "a long name": (_set("config.json", architectures=["x" * 5000]), "coral_lab reads Qwen2_5_VLFor"),
    "an unknown activation": (_set("config.json", "text_config", hidden_act="no\nsuch"), "does not fit"),
    "a huge vocabulary": (
        _set("config.json", "text_config", vocab_size=10**8),
        "1 mismatched keys (model.embed_tokens.weight 2048×128, not 100000000×128)",
    ),
    "no end of numbers": (_set("config.json", "text_config", vocab_size=10**30), "does not fit Qwen2.5-VL"),
    "wider": (_set("config.json", "text_config", intermediate_size=256), "9 mismatched keys"),
    "a million layers": (
        _set("config.json", "text_config", num_hidden_layers=10**9),
        "there are 68 weights in all",
    ),
    "a million blocks": (_set("config.json", "vision_config", depth=10**9), "says depth 1000000000"),
    "a layer more": (
        _set("config.json", "text_config", num_hidden_layers=4, layer_types=None),
        "12 missing keys",
    ),
    "a layer fewer": (
        _set("config.json", "text_config", num_hidden_layers=2, layer_types=None),
        "12 unexpected",
    ),
    "no rotation": (
        _set("config.json", "text_config", rope_parameters=None),
        "mrope_section is [16, 24, 24]",
    ),
    "no windows": (
        _set("config.json", "vision_config", window_size=0),
        "window_size is 0, wanted a few times 28",
    ),
    "quantised": (_set("config.json", quantization_config={"bits": 4}), "is quantised (quantization_config)"),
    "int8": (_whole_numbers, "model.safetensors holds model.embed_tokens.weight as I8"),
    "cut weights": (_cut, "model.safetensors could not be loaded: "),
    "empty weights": (_text("model.safetensors", ""), "model.safetensors could not be loaded: "),
    "no weights": (_gone("model.safetensors"), "has no *.safetensors; convert its weights"),
    "generation": (_text("generation_config.json", "{"), "generation_config.json is no JSON"),
    "no tokenizer": (_gone("tokenizer.json"), "has no working processor, by its tokenizer"),
    "broken tokenizer": (_text("tokenizer.json", '{"model": '), "tokenizer.json is no JSON"),
    "empty tokenizer": (_text("tokenizer.json", "{}"), "has no working processor, by its tokenizer"),
    "tokenizer's settings": (_text("tokenizer_config.json", "x"), "tokenizer_config.json is no JSON"),
    "no template": (_gone("chat_template.jinja"), "there is no chat template"),
    "broken template": (_text("chat_template.jinja", "{% for %}"), "has no working processor: "),
    "blind template": (_text("chat_template.jinja", "{{ messages[0].role }}"), "has no working processor: "),
    "another processor": (
        _set("processor_config.json", processor_class="LlavaProcessor"),
        "has a LlavaProcessor",
    ),
    "other pictures": (
        _set("processor_config.json", "image_processor", image_processor_type="CLIPImageProcessor"),
        "image_processor_type is 'CLIPImageProcessor', wanted Qwen2VLImageProcessor",
    ),
    "other patches": (_set("processor_config.json", "image_processor", patch_size=16), "config.json says 14"),
    "huge pictures": (
        _set(
            "processor_config.json", "image_processor", size={"shortest_edge": 10**12, "longest_edge": 10**12}
        ),
        "pictures are to have from 1000000000000 to",
    ),
    "no size": (
        _set("processor_config.json", image_processor={"patch_size": 14}),
        "how large pictures may be",
    ),
    "no mean": (_set("processor_config.json", "image_processor", image_mean="grey"), "no working processor"),
    "more tokens": (
        _set("tokenizer_config.json", extra_special_tokens=[f"<more {i}>" for i in range(99)]),
        "the network's to 2047",
    ),
    "another picture token": (
        _set("config.json", image_token_id=9),
        "comes to 0 tokens 9 (image_token_id), not 4",
    ),
    "no pictures' settings": (_gone("processor_config.json"), "preprocessor_config.json is missing"),
}


@pytest.mark.parametrize(("break_it", "says"), BREAKS.values(), ids=BREAKS)
def test_a_bad_folder_is_refused_in_one_line_before_weights_are_read(break_it, says, tmp_path, no_weights):
    folder = write(MINI, tmp_path / "mini", Layout())
    break_it(folder)
    assert says in refusal(folder)


SHARDS = {
    "absent": (_gone("model-00002-of-00003.safetensors"), "lacks 1 of 3 shards (model-00002-of-00003.safe"),
    "no index": (_gone("model.safetensors.index.json"), "model.safetensors.index.json is missing"),
    "a list": (_text("model.safetensors.index.json", "[]"), "index.json is a list"),
    "no map": (_text("model.safetensors.index.json", "{}"), "does not say which *.safetensors beside it"),
    "elsewhere": (_set("model.safetensors.index.json", weight_map={"a": "../b.safetensors"}), "does not say"),
    "pickled": (_set("model.safetensors.index.json", weight_map={"a": "pytorch_model.bin"}), "does not say"),
    "numbers": (_set("model.safetensors.index.json", weight_map={"a": 1}), "does not say"),
    "one twice": (
        lambda folder: shutil.copy(
            folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors"
        ),
        "which another shard has too",
    ),
    "not all named": (
        _set("model.safetensors.index.json", weight_map={"a": "model-00001-of-00003.safetensors"}),
        "45 missing keys",
    ),
    "old pictures": (_text("preprocessor_config.json", "{"), "preprocessor_config.json is no JSON"),
    "old template": (_text("chat_template.json", "[1]"), "chat_template.json is a list"),
}


@pytest.mark.parametrize(("break_it", "says"), SHARDS.values(), ids=SHARDS)
def test_a_bad_folder_of_the_first_release_too(break_it, says, tmp_path, no_weights):
    folder = write(MINI, tmp_path / "mini", Layout("flat", shards=3, processor="first"))
    break_it(folder)
    assert says in refusal(folder)


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja", "merges.txt", "vocab.json"],
)
def test_git_lfs_is_named_for_every_file_that_is_read(name, tmp_path, no_weights):
    folder = write(MINI, tmp_path / "mini", Layout())
    (folder / name).write_text(POINTER)
    assert f"{name} is a git-lfs pointer, not the file; run `git lfs pull`" in refusal(folder)


def test_an_empty_folder_and_a_file_are_no_checkpoints(tmp_path):
    assert "config.json is missing" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_text("")
    assert "is a file; give the folder" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["x" * 5000, "a\nb", "a\x00b", "\ud800", "né/" * 200])
def test_a_name_of_any_kind_is_refused_in_one_line(name):
    with pytest.raises(CheckpointError) as error:
        load(name)
    assert len(str(error.value)) <= 300
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "processor_config.json"])
def test_a_file_that_may_not_be_read_is_named(name, tmp_path, monkeypatch, no_weights):
    folder = write(MINI, tmp_path / "mini", Layout())
    read_text = Path.read_text

    def guarded(file, *args, **kwargs):
        if file.name == name:
            raise PermissionError(13, "Permission denied")
        return read_text(file, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", guarded)
    assert f"{name} cannot be read (Permission denied); see to its permissions" in refusal(folder)


def test_weights_that_may_not_be_read_are_named(tmp_path, monkeypatch, no_weights):
    def guarded(*_):
        raise PermissionError(13, "Permission denied")

    folder = write(MINI, tmp_path / "mini", Layout())
    monkeypatch.setattr(checkpoint_files, "safe_open", guarded)
    assert "model.safetensors could not be loaded: [Errno 13] Permission denied" in refusal(folder)


def test_a_folder_in_place_of_a_file_is_named(tmp_path, no_weights):
    folder = write(MINI, tmp_path / "mini", Layout())
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json cannot be read (Is a directory)" in refusal(folder)


def test_what_transformers_says_at_length_is_cut(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a table\n" + "of many | columns\n" * 500)

    folder = write(MINI, tmp_path / "mini", Layout())
    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", fail)
    said = refusal(folder)
    assert "could not be loaded: a table of many | columns" in said
    assert " … " in said
    assert said.endswith("; mend that, or download it again")


def test_a_long_path_is_shortened_from_the_left(tmp_path):
    folder = tmp_path / ("long" * 50) / ("path" * 50) / "the end"
    folder.mkdir(parents=True)
    said = refusal(folder)
    assert said.startswith("…")
    assert "the end/config.json is missing" in said


@pytest.mark.parametrize("place", ["a", "b" * 500, "c\nd"])
@pytest.mark.parametrize(
    "problem", ["no", "x" * 5000, "lines\n" * 900, KeyError("name"), "\x1b[31m", ValueError()]
)
def test_an_error_is_one_line(place, problem):
    said = str(refused(place, problem, "go on"))
    assert len(said) <= 300
    assert said.isprintable()
    assert said.endswith("; go on")
    assert 0 < len(brief(problem, 20)) <= 20


def test_sizes_are_compared_without_memory(tmp_path, no_weights):
    """A file whose header is right for the config, but for one weight: nothing of its size is allocated."""
    folder = write(MINI, tmp_path / "mini", Layout())
    change(folder / "config.json", tie_word_embeddings=False)
    config = read(folder / "config.json")
    config["text_config"] |= {"vocab_size": 10**11, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert "1 missing keys (lm_head.weight) and 1 mismatched keys" in refusal(folder)
