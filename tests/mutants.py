"""Do the tests notice? Small changes to single expressions of the rooms whose numbers people publish, each
tried by the room's own tests: `make mutants`, or `python tests/mutants.py SEED COUNT`.

cosmic-ray makes the changes: a sign, a comparison, a condition turned round, a number one off, a loop that
does not run. The seed draws a sample of the places where one can be made, and one change of each; an edit
elsewhere in a file leaves the others in it. They are made in a copy of the checkout, and tried in a process
forked from one that has torch loaded. What was caught once is not tried again while its file is the same
(build/mutants).

No change is made to what is nobody's number: annotations, decorators, what is raised or logged, formatted
text, `__repr__` and HTML, progress bars, and zip's `strict`, which is for faults elsewhere. Those that
change nothing are in tests/mutants.toml, with the reason.
"""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from random import Random

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

WORK = Path("build/mutants").resolve()
TREE, CAUGHT = WORK / "tree", WORK / "caught.json"
ROOMS = "metrics.py retrieval.py evaluation.py query.py store/topk.py study/[!_]*.py training/[!_]*.py"
LOOKS = {"coral_lab/study/plots.py"}
TESTS = {  # a file's own tests, where they are not in the one of its name alone
    "coral_lab/retrieval.py": ["tests/test_retrieval.py", "tests/test_evaluation.py"],
    "coral_lab/study/edits.py": ["tests/study/test_sweeps.py"],
    "coral_lab/training/lora.py": ["tests/training/test_loop.py"],
}
LOADED = "torch torchvision transformers peft sklearn.linear_model scipy.stats pandas hypothesis umap plotly"
NEAR = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul BitAnd_BitOr BitOr_BitAnd"
ORDER = ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE")
OTHERS = (
    "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd "
    "ReplaceBreakWithContinue ReplaceContinueWithBreak NumberReplacer ZeroIterationForLoop"
)
OPERATORS = [
    *(f"core/ReplaceBinaryOperator_{name}" for name in NEAR.split()),
    *(f"core/ReplaceComparisonOperator_{a}_{b}" for a in ORDER for b in ORDER if a != b),
    *("core/ReplaceComparisonOperator_Is_IsNot", "core/ReplaceComparisonOperator_IsNot_Is"),
    *(name for name in operator_names() if "UnaryOperator" in name),
    *(f"core/{name}" for name in OTHERS.split()),
]


def left_out(node: ast.AST) -> Iterator[ast.AST]:
    """What no change is made to, of one node; see above."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.keyword(arg="strict" | "repr" | "desc"):
            yield node
        case ast.arg(annotation=ast.AST() as found) | ast.AnnAssign(annotation=found):
            yield found
        case ast.FunctionDef(name="__repr__" | "_repr_html_" | "worst"):
            yield node
        case ast.FunctionDef() | ast.ClassDef():
            yield from [*node.decorator_list, *filter(None, [getattr(node, "returns", None)])]
        case ast.Call(func=ast.Name(id="progress_bar" | "tqdm") | ast.Attribute(attr="warning")):
            yield node


def places(code: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Of each place in a file the operators that change it, and which of the operator's places it is."""
    nodes = [found for node in ast.walk(ast.parse(code)) for found in left_out(node)]
    spans = [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes]
    parsed, found = list(ast_nodes(get_ast(code))), defaultdict(list)
    for name in OPERATORS:
        operator = get_operator(name)()
        starts = [(node, start) for node in parsed for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, start) in enumerate(starts):
            lone = node.parent is not None and node.parent.type == "parameters"  # `*` before keywords
            if not lone and not any(low <= start < high for low, high in spans):
                found[start].append((name, occurrence))
    return found


