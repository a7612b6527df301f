"""Products, conditions and queries: frozen data, the card's messages byte for byte, and every prompt
format.
"""

import copy
import io
import pickle
import unicodedata
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coral_lab.errors import ItemError, NotShownError
from coral_lab.images import open_image
from coral_lab.prompts import FORMATS, instructions, messages, parts
from coral_lab.query import AS_IMAGE, Condition, Dataset, Product, Query, Traits, right_answers
from coral_lab.sources.border import grades_of
from coral_lab.sources.instructions import instruction
from tests import model_card

HOSTILE = "<script>alert(\"1\")</script>\n'quoted' & <b>bold"


def reference(number: int, **changes) -> Product:
    image = Image.new("RGB", (10 * number, 20), (number, 0, 0))
    facts = {
        "id": f"p{number}",
        "title": f"Title {number}",
        "image": image,
        "class_name": "handbag",
        "language": "en",
    }
    return Product(**{**facts, **changes})


def asking(*products: Product, **changes) -> Query:
    conditions = tuple(Condition("brand", product) for product in products)
    return Query(**{"id": "q1", "class_name": "backpack", "conditions": conditions, **changes})


def text_of(query: Query, format="seq") -> str:
    return "".join(part for part in parts(query, format) if isinstance(part, str))


@pytest.fixture
def card_products() -> list[Product]:
    """The model card's three products. Its titles were written without raw strings, so some hold a tab."""
    titles = [
        "Ransel MOSSDOOM Polyester dengan Ruang Komputer dan Penyimpanan Besar, Ukuran "
        "$30 \times 12 \times 38$ cm , Berat 0.32 kg.",
        "Elegant Pink Flats with Low Heel and Buckle Closure for Stylish Party Wear",
        "MOSSDOOM Elegant Pink PU Leather Handbag with Chain Strap and Large Capacity, Compact Size "
        "$18 \times 9.5 \times 15 \\mathrm{~cm}$.",
    ]
    return [Product(str(i), title, f"CORAL/images/product_{i}.png") for i, title in enumerate(titles, 1)]


def test_the_messages_are_the_model_cards_byte_for_byte(card_products):
    bag, shoe, wanted = card_products
    conditions = (Condition("brand", bag), Condition("fashion style", shoe))
    query = Query("card", "backpack", conditions, " with a quilted texture and a chain strap.")
    card_query, card_candidate = model_card.messages()
    assert messages(query) == card_query
    assert messages(wanted) == card_candidate


# ---- data


def test_nothing_can_be_changed():
    query = asking(reference(1))
    for item, name in [(query, "text"), (query.conditions[0], "value"), (reference(1), "title")]:
        with pytest.raises(FrozenInstanceError):
            setattr(item, name, "other")
    with pytest.raises(TypeError):
        reference(1, attributes={"color": ("red",)}).attributes["color"] = ("blue",)


@pytest.mark.parametrize("name", ["positives", "hard_negatives"])
def test_answers_are_ids(name):
    with pytest.raises(ItemError, match=f"query 'q'.*{name}"):
        Query("q", "bag", **{name: ("p1", "")})


@pytest.mark.parametrize(
    ("relevance", "says"),
    [
        ({"p1": -1}, "field 'relevance, p1' is -1, of type int; a grade is a whole number from 0 to 100"),
        ({"p1": 101}, "a grade is a whole number"),
        ({"p1": 1.5}, "field 'relevance, p1' is 1.5"),
        ({"p1": float("nan")}, "a grade is a whole number"),
        ({"p1": True}, "field 'relevance, p1' is True, of type bool"),
        ({"p1": "2"}, "field 'relevance, p1' is '2'"),
        ({"": 2}, "field 'relevance' is ''.*give ids of products"),
        ({"é": 2, "e\u0301": 1}, "grades product 'é' twice; keep one"),
        ([("p1", 2)], "it must map ids of products to grades"),
    ],
)
def test_grades_are_whole_numbers_of_products(relevance, says):
    with pytest.raises((ItemError, TypeError), match=f"query 'q'.*{says}|type"):
        Query("q", "bag", relevance=relevance)
    with pytest.raises(ItemError, match=f"query 'q': .*{says}"):
        grades_of(relevance, "query 'q'")


