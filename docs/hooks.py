"""What mkdocs is told beyond mkdocs.yml.

The notebooks are pages of the site and stay in `notebooks/`. The reference has every public name: a room's
page takes them from the room's `__init__.py`. The page about files names every file.
"""

import ast
import logging
import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "coral_lab"
log = logging.getLogger("mkdocs.hooks")  # a warning fails a strict build

# What mkdocs-jupyter leaves of nbconvert's template: MathJax and Mermaid, which come from other servers.
SCRIPTS = re.compile(r"<script[^>]*>(?:(?!</script>).)*</script>", re.DOTALL)
FOREIGN = re.compile(r"mathjax|mermaid", re.IGNORECASE)

# A cell with a solution, up to the next cell or the notebook's end.
SOLUTION = re.compile(
    r'<div class="jp-Cell [^"]*\bcelltag_solution\b[^"]*">\s*<div class="jp-Cell .*?'
    r'(?=<div class="jp-Cell |</div> <!-- jp-Notebook -->)',
    re.DOTALL,
)


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files, config):
    notebooks = TOP / "notebooks"
    for path in [*sorted(notebooks.glob("[0-9]*.ipynb")), notebooks / "gallery.png"]:
        name = path.relative_to(TOP).as_posix()
        files.append(File(name, str(TOP), config.site_dir, config.use_directory_urls))
    return files


def on_page_content(html, page, config, files):
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    name = Path(page.file.src_uri).name
    html = SCRIPTS.sub(lambda found: "" if FOREIGN.search(found[0]) else found[0], html)
    html = SOLUTION.sub(r"<details><summary>Solution</summary>\g<0></details>", html)
    return f'<p><a href="{name}" download>Download this notebook</a></p>\n{html}'


def on_page_markdown(markdown, page, config, files):
    face = Path(config.docs_dir, "api", "index.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^::: (\S+)", face, re.MULTILINE))
    if page.file.src_uri == "api/index.md":
        warn("api/index.md does not describe", public(PACKAGE / "__init__.py") - described)
    if page.file.src_uri == "layout.md":
        check_files(markdown)
    return re.sub(r"<!-- names of (\w+) -->", lambda found: names(found[1], described), markdown)


def names(room: str, described: set[str]) -> str:
    """A room's public names as mkdocstrings' entries; what the public face describes has its entry there."""
    own = public(PACKAGE / room / "__init__.py")
    links = [f"[`{path.rpartition('.')[2]}`][{path}]" for path in sorted(own & described)]
    first = [f"On the page of [the public face](index.md): {', '.join(links)}."] if links else []
    return "\n\n".join(first + [f"::: {path}" for path in sorted(own - described)])


def public(file: Path) -> set[str]:
    """What the TYPE_CHECKING block of an `__init__.py` imports, as full paths."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in imports for alias in node.names}


def check_files(markdown: str) -> None:
    """Warn of files that the page about files does not name, and of those it names that are gone."""
    there = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    there -= {f"{path.parent.name}/__init__.py" for path in PACKAGE.glob("*/__init__.py")}
    named = set()
    for section in re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]:
        room = section.partition("\n")[0].strip()
        folder = "" if room == "The root" else f"{room}/"
        named |= {folder + name for name in re.findall(r"^\| `(\w+\.py)`", section, re.MULTILINE)}
    warn("layout.md does not name", there - named)
    warn("there is no more, but layout.md names", named - there)


def warn(problem: str, found: set[str]) -> None:
    if found:
        log.warning("%s %s", problem, ", ".join(sorted(found)))
