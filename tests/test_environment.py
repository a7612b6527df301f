"""The places that name dependencies agree, and nothing names a machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_gets_what_pip_gets():
    environment = yaml.safe_load(Path("environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-e .[dev]"], "everything else comes from pyproject.toml"
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python"))
    assert python == "python" + PROJECT["requires-python"]


def test_what_the_user_fixed_is_there():
    names = {canonical(requirement.name) for requirement in REQUIREMENTS}
    assert names >= {"jupyterlab", "ipywidgets", "torch", "transformers", "qwen-vl-utils", "umap-learn", "plotly",
                     "pandas", "pillow"}  # fmt: skip
    for folder in ("notebooks", "coral_lab", "data", "tests"):
        assert Path(folder).is_dir()


def test_dependencies_have_lower_bounds_only():
    for requirement in REQUIREMENTS:
        assert [spec.operator for spec in requirement.specifier] == [">="], requirement


def test_tested_versions_satisfy_the_bounds():
    tested = dict(
        line.split("==") for line in Path("tests/constraints.txt").read_text().splitlines() if "==" in line
    )
    tested = {canonical(name): Version(version) for name, version in tested.items()}
    for requirement in REQUIREMENTS:
        assert tested[canonical(requirement.name)] in requirement.specifier, requirement


def test_everything_imported_is_declared():
    declared = {canonical(requirement.name) for requirement in REQUIREMENTS}
    aliases = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "umap": "umap-learn"}
    for file in [*Path("coral_lab").glob("*.py"), *Path("notebooks").glob("*.py")]:
        for name in re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE):
            module = canonical(aliases.get(name, name))
            from_here = name in ("coral_lab", "__future__") or name in __import__("sys").stdlib_module_names
            assert from_here or module in declared, f"{file} imports {name}"


@pytest.mark.skipif(not Path(".git").exists(), reason="no git checkout")
def test_no_machine_path_is_tracked():
    files = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    pattern = re.compile(r"/(root|work|home/[a-z]+)/")
    for file in files:
        path = Path(file)
        if path.is_file() and path.suffix in {
            ".py",
            ".md",
            ".toml",
            ".yml",
            ".json",
            ".csv",
            ".ipynb",
            ".txt",
        }:
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert not found or path.name in ("test_environment.py", "test_notebooks.py"), f"{file}: {found}"
