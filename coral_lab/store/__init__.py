"""Embeddings that last (LanceDB), those that were made elsewhere, and exact search among many of them."""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.store.approximate import Approximation as Approximation
    from coral_lab.store.blocks import Source as Source
    from coral_lab.store.external import Vectors as Vectors
    from coral_lab.store.external import vectors as vectors
    from coral_lab.store.sharded import Engine as Engine
    from coral_lab.store.sharded import encode_sharded as encode_sharded
    from coral_lab.store.store import Added as Added
    from coral_lab.store.store import Store as Store
    from coral_lab.store.store import open_store as open_store
    from coral_lab.store.topk import Prepared as Prepared
    from coral_lab.store.topk import prepare as prepare
    from coral_lab.store.topk import top_k as top_k

__getattr__, __dir__, __all__ = public(__name__, __file__)
