"""What several commands do with the options they share."""

import argparse
import sys
from pathlib import Path

from coral_lab.errors import one_line, printable


def settings_of(options):
    from coral_lab.encoder import Settings

    return Settings(batch_size=options.batch_size, store=options.store, on_error=options.on_error)


def loaded(options, shop=None):
    """The model; a file of vectors is one of a dataset that is read already."""
    from coral_lab.models.loading import load
    from coral_lab.store.vector_files import is_vector_file

    if shop is not None and is_vector_file(options.model):
        from coral_lab.store.external import vectors

        return vectors(options.model, shop, format=getattr(options, "format", "seq"))
    return load(
        options.model,
        family=options.family,
        device=options.device,
        dtype=options.dtype,
        revision=options.revision,
        offline=options.offline,
        quantize=options.quantize,
    )


def data_of(options):
    """The dataset; what was skipped is said."""
    from coral_lab.sources.opening import dataset

    shop = dataset(options.data, options.split, offline=options.offline, on_error=options.on_error)
    say_skipped(shop.skipped)
    return with_queries(shop, getattr(options, "sample", None))


def with_queries(shop, sample: int | None):
    """The dataset; where it has no queries, with so many that are sampled. How is said."""
    if shop.queries or not sample:
        return shop
    from coral_lab.sources.sampling import sample_queries

    found = sample_queries(shop, sample)
    print(printable(str(found)), file=sys.stderr)
    return found.dataset


def say_skipped(errors) -> None:
    for error in errors:
        print(f"skipped {one_line(str(error))}", file=sys.stderr)


def say(text: object) -> None:
    """Texts of data and checkpoints do not steer a terminal."""
    print(printable(str(text)))


def make_parent(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)


def share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and up to 1")
    return found
