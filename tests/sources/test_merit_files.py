"""MERIT's files: what `coral-lab data` writes comes back the same, and whatever is wrong is named."""

import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import coral_lab as cl
from coral_lab.errors import ItemError
from coral_lab.mini.merit_mini import catalogue
from coral_lab.query import Condition, Dataset, Product, Query
from coral_lab.sources import hub
from coral_lab.sources.border import composed
from coral_lab.sources.instructions import instruction, read_instruction
from coral_lab.sources.merit_files import TRAITS, read_queries
from coral_lab.sources.writing import write_merit, write_queries
from tests.conftest import noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merit mini")
    for split in ("train", "test"):
        write_merit(catalogue("mini", split), folder, split, limit=30)
    return folder


@pytest.fixture(scope="module")
def written(folder):
    return cl.dataset(folder)


def test_what_was_written_comes_back(written):
    mini = catalogue("mini", "test")
    assert len(written.queries) == 30
    for ours, theirs in zip(written.queries, mini.queries, strict=False):
        for name in ("class_name", "text", "positives", "hard_negatives"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.conditions == theirs.conditions
        assert [p.title for p in ours.references] == [p.title for p in theirs.references]
        assert cl.messages(ours)[0]["content"][0] == cl.messages(theirs)[0]["content"][0]
    for product in written.products:
        own = mini.product(product.id)
        facts = (product.title, product.class_name, product.language, product.country, product.attributes)
        assert facts == (own.title, own.class_name, own.language, own.country, own.attributes)


def test_pictures_are_read_when_they_are_looked_at(written):
    product = written.products[7]
    assert callable(product.image)
    assert product.picture.size == (224, 224)
    own = catalogue("mini", "test").product(product.id).picture
    assert (
        abs(sum(product.picture.resize((1, 1)).getpixel((0, 0))) - sum(own.resize((1, 1)).getpixel((0, 0))))
        < 9
    )


WORDS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30).map(composed)
REFERENCES = st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=4)


@given(WORDS, REFERENCES, WORDS)
def test_an_instruction_reads_back_as_it_was_written(class_name, references, text):
    """For any titles and free text that do not themselves contain the format's own marks."""
    conditions = tuple(
        Condition(attribute, Product(str(n), title)) for n, (title, attribute) in enumerate(references)
    )
    query = Query("q", class_name, conditions, text)
    assert read_instruction(instruction(query), conditions) == (class_name, [t for t, _ in references], text)


def test_the_paper_s_example_reads_as_it_should():
    words = (
        "Find a product of handbag that has the same product style with <Product 1> <image>\nTITLE 1 "
        "</Product 1> and "
        "the same color with <Product 2> <image>\nTITLE 2 </Product 2> with a metallic finish."
    )
    conditions = (Condition("product style", Product("1")), Condition("color", Product("2", "TITLE 2")))
    assert read_instruction(words, conditions) == (
        "handbag",
        ["TITLE 1", "TITLE 2"],
        " with a metallic finish.",
    )


def test_a_title_may_hold_the_closing_mark():
    conditions = (Condition("color", Product("1", "odd </Product 1> and the same")),)
    text = instruction(Query("q", "bag", conditions, " now."))
    assert read_instruction(text, conditions) == ("bag", ["odd </Product 1> and the same"], " now.")


def row(id, **changes):
    values = {
        "idx": id,
        "image": {"bytes": jpeg(id), "path": None},
        "title": f"t{id}",
        "class": "chair",
        "country": "VN",
        "language": "vn",
        "attribute": json.dumps({"color": ["red", "blue"], "size": "M"}),
    }
    return values | changes


def jpeg(seed):
    import io

    file = io.BytesIO()
    noise(40, 30, seed=seed).save(file, "JPEG")
    return file.getvalue()


def write_rows(folder, rows, lines=(), **options):
    parquet.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet", **options)
    (folder / "queries-test.json").write_bytes(b"\n".join(lines))


def line(**changes):
    record = {
        "query": {"1": {"color": "red"}},
        "pos_candidate": [2],
        "hard_negative": [],
        "query instruction": "Find a product of chair that has the same color with "
        "<Product 1> <image>\nt1 </Product 1>.",
    }
    record |= changes
    return json.dumps({key: value for key, value in record.items() if value is not ...}).encode()