def test_grades_are_the_query_s_own_and_go_where_its_positives_go():
    given = {"e\u0301": np.int64(2), "p2": 0, "p3": 1.0}
    query = Query("q", "bag", relevance=grades_of(given, "q"))
    given["p2"] = 2
    assert dict(query.relevance) == {"é": 2, "p2": 0, "p3": 1}
    assert {*map(type, query.relevance.values())} == {int}
    with pytest.raises(TypeError):
        query.relevance["p2"] = 1
    assert Query("q", "bag").relevance == {}
    judged = asking(reference(1), reference(2)).judged({"p7": 2, "p8": 1, "p9": 0}, least=2)
    assert (judged.positives, judged.hard_negatives, judged.parent) == (("p7",), ("p9",), None)
    assert judged.judged(judged.relevance).positives == ("p7", "p8")
    assert judged.reordered((1, 0)).relevance == judged.relevance
    assert judged.edited(positives=("p8",)).relevance == {}
    assert judged.edited(positives=("p8",), relevance={"p8": 1}).relevance == {"p8": 1}
    for again in (copy.deepcopy(judged), pickle.loads(pickle.dumps(judged))):
        assert again == judged
        assert again.relevance == judged.relevance
        assert hash(again) == hash(judged)
        with pytest.raises(TypeError):
            again.relevance["p7"] = 0
    assert judged != replace(judged, relevance={"p7": 1})


def test_attributes_do_not_follow_the_dict_they_came_from():
    source = {"color": ("red",)}
    product = reference(1, attributes=source)
    source["color"] = ("blue",)
    assert dict(product.attributes) == {"color": ("red",)}


@pytest.mark.parametrize("id", ["", 17, None])
def test_a_product_needs_an_id_of_text(id):
    with pytest.raises((ItemError, TypeError)):  # TypeError where the tests check types
        Product(id)


def test_products_are_equal_when_their_ids_are():
    assert reference(1) == reference(1, title="other")
    assert hash(reference(1)) == hash(reference(1, title="other"))
    assert reference(1) != reference(2)
    assert reference(1) != "p1"
    assert len({reference(1), reference(1), reference(2)}) == 2


def test_queries_are_equal_when_what_they_ask_is():
    query = asking(reference(1), reference(2))
    assert query == asking(reference(1), reference(2))
    assert hash(query) == hash(asking(reference(1), reference(2)))
    assert query == query.edited(), "where a query came from is not what it asks"
    for other in (
        asking(reference(1)),
        query.reordered((1, 0)),
        replace(query, text=" in red"),
        replace(query, id="q2"),
    ):
        assert query != other


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_whole(copied):
    product = reference(1, country="SG", attributes={"color": ("red", "blue")})
    query = asking(product, reference(2), text=" in red", positives=("p7",)).reordered((1, 0))
    again = copied(query)
    assert again == query
    assert hash(again) == hash(query)
    assert again.parent == query.parent
    twin = again.references[1]
    for name in ("id", "title", "class_name", "language", "country", "attributes"):
        assert getattr(twin, name) == getattr(product, name)
    assert twin.picture.tobytes() == product.picture.tobytes()


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_query_is_an_error_that_names_it(text):
    with pytest.raises(ItemError, match="query 'q-3': it is empty"):
        Query("q-3", "", text=text)


@pytest.mark.parametrize(
    ("wanted", "met"), [("red", True), ("blue", True), ("green", False), ("", None), (AS_IMAGE, None)]
)
def test_a_condition_is_met_or_not_or_has_no_word_for_it(wanted, met):
    candidate = reference(1, attributes={"color": ("red", "blue"), "brand": ("green",)})
    assert Condition("color", reference(2), wanted).met_by(candidate) is met


