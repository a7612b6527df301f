"""What is in a store is what was encoded, nothing stale, nothing lost, nothing twice; and it says what it
cannot read.
"""

import os
import random
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import coral_lab as cl
from coral_lab import Product, Settings, encode, load, open_store
from coral_lab.errors import ItemError, StoreError
from coral_lab.models import embedding, fingerprints
from coral_lab.store import approximate
from coral_lab.store.tables import MARKER, Record, Table
from coral_lab.store.topk import top_k
from tests.conftest import noise


@pytest.fixture
def counted(monkeypatch):
    """How many items were really encoded."""
    calls = []
    plain = embedding._embed
    monkeypatch.setattr(
        embedding, "_embed", lambda model, batch: calls.append(len(batch)) or plain(model, batch)
    )
    return calls


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "my store"


def test_the_second_time_nothing_is_encoded_and_all_is_the_same(random_model, shop, folder, counted):
    items = [*shop.products[:20], *shop.queries[:10], [{"role": "user", "content": "a red bag"}]]
    first = encode(random_model, items, settings=Settings(store=folder))
    assert sum(counted) == 31
    second = encode(random_model, items[::-1], settings=Settings(store=folder))
    assert sum(counted) == 31
    np.testing.assert_array_equal(first, second[::-1])
    np.testing.assert_allclose(first, encode(random_model, items, settings=Settings(store="")), atol=1e-5)


def test_the_environment_says_where_and_nothing_is_kept_without(
    random_model, shop, folder, counted, monkeypatch
):
    monkeypatch.setenv("CORAL_LAB_STORE", str(folder))
    for _ in range(2):
        encode(random_model, shop.products[:3])
    assert sum(counted) == 3
    encode(random_model, shop.products[:3], settings=Settings(store=""))
    assert sum(counted) == 6
    monkeypatch.delenv("CORAL_LAB_STORE")
    encode(random_model, shop.products[:3])
    assert sum(counted) == 9


def test_whatever_changes_an_embedding_makes_a_new_one(random_folder, shop, folder, counted):
    """Weights, dtype, pixel limits, format, text, picture: each alone."""
    query, product = shop.queries[0], replace(shop.products[0], image=noise(90, 90, seed=0))

    def fresh(item, model, **options):
        before = len(counted)
        row = encode(model, item, **options, settings=Settings(store=folder))
        np.testing.assert_allclose(
            row, encode(model, item, **options, settings=Settings(store="")), atol=1e-5
        )
        return len(counted) - before - 1

    model = load(random_folder)
    assert [fresh(item, model) for item in (product, query, product, query)] == [1, 1, 0, 0]
    assert fresh(query, model, format="caption") == 1
    assert fresh(query, model, format=lambda q: iter([f"a {q.class_name}"])) == 1
    assert fresh(replace(product, title="another title"), model) == 1
    assert fresh(replace(product, image=noise(90, 90, seed=1)), model) == 1
    assert fresh(query.reordered(range(len(query.conditions))[::-1]), model) == 1
    model.processor.image_processor.size["longest_edge"] //= 4
    model.pixels._kept.clear()
    assert fresh(product, model) == 1
    model = load(random_folder)
    with torch.no_grad():
        model.network.model.language_model.norm.weight[0] += 0.5
    assert fresh(product, model) == 1
    assert fresh(product, load(random_folder, dtype="bfloat16")) == 1


def test_a_picture_s_file_may_change_under_its_name(random_model, tmp_path, folder, counted):
    file = tmp_path / "p.png"
    rows = []
    for seed in (0, 1):
        noise(60, 60, seed=seed).save(file)
        os.utime(file, ns=(0, 0))
        rows.append(encode(random_model, Product("1", "t", file), settings=Settings(store=folder)))
        random_model.pixels._kept.clear()
    assert sum(counted) == 2
    assert np.abs(rows[0] - rows[1]).max() > 1e-4


def test_weights_that_learn_change_their_fingerprint(random_folder):
    model = load(random_folder)
    names = {fingerprints.name(fingerprints.space(model))}
    with torch.no_grad():
        next(model.network.parameters()).view(-1)[0] += 1e-3
    names.add(fingerprints.name(fingerprints.space(model)))
    assert len(names) == 2
    again = load(random_folder)
    assert fingerprints.name(fingerprints.space(again)) in names


