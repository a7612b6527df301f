"""What many wordings of one query cost beside as many unrelated queries. Writes benchmarks/sweeps.csv.

A query's pictures are looked at once, however many of its orders or languages are embedded, and what several
orders begin with is read once. In another language the first words differ already, and all that follows them
is read anew: the text model's whole share of the work is left. The model, a Qwen2.5-VL with random weights,
and the pictures are those of benchmarks/encode.py.

python benchmarks/sweeps.py
"""

import tempfile
from functools import partial
from itertools import permutations
from pathlib import Path

from encode import DTYPES, RUNS, checkpoint, ours, products, seconds
from table import keep, profiled, ratios, row

from coral_lab import Condition, Query, load
from coral_lab.prompts import LANGUAGES

ATTRIBUTES = ("color", "brand", "pattern", "shape")


def unrelated(count: int) -> list[Query]:
    """Queries of four conditions, each with four pictures of its own."""
    shown = products(4 * count)
    return [
        Query(f"q{i}", own[0].class_name, tuple(map(Condition, ATTRIBUTES, own)))
        for i, own in ((i, shown[4 * i : 4 * i + 4]) for i in range(count))
    ]


def main() -> list[dict]:
    queries = unrelated(24)
    one = queries[0]
    sweeps = {
        "24 orders": ([one.reordered(order) for order in permutations(range(4))], queries),
        "5 languages": ([one.edited(language=language) for language in LANGUAGES], queries[: len(LANGUAGES)]),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        models = {name: load(checkpoint(Path(folder)), dtype=dtype) for name, dtype in DTYPES.items()}
    for dtype, model in models.items():
        ours(model, queries[:2])
        for name, (wordings, others) in sweeps.items():
            times = [
                (seconds(partial(ours, model, wordings))[0], seconds(partial(ours, model, others))[0])
                for _ in range(RUNS)
            ]
            own, theirs = zip(*times, strict=True)
            rows += [
                row(f"{name} of a query, {dtype}: s", own),
                row(f"{len(others)} unrelated queries, {dtype}: s", theirs),
                row(f"{name} / {len(others)} unrelated queries, {dtype}", ratios(own, theirs), "≤ 0.45"),
            ]
        with profiled(f"sweep {dtype}"):
            ours(model, sweeps["24 orders"][0])
    return rows


if __name__ == "__main__":
    print(keep("sweeps", main()).to_string(index=False))