def test_a_value_is_met_whole_not_by_a_part_of_its_word():
    assert (
        Condition("color", reference(2), "red").met_by(reference(1, attributes={"color": ("dark red",)}))
        is False
    )


def test_a_product_without_the_attribute_does_not_meet_it():
    assert Condition("color", reference(2), "red").met_by(reference(1)) is False


@pytest.mark.parametrize(("languages", "expected"), [((), ""), (("th", "th"), "th"), (("th", "en"), "mixed")])
def test_the_language_of_the_titles(languages, expected):
    products = [reference(i, language=language) for i, language in enumerate(languages, 1)]
    assert asking(*products).title_language == expected


def test_a_product_is_found_by_its_id():
    shop = Dataset("small shop", [reference(1), reference(2)], [])
    assert shop.product("p2").title == "Title 2"
    with pytest.raises(KeyError, match="no product 'p9' among the 2 of small shop"):
        shop.product("p9")


# ---- datasets


def facts(id: str, color: str = "red", size: str = "S", class_name: str = "bag") -> Product:
    return Product(id, class_name=class_name, attributes={"color": (color,), "size": (size,)})


def test_right_answers_have_the_class_and_every_value_and_are_not_shown():
    shown = facts("shown")
    products = [
        shown,
        facts("a"),
        facts("b", "blue"),
        facts("c", size="L"),
        facts("d", class_name="hat"),
        facts("e"),
    ]
    both = (Condition("color", shown, "red"), Condition("size", shown, "S"))
    assert right_answers(Query("q", "bag", both), products) == ("a", "e")
    assert right_answers(Query("q", "bag", both, "."), products) == ("a", "e")  # says nothing
    assert right_answers(Query("q", "bag", both[:1]), products) == ("a", "c", "e")


@pytest.mark.parametrize(
    "query",
    [
        Query("q", "bag"),
        Query("q", "bag", text=" in red."),
        Query("q", "bag", (Condition("color", facts("r"), "red"),), " with a strap."),
        Query("q", "bag", (Condition("color", facts("r"), "red"), Condition("size", facts("r"), ""))),
        Query("q", "bag", (Condition("color", facts("r"), "red"), Condition("size", facts("r"), AS_IMAGE))),
    ],
    ids=["class", "text", "text beside", "no value", "as product image"],
)
def test_where_words_alone_say_what_is_wanted_nobody_knows_the_right_answers(query):
    assert right_answers(query, [facts("a"), facts("b")]) == ()


def held_back() -> Dataset:
    """Queries by one or two of colour and size over titles in one or two languages."""
    asked = {
        "size": (["size"], ["en"], "bag"),
        "color": (["color"], ["th"], "bag"),
        "both": (["color", "size"], ["en", "th"], "hat"),
        "thai": (["color", "brand"], ["th", "vi"], "hat"),
        "words": ([], [], "bag"),
    }
    queries = [
        Query(
            id,
            name,
            tuple(
                Condition(attribute, Product(f"{id} {attribute}", language=language))
                for attribute, language in zip(attributes, languages, strict=True)
            ),
            " in red",
        )
        for id, (attributes, languages, name) in asked.items()
    ]
    traits = Traits(held_back={"attribute": ("size", "trim"), "class": ("hat",), "language": ("th", "vi")})
    return Dataset("toy", [], queries, traits=traits)


@pytest.mark.parametrize(
    ("kind", "unseen", "seen"),
    [
        ("attribute", ["size", "both"], ["color", "thai", "words"]),  # any of its conditions
        ("class", ["both", "thai"], ["size", "color", "words"]),
        # all of its titles: one in two languages belongs to neither
        ("language", ["color", "thai", "words"], ["size", "words"]),
    ],
)
def test_what_is_out_of_distribution(kind, unseen, seen):
    shop = held_back()
    for wanted, expected in ((True, unseen), (False, seen)):
        found = shop.out_of_distribution(kind, wanted)
        assert [query.id for query in found.queries] == expected
        assert found.name == f"toy, {kind} {'unseen' if wanted else 'seen'}"
    assert shop.out_of_distribution(kind) == shop.out_of_distribution(kind, True)
    with pytest.raises(ValueError, match="'color' of toy is not known; it has attribute, class, language"):
        shop.out_of_distribution("color")