def test_a_checkpoint_by_another_name_is_the_same_space(random_folder):
    model = load(random_folder)
    assert fingerprints.name(fingerprints.space(model)) == fingerprints.name(
        fingerprints.space(replace(model, name="other"))
    )


@pytest.fixture(scope="module")
def filled(random_model, shop, tmp_path_factory):
    found = open_store(tmp_path_factory.mktemp("filled"), random_model)
    added = found.add(shop.products[:120])
    assert added.products == 120
    return found


def test_search_is_exact_and_filters_by_metadata(filled, random_model, shop):
    query = shop.queries[0]
    pool = cl.index(random_model, shop.products[:120], settings=cl.Settings(store=""))
    expected = pool.search(query, k=8)
    found = filled.search(query, k=8)
    assert [hit.product.id for hit in found] == [hit.product.id for hit in expected]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-5)
    language = shop.products[5].language
    some = filled.search(
        query, k=200, where=f"class = '{shop.products[5].class_name}' AND language = '{language}'"
    )
    wanted = {
        p.id
        for p in shop.products[:120]
        if (p.class_name, p.language) == (shop.products[5].class_name, language)
    }
    assert {hit.product.id for hit in some} == wanted - {p.id for p in query.references}
    red = filled.search(query, k=200, where="array_has(attributes, 'color=red')", exclude_references=False)
    assert {h.product.id for h in red} == {
        p.id for p in shop.products[:120] if p.attributes["color"] == ("red",)
    }


def test_hits_from_a_store_show_themselves(filled, shop):
    found = filled.search(shop.queries[0], k=3)
    own = next(p for p in shop.products if p.id == found[0].product.id)
    assert found[0].product.attributes == own.attributes
    assert max(found[0].product.picture.size) == 128
    assert "data:image/jpeg" in found._repr_html_()


@pytest.mark.parametrize("where", ["klass = 'shoes'", "class =", "class = 'shoes'; DROP TABLE x", "1 +"])
def test_a_condition_that_cannot_be_understood(filled, shop, where):
    with pytest.raises(ValueError, match="which cannot be understood"):
        filled.search(shop.queries[0], where=where)


