"""The rehearsal: CORAL's layout at a small width, MERIT's files with ids of 19 digits, what a kill leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

import coral_lab as cl
from coral_lab.errors import CheckpointError, ItemError, WorkbenchError
from coral_lab.mini import rehearsal, rehearsal_checkpoint, rehearsal_data, rehearsal_vocabulary
from coral_lab.mini.merit_mini import drawn
from coral_lab.mini.rehearsal_checkpoint import INDEX, LEFTOVERS, SHAPE, write_checkpoint
from coral_lab.mini.rehearsal_data import IDS, SHARDS, write_data
from coral_lab.mini.rehearsal_vocabulary import ADDED, SIZE, SPECIAL, made_up, ranked
from coral_lab.query import Condition, Dataset, Product, Query
from coral_lab.sources.writing import write_merit
from tests.conftest import noise

TINY = {
    "hidden_size": 16,
    "intermediate_size": 16384,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "vision_config": {
        "depth": 2,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_heads": 4,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [1],
    },
}
"""So proportioned that every shard holds something."""

PRODUCTS, QUERIES = 250, 20


@pytest.fixture(scope="module")
def coral(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "coral"
    write_checkpoint(folder, shape=TINY)
    return folder


@pytest.fixture(scope="module")
def model(coral):
    return cl.load(coral, device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def merit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "merit"
    write_data(folder, PRODUCTS, QUERIES, processes=1)
    return folder


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """Where each file stands, by its time and size."""
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*.*")}


# the checkpoint


def test_the_shape_is_qwen_s_of_three_billion():
    shapes = rehearsal_checkpoint.weight_shapes(SHAPE)
    assert sum(np.prod(shape) for shape in shapes.values()) == 3_754_622_976
    assert len(shapes) == 824
    assert shapes["model.embed_tokens.weight"] == (151_936, 2048)
    assert shapes["model.layers.35.mlp.down_proj.weight"] == (2048, 11008)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (256, 2048)
    assert shapes["visual.blocks.31.attn.qkv.weight"] == (3840, 1280)
    assert shapes["visual.merger.mlp.2.weight"] == (2048, 5120)


def test_layout_is_that_of_the_hub(coral):
    assert sorted(file.name for file in coral.iterdir()) == [
        "chat_template.json",
        "config.json",
        "generation_config.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        INDEX,
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((coral / "config.json").read_text())
    assert "text_config" not in config
    assert LEFTOVERS.keys() <= config.keys()
    pictures = json.loads((coral / "preprocessor_config.json").read_text())
    assert (pictures["min_pixels"], pictures["max_pixels"]) == (3136, 12_845_056)


def test_the_index_says_which_shard_holds_what(coral):
    index = json.loads((coral / INDEX).read_text())
    held, size = {}, 0
    for file in sorted(coral.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        assert found
        assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
        held |= dict.fromkeys(found, file.name)
        size += sum(tensor.nbytes for tensor in found.values())
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == size


def test_it_loads_as_by_transformers_with_equal_weights(coral, model, caplog):
    found = cl.load(coral, device="cpu", dtype="bfloat16").network.state_dict()
    assert ["7 settings of config.json (decoder, encoder, " in r.getMessage() for r in caplog.records] == [
        True
    ]
    config = json.loads((coral / "config.json").read_text())
    plain = Qwen2_5_VLConfig.from_dict({key: own for key, own in config.items() if key not in LEFTOVERS})
    theirs, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        coral, config=plain, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert found.keys() == theirs.state_dict().keys()
    assert all(torch.equal(found[name], own) for name, own in theirs.state_dict().items())


def test_special_tokens_have_their_numbers(coral, model):
    for tokenizer in (model.processor.tokenizer, Qwen2Tokenizer.from_pretrained(coral)):
        assert len(tokenizer) == 151_665
        found = tokenizer.convert_tokens_to_ids([*SPECIAL, *ADDED])
        assert found == list(range(SIZE, SIZE + 22))
        names = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
        wanted = [151643, 151644, 151645, 151652, 151653, 151655, 151656]
        assert tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names]) == wanted
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_embeddings_differ_and_are_finite_in_both_dtypes(coral, model):
    products = [Product(str(i), f"chair {i}", noise(56, 56, seed=i), "chair") for i in range(3)]
    items = [*products, Query("q", "chair", (Condition("color", products[0]),))]
    for own in (model, cl.load(coral, device="cpu", dtype="float32")):
        found = cl.encode(own, items, settings=cl.Settings(store="", progress=False))
        assert np.isfinite(found).all()
        assert (found @ found.T - np.eye(len(items))).max() < 0.98


def test_a_seed_settles_the_weights(coral, tmp_path):
    names = ("visual.patch_embed.proj.weight", (256, 3, 2, 14, 14))
    weights = [torch.cat(list(rehearsal_checkpoint.random_weight(*names, seed))) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].float().std().item() == pytest.approx(2 / (3 * 2 * 14 * 14) ** 0.5, rel=0.02)


def test_what_a_kill_left_is_no_checkpoint_and_is_gone_on_from(coral, tmp_path, monkeypatch):
    folder = tmp_path / "coral"
    write = rehearsal_checkpoint._write_shard

    def killed(file, *rest):
        if file.name.startswith("model-00002"):
            raise KeyboardInterrupt
        write(file, *rest)

    with monkeypatch.context() as changed:
        changed.setattr(rehearsal_checkpoint, "_write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(folder, shape=TINY)
    with pytest.raises(CheckpointError, match=r"index.json is missing; the folder is no whole checkpoint"):
        cl.load(folder)
    first = folder / "model-00001-of-00003.safetensors"
    before = first.stat().st_mtime_ns
    write_checkpoint(folder, shape=TINY)
    assert first.stat().st_mtime_ns == before
    for file in coral.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes(), file.name
    stands = numbers(folder)
    write_checkpoint(folder, shape=TINY)
    assert numbers(folder) == stands


def test_weights_of_others_stay(coral, tmp_path):
    with pytest.raises(
        ValueError, match=r"model-00001-of-00003.safetensors holds other weights; name another"
    ):
        write_checkpoint(coral, shape=TINY, seed=1)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"model.safetensors is of another checkpoint; name another folder"):
        write_checkpoint(tmp_path, shape=TINY)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


# the vocabulary


def test_a_made_up_vocabulary_has_qwen_s_size_and_coral_mini_s_words(model):
    vocab, merges = made_up()
    assert sorted(vocab.values()) == list(range(SIZE))
    assert all(first + second in vocab and {first, second} <= vocab.keys() for first, second in merges)
    tokenizer, mini = model.processor.tokenizer, cl.load("mini").processor.tokenizer
    for text in ("red chair from Bali, size XL", "ghế màu đỏ", "เก้าอี้"):
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokens) == text
        assert max(tokens) < 2048
    assert tokenizer.tokenize("red rubber chair") == mini.tokenize("red rubber chair")
    assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]


def rank_file(folder: Path, tokens: list[bytes]) -> Path:
    lines = [b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (folder / "own.tiktoken").write_bytes(b"\n".join(lines))
    return folder / "own.tiktoken"


def test_merges_are_recovered_from_ranks(tmp_path, monkeypatch):
    tokens = [bytes([i]) for i in range(256)] + [b"in", b" t", b"th", b" th", b"ing", b"thin", b"thing"]
    monkeypatch.setattr(rehearsal_vocabulary, "SIZE", len(tokens))
    vocab, merges = ranked(rank_file(tmp_path, tokens))
    assert vocab["Ġth"] == 256 + 3
    assert merges == [
        ("i", "n"),
        ("Ġ", "t"),
        ("t", "h"),
        ("Ġt", "h"),
        ("in", "g"),
        ("th", "in"),
        ("th", "ing"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"IQ== 0\nIg== 1", "ranks 2 tokens, not 151,643"),
        (b"no base64 at all", "has no lines of base64 and rank"),
        (b"IQ== first", "has no lines of base64 and rank"),
    ],
)
def test_another_vocabulary_is_refused_before_anything_is_written(content, says, tmp_path):
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        rehearsal.rehearse(tmp_path / "out", vocabulary=tmp_path / "qwen.tiktoken")
    assert not (tmp_path / "out").exists()


def test_a_token_that_those_before_it_do_not_make_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal_vocabulary, "SIZE", 257)
    with pytest.raises(ValueError, match="b'abc' cannot be made of those before it"):
        ranked(rank_file(tmp_path, [*(bytes([i]) for i in range(256)), b"abc"]))


# the data


def facts(product: Product) -> tuple:
    return product.title, product.class_name, product.language, product.country, dict(product.attributes)


def test_data_come_back_as_they_were_drawn(merit):
    found = cl.dataset(merit)
    own = drawn("merit/test", [product.id for product in found.products], QUERIES)
    assert (len(found.products), len(found.queries)) == (PRODUCTS, QUERIES)
    assert list(map(facts, found.products)) == list(map(facts, own.products))
    for ours, theirs in zip(found.queries, own.queries, strict=True):
        for name in ("class_name", "conditions", "text", "positives", "hard_negatives"):
            assert getattr(ours, name) == getattr(theirs, name)
    picture = np.asarray(found.products[-1].picture, float)
    assert np.abs(picture - np.asarray(own.products[-1].picture, float)).mean() < 4  # JPEG


def test_ids_of_19_digits_survive(merit):
    found = cl.dataset(merit)
    ids = [product.id for product in found.products]
    assert len(set(ids)) == PRODUCTS
    assert all(len(id) == 19 and int(id) in IDS for id in ids)
    assert any(int(float(id)) != int(id) for id in ids), "a float would do"
    assert {id for query in found.queries for id in query.positives} <= set(ids)


def test_shards_share_the_products_evenly(merit):
    files = sorted((merit / "data").iterdir())
    assert [file.name for file in files] == [f"test-{i:05d}-of-{SHARDS:05d}.parquet" for i in range(SHARDS)]
    assert [parquet.read_metadata(file).num_rows for file in files] == [PRODUCTS // SHARDS] * SHARDS


@pytest.mark.parametrize(
    "id", [str(2**63), str(-(2**63) - 1), "9999999999999999999", "10000000000000000000", "x1"]
)
def test_an_id_that_64_bits_do_not_hold_is_refused_by_name(id, tmp_path):
    picture = noise(8, 8, seed=0)
    with pytest.raises(ItemError, match=f"product {id}: id '{id}' is no whole number of 64 bits"):
        write_merit(Dataset("own", [Product(id, "a chair", picture)], []), tmp_path, "test")
    query = Query("q", "chair", (Condition("color", Product("1", "a chair", picture), "red"),), ".", (id,))
    with pytest.raises(ItemError, match=f"query q: id '{id}' is no whole number of 64 bits"):
        write_merit(Dataset("own", [Product("1", "a chair", picture)], [query]), tmp_path, "test")


def test_the_largest_ids_are_written(tmp_path):
    ids = [str(2**63 - 1), str(-(2**63)), "1731689392940156946", "0"]
    products = [Product(id, "a chair", noise(8, 8, seed=0), "chair", "en") for id in ids]
    query = Query("q", "chair", (Condition("color", products[0], "red"),), ".", tuple(ids[1:]))
    write_merit(Dataset("own", products, [query]), tmp_path, "test")
    found = cl.dataset(tmp_path)
    assert [product.id for product in found.products] == ids
    assert found.queries[0].references[0].id == ids[0]
    assert list(found.queries[0].positives) == ids[1:]


def test_data_that_a_kill_left_are_not_taken_for_whole(merit, tmp_path, monkeypatch):
    write = rehearsal_data.write_products

    def killed(file, *rest):
        if file.name.startswith("test-00002"):
            raise KeyboardInterrupt
        write(file, *rest)

    with monkeypatch.context() as changed:
        changed.setattr(rehearsal_data, "write_products", killed)
        with pytest.raises(KeyboardInterrupt):
            write_data(tmp_path, PRODUCTS, QUERIES, processes=1)
    with pytest.raises(FileNotFoundError, match=r"queries-test.json is missing"):
        cl.dataset(tmp_path)
    stood = numbers(tmp_path)
    write_data(tmp_path, PRODUCTS, QUERIES, processes=1)
    for file in merit.rglob("*.*"):
        assert (tmp_path / file.relative_to(merit)).read_bytes() == file.read_bytes(), file.name
    assert stood.items() <= numbers(tmp_path).items()
    stands = numbers(tmp_path)
    write_data(tmp_path, PRODUCTS, QUERIES, processes=1)
    assert numbers(tmp_path) == stands


def test_data_of_others_stay(merit, tmp_path):
    with pytest.raises(ValueError, match=r"test-00000-of-00005.parquet holds other products; name another"):
        write_data(merit, PRODUCTS, QUERIES, seed=1, processes=1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test-00000-of-00007.parquet").touch()
    with pytest.raises(ValueError, match=r"00007.parquet is of other data"):
        write_data(tmp_path, PRODUCTS, QUERIES, processes=1)


def test_too_few_products_for_queries_are_refused(tmp_path):
    with pytest.raises(ValueError, match="would have 100 products; queries need at least 200"):
        write_data(tmp_path, 100, 10)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.slow  # 15 s: each process draws every shape once
def test_several_processes_write_the_same_and_end_with_the_one_that_started_them(merit, tmp_path):
    code = (
        "from coral_lab.mini.rehearsal_data import write_data\n"
        f"if __name__ == '__main__':\n"
        f"    write_data({str(tmp_path / 'merit')!r}, {PRODUCTS}, {QUERIES}, processes=2)\n"
    )
    (tmp_path / "run.py").write_text(code)
    run = subprocess.Popen([sys.executable, tmp_path / "run.py"], stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("test-00000*.parquet")):
        time.sleep(0.05)
    mine = [int(file.parent.name) for file in Path("/proc").glob("[0-9]*/stat") if parent(file) == run.pid]
    assert len(mine) >= 2
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(1)
    assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]
    subprocess.run([sys.executable, tmp_path / "run.py"], check=True, stderr=subprocess.DEVNULL)
    for file in merit.rglob("*.*"):
        assert (tmp_path / "merit" / file.relative_to(merit)).read_bytes() == file.read_bytes(), file.name


def parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return 0


# both


def test_a_rehearsal_is_both_and_says_so(merit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rehearsal, "PRODUCTS", PRODUCTS)
    monkeypatch.setattr(rehearsal, "QUERIES", QUERIES)
    monkeypatch.setattr(
        rehearsal, "write_data", lambda folder: write_data(folder, PRODUCTS, QUERIES, processes=1)
    )
    monkeypatch.setattr(
        rehearsal, "write_checkpoint", lambda folder, vocabulary: write_checkpoint(folder, shape=TINY)
    )
    shutil.copytree(merit, tmp_path / "merit")
    left = tmp_path / "coral" / ".model-00001-of-00003.safetensors.0123456789abcdef.part"
    left.parent.mkdir()
    left.touch()
    rehearsal.rehearse(tmp_path)
    assert not left.exists()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tmp_path / 'merit'}: 250 products, 20 queries, ")
    assert said[1].startswith(f"{tmp_path / 'coral'}: Qwen2.5-VL-3B's shape, random weights, ")
    stands = numbers(tmp_path)
    rehearsal.rehearse(tmp_path)
    assert numbers(tmp_path) == stands
    assert len(cl.dataset(tmp_path / "merit").queries) == QUERIES
    assert (tmp_path / "coral" / INDEX).is_file()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: Room)
    with pytest.raises(
        WorkbenchError, match=r"has 1.0 GB of room, and .* takes 8.5; name a folder on another"
    ):
        rehearsal.rehearse(tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Room:
    free = 10**9


@pytest.mark.slow  # minutes, and 8.5 GB of disk
def test_full_size(tmp_path):
    rehearsal.rehearse(tmp_path)
    shop = cl.dataset(tmp_path / "merit")
    assert (len(shop.products), len(shop.queries)) == (51_177, 10_000)
    model = cl.load(tmp_path / "coral", device="cpu", dtype="bfloat16")
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 3_754_622_976
    found = cl.encode(model, shop.products[:2], settings=cl.Settings(store="", progress=False))
    assert np.isfinite(found).all()
    assert found[0] @ found[1] < 0.98