def test_a_smaller_pool_is_the_answers_and_the_first_others():
    shop = Dataset("toy", [facts(f"p{i}") for i in range(6)], [])
    queries = [Query("q", "bag", positives=("p4", "p1")), Query("r", "bag", positives=("p4",))]
    for count, expected in ((0, "14"), (2, "14"), (3, "014"), (4, "0124"), (99, "012345")):
        assert [product.id for product in shop.smaller_pool(queries, count)] == [f"p{i}" for i in expected]


# ---- order of conditions

TWENTY = asking(*(reference(i) for i in range(1, 21)))


def test_twenty_conditions_keep_their_order():
    assert [product.id for product in TWENTY.references] == [f"p{i}" for i in range(1, 21)]
    pictures = [part.id for part in parts(TWENTY) if isinstance(part, Product)]
    assert pictures == [f"p{i}" for i in range(1, 21)]
    positions = [text_of(TWENTY).index(f"<Product {i}> ") for i in range(1, 21)]
    assert positions == sorted(positions)


@settings(deadline=None)
@given(st.permutations(range(20)))
def test_any_order_keeps_the_conditions_and_remembers_the_parent(order):
    shuffled = TWENTY.reordered(order)
    assert shuffled.parent is TWENTY
    assert shuffled.conditions == tuple(TWENTY.conditions[i] for i in order)
    assert set(shuffled.conditions) == set(TWENTY.conditions)
    back = shuffled.reordered([order.index(i) for i in range(20)])
    assert back == TWENTY
    assert back.parent is shuffled


@pytest.mark.parametrize("order", [(), (0,), (0, 0), (0, 1, 2), (1, 2), (-1, 0)])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match=r"of query 'q1' is no permutation of \(0, 1\)"):
        asking(reference(1), reference(2)).reordered(order)


# ---- formats


def bullets(query):
    yield f"Find a {query.class_name}:"
    for condition in query.conditions:
        yield f"\n- {condition.attribute} of "
        yield condition.product


def test_a_format_of_ones_own_is_five_lines():
    first, second = reference(1), reference(2)
    expected = ["Find a backpack:\n- brand of ", first, "\n- brand of ", second]
    assert parts(asking(first, second), bullets) == expected
    content = messages(asking(first, second), bullets)[0]["content"]
    assert [entry["type"] for entry in content] == ["text", "image", "text", "image"]


@pytest.mark.parametrize("format", [*FORMATS, bullets])
def test_a_query_of_words_alone_is_one_text_in_every_format(format):
    [message] = messages(asking(text=" with a chain strap."), format)
    [entry] = message["content"]
    assert entry["type"] == "text"
    assert "backpack" in entry["text"]
    assert format is bullets or entry["text"] == "Find a product of backpack with a chain strap."


def test_a_query_without_a_class_asks_for_a_product():
    assert text_of(Query("q", "", text=" in red")) == "Find a product in red"


def test_seq_puts_each_picture_between_its_words():
    query = asking(reference(1), reference(2), text=" in red")
    assert parts(query) == [
        "Find a product of backpack that have the same brand with <Product 1> \n ",
        reference(1),
        "\n Title 1 </Product 1> and the same brand with <Product 2> ",
        reference(2),
        "\n Title 2 </Product 2> in red",
    ]


def test_cat_pastes_all_pictures_into_one_in_front_of_the_words():
    query = asking(reference(1), reference(2, image=None), reference(3), text=" in red")
    picture, text = parts(query, "cat")
    picture = picture()
    assert picture.size == (10 + 30, 20)
    assert [picture.getpixel((x, 0)) for x in (0, 9, 10, 39)] == [(1, 0, 0)] * 2 + [(3, 0, 0)] * 2
    assert text == text_of(query, "seq")


