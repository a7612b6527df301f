"""Queries sampled from any products with attributes: what MERIT's authors keep, and counts of what is not."""

import inspect
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from random import Random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab.cli import main
from coral_lab.errors import ItemError
from coral_lab.prompts import parts
from coral_lab.query import Dataset, Product, right_answers
from coral_lab.sources.opening import dataset
from coral_lab.sources.sampling import CONDITIONS, WAYS, Sampling, sample_queries

COLORS, BRANDS, CUTS = ("red", "blue", "green"), ("Acme", "Böhm", "กขค"), ("whole", "sliced", "diced")


def shop_of(count: int, seed: int = 0, classes=("bag", "shoe"), listings: int = 3) -> Dataset:
    """Products of three attributes; every `listings` in a row are of one listing and share their brand."""
    rng = Random(seed)
    products = []
    for number in range(count):
        brand = Random(f"{seed} {number // listings}").choice(BRANDS)
        facts = {"color": (rng.choice(COLORS),), "brand": (brand,), "cut": (rng.choice(CUTS),)}
        facts |= {"listing": (f"L{number // listings}",), "price": (f"{number}.99",)}
        class_name = classes[number // listings % len(classes)] if classes else ""
        products.append(Product(f"17{number:017}", f"title {number}", None, class_name, "en", "", facts))
    return Dataset("shop", tuple(products), ())


@settings(max_examples=25, deadline=None)
@given(st.integers(30, 120), st.integers(0, 50), st.sampled_from([None, "listing"]), st.booleans())
def test_queries_are_what_the_authors_keep(count, seed, listing, has_classes):
    shop = shop_of(count, seed, ("bag", "shoe") if has_classes else ())
    found = sample_queries(shop, 20, seed, listing=listing, how=Sampling(most=0.2))
    assert found.drawn == len(found.dataset.queries) + sum(found.refused.values())
    for query in found.dataset.queries:
        check(query, shop, 0.2)
        assert not {c.attribute for c in query.conditions} & {"listing", "price"}
        if query.hard_negatives:
            siblings = [p for p in shop.products if p.attributes["listing"] == listing_of(query, shop)]
            wrong = {p.id for p in siblings}.difference(query.positives)
            assert set(query.hard_negatives) == wrong
            assert len(wrong.intersection(p.id for p in query.references)) == 1


def check(query, shop: Dataset, most: float) -> None:
    """A query is one that the authors keep, by looking at every product."""
    references = {product.id for product in query.references}
    assert sorted(query.positives) == sorted(right_answers(query, shop.products))
    met = [p.id for p in shop.products if all(c.met_by(p) for c in query.conditions)]
    assert {id for id in met if shop.product(id).class_name == query.class_name} == set(query.positives)
    assert len(query.positives) == 1 or 0 < len(query.positives) < most * len(shop.products)
    assert len(references) == len(query.conditions) == len({c.attribute for c in query.conditions})
    assert all(condition.met_by(condition.product) for condition in query.conditions)
    assert all(product.title or product.image for product in query.references)
    assert references.isdisjoint(query.positives)
    assert set(query.positives).isdisjoint(query.hard_negatives)


def listing_of(query, shop: Dataset):
    (own,) = {shop.product(id).attributes["listing"] for id in query.hard_negatives}
    return own


values = st.lists(st.sampled_from(["a", "b", "สี", "as product image", ""]), max_size=3).map(tuple)
products = st.lists(
    st.builds(
        dict,
        title=st.sampled_from(["", "title"]),
        class_name=st.sampled_from(["", "bag"]),
        attributes=st.dictionaries(st.sampled_from(["color", "cut", "brand", "spu"]), values),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(products, st.integers(0, 3), st.randoms(use_true_random=False))
def test_any_catalogue_gives_right_queries_or_one_line(rows, seed, random):
    """With several values in a cell, products that show nothing, gaps, values that are none; in any order."""
    shop = Dataset("any", tuple(Product(f"{i:019}", **row) for i, row in enumerate(rows)), ())
    shuffled = [*shop.products]
    random.shuffle(shuffled)
    found = error = None
    try:
        found = sample_queries(shop, 5, seed, how=Sampling(most=0.5))
    except ValueError as own:
        error = str(own)
    if found is None:
        assert "no query can be sampled from" in error
        assert "\n" not in error
        return
    assert found.drawn == len(found.dataset.queries) + sum(found.refused.values())
    for query in found.dataset.queries:
        check(query, shop, 0.5)
    again = sample_queries(replace(shop, products=tuple(shuffled)), 5, seed, how=Sampling(most=0.5))
    assert again.dataset.queries == found.dataset.queries
    assert str(again) == str(found)


def test_fifty_thousand_products_take_a_moment_and_nothing_hangs_on_hashes():
    """In another process, where annotations are not checked at each call."""
    said = subprocess.run(
        [sys.executable, "-c", LARGE],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "17"},
    )
    few, seconds = said.stdout.splitlines()
    assert few == repr([query.positives for query in sample_queries(grid(60), 9).dataset.queries])
    assert float(seconds) < 10  # 1 on a machine of its own


def grid(count: int) -> Dataset:
    facts = [{"a": (f"{i % 7}",), "b": (f"{i % 11}",), "c": (f"{i * i % 13}",)} for i in range(count)]
    return Dataset("grid", tuple(Product(f"{i}", "t", attributes=own) for i, own in enumerate(facts)), ())


LARGE = f"""
import time
from coral_lab.query import Dataset, Product
from coral_lab.sources.sampling import sample_queries
{inspect.getsource(grid)}
print([query.positives for query in sample_queries(grid(60), 9).dataset.queries])
shop = grid(50_000)
start = time.perf_counter()
assert len(sample_queries(shop, 300).dataset.queries) == 300
print(time.perf_counter() - start)
"""


def test_what_is_hidden_is_an_answer_and_is_not_pointed_at():
    """Of MERIT-mini's products pictures and titles show a part."""
    shop = dataset("mini", "val")
    found = sample_queries(shop, 30)
    assert len(found.dataset.queries) == 30
    for query in found.dataset.queries:
        check(query, shop, 0.05)
        assert all(c.attribute in shop.traits.shown(c.product) for c in query.conditions)


def test_the_same_seed_gives_the_same_queries_and_another_others():
    shop = shop_of(90)
    first, again, other = (sample_queries(shop, 20, seed).dataset.queries for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len({query.id for query in first}) == len(first) == 20


def test_all_that_can_be_asked_of_three_products_is_one_question():
    """Two red bags, one of them by Acme; the other red bag and another Acme product are pointed at."""
    facts = [("bag", "red", "Acme"), ("bag", "red", "Böhm"), ("shoe", "blue", "Acme")]
    products = tuple(
        Product(f"p{i}", f"title {i}", None, name, attributes={"color": (color,), "brand": (brand,)})
        for i, (name, color, brand) in enumerate(facts)
    )
    found = sample_queries(Dataset("three", products, ()), 10)
    (query,) = found.dataset.queries
    assert (query.class_name, query.positives) == ("bag", ("p0",))
    asked = {condition.attribute: condition.product.id for condition in query.conditions}
    assert asked == {"color": "p1", "brand": "p2"}
    assert found.drawn == 1 + sum(found.refused.values())
    assert 2000 < found.drawn < 2100
    assert set(found.refused) <= {
        "were drawn before",
        "have no other product to point at",
        "want more conditions than the product has attributes to ask about",
    }
    assert "1 query of" in str(found)
    assert "where 10 were wanted" in str(found)


def test_variants_are_shared_with_first_and_close_wrong_answers():
    shop = shop_of(120)
    by_function = {
        "listing": lambda product: product.attributes["listing"][0],
        "how": Sampling(conditions={2: 1}),
    }
    found = sample_queries(shop, 60, listing="listing", how=Sampling(conditions={2: 1}))
    close = [query for query in found.dataset.queries if query.hard_negatives]
    assert 15 < len(close) < 50  # half of the draws begin with a variant
    assert found.listings == "variants have the same listing"
    assert found.left_out["listing"] == "it names the listing"
    assert sample_queries(shop, 60, how=Sampling(conditions={2: 1})).dataset.queries == found.dataset.queries
    assert sample_queries(shop, 60, **by_function).listings == "variants are told by a function"
    apart = sample_queries(shop_of(120, listings=1), 9, listing="listing", how=Sampling(most=0.2))
    assert apart.listings == "no variants: no two products share listing"
    assert not any(query.hard_negatives for query in apart.dataset.queries)


def test_the_ways_have_the_weights_that_are_given():
    shop = shop_of(120)
    only = {
        way: sample_queries(shop, 20, how=Sampling(ways={way: 1}, conditions={2: 0, 3: 1})).dataset.queries
        for way in WAYS
    }
    assert all(len(query.conditions) == 3 for queries in only.values() for query in queries)
    assert all(query.hard_negatives for query in only["spu_first"])
    assert not any(query.hard_negatives for query in only["item_normal"] + only["attr_normal"])
    with pytest.raises(ValueError, match="want variants, of which there are none"):
        sample_queries(shop_of(60, listings=1), 5, how=Sampling(ways={"spu_first": 1}))
    assert sum(WAYS.values()) == sum(CONDITIONS.values()) == 1


def test_attributes_can_be_named():
    shop = shop_of(120)
    found = sample_queries(shop, 9, attributes=("color", "cut"), how=Sampling(most=0.2, conditions={2: 1}))
    assert {c.attribute for q in found.dataset.queries for c in q.conditions} == {"color", "cut"}
    assert found.left_out["brand"] == "not wanted"
    priced = [
        replace(p, attributes=dict(p.attributes) | {"price": (str(i % 9),)})
        for i, p in enumerate(shop.products)
    ]
    told = "by its name about the sale, see attributes="
    shop = replace(shop, products=tuple(priced))
    assert sample_queries(shop, 9).left_out["price"] == told
    own = sample_queries(shop, 9, attributes=("price", "cut", "color"))
    assert any(c.attribute == "price" for q in own.dataset.queries for c in q.conditions)
    for wrong in ({"attributes": "colour"}, {"listing": "spu"}):
        with pytest.raises(
            ValueError, match=r"no product of shop has the attribute .*; it has brand, color, cut"
        ):
            sample_queries(shop, 9, **wrong)


KEYS = ("ean", "made", "stock", "color", "cut")


def test_attributes_that_tell_nothing_are_named_with_the_reason():
    products = tuple(
        Product(
            f"p{i}",
            f"title {i}",
            attributes={
                "ean": (f"{i}",),
                "made": ("here",),
                "stock": ("no",) if i == 0 else ("yes",),
                "color": (COLORS[i % 3],),
                "cut": (CUTS[i // 3 % 3], "by hand"),
            },
        )
        for i in range(90)
    )
    how = Sampling(most=0.2, conditions={2: 1})
    found = sample_queries(Dataset("shop", products, ()), 5, attributes=KEYS, how=how)
    assert dict(found.left_out) == {
        "ean": "different for every product",
        "made": "the same for every product",
        "stock": "the same for nearly every product",
    }
    assert not any(c.value == "by hand" for query in found.dataset.queries for c in query.conditions)
    assert "not asked about: ean (different for every product)" in str(found)
    assert "ean (different for every product)" in found.dataset._repr_html_()
    assert "5 queries of" in found._repr_html_()
    assert {c.attribute for query in found.dataset.queries for c in query.conditions} == {"color", "cut"}


def test_a_product_that_shows_nothing_is_pointed_at_by_nobody():
    shop = shop_of(60)
    bare = tuple(
        Product(p.id, "", None, p.class_name, attributes=dict(p.attributes)) if i % 2 else p
        for i, p in enumerate(shop.products)
    )
    shop = Dataset("shop", bare, ())
    for query in sample_queries(shop, 20, how=Sampling(most=0.3)).dataset.queries:
        check(query, shop, 0.3)


def test_a_shop_s_own_names_read_as_words():
    shop = shop_of(60, classes=("Bags > Hand bags", "Bags > Rucksacks"))
    named = [replace(p, attributes={f"base_{k}": v for k, v in p.attributes.items()}) for p in shop.products]
    shop = replace(shop, products=tuple(named))
    query = sample_queries(shop, 1, attributes=("base_color", "base_cut", "base_brand")).dataset.queries[0]
    text = "".join(part for part in parts(query) if isinstance(part, str))
    assert text.startswith(f"Find a product of {query.class_name[7:]} that have the same base ")
    assert "_" not in text
    check(query, shop, 0.05)


def test_a_query_without_a_class_reads_well():
    query = sample_queries(shop_of(60, classes=()), 1, how=Sampling(conditions={2: 1})).dataset.queries[0]
    text = "".join(part for part in parts(query) if isinstance(part, str))
    first, second = query.conditions
    assert text == (
        f"Find a product that have the same {first.attribute} with <Product 1> \n \n {first.product.title} "
        f"</Product 1> and the same {second.attribute} with <Product 2> \n {second.product.title} "
        "</Product 2>."
    )


@pytest.mark.parametrize(
    ("shop", "said"),
    [
        (Dataset("bare", (Product("1", "one"),), ()), "no product has attributes"),
        (Dataset("none", (), ()), "no product has attributes"),
        (
            Dataset("own", tuple(Product(f"{i}", "t", attributes={"ean": (f"{i}",)}) for i in range(9)), ()),
            "ean is left out",
        ),
        (
            Dataset(
                "one", tuple(Product(f"{i}", "t", attributes={"c": (f"{i % 2}",)}) for i in range(9)), ()
            ),
            "draws want more conditions than the product has",
        ),
    ],
)
def test_where_nothing_can_be_asked_the_reason_is_told(shop, said, caplog):
    with pytest.raises(ValueError, match=said) as raised:
        sample_queries(shop, 5)
    assert "\n" not in str(raised.value)
    assert shop.name in str(raised.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"most": 0.0},
        {"most": 1.5},
        {"conditions": {0: 1}},
        {"conditions": {2: 0}},
        {"conditions": {2: float("nan")}},
        {"conditions": {}},
        {"ways": {"spu": 1}},
        {"ways": {"spu_first": -1, "item_normal": 2}},
    ],
)
def test_arguments_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
    with pytest.raises(ValueError, match="count is 0"):
        sample_queries(shop_of(30), 0)


def test_a_listing_of_two_values_is_refused():
    products = tuple(Product(f"{i}", "t", attributes={"spu": ("a", "b")}) for i in range(3))
    with pytest.raises(ItemError, match=r"product 0: has several values of 'spu'"):
        sample_queries(Dataset("shop", products, ()), 3, listing="spu")
    with pytest.raises(ItemError, match=r"product 0: field 'listing' is 17"):
        sample_queries(Dataset("shop", products, ()), 3, listing=lambda _: 17)


def test_products_that_are_made_when_looked_at_are_read_by_columns(tmp_path, monkeypatch):
    """The same as from a CSV, whose products are in memory, with cells of several values and gaps."""
    rows = [
        [f"{i}", f"t {i}", r.choice(COLORS), r.choice(["", "x; y", '["y"]']), r.choice(CUTS), i % 7 / 2]
        for i in range(90)
        for r in [Random(i)]
    ]
    frame = pd.DataFrame(rows, columns=["id", "title", "color", "tags", "cut", "size"])
    frame.to_parquet(tmp_path / "shop.parquet")
    frame.to_csv(tmp_path / "shop.csv", index=False)
    lazy, read = (
        dataset(tmp_path / f"shop.{end}", columns={"class_name": None}) for end in ("parquet", "csv")
    )
    named = [(p.id, p.class_name, dict(p.attributes)) for p in lazy.products]
    assert [(id, name, dict(own)) for id, name, own in lazy.products.facts()] == named
    assert [own[0] for own in lazy.products[::-2].facts()] == [own[0] for own in named[::-2]]
    assert len(lazy.products[3:5].facts.__self__) == 2
    monkeypatch.setattr(type(lazy.products), "__iter__", None)  # no product is made but those pointed at
    found = sample_queries(lazy, 20)
    monkeypatch.undo()
    assert len(found.dataset.queries) == 20
    for query in found.dataset.queries:
        check(query, lazy, 0.05)
    assert {
        q.positives for q in sample_queries(read, 20, attributes=("color", "tags", "cut")).dataset.queries
    }


def test_any_source_without_queries_gets_some(tmp_path, caplog):
    lines = ["handle,title,type,color,brand,cut"]
    rows = ((i, Random(i)) for i in range(80))
    lines += [f"h{i},title {i},bag,{r.choice(COLORS)},{r.choice(BRANDS)},{r.choice(CUTS)}" for i, r in rows]
    file = tmp_path / "shop.csv"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert not dataset(file).queries
    shop = dataset(file, sample=7)
    assert len(shop.queries) == 7
    assert "7 queries of" in shop.traits.sampled
    assert shop.traits.columns  # what is known of the products stays
    assert Counter(map(type, shop.products)) == {Product: 80}
    file.write_text("title\none\ntwo\n", encoding="utf-8")
    assert not dataset(file, sample=7).queries
    assert "no product has attributes" in caplog.text
    with pytest.raises(ValueError, match="sample is -1"):
        dataset(file, sample=-1)
    mini = dataset("mini", "val", sample=3)
    assert len(mini.queries) == 500


def test_commands_sample_queries_or_tell_that_there_are_none(tmp_path, capsys):
    """Before a model is loaded."""
    file, out = tmp_path / "shop.csv", str(tmp_path / "out")
    file.write_text("title\none\ntwo\n", encoding="utf-8")
    assert main(["evaluate", "--data", str(file), "--model", "nowhere"]) == 2
    assert "no query can be sampled from the 2 products" in capsys.readouterr().err
    steps = ["--steps", "2", "--out", out]
    assert main(["train", "--data", str(file), "--model", "nowhere", *steps]) == 2
    assert "has no queries to train on; sample some with --sample" in capsys.readouterr().err
    lines = [f"t {i},{COLORS[i % 3]},{CUTS[i // 3 % 3]},{BRANDS[i // 9 % 3]}" for i in range(60)]
    file.write_text("\n".join(["title,color,cut,brand", *lines]), encoding="utf-8")
    for command in ("evaluate --limit 3", "report", "train --sample 9 --steps 2 --out " + out):
        assert main([*command.split(), "--data", str(file), "--model", "nowhere"]) == 2
        said = capsys.readouterr().err
        assert "queries of" in said
        assert "refused: " in said
        assert "nowhere" in said  # the model is what there is none of
