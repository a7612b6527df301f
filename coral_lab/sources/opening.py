"""One call for any data: a name, a hub id or a folder."""

from pathlib import Path

from coral_lab.query import Dataset
from coral_lab.sources.beir import is_beir, read_beir
from coral_lab.sources.border import brief
from coral_lab.sources.merit_files import merit


def dataset(
    source: str | Path = "mini",
    split: str = "test",
    *,
    revision: str | None = None,
    offline: bool = False,
    on_error: str = "raise",
    remote_images: bool = False,
) -> Dataset:
    """The candidate pool and the queries of a split: "mini" (MERIT-mini, drawn here), a hub id such as
    "WeiChow/merit", or a folder with MERIT's files or BEIR's (`beir.py`).

    MERIT-mini has the splits test, train and val, MERIT test and train, a BEIR folder those that it judges.
    What else is known of a dataset (which attributes are visual, what training holds back, parallel titles)
    is in its `traits`. The other arguments and errors are those of `merit_files.merit`; MERIT-mini has no bad
    lines. Raises ValueError for a revision of it, or of a BEIR folder.
    """
    if str(source) == "mini":
        from coral_lab.mini.merit_mini import catalogue

        _no_revision(revision, "mini is drawn, not downloaded")
        return catalogue("mini", split)
    if is_beir(source):
        _no_revision(revision, f"{brief(str(source))} is a folder as it is")
        return read_beir(source, split, on_error=on_error)
    return merit(
        source, split, revision=revision, offline=offline, on_error=on_error, remote_images=remote_images
    )


def _no_revision(revision: str | None, why: str) -> None:
    if revision is not None:
        raise ValueError(f"revision is {brief(revision)}, and {why}; leave it out")
