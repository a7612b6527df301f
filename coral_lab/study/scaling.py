"""What a catalogue of any size costs to encode, keep and search: arithmetic on assumptions that can be
edited.

Operations of a product are counted by `benchmarks/costs.py`: 1.79 TFLOP for a picture of 336 × 336 pixels and
its title by a Qwen2.5-VL of 3B, 6.57 at 672 × 672. A GPU's peak is what its maker states for dense bfloat16
(H100 SXM: 989 TFLOP/s), and the share of it that encoding reaches an assumption until it is measured.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float32

from coral_lab.sources.border import brief

CODE = 8
"""Bytes of a row's number, beside its code, in an index."""


@dataclass(frozen=True)
class Assumptions:
    """Of the model: dimensions, and operations (`flop`) of a product. Of the GPUs: how many, operations a
    second at their `peak`, and the `share` of these that is reached. Of a row in the store: its bytes beside
    the vector, whose numbers are of 32 bits, and those of its `code` in an index. Of the disk: bytes a second
    that exact search reads.

    Raises ValueError for what is not above 0, or a share above 1.
    """

    dim: int = 2048
    flop: float | int = 1.793e12
    peak: float | int = 989e12
    share: float | int = 0.4
    gpus: int = 8
    row: float | int = 4_000
    code: float | int = 256
    read: float | int = 1e9

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; give a number above 0")
        if self.share > 1:
            raise ValueError(f"share is {self.share}; no GPU gives more than its peak: at most 1")

    @property
    def rate(self) -> float:
        """Products that one GPU encodes in a second."""
        return self.share * self.peak / self.flop


def costs(counts: Sequence[int], assumed: Assumptions = Assumptions()) -> pd.DataFrame:
    """One row a catalogue of so many products: GPU-hours and hours to encode it, GB on disk (its vectors, the
    rest of its rows, an IVF-PQ index), GB of memory for search (all vectors, or the index alone), and seconds
    of one exact search that reads all vectors from disk. GB are 10⁹ bytes. Raises ValueError for a number
    below 1.
    """
    if bad := [count for count in counts if count < 1]:
        raise ValueError(f"a catalogue of {brief(bad[0])} products; give at least 1")
    table = pd.DataFrame({"products": list(counts)})
    n = table["products"].astype(float)
    vectors, index = n * 4 * assumed.dim, n * (assumed.code + CODE)
    hours = n / assumed.rate / 3600
    return table.assign(
        **{
            "GPU-hours": hours,
            "hours": hours / assumed.gpus,
            "vectors, GB": vectors / 1e9,
            "rows, GB": n * assumed.row / 1e9,
            "index, GB": index / 1e9,
            "memory, exact, GB": vectors / 1e9,
            "memory, index, GB": index / 1e9,
            "exact search, s": vectors / assumed.read,
        }
    )


def centres(random: np.random.Generator, count: int, dim: int = 256) -> Float32[np.ndarray, "centre dim"]:
    """Normalised, in any direction: the kinds of a made-up catalogue."""
    return unit(random.standard_normal((count, dim), dtype=np.float32))


def clustered(
    random: np.random.Generator, about: Float32[np.ndarray, "centre dim"], count: int, spread: float = 0.7
) -> Float32[np.ndarray, "row dim"]:
    """So many normalised vectors, each about a random one of the centres: its noise is `spread` times as long
    as the centre.
    """
    noise = random.standard_normal((count, about.shape[1]), dtype=np.float32)
    return unit(
        about[random.integers(len(about), size=count)] + noise * np.float32(spread / about.shape[1] ** 0.5)
    )


def unit(rows: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
    """The rows, each of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def grown(seconds: Sequence[float], counts: Sequence[int]) -> float:
    """By what power of their number the seconds grow: the slope of a line through their logarithms, 1 where
    twice as many take twice as long.

    Raises ValueError for less than two numbers, or some that are not above 0.
    """
    if len({*counts}) < 2 or len(seconds) != len(counts) or min(*seconds, *counts) <= 0:
        raise ValueError(
            f"{len(seconds)} times of {len({*counts})} sizes; give one for each of two or more, above 0"
        )
    return float(np.polyfit(np.log(counts), np.log(seconds), 1)[0])
