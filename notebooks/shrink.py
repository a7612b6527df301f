"""Makes executed notebooks smaller: python notebooks/shrink.py NOTEBOOK …

PNGs get 256 colours, a third of their size. Progress bars go: without their widget they stand still.
"""

import base64
import io
import json
import re
import sys
from pathlib import Path

from PIL import Image


def reduced(png: str) -> str:
    """A base64 PNG with a palette; as it was if it has one already or that is no smaller."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":
        return png
    file = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)


def is_bar(output: dict) -> bool:
    return re.search(r"\d%\|", "".join(output.get("data", {}).get("text/plain", ()))) is not None


for name in sys.argv[1:]:
    notebook = json.loads(Path(name).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if not is_bar(output)]
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = reduced(output["data"]["image/png"])
    Path(name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
