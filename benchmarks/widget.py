"""How long the query bench takes from an edit to its gallery, on the catalogue of 3,000 products.

python benchmarks/widget.py        the target is 300 ms; half a minute on an idle machine
"""

from table import keep, profiled, row

import coral_lab as cl
from coral_lab.widgets.query_bench import QueryBench

if __name__ == "__main__":
    shop = cl.dataset("mini")
    query = next(query for query in shop.queries if len(query.conditions) == 3)
    bench = QueryBench(cl.index(cl.load("mini"), shop.products), query)
    for turn in range(20):
        bench.move(turn % 2, 1)
    times = [1000 * step.seconds for step in bench.steps[1:]]
    with profiled("widget"):
        bench.move(0, 1)
    rows = [row(f"edit to gallery, {len(shop.products):,} products, ms", times, "≤ 300")]
    print(keep("widget", rows).to_string(index=False))
