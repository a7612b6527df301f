"""Memory that a CPU's libraries would keep: of what is gone, and of what was compiled. Only glibc's malloc
has the calls for it; elsewhere they do nothing.
"""

import ctypes
import os
import sys

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own, and that of PyTorch's calls to it."""

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
LARGE = 2**20  # bytes


def keep_few_shapes() -> None:
    """Let oneDNN keep what it compiled for the last 16 shapes, not the last 1,024, which take 400 MB.

    It heeds this until its first product only. What the user has set stays.
    """
    for cache in CACHES:
        os.environ.setdefault(cache, "16")


def give_back() -> None:
    """Hand the system what malloc keeps of weights that were read and quantised: in CORAL's layers up to
    as much again as the integers take.
    """
    _glibc("malloc_trim", 0)


def give_back_at_once() -> None:
    """From now on, let malloc take tensors of a MB from the system and hand them back when they are gone: it
    would keep much of what the 3B's layers take, worked out one after the other (benchmarks/train_memory.py).
    """
    _glibc("mallopt", _MMAP_THRESHOLD, LARGE)


def _glibc(name: str, *numbers: int) -> None:
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), name):
        getattr(library, name)(*numbers)