def test_exports_agree(filled, random_model, shop, tmp_path):
    ids, rows = filled.to_numpy()
    assert ids == sorted(p.id for p in shop.products[:120])
    np.testing.assert_allclose(
        rows[ids.index(shop.products[3].id)],
        encode(random_model, shop.products[3], settings=Settings(store=""))[0],
        atol=1e-5,
    )
    filled.to_parquet(tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert sorted(table["id"].to_pylist()) == ids
    dataset = filled.to_dataset()
    assert sorted(dataset["id"]) == ids
    assert dataset[0]["thumbnail"].size[0] <= 128
    np.testing.assert_allclose(dataset[0]["vector"], rows[ids.index(dataset[0]["id"])], atol=1e-7)


def test_a_changed_product_has_one_row(random_model, shop, folder):
    product = shop.products[0]
    found = open_store(folder, random_model)
    for class_name in ("shoes", "bags", "shoes"):
        assert found.add([replace(product, class_name=class_name), shop.products[1]]).products == 2
    assert (
        found.search(shop.queries[0], where="class = 'bags'") == []
        or len(found.search(shop.queries[0], where="class = 'bags'")) == 0
    )


def test_bad_items_are_skipped_and_listed(random_model, shop, folder, tmp_path, caplog):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    good, bad = (
        list(shop.products[:40]),
        [Product("bad", "t", broken), Product("gone", "t", tmp_path / "none.jpg")],
    )
    items = [*good[:20], bad[0], *good[20:], bad[1]]
    with pytest.raises(ItemError, match="product bad"):
        encode(random_model, items, settings=Settings(store=""))
    for store in ("", folder):
        rows = encode(random_model, items, settings=Settings(store=store, on_error="skip"))
        assert np.isnan(rows).all(1).nonzero()[0].tolist() == [20, 41]
        np.testing.assert_allclose(
            rows[:20], encode(random_model, good[:20], settings=Settings(store="")), atol=1e-5
        )
    assert "product bad" in caplog.text
    assert "product gone" in caplog.text
    added = open_store(folder, random_model).add(items, settings=Settings(on_error="skip"))
    assert (added.products, [error.item for error in added.skipped]) == (
        40,
        ["product bad", "product gone"],
    )
    pool = cl.index(random_model, items, settings=cl.Settings(on_error="skip", store=""))
    assert [p.id for p in pool.products] == [p.id for p in good]
    assert [error.item for error in pool.skipped] == ["product bad", "product gone"]
    with pytest.raises(ValueError, match="on_error"):
        encode(random_model, items, settings=Settings(on_error="ignore"))


def test_what_was_done_before_an_error_is_kept(random_model, shop, folder, counted):
    items = [*shop.products[:64], Product("bad", "t", b"no picture")]
    with pytest.raises(ItemError, match="product bad"):
        encode(random_model, items, settings=Settings(store=folder, batch_size=8))
    done = sum(counted)
    assert done > 0
    encode(random_model, shop.products[:64], settings=Settings(store=folder, batch_size=8))
    assert sum(counted) <= 64 + 8


def vectors(folder, dim=4):
    return Table(str(folder), "table", dim, {"model": "toy"})


def rows(*ids, key=""):
    return [Record(f"{key}{id}", "product", id) for id in ids]


def test_a_commit_replaces_rows_of_the_same_name(folder):
    table = vectors(folder)
    table.commit(rows("a", "b", "a"), np.eye(4, dtype=np.float32)[:3])
    table.commit(rows("b", "c", key="new "), np.full((2, 4), 0.5, np.float32))
    ids, own = table.to_numpy()
    assert ids == ["a", "b", "c"]
    np.testing.assert_array_equal(own, [[0, 0, 1, 0], [0.5] * 4, [0.5] * 4])
    assert set(table.find(["a", "b", "new b"])) == {"a", "new b"}


def test_nearest_agrees_with_top_k_over_many_batches(folder, monkeypatch):
    monkeypatch.setattr("coral_lab.store.tables._BATCH", 7)
    own = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    own[10] = own[30]  # a tie
    table = vectors(folder)
    table.commit(rows(*(f"{i:02d}" for i in range(50))), own)
    for query in (own[10], own[0]):
        scores, places = top_k(query[None], own, 9)
        found, values = table.nearest(query, 9)
        assert [row.id for row in found] == [f"{i:02d}" for i in places[0]]
        np.testing.assert_allclose(values, scores[0], rtol=1e-6)


def test_the_approximate_index_is_for_many_rows_and_its_recall_is_measured(folder, monkeypatch):
    table = vectors(folder, 8)
    own = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    table.commit(rows(*map(str, range(3000))), own / np.linalg.norm(own, axis=1, keepdims=True))
    with pytest.raises(ValueError, match="100,000 or more"):
        approximate.build(table)
    monkeypatch.setattr(approximate, "FROM", 1000)
    approximate.build(table)
    found = approximate.tune(table, approximate.sample(table, 20), 0.9, "ivf-pq")
    assert found.recall.mean >= 0.9


def test_what_is_no_store_or_another_version_is_an_error(random_model, shop, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="something else than a store"):
        open_store(tmp_path, random_model)
    other = tmp_path / "other"
    lancedb.connect(str(other)).create_table("mine", pa.table({"x": [1]}))
    with pytest.raises(StoreError, match="something else than a store"):
        open_store(other, random_model)
    newer = tmp_path / "newer"
    lancedb.connect(str(newer)).create_table(MARKER, pa.table({"version": [99]}))
    with pytest.raises(StoreError, match="version 99"):
        open_store(newer, random_model)
    own = tmp_path / "own"
    found = open_store(own, random_model)
    found.add(shop.products[:2])
    lancedb.connect(str(own)).open_table(found.table.name).add_columns({"extra": "1"})
    with pytest.raises(StoreError, match="other columns"):
        len(found)


def test_an_empty_store_says_so(random_model, shop, folder):
    found = open_store(folder, random_model)
    assert len(found) == 0
    assert not folder.exists() or not any(p.suffix == ".lance" for p in folder.iterdir())
    with pytest.raises(StoreError, match="encode something"):
        found.search(shop.queries[0])


def test_a_full_disk_is_one_clear_error(folder, monkeypatch):
    table = vectors(folder)
    table.commit(rows("a"), np.full((1, 4), 0.5, np.float32))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Table, "_write", full)
    with pytest.raises(StoreError, match="what was committed before is safe"):
        table.commit(rows("b"), np.ones((1, 4), np.float32))
    assert table.to_numpy()[0] == ["a"]


