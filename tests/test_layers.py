"""Imports follow the arrows between rooms, lazy ones counted; modules stay short; `import coral_lab` stays
quick.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "coral_lab"
FILES = sorted(PACKAGE.rglob("*.py"))

# What no file of a room may import; "" is the package's root.
OFFLINE = {"mini", "replication"}
FORBIDDEN = {
    "": {"study", "widgets", "training"} | OFFLINE,
    "cli": {"widgets"},
    "models": {"store", "study", "widgets", "training"} | OFFLINE,
    "sources": {"models", "store", "study", "widgets", "training", "replication"},
    "store": {"study", "widgets", "training"} | OFFLINE,
    "study": {"widgets", "training"} | OFFLINE,
    "widgets": {"training"} | OFFLINE,
    "training": {"study", "widgets"} | OFFLINE,
    "mini": {"study", "widgets", "replication"},
    "replication": {"widgets"},
}


def room_of(file: Path) -> str:
    return file.parent.name if file.parent != PACKAGE else ""


def imported(source: str) -> set[str]:
    """The rooms that a source imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {path.split(".")[1] for path in found if path.startswith("coral_lab.")} & FORBIDDEN.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(file):
    if file == PACKAGE / "__init__.py":
        return  # the public face says where each name is at home
    room = room_of(file)
    wrong = imported(file.read_text(encoding="utf-8")) & (FORBIDDEN[room] | ({"cli"} - {room}))
    assert not wrong, f"{file.relative_to(PACKAGE)} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import coral_lab.mini.cards", {"mini"}),
        ("from coral_lab.study import edits", {"study"}),
        ("from coral_lab import widgets, load", {"widgets"}),
        ("def f():\n    if True:\n        from coral_lab.store.topk import top_k", {"store"}),
        ("import coral_lab as cl\nfrom coral_lab.query import Query\nimport mini.store", set()),
    ],
)
def test_every_way_of_importing_is_seen(source, expected):
    assert imported(source) == expected


def test_every_room_says_what_it_is_for_and_names_what_is_public():
    rooms = {file.parent.name for file in FILES if file.parent != PACKAGE}
    assert rooms | {""} == FORBIDDEN.keys()
    for room in sorted(rooms):
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
        assert len(ast.get_docstring(tree) or "") > 60, room


def test_the_root_is_seen_at_a_glance():
    unseen = {"__pycache__", "py.typed"}  # the one is Python's, the other says that there are annotations
    entries = [entry.name for entry in PACKAGE.iterdir() if entry.name not in unseen]
    assert len(entries) <= 20, sorted(entries)
    assert not {"utils", "helpers", "common", "misc"} & {file.stem for file in FILES}


def test_no_module_has_the_name_of_a_function_of_the_public_face():
    import coral_lab as cl

    functions = {name for name in cl.__all__ if name.islower() and name != "errors"}
    assert not functions & {path.stem for path in PACKAGE.iterdir()}


@pytest.mark.parametrize("name", ["", *sorted(FORBIDDEN.keys() - {""})])
def test_what_is_named_as_public_is_there(name):
    from importlib import import_module

    package = import_module(f"coral_lab.{name}".rstrip("."))
    assert package.__all__ == dir(package)
    for public in package.__all__:
        assert getattr(package, public) is not None, public
    with pytest.raises(AttributeError, match=f"{package.__name__} has no 'nothing'; it has "):
        _ = package.nothing


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_is_short(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 400, f"{file.name} has {len(lines)} lines; split it by what it is about"
    assert max(map(len, lines), default=0) <= 110


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_more_than_six_parameters_have_their_reason_in_the_docstring(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    makers = {own: kind for kind in classes for own in kind.body if getattr(own, "name", "") == "__init__"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and node not in makers):
            continue
        names = [own.arg for own in (*node.args.args, *node.args.kwonlyargs) if own.arg != "self"]
        said = ast.get_docstring(makers.get(node, node)) or ""
        assert len(names) <= 6 or "parameters" in said, f"{node.name} takes {len(names)} and does not say why"


def test_lines_are_not_kept_long_by_switching_the_formatter_off():
    skips = [
        file
        for folder in ("coral_lab", "tests", "benchmarks")
        for file in Path(folder).rglob("*.py")
        if "fmt: " + "skip" in file.read_text(encoding="utf-8")
    ]
    assert len(skips) < 10


def test_importing_the_package_is_quick_and_draws_and_reads_nothing():
    code = (
        "import json, sys, time; start = time.process_time(); import coral_lab; coral_lab.Product\n"
        "print(json.dumps([time.process_time() - start, coral_lab.__file__, list(sys.modules)]))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, check=True)
        for _ in range(3)
    ]
    seconds, files, modules = zip(*(json.loads(run.stdout) for run in runs), strict=True)
    assert files[0] == str(PACKAGE / "__init__.py")
    heavy = "torch transformers umap numba pandas scipy sklearn plotly ipywidgets datasets pyarrow IPython"
    assert not set(heavy.split()) & set(modules[0])
    assert not [name for name in modules[0] if name.startswith("coral_lab.mini")]
    # Processor time, the best of three: a busy machine is not the package's fault.
    assert min(seconds) < 0.5
