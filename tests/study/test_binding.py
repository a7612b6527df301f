"""Binding is measured right on models that bind, that do not, and that know nothing; and by hand."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from coral_lab import Condition, Product, Query, Settings
from coral_lab.errors import NotShownError
from coral_lab.evaluation import Result
from coral_lab.query import AS_IMAGE, Traits, right_answers
from coral_lab.retrieval import Index, index
from coral_lab.study.binding import (
    ANOTHER,
    ASKED,
    COLUMNS,
    NOBODY,
    VARIANTS,
    binding,
    counterfactuals,
    effects,
    errors,
    in_words,
    taken,
    whose_value,
)
from coral_lab.study.edits import AS_ASKED

FACTS = {"color": ("red", "blue", "green"), "size": ("S", "M", "L"), "brand": ("alpa", "beta", "gama")}
QUIET = " (no size)"
TRAITS = Traits(shown=lambda p: {*p.attributes} - ({"size"} if p.title.endswith(QUIET) else set()))
NOTHING_KEPT = Settings(progress=False, store="")


def catalogue() -> list[Product]:
    """Every combination of class and values, with a title that tells the size and with one that does not."""
    found = []
    for class_name, values in product(("bag", "shoes", "hat"), product(*FACTS.values())):
        for tail in ("", QUIET):
            attributes = {key: (value,) for key, value in zip(FACTS, values, strict=True)}
            id = " ".join((class_name, *values)) + tail
            found.append(Product(id, id, None, class_name, "en", attributes=attributes))
    return found


PRODUCTS = catalogue()


def queries() -> list[Query]:
    """A bag with one reference's value and another's, both shoes that say another value of the rest."""
    found = []
    for first, second in permutations(FACTS, 2):
        for one, other in product(FACTS[first], FACTS[second]):
            references = (
                shoes(**{first: one}, avoid={second: other}),
                shoes(**{second: other}, avoid={first: one}),
            )
            conditions = (Condition(first, references[0], one), Condition(second, references[1], other))
            query = Query(f"{first} {one} {second} {other}", "bag", conditions)
            found.append(replace(query, positives=right_answers(query, PRODUCTS)))
    return found


def shoes(avoid: dict[str, str], **wanted: str) -> Product:
    for own in PRODUCTS:
        facts = {key: values[0] for key, values in own.attributes.items()}
        right = own.class_name == "shoes" and not own.title.endswith(QUIET)
        if right and facts.items() >= wanted.items() and not facts.items() & avoid.items():
            return own
    raise AssertionError(wanted)


class Facts:
    """Embeds classes and values as directions; of a query, `value_of` says what value a condition asks."""

    dim = 3 + 9
    places = {own: i for i, own in enumerate(("bag", "shoes", "hat", *sum(FACTS.values(), ())))}

    def __init__(self, name, value_of):
        self.name, self.value_of = name, value_of

    def embed(self, conversations):
        return np.stack([self.vector(own.item) for own in conversations])

    def vector(self, item) -> np.ndarray:
        if isinstance(item, Product):
            words = [item.class_name, *(value for own in item.attributes.values() for value in own)]
        else:
            words = [self.value_of(item, place) for place in range(len(item.conditions))]
            words += 2 * [item.class_name]
        found = np.zeros(self.dim)
        np.add.at(found, [self.places[word] for word in words], 1)
        return found


def of_its_own(query, place):
    return query.conditions[place].value


def of_any_other(query, place):
    """The value of the first other reference that tells one."""
    asked = query.conditions[place]
    told = (p for p in query.references if p != asked.product and asked.attribute in TRAITS.shown(p))
    return next((p.attributes[asked.attribute][0] for p in told), asked.value)


class Random(Facts):
    def __init__(self):
        self.name, self.seen = "random", {}

    def vector(self, item):
        return np.random.default_rng(
            [*item.id.encode(), *repr(getattr(item, "references", "")).encode()]
        ).normal(size=12)


def measured(model):
    pool = index(model, PRODUCTS, settings=NOTHING_KEPT)
    return binding(pool, queries(), TRAITS)


@pytest.fixture(scope="module")
def binds():
    return measured(Facts("binds", of_its_own))


@pytest.fixture(scope="module")
def mixes():
    return measured(Facts("mixes up", of_any_other))


@pytest.fixture(scope="module")
def guesses():
    return measured(Random())


def test_a_model_that_binds_does_not_care_what_others_say(binds):
    assert [*binds.results] == [AS_ASKED, *VARIANTS]
    assert not binds.rows["failed"].any()
    for by in ("all", "attribute", "place", "language"):
        found = effects(binds.rows, by)
        assert (found["difference"] == 0).all()
        assert (found["p"] == 1).all()
    table = errors(binds.rows).set_index("variant")
    assert (table["error"] == 0).all()
    assert table["chance"].tolist() == pytest.approx([2 / 3] * 4)
    assert (table["p (Holm)"] < 0.01).all()
    assert taken(binds.rows).empty
    assert in_words(binds.rows) == "binding: no first hit fails one condition alone"


def test_a_model_that_takes_any_reference_s_value_is_found_out(mixes):
    found = effects(mixes.rows).set_index("contrast")
    assert found.loc["else − same", ["error", "against", "difference"]].tolist() == [1, 0, 1]
    assert found.loc["else − nothing", "difference"] == 1
    assert found.loc["nothing − same", "difference"] == 0
    assert found.loc["else − same", "p (Holm)"] < 0.001
    wrong = mixes.rows[mixes.rows["variant"] == "else"]
    assert (taken(wrong, alone=False)[[ANOTHER, ASKED, NOBODY]] == [1, 0, 0]).all(axis=None)


def test_of_the_wrong_values_all_are_another_reference_s(mixes):
    wrong = mixes.rows[mixes.rows["variant"] == "nothing"]  # the other condition is the one that is mixed up
    assert not wrong["failed"].any()
    asked = mixes.rows[mixes.rows["variant"] == AS_ASKED]
    assert (asked["failed"] == 1).all()
    row = taken(asked, alone=False).iloc[0]
    assert (row[ANOTHER], row["hits"], row["low"], row["high"]) == (1, 2 * 54, 1, 1)
    # Both values are wrong in such a hit: of the 4 pairs of wrong values, two have the other's of one.
    assert row["chance"] == pytest.approx(1 / 2)
    assert row["beyond"] == pytest.approx(1 / 2)
    assert row["p"] < 0.001


def test_random_vectors_show_no_effect(guesses):
    found = effects(guesses.rows)
    assert (found["p"] > 0.05).all()
    assert (found["difference"].abs() < 0.2).all()
    table = errors(guesses.rows)
    assert (table["beyond"].abs() < 0.15).all()
    row = taken(guesses.rows[guesses.rows["variant"] == AS_ASKED], alone=False).iloc[0]
    assert row["beyond low"] < 0 < row["beyond high"]
    assert row["p"] > 0.05


def test_the_rows_of_a_counterfactual_are_about_its_own_condition(mixes):
    edited = mixes.rows[mixes.rows["variant"] != AS_ASKED]
    counts = edited.groupby(["variant", "query", "place"]).size()
    assert (counts == 1).all()
    assert set(edited.loc[edited["variant"] == "nothing", "attribute"]) == {"size"}
    assert list(mixes.rows.columns) == [*COLUMNS, "variant"]


def test_counterfactuals_change_the_others_and_nothing_else(shop):
    some, products = shop.queries[:25], shop.products[:2000]
    found = counterfactuals(some, products, shop.traits)
    assert {own.variant for own in found} == {*VARIANTS}
    for own in found:
        asked, edited = own.query.parent, own.query
        assert replace(edited, conditions=asked.conditions) == asked
        condition = edited.conditions[own.place]
        assert condition == asked.conditions[own.place]
        for i, (new, old) in enumerate(zip(edited.conditions, asked.conditions, strict=True)):
            if i == own.place:
                continue
            assert (new.attribute, new.value) == (old.attribute, old.value)
            assert new.met_by(new.product)
            assert new.attribute in shop.traits.shown(new.product)
            assert new.product.language == old.product.language
            assert new.product.id not in {*edited.positives, *(p.id for p in asked.references)}
            assert new.product.class_name != edited.class_name
            told = condition.attribute in shop.traits.shown(new.product)
            says = condition.met_by(new.product)
            assert {"same": told and says, "else": told and not says, "nothing": not told}[own.variant]
        assert len(set(edited.references)) == len(edited.references)
    assert not {own.query.conditions[own.place].attribute for own in found if own.variant == "nothing"} & {
        *shop.traits.visual
    }
    again = counterfactuals(some, products, shop.traits)
    assert [own.query.references for own in again] == [own.query.references for own in found]
    other = counterfactuals(some, products, shop.traits, seed=1)
    assert [own.query.references for own in other] != [own.query.references for own in found]


def test_neither_old_nor_new_references_are_hits(mixes):
    for result in mixes.results.values():
        for query, hits in zip(result.queries, result.ranked, strict=True):
            gone = {p.id for p in query.references} | {p.id for p in (query.parent or query).references}
            assert not gone & {result.products[row].id for row in hits}


def bag(id, color="red", size="S", class_name="bag"):
    values = {"color": color, "size": size}
    attributes = {key: own if isinstance(own, tuple) else (own,) for key, own in values.items()}
    return Product(id, id, None, class_name, "en", attributes=attributes)


RED, SMALL = bag("red", size="M", class_name="shoes"), bag("small", "blue", ("S", "XS"), "shoes")
BAGS = [
    bag("right"),
    bag("red M", size="M"),
    bag("red L", size="L"),
    bag("blue S", "blue"),
    bag("red XS", size="XS"),
]
QUERY = Query(
    "q", "bag", (Condition("color", RED, "red"), Condition("size", SMALL, "S")), positives=("right",)
)


def ranked(*first: str, products=BAGS, query=QUERY) -> Result:
    places = [[product.id for product in products].index(id) for id in first]
    scores = np.zeros((len(first), 1), np.float32)
    return Result("m", [query] * len(first), products, np.array(places)[:, None], scores)


def test_whose_value_by_hand():
    rows = whose_value(ranked("red M", "red L", "blue S", "red XS", "right"))
    assert rows["place"].tolist() == [0, 1] * 5
    assert rows["failed"].tolist() == [0, 1, 0, 1, 1, 0, 0, 1, 0, 0]
    # "M" is the first reference's; "blue" is the second's; "XS" too is a size of the one asked.
    assert rows["whose"].tolist() == ["", ANOTHER, "", NOBODY, ANOTHER, "", "", ASKED, "", ""]
    # Of the five bags three have another size, one another colour.
    assert rows["chance failed"].tolist() == [1 / 5, 3 / 5] * 5
    # Red bags of another size are M, L and XS; the only S that is not red is blue.
    assert rows["chance another"].dropna().tolist() == [1 / 3, 1 / 3, 1, 1 / 3]
    assert rows["fails"].tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    table = taken(rows)
    found = table.loc[0, [ASKED, ANOTHER, NOBODY, "chance"]].tolist()
    assert found == pytest.approx([1 / 4, 1 / 2, 1 / 4, 1 / 2])
    assert taken(rows, "attribute").set_index("value")["hits"].to_dict() == {"color": 1, "size": 3}
    said = in_words(whose_value(ranked("red M")))
    assert "another reference's in 100% [100%, 100%] of 1 (chance 33%" in said
    assert said.endswith("size 100% (33%, 1 hits)")


def test_a_reference_in_the_pool_is_no_candidate_to_draw():
    twin = bag("twin", size="M")  # of the wanted class, as siblings are
    query = replace(QUERY, conditions=(Condition("color", twin, "red"), QUERY.conditions[1]))
    rows = whose_value(ranked("red L", products=[*BAGS, twin], query=query))
    assert rows["chance another"].dropna().tolist() == [1 / 3]
    assert rows["chance failed"].tolist() == [1 / 5, 3 / 5]


def test_what_is_unknown_has_no_row_and_what_cannot_be_asked_is_said():
    half = replace(QUERY, conditions=(QUERY.conditions[0], Condition("size", SMALL, AS_IMAGE)))
    assert whose_value(ranked("red M", query=half))["place"].tolist() == [0]
    single = replace(QUERY, conditions=QUERY.conditions[:1])
    with pytest.raises(NotShownError, match="none of 1 queries has two conditions and a value that is known"):
        whose_value(ranked("red M", query=single))
    nothing = replace(ranked("red M"), ranked=np.array([[-1]]))
    with pytest.raises(NotShownError, match="none of 1 queries"):
        whose_value(nothing)
    bare = [Product(f"p{i}", "a title") for i in range(3)]
    unknown = Query("q", "bag", (Condition("color", bare[0]), Condition("size", bare[1])), positives=("p2",))
    pool = Index(Facts("m", of_its_own), bare, np.eye(3, dtype=np.float32), settings=NOTHING_KEPT)
    for asked in ([unknown], [single], []):
        with pytest.raises(NotShownError, match="none has another reference that could say something else"):
            binding(pool, asked)
    rows = whose_value(ranked("red M"))
    for table in (taken, errors, effects):
        with pytest.raises(ValueError, match="by is 'colour'; use one of all, attribute, place, language"):
            table(rows.assign(variant="same"), "colour")
