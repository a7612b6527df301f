"""The wheel, tried where nothing but it and its base dependencies is installed: python -I smoke_wheel.py, in
an empty folder.

No pytest: an assertion that fails ends it.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
SCRIPTS = Path(sys.executable).parent


def run(*command: str) -> str:
    print("$", *command, flush=True)
    done = subprocess.run([SCRIPTS / command[0], *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


import coral_lab as cl  # noqa: E402

# It is the wheel's own, without what only extras bring.
assert Path(cl.__file__).is_relative_to(Path(sys.prefix)), cl.__file__
assert find_spec("lancedb") is None
assert find_spec("peft") is None

model, shop = cl.load("mini"), cl.dataset("mini")
query = shop.queries[0]
assert cl.messages(query)[0]["content"][0]["text"].startswith("Find a product of")
assert cl.encode(model, query).shape == (1, 128)
small = shop.smaller_pool(shop.queries[:20], 100)
result = cl.evaluate(model, shop.queries[:20], cl.index(model, small))
print(result)
assert result.metrics["R@10"].mean > 0.8
try:
    cl.open_store("my-store", model)
except cl.errors.MissingExtraError as error:
    assert "pip install 'coral-lab[store]'" in str(error)  # noqa: PT017  there is no pytest here
else:
    raise AssertionError("a store without lancedb")

said = run("coral-lab", "demo")
assert re.search(r"R@1 +0\.8\d", said)
assert Path("build/demo.html").stat().st_size > 10_000
run("coral-lab", "report", "--limit", "40", "--out", "report.html")
assert "Beside the paper" in Path("report.html").read_text(encoding="utf-8")
written = run("coral-lab", "notebooks", "--out", "my notebooks").splitlines()
assert len(written) == 14, written
assert all(Path(name).is_file() for name in written), written
run(
    "jupyter",
    "nbconvert",
    "--to",
    "notebook",
    "--execute",
    "--output",
    "done.ipynb",
    "my notebooks/00_quickstart.ipynb",
)
assert sorted(path.name for path in Path().iterdir()) == [
    "build",
    "my notebooks",
    "report.html",
    "smoke_wheel.py",
]
print("the wheel works")
