"""Commands that encode, measure and show."""

import json
import shlex
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from coral_lab.cli.options import data_of, loaded, make_parent, say, say_skipped, settings_of
from coral_lab.sources.files import csv_text, fresh_file, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coral_lab.evaluation import Result
    from coral_lab.models.protocol import Embedder
    from coral_lab.query import Query
    from coral_lab.retrieval import Index
    from coral_lab.store.store import Store

DESIGNED = ("length", "selection", "objectives", "ladder", "variants", "unseen")
TRAINED, ASKED = (
    ("loss-ablation", "methods", "ood"),
    (
        *("formats", "conditions", "mistakes", "languages", "vectors", "sturdiness"),
        *("binding", "composition", "interaction", "scores"),
    ),
)
INDEXED_BY = 100
"""Queries by which an index is tuned."""
CHOICES = ("references", "pixels", "wording", "input", "dtype", "positives")


def demo(options) -> None:
    from coral_lab.mini.demo import demo

    demo(options.model, options.out)


def evaluate(options) -> None:
    from coral_lab.evaluation import metric_names
    from coral_lab.mini.naming import name_attributes
    from coral_lab.prompts import format_of
    from coral_lab.retrieval import index
    from coral_lab.study.composition import several

    format_of(options.format)  # before a checkpoint is loaded
    if options.diagnose and options.attributes:
        raise ValueError("--attributes asks no queries and --diagnose is about them; give one of the two")
    if options.recall is not None and (options.attributes or options.diagnose):
        raise ValueError("--recall searches a store, and --attributes and --diagnose do not; leave one out")
    shop = data_of(options)
    if not options.attributes:
        metric_names(shop.queries[: options.limit])
    if options.diagnose:
        several(shop.queries[: options.limit])
    model = loaded(options, shop)
    if options.attributes:
        table = name_attributes(model, shop.products[: options.limit])
        say(table.round(4).to_string(index=False))
        if options.csv:
            make_parent(options.csv)
            write_text(options.csv, csv_text(table.round(4)))
        return
    started = time.perf_counter()
    asked, exclude = shop.queries[: options.limit], not options.keep_references
    if options.recall is None:
        pool = index(model, shop.products, options.format, settings_of(options))
        say_skipped(pool.skipped)
        result = pool.evaluate(asked, exclude_references=exclude)
    else:
        result = _of_store(model, asked, options).evaluate(
            asked, exclude_references=exclude, approximate=True
        )
    say_skipped(result.skipped)
    say(result)
    print(
        "the first hit has the wanted: "
        + json.dumps({k: round(v, 3) for k, v in result.met_by_first().items()})
    )
    diagnosis = {"diagnosis": _diagnose(pool, result)} if options.diagnose else {}
    if options.json:
        make_parent(options.json)
        seconds = round(time.perf_counter() - started, 1)
        facts = {"data": shop.name, "encoder": repr(model), "seconds": seconds}
        facts["skipped_in_data"] = [str(error) for error in shop.skipped]
        facts |= diagnosis
        result.write_json(options.json, **facts, command=shlex.join(["coral-lab", *options.arguments]))
    if options.run:
        make_parent(options.run)
        result.write_trec(options.run)
    if options.csv:
        make_parent(options.csv)
        result.write_csv(options.csv)


def _of_store(model: "Embedder", queries: "Sequence[Query]", options) -> "Store":
    """The store that is named, with an index that finds what is wished for, as far as one can."""
    from coral_lab.store.store import open_store

    settings = settings_of(options)
    if not settings.place:
        raise ValueError("--recall searches a store; name one with --store")
    store = open_store(settings.place, model, options.format)
    if not len(store):
        problem = f"{settings.place} has no products of {model.name}"
        raise ValueError(f"{problem}; `coral-lab encode --engine local` puts them there")
    own = store.index
    if own is None or own.recall.mean < options.recall:
        own = store.make_index(options.recall, queries=queries[:INDEXED_BY])
    say(own)
    return store


