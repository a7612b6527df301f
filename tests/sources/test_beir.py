"""BEIR's folders: what is written is read as the same dataset, by others too, and hostile files are named."""

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coral_lab import Condition, Dataset, Product, Query, dataset
from coral_lab.errors import ItemError
from coral_lab.sources import read_beir, read_qrels, write_beir, write_qrels
from coral_lab.sources.border import composed
from tests.conftest import noise


def facts(product: Product) -> tuple:
    picture = product.picture
    shown = None if picture is None else (picture.size, picture.tobytes())
    kept = (product.title, product.class_name, product.language, product.country)
    return product.id, *kept, list(product.attributes.items()), shown


def asked(query: Query) -> tuple:
    conditions = [(c.attribute, c.value, facts(c.product)) for c in query.conditions]
    own = (query.class_name, query.text, query.language)
    return query.id, *own, conditions, query.positives, query.hard_negatives, dict(query.relevance)


def assert_same(found: Dataset, wanted: Dataset) -> None:
    assert [*map(facts, found.products)] == [*map(facts, wanted.products)]
    assert [*map(asked, found.queries)] == [*map(asked, wanted.queries)]
    assert not found.skipped


def there_and_back(given: Dataset, split: str = "test") -> Dataset:
    with TemporaryDirectory() as folder:
        write_beir(given, folder, split)
        found = dataset(folder, split)
        assert_same(found, given)  # while its pictures are there
    return found


def encoded(kind: str, seed: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    noise(9, 7, seed).convert(mode).save(file, kind)
    return file.getvalue()


PICTURES = (
    None,
    noise(8, 5, 0),
    noise(8, 5, 0).convert("RGBA"),
    lambda: noise(5, 8, 1),
    encoded("JPEG", 2),
    encoded("PNG", 3, "RGBA"),
)
texts = st.text(st.characters(codec="utf-8"), max_size=12).map(composed)
ids = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
ids = ids.map(composed).filter(lambda id: id.isprintable() and not id.startswith('"'))
attributes = st.dictionaries(texts, st.lists(texts, max_size=3).map(tuple), max_size=3)
details = st.tuples(texts, st.sampled_from(PICTURES), texts, texts, texts, attributes)


@st.composite
def shops(draw) -> Dataset:
    named = draw(st.lists(ids, min_size=1, max_size=5, unique=True))
    products = [Product(id, *draw(details)) for id in named]
    strangers = [Product(draw(ids), *draw(details))]
    others = [replace(draw(st.sampled_from(products)), title=draw(texts))]
    shown = st.sampled_from(products + strangers + others)
    queries = []
    for number in range(draw(st.integers(0, 3))):
        conditions = draw(st.lists(st.builds(Condition, texts, shown, texts), max_size=3))
        answers = draw(st.lists(st.sampled_from([*named, "not in the pool"]), max_size=4, unique=True))
        cut = draw(st.integers(0, len(answers)))
        text, language = draw(texts), draw(st.sampled_from(["en", "th"]))
        own = answers[:cut], answers[cut:]
        query = Query(f"q {number}", "bag", tuple(conditions), text, *map(tuple, own), language)
        others = [id for id in named if id not in answers]
        grades = {id: draw(st.integers(0, 3)) for id in draw(st.permutations(answers + others))}
        queries.append(replace(query, relevance=draw(st.sampled_from([{}, grades]))))
    return Dataset("made up", products, queries)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, in what is drawn
@settings(max_examples=40, deadline=None)
@given(shops())
def test_what_is_written_is_read_as_the_same(given):
    there_and_back(given, "dev")


def test_merit_mini_comes_back(shop, tmp_path):
    queries = shop.queries[:8]
    small = Dataset("small", shop.smaller_pool(queries, 30), queries)
    found = there_and_back(small)
    assert len({product.id for query in queries for product in query.references}) > 8
    assert found.traits.visual == ()  # what traits there were the caller has


def test_references_outside_of_the_pool_survive():
    bag = Product("1", "a bag", noise(9, 9, 1))
    outside = Product("2", "a hat", noise(9, 9, 2), "hat", "en", "MY", {"color": ("red", "blue")})
    retitled = replace(bag, title="another title")
    query = Query(
        "q", "bag", (Condition("color", outside, "red"), Condition("brand", retitled)), " .", ("1",)
    )
    found = there_and_back(Dataset("d", [bag], [query]))
    assert [p.id for p in found.products] == ["1"]
    assert found.queries[0].references[0].attributes == outside.attributes


def test_bytes_and_files_are_copied_as_they_are_and_equal_ones_once(tmp_path):
    photo = encoded("JPEG", 3)
    (tmp_path / "photo.bin").write_bytes(photo)
    images = [photo, tmp_path / "photo.bin", str(tmp_path / "photo.bin"), lambda: photo, noise(9, 7, 4)]
    products = [Product(str(i), image=image) for i, image in enumerate(images)]
    write_beir(Dataset("d", products, []), tmp_path / "out")
    stored = sorted((tmp_path / "out" / "images").iterdir(), key=lambda file: file.suffix)
    assert [file.suffix for file in stored] == [".jpeg", ".png"]
    assert stored[0].read_bytes() == photo


def test_tools_for_beir_read_it(shop, tmp_path):
    """As beir's GenericDataLoader does."""
    queries = shop.queries[:5]
    write_beir(Dataset("d", shop.smaller_pool(queries, 20), queries), tmp_path)
    corpus = {}
    for line in (tmp_path / "corpus.jsonl").read_text().splitlines():
        record = json.loads(line)
        corpus[record["_id"]] = {"text": record.get("text"), "title": record.get("title")}
    asked = [json.loads(line) for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    judged: dict = {}
    with (tmp_path / "qrels" / "test.tsv").open() as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
        next(rows)
        for query, product, score in rows:
            judged.setdefault(query, {})[product] = int(score)
    assert {query["_id"] for query in asked} == judged.keys() == {query.id for query in queries}
    for query, record in zip(queries, asked, strict=True):
        assert {id for id, score in judged[query.id].items() if score > 0} == set(query.positives)
        assert {id for id, score in judged[query.id].items() if score == 0} == set(query.hard_negatives)
        assert record["text"].count("<image>") == len(record["images"]) == len(query.conditions)
        for image, product in zip(record["images"], query.references, strict=True):
            assert Image.open(tmp_path / image).convert("RGB").tobytes() == product.picture.tobytes()
        assert all(corpus[id]["title"] for id in query.positives)


def written(folder: Path, corpus: list, queries: list, qrels: str, split: str = "test") -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, lines in (("corpus", corpus), ("queries", queries)):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in texts))
    (folder / "qrels" / f"{split}.tsv").write_text(qrels)
    return folder


