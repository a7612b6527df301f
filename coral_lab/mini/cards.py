"""The attribute cards of MERIT-mini: values, their words in five languages, colours and templates."""

import json
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

_FILE = Path(__file__).resolve().parent.parent / "data" / "cards.json"


@lru_cache(maxsize=1)
def cards() -> MappingProxyType:
    """`data/cards.json`, read once; FileNotFoundError if the data folder is not beside the package."""
    return MappingProxyType(json.loads(_FILE.read_text(encoding="utf-8")))