def test_merit_is_the_instruction_of_merits_files_with_a_picture_for_each_mark():
    query = asking(reference(1), reference(2, image=None), text=" in red")
    assert parts(query, "merit") == [
        "Find a product of backpack that has the same brand with <Product 1> ",
        reference(1),
        "\nTitle 1 </Product 1> and the same brand with <Product 2> \nTitle 2 </Product 2> in red",
    ]
    assert text_of(query, "merit") == instruction(query).replace("<image>", "")
    picture, text = parts(query, "merit cat")
    assert (picture().size, text) == ((10, 20), text_of(query, "merit"))


def test_pictures_are_pasted_when_they_are_looked_at_and_are_what_their_parts_are():
    def never():
        raise AssertionError("it was opened")

    unread = asking(reference(1, image=never), reference(2, image=never))
    assert [type(part).__name__ for part in parts(unread, "cat")] == ["Pasted", "str"]
    one, again, other = (
        parts(asking(*map(reference, some)), "cat")[0].identity for some in ((1, 2), (1, 2), (2, 1))
    )
    assert one == again != other
    broken = parts(asking(reference(1), reference(2, image=b"no picture")), "cat")[0]
    with pytest.raises(ItemError, match=r"2.*picture cannot be read"):
        broken()


def test_caption_has_words_where_the_pictures_were():
    described = reference(1, attributes={"color": ("red",), "brand": ("Vokari",), "material": ("silk",)})
    query = asking(described, reference(2), text=" in red")
    [text] = parts(query, "caption")
    assert "<Product 1> \n [handbag: color red, brand Vokari]\n Title 1 </Product 1>" in text
    assert "<Product 2> [handbag]\n Title 2 </Product 2> in red" in text


@pytest.mark.parametrize("format", [*FORMATS, bullets])
def test_a_reference_without_a_picture_leaves_only_its_words(format):
    query = asking(reference(1, image=None))
    [part] = parts(query, format)
    assert isinstance(part, str)
    assert "[handbag" not in part


@pytest.mark.parametrize(
    "nothing", [lambda query: (), lambda query: ["", " \n"], lambda query: [reference(1, image=None)]]
)
def test_a_format_that_yields_nothing_is_an_error_that_names_the_query(nothing):
    with pytest.raises(ItemError, match="query q1: its format gives neither text nor picture"):
        messages(asking(reference(1)), nothing)


def test_an_unknown_format_is_told_the_formats_there_are():
    with pytest.raises(
        ValueError, match="format is 'sequence'; use one of seq, cat, caption, merit, merit cat"
    ):
        messages(asking(reference(1)), "sequence")


def test_an_unknown_language_is_told_the_languages_there_are():
    with pytest.raises(ItemError, match="query 'q1': language is 'vn'; choose one of en, id, ms, th, vi"):
        messages(asking(reference(1), language="vn"))


@pytest.mark.parametrize("language", ["id", "ms", "th", "vi"])
@pytest.mark.parametrize("class_name", list(instructions()["vi"]["classes"]))
def test_instructions_speak_the_querys_language(language, class_name):
    words = {
        "id": ("warna", "merek"),
        "ms": ("warna", "jenama"),
        "th": ("สี", "แบรนด์"),
        "vi": ("màu sắc", "thương hiệu"),
    }
    conditions = (Condition("color", reference(1)), Condition("brand", reference(2)))
    text = text_of(Query("q", class_name, conditions, language=language))
    native = instructions()[language]["classes"][class_name]
    assert 0 < text.index(native) < text.index(words[language][0]) < text.index(words[language][1])
    assert "same" not in text
    assert unicodedata.is_normalized("NFC", text)


def test_a_word_without_translation_stays_as_merit_writes_it():
    query = Query("q", "spaceship", (Condition("region of origin", reference(1)),), language="th")
    assert "spaceship" in text_of(query)
    assert "region of origin" in text_of(query)


# ---- products and pictures


