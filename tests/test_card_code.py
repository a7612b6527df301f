"""The model card's own code and sentence-transformers, run on a shipped checkpoint, give our embeddings."""

import numpy as np
import pytest

from coral_lab import Condition, Product, Query, encode, load, messages
from coral_lab.models.loading import SHIPPED
from coral_lab.sources.package_files import shipped
from tests import model_card


@pytest.fixture(scope="module")
def pictures(shop, tmp_path_factory):
    """The card's three picture files, with products of MERIT-mini standing in."""
    folder = tmp_path_factory.mktemp("card")
    for number in (1, 2, 3):
        shop.products[number].picture.save(folder / f"product_{number}.png")
    return folder


@pytest.fixture(scope="module")
def ran(pictures):
    """The names that the card's code leaves behind, run on coral-mini as published, less CUDA and the hub."""
    code = model_card.CODE.replace('"Bia/CORAL"', repr(str(shipped(f"data/{SHIPPED['mini']}"))))
    code = code.replace('.to("cuda")', "").replace("CORAL/images", str(pictures))
    names: dict = {}
    exec(compile(code, "the model card", "exec"), names)
    return names


def test_the_cards_code_gives_our_embeddings(ran):
    model = load("mini")
    ours = encode(model, [ran["query"], ran["candidate"]])
    np.testing.assert_allclose(ours[0], ran["query_embedding"][0].float().numpy(), atol=1e-5)
    np.testing.assert_allclose(ours[1], ran["candidate_embedding"][0].float().numpy(), atol=1e-5)
    assert ran["similarity"].item() == pytest.approx(float(ours[0] @ ours[1]), abs=1e-5)


def test_the_cards_query_as_data_gives_its_embedding_too(ran, pictures):
    texts = [part["text"] for part in ran["query"][0]["content"] if part["type"] == "text"]
    titles = [text.split(" </Product", 1)[0].removeprefix("\n ") for text in texts[1:]]
    references = [
        Product(f"r{n}", title, str(pictures / f"product_{n}.png")) for n, title in enumerate(titles, 1)
    ]
    conditions = tuple(map(Condition, ("brand", "fashion style"), references))
    query = Query("card", "backpack", conditions, " with a quilted texture and a chain strap.")
    assert messages(query) == ran["query"]
    np.testing.assert_allclose(encode(load("mini"), query)[0], ran["query_embedding"][0].numpy(), atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(SHIPPED)))
def test_sentence_transformers_loads_the_folder_by_its_path_alone(name, shop):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(shipped(f"data/{SHIPPED[name]}")), device="cpu")
    items = [messages(shop.queries[0]), messages(shop.products[0])]
    np.testing.assert_allclose(theirs.encode(items), encode(load(name), items), atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(SHIPPED)))
def test_a_shipped_checkpoint_is_a_small_whole_qwen(name):
    folder = shipped(f"data/{SHIPPED[name]}")
    model = load(name)
    assert 1e6 < sum(p.numel() for p in model.network.parameters()) < 5e6
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 12 * 2**20
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.pt")) + list(folder.rglob("*.py"))