def _diagnose(pool: "Index", result: "Result") -> dict[str, object]:
    """The fusion gap and whose value wrong first hits have: said in a line each, and given as figures."""
    from coral_lab.errors import NotShownError
    from coral_lab.study import binding, composition

    ways = (composition.INTERLEAVED, composition.MEAN)
    results = composition.composed(pool, composition.several(result.queries), ways)
    say(composition.in_words(results))
    found: dict[str, object] = {"fusion_gap": asdict(composition.fusion_gap(results))}
    try:
        rows = binding.whose_value(result)
    except NotShownError as error:  # queries whose values nobody knows, as people's own are
        say(f"binding: {error}")
        return found | {"binding": []}
    say(binding.in_words(rows))
    tables = [binding.taken(rows, by) for by in ("all", "attribute")]
    return found | {"binding": [row for table in tables for row in table.to_dict("records")]}


def compare(options) -> None:
    from coral_lab.replication.comparing import compare
    from coral_lab.replication.comparing_page import paired_text
    from coral_lab.replication.comparing_runs import named

    labels = [*named(options.models)]  # before data are read
    if options.baseline is not None and options.baseline not in labels:
        raise ValueError(f"--baseline is {options.baseline}; use one of {', '.join(labels)}")
    shop = data_of(options)
    shop = replace(shop, queries=shop.queries[: options.limit])
    names = ("device", "dtype", "offline", "quantize")
    given = {name: getattr(options, name) for name in names}
    found = compare(options.models, shop, format=options.format, settings=settings_of(options), **given)
    say_skipped(found.skipped)
    say(found)
    if options.baseline:
        say(f"\nagainst {options.baseline}:\n{paired_text(found, options.baseline)}")
    command = shlex.join(["coral-lab", *_without_out(options.arguments)])
    say(f"\nthe page is {found.write(options.out, command)}")


def encode(options) -> None:
    import numpy as np
    import pandas as pd

    from coral_lab.retrieval import index

    if options.engine:
        return _encode_sharded(options)
    if options.workers or options.block:
        raise ValueError("--workers and --block are for --engine; name one")
    if options.out is None or options.out.suffix not in (".npy", ".parquet"):
        raise ValueError(
            f"--out is {options.out}; end it in .npy or .parquet, or name a --store and an --engine"
        )
    products = data_of(options).products[: options.limit]
    pool = index(loaded(options), products, settings=settings_of(options))
    say_skipped(pool.skipped)
    embeddings = pool.embeddings
    make_parent(options.out)
    frame = pd.DataFrame({"id": [p.id for p in pool.products], "embedding": list(embeddings)})
    with fresh_file(options.out) as file:
        np.save(file, embeddings) if options.out.suffix == ".npy" else frame.to_parquet(file)
    say(f"{len(embeddings):,} embeddings of {embeddings.shape[1]} dimensions in {options.out}")


def _encode_sharded(options) -> None:
    """Into the store alone. Under torchrun every process comes here, and the first one says what is there."""
    import os
    from functools import partial

    from coral_lab.models.loading import load
    from coral_lab.store.blocks import Source
    from coral_lab.store.sharded import Engine, encode_sharded, own_device

    if options.out or options.limit:
        raise ValueError("--engine encodes all of the data into the store; leave --out and --limit out")
    settings = settings_of(options)
    if not settings.place:
        raise ValueError("--engine encodes into a store; name one with --store")
    names = ("family", "dtype", "revision", "offline", "quantize")
    given = {name: getattr(options, name) for name in names}
    make = partial(load, options.model, device=options.device or own_device(), **given)
    source = Source(options.data, options.split, options.offline, options.on_error)
    engine = Engine(options.engine, options.workers or 1, block=options.block)
    added = encode_sharded(make, source, settings.place, engine, settings)
    if os.environ.get("RANK", "0") == "0":
        say_skipped((*source.skipped, *added.skipped))
        if added.check:
            say(added.check)
        say(f"{added.products:,} products in {settings.place}")


