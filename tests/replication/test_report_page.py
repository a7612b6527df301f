"""The report is one page that needs no network, with what was measured of the model it is about."""

import re
from dataclasses import replace

from coral_lab import Condition, Product, Settings, cli, dataset, evaluate, index
from coral_lab.replication.report_page import report


def test_a_report_says_what_was_measured(random_model, tmp_path):
    whole = dataset("mini")
    some = [query for query in whole.queries if int(query.positives[0]) < 2000200][:8]
    some = [query.judged(dict.fromkeys(query.positives, 2)) for query in some]
    shop = replace(whole, products=whole.products[:200], queries=tuple(some))
    pool, file = index(random_model, shop.products), tmp_path / "report.html"
    result = report(pool, shop, file, sensitivity=2, galleries=2, command="coral-lab report <&>")
    page = file.read_text(encoding="utf-8")
    expected = evaluate(random_model, shop.queries, pool)
    assert str(result.metrics["R@10"]) == str(expected.metrics["R@10"])
    for name in ("R@10", "nDCG@10", "condensed nDCG@10", "judged@10"):
        assert str(expected.metrics[name]) in page
    assert "An unjudged hit counts as wrong: judged@10 is 0." in expected.note
    assert expected.note in page
    assert "fusion gap: R@1 0." in page
    assert "2 queries of two conditions or more" in page
    assert "binding: " in page
    assert "coral-lab report &lt;&amp;&gt;" in page
    assert "200 products, 8 queries" in page
    for title in (
        "Breakdowns",
        "Language matrix",
        "Order sensitivity",
        "What wrong first hits fail",
        "Fusion and binding",
        "Findings",
    ):
        assert f"<h2>{title}</h2>" in page
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", outside)


def test_a_report_lists_what_was_left_out_and_needs_nothing_of_it(random_model, tmp_path):
    whole = dataset("mini")
    broken = Product("broken <&>", "a bag", b"no picture", "bag")
    asked = next(query for query in whole.queries if int(query.positives[0]) < 2000200)
    unreadable = replace(asked, id="unreadable", conditions=(Condition("color", broken),) * 2)
    shop = replace(whole, products=(*whole.products[:200], broken), queries=(unreadable, asked))
    pool = index(random_model, shop.products, settings=Settings(on_error="skip"))
    report(pool, shop, tmp_path / "report.html", sensitivity=2, galleries=2)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 left out" in page
    assert "unjudged" not in page
    assert "product broken &lt;&amp;&gt;: picture cannot be read" in page
    assert "query unreadable: picture cannot be read" in page


def test_the_command_writes_it(random_folder, tmp_path, capsys):
    folder = tmp_path / "merit"
    assert cli.main(["data", "--out", str(folder), "--limit", "6"]) == 0
    out = tmp_path / "new" / "report.html"
    assert cli.main(["report", "--model", str(random_folder), "--data", str(folder), "--out", str(out)]) == 0
    assert f"the report is in {out}" in capsys.readouterr().out
    assert "Visual: color, pattern" in out.read_text(encoding="utf-8")