WORKER = """
import os, sys
import torch, pyarrow  # the slow imports, once for all children; lancedb does not like to be forked
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

for line in sys.stdin:
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        from coral_lab.store import keeping
        from coral_lab import Settings, dataset, encode, load
        model, store, count = line.rstrip("\\n").split("\\t")
        keeping.COMMIT_EVERY = 0.05
        model, products = load(model), dataset("mini").products[: int(count)]
        print("ready", os.getpid(), flush=True)
        encode(model, products, settings=Settings(store=store, batch_size=16, progress=False))
        print("done", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


@pytest.fixture
def workers():
    """Starts processes, each of which starts encoding runs, one after another."""
    started = []

    def start():
        command = [sys.executable, "-c", WORKER]
        started.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def begin(process, model, folder, count) -> int:
    """Starts a run; its process id, when it is about to encode."""
    process.stdin.write(f"{model}\t{folder}\t{count}\n")
    return int(process.stdout.readline().removeprefix("ready "))


def finish(process) -> bool:
    """Waits for the run to end; whether it came to its own end."""
    said = []
    while not said or said[-1] != "over\n":
        said.append(process.stdout.readline())
        assert said[-1], "the process died"
    return "done\n" in said


def check(process, model, folder, count):
    """All rows, each once, and to the bit those of a run that nobody disturbed."""
    ids, found = open_store(folder, load(model)).to_numpy()
    assert ids == sorted(p.id for p in cl.dataset("mini").products[:count]), "rows are lost or doubled"
    calm = folder.parent / "calm"
    begin(process, model, calm, count)
    assert finish(process)
    expected, whole = open_store(calm, load(model)).to_numpy()
    assert expected == ids
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(("kills", "count"), [(3, 300), pytest.param(200, 3000, marks=pytest.mark.slow)])
def test_killed_runs_go_on_and_lose_nothing(random_folder, folder, workers, kills, count):
    """With many kills a store is full before they are used up: then another is begun."""
    chance, killed, full, process = random.Random(0), 0, 0, workers()
    folder.mkdir()
    while killed < kills:
        store = folder / str(full)
        pid = begin(process, random_folder, store, count)
        time.sleep(chance.uniform(0, 1.5))
        os.kill(pid, signal.SIGKILL)  # its parent has not waited for it yet: the id is still its own
        done = finish(process)
        killed += not done
        if done:
            check(process, random_folder, store, count)
            full += 1
    begin(process, random_folder, folder / str(full), count)
    assert finish(process)
    check(process, random_folder, folder / str(full), count)
    print(f"{killed} kills, {full + 1} stores of {count} products, none lost, none doubled, all equal")


def test_two_processes_on_one_store(random_folder, folder, workers):
    folder.mkdir()
    both = [workers(), workers()]
    for process in both:
        begin(process, random_folder, folder / "one", 200)
    for process in both:
        assert finish(process)
    check(both[0], random_folder, folder / "one", 200)


def test_how_a_tokenizer_was_last_used_makes_no_other_space(random_model):
    model = replace(random_model, processor=deepcopy(random_model.processor))
    before = fingerprints.space(model)
    model.processor(text=["a", "a longer one"], padding=True, truncation=True, max_length=5)
    assert fingerprints.space(model) == before
    model.processor.tokenizer.add_tokens(["<new>"])
    assert fingerprints.space(model)["tokenizer"] != before["tokenizer"]
