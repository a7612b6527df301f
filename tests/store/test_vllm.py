"""vLLM is let in if its embeddings are ours, and nothing is written if not. vLLM itself cannot be installed
here: a stand-in with its names runs transformers on the folder that it is given, rightly or wrongly.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

import coral_lab as cl
from coral_lab import Product, Settings, load
from coral_lab.cli import main
from coral_lab.errors import (
    CheckpointError,
    ItemError,
    MissingExtraError,
    ModelMismatchError,
    StoreError,
)
from coral_lab.models.inputs import prompt
from coral_lab.models.pixels import as_on_the_card
from coral_lab.sources.writing import write_merit
from coral_lab.store import vllm_engine
from coral_lab.store.blocks import Marks
from coral_lab.store.keeping import table_of
from coral_lab.store.sharded import Engine, encode_sharded
from tests.conftest import noise
from tests.store.embedders import Letters

QUIET = Settings(progress=False)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass
class PoolerConfig:
    """The fields of vLLM's that we name."""

    task: str | None = None
    pooling_type: str | None = None
    use_activation: bool | None = None


@dataclass
class Fault:
    """What a stand-in does wrong, and what it was told and asked."""

    pool: Callable = lambda states: states[-1]
    after: Callable = lambda vector: vector
    before: Callable = lambda prompt: prompt
    stale: bool | None = None
    """Whether it takes the states that it kept of another picture; None: if its prefix cache is on."""
    last: int = 10**9
    told: dict = field(default_factory=dict)
    texts: list = field(default_factory=list)
    calls: list = field(default_factory=list)