def test_vn_is_vi_and_attributes_are_tuples(tmp_path):
    write_rows(tmp_path, [row(1), row(2)], [line(), b"", line()])
    found = cl.dataset(tmp_path)
    assert found.products[0].language == "vi"
    assert found.products[0].attributes == {"color": ("red", "blue"), "size": ("M",)}
    assert [query.id for query in found.queries] == ["merit-test-000000", "merit-test-000002"]


def test_attributes_may_be_a_struct_of_all_keys(tmp_path):
    write_rows(
        tmp_path,
        [row(1, attribute={"color": "red", "size": None}), row(2, attribute={"color": None, "size": "M"})],
    )
    assert [dict(p.attributes) for p in cl.dataset(tmp_path).products] == [
        {"color": ("red",)},
        {"size": ("M",)},
    ]


def test_a_title_of_the_instruction_s_own_is_what_is_asked(tmp_path):
    asked = "Find a product of chair that has the same color with <Product 1> <image>\nother </Product 1>."
    write_rows(tmp_path, [row(1), row(2)], [line(**{"query instruction": asked})])
    query = cl.dataset(tmp_path).queries[0]
    assert query.references[0].title == "other"
    assert instruction(query) == asked


GRADES = st.dictionaries(st.integers(-(2**63), 2**63 - 1).map(str), st.integers(0, 100), max_size=6)


@given(GRADES, st.integers(0, 100))
def test_grades_come_back_and_where_there_are_none_the_file_is_as_before(tmp_path_factory, grades, least):
    file = tmp_path_factory.mktemp("judged") / "queries-test.json"
    shown = Product("1", "t1")
    pool = [shown, Product("2"), *(Product(id) for id in grades if id not in ("1", "2"))]
    asked = Query("merit-test-000000", "chair", (Condition("color", shown, "red"),), ".")
    judged = asked.judged({"2": 100} | grades | {"2": 100}, least)
    write_queries(file, [judged, replace(asked, positives=("2",))])
    assert file.read_bytes().splitlines()[1] == line()
    first, second = read_queries(file, Dataset("d", pool, ()))
    assert first == judged
    assert first.relevance == judged.relevance
    assert second.relevance == {}


def test_grades_that_parquet_and_pandas_have_had_are_read(tmp_path):
    asked = [line(relevance={"1": None, "2": 2.0}), line(relevance=None)]
    write_rows(tmp_path, [row(1), row(2)], asked)
    assert [dict(query.relevance) for query in cl.dataset(tmp_path).queries] == [{"2": 2}, {}]


def test_with_a_limit_the_judged_products_are_written_too(tmp_path):
    products = [Product(str(id), f"t{id}", noise(9, 9, id), "chair", "en") for id in range(1, 6)]
    asked = Query("q", "chair", (Condition("color", products[0], "red"),), ".").judged({"2": 2, "3": 1}, 2)
    write_merit(Dataset("d", products, [asked]), tmp_path, "test", limit=1)
    found = cl.dataset(tmp_path)
    assert [product.id for product in found.products] == ["1", "2", "3"]
    assert (found.queries[0].positives, found.queries[0].relevance) == (("2",), asked.relevance)
    with pytest.raises(ItemError, match="query q: id 'x' is no whole number of 64 bits"):
        write_queries(tmp_path / "x.json", [replace(asked, relevance={"x": 1})])