def sample(seed: int, count: int) -> list[tuple[str, int, str, str]]:
    """So many mutants, by file and line: file, line, what the line becomes, the file's changed code."""
    files = sorted({str(file) for room in ROOMS.split() for file in Path("coral_lab").glob(room)} - LOOKS)
    codes, pool, drawn = {file: Path(file).read_text(encoding="utf-8") for file in files}, [], []
    for file, code in codes.items():
        lines = code.splitlines()
        for (line, column), ways in places(code).items():
            key = sha256(f"{seed} {file} {column} {lines[line - 1]}".encode()).hexdigest()
            pool.append((key, file, line, ways))
    for key, file, line, ways in sorted(pool):
        if len(drawn) == count:
            break
        name, occurrence = Random(key).choice(ways)
        code = mutate_code(codes[file], get_operator(name)(), occurrence)
        with suppress(SyntaxError):  # a star in a call is no product
            ast.parse(code)
            both = zip(codes[file].splitlines(), code.splitlines(), strict=False)
            change = next(f"{before.strip()} -> {after.strip()}" for before, after in both if before != after)
            drawn.append((file, line, change, code))
    print(f"{len(drawn)} of {len(pool)} places in {len(files)} files", flush=True)
    return sorted(drawn)


class Quick:
    """Tests that need no model come first: most mutants are caught by one of them."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: len({"shop", "random_model", "pool"}.intersection(item.fixturenames)))


def attempt(tests: list[str]) -> None:
    os.setsid()
    output = os.open(WORK / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], [Quick()])
    own = sys.modules.get("coral_lab")
    sys.exit(int(code) if own is None or Path(own.__file__).is_relative_to(TREE) else "another coral_lab")


def passes(tests: list[str], limit: float) -> bool | None:
    """Whether the tests pass in the copy as it is now; None beyond so many seconds."""
    process = get_context("fork").Process(target=attempt, args=(tests,))
    process.start()
    process.join(limit)
    late = process.is_alive()
    if late:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return None if late else process.exitcode == 0


def tried(file: str, code: str, limits: dict[str, float]) -> str:
    """What becomes of a mutant: "caught", "too slow" (beyond the file's limit, in seconds), or "passes"."""
    path = Path(file)
    tests = TESTS.get(file, [str(Path("tests", *path.parts[1:-1], f"test_{path.name}"))])
    if file not in limits:
        start, sys.dont_write_bytecode = time.perf_counter(), False
        if not passes(tests, 600):
            sys.exit(f"{tests} do not pass as they are; see {WORK / 'output.txt'}")
        limits[file] = 20 + 3 * (time.perf_counter() - start)
        sys.dont_write_bytecode = True  # the next change may be of the same size, in the same second
    before, at = path.read_bytes(), path.stat().st_mtime_ns
    path.write_text(code, encoding="utf-8")
    found = passes(tests, limits[file])
    path.write_bytes(before)
    os.utime(path, ns=(at, at))
    return {None: "too slow", False: "caught", True: "passes"}[found]


def copied() -> None:
    """The checkout as it is, changes and all, under TREE, which is where Python then looks first."""
    shutil.rmtree(TREE, ignore_errors=True)
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0"):
        if Path(name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, TREE / name)
    sys.path[0] = str(TREE)  # in place of tests/
    os.environ |= {"PYTHONPATH": str(TREE), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    os.chdir(TREE)


def main(seed: int = 0, count: int = 300) -> None:
    copied()
    drawn = sample(seed, count)
    same = tomllib.loads(Path("tests/mutants.toml").read_text(encoding="utf-8"))
    known = json.loads(CAUGHT.read_text()) if CAUGHT.is_file() else {}
    for name in LOADED.split():
        import_module(name)
    left, slow, limits, began = [], 0, {}, time.perf_counter()
    for number, (file, line, change, code) in enumerate(drawn, 1):
        key = sha256(f"{file}\n{code}".encode()).hexdigest()
        said = known.get(key) or tried(file, code, limits)
        print(
            f"{number:3d} {time.perf_counter() - began:5.0f} s  {said:8s} {file}:{line}  {change}", flush=True
        )
        if said == "passes":
            left.append((file, line, change, same.get(file, {}).get(change)))
        else:
            slow, known[key] = slow + (said == "too slow"), said
            CAUGHT.write_text(json.dumps(known, indent=0))
    for file, line, change, why in left:
        print(f"{file}:{line}  {change}  {f'changes nothing: {why}' if why else 'NOT CAUGHT'}")
    survive = sum(why is None for *_, why in left)
    print(
        f"{len(drawn) - len(left)} of {len(drawn)} caught ({slow} of them by taking too long), "
        f"{len(left) - survive} change nothing, {survive} survive"
    )
    sys.exit(survive > 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