class LLM:
    """vLLM's `LLM` for embedding: the model card's sums, one prompt after the other."""

    fault = Fault()

    def __init__(self, *, model, dtype, pooler_config, mm_processor_kwargs, **options):
        own = {"dtype": dtype, "pooler_config": pooler_config, "mm_processor_kwargs": mm_processor_kwargs}
        self.fault.told |= own | options
        self.network = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=dtype).eval()
        self.processor = Qwen2_5_VLProcessor.from_pretrained(model)
        self.kwargs, self.pooler, self.kept = mm_processor_kwargs, pooler_config, {}
        cache = options["enable_prefix_caching"] is not False
        self.stale = cache if self.fault.stale is None else self.fault.stale

    def embed(self, prompts, *, use_tqdm=True):
        self.fault.calls.append(len(prompts))
        return [SimpleNamespace(outputs=SimpleNamespace(embedding=self._one(own))) for own in prompts]

    @torch.inference_mode()
    def _one(self, prompt):
        self.fault.last -= 1
        if self.fault.last < 0:
            raise KeyboardInterrupt
        self.fault.texts.append(prompt["prompt"])
        prompt = self.fault.before(prompt)
        images = prompt.get("multi_modal_data", {}).get("image")
        if self.stale and images:  # up to the picture's end, tokens tell nothing but its size
            images = [self.kept.setdefault(own.size, own) for own in images]
        inputs = self.processor(text=[prompt["prompt"]], images=images, return_tensors="pt", **self.kwargs)
        assert inputs["input_ids"].shape[1] <= self.fault.told["max_model_len"]
        states = self.network.model(**inputs).last_hidden_state[0]
        assert self.pooler == PoolerConfig("embed", "LAST", True)
        return self.fault.after(torch.nn.functional.normalize(self.fault.pool(states), dim=0).tolist())


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in in the place of vLLM; what it is to do wrong is set on it."""
    fault = Fault()
    module, config = ModuleType("vllm"), ModuleType("vllm.config")
    module.__version__, module.LLM = "0.19.1", type("LLM", (LLM,), {"fault": fault})
    config.PoolerConfig = PoolerConfig
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.config", config)
    return fault


@pytest.fixture(scope="module")
def products(shop, tmp_path_factory):
    """Of every kind: with and without a picture or a title, small and large, alike but for the picture."""
    folder = tmp_path_factory.mktemp("pictures")
    noise(300, 90, seed=5).save(folder / "strip.png")
    own = [
        Product("strip", "a strip", str(folder / "strip.png"), "bag", attributes={"color": ("red",)}),
        Product("words", "nothing to see"),
        Product("mute", "", noise(70, 140, seed=6)),
        *(Product(f"twin {i}", "a twin", noise(84, 84, seed=i)) for i in range(3)),
    ]
    return (*shop.products[:5], *own)


@pytest.fixture(scope="module")
def make(random_folder):
    return partial(load, str(random_folder), device="cpu")


def is_empty(folder) -> bool:
    return not folder.exists() or not [*folder.iterdir()]


def test_rows_are_those_of_our_own_encoder(vllm, make, products, tmp_path):
    added = encode_sharded(make, products, tmp_path / "vllm", Engine("vllm", block=4), QUIET)
    here = encode_sharded(make, products, tmp_path / "here", Engine(block=4), QUIET)
    assert (added.products, added.skipped, here.check) == (len(products), (), "")
    own = make()
    ours, theirs = (cl.open_store(tmp_path / name, own) for name in ("here", "vllm"))
    np.testing.assert_allclose(theirs.to_numpy()[1], ours.to_numpy()[1], atol=1e-4)
    names = [f"product:{product.id}" for product in products]
    assert theirs.table.rows(names) == ours.table.rows(names), "keys, facts and thumbnails too"
    assert not Marks(theirs.table).read()


def test_our_own_encoder_goes_on_with_the_store_and_finds_every_row(
    vllm, make, products, tmp_path, monkeypatch
):
    encode_sharded(make, products, tmp_path, Engine("vllm"), QUIET)
    todo = []
    monkeypatch.setattr(
        "coral_lab.encoder.embed", lambda model, asked, count, own, *_: todo.extend(own) or ()
    )
    store = cl.open_store(tmp_path, make())
    assert store.add(products, QUIET).products == len(products)
    assert not todo
    store.add([*products, Product("new", "a new one")], QUIET)
    assert todo == [len(products)]


def test_what_let_it_in_is_told(vllm, make, products, tmp_path):
    added = encode_sharded(make, products, tmp_path, Engine("vllm", sample=5), QUIET)
    said = r"vLLM 0\.19\.1 was let in: least cosine to our own encoder (0\.999|1\.000)\d+ \(product .*\) "
    assert re.fullmatch(said + "over 5 products, 0.999 wanted", added.check)
    assert added.check in repr(added)
    assert vllm.calls == [5, 5, len(products)], "a sample twice, and then all at once"


def test_vllm_is_told_to_keep_no_prefixes_and_to_pool_the_last_token(vllm, make, products, tmp_path):
    encode_sharded(make, products, tmp_path, Engine("vllm"), QUIET)
    own = make()
    assert vllm.told == {
        "runner": "pooling",
        "convert": "embed",
        "dtype": "float32",
        "pooler_config": PoolerConfig("embed", "LAST", True),
        "max_model_len": own.longest,
        "enable_prefix_caching": False,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "mm_processor_kwargs": {},
        "mm_processor_cache_gb": 0,
    }


def dropped(prompt):
    return {"prompt": prompt["prompt"].replace(IMAGE, "")}


def other_pictures(prompt):
    images = prompt.get("multi_modal_data", {}).get("image", [])
    return prompt | (
        {"multi_modal_data": {"image": [noise(*i.size, seed=99) for i in images]}} if images else {}
    )


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"pool": lambda states: states.mean(0)}, r"product .*cosine -?0\.\d+ to our own encoder's, 0\.999 "),
        ({"pool": lambda states: states[-2]}, r"product .*cosine -?0\.\d+"),
        ({"stale": True}, r"product .*cosine -?0\.\d+"),
        ({"before": dropped}, r"product .*cosine -?0\.\d+"),
        ({"before": other_pictures}, r"product .*cosine -?0\.\d+"),
        ({"before": lambda own: own | {"prompt": own["prompt"] + "\n"}}, r"cosine -?0\.\d+"),
        ({"after": lambda own: [2 * x for x in own]}, r"product .*embedding of length 2, 1 wanted"),
        ({"after": lambda own: [float("nan"), *own[1:]]}, "product .*not finite"),
        ({"after": lambda own: [float("inf"), *own[1:]]}, "product .*not finite"),
        ({"after": lambda own: [0.0] * len(own)}, "product .*length 0, 1 wanted"),
        ({"after": lambda own: own[:-1]}, r"product .*gives \d+ numbers, \d+ wanted"),
    ],
    ids=["mean", "before", "stale", "dropped", "others", "text", "long", "nan", "inf", "zeros", "short"],
)
def test_what_is_wrong_is_refused_with_what_was_found_and_nothing_is_written(
    vllm, make, products, tmp_path, fault, problem
):
    for name, value in fault.items():
        setattr(vllm, name, value)
    with pytest.raises(ModelMismatchError, match=problem) as raised:
        encode_sharded(make, products, tmp_path / "store", Engine("vllm"), QUIET)
    assert "--engine local" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert is_empty(tmp_path / "store")


def test_too_few_embeddings_are_refused(vllm, make, products, tmp_path, monkeypatch):
    embed = sys.modules["vllm"].LLM.embed
    monkeypatch.setattr(sys.modules["vllm"].LLM, "embed", lambda *own, **how: embed(*own, **how)[1:])
    with pytest.raises(ModelMismatchError, match=r"one of 3 items, and vLLM gives 2 embeddings"):
        encode_sharded(make, products[:3], tmp_path / "store", Engine("vllm"), QUIET)
    assert is_empty(tmp_path / "store")


def test_a_prefix_cache_that_forgets_pictures_is_why_it_is_off(vllm, make, products, tmp_path, monkeypatch):
    off = vllm_engine.options_of
    on = {"enable_prefix_caching": True}
    monkeypatch.setattr(vllm_engine, "options_of", lambda own, folder: off(own, folder) | on)
    with pytest.raises(ModelMismatchError, match=r"product .*cosine -?0\.\d+"):
        encode_sharded(make, products, tmp_path, Engine("vllm"), QUIET)


def test_what_a_second_call_takes_from_the_first_is_refused(vllm, make, products, tmp_path, monkeypatch):
    """Of products that are alike in nothing: a cache by place."""
    embed, kept = sys.modules["vllm"].LLM.embed, []

    def by_place(self, prompts, use_tqdm):
        kept.extend(embed(self, prompts)[len(kept) :])
        return kept[: len(prompts)]

    monkeypatch.setattr(sys.modules["vllm"].LLM, "embed", by_place)
    with pytest.raises(ModelMismatchError, match=r"product .*cosine -?0\.\d+"):
        encode_sharded(make, products[:4], tmp_path / "store", Engine("vllm"), QUIET)
    assert is_empty(tmp_path / "store")


def test_the_least_of_all_cosines_counts_at_its_bound(make, products):
    """One product of all is off, by a cosine that is known."""
    own = make()
    sample = vllm_engine.sample_of(own, products, 32, QUIET, seed=0)
    vectors = sample.embeddings.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    aside = np.roll(vectors[2], 1) - vectors[2] * (np.roll(vectors[2], 1) @ vectors[2])
    aside /= np.linalg.norm(aside)

    def off(cosine: float):
        made = vectors.copy()
        made[2] = cosine * vectors[2] + np.sqrt(1 - cosine**2) * aside
        by_text = dict(zip((_text(own, product) for product in sample.products), made, strict=True))

        def answer(asked, use_tqdm):
            return [_answer(by_text[_seen(one)]) for one in asked]

        return vllm_engine.Vllm(own, SimpleNamespace(embed=answer), "1", "x")

    found = vllm_engine.check(off(0.9991), sample)
    assert found.least == pytest.approx(0.9991, abs=1e-5)
    assert (found.item, found.sample) == (f"product {sample.products[2].id}", len(products))
    with pytest.raises(ModelMismatchError, match=rf"^product {sample.products[2].id}: .*cosine 0\.9989"):
        vllm_engine.check(off(0.9989), sample)


def _text(own, product):
    asked = prompt(own, product)
    return asked.text, tuple(as_on_the_card(p, "x", 14).tobytes() for p in asked.pictures)


def _seen(asked):
    return asked["prompt"], tuple(i.tobytes() for i in asked.get("multi_modal_data", {}).get("image", ()))


def _answer(vector):
    return SimpleNamespace(outputs=SimpleNamespace(embedding=vector.tolist()))


def test_the_sample_is_drawn_by_seed_over_all(make):
    own = make()
    many = [Product(f"{n:03d}", f"thing {n}") for n in range(200)]
    drawn = [
        [product.id for product in vllm_engine.sample_of(own, many, 20, QUIET, seed).products]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({*drawn[0]}) == 20
    assert int(min(drawn[0])) < 60 < 140 < int(max(drawn[0]))


def test_a_run_that_dies_goes_on_with_the_blocks_that_are_not_done(vllm, make, products, tmp_path):
    engine = Engine("vllm", block=3, sample=2)
    vllm.last = 2 * 2 + 7
    with pytest.raises(KeyboardInterrupt):
        encode_sharded(make, products, tmp_path, engine, QUIET)
    assert len(cl.open_store(tmp_path, make())) == 0, "nothing before all is done"
    vllm.last, before = 10**9, len(vllm.texts)
    assert encode_sharded(make, products, tmp_path, engine, QUIET).products == len(products)
    assert len(vllm.texts) - before == 2 * 2 + len(products) - 6
    before = len(vllm.texts)
    again = encode_sharded(make, products, tmp_path, engine, QUIET)
    assert (again.products, again.check) == (len(products), "")
    assert len(vllm.texts) == before, "nothing new, nothing to check"


def test_what_cannot_be_read_is_named_or_left_out(vllm, make, products, tmp_path, monkeypatch):
    broken = (*products, Product("no", "picture", image=str(tmp_path / "none.png")))
    with pytest.raises(ItemError, match=r"none\.png"):
        encode_sharded(make, broken, tmp_path / "a", Engine("vllm"), QUIET)
    assert is_empty(tmp_path / "a")
    lenient = replace(QUIET, on_error="skip")
    found = encode_sharded(make, broken, tmp_path / "b", Engine("vllm"), lenient)
    assert found.products == len(products)
    assert "none.png" in str(found.skipped[0])
    assert f"over {len(products)} products" in found.check
    with pytest.raises(ValueError, match=r"1 of 1 products were drawn .*none can be read, 1 or more wanted"):
        encode_sharded(make, broken[-1:], tmp_path / "c", Engine("vllm"), lenient)


def test_an_item_that_vllm_cannot_be_asked_is_named(make, products, shop):
    own = make()
    asked = vllm_engine.Vllm(own, None, "1", "x")
    with pytest.raises(ItemError, match=r"^query .*shows \d pictures, and vLLM is told of 1; encode with"):
        cl.encode(asked, next(query for query in shop.queries if len(query.references) > 1))
    with pytest.raises(
        ItemError, match=r"product long: is [\d,]+ tokens long and the model reads [\d,]+; sh"
    ):
        cl.encode(asked, Product("long", "word " * own.longest, noise(56, 56, seed=1)))


def test_what_does_not_go_with_vllm_is_named_before_anything_is_computed(vllm, make, products, tmp_path):
    with pytest.raises(CheckpointError, match="'letters' only embeds, and vLLM needs a network"):
        encode_sharded(Letters, products, tmp_path / "s", Engine("vllm"), QUIET)
    with pytest.raises(ItemError, match="is there twice"):
        encode_sharded(make, (*products, products[0]), tmp_path / "s", Engine("vllm"), QUIET)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(StoreError, match="holds something else than a store"):
        encode_sharded(make, products, tmp_path, Engine("vllm"), QUIET)
    for arguments, problem in [
        ({"workers": 2}, "for ray, and the engine is vllm"),
        ({"sample": 0}, "sample of 0 products; it is 1 or more"),
        ({"name": "local", "sample": 5}, "sample is for vllm, and the engine is local"),
    ]:
        with pytest.raises(ValueError, match=problem):
            Engine(**{"name": "vllm", **arguments})
    assert not vllm.told, "vLLM was not loaded"


def test_a_vllm_that_cannot_load_says_so_in_one_line(vllm, make, products, tmp_path, monkeypatch):
    def fails(**options):
        raise ValueError("No available memory\nfor the cache blocks")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", fails)
    with pytest.raises(CheckpointError, match=r"by vLLM 0\.19\.1: .*No available memory.*--engine local$"):
        encode_sharded(make, products, tmp_path / "s", Engine("vllm"), QUIET)
    assert is_empty(tmp_path / "s")


def test_without_vllm_the_error_names_the_extra(make, products, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(vllm_engine, "network_of", None)  # the model is not looked at
    with pytest.raises(MissingExtraError, match=r"needs vllm, .*pip install 'coral-lab\[vllm\]'"):
        encode_sharded(make, products, tmp_path / "s", Engine("vllm"), QUIET)
    assert is_empty(tmp_path / "s")


def test_nothing_is_left_of_the_weights(vllm, make, products, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    encode_sharded(make, products[:4], tmp_path / "a", Engine("vllm"), QUIET)
    vllm.pool = lambda states: states.mean(0)
    with pytest.raises(ModelMismatchError):
        encode_sharded(make, products, tmp_path / "b", Engine("vllm"), QUIET)
    assert is_empty(tmp_path / "own")


def test_the_command_prints_what_let_it_in(vllm, random_folder, products, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = replace(cl.dataset("mini"), products=tuple(products[:4]), queries=())
    write_merit(data, tmp_path / "shop", "test")
    words = ["encode", "--model", str(random_folder), "--data", str(tmp_path / "shop"), "--store", "s"]
    assert main([*words, "--engine", "vllm", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "vLLM 0.19.1 was let in: least cosine to our own encoder " in said
    assert "4 products in s" in said
    own = load(str(random_folder), device="cpu")
    assert len(table_of(str(tmp_path / "s"), own)) == 4
    vllm.pool = lambda states: states.mean(0)
    assert main([*words[:-1], "t", "--engine", "vllm", "--device", "cpu"]) == 2
    assert "0.999 wanted" in capsys.readouterr().err
