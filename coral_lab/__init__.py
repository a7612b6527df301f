"""coral_lab: a research workbench for CORAL and other interleaved multi-condition embedding models.

import coral_lab as cl
model = cl.load("mini")
shop = cl.dataset("mini")
cl.index(model, shop.products).search(shop.queries[0], k=10)
"""

import ast
import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coral_lab import errors as errors
    from coral_lab.encoder import Settings as Settings
    from coral_lab.encoder import encode as encode
    from coral_lab.evaluation import evaluate as evaluate
    from coral_lab.models.loading import load as load
    from coral_lab.prompts import messages as messages
    from coral_lab.query import Condition as Condition
    from coral_lab.query import Dataset as Dataset
    from coral_lab.query import Product as Product
    from coral_lab.query import Query as Query
    from coral_lab.replication.comparing import compare as compare
    from coral_lab.retrieval import index as index
    from coral_lab.sources.opening import dataset as dataset
    from coral_lab.store.external import vectors as vectors
    from coral_lab.store.store import open_store as open_store
    from coral_lab.training.from_data import train as train


def public(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package: what the TYPE_CHECKING block of its `file`
    imports.

    Each name is imported when it is first used, so that `import coral_lab` is quick, and a room can be
    entered without the packages that only some of it needs.
    """
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module or "" for node in imports for alias in node.names}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(homes)}")
        home = homes[name]
        return import_module(f"{home}.{name}") if home == package else getattr(import_module(home), name)

    return get, lambda: sorted(homes), sorted(homes)


# OpenMP's threads spin while they wait for one another. Beside other work on a machine of few cores that
# makes a step many times slower; with a short spin it does not (benchmarks/beside.py times both). Heeded
# before torch is loaded.
if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

# transformers imports torchao wherever it is installed, which warns of enums of its own.
logging.getLogger("torch.utils._pytree").addFilter(
    lambda record: "is an Enum subclass" not in record.getMessage()
)

__getattr__, __dir__, __all__ = public(__name__, __file__)
