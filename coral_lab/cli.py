"""The command line: `coral-lab demo`, `evaluate`, `encode`, `train`, `experiment`, `report`, `data` and
`download`.
"""

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path

from coral_lab.errors import WorkbenchError, one_line, printable
from coral_lab.sources.files import check_can_be_written, csv_text, fresh_file, output_folder, write_text

CONFIG = {
    "steps": int,
    "learning_rate": float,
    "seed": int,
    "warmup": int,
    "evaluate_every": int,
    "checkpoint_every": int,
    "accumulate": int,
    "precision": str,
}
TRAINED, ASKED = ("loss-ablation", "methods", "ood"), ("formats", "conditions", "mistakes")
WRITTEN = ("json", "run", "csv", "out")
LONGEST = 289  # characters of an error, and its line has 300
STEP = ("batch_size", "chunk", "negatives")
CORAL = ("lambda1", "lambda2", "vision", "language", "mask_rate", "temperature")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one line on stderr and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
    # A terminal that knows no Thai gets a "?" for what it cannot write.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    into_folder = options.command in (_train, _experiment, _data, _notebooks)
    try:
        for name in WRITTEN:
            if path := getattr(options, name, None):
                check_can_be_written(path, f"--{name}", is_folder=into_folder)
        options.command(options)
    except (WorkbenchError, ValueError, OSError) as error:
        print(f"coral-lab: {one_line(str(error), LONGEST)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="coral-lab", description="A research workbench for CORAL.")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser(
        "demo", help="encode the test catalogue, answer a query, measure, write a page"
    )
    demo.set_defaults(command=_demo)
    demo.add_argument("--model", default="mini")
    demo.add_argument("--out", default="build/demo.html", type=Path)

    evaluate = commands.add_parser("evaluate", help="R@1, R@5, R@10, MRR@10 and nDCG@10 on a test split")
    evaluate.set_defaults(command=_evaluate)
    _add_model_and_data(evaluate)
    evaluate.add_argument("--format", default="seq", help="how queries are worded: seq, cat or caption")
    evaluate.add_argument(
        "--keep-references", action="store_true", help="do not leave a query's references out"
    )
    evaluate.add_argument("--json", type=Path, help="write the metrics here")
    evaluate.add_argument("--run", type=Path, help="write the ranking here, in TREC's format")
    evaluate.add_argument("--csv", type=Path, help="write the breakdown by group here")
    evaluate.add_argument(
        "--attributes", action="store_true", help="ask the model to name what it sees and reads"
    )

    encode = commands.add_parser("encode", help="embeddings of a split's products")
    encode.set_defaults(command=_encode)
    _add_model_and_data(encode)
    encode.add_argument("--out", required=True, type=Path, help="FILE.npy or FILE.parquet")

    train = commands.add_parser("train", help="train a stage on MERIT-mini; goes on where it was stopped")
    train.set_defaults(command=_train)
    train.add_argument(
        "--stage",
        required=True,
        choices=("base", "answers", "contrastive", "coral", "all"),
        help="all makes coral-mini from scratch, each stage in a folder below --out",
    )
    train.add_argument("--model", help="where to start; base starts from scratch without")
    train.add_argument("--out", required=True, type=Path)
    for name, kind in CONFIG.items():
        train.add_argument(f"--{name.replace('_', '-')}", type=kind)
    for name in CORAL:
        train.add_argument(
            f"--{name.replace('_', '-')}", type=float, help="see coral_lab.training.reconstruction.Coral"
        )
    train.add_argument("--batch-size", type=_positive, help="pairs a step; 128 by default")
    train.add_argument(
        "--chunk", type=_positive, help="pairs in memory at a time (GradCache); all by default"
    )
    train.add_argument("--negatives", type=int, help="hard negatives a query; none by default")
    train.add_argument("--lora", type=_positive, metavar="RANK", help="train adapters of this rank only")
    train.add_argument("--device", help="cuda, mps or cpu; the best one there is by default")

    experiment = commands.add_parser(
        "experiment", help="measure what the findings rest on; each cell once, kept in a folder"
    )
    experiment.set_defaults(command=_experiment)
    experiment.add_argument("name", choices=[*TRAINED, *ASKED])
    trained = experiment.add_argument_group(f"for what is trained: {', '.join(TRAINED)}")
    trained.add_argument("--seeds", type=_positive, help="3 by default")
    trained.add_argument("--steps", type=_positive, help="100 by default")
    trained.add_argument("--start", metavar="MODEL", help="where training starts; mini-base by default")
    trained.add_argument("--arms", nargs="+", metavar="ARM", help="all of them by default")
    asked = experiment.add_argument_group(f"for what is only asked: {', '.join(ASKED)}")
    asked.add_argument("--models", nargs="+", metavar="MODEL", help="the three shipped by default")
    asked.add_argument("--data", help="mini by default; see evaluate")
    asked.add_argument("--limit", type=_positive, help="only the first so many queries")
    experiment.add_argument("--out", type=Path, help="where results are kept; build/results by default")

    report = commands.add_parser("report", help="one offline HTML page about a checkpoint")
    report.set_defaults(command=_report)
    _add_model_and_data(report)
    report.add_argument("--out", default="build/report.html", type=Path)

    data = commands.add_parser("data", help="write MERIT-mini in MERIT's file formats")
    data.set_defaults(command=_data)
    data.add_argument("--out", required=True, type=Path)
    data.add_argument("--limit", type=_positive, help="only so many queries a split, and their products")

    notebooks = commands.add_parser("notebooks", help="write the notebooks into a folder of your own")
    notebooks.set_defaults(command=_notebooks)
    notebooks.add_argument("--out", required=True, type=Path)

    download = commands.add_parser(
        "download", help="fetch a checkpoint or MERIT from the hub; goes on where it was stopped"
    )
    download.set_defaults(command=_download)
    download.add_argument("--model", help="a hub id, e.g. Bia/CORAL")
    download.add_argument("--data", help="a hub id, e.g. WeiChow/merit")
    download.add_argument("--split", choices=("train", "test"), help="of the data; both by default")
    download.add_argument("--revision", help="a hub branch, tag or commit")
    return parser


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="mini, mini-base, a folder or a hub id")
    parser.add_argument("--revision", help="a hub branch, tag or commit")
    parser.add_argument("--offline", action="store_true", help="use only what was downloaded before")
    parser.add_argument("--device", help="cuda, mps or cpu; the best one there is by default")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--data", default="mini", help="mini, a folder of MERIT's files or a hub id")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--limit", type=_positive, help="only the first so many queries (products for encode)"
    )
    parser.add_argument("--batch-size", type=_positive, default=32)
    parser.add_argument("--store", help="a folder that keeps embeddings; $CORAL_LAB_STORE by default")
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip and list what cannot be used, or stop",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)


