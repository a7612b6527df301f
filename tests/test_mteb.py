"""mteb runs a dataset of ours as its own task, and a model of ours as its own: the figures agree."""

import json
from dataclasses import replace

import mteb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mteb._create_dataloaders import create_dataloader
from mteb.types import PromptType

from coral_lab import Condition, Dataset, Product, Query, encode, index, load
from coral_lab.errors import ItemError
from coral_lab.models.families import CORAL, PLAIN, Family, Turn
from coral_lab.mteb import MERIT, Encoder, _LeavingOut, interleaved, marked, run
from coral_lab.prompts import messages, parts
from coral_lab.sources.picture_column import Shown
from tests.conftest import noise

SIDES = {"queries": PromptType.query, "corpus": PromptType.document}


class Remembering(Encoder):
    """Asked once for each side of a task."""

    known: dict

    def encode(self, inputs, *, prompt_type=None, **asked):
        self.known = getattr(self, "known", {})
        if prompt_type not in self.known:
            self.known[prompt_type] = super().encode(inputs, prompt_type=prompt_type, **asked)
        return self.known[prompt_type]


def opened(dataset: Dataset) -> Dataset:
    """With its pictures drawn once."""
    own = {p.id: replace(p, image=p.picture) for p in dataset.products}
    queries = [
        replace(
            query,
            conditions=tuple(
                replace(c, product=own.get(c.product.id) or replace(c.product, image=c.product.picture))
                for c in query.conditions
            ),
        )
        for query in dataset.queries
    ]
    return replace(dataset, products=tuple(own.values()), queries=tuple(queries))


@pytest.fixture(scope="module")
def small(shop):
    queries = shop.queries[:60]
    return opened(replace(shop, products=shop.smaller_pool(queries, 150), queries=queries))


@pytest.fixture(scope="module")
def model():
    return load("mini")


@pytest.fixture(scope="module")
def remembering(model):
    return Remembering(model, license="cc0-1.0", revision="1")


def batches(task: MERIT, side: str, size: int = 32):
    """A side of a task as mteb hands it to an encoder."""
    task.load_data()
    table = task.dataset["default"]["test"][side]
    return create_dataloader(table, task_metadata=task.metadata, prompt_type=SIDES[side], batch_size=size)


def embedded(model, task: MERIT, side: str) -> np.ndarray:
    return Encoder(model).encode(batches(task, side), prompt_type=SIDES[side])


def assert_same_figures(scores: dict, ours) -> None:
    for k in (1, 5, 10):
        assert abs(scores[f"hit_rate_at_{k}"] - ours.metrics[f"R@{k}"].mean) < 1e-9
    assert abs(scores["mrr_at_10"] - ours.metrics["MRR@10"].mean) < 1e-9
    assert abs(scores["ndcg_at_10"] - ours.metrics["nDCG@10"].mean) < 6e-6  # mteb rounds it
    assert scores["main_score"] == scores["hit_rate_at_1"]


