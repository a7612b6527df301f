"""The first notebook's job in the terminal: from nothing to a ranked gallery and its metrics."""

import time
from pathlib import Path

from coral_lab.errors import printable
from coral_lab.evaluation import Result
from coral_lab.mini.merit_mini import catalogue
from coral_lab.models.loading import load
from coral_lab.prompts import parts
from coral_lab.results import grey, page, paragraph
from coral_lab.retrieval import index
from coral_lab.sources.files import write_text


def demo(model_name: str = "mini", out: Path = Path("build/demo.html"), queries: int | None = None) -> Result:
    """Encode MERIT-mini's test catalogue, answer one query, measure all, and write the page `out`."""
    started = time.perf_counter()
    shop = catalogue("mini")
    model = load(model_name)
    print(f"{model!r}\n{shop.name}: {len(shop.products):,} products, {len(shop.queries):,} queries")
    pool = index(model, shop.products)
    query = next(query for query in shop.queries if len(query.conditions) == 3)
    hits = pool.search(query, k=10)
    said = "".join(part if isinstance(part, str) else "<picture>" for part in parts(query))
    print(f"\n{printable(said)}\n")
    print("\n".join(repr(hits).splitlines()[1:6]) + "\n")
    result = pool.evaluate(shop.queries[:queries])
    print(result)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page("CORAL workbench: one query", _body(hits, result)))
    print(f"\n{time.perf_counter() - started:.1f} s; the gallery is in {out}")
    return result


def _body(hits, result: Result) -> str:
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in result.metrics.items())
    counts = f"{len(result.queries):,} queries over {len(result.products):,} products"
    facts = f"{result.model}: {counts}, 95% intervals"
    return hits._repr_html_() + f"<h2>Metrics</h2>{paragraph(grey(facts))}<table>{rows}</table>"
