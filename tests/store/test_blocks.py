"""Blocks: all products once, whoever died when; nothing before the commit, all after it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

import coral_lab as cl
from coral_lab import Product, Settings, encode
from coral_lab.errors import ItemError, StoreError
from coral_lab.store import blocks, sharded
from coral_lab.store.blocks import Block, Done, Job, Marks, Source, commit, plan
from coral_lab.store.keeping import table_of
from coral_lab.store.sharded import Engine, encode_sharded
from tests.store.embedders import Letters

QUIET = Settings(progress=False)
PRODUCTS = tuple(Product(f"{n:03d}", f"thing number {n} of {chr(97 + n % 26) * (n % 7)}") for n in range(50))


def store_of(folder, model=None):
    return cl.open_store(folder, model or Letters())


def check(folder, products=PRODUCTS):
    """Each product once, with the embedding that encoding by hand gives."""
    ids, found = store_of(folder).to_numpy()
    assert ids == sorted(product.id for product in products), "rows are lost or doubled"
    by_id = {product.id: product for product in products}
    np.testing.assert_allclose(found, encode(Letters(), [by_id[id] for id in ids]), atol=1e-7)
    assert not Marks(store_of(folder).table).read(), "marks are left"


def test_all_products_are_rows_with_what_is_known_of_them(tmp_path, shop):
    products = shop.products[:7]
    found = encode_sharded(Letters, products, tmp_path, Engine(block=3), QUIET)
    assert (found.products, found.skipped) == (7, ())
    sharded_rows = store_of(tmp_path).table.rows([f"product:{p.id}" for p in products])
    store_of(tmp_path / "plain").add(products)
    assert sharded_rows == store_of(tmp_path / "plain").table.rows([f"product:{p.id}" for p in products])


@pytest.mark.parametrize("after", [0, 5, 10, 49])
def test_a_run_that_dies_goes_on_with_the_blocks_that_are_not_done(tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        encode_sharded(partial(Letters, last=after), PRODUCTS, tmp_path, Engine(block=5), QUIET)
    assert len(store_of(tmp_path)) == 0, "nothing before all is done"
    diary = tmp_path.parent / f"{tmp_path.name}.txt"
    encode_sharded(partial(Letters, 0, str(diary)), PRODUCTS, tmp_path, Engine(block=5), QUIET)
    check(tmp_path)
    assert len(diary.read_text().splitlines()) == 50 - after // 5 * 5


def test_a_run_that_is_over_does_nothing_and_new_products_are_added(tmp_path):
    encode_sharded(Letters, PRODUCTS[:20], tmp_path, Engine(block=8), QUIET)
    version = store_of(tmp_path).table.open(store_of(tmp_path).table.name).version
    encode_sharded(Letters, PRODUCTS[:20], tmp_path, Engine(block=8), QUIET)
    assert store_of(tmp_path).table.open(store_of(tmp_path).table.name).version == version
    encode_sharded(Letters, PRODUCTS, tmp_path, Engine(block=8), QUIET)
    check(tmp_path)


def test_a_changed_title_makes_another_block(tmp_path):
    table = table_of(str(tmp_path), Letters())
    table.make_own()
    before, after = (
        plan(table, Source(given=own), 2)
        for own in (PRODUCTS[:4], (replace(PRODUCTS[0], title="other"), *PRODUCTS[1:4]))
    )
    assert [a.name == b.name for a, b in zip(before, after, strict=True)] == [False, True]


@given(count=some.integers(1, 4), size=some.integers(1, 60), turns=some.randoms(use_true_random=False))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_processes_do_every_block_once(tmp_path_factory, count, size, turns):
    """In whatever order they work; the first commits when it finds all done."""
    folder = tmp_path_factory.mktemp("store")
    table, job = table_of(str(folder), Letters()), Job(str(folder), Letters, Source(given=PRODUCTS), QUIET)
    others = [*range(1, count)]
    turns.shuffle(others)
    for rank in (*others, 0):
        work = partial(sharded._here, job, Letters(), table)
        sharded.run(job, table, Engine("torchrun", block=size), work, rank, count)
    check(folder)


@pytest.mark.parametrize("added", [PRODUCTS[:3], PRODUCTS[5:30], PRODUCTS])
def test_products_that_others_add_meanwhile_are_there_once(tmp_path, added):
    table, job = (
        table_of(str(tmp_path), Letters()),
        Job(str(tmp_path), Letters, Source(given=PRODUCTS), QUIET),
    )
    times = []

    def work(blocks):
        for done in sharded._here(job, Letters(), table, blocks):
            if not times:
                store_of(tmp_path).add(added, QUIET)
            times.append(done.rows)
            yield done

    assert sharded.run(job, table, Engine(block=8), work).products == len(PRODUCTS)
    check(tmp_path)
    again = [
        part for part in (PRODUCTS[at : at + 8] for at in range(0, len(PRODUCTS), 8)) if {*part} & {*added}
    ]
    alone = sum(product not in added for part in again for product in part)
    assert sum(times) == len(PRODUCTS) + alone, "only blocks with one of them are done again, without it"


def test_a_commit_before_all_is_done_is_refused(tmp_path):
    table = table_of(str(tmp_path), Letters())
    table.make_own()
    source = Source(given=PRODUCTS)
    with pytest.raises(StoreError, match="2 of 2 blocks are not done; run it again"):
        commit(table, plan(table, source, 25), source, 0)


def test_what_cannot_be_used_is_named_or_left_out(tmp_path):
    broken = (*PRODUCTS[:3], Product("no", "picture", image=str(tmp_path / "none.png")))
    with pytest.raises(ItemError, match=r"none\.png"):
        encode_sharded(Letters, broken, tmp_path / "a", Engine(block=2), QUIET)
    lenient = replace(QUIET, on_error="skip")
    found = encode_sharded(Letters, broken, tmp_path / "b", Engine(block=2), lenient)
    assert found.products == 3
    assert "none.png" in str(found.skipped[0])
    check(tmp_path / "b", PRODUCTS[:3])


def test_an_id_that_is_there_twice_and_engines_that_there_are_not_are_named(tmp_path):
    with pytest.raises(ItemError, match=r"'000'.*there twice"):
        encode_sharded(Letters, (*PRODUCTS, PRODUCTS[0]), tmp_path, settings=QUIET)
    for arguments, problem in [
        ({"name": "spark"}, "'spark'; choose one of local, torchrun, ray"),
        ({"workers": 0, "name": "ray"}, "0 workers"),
        ({"block": 0}, "blocks of 0"),
        ({"workers": 2}, "for ray, and the engine is local"),
    ]:
        with pytest.raises(ValueError, match=problem):
            Engine(**arguments)


@pytest.mark.parametrize(
    ("fragments", "problem"),
    [
        ("no json", "damaged"),
        (json.dumps([{"files": [{"path": "../../other.lance"}]}]), "names files elsewhere"),
        (json.dumps([{"files": [{"path": "a.lance", "base_id": 1}]}]), "names files elsewhere"),
        (json.dumps([{"files": [{}]}]), "damaged"),
    ],
)
def test_a_stranger_s_marks_lead_nowhere(tmp_path, fragments, problem):
    table = table_of(str(tmp_path), Letters())
    Marks(table).add([Done("x", fragments, 1)])
    with pytest.raises(StoreError, match=problem):
        commit(table, [Block("x", (0,))], Source(), 0)


def test_a_large_catalogue_has_larger_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "MOST_BLOCKS", 2)
    table = table_of(str(tmp_path), Letters())
    assert [len(block.places) for block in plan(table, Source(given=PRODUCTS))] == [50]
    many = tuple(replace(PRODUCTS[0], id=str(n)) for n in range(600))
    assert [len(block.places) for block in plan(table, Source(given=many))] == [300, 300]


WORKER = """
import sys
from functools import partial
from coral_lab import Settings
from coral_lab.store.sharded import Engine, encode_sharded
from tests.store.embedders import Letters
from tests.store.test_blocks import PRODUCTS

folder, diary, slow = sys.argv[1:]
load, engine = partial(Letters, float(slow), diary), Engine("torchrun", block=4)
encode_sharded(load, PRODUCTS, folder, engine, Settings(progress=False))
"""


def begin(folder, diary, slow: float):
    """Two processes as torchrun starts them; it would end both when one dies."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(diary), str(slow)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]


def test_two_processes_of_which_one_is_killed(tmp_path):
    diary = tmp_path / "diary.txt"
    first = begin(tmp_path / "store", diary, 0.02)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (diary.exists() and len(diary.read_text().splitlines()) > 12):
        time.sleep(0.02)
    for process in (first[1], first[0]):
        process.kill()
        process.wait()
    done = Marks(store_of(tmp_path / "store").table).read()
    assert 0 < sum(own.rows for own in done.values()) < 50
    written = len(diary.read_text().splitlines())
    for process in begin(tmp_path / "store", diary, 0.0):
        assert process.wait(timeout=120) == 0
    check(tmp_path / "store")
    again = len(diary.read_text().splitlines()) - written
    assert again == 50 - sum(own.rows for own in done.values()), "a block that was done was done again"