def experiment(options) -> None:
    from coral_lab.replication import asked as asking
    from coral_lab.replication import design, experiments
    from coral_lab.replication.cells import RESULTS, compare_arms, read_results

    out = options.out or RESULTS
    asked, trained = ("models", "data", "limit", "sample"), ("seeds", "steps", "start", "arms")
    taken = {DESIGNED: ("bases",), TRAINED: trained, ASKED: asked}
    own = next(names for kind, names in taken.items() if options.name in kind)
    ignored = {*asked, *trained, "bases"} - {*own}
    if other := [f"--{name}" for name in sorted(ignored) if getattr(options, name) is not None]:
        raise ValueError(f"experiment {options.name} takes no {', '.join(other)}; leave it out")
    if options.name in DESIGNED:
        table = design.run(options.name, out=out, bases=options.bases or design.BASES)
    elif options.name in TRAINED:
        arms = experiments.ARMS[options.name]
        if other := sorted({*(options.arms or arms)} - {*arms}):
            raise ValueError(f"{options.name} has no arm {other}; choose from {', '.join(map(repr, arms))}")
        names = [name for name in ("seeds", "steps", "start") if getattr(options, name)]
        plan = experiments.Plan(**{name: getattr(options, name) for name in names})
        chosen = {arm: arms[arm] for arm in options.arms or arms}
        table = experiments.train_and_measure(options.name, plan, arms=chosen, out=out)
    else:
        options.data, options.sample = options.data or "mini", options.sample or 500
        options.split, options.offline, options.on_error = "test", False, "raise"
        shop = data_of(options)
        shop = replace(shop, queries=shop.queries[: options.limit])
        models = options.models or asking.CHECKPOINTS
        command = shlex.join(["coral-lab", *_without_out(options.arguments)])
        table = asking.ASKED[options.name](shop, models, command=command, out=out)
    if options.name == "loss-ablation":
        table = compare_arms(read_results(out / "loss-ablation-ranks.csv", "query"))
    say(table.round(4).to_string(index=False))
    if options.name in DESIGNED:
        say(design.told(options.name, out))


def _without_out(arguments: list[str]) -> list[str]:
    """Where a result is kept is not what it is."""
    places = [i for i, word in enumerate(arguments) if word == "--out"]
    return [word for i, word in enumerate(arguments) if not {i, i - 1} & {*places}]


def report(options) -> None:
    from coral_lab.evaluation import metric_names
    from coral_lab.replication.report_page import report
    from coral_lab.retrieval import index

    shop = data_of(options)
    shop = replace(shop, queries=shop.queries[: options.limit])
    metric_names(shop.queries)
    pool = index(loaded(options, shop), shop.products, settings=settings_of(options))
    say_skipped(pool.skipped)
    say(report(pool, shop, options.out, command=shlex.join(["coral-lab", *options.arguments])))
    say(f"the report is in {options.out}")


def check_device(options) -> None:
    from coral_lab.replication.device_check import FILE, check_device, table_text

    say(table_text(check_device(options.device, size=options.size, out=options.out)))
    say(f"the figures are in {options.out / FILE}")


def reproduce(options) -> None:
    from coral_lab.replication.reproducing import Matrix, reproduce

    matrix = Matrix(
        options.model,
        tuple(options.choices or CHOICES),
        options.pixels,
        options.device,
        options.revision,
        options.offline,
        options.crossed,
    )
    shop = data_of(options)
    shop = replace(shop, queries=shop.queries[: options.limit])
    command = shlex.join(["coral-lab", *_without_out(options.arguments)])
    found = reproduce(matrix, shop, options.out, settings_of(options), command)
    say(found)
    say(f"the page is {options.out / 'reproduce.html'}")
