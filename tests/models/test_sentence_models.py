"""Folders of sentence-transformers do what their own files say, and what this package's checkpoints do is the
same by either path.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import coral_lab as cl
from coral_lab import Condition, Product, Query, Settings
from coral_lab.errors import CheckpointError, ItemError, ModelMismatchError
from coral_lab.models.families import CORAL, PLAIN
from coral_lab.models.sentence_models import MODULES, SentenceModel, is_run_otherwise
from coral_lab.prompts import messages
from tests.conftest import noise
from tests.models.layouts import change, read

library = pytest.importorskip("sentence_transformers")

MINI = Path(__file__).parents[2] / "data/coral-mini"
PRODUCTS = [Product(f"p{i}", f"title {i}", noise(56, 84, seed=i), "bag") for i in range(4)]
QUERIES = [
    Query("q0", "bag", (Condition("brand", PRODUCTS[0]), Condition("style", PRODUCTS[1])), positives=("p2",)),
    Query("q1", "bag", (Condition("brand", PRODUCTS[3]),), " and straps.", positives=("p1",)),
]
ITEMS = [*QUERIES, *PRODUCTS, replace(PRODUCTS[0], image=None)]


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MINI, tmp_path / "mine")


@pytest.fixture(scope="module")
def general():
    return cl.load(MINI, family="sentence-transformers")


def test_our_own_checkpoints_give_the_quick_paths_vectors(general):
    quick = cl.load(MINI)
    assert isinstance(general, SentenceModel)
    assert general.family is CORAL
    for batch_size in (1, 3, 8):
        found = cl.encode(general, ITEMS, settings=Settings(batch_size=batch_size))
        np.testing.assert_allclose(found, cl.encode(quick, ITEMS), atol=1e-5)
    chats = [messages(item) for item in ITEMS[:3]]
    np.testing.assert_allclose(cl.encode(general, chats), cl.encode(quick, chats), atol=1e-5)
    assert "Transformer → Pooling → Normalize" in repr(general)
    assert (general.dim, general.dtype) == (128, torch.float32)


def test_the_whole_bench_takes_it(general, tmp_path):
    pool = cl.index(general, PRODUCTS)
    assert len(cl.evaluate(general, QUERIES, pool).queries) == 2
    store = cl.open_store(tmp_path / "store", general)
    assert store.add(PRODUCTS).products == 4
    again = cl.load(MINI, family="sentence-transformers")
    assert again.fingerprint == general.fingerprint
    assert len(cl.evaluate(again, QUERIES, pool).queries) == 2
    with pytest.raises(ModelMismatchError):
        cl.evaluate(cl.load(MINI), QUERIES, pool)
    with pytest.raises(CheckpointError, match="only embeds, and training needs a network"):
        cl.train(general, cl.dataset("mini"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="only embeds"):
        cl.encode(general, PRODUCTS, layer=1)


def mean(folder):
    change(folder / "1_Pooling/config.json", pooling_mode="mean")


def prompted(folder):
    change(folder / "config_sentence_transformers.json", prompts={"query": "Seek: ", "document": ""})


def longer(folder):
    modules = json.loads((folder / MODULES).read_text())
    (folder / MODULES).write_text(json.dumps(modules[:2]))


@pytest.mark.parametrize("changed", [mean, prompted, longer])
def test_a_folder_whose_modules_say_otherwise_is_run_as_they_say(folder, changed):
    """Its network is one that is known, and last-token pooling would be wrong in silence."""
    assert not is_run_otherwise(folder)
    assert isinstance(cl.load(folder), cl.models.Model)
    changed(folder)
    assert is_run_otherwise(folder)
    model = cl.load(folder)
    assert isinstance(model, SentenceModel)
    assert model.family is PLAIN
    theirs = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    plain = {"image": PRODUCTS[0].picture, "text": PRODUCTS[0].title}
    asked = [{"role": "user", "content": [{"type": "text", "text": "a bag"}]}]
    expected = [theirs.encode_document([plain]), theirs.encode([asked])]
    found = [cl.encode(model, PRODUCTS[0]), cl.encode(model, asked)]
    for ours, own in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, own / np.linalg.norm(own), atol=1e-5)
    if changed is mean:
        assert np.abs(found[1] - cl.encode(cl.load(MINI), asked)).max() > 1e-2
    if changed is prompted:
        query = replace(QUERIES[0], conditions=())
        chat = [{"role": "system", "content": [{"type": "text", "text": "Seek: "}]}, *messages(query)]
        np.testing.assert_allclose(cl.encode(model, query), theirs.encode([chat]), atol=1e-5)
    assert cl.load(folder, family="coral").family is CORAL  # who asks for a family gets it


def test_a_copy_of_the_checkpoint_alone_is_read_as_before(folder):
    shutil.rmtree(folder / "1_Pooling")
    assert not is_run_otherwise(folder)
    assert isinstance(cl.load(folder), cl.models.Model)


class Pairs:
    """A network that reads one picture with one text, and takes no messages."""

    modalities = ["text", "image", ("image", "text")]
    device = torch.device("cpu")

    def __init__(self, *takes) -> None:
        self.modalities = list(takes or self.modalities)
        self.given: list = []

    def get_embedding_dimension(self) -> int:
        return 3

    def supports(self, modality) -> bool:
        return modality in self.modalities

    def encode(self, inputs, **_):
        self.given += inputs
        return np.ones((len(inputs), 3), np.float32)

    encode_query = encode_document = encode


def test_a_model_of_one_picture_and_one_text_gets_cat(caplog):
    network = Pairs()
    model = SentenceModel("pairs", network, replace(PLAIN, title="pairs", most_pictures=1))
    cl.encode(model, [*QUERIES, *PRODUCTS[:1], ITEMS[-1]])
    assert "of 1 queries it gets all pictures pasted into one (Cat)" in caplog.text
    first, second, product, text = network.given
    assert [*first] == ["image", "text"]
    assert first["image"].width >= 2 * 56
    assert second["image"].size == (56, 84)
    assert product["text"] == "title 0"
    assert text == {"text": "title 0"}


def test_a_title_that_looks_like_an_address_stays_a_title(tmp_path):
    """sentence-transformers opens such texts as pictures, and fetches addresses."""
    noise(9, 9, seed=0).save(tmp_path / "a.png")
    network = Pairs()
    model = SentenceModel("pairs", network)
    for title in ("https://example.org/a.png", str(tmp_path / "a.png"), "data:image/png;base64,AAAA"):
        cl.encode(model, Product("p", title))
        assert network.given[-1] == {"text": title}
    own = cl.load(MINI, family="sentence-transformers")
    quick = cl.load(MINI)
    product = Product("p", str(tmp_path / "a.png"))
    np.testing.assert_allclose(cl.encode(own, product), cl.encode(quick, product), atol=1e-5)


def test_what_it_does_not_read_is_refused():
    texts = SentenceModel("texts", Pairs("text"))
    assert cl.encode(texts, ITEMS[-1]).shape == (1, 3)
    assert cl.encode(texts, QUERIES[0], "caption").shape == (1, 3)
    with pytest.raises(
        ItemError, match=r"product p0: 'texts' reads text, and this has a picture and a text; use"
    ):
        cl.encode(texts, PRODUCTS[0])
    apart = SentenceModel("apart", Pairs("text", "image"))
    assert cl.encode(apart, Product("p", image=noise(20, 20, seed=0))).shape == (1, 3)
    with pytest.raises(ItemError, match="a picture and a text"):
        cl.encode(apart, PRODUCTS[0])
    limited = {"type": "image", "image": noise(20, 20, seed=0), "max_pixels": 900}
    with pytest.raises(ItemError, match="limits a picture's pixels, which this model does not"):
        cl.encode(apart, [{"role": "user", "content": [limited]}])


def test_a_folder_without_modules_is_refused_with_a_word_on_pooling(folder):
    (folder / MODULES).unlink()
    with pytest.raises(
        CheckpointError, match=r"has no modules.json, so that .* would take the mean of all tokens"
    ):
        cl.load(folder, family="sentence-transformers")
    assert isinstance(cl.load(folder), cl.models.Model)
    change(folder / "config.json", architectures=["LlavaForConditionalGeneration"])
    with pytest.raises(CheckpointError, match=r"only, and others by modules.json, not by mean pooling"):
        cl.load(folder)


def code(folder):
    modules = json.loads((folder / MODULES).read_text())
    modules[0]["type"] = "modeling.Mine"
    (folder / MODULES).write_text(json.dumps(modules))
    (folder / "modeling.py").write_text("raise SystemExit('code was run')")


def outside(folder):
    modules = json.loads((folder / MODULES).read_text())
    modules[1]["path"] = "../elsewhere"
    (folder / MODULES).write_text(json.dumps(modules))


def pickled(folder):
    torch.save({}, folder / "1_Pooling/pytorch_model.bin")


def no_list(folder):
    (folder / MODULES).write_text('{"a": 1}')


def no_json(folder):
    (folder / MODULES).write_text("[")


def no_class(folder):
    modules = json.loads((folder / MODULES).read_text())
    modules[0]["type"] = "sentence_transformers.nothing.Here"
    (folder / MODULES).write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (code, "names the module modeling.Mine, code that would have to be run; encode .* cl.vectors"),
        (outside, r"leads out of the folder"),
        (pickled, "pytorch_model.bin is pickled, and only safetensors are read"),
        (no_list, "modules.json is no list of modules with type and path"),
        (no_json, "modules.json is no JSON"),
        (no_class, "could not be loaded"),
    ],
)
def test_hostile_folders_are_refused_in_one_line(folder, broken, says):
    broken(folder)
    with pytest.raises(CheckpointError, match=says) as error:
        cl.load(folder, family="sentence-transformers")
    assert len(str(error.value)) <= 300


def test_choices_that_it_has_not_are_refused():
    for choice in ({"quick": True}, {"quantize": "int8"}, {"attention": "sdpa"}):
        with pytest.raises(ValueError, match="run by sentence-transformers, which has no quick, quantize"):
            cl.load(MINI, family="sentence-transformers", **choice)


def test_its_settings_are_part_of_the_fingerprint(folder, general):
    change(folder / "config_sentence_transformers.json", prompts={"query": "a "})
    other = cl.load(folder)
    assert other.fingerprint != general.fingerprint
    assert read(folder / "config.json")["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