def test_mteb_s_figures_are_ours_with_references_and_without(small, model, remembering):
    pool, found = index(model, small.products), []
    for exclude in (True, False):
        task = MERIT(small, exclude_references=exclude)
        (scores,) = run(remembering, task).scores["test"]
        assert_same_figures(scores, pool.evaluate(small.queries, exclude_references=exclude))
        found.append(scores["hit_rate_at_1"])
    assert 0.8 < found[1] < found[0], "references in the way cost something"
    for side, kind in SIDES.items():
        wanted = small.queries if side == "queries" else small.products
        if side == "corpus":
            np.testing.assert_allclose(remembering.known[kind], pool.embeddings, atol=1e-6)
        else:
            np.testing.assert_allclose(remembering.known[kind], encode(model, wanted), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("exclude", [True, False])
def test_mteb_s_figures_are_ours_on_all_of_merit_mini(shop, model, exclude):
    (scores,) = run(model, MERIT(shop, exclude_references=exclude)).scores["test"]
    assert_same_figures(
        scores, index(model, shop.products).evaluate(shop.queries, exclude_references=exclude)
    )


def bullets(query):
    yield f"Find a {query.class_name}:"
    for condition in query.conditions:
        yield condition.product
        yield f"\n- {condition.attribute}"


@pytest.fixture
def mixed(mixed_queries) -> Dataset:
    """Queries with 2, 1, 0 and 4 pictures, and one whose reference has none; a product without a picture and
    one without a title.
    """
    plain = Product("plain", "  no picture, and <image> in its title ")
    untitled = Product("untitled", image=noise(60, 60, seed=9))
    queries = [*mixed_queries, Query("q-plain", "bag", (Condition("brand", plain),), " <image>.")]
    queries = [replace(query, positives=("untitled",)) for query in queries]
    products = [product for query in mixed_queries for product in query.references]
    return Dataset("mixed", [*products, plain, untitled], queries)


@pytest.mark.parametrize("format", ["seq", "cat", "caption", "merit", "merit cat", bullets])
def test_embeddings_are_those_of_encode_whatever_the_format(random_model, mixed, format):
    task = MERIT(mixed, format)
    wanted = encode(random_model, mixed.queries, format)
    np.testing.assert_allclose(embedded(random_model, task, "queries"), wanted, atol=1e-6)
    products = encode(random_model, mixed.products)
    np.testing.assert_allclose(embedded(random_model, task, "corpus"), products, atol=1e-6)


TALKATIVE = Family(
    "talkative",
    "a family of many words and one picture",
    query=Turn(before="Look for: ", after=" What {what}?"),
    product=Turn(before="For sale: ", between=" called ", after="."),
    most_pictures=1,
)


@pytest.mark.parametrize("family", [CORAL, PLAIN, TALKATIVE], ids=lambda family: family.name)
def test_a_family_is_asked_in_its_own_words(random_model, mixed, family):
    model, task = replace(random_model, family=family), MERIT(mixed)
    for side, wanted in (("queries", mixed.queries), ("corpus", mixed.products)):
        np.testing.assert_allclose(embedded(model, task, side), encode(model, wanted), atol=1e-6)


def test_a_query_s_pictures_come_in_their_order_in_a_list(mixed):
    task = MERIT(mixed)
    (batch,) = batches(task, "queries")
    assert [len(own) for own in batch["image"]] == [2, 1, 0, 4, 0]
    for query, shown, text in zip(mixed.queries, batch["image"], batch["text"], strict=True):
        assert text.count("<image>") == len(shown)
        assert [own.tobytes() for own in shown] == [
            product.picture.tobytes() for product in query.references if product.image is not None
        ]
    (batch,) = batches(task, "corpus")
    assert [own is None for own in batch["image"]] == [p.image is None for p in mixed.products]
    assert batch["body"] == [product.title for product in mixed.products]


def test_another_order_of_pictures_is_another_query(random_model, mixed):
    task = MERIT(mixed)
    (batch,) = batches(task, "queries")
    turned = batch | {"image": [own[::-1] for own in batch["image"]]}
    right, wrong = (
        Encoder(random_model).encode([own], prompt_type=PromptType.query) for own in (batch, turned)
    )
    apart = np.abs(right - wrong).max(1) > 1e-3
    assert apart.tolist() == [True, False, False, True, False]


texts = st.text(st.sampled_from("<image>\u2060 a\n"), min_size=1, max_size=20)


@given(st.lists(st.one_of(texts, st.just(None)), max_size=8))
def test_whatever_a_text_says_its_pictures_stay_where_they_were(found):
    pieces = [Product(f"p{i}", image=b"") if own is None else own for i, own in enumerate(found)]
    query = Query("q", "bag")
    if not any(own.strip() if isinstance(own, str) else True for own in pieces):
        return
    worded = parts(query, lambda _: pieces)
    shown = tuple(Condition("", own) for own in worded if isinstance(own, Product))
    asked = Query("q", "", shown, marked(worded))
    assert parts(asked, interleaved) == worded
    assert asked.text.count("<image>") == len(shown)


def test_pictures_are_opened_batch_by_batch(mixed):
    looked_at = []

    def watched(product):
        return replace(product, image=lambda: looked_at.append(product.id) or noise(20, 20, seed=1))

    products = [watched(Product(f"{i}", f"{i}")) for i in range(10)]
    conditions = Condition("brand", products[0]), Condition("color", products[1])
    task = MERIT(Dataset("d", products, [Query("q", "bag", conditions, positives=("5",))]))
    loaders = {side: batches(task, side, size=4) for side in SIDES}
    assert looked_at == []
    first = iter(loaders["corpus"])
    next(first)
    assert looked_at == ["0", "1", "2", "3"]
    looked_at.clear()
    list(loaders["queries"])
    assert looked_at == ["0", "1"]


def test_a_column_whose_task_is_gone_says_so():
    assert Shown().decode_example("a picture") == "a picture"
    with pytest.raises(ItemError, match="not in this process; make the table here, or fork"):
        Shown().decode_example({"path": "gone/0", "bytes": None})
    task = MERIT(Dataset("d", [Product("1", image=b"broken")], [Query("q", "bag", positives=("1",))]))
    with pytest.raises(ItemError, match="product 1: picture cannot be read"):
        list(batches(task, "corpus"))


def test_other_tasks_of_mteb_s_are_asked_in_plain_words(random_model):
    picture = noise(40, 30, seed=3)
    product = Product("x", "a bag", picture)
    entry = {"type": "image", "image": picture}
    both, text = {"text": ["a bag"], "image": [picture]}, {"text": ["a bag"]}
    titled = {"text": ["a bag"], "body": ["bag"], "title": ["a"]}
    asked = [
        (text, PromptType.query, [{"role": "user", "content": "a bag"}]),
        ({"image": [picture]}, PromptType.query, [{"role": "user", "content": [entry]}]),
        (both, PromptType.query, [{"role": "user", "content": [entry, {"type": "text", "text": "a bag"}]}]),
        (both, PromptType.document, messages(product)),
        (both, None, messages(product)),
        (text, None, messages(Product("x", "a bag"))),
        (titled, PromptType.document, messages(Product("x", "a bag"))),
        ({"image": [picture]}, None, messages(Product("x", image=picture))),
    ]
    for batch, kind, wanted in asked:
        found = Encoder(random_model).encode([batch], prompt_type=kind)
        np.testing.assert_allclose(found, encode(random_model, [wanted]), atol=1e-6)


def test_similarities_are_cosines(random_model, mixed):
    encoder, rows = Encoder(random_model), encode(random_model, mixed.products[:3])
    np.testing.assert_allclose(encoder.similarity(rows, rows), rows @ rows.T, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(rows[0], rows), rows[:1] @ rows.T, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(rows, rows), np.ones(3), atol=1e-6)
    assert encoder.encode([]).shape == (0, random_model.dim)


class Ranking:
    """A search that gives what it is told."""

    mteb_model_meta = None
    asked = 0

    def index(self, corpus, **_):
        self.corpus = corpus

    def search(self, queries, *, top_k, **_):
        self.asked = top_k
        return {"q": {"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.7}, "p": {"a": 0.9, "b": 0.8}}


def test_references_are_left_out_and_the_ranking_stays_as_long():
    inner = Ranking()
    search = _LeavingOut(inner, {"q": {"a", "not ranked"}, "p": set()})
    search.index("corpus", num_proc=None)
    found = search.search(None, top_k=2, num_proc=None)
    assert inner.corpus == "corpus"
    assert inner.asked == 4
    assert list(found["q"].items()) == [("c", 0.8), ("b", 0.8)]  # of equal ones the higher id, as mteb does
    assert list(found["p"]) == ["a", "b"]


def test_positives_among_the_references_stay(shop):
    first, second = shop.products[:2]
    conditions = Condition("brand", first), Condition("color", second)
    task = MERIT(Dataset("d", [first, second], [Query("q", "bag", conditions, positives=(second.id,))]))
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coral_lab.mteb._LeavingOut", lambda model, gone: seen.update(gone))
        with pytest.raises(Exception):  # noqa: B017, PT011 - there is no model behind it
            task.evaluate(Ranking(), encode_kwargs={})
    assert seen == {"q": {first.id}}


def test_others_models_run_the_task(mixed):
    """mteb's own baseline takes one picture, as most of its models do."""
    baseline = mteb.get_model("mteb/baseline-random-encoder")
    shown = Dataset("shown", [p for p in mixed.products if p.image is not None], mixed.queries[:2])
    assert 0 <= run(baseline, MERIT(shown, "cat")).get_score() <= 1
    task = MERIT(mixed, "cat")
    (batch,) = batches(task, "queries")
    assert [own is None for own in batch["image"]] == [False, False, True, False, True]


def test_results_are_written_where_mteb_finds_them(random_model, mixed, tmp_path):
    encoder = Encoder(random_model, revision="abc", license="cc0-1.0")
    task = MERIT(mixed)
    result = run(encoder, task, tmp_path / "out")
    folder = tmp_path / "out" / "results" / encoder.mteb_model_meta.model_name_as_path() / "abc"
    assert sorted(file.name for file in folder.iterdir()) == ["MERIT-mixed.json", "model_meta.json"]
    written = json.loads((folder / "MERIT-mixed.json").read_text())
    (scores,) = written["scores"]["test"]
    assert scores["hit_rate_at_10"] == pytest.approx(result.scores["test"][0]["hit_rate_at_10"], abs=1e-6)
    assert written["dataset_revision"] == task.metadata.dataset["revision"]
    kept = mteb.ResultCache(tmp_path / "out").load_results(["coral-lab/" + folder.parent.name.split("__")[1]])
    assert kept.model_results[0].task_results[0].task_name == "MERIT-mixed"
    assert json.loads((folder / "model_meta.json").read_text())["embed_dim"] == random_model.dim
    again = mteb.evaluate(encoder, task, cache=mteb.ResultCache(tmp_path / "out"), show_progress_bar=False)
    assert again.task_results[0].date == result.date  # found, and not made again


def test_results_go_through_no_link(random_model, mixed, tmp_path, monkeypatch):
    encoder = Encoder(random_model, revision="abc")
    result = run(encoder, MERIT(mixed), tmp_path / "out")
    monkeypatch.setattr(
        "coral_lab.mteb.mteb.evaluate",
        lambda *_, **__: mteb.results.ModelResult(
            model_name="x/y", model_revision="1", task_results=[result]
        ),
    )
    folder = tmp_path / "out" / "results" / encoder.mteb_model_meta.model_name_as_path() / "abc"
    (tmp_path / "precious").write_text("precious")
    (folder / "MERIT-mixed.json").unlink()
    (folder / "MERIT-mixed.json").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is a link, which is not followed"):
        run(encoder, MERIT(mixed), tmp_path / "out")
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="results is a link; name the folder"):
        run(encoder, MERIT(mixed), tmp_path / "other")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not list((tmp_path / "real").iterdir())


def test_a_task_says_what_it_was_made_of(mixed):
    tasks = [MERIT(mixed), MERIT(mixed, "cat"), MERIT(mixed, bullets), MERIT(mixed, exclude_references=False)]
    names = [task.metadata.name for task in tasks]
    assert names == ["MERIT-mixed", "MERIT-mixed-cat", "MERIT-mixed-bullets", "MERIT-mixed-references-kept"]
    fewer = MERIT(replace(mixed, queries=mixed.queries[1:]), name="mine")
    assert fewer.metadata.name == "mine"
    revisions = {task.metadata.dataset["revision"] for task in [*tasks, fewer]}
    assert len(revisions) == 5
    assert MERIT(mixed).metadata.dataset["revision"] in revisions
    assert tasks[0].metadata.main_score == "hit_rate_at_1"
    assert MERIT(replace(mixed, name="a/b\n../c")).metadata.name == "MERIT-a-b-..-c"


def test_a_task_can_be_loaded_again(mixed):
    task = MERIT(mixed)
    for _ in range(2):
        assert len(batches(task, "queries").dataset) == len(mixed.queries)
        task.unload_data()
    assert task.metadata.name == "MERIT-mixed"


def test_what_no_figure_can_be_made_of_is_named(mixed):
    query, product = mixed.queries[0], mixed.products[0]
    for products, queries, says in (
        ([product, product], [query], "product p0: its id stands twice"),
        (mixed.products, [query, query], "query q0: its id stands twice"),
        ([product], [query], "query q0: none of its 1 positives is in the pool; leave it out"),
    ):
        with pytest.raises(ItemError, match=says):
            MERIT(Dataset("d", products, queries))
    with pytest.raises(ItemError, match="query q0: its format gives neither text nor picture"):
        MERIT(mixed, lambda _: [])


def test_what_cannot_be_asked_is_named(random_model):
    encoder, pictures = Encoder(random_model), [noise(9, 9, 0), noise(9, 9, 1)]
    with pytest.raises(ValueError, match="precision is 'int8'; leave it out for float32"):
        encoder.encode([{"text": ["x"]}], precision="int8")
    with pytest.raises(ItemError, match="document 0: shows 2 pictures, and a document is a product with one"):
        encoder.encode([{"text": ["x"], "image": [pictures]}], prompt_type=PromptType.document)
    with pytest.raises(ItemError, match="query '0': it is empty"):
        encoder.encode([{"text": [" "]}], prompt_type=PromptType.query)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mini", "coral-lab/mini"),
        ("Bia/CORAL", "Bia/CORAL"),
        ("/a/b/my model", "coral-lab/my-model"),
        ("..", "coral-lab/unnamed"),
    ],
)
def test_a_model_has_a_name_that_mteb_takes_and_no_path(random_model, name, expected):
    meta = Encoder(replace(random_model, name=name), revision="1").mteb_model_meta
    assert meta.name == expected
    assert meta.embed_dim == random_model.dim
    assert meta.n_parameters == sum(own.numel() for own in random_model.network.parameters())
    assert meta.similarity_fn_name.value == "cosine"
    assert set(meta.modalities) == {"text", "image"}


def test_a_folder_is_no_hub_id(random_model, tmp_path, monkeypatch):
    (tmp_path / "build" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    meta = Encoder(replace(random_model, name="build/mine"), revision="1").mteb_model_meta
    assert meta.name == "coral-lab/mine"