def test_a_folder_that_others_made(tmp_path):
    corpus = [{"_id": "d1", "title": "A title", "text": "and a text."}, {"_id": 2, "text": "no title"}]
    queries = [{"_id": "1", "text": "what?", "metadata": {}}, {"_id": "of train", "text": "other"}]
    qrels = "query-id\tcorpus-id\tscore\n1\td1\t2\r\n1\t2\t0\n1\tgone\t-1\n"
    found = dataset(written(tmp_path, corpus, queries, qrels))
    assert [(p.id, p.title) for p in found.products] == [("d1", "A title and a text."), ("2", "no title")]
    assert [(q.id, q.text) for q in found.queries] == [("1", "what?")]
    assert found.queries[0].positives == ("d1",)
    assert found.queries[0].hard_negatives == ("2", "gone")
    assert found.name == f"{tmp_path}/test"
    write_beir(found, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "queries.jsonl").read_text())["text"] == "what?"
    assert_same(dataset(tmp_path / "again"), found)


FOREIGN = [{"_id": id, "text": f"what is {id}?"} for id in ("1", "2")]


@pytest.mark.parametrize(
    ("scores", "relevance"),
    [
        (("1 a 2", "1 b 1", "1 c 0", "1 d -1", "2 a 1"), [{"a": 2, "b": 1, "c": 0, "d": 0}, {"a": 1}]),
        (("1 a 1", "1 b 1", "1 c 0", "1 d -1", "2 a 1"), [{}, {}]),
        (("1 a 3.0", "1 b 100", "1 c 0", "1 d 0", "2 a 1"), [{"a": 3, "b": 100, "c": 0, "d": 0}, {"a": 1}]),
    ],
)
def test_scores_of_others_are_grades_where_one_is_above_1(tmp_path, scores, relevance):
    corpus = [{"_id": id, "text": id} for id in "abcd"]
    qrels = "".join(own.replace(" ", "\t") + "\n" for own in scores)
    found = dataset(written(tmp_path / "theirs", corpus, FOREIGN, qrels))
    assert [dict(query.relevance) for query in found.queries] == relevance
    assert [query.positives for query in found.queries] == [("a", "b"), ("a",)]
    assert found.queries[0].hard_negatives == ("c", "d")
    there_and_back(found)