BAD_LINES = {
    "grades": (line(relevance=[2]), "field 'relevance' is .*it must map ids of products to grades"),
    "a grade": (line(relevance={"2": "2"}), "field 'relevance, 2' is '2', of type str; a grade is"),
    "unknown judged": (line(relevance={"9": 2}), "'relevance' names product '9', which is not among the 2"),
    "no JSON": (b'{"query": ', "no JSON"),
    "not UTF-8": (b'{"query": "\xff"}', "no UTF-8"),
    "no object": (b"[1, 2]", "a query is a JSON object"),
    "deep": (b"[" * 100_000, "nested too deeply|no JSON"),
    "missing": (line(pos_candidate=...), "field 'pos_candidate' is missing"),
    "same key twice": (
        line().replace(b'{"1": {"color": "red"}}', b'{"1": {"color": "red"}, "1": {"size": "M"}}'),
        "'1' comes twice",
    ),
    "no condition": (line(query={}), "field 'query' is {}"),
    "two attributes": (line(query={"1": {"color": "red", "size": "M"}}), "must be one"),
    "unknown reference": (
        line(query={"9": {"color": "red"}}),
        "'query' names product '9', which is not among the 2",
    ),
    "unknown positive": (line(pos_candidate=[9]), "'pos_candidate' names product '9'"),
    "unknown negative": (line(hard_negative=[9]), "'hard_negative' names product '9'"),
    "positive twice": (line(pos_candidate=[2, 2]), "names a product twice"),
    "no positive": (line(pos_candidate=[]), "'pos_candidate' is empty"),
    "a number": (line(pos_candidate=2), "must be a list of product ids"),
    "true": (line(pos_candidate=[True]), "must be a list of product ids"),
    "half a character": (line(query={"1": {"color": "\ud800"}}), "half a character"),
    "another attribute": (line(query={"1": {"size": "M"}}), "field 'query instruction'"),
    "no end": (
        line(
            **{
                "query instruction": "Find a product of chair that has the same color with "
                "<Product 1> <image>\nt1"
            }
        ),
        "has no end",
    ),
}


@pytest.mark.parametrize(("content", "says"), BAD_LINES.values(), ids=list(BAD_LINES))
def test_a_bad_line_is_named(tmp_path, content, says):
    write_rows(tmp_path, [row(1), row(2)], [line(), content, line()])
    with pytest.raises(ItemError, match=says) as error:
        cl.dataset(tmp_path)
    assert error.value.item.endswith("queries-test.json, line 2")
    found = cl.dataset(tmp_path, on_error="skip")
    assert [query.id for query in found.queries] == ["merit-test-000000", "merit-test-000002"]
    assert [e.item for e in found.skipped] == [error.value.item]


BAD_ROWS = {
    "same id": ({"idx": 1}, "idx 1 was there before"),
    "no title": ({"title": None}, "field 'title' is None"),
    "no JSON": ({"attribute": "{"}, "attribute is no JSON"),
    "list": ({"attribute": "[1]"}, "must map keys to values"),
    "number": ({"attribute": '{"color": 3}'}, "'attribute, color' is 3"),
    "no id": ({"idx": None}, "field 'idx' is None"),
}


@pytest.mark.parametrize(("changes", "says"), BAD_ROWS.values(), ids=list(BAD_ROWS))
def test_a_bad_product_is_named(tmp_path, changes, says):
    write_rows(tmp_path, [row(1), row(2, **changes), row(3)])
    with pytest.raises(ItemError, match=says) as error:
        cl.dataset(tmp_path)
    assert error.value.item.endswith("parquet, row 1")
    found = cl.dataset(tmp_path, on_error="skip")
    assert [p.id for p in found.products] == ["1", "3"]
    assert len(found.skipped) == 1


PATHS = ["/etc/hostname", "../outside.jpg", "file:///etc/hostname", "a\0b", "sub/../../outside.jpg"]