def test_a_product_is_its_picture_and_its_title():
    assert parts(reference(1)) == ["Represent the given product: ", reference(1), "\n Title 1"]
    assert parts(reference(1, title="")) == ["Represent the given product: ", reference(1)]
    assert parts(reference(1, image=None)) == ["Represent the given product: \n Title 1"]
    assert reference(1, image=None).picture is None
    assert reference(1, image=None).thumbnail() is None


def test_a_very_long_title_is_kept_whole():
    title = "ก" * 10_000
    assert messages(reference(1, title=title))[0]["content"][-1]["text"] == f"\n {title}"
    assert title in text_of(asking(reference(1, title=title)))


def test_paths_stay_paths_and_drawn_or_encoded_pictures_are_opened(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    file = tmp_path / "gone.png"

    def image(picture):
        return messages(reference(1, image=picture))[0]["content"][1]["image"]

    assert image(file) == image(str(file)) == str(file)
    for picture in (buffer.getvalue(), lambda: Image.new("RGB", (3, 2))):
        assert (image(picture).mode, image(picture).size) == ("RGB", (3, 2))
    held = Image.new("RGBA", (3, 2))
    assert image(held) is held


@pytest.mark.parametrize(
    "use",
    [
        lambda p: p.picture,
        lambda p: p.thumbnail(),
        lambda p: messages(asking(p), "cat"),
    ],
)
def test_a_broken_picture_is_named_and_never_replaced(use):
    with pytest.raises(ItemError, match="product p1: picture cannot be read"):
        use(reference(1, image=b"no picture"))


@pytest.mark.parametrize("show", [lambda p: p, asking])
def test_a_broken_picture_is_shown_as_a_box_that_says_why(show):
    page = show(reference(1, image=b"no picture"))._repr_html_()
    assert "no picture: picture cannot be read" in page
    assert "<img" not in page


# ---- how they show themselves


@pytest.mark.parametrize("missing", [(), (2,), (1, 2, 3)])
def test_a_query_shows_as_many_pictures_as_it_has(missing):
    products = [reference(i, image=None) if i in missing else reference(i) for i in (1, 2, 3)]
    shown = asking(*products)._repr_html_()
    assert shown.count("<img ") == 3 - len(missing)
    assert shown.count("no picture") == len(missing)


def test_a_product_shows_its_picture_and_what_is_known():
    shown = reference(1, country="SG", attributes={"color": ("red", "blue")})._repr_html_()
    assert shown.count("<img ") == 1
    assert all(fact in shown for fact in ("Title 1", "handbag", "en", "SG", "id p1", "color: red, blue"))
    address = shown.partition('src="')[2].partition('"')[0]
    assert open_image(address, "x").size == (10, 20)
    assert reference(1, image=None)._repr_html_().count("<img ") == 0


@pytest.mark.parametrize(
    "item",
    [
        reference(1, title=HOSTILE),
        reference(1, image=None, id=HOSTILE, class_name=HOSTILE, language=HOSTILE, country=HOSTILE),
        reference(1, attributes={HOSTILE: (HOSTILE,)}),
        asking(reference(1, title=HOSTILE), class_name=HOSTILE, text=HOSTILE, id=HOSTILE),
        Query("q1", "bag", (Condition(HOSTILE, reference(1, image=None)),)),
    ],
)
def test_whatever_is_written_in_a_title_is_shown_as_text(item):
    shown = item._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    assert "<b>bold" not in shown
    assert 'alert("' not in shown, "a quote would end an attribute of <img>"


def test_what_a_dataset_lacks_is_said_in_one_line():
    shop = Dataset("own.csv", (reference(1), reference(2, attributes={"color": ("red",)})), ())
    assert shop.having("attributes") is shop
    with pytest.raises(
        NotShownError, match=r"^own.csv has no queries of the kind that this is about; sample some"
    ) as said:
        shop.having("attributes", "queries")
    assert said.value._render_traceback_() == [f"Not shown: {said.value}"]
    with pytest.raises(NotShownError, match="parallel titles"):
        shop.having("parallel titles")
    with pytest.raises(ValueError, match="part is 'titles'"):
        shop.having("titles")
