"""One call for any data: a name, a hub id, a folder, or a table in memory or in a file."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from coral_lab.errors import ItemError
from coral_lab.query import Dataset
from coral_lab.sources.beir import is_beir, read_beir
from coral_lab.sources.border import brief
from coral_lab.sources.columns import Columns
from coral_lab.sources.merit_files import merit
from coral_lab.sources.package_files import shipped
from coral_lab.sources.picture_folder import is_picture_folder, read_pictures

log = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".xlsm")
"""How files of tables end."""


def dataset(
    source: Any = "mini",
    split: str = "test",
    *,
    revision: str | None = None,
    offline: bool = False,
    on_error: str = "raise",
    remote_images: bool = False,
    columns: Columns | Mapping[str, Any] | None = None,
    sample: int = 0,
) -> Dataset:
    """The candidate pool and the queries of a split: "mini" (MERIT-mini, drawn here), a hub id such as
    "WeiChow/merit", or a folder with MERIT's files or BEIR's (`beir.py`).

    Or products alone: a DataFrame, a `datasets.Dataset`, a file in CSV, TSV, JSON lines, parquet or Excel's
    format (`tables.py`; `sources.columns_of` shows which column is taken for what, `columns` sets it by
    hand), a folder of pictures (`picture_folder.py`), or "photos", a small shop's table of photographs that
    ships here, unless a folder of that name is where one works. These have no splits.

    Of a source without queries as many are sampled from its products' attributes as `sample` says
    (`sources.sample_queries`), and none, with a warning, where attributes give none; those that have some
    keep them.

    MERIT-mini has the splits test, train and val, MERIT test and train, a BEIR folder those that it judges.
    What else is known of a dataset (which attributes are visual, what training holds back, parallel titles)
    is in its `traits`. The other arguments and errors are those of `merit_files.merit`, nine parameters
    since sources differ in what they need; MERIT-mini has no bad lines. Raises ValueError for a revision of
    it, or of what is not on the hub, and for a source of another type.
    """
    if isinstance(sample, bool) or sample < 0:
        raise ValueError(f"sample is {sample}; give a number of queries, 0 for none")
    found = _opened(source, split, columns, revision, offline, on_error, remote_images)
    return _with_queries(found, sample) if sample and not found.queries else found


def _with_queries(shop: Dataset, count: int) -> Dataset:
    from coral_lab.sources.sampling import sample_queries

    try:
        found = sample_queries(shop, count)
    except ItemError:
        raise
    except ValueError as error:
        log.warning("%s", error)
        return shop
    if len(found.dataset.queries) < count:
        log.warning("%s: %s", shop.name, str(found).splitlines()[0])
    return found.dataset


def _opened(
    source: Any,
    split: str,
    columns: Columns | Mapping[str, Any] | None,
    revision: str | None,
    offline: bool,
    on_error: str,
    remote_images: bool,
) -> Dataset:
    """What `dataset` opens, with the queries that it has; the parameters are those of `dataset`."""
    if _are_photos(source):
        _no_revision(revision, "the photographs ship here")
        file = shipped("data/photos/products.csv")
        shop = _table(file, split, columns, on_error=on_error, remote_images=remote_images)
        return replace(shop, name="photos")
    named = isinstance(source, str | Path)
    if not named or _is_table_file(source):
        _no_revision(revision, "a table is as it is")
        return _table(source, split, columns, on_error=on_error, remote_images=remote_images)
    if columns is not None:
        raise ValueError(f"columns are those of a table, and {brief(str(source))} is none; leave them out")
    if str(source) == "mini":
        from coral_lab.mini.merit_mini import catalogue

        _no_revision(revision, "mini is drawn, not downloaded")
        return catalogue("mini", split)
    if is_beir(source):
        _no_revision(revision, f"{brief(str(source))} is a folder as it is")
        return read_beir(source, split, on_error=on_error)
    if is_picture_folder(source):
        _no_revision(revision, f"{brief(str(source))} is a folder as it is")
        _no_split(split, "a folder of pictures")
        return read_pictures(source, on_error=on_error)
    return merit(
        source, split, revision=revision, offline=offline, on_error=on_error, remote_images=remote_images
    )


def has_splits(source: Any) -> bool:
    """Whether a source has splits, as tables and folders of pictures do not."""
    if not isinstance(source, str | Path):
        return isinstance(source, Mapping)
    return not _are_photos(source) and not _is_table_file(source) and not is_picture_folder(source)


def _are_photos(source: Any) -> bool:
    """Whether it is the name of the photographs that ship here; a folder of one's own comes first."""
    return isinstance(source, str) and source == "photos" and not Path(source).exists()


def _is_table_file(source: str | Path) -> bool:
    """Whether it is a file, or one that is missing, by how its name ends, which no hub id does."""
    try:
        file = Path(source).expanduser()
        return file.is_file() or (file.suffix.lower() in TABLES and not file.is_dir())
    except (OSError, RuntimeError, ValueError):  # a name that is too long, a user that there is not
        return False


def _table(source: Any, split: str, columns: Columns | Mapping[str, Any] | None, **how: Any) -> Dataset:
    from coral_lab.sources.tables import read_table  # and pandas: only where there is a table

    if type(source).__name__ == "DatasetDict" and isinstance(source, Mapping):
        if split not in source:
            raise ValueError(f"split {brief(split)} is not there; it has {brief(list(source))}")
        return read_table(source[split], columns=columns, **how)
    _no_split(split, "a table")
    return read_table(source, columns=columns, **how)


def _no_split(split: str, what: str) -> None:
    if split != "test":
        raise ValueError(f"split is {brief(split)}, and {what} has none; leave it out")


def _no_revision(revision: str | None, why: str) -> None:
    if revision is not None:
        raise ValueError(f"revision is {brief(revision)}, and {why}; leave it out")
