"""A tokenizer's files, looked through before they are handed on: Qwen2's kind, and no more tokens than the
network has. Other kinds can make a long text of a short one, or take for ever over it.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from coral_lab.models.folder_files import brief, few, read_json

ADDED = 4096
"""Most tokens besides the vocabulary's; Qwen2.5-VL has 22."""

LONGEST = 512
"""Characters of a token; Qwen2.5's longest has 128."""

SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # Qwen2's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # coral-mini's, for Thai
)
"""Patterns by which texts are cut into words: how long one of a stranger's takes nobody knows."""

CLASSES = (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")
"""Names of transformers' class for Qwen2's tokenizer; by any other it is read as tokenizer.json has it."""

NEVER = (
    *("gguf_file", "tokenizer_object", "init_inputs", "fast_tokenizer_files", "from_slow", "vocab", "merges"),
    *("vocab_file", "merges_file", "tokenizer_file"),
    *(
        "padding",
        "truncation",
        "tokenizer_padding",
        "tokenizer_truncation",
        "_json_padding",
        "pad_to_multiple_of",
    ),
    *("_json_truncation", "_spm_precompiled_charsmap", "post_processor", "chat_templates"),
)
"""Settings of tokenizer_config.json that would take the place of what is checked here."""

FOREIGN = ("tekken.json", "tokenizer.model", "tiktoken.model")


def check_tokenizer(folder: Path, most: int) -> str:
    """The name of transformers' class for the tokenizer in a folder. Raises ValueError, or CheckpointError of
    one file, for one that is not of Qwen2's kind or has tokens beyond the network's `most`.
    """
    settings = _read(folder, "tokenizer_config.json")
    if set_ := [name for name in NEVER if settings.get(name)]:
        raise ValueError(f"tokenizer_config.json sets {few(set_)}, which Qwen2's does not")
    for name in ("extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"):
        _check_added(settings.get(name) or [], most)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        _check_added(_read(folder, name), most)
    if (folder / "tokenizer.json").exists():
        _check_whole(read_json(folder / "tokenizer.json"), most)
        return "Qwen2Tokenizer" if settings.get("tokenizer_class") in CLASSES else "TokenizersBackend"
    if foreign := [name for name in FOREIGN if (folder / name).exists()]:
        raise ValueError(f"it has {few(foreign)} and no tokenizer.json")
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise ValueError("there is no tokenizer.json, and no vocab.json with merges.txt")
    _check_vocabulary(read_json(folder / "vocab.json"), most)
    with (folder / "merges.txt").open(encoding="utf-8") as lines:
        _check_merges((line.split() for line in lines if not line.startswith("#version")), most)
    return "Qwen2Tokenizer"


def _read(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).exists() else {}


def _check_whole(found: Mapping[str, Any], most: int) -> None:
    model = found.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {_kind(model)}, wanted BPE")
    _check_vocabulary(model.get("vocab"), most)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise ValueError(f"its merges are {brief(merges, 60)!r}, wanted a list")
    _check_merges((m.split(" ") if isinstance(m, str) else m for m in merges), most)
    if odd := [
        name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)
    ]:
        raise ValueError(f"its model sets {few(odd)}, which Qwen2's does not")
    for name, known in PARTS.items():
        if not any(_plain(found.get(name)) == _plain(own) for own in known):
            raise ValueError(f"its {name} is {_kind(found.get(name))}, wanted what Qwen2's has")
    padding = found.get("padding")
    if padding and (padding.get("strategy") != "BatchLongest" or padding.get("pad_to_multiple_of")):
        raise ValueError(f"its padding is {brief(padding, 80)}, wanted none")
    _check_added(found.get("added_tokens") or [], most)


def _kind(part: Any) -> str:
    return brief(repr(part.get("type") if isinstance(part, dict) and "type" in part else part), 80)


def _bytes(**settings: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", **settings}


def _template(*names: str) -> list[dict[str, Any]]:
    return [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate(names)]


BYTES = _bytes()
PARTS: dict[str, tuple[Any, ...]] = {
    "normalizer": (None, {"type": "NFC"}),
    "pre_tokenizer": (
        BYTES,
        *(
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
                    BYTES,
                ],
            }
            for split in SPLITS
        ),
    ),
    "post_processor": (
        None,
        BYTES,
        {
            "type": "TemplateProcessing",
            "single": _template("A"),
            "pair": _template("A", "B"),
            "special_tokens": {},
        },
    ),
    "decoder": (None, BYTES),
}
"""What the parts of a tokenizer.json may be."""


def _plain(part: Any) -> Any:
    """A part without ByteLevel's switches, each of which is harmless, and with no sequence of one."""
    if isinstance(part, list):
        return [_plain(own) for own in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "ByteLevel":
        return BYTES
    for name in ("pretokenizers", "normalizers", "processors"):
        if part.get("type") == "Sequence" and isinstance(part.get(name), list) and len(part[name]) == 1:
            return _plain(part[name][0])
    return {name: _plain(own) for name, own in part.items()}


def _check_vocabulary(vocabulary: Any, most: int) -> None:
    if not isinstance(vocabulary, dict) or not all(_is_id(id, most) for id in vocabulary.values()):
        raise ValueError(f"its vocabulary is not of texts and numbers below the network's {most:,}")
    _check_lengths(vocabulary)


def _check_merges(merges: Iterable[Any], most: int) -> None:
    for count, merge in enumerate(merges, 1):
        if count > most or not isinstance(merge, list) or not all(isinstance(part, str) for part in merge):
            raise ValueError(f"its merges are not pairs of texts, fewer than the network's {most:,} tokens")
        if len(merge) > 2:
            raise ValueError(f"its merge {brief(merge, 60)} is no pair")


def _check_added(added: Any, most: int) -> None:
    """Tokens beside the vocabulary, in any of the ways in which releases write them."""
    if not isinstance(added, list | dict) or len(added) > ADDED:
        raise ValueError(
            f"it adds {len(added):,} tokens, more than {ADDED:,}"
            if isinstance(added, list | dict)
            else f"its added tokens are {brief(added, 60)!r}"
        )
    pairs = added.items() if isinstance(added, dict) else ((None, own) for own in added)
    for name, own in pairs:
        for value in chain([name], own if isinstance(own, list) else [own]):
            id = value.get("id") if isinstance(value, dict) else value if isinstance(value, int) else None
            if id is not None and not _is_id(id, most):
                raise ValueError(f"it adds a token of number {brief(id, 40)}, the network's go to {most - 1}")
            text = value.get("content") if isinstance(value, dict) else value
            _check_lengths([text] if isinstance(text, str) else [])
        if isinstance(name, str) and name.isdigit() and not _is_id(int(name), most):
            raise ValueError(f"it adds a token of number {brief(name, 40)}, the network's go to {most - 1}")


def _is_id(id: Any, most: int) -> bool:
    return isinstance(id, int) and not isinstance(id, bool) and 0 <= id < most


def _check_lengths(tokens: Iterable[str]) -> None:
    longest = max(tokens, key=len, default="")
    if len(longest) > LONGEST:
        raise ValueError(
            f"its token {brief(longest, 40)!r} has {len(longest):,} characters, more than {LONGEST}"
        )
