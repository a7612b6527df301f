"""Vectors that cost less, by dose: fewer dimensions (`fusion.truncated`) or fewer bits a dimension; and what
of retrieval each dose keeps.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int8

from coral_lab.evaluation import Asked, Result
from coral_lab.retrieval import Index
from coral_lab.sources.border import brief
from coral_lab.study.comparison import change
from coral_lab.study.fusion import truncated
from coral_lab.study.hubs import WAYS, hubness, turned_down

BITS = (8, 4, 1)
"""Bits a dimension: whole numbers from -127 to 127, from -7 to 7, and signs."""


def codes(rows: Float32[np.ndarray, "row dim"], bits: int) -> Int8[np.ndarray, "row dim"]:
    """Each row in so many bits a dimension: divided by its largest number and rounded to the nearest of the
    2^bits - 1 whole numbers about 0, or of one bit its signs, 1 above 0 and -1 else.

    A row's own scale needs no calibration, and none is kept: cosines do without. One bit is what
    sentence-transformers call binary, where the Hamming distance orders as the dot product of signs does.
    Raises ValueError for other numbers of bits than BITS.
    """
    if bits not in BITS:
        raise ValueError(f"bits is {bits}; use one of {', '.join(map(str, BITS))}")
    if bits == 1:
        return np.where(rows > 0, 1, -1).astype(np.int8)
    scale = np.abs(rows).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.rint(rows / np.where(scale > 0, scale, 1)).astype(np.int8)


def coded(asked: Asked, bits: int, k: int = 100) -> Result:
    """The `Result` of queries and products by the cosine of their `codes`, to depth `k`.

    Few bits leave many ties, which go to the product that stands first in the pool. Raises ValueError as
    `codes` does.
    """
    pool = asked.index
    own = (codes(rows, bits).astype(np.float32) for rows in (pool.embeddings, asked.embeddings))
    # Signs are all of one length, and undivided their sums are exact: ties stay ties.
    products, queries = own if bits == 1 else map(_unit, own)
    short = Index(pool.model, pool.products, products, pool.format, pool.settings, pool.skipped)
    result = replace(asked, index=short, embeddings=queries).ranked(k)
    scores = result.scores / (products.shape[1] if bits == 1 else 1)
    return replace(result, model=f"{result.model}, {bits} bit{'s' * (bits > 1)} a dimension", scores=scores)


def _unit(rows: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)


def halvings(dim: int, least: int = 8) -> list[int]:
    """Half of the dimensions, half of these, …, as long as there are `least`."""
    found = [dim // 2]
    while found[-1] >= 2 * least:
        found.append(found[-1] // 2)
    return [own for own in found if own >= least]


def ways(dim: int) -> list[str]:
    """The names of all that `way` knows of embeddings of `dim` dimensions, as they are first."""
    shorter = [f"{own} dimensions" for own in halvings(dim)]
    return ["as it is", *shorter, *(f"{own} bit{'s' * (own > 1)}" for own in BITS), *WAYS]


def way(asked: Asked, bank: Asked, name: str) -> tuple[Result, dict[str, float | int]]:
    """The `Result` by one of `ways`, and its row: bytes (an embedding's), hubness, and R@1's change against
    the embeddings as they are, paired by query.

    `bank` are other queries of the same index, which `hubs` need. Raises ValueError for another name, and as
    `hubs.turned_down` does.
    """
    full, plain = asked.embeddings.shape[1], asked.ranked()
    if name not in ways(full):
        raise ValueError(f"name is {brief(name)}; use one of {', '.join(ways(full))}")
    number, size = int(name.split()[0]) if name[0].isdigit() else full, 4 * full
    if name in WAYS:
        result = turned_down(asked, bank, name)
    elif "bit" in name:
        result, size = coded(asked, number), -(-full * number // 8)
    else:
        result, size = truncated(asked, number), 4 * number
    after, before = (own.per_query["R@1"].to_numpy() for own in (result, plain))
    return result, {"bytes": size, "hubness": hubness(result)} | change(after, before)
