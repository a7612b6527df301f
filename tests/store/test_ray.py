"""Ray's workers write what one process writes, and go on when one is killed."""

import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest

import coral_lab as cl
from coral_lab import Product, load
from coral_lab.errors import ItemError, StoreError
from coral_lab.images import open_image, told_identity
from coral_lab.store import ray_engine
from coral_lab.store.blocks import Source
from coral_lab.store.ray_engine import decoded
from coral_lab.store.sharded import Engine, encode_sharded
from tests.conftest import noise
from tests.store.embedders import Letters
from tests.store.test_blocks import PRODUCTS, QUIET, check, store_of


def test_an_opened_picture_is_the_same_picture(tmp_path):
    noise(40, 30, seed=1).save(tmp_path / "a.png")
    own = Product("a", "x", image=str(tmp_path / "a.png"))
    opened = decoded(own)
    assert told_identity(opened.image) == told_identity(own.image), "the store has one key for both"
    np.testing.assert_array_equal(open_image(opened.image, "a"), open_image(own.image, "a"))
    assert decoded(Product("b", "x")).image is None
    broken = Product("c", "x", image=str(tmp_path / "none.png"))
    assert decoded(broken) is broken, "the encoder says what is wrong"


@pytest.mark.parametrize(
    "error", [ItemError("product 7", "has no picture"), StoreError("full"), ValueError("x")]
)
def test_a_worker_s_own_error_is_what_is_raised(error):
    def fails():
        raise error

    with pytest.raises(type(error), match=str(error)):
        ray_engine._heard(ray_engine._told(fails))
    assert ray_engine._heard(ray_engine._told(int, "7")) == 7


@pytest.fixture(scope="module")
def ray():
    """Two CPUs; this folder's modules are found by the workers."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def test_ray_writes_what_this_process_writes_and_says_what_is_wrong(ray, tmp_path):
    """One test: Ray's workers take seconds to start."""
    encode_sharded(Letters, PRODUCTS, tmp_path / "ray", Engine("ray", block=10), QUIET)
    check(tmp_path / "ray")
    encode_sharded(Letters, PRODUCTS, tmp_path / "here", Engine(block=10), QUIET)
    np.testing.assert_array_equal(*(store_of(tmp_path / name).to_numpy()[1] for name in ("ray", "here")))
    assert ray.is_initialized(), "the user's own Ray runs on"
    broken = (Product("no", "picture", image=str(tmp_path / "none.png")),)
    with pytest.raises(ItemError, match=r"none\.png"):
        encode_sharded(Letters, broken, tmp_path / "broken", Engine("ray"), QUIET)
    with pytest.raises(ValueError, match=r"9 workers need 4\.75 CPUs and Ray has 2"):
        encode_sharded(Letters, PRODUCTS, tmp_path / "many", Engine("ray", workers=9), QUIET)


def kill_a_worker(diary, killed: list) -> None:
    """As soon as some blocks are done."""
    while not (diary.exists() and len(diary.read_text().splitlines()) > 12):
        time.sleep(0.05)
    killed.append(int(diary.read_text().split()[0]))
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_s_blocks_are_done_by_another(ray, tmp_path):
    diary, killed = tmp_path / "diary.txt", []
    killer = threading.Thread(target=kill_a_worker, args=(diary, killed))
    killer.start()
    make = partial(Letters, 0.1, str(diary))
    encode_sharded(make, PRODUCTS, tmp_path / "store", Engine("ray", 2, block=4), QUIET)
    killer.join()
    check(tmp_path / "store")
    workers = {line.split()[0] for line in diary.read_text().splitlines()}
    assert str(killed[0]) in workers
    assert len(workers) >= 2


@pytest.mark.slow
def test_embeddings_are_those_of_one_process_to_the_bit(ray, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source = Source("mini")
    products = source.products[:200]
    for name, engine in (("ray", Engine("ray", 2, block=32)), ("here", Engine(block=32))):
        encode_sharded("mini", products, tmp_path / name, engine, QUIET)
    ours, theirs = (cl.open_store(tmp_path / name, load("mini")).to_numpy() for name in ("ray", "here"))
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])