def test_a_judged_set_comes_back_and_other_tools_read_its_grades(tmp_path):
    judged = Query("q 1", "bag").judged({"9007199254740993000": 2, "b c": 1, "d": 0, "e": 1}, least=2)
    plain = Query("q 2", "bag", (), "", ("d",), ("e",))
    products = [Product(id) for id in (*judged.relevance,)]
    given = Dataset("d", products, [judged, plain])
    there_and_back(given)
    write_beir(given, tmp_path)
    assert (tmp_path / "qrels" / "test.tsv").read_text().splitlines()[1:] == [
        "q 1\t9007199254740993000\t2",
        "q 1\td\t0",
        "q 1\tb c\t1",
        "q 1\te\t1",
        "q 2\td\t1",
        "q 2\te\t0",
    ]
    lines = (tmp_path / "queries.jsonl").read_text()
    for changed in ('{"positives": ["x"]', '{"positives": "d"', '{"negatives": []', '"no", "x": {"y": []'):
        broken = lines.replace('{"positives": ["9007199254740993000"]', changed, 1)
        (tmp_path / "queries.jsonl").write_text(broken)
        with pytest.raises(ItemError, match=r"queries.jsonl, line 1: field 'metadata, judged"):
            read_beir(tmp_path)
    (tmp_path / "queries.jsonl").write_text(lines)
    stale = replace(judged, positives=("elsewhere",))
    for write in (write_beir, write_qrels):
        with pytest.raises(ItemError, match="query q 1, answer 'elsewhere': has no grade, and others"):
            write(replace(given, queries=[stale]), tmp_path / write.__name__)


def test_a_folder_without_grades_is_written_as_before(tmp_path):
    query = Query("q", "bag", (), "", ("a",), ("b",))
    write_beir(Dataset("d", [Product("a"), Product("b")], [query]), tmp_path)
    metadata = {"split": "test", "class": "bag", "language": "en", "text": "", "conditions": []}
    (line,) = (tmp_path / "queries.jsonl").read_text().splitlines()
    assert json.loads(line)["metadata"] == metadata
    assert (tmp_path / "qrels/test.tsv").read_text() == "query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t0\n"


def test_judgements_without_a_header_are_all_read(tmp_path):
    found = read_beir(
        written(tmp_path, [{"_id": "a", "text": "x"}], [{"_id": "q", "text": "y"}], "q\ta\t1\n")
    )
    assert found.queries[0].positives == ("a",)


