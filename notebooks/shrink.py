"""Reduces the PNGs of executed notebooks to 256 colours, a third of their size: python notebooks/shrink.py NOTEBOOK …"""

import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image


def reduced(png: str) -> str:
    """A base64 PNG with a palette; as it was if that is no smaller."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)


for name in sys.argv[1:]:
    notebook = json.loads(Path(name).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = reduced(output["data"]["image/png"])
    Path(name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
