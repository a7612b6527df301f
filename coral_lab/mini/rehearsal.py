"""A rehearsal for the released CORAL at its full size: a checkpoint of its shape and layout with random
weights, and a MERIT of its size from the drawn catalogue.

What fails on these for want of time, memory or a file that nobody thought of would fail on the real ones.
Embeddings of random weights say nothing about products.
"""

import shutil
from pathlib import Path

from coral_lab.errors import WorkbenchError
from coral_lab.mini.rehearsal_checkpoint import write_checkpoint
from coral_lab.mini.rehearsal_data import PRODUCTS, QUERIES, write_data
from coral_lab.mini.rehearsal_vocabulary import ranks_of
from coral_lab.sources.files import check_can_be_written

DATA_SIZE, CHECKPOINT_SIZE = 9 * 10**8, 76 * 10**8
"""Bytes that they take on disk, and some."""


def rehearse(
    folder: str | Path, *, checkpoint: bool = True, data: bool = True, vocabulary: str | Path | None = None
) -> None:
    """Write the data into `folder/merit` and the checkpoint into `folder/coral`, and say what was made.

    8.5 GB in all. What is there whole is left as it is, and what a killed run left is gone on from.
    `vocabulary` is Qwen's own, as for `write_checkpoint`. Raises WorkbenchError where the disk has too little
    room, and ValueError as the two do.
    """
    folder = Path(folder).expanduser()
    check_can_be_written(folder, "folder", is_folder=True)
    if vocabulary is not None:
        ranks_of(Path(vocabulary))
    merit, coral = folder / "merit", folder / "coral"
    left = [*merit.rglob(".*.parquet.*.part"), *coral.glob(".*.safetensors.*.part")]
    for file in left:  # by a run that was killed while it wrote
        file.unlink()
    wanted = {merit: DATA_SIZE * data, coral: CHECKPOINT_SIZE * checkpoint}
    _check_room(folder, sum(max(0, size - _taken(place)) for place, size in wanted.items()))
    if data:
        write_data(merit)
        print(f"{merit}: {PRODUCTS:,} products, {QUERIES:,} queries, {_taken(merit) / 1e9:.1f} GB")
    if checkpoint:
        write_checkpoint(coral, vocabulary=vocabulary)
        print(f"{coral}: Qwen2.5-VL-3B's shape, random weights, {_taken(coral) / 1e9:.1f} GB")


def _taken(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _check_room(folder: Path, size: int) -> None:
    place = folder.absolute()
    there = next(parent for parent in (place, *place.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        problem = f"{folder} has {free / 1e9:.1f} GB of room, and what is written takes {size / 1e9:.1f}"
        raise WorkbenchError(f"{problem}; name a folder on another disk")
