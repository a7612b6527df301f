"""Every notebook runs from a clean kernel, agrees with its paired script, and is committed clean."""

import ast
import os
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path("notebooks").glob("[0-9]*.ipynb"))
pytestmark = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
PARAMETERS = {
    "00_quickstart": {"QUERIES": 40},
    "01_merit_tour": {},
    "02_embedding_geometry": {"PRODUCTS": 150, "QUERIES": 24},
    "03_condition_order": {"QUERIES": 12, "EACH_PLACE": 4, "PRODUCTS": 200},
    "04_languages": {"QUERIES": 16, "PRODUCTS": 125},
    "05_retrieval_neighbourhoods": {"POOL": 400, "MAPPED": 150, "ASKED": 12},
    "06_training_objective": {"QUERIES": 40, "PRODUCTS": 200, "STEPS": 4},
    "07_paper_findings": {"QUERIES": 24, "PRODUCTS": 200},
    "08_new_query_formats": {"QUERIES": 24, "PRODUCTS": 200},
    "09_models_side_by_side": {"QUERIES": 24, "PRODUCTS": 120},
    "10_your_own_products": {"QUERIES": 30, "JUDGED": 8, "OUT": "../build/own-products-short"},
    "11_scaling_out": {"SIZES": [8, 16], "DIM": 16, "MAPPED": 300},
    "12_binding_and_composition": {"QUERIES": 40, "SUBSETS": 16, "PRODUCTS": 300},
    "13_scores_and_vectors": {"QUERIES": 60, "STURDY": 16, "PRODUCTS": 300},
}

DIFFICULTY = ("first steps", "some practice", "advanced")
SPOILT = """
def spoilt(answer):
    if isinstance(answer, bool) or answer is None:
        return not answer
    if isinstance(answer, str):
        return answer + "?"
    if isinstance(answer, (set, frozenset)):
        return answer | {"?"}
    return [*answer][::-1] + ["?"] if isinstance(answer, (list, tuple)) else answer + 1e6
"""


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def with_wrong_answers(notebook):
    """After each solution its check again, which must pass, and of a wrong answer, which must not."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "solution" in cell.metadata.get("tags", []):
            last = ast.unparse(ast.parse(cell.source).body[-1])
            asked = [
                f"assert ({last}).right is True",
                "answer = spoilt(answer)",
                f"assert ({last}).right is False",
            ]
            cells.append(nbformat.v4.new_code_cell("\n".join([SPOILT, *asked])))
    notebook.cells = cells
    return notebook


def with_parameters(notebook, values):
    """Papermill's convention: a cell after the one tagged `parameters`."""
    at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(source))
    return notebook


def test_runs_from_a_clean_kernel(file, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    notebook = with_wrong_answers(with_parameters(nbformat.read(file, 4), PARAMETERS[file.stem]))
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": "notebooks"}}).execute()


def test_agrees_with_its_pair(file):
    def sources(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert sources(nbformat.read(file, 4)) == sources(jupytext.read(file.with_suffix(".py")))


def test_is_committed_clean(file):
    notebook, text = nbformat.read(file, 4), file.read_text(encoding="utf-8")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]
    assert "widgets" not in notebook.metadata
    assert os.path.getsize(file) < 2**20
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert not any(cell.source.lstrip().startswith("class ") for cell in code)


def test_teaches(file):
    """How long and how hard it is, guesses that are scored, exercises that are checked, folded solutions."""
    notebook = nbformat.read(file, 4)
    assert re.search(rf"About \d+ minutes? on two cores · ({'|'.join(DIFFICULTY)})", notebook.cells[0].source)
    assert any("guessed(" in cell.source for cell in notebook.cells)
    exercises, solutions = tagged(notebook, "exercise"), tagged(notebook, "solution")
    assert len(exercises) == len(solutions) > 0
    for exercise, solution in zip(exercises, solutions, strict=True):
        assert "answer = None" in exercise.source
        assert "No answer yet" in str(exercise.outputs)
        assert "✓" in str(solution.outputs)
        assert solution.metadata["jupyter"] == {"source_hidden": True}


def test_lines_can_be_read(file):
    long = [
        line
        for cell in nbformat.read(file, 4).cells
        for line in cell.source.splitlines()
        if len(line) > 110 and "https://" not in line
    ]
    assert not long
