"""Commands that write something to go on with: checkpoints, data, notebooks, downloads."""

import json

from coral_lab.cli.options import say
from coral_lab.sources.files import output_folder, write_text


def download(options) -> None:
    from coral_lab.models.loading import FILES
    from coral_lab.sources.hub import download
    from coral_lab.sources.merit_files import files

    if not (options.model or options.data):
        raise ValueError("nothing to download; name --model Bia/CORAL, --data WeiChow/merit or both")
    if options.model:
        say(f"{options.model} is in {download(options.model, FILES, revision=options.revision)}")
    if options.data:
        wanted = [
            name
            for split in ([options.split] if options.split else ("train", "test"))
            for name in files(split)
        ]
        say(
            f"{options.data} is in "
            f"{download(options.data, wanted, kind='dataset', revision=options.revision)}"
        )


def write_data(options) -> None:
    from coral_lab.sources.opening import dataset
    from coral_lab.sources.writing import write_merit

    for split in ("train", "test"):
        write_merit(dataset("mini", split), options.out, split, options.limit)
    say(f"MERIT-mini is in {options.out}")


def write_notebooks(options) -> None:
    from coral_lab.sources.package_files import shipped

    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"--out {options.out} is not empty; name a new or empty folder")
    output_folder(options.out)
    for file in sorted(shipped("notebooks").glob("[0-9]*.ipynb")):
        text = file.read_text(encoding="utf-8")
        write_text(options.out / file.name, _for_students(text) if options.clean else text)
        say(options.out / file.name)


def _for_students(notebook: str) -> str:
    """A notebook without outputs and without the exercises' solutions."""
    content = json.loads(notebook)
    kept = [cell for cell in content["cells"] if "solution" not in cell["metadata"].get("tags", ())]
    for cell in kept:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(content | {"cells": kept}, indent=1, ensure_ascii=False) + "\n"


def rehearse(options) -> None:
    from coral_lab.mini.rehearsal import rehearse

    wanted = {name: options.only in (None, name) for name in ("checkpoint", "data")}
    rehearse(options.out, vocabulary=options.vocabulary, **wanted)
