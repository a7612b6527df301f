"""Imports point strictly down, modules stay short, and `import coral_lab` stays quick."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "coral_lab"
MODULES = sorted(file.stem for file in PACKAGE.glob("*.py"))

# A module may import what stands on the floors below its own, nothing on its own floor or above.
FLOORS = [
    "augment cards cpu_attention cpu_linear errors html images last_layer losses metrics outlines parallel search",
    "geometry hub interleaved marks pixels plots rows shapes_accessories shapes_clothes shapes_home vectors vision",
    "hits instructions models shapes titles widgets",
    "drawing inputs maps merit_files mini picker queries training",
    "batches catalogue coral fingerprints reading",
    "contrastive encoder lessons",
    "attributes evaluation pairs probing rebuilding store",
    "__init__ ablations bench comparing demo experiments mistakes stages",
    "trials",
    "findings",
    "contributions report",
    "cli",
    "__main__",
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules.split()}


def imported(source: str, modules=tuple(MODULES)) -> set[str]:
    """The package's own modules that a source imports, inside functions too; "__init__" for its exported names."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["coral_lab" if node.level else "", node.module]))
            names += [f"{base}.{alias.name}" for alias in node.names]
    paths = [name.split(".") for name in names]
    found = {path[1] if len(path) > 1 else "__init__" for path in paths if path[0] == "coral_lab"}
    return {name if name in modules else "__init__" for name in found}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import coral_lab.store.topk", {"search"}),
        ("import coral_lab as cl", {"__init__"}),
        ("from coral_lab import html, load", {"html", "__init__"}),
        ("from coral_lab.store.topk import top_k", {"search"}),
        ("def f():\n    if True:\n        from coral_lab.store.topk import top_k", {"search"}),
        ("from . import html", {"html"}),
        ("from .search import top_k", {"search"}),
        ("import numpy, html\nfrom search import top_k\nfrom coral_lab_extra import html", set()),
    ],
)
def test_every_way_of_importing_is_seen(source, expected):
    assert imported(source) == expected


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_strictly_down(module):
    assert module in FLOOR, f"give {module} a floor in tests/test_layers.py"
    found = imported((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    wrong = [name for name in sorted(found) if FLOOR.get(name, -1) >= FLOOR[module]]
    assert not wrong, (
        f"{module} (floor {FLOOR[module]}) imports {', '.join(f'{n} ({FLOOR[n]})' for n in wrong)}"
    )


def test_the_package_is_flat_and_no_module_is_called_utils():
    assert [file.parent for file in PACKAGE.rglob("*.py")] == [PACKAGE] * len(MODULES)
    assert not {"utils", "helpers", "common", "misc"} & set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_at_most_400_lines(module):
    lines = len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{module} has {lines} lines; split it by what it is about"


def test_importing_the_package_is_quick_and_leaves_the_heavy_libraries_alone():
    code = (
        "import json, sys, time; start = time.process_time(); import coral_lab\n"
        "print(json.dumps([time.process_time() - start, coral_lab.__file__, list(sys.modules)]))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, check=True)
        for _ in range(3)
    ]
    seconds, files, modules = zip(*(json.loads(run.stdout) for run in runs), strict=True)
    assert files[0] == str(PACKAGE / "__init__.py")
    heavy = "torch transformers umap numba pandas scipy sklearn plotly matplotlib ipywidgets datasets pyarrow IPython"
    assert not set(heavy.split()) & set(modules[0])
    # Processor time, the best of three: a busy machine is not the package's fault.
    assert min(seconds) < 0.5
