"""The attribute cards of MERIT-mini: values, words for these in five languages, colours and templates."""

import json
from functools import lru_cache
from types import MappingProxyType

from coral_lab.sources.package_files import shipped


@lru_cache(maxsize=1)
def cards() -> MappingProxyType:
    """`data/cards.json`, read once."""
    return MappingProxyType(json.loads(shipped("data/cards.json").read_text(encoding="utf-8")))
