"""Files are written whole or not at all, never through a link; spreadsheets run no cell of theirs."""

import ast
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import coral_lab
from coral_lab import Dataset, Product, cli
from coral_lab.cli import measuring
from coral_lab.sources.files import (
    append_text,
    cell,
    cell_text,
    check_can_be_written,
    check_no_links,
    csv_text,
    fresh_file,
    output_folder,
    write_text,
)
from coral_lab.sources.writing import write_merit
from tests.conftest import noise


@pytest.fixture
def precious(tmp_path):
    """A file that nothing may touch."""
    file = tmp_path / "precious"
    file.write_text("precious")
    yield file
    assert file.read_text() == "precious"
    assert not file.is_symlink()


WRITERS = {
    "write": lambda path: write_text(path, "new"),
    "append": lambda path: append_text(path, "new"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_is_refused_and_its_target_stays(write, precious, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for name, target in (("link", precious), ("nowhere", tmp_path / "nothing"), ("self", folder / "self")):
        (folder / name).symlink_to(target)
        with pytest.raises(ValueError, match=f"{name} is a link, which is not followed; remove it"):
            write(folder / name)
    assert not (tmp_path / "nothing").exists()
    assert sorted(os.listdir(folder)) == ["link", "nowhere", "self"]


def test_another_name_of_a_file_is_left(precious, tmp_path):
    """A hard link cannot be told from a file; writing anew parts them."""
    os.link(precious, tmp_path / "other")
    write_text(tmp_path / "other", "new")
    assert (tmp_path / "other").read_text() == "new"


def test_a_link_that_comes_after_the_look_is_replaced_and_not_followed(precious, tmp_path):
    with fresh_file(tmp_path / "out") as file:
        file.write(b"new")
        (tmp_path / "out").symlink_to(precious)
    assert (tmp_path / "out").read_text() == "new"


def test_a_link_that_comes_before_an_append_is_not_followed(precious, tmp_path, monkeypatch):
    (tmp_path / "out").symlink_to(precious)
    monkeypatch.setattr("coral_lab.sources.files.check_target", lambda _: None)
    with pytest.raises(OSError, match="symbolic link"):
        append_text(tmp_path / "out", "new")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_regular_files_are_written(tmp_path, kind):
    path = tmp_path / "out"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    for write in WRITERS.values():
        with pytest.raises(ValueError, match="out is no regular file and cannot be written; name another"):
            write(path)


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "out", "old")

    def fail():
        with fresh_file(tmp_path / "out") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "out").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    """Killed at many moments while it writes two contents in turn."""
    out, size = tmp_path / "out", 2**16
    code = (
        "import sys; from coral_lab.sources.files import write_text\n"
        f"print('ready', flush=True)\nfor i in range(10**9): write_text(sys.argv[1], 'ab'[i % 2] * {size})"
    )
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
        process.stdout.readline()
        while not out.exists():
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert out.read_text() in ("a" * size, "b" * size)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_as_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "out", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~umask


def test_the_new_file_s_name_is_new_each_time(tmp_path):
    names = set()
    for _ in range(20):
        with fresh_file(tmp_path / ("x" * 200)):
            names.update(os.listdir(tmp_path))
    assert len(names) == 21


def test_a_folder_to_write_into_is_no_link(tmp_path, precious):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="link is a link; name the folder that it leads to"):
        output_folder(tmp_path / "link")
    with pytest.raises(ValueError, match="precious is a file; name a folder"):
        output_folder(precious)
    assert output_folder(tmp_path / "a" / "b").is_dir()
    check_no_links(tmp_path / "real")
    (tmp_path / "real" / "x").symlink_to(precious)
    with pytest.raises(ValueError, match="x is a link, which is not followed"):
        check_no_links(tmp_path / "real")


