"""Tokenizers of Qwen2's kind are read, in every layout; others are refused in one line."""

from pathlib import Path

import pytest
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from coral_lab import load
from coral_lab.errors import CheckpointError
from coral_lab.mini.architecture import SPLIT
from coral_lab.models.tokenizer_files import SPLITS
from tests.models.layouts import Layout, change, read, write, write_json

MINI = Path(__file__).parents[2] / "data/coral-mini"
TEXTS = ["a red bag with <b>", "  two\n\nlines 123", "กระเป๋าสีแดง", "<|im_start|>user", "áé 🙂"]


@pytest.fixture
def folder(tmp_path):
    return write(MINI, tmp_path / "mini", Layout())


def test_the_known_patterns_are_qwens_and_ours():
    assert SPLITS == (PRETOKENIZE_REGEX, SPLIT)


def test_vocabulary_and_merges_in_files_of_their_own(folder):
    """As Qwen2 was first published."""
    whole = load(folder, device="cpu").processor.tokenizer
    model = read(folder / "tokenizer.json")["model"]
    added = {token["content"]: token["id"] for token in read(folder / "tokenizer.json")["added_tokens"]}
    write_json(folder / "vocab.json", model["vocab"] | added)
    merges = (" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    change(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    found = load(folder, device="cpu").processor.tokenizer
    latin = [text for text in TEXTS if "ก" not in text]  # Qwen2's own pattern cuts Thai words
    assert found.get_vocab() == whole.get_vocab()
    assert [found(text).input_ids for text in latin] == [whole(text).input_ids for text in latin]


@pytest.mark.parametrize(
    "kind", ["Qwen2Tokenizer", "Qwen2TokenizerFast", None, "PreTrainedTokenizerFast", "Own"]
)
def test_the_class_is_qwens_or_what_the_file_says(kind, folder):
    change(folder / "tokenizer_config.json", tokenizer_class=kind)
    qwens = kind in (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")
    found = load(folder, device="cpu").processor.tokenizer
    assert type(found).__name__ == ("Qwen2Tokenizer" if qwens else "TokenizersBackend")


def test_merges_as_texts_and_parts_in_sequences_of_one(folder):
    whole = load(folder, device="cpu").processor.tokenizer
    content = read(folder / "tokenizer.json")
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    content["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    content["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    write_json(folder / "tokenizer.json", content)
    found = load(folder, device="cpu").processor.tokenizer
    assert [found(text).input_ids for text in TEXTS] == [whole(text).input_ids for text in TEXTS]


def _file(*path: str, name: str = "tokenizer.json", value: object):
    def break_it(folder: Path) -> None:
        content = part = read(folder / name)
        for inner in path[:-1]:
            part = part[inner]
        part[path[-1]] = value
        write_json(folder / name, content)

    return break_it


def _setting(key: str, value: object):
    return _file(key, name="tokenizer_config.json", value=value)


BREAKS = {
    "another kind": (_file("model", "type", value="WordPiece"), "its model is 'WordPiece', wanted BPE"),
    "no model": (_file("model", value=[1]), "its model is [1], wanted BPE"),
    "a vocabulary of lists": (
        _file("model", "vocab", value=[["a", 0]]),
        "its vocabulary is not of texts and",
    ),
    "a number too large": (_file("model", "vocab", "zzz", value=2048), "numbers below the network's 2,048"),
    "a number below nothing": (
        _file("model", "vocab", "zzz", value=-1),
        "its vocabulary is not of texts and",
    ),
    "no number": (_file("model", "vocab", "zzz", value=True), "its vocabulary is not of texts and numbers"),
    "a long token": (_file("model", "vocab", "z" * 600, value=9), "has 600 characters, more than 512"),
    "merges of three": (_file("model", "merges", value=[["a", "b", "c"]]), "is no pair"),
    "no merges": (_file("model", "merges", value={}), "its merges are"),
    "merges of numbers": (_file("model", "merges", value=[[1, 2]]), "its merges are not pairs of texts"),
    "too many merges": (
        _file("model", "merges", value=[["a", "b"]] * 3000),
        "fewer than the network's 2,048",
    ),
    "dropout": (_file("model", "dropout", value=0.5), "its model sets dropout"),
    "a suffix": (_file("model", "end_of_word_suffix", value="</w>"), "its model sets end_of_word_suffix"),
    "a normalizer": (_file("normalizer", value={"type": "Lowercase"}), "its normalizer is 'Lowercase'"),
    "a pattern": (
        _file("pre_tokenizer", "pretokenizers", value=[{"type": "Split", "pattern": {"Regex": "(a+)+"}}]),
        "its pre_tokenizer is",
    ),
    "no pattern": (_file("pre_tokenizer", value=None), "its pre_tokenizer is None, wanted what Qwen2's has"),
    "a template": (_file("post_processor", "special_tokens", value={"a": 1}), "its post_processor is"),
    "a decoder": (_file("decoder", value={"type": "Fuse"}), "its decoder is 'Fuse'"),
    "wide padding": (_file("padding", value={"strategy": {"Fixed": 10**9}}), "its padding is"),
    "padding in steps": (
        _file("padding", value={"strategy": "BatchLongest", "pad_to_multiple_of": 10**9}),
        "its padding is",
    ),
    "an added token": (
        _file("added_tokens", value=[{"id": 10**9, "content": "a"}]),
        "a token of number 1000000000",
    ),
    "an added text": (_file("added_tokens", value=[{"id": 1, "content": "a" * 600}]), "has 600 characters"),
    "added by a number": (
        _setting("added_tokens_decoder", {"99999": {"content": "a"}}),
        "a token of number 99999, the network's go to 2047",
    ),
    "many added": (_setting("extra_special_tokens", ["a"] * 5000), "it adds 5,000 tokens, more than 4,096"),
    "added as a number": (_setting("extra_special_tokens", 7), "its added tokens are '7'"),
    "long and special": (_setting("extra_special_tokens", {"a_token": "a" * 600}), "has 600 characters"),
    "another file": (_setting("vocab_file", "/etc/passwd"), "tokenizer_config.json sets vocab_file"),
    "arguments": (_setting("init_inputs", ["a"]), "tokenizer_config.json sets init_inputs"),
    "GGUF": (_setting("gguf_file", "../a.gguf"), "tokenizer_config.json sets gguf_file"),
    "none": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "there is no tokenizer.json, and no vocab.json",
    ),
    "Mistral's": (
        lambda folder: (folder / "tokenizer.json").rename(folder / "tekken.json"),
        "it has tekken.json and no tokenizer.json",
    ),
}


@pytest.mark.parametrize(("break_it", "says"), BREAKS.values(), ids=BREAKS)
def test_others_are_refused_in_one_line(break_it, says, folder):
    break_it(folder)
    with pytest.raises(CheckpointError) as error:
        load(folder)
    said = str(error.value)
    assert "has no working processor, by its tokenizer: " in said
    assert says in said
    assert said.isprintable()
    assert len(said) <= 300
