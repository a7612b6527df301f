"""How long the query bench takes from an edit to its gallery, on the catalogue of 3,000 products.

python benchmarks/widget.py        the target is 300 ms; half a minute on an idle machine
"""

import statistics

import coral_lab as cl
from coral_lab.bench import QueryBench

if __name__ == "__main__":
    shop = cl.catalogue("mini")
    query = next(query for query in shop.queries if len(query.conditions) == 3)
    bench = QueryBench(cl.index(cl.load("mini"), shop.products), query)
    for turn in range(20):
        bench.move(turn % 2, 1)
    times = sorted(1000 * step.seconds for step in bench.steps[1:])
    print(f"{len(shop.products):,} products, {len(times)} edits: median {statistics.median(times):.0f} ms, "
          f"slowest {times[-1]:.0f} ms")  # fmt: skip
