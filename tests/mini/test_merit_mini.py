"""The rendered catalogue: facts, titles, queries and MERIT's file formats."""

import io
import json
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from coral_lab.mini.cards import cards
from coral_lab.mini.merit_mini import SIZES, catalogue
from coral_lab.mini.queries import stated
from coral_lab.mini.titles import (
    ATTRIBUTES,
    TEXTUAL,
    VISUAL,
    material_phrase,
    named_in_title,
    retitle,
    shown,
    word,
)
from coral_lab.prompts import LANGUAGES, instructions
from coral_lab.query import Product
from coral_lab.sources.writing import write_merit


@pytest.fixture(scope="module")
def shop():
    return catalogue("mini", "val")


def wanted(query) -> dict[str, str]:
    asked = [(condition.attribute, condition.value) for condition in query.conditions]
    said = stated(query)
    return dict([*asked, said] if said else asked)


def value(product, key) -> str:
    return product.attributes[key][0]


def fingerprint(shop):
    return [(product.id, product.title, dict(product.attributes)) for product in shop.products], [
        (query.id, query.text, query.positives, [product.id for product in query.references])
        for query in shop.queries
    ]


def test_a_seed_settles_everything(shop):
    again = catalogue.__wrapped__("mini", "val", 0)
    assert catalogue("mini", "val", 0) is catalogue("mini", "val", 0)
    assert fingerprint(again) == fingerprint(shop)
    assert again.products[7].image().tobytes() == shop.products[7].image().tobytes()
    other = catalogue("mini", "val", 1)
    assert fingerprint(other)[0] != fingerprint(shop)[0]
    assert [query.positives for query in other.queries] != [query.positives for query in shop.queries]


TRAIN = pytest.param("train", marks=pytest.mark.slow)  # 20 s where types are checked, 3 s without


def test_sizes_of_the_splits_and_their_ids_apart():
    assert {split: size for split, (_, *size) in SIZES.items()} == {
        "train": [15_000, 40_000],
        "test": [3_000, 2_000],
        "val": [1_500, 500],
    }
    digits = [digit for digit, *_ in SIZES.values()]
    assert len(set(digits)) == len(digits), "ids of two splits would start alike"


@pytest.mark.parametrize("split", [TRAIN, "test", "val"])
def test_a_split_has_its_products_and_queries(split):
    digit, products, queries = SIZES[split]
    pool = catalogue("mini", split)
    ids = {product.id for product in pool.products}
    assert (len(ids), len(pool.products), len(pool.queries)) == (products, products, queries)
    assert all(id.isdigit() and len(id) == 7 and id[0] == str(digit) for id in ids)
    assert pool.queries[17].id == f"mini-{split}-00017"


def test_variants_of_a_listing_share_what_makes_the_listing(shop):
    for query in shop.queries:
        if query.hard_negatives:
            target = shop.product(query.positives[0])
            siblings = [shop.product(id) for id in query.hard_negatives]
            for key in ("brand", "shape", "material", "origin"):
                assert len({value(sibling, key) for sibling in siblings}) == 1
            assert all(sibling.class_name == target.class_name for sibling in siblings)


def test_cards_are_complete():
    assert len(cards()["classes"]) == 16
    assert {card["category"] for card in cards()["classes"].values()} == set(cards()["materials_of"])
    assert len(set(card["category"] for card in cards()["classes"].values())) == 7
    sizes = {"color": 10, "pattern": 8, "brand": 16, "trim": 6, "size": 6, "origin": 8}
    assert {key: len(cards()[key]) for key in sizes} == sizes
    assert {len(values) for values in cards()["materials_of"].values()} == {10}
    for language in LANGUAGES[1:]:
        assert instructions()[language]["classes"].keys() == cards()["classes"].keys()
    for kind in ("color", "pattern", "material", "origin"):
        for name, card in cards()[kind].items():
            assert set(card["words"]) == set(LANGUAGES), name


