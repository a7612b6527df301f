"""Qwen2's tokenizer from its file of tokens and ranks, or one of the same size from coral-mini's words."""

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from coral_lab.mini.architecture import SPECIAL_TOKENS
from coral_lab.models.tokenizer_files import SPLITS
from coral_lab.sources.package_files import shipped

SIZE = 151_643
"""Entries of Qwen2's vocabulary; the special tokens follow."""

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
"""Tokens that are written out when a text is decoded."""

Merges = list[tuple[str, str]]


def tokenizer_files(vocabulary: str | Path | None) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json as Qwen2.5-VL has them, for a file of tokens and ranks or,
    without one, for a made up vocabulary. Raises ValueError for a file that is not Qwen's.
    """
    vocab, merges = made_up() if vocabulary is None else ranked(Path(vocabulary))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {
        SIZE + i: {"content": token, **plain, "special": token in SPECIAL}
        for i, token in enumerate(SPECIAL + ADDED)
    }
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": id, **own} for id, own in added.items()],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": SPLITS[0]},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    _byte_level(),
                ],
            },
            "post_processor": _byte_level(),
            "decoder": _byte_level(),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocab,
                "merges": [" ".join(pair) for pair in merges],
            },
        },
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(id): own for id, own in added.items()},
            "additional_special_tokens": list(SPECIAL[1:]),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    }


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def ranks_of(file: Path) -> dict[bytes, int]:
    """Each token's rank, from a file with a line of both for each. Raises ValueError for one that is not
    Qwen's.
    """
    try:
        lines = (line.split() for line in file.read_bytes().splitlines() if line)
        ranks = {b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError as error:
        raise ValueError(f"{file} has no lines of base64 and rank ({error}); give qwen.tiktoken") from None
    if sorted(ranks.values()) != list(range(SIZE)):
        raise ValueError(f"{file} ranks {len(ranks):,} tokens, not {SIZE:,}; give qwen.tiktoken")
    return ranks


def ranked(file: Path) -> tuple[dict[str, int], Merges]:
    """The vocabulary of a file of tokens and ranks, and its merges: of each token the two parts that it was
    made of. Raises ValueError as `ranks_of` does.
    """
    ranks = ranks_of(file)
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    order = sorted(ranks, key=ranks.__getitem__)
    merges = [_halves(token, ranks) for token in order if len(token) > 1]
    vocab = {text(token): ranks[token] for token in order}
    return vocab, [(text(first), text(second)) for first, second in merges]


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that merging the best ranked neighbours, again and again, makes a token of."""
    parts, own = [token[i : i + 1] for i in range(len(token))], ranks[token]
    while len(parts) > 2:
        found = [ranks.get(a + b, own) for a, b in pairwise(parts)]
        best = min(range(len(found)), key=found.__getitem__)
        if found[best] >= own:
            raise ValueError(f"token {token!r} cannot be made of those before it; give qwen.tiktoken")
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def made_up() -> tuple[dict[str, int], Merges]:
    """coral-mini's vocabulary, learnt from the catalogue's words, filled up with numbers of several digits:
    texts are cut between digits, so that none of these is ever met.
    """
    model = json.loads((shipped("data/coral-mini") / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    own = sorted(model["vocab"].keys() - set(SPECIAL_TOKENS), key=model["vocab"].__getitem__)
    merges = [(first, second) for first, second in model["merges"]]
    known = set(own)
    more = list(islice((number for number in _numbers() if number not in known), SIZE - len(own)))
    merges += [(number[:-1], number[-1]) for number in more]
    return {token: i for i, token in enumerate(own + more)}, merges


def _numbers() -> Iterator[str]:
    for length in range(2, 7):
        yield from map("".join, product("0123456789", repeat=length))
