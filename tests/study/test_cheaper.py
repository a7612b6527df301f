"""Codes of few bits by hand and beside other people's; what information lies in which, is kept or lost."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab import Product, Query
from coral_lab.evaluation import Asked
from coral_lab.replication.comparing_runs import LetGo
from coral_lab.retrieval import Index
from coral_lab.store import topk
from coral_lab.study.cheaper import BITS, coded, codes, halvings, way, ways


def normal(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def asked(products, queries, positives, name="q"):
    rows = [np.asarray(own, np.float32) for own in (products, queries)]
    rows = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in rows]
    pool = tuple(Product(f"p{i}") for i in range(len(products)))
    index = Index(LetGo("m", rows[0].shape[1]), pool, rows[0])
    own = tuple(Query(f"{name}{i}", "bag", positives=(f"p{p}",)) for i, p in enumerate(positives))
    return Asked(index, own, rows[1], "seq", ())


def r1(result):
    return result.metrics["R@1"].mean


def test_codes_by_hand():
    row = np.array([[1.0, -0.4, 0.1, 0.0]], np.float32)
    assert codes(row, 8).tolist() == [[127, -51, 13, 0]]
    assert codes(row, 4).tolist() == [[7, -3, 1, 0]]
    assert codes(row, 1).tolist() == [[1, -1, 1, -1]]
    assert codes(0 * row, 8).tolist() == [[0, 0, 0, 0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(BITS[:2]), st.floats(1e-3, 1e3))
def test_a_code_is_off_by_half_a_step_and_a_rows_length_does_not_matter(seed, bits, scale):
    rows = normal(5, 7, seed)
    found, step = codes(rows, bits), np.abs(rows).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    assert np.abs(found * step - rows).max() <= 0.5001 * step.max()
    assert np.abs(found).max() == 2 ** (bits - 1) - 1
    assert np.abs(codes(rows * np.float32(scale), bits) - found).max() <= 1  # of rounding


def test_eight_bits_are_those_of_the_search():
    rows = normal(200, 33)
    np.testing.assert_array_equal(codes(rows, 8), topk._codes(rows)[0].numpy())


def test_one_bit_is_sentence_transformers_binary_and_orders_by_hamming_distance():
    util = pytest.importorskip("sentence_transformers.util")
    rows, queries = normal(50, 32), normal(9, 32, 1)
    packed, wanted = (util.quantize_embeddings(own, "ubinary") for own in (rows, queries))
    np.testing.assert_array_equal(np.packbits(codes(rows, 1) > 0, axis=1), packed)
    distance = np.bitwise_count(wanted[:, None] ^ packed).sum(2)
    expected = np.argsort(distance, axis=1, kind="stable")
    np.testing.assert_array_equal(coded(asked(rows, queries, [0] * 9), 1).ranked, expected)


def test_fewer_bits_lose_more():
    random = np.random.default_rng(9)
    rows = normal(400, 48)
    queries = rows[:150] + 2.0 * random.normal(size=(150, 48))
    own = asked(rows, queries, range(150))
    found = [r1(coded(own, bits)) for bits in BITS]
    assert abs(found[0] - r1(own.ranked())) < 0.02
    assert found[0] >= found[1] > found[2] > 0.05


def test_signs_are_kept_by_one_bit_and_sizes_are_lost():
    signs = np.sign(normal(40, 32))
    own = asked(signs, signs, range(40))
    assert r1(coded(own, 1)) == r1(own.ranked()) == 1
    sizes = np.abs(normal(40, 32))
    own = asked(sizes, sizes, range(40))
    assert r1(own.ranked()) == r1(coded(own, 8)) == 1
    assert r1(coded(own, 1)) == 1 / 40  # all alike: the first of the pool


def test_a_result_by_codes_says_so():
    own = asked(normal(6, 8), normal(2, 8), [0, 1])
    assert coded(own, 1).model == "m, 1 bit a dimension"
    assert coded(own, 8, k=3).model == "m, 8 bits a dimension"
    assert coded(own, 8, k=3).ranked.shape == (2, 3)


def test_lengths_are_halved():
    assert halvings(128) == [64, 32, 16, 8]
    assert halvings(100) == [50, 25, 12]
    assert halvings(16) == [8]
    assert halvings(12) == []


def test_every_way_is_measured_beside_the_embeddings_as_they_are():
    random = np.random.default_rng(9)
    rows = normal(60, 16)
    queries = rows[:40] + 1.2 * random.normal(size=(40, 16))
    own = asked(rows, queries[:30], range(30))
    bank = replace(asked(rows, queries[30:], range(30, 40), "b"), index=own.index)
    assert ways(16) == ["as it is", "8 dimensions", "8 bits", "4 bits", "1 bit", "qb-norm", "csls"]
    rowed = {name: way(own, bank, name) for name in ways(16)}
    sizes = [row["bytes"] for _, row in rowed.values()]
    assert sizes == [64, 32, 16, 8, 2, 64, 64]
    plain = own.ranked()
    for name, (result, row) in rowed.items():
        assert row["R@1 change"] == pytest.approx(r1(result) - r1(plain)), name
        assert row["R@1 change low"] <= row["R@1 change"] <= row["R@1 change high"]
        assert np.isfinite(row["hubness"])
    np.testing.assert_array_equal(rowed["as it is"][0].ranked, plain.ranked)
    assert rowed["as it is"][1]["R@1 change p"] == 1
    assert rowed["8 dimensions"][1]["R@1 change high"] < 0


def test_what_is_no_dose_is_said():
    own = asked(normal(6, 16), normal(2, 16), [0, 1])
    for bits in (0, 2, 16):
        with pytest.raises(ValueError, match=f"bits is {bits}; use one of 8, 4, 1"):
            codes(normal(1, 4), bits)
    for name in ("", "12 dimensions", "3 bits", "int8"):
        with pytest.raises(ValueError, match="use one of as it is, 8 dimensions, 8 bits"):
            way(own, own, name)
