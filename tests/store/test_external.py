"""Vectors from files stand where a model would, for a dataset's own items and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import coral_lab as cl
from coral_lab import Condition, Dataset, Product, Query, Settings
from coral_lab.errors import ItemError, ModelMismatchError
from coral_lab.models.protocol import Embedder
from coral_lab.store.vector_files import ID, VECTOR, read_vectors
from coral_lab.study import attribution
from tests.conftest import noise

PRODUCTS = tuple(Product(f"p{i}", f"title {i}", noise(20, 20, seed=i), "bag") for i in range(6))
QUERIES = tuple(
    Query(
        f"q{i}",
        "bag",
        (Condition("brand", PRODUCTS[i]), Condition("style", PRODUCTS[i + 1])),
        positives=(f"p{i + 3}",),
    )
    for i in range(3)
)
SHOP = Dataset("shop", PRODUCTS, QUERIES)
IDS = [*(product.id for product in PRODUCTS), *(query.id for query in QUERIES)]
NUMBERS = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
UNIT = NUMBERS / np.linalg.norm(NUMBERS, axis=1, keepdims=True)


def parquet(folder, ids=IDS, numbers=NUMBERS, names=("id", "embedding"), **more):
    frame = pd.DataFrame({names[0]: ids, names[1]: list(numbers), **more})
    frame.to_parquet(folder / "v.parquet")
    return folder / "v.parquet"


def npy(folder, kind="txt"):
    np.save(folder / "v.npy", NUMBERS)
    text = "\n".join(IDS) if kind == "txt" else json.dumps(IDS)
    (folder / f"v.ids.{kind}").write_text(text)
    return folder / "v.npy"


def npz(folder):
    np.savez(folder / "v.npz", ids=np.array(IDS), embeddings=NUMBERS.astype(np.float64))
    return folder / "v.npz"


def safetensors(folder):
    save_file({"embeddings": torch.tensor(NUMBERS)}, folder / "v.safetensors")
    (folder / "v.ids.txt").write_text("\n".join(IDS))
    return folder / "v.safetensors"


def lance(folder):
    import lancedb
    import pyarrow as pa

    table = pa.table({"id": IDS, "vector": pa.array(NUMBERS.tolist(), pa.list_(pa.float32(), 5))})
    lancedb.connect(str(folder / "db")).create_table("mine", table)
    return folder / "db"


def fixed(folder):
    import pyarrow as pa
    from pyarrow import parquet as files

    table = pa.table({"_id": IDS, "vector": pa.array(NUMBERS.tolist(), pa.list_(pa.float16(), 5))})
    files.write_table(table, folder / "v.parquet")
    return folder / "v.parquet"


@pytest.mark.parametrize(
    "make", [parquet, npy, npz, safetensors, lance, fixed, lambda folder: npy(folder, "json")]
)
def test_every_kind_of_file_gives_its_vectors(make, tmp_path):
    model = cl.vectors(make(tmp_path), SHOP)
    assert isinstance(model, Embedder)
    assert model.dim == 5
    assert "6 products and 3 queries of shop, 5 dimensions" in repr(model)
    found = cl.encode(model, [*QUERIES, *PRODUCTS])
    tolerance = 1e-2 if make is fixed else 1e-6
    np.testing.assert_allclose(found, UNIT[[6, 7, 8, 0, 1, 2, 3, 4, 5]], atol=tolerance)


def test_a_models_own_vectors_measure_as_the_model_does(tmp_path):
    model = cl.load("mini")
    shop = cl.dataset("mini")
    shop = replace(shop, queries=shop.queries[:30], products=shop.smaller_pool(shop.queries[:30], 150))
    numbers = [cl.encode(model, items) for items in (shop.products, shop.queries)]
    files = []
    for name, items, own in zip("pq", (shop.products, shop.queries), numbers, strict=True):
        (tmp_path / name).mkdir()
        files.append(parquet(tmp_path / name, [item.id for item in items], own))
    read = cl.vectors(files[0], shop, files[1], name="mini elsewhere")
    ours, theirs = (cl.evaluate(own, shop.queries, shop.products) for own in (model, read))
    np.testing.assert_array_equal(ours.ranked, theirs.ranked)
    assert {k: v.mean for k, v in ours.metrics.items()} == {k: v.mean for k, v in theirs.metrics.items()}
    assert theirs.model == "mini elsewhere"


def test_what_was_never_embedded_has_no_vector(tmp_path):
    model = cl.vectors(parquet(tmp_path), SHOP)
    other = replace(QUERIES[0], conditions=QUERIES[0].conditions[::-1])
    for item, says in (
        (other, r"query q0: is edited or worded otherwise, and v has it as it is, in format 'seq'"),
        (replace(PRODUCTS[0], title="x"), "product p0: is edited"),
        (replace(PRODUCTS[0], image=noise(20, 20, seed=77)), "product p0: is edited"),
        (replace(PRODUCTS[0], image=None), "product p0: is edited"),
        (replace(QUERIES[0], id="q9"), "query q9: is not in shop"),
        (cl.messages(QUERIES[0]), "item 0: v has vectors of products and queries, and none of messages"),
    ):
        with pytest.raises(ItemError, match=says):
            cl.encode(model, [item])
    with pytest.raises(ItemError, match="format 'seq'"):
        cl.encode(model, QUERIES, "cat")
    with pytest.raises(ItemError, match="is edited"):
        attribution(cl.index(model, PRODUCTS), QUERIES[0])
    asked_so = cl.vectors(parquet(tmp_path), SHOP, format="cat")
    np.testing.assert_allclose(cl.encode(asked_so, QUERIES, "cat"), UNIT[6:], atol=1e-6)


def test_a_picture_that_is_read_again_is_the_same(tmp_path):
    noise(20, 20, seed=1).save(tmp_path / "a.png")
    product = replace(PRODUCTS[0], image=tmp_path / "a.png")
    shop = Dataset("shop", (product,), ())
    model = cl.vectors(parquet(tmp_path, ["p0"], NUMBERS[:1]), shop)
    again = replace(product, image=(tmp_path / "a.png").read_bytes())
    np.testing.assert_allclose(cl.encode(model, again), UNIT[:1], atol=1e-6)


def test_what_has_no_vector_is_counted_and_refused(tmp_path, caplog):
    model = cl.vectors(parquet(tmp_path, [*IDS[:-1], "p99"]), SHOP)
    assert "6 of 6 for kind product, 2 of 3 for kind query, and 1 of nothing in shop" in caplog.text
    with pytest.raises(ItemError, match="query q2: v has no vector of it; make one where"):
        cl.encode(model, QUERIES)
    found = cl.evaluate(model, QUERIES, PRODUCTS, settings=Settings(on_error="skip"))
    assert len(found.queries) == 2
    assert "q2" in str(found.skipped[0])


def test_kinds_are_told_by_ids_by_a_column_or_by_files(tmp_path):
    twins = Dataset("twins", PRODUCTS[:2], (replace(QUERIES[0], id="p0", positives=("p1",)),))
    with pytest.raises(ItemError, match=r"id 'p0': is the id of a product and of a query of twins"):
        cl.vectors(parquet(tmp_path, ["p0", "p1", "p0"], NUMBERS[:3]), twins)
    file = parquet(tmp_path, ["p0", "p1", "p0"], NUMBERS[:3], kind=["product", "product", "query"])
    model = cl.vectors(file, twins)
    np.testing.assert_allclose(cl.encode(model, [twins.queries[0], PRODUCTS[0]]), UNIT[[2, 0]], atol=1e-6)
    with pytest.raises(ValueError, match="rows of kind 'item'; use product or query"):
        cl.vectors(parquet(tmp_path, ["p0"], NUMBERS[:1], kind=["item"]), twins)


@pytest.mark.parametrize(
    ("ids", "numbers", "error", "says"),
    [
        (["p0", "p0"], NUMBERS[:2], ItemError, "product p0: has two vectors; keep one"),
        (["p0", "p1"], NUMBERS[:2] * 0, ItemError, "product p0: has a vector of length 0"),
        (["p0", "p1"], NUMBERS[:2] * np.nan, ItemError, "product p0: has a vector of length nan"),
        (["x", "y"], NUMBERS[:2], ValueError, "none of 2 vectors is of shop: the first id is 'x'"),
        (["p0", "p1"], [[1.0], [1.0, 2.0]], ValueError, "vectors of lengths"),
        (["p0", "p1"], [[1.0], None], ValueError, "vectors of lengths|give each row one"),
        (["p0", None], NUMBERS[:2], ValueError, "has the id None; ids are texts or whole numbers"),
        ([1.5, 2.5], NUMBERS[:2], ValueError, "has the id 1.5"),
        ([True, False], NUMBERS[:2], ValueError, "has the id"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(tmp_path, ids, numbers, error, says):
    with pytest.raises(error, match=says):
        cl.vectors(parquet(tmp_path, ids, numbers), SHOP)


def test_files_without_ids_or_of_other_kinds_are_refused(tmp_path):
    np.save(tmp_path / "v.npy", NUMBERS)
    with pytest.raises(
        ValueError, match=r"v.npy says not whose its vectors are, and there is no v.ids.txt or"
    ):
        cl.vectors(tmp_path / "v.npy", SHOP)
    with pytest.raises(ValueError, match="has 9 vectors and 2 ids"):
        cl.vectors(tmp_path / "v.npy", SHOP, ids=["a", "b"])
    np.testing.assert_allclose(
        cl.encode(cl.vectors(tmp_path / "v.npy", SHOP, ids=IDS), PRODUCTS[0]), UNIT[:1], atol=1e-6
    )
    np.save(tmp_path / "o.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"o.npy cannot be read"):
        cl.vectors(tmp_path / "o.npy", SHOP, ids=["p0"])
    torch.save(torch.tensor(NUMBERS), tmp_path / "v.pt")
    with pytest.raises(ValueError, match=r"no file of vectors that is read; give .parquet"):
        cl.vectors(tmp_path / "v.pt", SHOP)
    with pytest.raises(FileNotFoundError, match="does not exist; give a file"):
        cl.vectors(tmp_path / "none.parquet", SHOP)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"bad.parquet cannot be read"):
        cl.vectors(tmp_path / "bad.parquet", SHOP)
    with pytest.raises(ValueError, match=r"none is an id; call it 'id'"):
        cl.vectors(parquet(tmp_path, names=("name", "embedding")), SHOP)
    with pytest.raises(ValueError, match=r"none is a vector; call it 'embedding'"):
        cl.vectors(parquet(tmp_path, names=("id", "numbers")), SHOP)


def test_two_files_are_by_one_model(tmp_path):
    (tmp_path / "q").mkdir()
    wide = parquet(tmp_path / "q", IDS[6:], np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"vectors of lengths .* give two files by one model"):
        cl.vectors(parquet(tmp_path, IDS[:6], NUMBERS[:6]), SHOP, wide)


def test_a_fingerprint_is_of_the_vectors(tmp_path):
    first, same = (cl.vectors(parquet(tmp_path), SHOP) for _ in range(2))
    other = cl.vectors(parquet(tmp_path, numbers=NUMBERS + 1), SHOP)
    pool = cl.index(first, PRODUCTS)
    assert len(cl.evaluate(same, QUERIES, pool).queries) == 3
    with pytest.raises(ModelMismatchError):
        cl.evaluate(other, QUERIES, pool)
    kept = Settings(store=tmp_path / "store", progress=False)
    np.testing.assert_array_equal(
        cl.encode(first, PRODUCTS, settings=kept), cl.encode(same, PRODUCTS, settings=kept)
    )
    assert not np.allclose(
        cl.encode(other, PRODUCTS, settings=kept), cl.encode(first, PRODUCTS, settings=kept)
    )


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(ID),
    st.sampled_from(VECTOR),
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1),
        min_size=1,
        max_size=5,
        unique=True,
    ),
)
def test_columns_by_any_usual_name_are_found(tmp_path_factory, id, vector, ids):
    folder = tmp_path_factory.mktemp("names")
    table = read_vectors(parquet(folder, ids, NUMBERS[: len(ids)], (id, vector), other=["x"] * len(ids)))
    assert list(table.ids) == ids
    np.testing.assert_array_equal(table.numbers, NUMBERS[: len(ids)])