@pytest.mark.parametrize("kind", ["color", "pattern", "material", "origin"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_values_have_the_same_word(kind, language):
    words = [word(kind, name, language) for name in cards()[kind]]
    assert len(set(words)) == len(words)
    assert all(unicodedata.is_normalized("NFC", text) for text in words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_title_names_the_same_facts_in_every_language(shop, language):
    for product in shop.products[:300]:
        parallel = retitle(product, language)
        named = named_in_title(product)
        assert named_in_title(parallel) == named
        assert parallel.language == language
        assert word("classes", product.class_name, language) in parallel.title
        assert unicodedata.is_normalized("NFC", parallel.title)
        assert "{" not in parallel.title
        for key in named:
            is_material = key == "material"
            expected = (
                material_phrase(product.class_name, value(product, key), language)
                if is_material
                else word(key, value(product, key), language)
            )
            assert expected in parallel.title


def test_retitle_there_and_back(shop):
    for product in shop.products[:100]:
        back = retitle(retitle(product, "th"), product.language)
        assert (back.title, back.language, back.id) == (product.title, product.language, product.id)
        assert back.image is product.image
        assert back.attributes == product.attributes


def test_retitle_and_named_in_title_say_what_is_wrong(shop):
    with pytest.raises(ValueError, match="'fr'"):
        retitle(shop.products[0], "fr")
    for function in (named_in_title, lambda product: retitle(product, "en")):
        with pytest.raises(ValueError, match="'5'"):
            function(Product("5", "a bag", class_name="handbag"))


def test_what_titles_name():
    products = catalogue("mini", "test").products
    shares = Counter(key for product in products for key in named_in_title(product))
    expected = {"material": 1.0, "size": 0.7, "origin": 0.7, "brand": 0.6, "color": 0.25, "pattern": 0.1}
    assert set(shares) == set(expected)
    for key, share in expected.items():
        assert shares[key] / len(products) == pytest.approx(share, abs=0.03)


def test_word_orders_and_countries():
    homes = {"en": {"SG", "PH"}, "id": {"ID"}, "ms": {"MY"}, "th": {"TH"}, "vi": {"VN"}}
    for language, card in cards()["languages"].items():
        assert len(card["templates"]) >= 3
        for template in card["templates"]:
            slots = " ".join(template)
            for key in ("class", "material", "brand", "color", "pattern", "size", "origin"):
                assert slots.count("{" + key + "}") == 1
            assert "{shape}" not in slots
            assert "{trim}" not in slots
        products = [p for p in catalogue("mini", "val").products if p.language == language]
        assert {product.country for product in products} == homes[language]


@pytest.mark.parametrize("split", ["val", "test", TRAIN])
def test_positives_are_right_and_complete(split):
    pool = catalogue("mini", split)
    for query in pool.queries[:400]:
        facts = wanted(query)
        meeting = {
            product.id
            for product in pool.products
            if product.class_name == query.class_name
            and all(value(product, key) == fact for key, fact in facts.items())
        }
        assert meeting == set(query.positives)
        assert 0 < len(meeting) <= 0.05 * len(pool.products)
        assert not meeting & {product.id for product in query.references}
        assert not meeting & set(query.hard_negatives)
        assert any(facts.keys() <= shown(pool.product(id)) for id in meeting), "no answer shows all"


@pytest.mark.parametrize("split", ["val", "test", TRAIN])
def test_references_show_what_they_contribute(split):
    pool = catalogue("mini", split)
    for query in pool.queries:
        references = query.references
        assert len(set(references)) == len(references) == len(query.conditions) in (2, 3, 4)
        assert len(wanted(query)) == len(query.conditions) + (query.text != ".")
        for condition in query.conditions:
            assert condition.value == value(condition.product, condition.attribute)
            assert condition.attribute in shown(condition.product)
            if condition.attribute == "shape":
                assert condition.product.class_name == query.class_name


def test_the_mixture_of_queries():
    queries = catalogue("mini", "test").queries
    count = len(queries)
    conditions = Counter(len(query.conditions) for query in queries)
    assert [conditions[n] / count for n in (2, 3, 4)] == pytest.approx([0.55, 0.30, 0.15], abs=0.03)
    assert sum(query.text != "." for query in queries) / count == pytest.approx(0.2, abs=0.03)
    assert sum(query.title_language != "mixed" for query in queries) / count == pytest.approx(0.7, abs=0.03)
    assert sum(bool(query.hard_negatives) for query in queries) / count == pytest.approx(0.5, abs=0.03)
    asked = Counter(condition.attribute for query in queries for condition in query.conditions)
    assert set(asked) == set(ATTRIBUTES) == {*VISUAL, *TEXTUAL}
    assert min(asked.values()) > 0.85 * max(asked.values()), "queries are balanced over attributes"


def test_most_queries_have_near_misses():
    pool = catalogue("mini", "test")
    near = []
    for query in pool.queries[:200]:
        facts = wanted(query)
        same_class = [product for product in pool.products if product.class_name == query.class_name]
        met = [sum(value(product, key) == fact for key, fact in facts.items()) for product in same_class]
        near.append(met.count(len(facts) - 1))
    assert np.median(near) >= 10


@pytest.mark.parametrize(("arguments", "known"), [(("maxi",), "mini"), (("mini", "dev"), "train")])
def test_an_unknown_catalogue_or_split_is_named_with_the_known_ones(arguments, known):
    with pytest.raises(ValueError, match=f"{arguments[-1]}.*{known}"):
        catalogue(*arguments)


def test_free_text_that_the_catalogue_never_writes(shop):
    assert stated(shop.queries[0].edited(text=".")) is None
    with pytest.raises(ValueError, match="with a chain strap"):
        stated(shop.queries[0].edited(text=" with a chain strap."))


def test_write_merit_and_read_it_again(tmp_path):
    from pyarrow import parquet

    write_merit(catalogue("mini", "val"), tmp_path, "val", limit=50)  # about 270 products
    shop = catalogue("mini", "val")
    table = parquet.read_table(tmp_path / "data" / "val-00000-of-00001.parquet")
    assert table.column_names == ["idx", "image", "title", "class", "country", "language", "attribute"]
    assert b"Image" in table.schema.metadata[b"huggingface"]
    rows = {str(row["idx"]): row for row in table.to_pylist()}
    for id, row in rows.items():
        product = shop.product(id)
        assert (row["title"], row["class"]) == (product.title, product.class_name)
        assert (row["country"], row["language"]) == (product.country, product.language)
        assert json.loads(row["attribute"]) == {key: value(product, key) for key in ATTRIBUTES}
    id, row = next(iter(rows.items()))
    picture = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"), float)
    assert np.abs(picture - np.asarray(shop.product(id).image(), float)).mean() < 4  # JPEG

    lines = (tmp_path / "queries-val.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 50
    for line, query in zip(lines, shop.queries, strict=False):
        record = json.loads(line)
        assert [str(id) for id in record["pos_candidate"]] == list(query.positives)
        assert list(record["query"]) == [product.id for product in query.references]
        assert set(record["query"]) | {str(id) for id in record["hard_negative"]} <= rows.keys()
        start = (
            f"Find a product of {query.class_name} that has the same {query.conditions[0].attribute} with "
        )
        assert record["query instruction"].startswith(start + "<Product 1> <image>\n")
        assert record["query instruction"].endswith(f"</Product {len(query.conditions)}>{query.text}")
