"""coral_lab: a research workbench for CORAL and other interleaved multi-condition embedding models.

import coral_lab as cl
model = cl.load("mini")
shop = cl.catalogue("mini")
cl.index(model, shop.products).search(shop.queries[0], k=10)
"""

from importlib import import_module

from coral_lab.images import ItemError
from coral_lab.interleaved import Condition, Product, Query, messages
from coral_lab.mini.catalogue import catalogue

# What needs torch is imported when it is first used, so that `import coral_lab` stays quick.
_LATER = {
    "load": "models",
    "encode": "encoder",
    "index": "evaluation",
    "evaluate": "evaluation",
    "merit": "merit_files",
    "open_store": "store",
}

__all__ = ["Condition", "ItemError", "Product", "Query", "catalogue", "encode", "evaluate", "index", "load", "merit",
           "messages", "open_store"]  # fmt: skip


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"coral_lab has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"coral_lab.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
