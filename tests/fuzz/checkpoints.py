"""Checkpoints gone wrong, from a seed: files cut, bits flipped, names and types of values changed."""

import json
import random
import shutil
from pathlib import Path

SETTINGS = ("config.json", "processor_config.json", "tokenizer_config.json", "preprocessor_config.json")
ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    10**8,
    10**30,
    "",
    "64",
    "\n\x1b[31mred",
    "x" * 5000,
    [],
    [1],
    {},
    {"a": {}},
    "null",
)
"""Values of every type, and too large and too small ones."""


def corrupt(source: Path, folder: Path, seed: int) -> str:
    """Copy the checkpoint in `source` to `folder` with one to three faults; says which they are."""
    chance = random.Random(seed)
    shutil.copytree(source, folder)
    faults = [chance.choice(FAULTS) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
    return ", ".join(fault(folder, chance) for fault in faults)


def cut(folder: Path, chance: random.Random) -> str:
    file = _some_file(folder, chance)
    content = file.read_bytes()
    at = chance.choice((0, 1, len(content) // 2, chance.randrange(len(content) + 1)))
    file.write_bytes(content[:at])
    return f"{file.name} cut at {at}"


def flip(folder: Path, chance: random.Random) -> str:
    """Bits in a text, or in the header of weights: the weights themselves may be any numbers."""
    file = _some_file(folder, chance)
    content = bytearray(file.read_bytes())
    places = [chance.randrange(min(len(content), 9_000)) for _ in range(chance.choice((1, 3, 20))) if content]
    for place in places:
        content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"{file.name} flipped at {places}"


def remove(folder: Path, chance: random.Random) -> str:
    file = _some_file(folder, chance)
    file.unlink()
    return f"{file.name} removed"


def take_out(folder: Path, chance: random.Random) -> str:
    return _change(folder, chance, lambda part, name: part.pop(name), "taken out")


def put_in(folder: Path, chance: random.Random) -> str:
    odd = chance.choice(ODD)
    return _change(folder, chance, lambda part, name: part.update({name: odd}), f"now {str(odd)[:20]!r}")


def replace_whole(folder: Path, chance: random.Random) -> str:
    odd = chance.choice(ODD)
    file = _some_file(folder, chance)
    file.write_text(json.dumps(odd), encoding="utf-8")
    return f"{file.name} is {str(odd)[:20]!r}"


FAULTS = (cut, flip, remove, take_out, take_out, put_in, put_in, put_in, replace_whole)


def _some_file(folder: Path, chance: random.Random) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".jinja", ".safetensors"))
    return chance.choice(files) if files else folder / "config.json"


def _change(folder: Path, chance: random.Random, what, says: str) -> str:
    """Do something to one value, however deep, in one file of settings."""
    file = chance.choice([folder / name for name in SETTINGS if (folder / name).is_file()])
    try:
        content = json.loads(file.read_bytes())
        places = list(_places(content))
        part, name = chance.choice(places)
    except (ValueError, IndexError):  # an earlier fault has left nothing to change
        return f"{file.name} as it was"
    what(part, name)
    file.write_text(json.dumps(content), encoding="utf-8")
    return f"{name} in {file.name} {says}"


def _places(content):
    if isinstance(content, dict):
        for name in sorted(content):
            yield content, name
            yield from _places(content[name])
