"""The photographs that ship here: a shop's table that reads by itself, small, each with its source."""

import csv
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import coral_lab as cl
from coral_lab.sources.opening import has_splits
from coral_lab.sources.package_files import shipped
from coral_lab.sources.sampling import sample_queries
from coral_lab.sources.tables import columns_of
from tests.conftest import noise

FOLDER = shipped("data/photos")
DOCUMENTS = {"LICENSE", "README.md", "products.csv"}


@pytest.fixture(scope="module")
def shop():
    return cl.dataset("photos")


@pytest.fixture(scope="module")
def rows():
    with open(FOLDER / "products.csv", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_table_reads_by_itself(shop):
    found = columns_of(FOLDER / "products.csv")
    assert (found.id, found.title, found.picture) == ("sku", "product_name", "image")
    assert (found.class_name, found.language) == ("category", "language")
    assert found.attributes == ("color", "material", "state", "condition", "pieces")
    assert not found.country
    assert not found.left_out
    assert len(shop.products) == 62
    assert not shop.queries
    assert not shop.skipped
    assert shop.product("P-1003").attributes["color"] == ("orange", "black")
    assert "state" not in shop.product("P-1001").attributes


def test_the_name_opens_it_wherever_one_works_unless_a_folder_has_that_name(shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [own.id for own in cl.dataset("photos").products] == [own.id for own in shop.products]
    assert shop.name == "photos"
    assert not has_splits("photos")
    with pytest.raises(ValueError, match="split is 'train', and a table has none"):
        cl.dataset("photos", "train")
    with pytest.raises(ValueError, match="the photographs ship here; leave it out"):
        cl.dataset("photos", revision="main")
    (tmp_path / "photos").mkdir()
    noise(9, 7, 0).save(tmp_path / "photos" / "mine.png")
    assert [own.title for own in cl.dataset("photos").products] == ["mine"]


def test_every_picture_is_small_and_plain(shop):
    for product in shop.products:
        assert product.picture.mode == "RGB"
        assert 160 <= max(product.picture.size) <= 320
    for file in FOLDER.glob("*.jpg"):
        with Image.open(file) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            assert not picture.getexif()
            assert not {"exif", "icc_profile", "xmp", "photoshop"} & picture.info.keys()


def test_every_file_is_a_products_or_a_document(rows):
    there = list(FOLDER.iterdir())
    assert {file.name for file in there} == {row["image"] for row in rows} | DOCUMENTS
    assert sum(file.stat().st_size for file in there) < 3e6


def test_values_are_shared(shop):
    classes = Counter(product.class_name for product in shop.products)
    assert len(classes) == 12
    assert min(classes.values()) >= 2
    held = Counter(
        (key, value) for own in shop.products for key, values in own.attributes.items() for value in values
    )
    assert min(held.values()) >= 2
    languages = Counter(product.language for product in shop.products)
    assert set(languages) == {"de", "en", "es", "fr", "id", "ms", "th", "vi"}
    assert languages["en"] * 3 >= len(shop.products)


def test_queries_can_be_sampled(shop):
    found = sample_queries(shop, 40)
    assert len(found.dataset.queries) == 40


def test_every_picture_has_its_source_and_a_free_licence(rows):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    sources = re.findall(r"^\| (\S+\.jpg) \| (\w+) `(\S+)` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert [picture for picture, *_ in sources] == [row["image"] for row in rows]
    assert len({(package, file) for _, package, file, *_ in sources}) == len(rows)
    assert {package for _, package, *_ in sources} == {"gcompris", "tuxpaint"}
    assert {licence for *_, licence in sources} == {"CC0-1.0", "public domain"}
    for package in ("gcompris-qt-data 3.1-2", "tuxpaint-stamps-default 2022.06.04-1"):
        assert package in page


def test_the_wheel_has_them():
    configured = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    wheel = configured["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert wheel["data"] == "coral_lab/_shipped/data"
