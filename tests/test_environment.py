"""The places that name dependencies agree, and nothing names a machine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from coral_lab.errors import MissingExtraError, require

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
EVERY = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
REQUIREMENTS = [own for own in map(Requirement, EVERY) if own.name != "coral-lab"]
UNTESTED = {"vllm"}
"""What our tests put a stand-in for (tests/store/test_vllm.py): no version of it is known to fit."""


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
    assert names >= {
        "jupyterlab",
        "ipywidgets",
        "torch",
        "transformers",
        "qwen-vl-utils",
        "umap-learn",
        "plotly",
        "pandas",
        "pillow",
    }
    for folder in ("notebooks", "coral_lab", "data", "tests"):
        assert Path(folder).is_dir()


def test_the_base_is_small_and_all_brings_every_extra_that_a_user_wants():
    assert len(PROJECT["dependencies"]) <= 19
    (whole,) = map(Requirement, EXTRAS["all"])
    assert whole.extras == EXTRAS.keys() - {"all", "cluster", "dev", "docs", "vllm"}


def test_dependencies_have_lower_bounds_and_transformers_an_upper_one():
    for requirement in REQUIREMENTS:
        bounds = [">=", "<"] if requirement.name == "transformers" else [">="]
        assert sorted((spec.operator for spec in requirement.specifier), reverse=True) == bounds, requirement


def test_tested_versions_satisfy_the_bounds():
    tested = dict(
        line.split("==") for line in Path("tests/constraints.txt").read_text().splitlines() if "==" in line
    )
    tested = {canonical(name): Version(version) for name, version in tested.items()}
    assert not tested.keys() & UNTESTED
    for requirement in REQUIREMENTS:
        if requirement.name not in UNTESTED:
            assert tested[canonical(requirement.name)] in requirement.specifier, requirement


ALIASES = {
    "PIL": "pillow",
    "lance": "pylance",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "yaml": "pyyaml",
}


def imported(file: Path, pattern: str) -> set[str]:
    """Packages, by the names that pip knows, that lines of a file import."""
    names = ["".join(pair) for pair in re.findall(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)]
    own = {"coral_lab", "__future__", *sys.stdlib_module_names}
    return {canonical(ALIASES.get(name, name)) for name in names if name not in own}


def test_everything_imported_is_declared():
    declared = {canonical(requirement.name) for requirement in REQUIREMENTS}
    for file in [*Path("coral_lab").rglob("*.py"), *Path("notebooks").glob("*.py")]:
        assert imported(file, r"^\s*(?:from (\w+)[\w.]* import|import (\w+))") <= declared, file


def test_the_root_models_and_sources_need_nothing_but_the_base():
    base = {canonical(Requirement(line).name) for line in PROJECT["dependencies"]}
    folders = ("coral_lab", "coral_lab/models", "coral_lab/sources")
    for file in [file for folder in folders for file in Path(folder).glob("*.py")]:
        assert imported(file, r"^(?:from (\w+)[\w.]* import|import (\w+))") <= base, file


def test_what_is_asked_of_an_extra_is_in_it():
    asked = {
        pair
        for file in Path("coral_lab").rglob("*.py")
        for pair in re.findall(r'require\("(\w+)", "(\w+)"\)', file.read_text(encoding="utf-8"))
    }
    assert len(asked) >= 4
    for package, extra in asked:
        own = {canonical(Requirement(line).name) for line in EXTRAS[extra]}
        assert canonical(ALIASES.get(package, package)) in own, package


def test_a_package_that_is_missing_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"needs no_such_thing, .* pip install 'coral-lab\[store\]'"):
        require("no_such_thing.part", "store")


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