def _settings(options):
    from coral_lab.encoder import Settings

    return Settings(batch_size=options.batch_size, store=options.store, on_error=options.on_error)


def _load(options):
    from coral_lab.models.loading import load

    return load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        revision=options.revision,
        offline=options.offline,
    )


def _data_of(options):
    """The dataset; what was skipped is said."""
    from coral_lab.sources.opening import dataset

    shop = dataset(options.data, options.split, offline=options.offline, on_error=options.on_error)
    _say_skipped(shop.skipped)
    return shop


def _say_skipped(errors) -> None:
    for error in errors:
        print(f"skipped {one_line(str(error))}", file=sys.stderr)


def _say(text: object) -> None:
    """Texts of data and checkpoints do not steer a terminal."""
    print(printable(str(text)))


def _demo(options) -> None:
    from coral_lab.mini.demo import demo

    demo(options.model, options.out)


def _evaluate(options) -> None:
    from coral_lab.mini.naming import name_attributes
    from coral_lab.prompts import format_of
    from coral_lab.retrieval import index

    format_of(options.format)  # before a checkpoint is loaded
    model, shop = _load(options), _data_of(options)
    if options.attributes:
        table = name_attributes(model, shop.products[: options.limit])
        _say(table.round(4).to_string(index=False))
        if options.csv:
            _parent(options.csv)
            write_text(options.csv, csv_text(table.round(4)))
        return
    started = time.perf_counter()
    pool = index(model, shop.products, options.format, _settings(options))
    _say_skipped(pool.skipped)
    exclude = not options.keep_references
    result = pool.evaluate(shop.queries[: options.limit], exclude_references=exclude)
    _say_skipped(result.skipped)
    _say(result)
    print(
        "the first hit has the wanted: "
        + json.dumps({k: round(v, 3) for k, v in result.met_by_first().items()})
    )
    if options.json:
        _parent(options.json)
        seconds = round(time.perf_counter() - started, 1)
        facts = {"data": shop.name, "encoder": repr(model), "seconds": seconds}
        facts["skipped_in_data"] = [str(error) for error in shop.skipped]
        result.write_json(options.json, **facts, command=shlex.join(["coral-lab", *options.arguments]))
    if options.run:
        _parent(options.run)
        result.write_trec(options.run)
    if options.csv:
        _parent(options.csv)
        result.write_csv(options.csv)


def _parent(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)


def _encode(options) -> None:
    import numpy as np
    import pandas as pd

    from coral_lab.retrieval import index

    if options.out.suffix not in (".npy", ".parquet"):
        raise ValueError(f"--out is {options.out}; end it in .npy or .parquet")
    products = _data_of(options).products[: options.limit]
    pool = index(_load(options), products, settings=_settings(options))
    _say_skipped(pool.skipped)
    embeddings = pool.embeddings
    _parent(options.out)
    frame = pd.DataFrame({"id": [p.id for p in pool.products], "embedding": list(embeddings)})
    with fresh_file(options.out) as file:
        np.save(file, embeddings) if options.out.suffix == ".npy" else frame.to_parquet(file)
    _say(f"{len(embeddings):,} embeddings of {embeddings.shape[1]} dimensions in {options.out}")


