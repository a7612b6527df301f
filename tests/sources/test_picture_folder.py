"""A folder of pictures: names become titles, folders classes, and what is no picture is told or refused."""

import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coral_lab as cl
from coral_lab.errors import ItemError
from coral_lab.mini.merit_mini import catalogue
from coral_lab.sources.picture_folder import is_picture_folder, title_of
from coral_lab.sources.writing import write_merit
from tests.conftest import noise


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("chairs/red-chair_01.jpg", "bags/big  bag.PNG", "a lamp.webp")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(9, 7, i).save(tmp_path / name)
    return tmp_path


def test_names_become_titles_and_folders_classes(folder):
    found = cl.dataset(folder)
    assert [(own.id, own.title, own.class_name) for own in found.products] == [
        ("a lamp.webp", "a lamp", ""),
        ("bags/big  bag.PNG", "big bag", "bags"),
        ("chairs/red-chair_01.jpg", "red chair 01", "chairs"),
    ]
    assert all(own.picture.size == (9, 7) for own in found.products)
    assert found.queries == found.skipped == ()


def test_other_files_are_counted_and_hidden_ones_left(folder, caplog):
    (folder / "notes.txt").write_text("x")
    (folder / ".DS_Store").write_text("x")
    (folder / ".thumbs").mkdir()
    noise(9, 7, 1).save(folder / ".thumbs" / "a.png")
    with caplog.at_level(logging.INFO, "coral_lab"):
        assert len(cl.dataset(folder).products) == 3
    assert "title ← names of files, class_name ← folders; 1 files are no pictures" in caplog.text


def test_what_cannot_be_used_is_named_or_skipped(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    noise(9, 7, 1).save(outside / "secret.png")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "new.heic").write_bytes(b"x")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe.png")
    found = cl.dataset(folder, on_error="skip")
    assert len(found.products) == 3
    said = " ".join(map(str, found.skipped))
    for problem in (
        "link.png",
        "leads out of",
        "link to nothing",
        "new.heic",
        "convert it",
        "no regular file",
    ):
        assert problem in said
    assert len(found.skipped) == 4, "a folder behind a link is not entered"
    with pytest.raises(ItemError, match=r"gone\.png"):
        cl.dataset(folder)


def test_a_name_that_is_no_utf8_is_named(folder):
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:
        file.write(b"x")
    (error,) = cl.dataset(folder, on_error="skip").skipped
    assert "half a character" in error.problem


def test_pictures_are_opened_when_they_are_looked_at(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    product = cl.dataset(folder).product("broken.png")
    with pytest.raises(ItemError, match="cannot be read"):
        product.picture  # noqa: B018


def test_folders_of_other_kinds_stay_what_they_are(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no test-\*.parquet"):
        cl.dataset(empty)
    write_merit(catalogue("mini", "test"), folder, "test", limit=2)
    assert not is_picture_folder(folder), "MERIT's files beside pictures"
    assert len(cl.dataset(folder).queries) == 2


def test_arguments_that_mean_nothing_are_refused(folder):
    with pytest.raises(ValueError, match="split is 'train', and a folder of pictures has none"):
        cl.dataset(folder, "train")
    with pytest.raises(ValueError, match="revision is 'x'"):
        cl.dataset(folder, revision="x")
    with pytest.raises(ValueError, match="on_error is 'x'; use raise or skip"):
        cl.dataset(folder, on_error="x")
    with pytest.raises(ValueError, match="columns are those of a table"):
        cl.dataset(folder, columns={"title": "name"})


@given(st.text(max_size=20))
def test_a_title_is_words_with_one_space_between(stem):
    title = title_of(stem)
    assert title == " ".join(title.split())
    assert not {"_", "-"} & set(title)
    assert title_of(title) == title