PRODUCT, QUERY, JUDGED = {"_id": "a", "title": "t"}, {"_id": "q", "text": "x"}, "q\ta\t1\n"
BROKEN = {
    "no JSON": ({"corpus": [PRODUCT, "{"]}, r"corpus.jsonl, line 2: it is no JSON"),
    "no object": ({"corpus": ["[1]"]}, r"line 1: it is \[1\]; write a JSON object"),
    "deep": ({"corpus": ["[" * 99_999]}, r"line 1: it is (nested too deeply|no JSON)"),
    "key twice": ({"corpus": ['{"_id": "a", "_id": "b"}']}, r"line 1: one of the keys .* comes twice"),
    "no id": ({"corpus": [{"title": "t"}]}, r"line 1: field '_id' is None; it must be text"),
    "id twice": ({"corpus": [PRODUCT, PRODUCT]}, r"line 2: _id 'a' was there before"),
    "title": ({"corpus": [PRODUCT | {"title": 3}]}, r"line 1: field 'title' is 3, of type int"),
    "metadata": ({"corpus": [PRODUCT | {"metadata": []}]}, None),
    "metadata text": (
        {"corpus": [PRODUCT | {"metadata": "x"}]},
        r"field 'metadata' is 'x'; it must be an object",
    ),
    "attributes": (
        {"corpus": [PRODUCT | {"metadata": {"attributes": 3}}]},
        r"'metadata, attributes' is 3",
    ),
    "absolute": (
        {"corpus": [PRODUCT | {"image": "/etc/passwd"}]},
        r"to '/etc/passwd', out of the folder",
    ),
    "upwards": ({"corpus": [PRODUCT | {"image": "images/../../x.png"}]}, r"out of the folder; give the path"),
    "backslash": ({"corpus": [PRODUCT | {"image": "..\\x.png"}]}, r"line 1: field 'image' is"),
    "address": ({"corpus": [PRODUCT | {"image": "https://x.org/1.png"}]}, r"line 1: field 'image' is 'https"),
    "data": (
        {"corpus": [PRODUCT | {"image": "data:image/png,AA"}]},
        r"line 1: field 'image' is 'data",
    ),
    "null": ({"corpus": [PRODUCT | {"image": "a\0b"}]}, r"line 1: field 'image' is"),
    "long": ({"corpus": [PRODUCT | {"image": "x" * 9999}]}, r"line 1: field 'image' is 'xxx.*no path"),
    "missing": ({"corpus": [PRODUCT | {"image": "images/1.png"}]}, r"'images/1.png', which does not exist"),
    "folder": ({"corpus": [PRODUCT | {"image": "qrels"}]}, r"is no regular file"),
    "empty query": ({"queries": [{"_id": "q"}]}, r"queries.jsonl, line 1: it is empty"),
    "query twice": ({"queries": [QUERY, QUERY]}, r"queries.jsonl, line 2: _id 'q' was there before"),
    "conditions": (
        {"queries": [QUERY | {"metadata": {"conditions": 1}}]},
        r"conditions' is 1; it must be",
    ),
    "unknown reference": (
        {"queries": [QUERY | {"metadata": {"conditions": [{"attribute": "brand", "product": "z"}]}}]},
        r"line 1: product 'z' of a condition is not in corpus.jsonl; tell it in full",
    ),
    "reference that leads out": (
        {"queries": [QUERY | {"metadata": {"conditions": [{"product": PRODUCT | {"image": "/x"}}]}}]},
        r"queries.jsonl, line 1: field 'image' leads to '/x'",
    ),
    "two fields": ({"qrels": "q\ta\n"}, r"test.tsv, line 1: it reads \['q', 'a'\]; write query-id"),
    "no number": ({"qrels": "q\ta\tyes\n"}, r"test.tsv, line 1: it reads"),
    "no whole number": ({"qrels": "q\ta\t0.5\n"}, r"line 1: it reads .*a whole number up to 100"),
    "no grade": ({"qrels": "q\ta\t101\n"}, r"test.tsv, line 1: it reads"),
    "not finite": ({"qrels": "q\ta\tnan\n"}, r"test.tsv, line 1: it reads"),
    "judged twice": ({"qrels": JUDGED + JUDGED}, r"test.tsv, line 2: corpus-id 'a' is judged twice"),
    "no such query": ({"qrels": JUDGED + "z\ta\t1\n"}, r"test.tsv: query-id 'z' is not in queries.jsonl"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_right_is_named_by_file_and_line_or_skipped(tmp_path, name):
    changes, says = BROKEN[name]
    parts = {"corpus": [PRODUCT], "queries": [QUERY], "qrels": JUDGED} | changes
    folder = written(tmp_path / "in", *parts.values())
    with pytest.raises(ItemError, match=says):
        read_beir(folder)
    found = dataset(folder, on_error="skip")
    assert len(found.skipped) >= 1
    assert sum(len(part) for part in (found.products, found.queries)) <= 2


def test_other_encodings_and_long_lines_are_named(tmp_path):
    folder = written(tmp_path, [PRODUCT], [QUERY], JUDGED)
    corpus = folder / "corpus.jsonl"
    for content, says in (
        (json.dumps(PRODUCT).encode("utf-16"), "UTF-16 or UTF-32; write it as UTF-8"),
        (b'{"_id": "\xff"}', "line 1: it is no UTF-8"),
        (b'{"_id": "' + b"x" * 2**24 + b'"}', "line 1: has more than 16,777,216 bytes"),
    ):
        corpus.write_bytes(content)
        with pytest.raises(ItemError, match=says):
            read_beir(folder)
    corpus.write_bytes(b"\xef\xbb\xbf" + json.dumps(PRODUCT).encode() + b"\n\n")
    assert len(read_beir(folder).products) == 1


def test_links_lead_nowhere(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded("PNG", 1))
    folder = written(tmp_path / "in", [PRODUCT | {"image": "images/1.png"}], [QUERY], JUDGED)
    (folder / "images").mkdir()
    (folder / "images" / "1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ItemError, match="line 1: is a link that leads out"):
        read_beir(folder)
    (folder / "images" / "1.png").unlink()
    (folder / "images" / "1.png").symlink_to("1.png")
    with pytest.raises(ItemError, match=r"corpus\.jsonl, line 1"):
        read_beir(folder)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        own = written(tmp_path / name.replace("/", "-"), [PRODUCT], [QUERY], JUDGED)
        (tmp_path / "copy").write_bytes((own / name).read_bytes())
        (own / name).unlink()
        (own / name).symlink_to(tmp_path / "copy")
        with pytest.raises(ItemError, match="is a link that leads out"):
            read_beir(own)


def test_arguments_are_named(tmp_path):
    folder = written(tmp_path, [PRODUCT], [QUERY], JUDGED)
    with pytest.raises(FileNotFoundError, match=r"dev.tsv is missing; the splits of this folder are: test"):
        dataset(folder, "dev")
    for split in ("../test", "", "a/b", "-x"):
        with pytest.raises(ValueError, match=r"split is .*; give the name of a file in qrels"):
            read_beir(folder, split)
        with pytest.raises(ValueError, match="split is"):
            write_beir(Dataset("d", [], []), tmp_path, split)
    with pytest.raises(ValueError, match="on_error is 'no'; use raise or skip"):
        read_beir(folder, on_error="no")
    with pytest.raises(ValueError, match=r"revision is 'main', and .* is a folder as it is; leave it out"):
        dataset(folder, revision="main")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"queries\.jsonl is missing; a BEIR folder has"):
        read_beir(folder)


@pytest.mark.parametrize("id", ["a\tb", "a\nb", '"a', "a\x1b[2J", "a\u2028b"])
def test_what_a_table_cannot_hold_is_refused(tmp_path, id):
    for products, queries in (
        ([Product(id)], []),
        ([], [Query(id, "bag")]),
        ([], [Query("q", "bag", (), "", (id,))]),
    ):
        with pytest.raises(ItemError, match="control characters, or begins with a quotation mark; rename it"):
            write_beir(Dataset("d", products, queries), tmp_path)


def test_what_stands_twice_is_refused_and_what_cannot_be_opened_named(tmp_path):
    for shop, says in (
        (Dataset("d", [Product("a"), Product("a")], []), "product a: its id stands twice"),
        (Dataset("d", [], [Query("q", "bag")] * 2), "query q: its id stands twice"),
        (Dataset("d", [], [Query("q", "bag", (), "", ("a",), ("a",))]), "query q, answer 'a': .*twice"),
        (Dataset("d", [Product("a", image=b"no picture")], []), "product a: picture cannot be read"),
        (Dataset("d", [Product("a", image=Path("nowhere.png"))], []), "product a: picture .* does not exist"),
    ):
        with pytest.raises(ItemError, match=says):
            write_beir(shop, tmp_path)
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    shop = Dataset("d", [Product("a", image=noise(9, 9, 0))], [Query("q", "bag", (), "", ("a",))])
    for place in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        folder = tmp_path / place.replace("/", "-")
        (folder / place).parent.mkdir(parents=True)
        (folder / place).symlink_to(tmp_path / "precious")
        with pytest.raises(ValueError, match="is a link, which is not followed"):
            write_beir(shop, folder)
    (tmp_path / "real").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="images is a link"):
        write_beir(shop, tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is a link, which is not followed"):
        write_qrels(shop, tmp_path / "link")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not os.listdir(tmp_path / "real")


def test_trec_s_judgements_go_with_its_runs(random_model, shop, tmp_path):
    """pytrec_eval reads both, and finds what we do."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    from coral_lab import evaluate

    queries = shop.queries[:20]
    small = Dataset("d", shop.smaller_pool(queries, 60), queries)
    write_qrels(small, tmp_path / "qrels")
    result = evaluate(random_model, small.queries, small.products)
    result.write_trec(tmp_path / "run")
    with (tmp_path / "qrels").open() as qrels, (tmp_path / "run").open() as run:
        judged, ranked = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run)
    first = queries[0]
    assert judged[first.id] == dict.fromkeys(first.positives, 1) | dict.fromkeys(first.hard_negatives, 0)
    found = pytrec_eval.RelevanceEvaluator(judged, {"success.1,5,10"}).evaluate(ranked)
    for k in (1, 5, 10):
        mean = np.mean([own[f"success_{k}"] for own in found.values()])
        assert abs(mean - result.metrics[f"R@{k}"].mean) < 1e-9
    # Its gain is the judgement itself: ours are 2^grade - 1.
    grades = [dict(zip(q.positives, [2, 1, 3] * 99, strict=False)) for q in small.queries]
    graded = [q.judged(own) for q, own in zip(small.queries, grades, strict=True)]
    gains = {q.id: {id: 2**own - 1 for id, own in q.relevance.items()} for q in graded}
    theirs = pytrec_eval.RelevanceEvaluator(gains, {"ndcg_cut.10"}).evaluate(ranked)
    ours = replace(result, queries=graded).per_query.set_index("query")["nDCG@10"]
    assert ours.max() > 0
    for id, own in theirs.items():
        assert abs(own["ndcg_cut_10"] - ours[id]) < 1e-9


def test_ids_that_trec_cannot_hold_are_named(tmp_path):
    for queries, says in (
        ([Query("q 1", "bag", (), "", ("a",))], "id 'q 1': has white space"),
        ([Query("q", "bag", (), "", ("a b",))], "id 'a b': has white space"),
        ([Query("q", "bag")] * 2, "query q: its id stands twice"),
    ):
        with pytest.raises(ItemError, match=says):
            write_qrels(Dataset("d", [], queries), tmp_path / "qrels")
    assert not os.listdir(tmp_path)


trec_ids = ids.filter(lambda id: not any(map(str.isspace, id)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(trec_ids, st.integers(0, 3), max_size=5), max_size=3), st.integers(0, 3))
def test_trec_s_judgements_are_read_as_they_were_written(judged, least):
    asked = [Query(f"q{number}", "bag") for number in range(len(judged))]
    queries = [query.judged(grades, least) for query, grades in zip(asked, judged, strict=True)]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "qrels"
        write_qrels(Dataset("d", [Product("p")], queries), file)
        found = read_qrels(file, Dataset("d", [Product("p")], asked), least)
    kept = [query for query in queries if query.positives]
    assert [*map(tuple, map(sorted, (own.positives for own in found.queries)))] == [
        tuple(sorted(query.positives)) for query in kept
    ]
    assert [query.relevance for query in found.queries] == [query.relevance for query in kept]
    assert [{*own.hard_negatives} for own in found.queries] == [{*own.hard_negatives} for own in kept]
    assert len(found.skipped) == len(queries) - len(kept)


def test_trec_s_judgements_of_others(tmp_path):
    shop = Dataset("d", [Product("a")], [Query("q", "bag", (), "", ("z",)), Query("r", "bag")])
    file = tmp_path / "qrels.txt"
    file.write_bytes(b"\xef\xbb\xbfq 0 9007199254740993000 2\r\nq\t0\ta   1\n\nq Q0 b -1\n")
    found = read_qrels(file, shop, least=2)
    (query,) = found.queries
    assert query.relevance == {"9007199254740993000": 2, "a": 1, "b": 0}
    assert (query.positives, query.hard_negatives) == (("9007199254740993000",), ("b",))
    assert found.products is shop.products
    assert [str(own) for own in found.skipped] == ["query r: none of its 0 judged products is graded 2"]
    for content, says in (
        ("q 0 a", r"line 1: it reads \['q', '0', 'a'\]; write query, 0, product and grade, with blanks"),
        ("q 0 a 1\nq 0 a 2", r"line 2: corpus-id 'a' is judged twice for query 'q'"),
        ("q 0 a 1 x", "line 1: it reads"),
        ("q 0 a inf", "line 1: it reads"),
        ("q 0 a 1e3", "line 1: it reads"),
        ("x 0 a 1", r"qrels.txt: judges query 'x', which d has not"),
        ("q 0 a 1\x00", "line 1: it reads"),
    ):
        file.write_text(content)
        with pytest.raises(ItemError, match=says):
            read_qrels(file, shop)
    for least in (-1, 101, True):
        with pytest.raises(ValueError, match=r"least is .*; give a grade from 0 to 100"):
            read_qrels(file, shop, least)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        read_qrels(tmp_path / "nowhere", shop)