@pytest.mark.parametrize("is_folder", [False, True])
def test_links_are_refused_before_anything_is_computed(tmp_path, is_folder, precious):
    (tmp_path / "link").symlink_to(tmp_path if is_folder else precious)
    with pytest.raises(ValueError, match=r"--out is .*, which is a link; "):
        check_can_be_written(tmp_path / "link", "--out", is_folder)


@pytest.mark.parametrize("option", ["--json", "--run", "--csv"])
def test_the_command_line_writes_through_no_link(option, tmp_path, precious, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "loaded", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "link").symlink_to(precious)
    assert cli.main(["evaluate", option, str(tmp_path / "link")]) == 2
    assert f"{option} is {tmp_path}/link, which is a link" in capsys.readouterr().err


def test_notebooks_go_into_no_folder_that_is_a_link(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert cli.main(["notebooks", "--out", str(tmp_path / "link")]) == 2
    assert "name the folder that it leads to" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "real")


def test_a_dataset_is_written_through_no_link(tmp_path, precious):
    shop = Dataset("x", [Product("1", "t", noise(9, 9, seed=0))], [])
    for place in ("queries-test.json", "data/test-00000-of-00001.parquet"):
        folder = tmp_path / place.replace("/", "-")
        (folder / place).parent.mkdir(parents=True)
        (folder / place).symlink_to(precious)
        with pytest.raises(ValueError, match="is a link, which is not followed"):
            write_merit(shop, folder, "test")
    (tmp_path / "real").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="data is a link; name the folder that it leads to"):
        write_merit(shop, tmp_path / "mine", "test")
    assert not os.listdir(tmp_path / "real")


PACKAGE = Path(coral_lab.__file__).parent
WRITING = {"write_text", "write_bytes", "copyfile", "copy2", "save_file", "to_csv", "savez", "touch", "dump"}
NO_PATH = {  # in a folder of its own; a text; into a file of fresh_file's
    ("models/saving.py", "touch"),
    ("sources/files.py", "to_csv"),
    ("replication/reproducing.py", "savez"),
}


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_whatever_is_written_goes_the_one_way(file):
    """No file of the package opens one for writing but `sources/files.py`."""
    name = str(file.relative_to(PACKAGE))
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        own = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if isinstance(call.func, ast.Attribute) and own in WRITING:
            assert (name, own) in NO_PATH, f"line {call.lineno}: {own}; use sources/files.py"
        if own in ("open", "fdopen") and name != "sources/files.py":
            given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
            modes = [
                own.value for own in given if isinstance(own, ast.Constant) and isinstance(own.value, str)
            ]
            assert not any(set(mode) <= set("wax+bt") for mode in modes), f"line {call.lineno}: open"


RUN = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0"]


@pytest.mark.parametrize("text", RUN)
def test_no_text_is_run_by_a_spreadsheet(text):
    assert cell(text) == f"'{text}"
    assert cell_text(cell(text)) == text
    assert cell_text(cell(cell(text))) == cell(text)


@pytest.mark.parametrize(
    "text", ["", "a", "-5", "+0.5", "-1e-5", "'quoted'", "a=b", "''", "'", "'-5", "''=x", "1-2"]
)
def test_other_texts_stay_and_come_back(text):
    assert cell_text(cell(text)) == text
    assert cell(text) == text or text.startswith("'")


@pytest.mark.parametrize("value", [-1, -0.5, None, True, float("nan")])
def test_numbers_are_no_texts(value):
    assert cell(value) is value


def test_a_table_is_written_with_its_cells_and_columns_made_harmless():
    frame = pd.DataFrame(
        {"=n": [-1, 2], "t": ["=1+1", "x"], "c": pd.Categorical(["@a", "b"]), "f": [-0.5, None]}
    )
    assert csv_text(frame) == "'=n,t,c,f\n-1,'=1+1,'@a,-0.5\n2,x,b,\n"
    twice = pd.DataFrame([["=a", "=b"]], columns=["x", "x"])
    assert csv_text(twice) == "x,x\n'=a,'=b\n"
