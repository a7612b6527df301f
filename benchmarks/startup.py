"""How long a cold interpreter takes to a loaded coral-mini, beside importing torch and transformers alone.

python benchmarks/startup.py      each in processes of its own, in turn; half a minute
"""

import subprocess
import sys
import time

from table import keep, row

RUNS = 9
CLASSES = (
    "Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor"
)
CODE = {
    "empty interpreter": "pass",
    "import coral_lab": "import coral_lab",
    "import torch and transformers' classes": "import torch; from transformers import AutoProcessor, "
    + CLASSES,
    'cl.load("mini")': "import coral_lab as cl; cl.load('mini')",
}


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    runs = [{name: seconds(code) for name, code in CODE.items()} for _ in range(RUNS + 1)]
    # The first run fills the system's file cache.
    found = {name: [run[name] for run in runs[1:]] for name in CODE}
    empty, package, bare, whole = found.values()
    own = [a - b for a, b in zip(whole, bare, strict=True)]
    rows = [
        row(f"{name}, s", values, wanted)
        for (name, values), wanted in zip(found.items(), ("", "", "", "< 4"), strict=True)
    ]
    package = [a - b for a, b in zip(package, empty, strict=True)]
    rows.append(row("import coral_lab over an empty interpreter, s", package, "< 0.5"))
    rows.append(row('cl.load("mini") over importing torch and transformers, s', own, "< 0.7"))
    print(keep("startup", rows).to_string(index=False))