def _train(options) -> None:
    from coral_lab.mini.recipe import DEFAULTS, train_all, train_stage
    from coral_lab.models.loading import load
    from coral_lab.training import distributed
    from coral_lab.training.from_data import OBJECTIVES

    distributed.start()  # before the model is loaded: each process has a device of its own

    def given(names) -> dict:
        return {name: getattr(options, name) for name in names if getattr(options, name) is not None}

    if options.stage == "all":
        if other := given(["model", *STEP, "lora", *CORAL]):
            raise ValueError(f"--stage all takes no {', '.join(other)}; leave it out, or train one stage")
        train_all(options.out, given(CONFIG), options.device)
        return _say(f"saved below {options.out}, each stage with its log.csv")
    config = replace(DEFAULTS[options.stage], **given(CONFIG))
    step = OBJECTIVES.get(options.stage)
    if step is not None:
        step = replace(step, coral=replace(step.coral, **given(CORAL)), **given(STEP))
    # Parameters learn in float32, whatever the network runs in.
    model = load(options.model, device=options.device, dtype="float32") if options.model else None
    lora, device = options.lora, options.device
    train_stage(options.stage, model, options.out, config, step=step, lora=lora, device=device)
    _say(f"saved in {options.out}, with its log in {options.out / 'log.csv'}")


def _experiment(options) -> None:
    from coral_lab.replication import experiments
    from coral_lab.replication.cells import RESULTS, compare_arms, read_results

    out = options.out or RESULTS
    ignored = ("models", "data", "limit") if options.name in TRAINED else ("seeds", "steps", "start", "arms")
    if other := [f"--{name}" for name in ignored if getattr(options, name) is not None]:
        raise ValueError(f"experiment {options.name} takes no {', '.join(other)}; leave it out")
    if options.name in TRAINED:
        arms = experiments.ARMS[options.name]
        if other := sorted({*(options.arms or arms)} - {*arms}):
            raise ValueError(f"{options.name} has no arm {other}; choose from {', '.join(map(repr, arms))}")
        names = [name for name in ("seeds", "steps", "start") if getattr(options, name)]
        plan = experiments.Plan(**{name: getattr(options, name) for name in names})
        chosen = {arm: arms[arm] for arm in options.arms or arms}
        table = experiments.train_and_measure(options.name, plan, arms=chosen, out=out)
    else:
        options.data = options.data or "mini"
        options.split, options.offline, options.on_error = "test", False, "raise"
        shop = _data_of(options)
        shop = replace(shop, queries=shop.queries[: options.limit])
        models = options.models or experiments.CHECKPOINTS
        command = shlex.join(["coral-lab", *_without_out(options.arguments)])
        table = experiments.ASKED[options.name](shop, models, command=command, out=out)
    if options.name == "loss-ablation":
        table = compare_arms(read_results(out / "loss-ablation-ranks.csv", "query"))
    _say(table.round(4).to_string(index=False))


def _without_out(arguments: list[str]) -> list[str]:
    """Where a result is kept is not what it is."""
    places = [i for i, word in enumerate(arguments) if word == "--out"]
    return [word for i, word in enumerate(arguments) if not {i, i - 1} & {*places}]


def _report(options) -> None:
    from coral_lab.replication.report_page import report
    from coral_lab.retrieval import index

    shop = _data_of(options)
    shop = replace(shop, queries=shop.queries[: options.limit])
    pool = index(_load(options), shop.products, settings=_settings(options))
    _say_skipped(pool.skipped)
    _say(report(pool, shop, options.out, command=shlex.join(["coral-lab", *options.arguments])))
    _say(f"the report is in {options.out}")


def _download(options) -> None:
    from coral_lab.models.loading import FILES
    from coral_lab.sources.hub import download
    from coral_lab.sources.merit_files import files

    if not (options.model or options.data):
        raise ValueError("nothing to download; name --model Bia/CORAL, --data WeiChow/merit or both")
    if options.model:
        _say(f"{options.model} is in {download(options.model, FILES, revision=options.revision)}")
    if options.data:
        wanted = [
            name
            for split in ([options.split] if options.split else ("train", "test"))
            for name in files(split)
        ]
        _say(
            f"{options.data} is in "
            f"{download(options.data, wanted, kind='dataset', revision=options.revision)}"
        )


def _data(options) -> None:
    from coral_lab.sources.opening import dataset
    from coral_lab.sources.writing import write_merit

    for split in ("train", "test"):
        write_merit(dataset("mini", split), options.out, split, options.limit)
    _say(f"MERIT-mini is in {options.out}")


def _notebooks(options) -> None:
    from coral_lab.sources.package_files import shipped

    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"--out {options.out} is not empty; name a new or empty folder")
    output_folder(options.out)
    for file in sorted(shipped("notebooks").glob("[0-9]*.ipynb")):
        write_text(options.out / file.name, file.read_text(encoding="utf-8"))
        _say(options.out / file.name)


if __name__ == "__main__":
    sys.exit(main())