@pytest.mark.parametrize("path", PATHS)
def test_a_picture_s_path_never_leads_outside(tmp_path, path):
    inner = tmp_path / "inner"
    inner.mkdir()
    noise(8, 8, seed=0).save(tmp_path / "outside.jpg")
    write_rows(inner, [row(1, image={"bytes": None, "path": path})])
    with pytest.raises(ItemError, match=r"outside|no path"):
        cl.dataset(inner).products[0].picture  # noqa: B018


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    noise(8, 8, seed=0).save(tmp_path / "outside.jpg")
    (inner / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    write_rows(inner, [row(1, image={"bytes": None, "path": "link.jpg"})])
    with pytest.raises(ItemError, match="outside"):
        cl.dataset(inner).products[0].picture  # noqa: B018


def test_a_path_inside_the_folder_is_opened(tmp_path):
    noise(8, 9, seed=0).save(tmp_path / "own.png")
    write_rows(tmp_path, [row(1, image={"bytes": None, "path": "own.png"})])
    assert cl.dataset(tmp_path).products[0].picture.size == (8, 9)


def test_remote_pictures_only_if_they_are_allowed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("coral_lab.sources.fetching.is_public", lambda place: place == "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if "good" in self.path else 404)
            self.end_headers()
            self.wfile.write(jpeg(1))

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    write_rows(
        tmp_path,
        [row(i, image={"bytes": None, "path": f"{address}/{n}.jpg"}) for i, n in enumerate(("good", "bad"))],
    )
    with pytest.raises(ItemError, match="remote_images=True"):
        cl.dataset(tmp_path).products[0].picture  # noqa: B018
    assert not asked
    good, bad = cl.dataset(tmp_path, remote_images=True).products
    assert good.picture.size == (40, 30)
    with pytest.raises(ItemError, match="404"):
        bad.picture  # noqa: B018
    server.shutdown()


def test_files_that_are_not_there_or_not_merit_s(tmp_path):
    with pytest.raises(FileNotFoundError, match="coral-lab data"):
        cl.dataset(tmp_path)
    write_rows(tmp_path, [row(1)])
    (tmp_path / "queries-test.json").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape("queries-test.json is missing")):
        cl.dataset(tmp_path)
    parquet.write_table(pa.table({"idx": [1]}), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ItemError, match="has no field 'image', 'title'"):
        cl.dataset(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ItemError, match="no parquet file"):
        cl.dataset(tmp_path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"split": "dev"}, "train or test"),
        ({"on_error": "ignore"}, "raise or skip"),
    ],
)
def test_unknown_arguments(folder, values, says):
    with pytest.raises(ValueError, match=says):
        cl.dataset(folder, **values)


def test_an_unknown_ood_split_is_told_those_there_are(folder):
    with pytest.raises(
        ValueError, match=r"ood split 'size' of .* is not known; it has language, class, attribute"
    ):
        cl.dataset(folder).out_of_distribution("size")


def test_mini_is_one_call_as_any_data_and_has_no_revision():
    assert cl.dataset("mini", "val") is catalogue("mini", "val")
    assert cl.dataset("mini", on_error="skip").skipped == ()
    with pytest.raises(ValueError, match="revision is 'abc', and mini is drawn"):
        cl.dataset("mini", revision="abc")
    with pytest.raises(FileNotFoundError, match="'minni' is no folder and no hub id"):
        cl.dataset("minni")


def test_a_hub_id_is_downloaded_and_read(monkeypatch, folder):
    asked = {}

    def download(name, **options):
        asked.update(name=name, **options)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert len(cl.dataset("WeiChow/merit", revision="abc").queries) == 30
    assert (asked["repo_type"], asked["revision"]) == ("dataset", "abc")
    assert asked["allow_patterns"] == ["data/test-*.parquet", "queries-test.json"]


def test_filters_keep_the_pool():
    shop = catalogue("mini", "test")
    chosen = shop.where(class_name=["shoes", "phone"], attribute="brand", conditions=2)
    assert chosen.products is shop.products
    assert 0 < len(chosen.queries) < len(shop.queries)
    for query in chosen.queries:
        assert query.class_name in ("shoes", "phone")
        assert len(query.conditions) == 2
        assert "brand" in {condition.attribute for condition in query.conditions}
    assert {q.title_language for q in shop.where(language="th").queries} == {"th"}


@pytest.mark.parametrize("kind", ["language", "class", "attribute"])
def test_out_of_distribution_splits_do_not_overlap(kind):
    shop = catalogue("mini", "test")
    unseen, seen = (set(shop.out_of_distribution(kind, flag).queries) for flag in (True, False))
    assert unseen
    assert seen
    assert unseen.isdisjoint(seen)
    values = set(TRAITS.held_back[kind])
    if kind == "class":
        assert {query.class_name for query in unseen} == values
        assert unseen | seen == set(shop.queries)
    if kind == "language":
        assert {product.language for query in seen for product in query.references} == {"en", "vi"}


def test_another_order_still_renders(written):
    query = written.queries[0]
    turned = query.reordered(range(len(query.conditions))[::-1])
    conditions = turned.conditions
    text = instruction(turned)
    assert read_instruction(text, conditions)[1] == [c.product.title for c in conditions]
    assert instruction(replace(query, language="th")) == instruction(query)
