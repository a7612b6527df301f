"""What `coral-lab` takes: its commands and their options, checked before anything runs."""

import argparse
import sys
from io import TextIOWrapper
from pathlib import Path

from coral_lab.cli import learning, making, measuring
from coral_lab.cli.options import positive, share
from coral_lab.errors import WorkbenchError, one_line
from coral_lab.sources.files import check_can_be_written

WRITTEN = ("json", "run", "csv", "out")
LONGEST = 289  # characters of an error, and its line has 300


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one line on stderr and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments, argparse.Namespace(arguments=arguments, into_folder=False))
    # A terminal that knows no Thai gets a "?" for what it cannot write.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        for name in WRITTEN:
            if path := getattr(options, name, None):
                check_can_be_written(path, f"--{name}", is_folder=options.into_folder)
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
    demo.set_defaults(command=measuring.demo)
    demo.add_argument("--model", default="mini")
    demo.add_argument("--out", default="build/demo.html", type=Path)

    evaluate = commands.add_parser("evaluate", help="R@1, R@5, R@10, MRR@10 and nDCG@10 on a test split")
    evaluate.set_defaults(command=measuring.evaluate)
    _add_model_and_data(evaluate)
    _add_sample(evaluate)
    evaluate.add_argument(
        "--format", default="seq", help="how queries are worded: seq, cat, caption, merit, merit cat"
    )
    evaluate.add_argument(
        "--keep-references", action="store_true", help="do not leave a query's references out"
    )
    evaluate.add_argument(
        "--recall",
        type=share,
        metavar="SHARE",
        help="search the store that holds all products by an index that finds so much of what exact search "
        "does, 0.95 say; it is made if there is none",
    )
    evaluate.add_argument("--json", type=Path, help="write the metrics here")
    evaluate.add_argument("--run", type=Path, help="write the ranking here, in TREC's format")
    evaluate.add_argument("--csv", type=Path, help="write the breakdown by group here")
    evaluate.add_argument(
        "--attributes", action="store_true", help="ask the model to name what it sees and reads"
    )
    evaluate.add_argument(
        "--diagnose",
        action="store_true",
        help="also: does it use that conditions stand in one query, and whose value has a wrong hit",
    )

    compare = commands.add_parser(
        "compare", help="models side by side on the same queries: quality, paired tests, cost, one page"
    )
    compare.set_defaults(command=measuring.compare, into_folder=True)
    compare.add_argument("models", nargs="+", metavar="MODEL", help="two or more; see evaluate's --model")
    _add_data(compare)
    _add_sample(compare)
    _add_how(compare)
    compare.add_argument("--format", default="seq", help="how queries are worded; see evaluate")
    compare.add_argument("--baseline", metavar="MODEL", help="test the others against it as well")
    compare.add_argument("--out", default="build/compare", type=Path, help="a folder for page and figures")

    encode = commands.add_parser("encode", help="embeddings of a split's products")
    encode.set_defaults(command=measuring.encode)
    _add_model_and_data(encode)
    encode.add_argument("--out", type=Path, help="FILE.npy or FILE.parquet; may be left out with a store")
    sharded = encode.add_argument_group("with many workers, into --store; what is stopped goes on")
    sharded.add_argument(
        "--engine",
        choices=("local", "torchrun", "ray", "vllm"),
        help="torchrun starts this command; vllm has to agree with local on a sample",
    )
    sharded.add_argument("--workers", type=positive, help="for ray: so many, a GPU each if there are any")
    sharded.add_argument(
        "--block", type=positive, help="products that a kill may cost a worker; 256 by default"
    )

    learning.add_to(commands)

    experiment = commands.add_parser(
        "experiment", help="measure what the findings rest on; each cell once, kept in a folder"
    )
    experiment.set_defaults(command=measuring.experiment, into_folder=True)
    experiment.add_argument("name", choices=[*measuring.DESIGNED, *measuring.TRAINED, *measuring.ASKED])
    designed = experiment.add_argument_group(f"for the design's, in turn: {', '.join(measuring.DESIGNED)}")
    designed.add_argument("--bases", type=Path, help="its rungs; build/experiments/bases by default")
    trained = experiment.add_argument_group(f"for what is trained: {', '.join(measuring.TRAINED)}")
    trained.add_argument("--seeds", type=positive, help="3 by default")
    trained.add_argument("--steps", type=positive, help="100 by default")
    trained.add_argument("--start", metavar="MODEL", help="where training starts; mini-base by default")
    trained.add_argument("--arms", nargs="+", metavar="ARM", help="all of them by default")
    asked = experiment.add_argument_group(f"for what is only asked: {', '.join(measuring.ASKED)}")
    asked.add_argument("--models", nargs="+", metavar="MODEL", help="the three shipped by default")
    asked.add_argument("--data", help="mini by default; see evaluate")
    asked.add_argument("--limit", type=positive, help="only the first so many queries")
    asked.add_argument("--sample", type=positive, help="for data without queries; see evaluate")
    experiment.add_argument("--out", type=Path, help="where results are kept; build/results by default")

    report = commands.add_parser("report", help="one offline HTML page about a checkpoint")
    report.set_defaults(command=measuring.report)
    _add_model_and_data(report)
    _add_sample(report)
    report.add_argument("--out", default="build/report.html", type=Path)

    reproduce = commands.add_parser(
        "reproduce", help="the card's evaluation under every choice the paper leaves open; goes on if stopped"
    )
    reproduce.set_defaults(command=measuring.reproduce, into_folder=True, split="test", store="")
    _add_model_and_data(reproduce, reproducing=True)
    reproduce.add_argument(
        "--choices",
        nargs="+",
        metavar="CHOICE",
        help=f"what is tried both ways, all by default: {', '.join(measuring.CHOICES)}",
    )
    reproduce.add_argument(
        "--crossed", action="store_true", help="pixels and dtype also in every combination with the others"
    )
    reproduce.add_argument("--pixels", type=positive, help="a picture's pixels in the other budget")
    reproduce.add_argument("--out", default="build/reproduce", type=Path, help="a folder; it goes on there")

    device = commands.add_parser(
        "check-device", help="loading, parity, speed, memory and training steps on this machine's device"
    )
    device.set_defaults(command=measuring.check_device, into_folder=True)
    device.add_argument("--device", help="cuda, mps or cpu; the best one there is by default")
    device.add_argument("--size", choices=("3b", "small"), help="3b on a GPU, small on a CPU by default")
    device.add_argument("--out", default="build/device", type=Path, help="a folder for check-device.csv")

    rehearse = commands.add_parser(
        "rehearse", help="write a checkpoint and a MERIT of the real ones' sizes and formats"
    )
    rehearse.set_defaults(command=making.rehearse, into_folder=True)
    rehearse.add_argument("--out", required=True, type=Path)
    rehearse.add_argument("--only", choices=("checkpoint", "data"), help="both by default")
    rehearse.add_argument("--vocabulary", type=Path, help="qwen.tiktoken; one made up by default")

    data = commands.add_parser("data", help="write MERIT-mini in MERIT's file formats")
    data.set_defaults(command=making.write_data, into_folder=True)
    data.add_argument("--out", required=True, type=Path)
    data.add_argument("--limit", type=positive, help="only so many queries a split, and their products")

    notebooks = commands.add_parser("notebooks", help="write the notebooks into a folder of your own")
    notebooks.set_defaults(command=making.write_notebooks, into_folder=True)
    notebooks.add_argument("--out", required=True, type=Path)
    notebooks.add_argument(
        "--clean", action="store_true", help="the student's edition: no outputs, no solutions of exercises"
    )

    download = commands.add_parser(
        "download", help="fetch a checkpoint or MERIT from the hub; goes on where it was stopped"
    )
    download.set_defaults(command=making.download)
    download.add_argument("--model", help="a hub id, e.g. Bia/CORAL")
    download.add_argument("--data", help="a hub id, e.g. WeiChow/merit")
    download.add_argument("--split", choices=("train", "test"), help="of the data; both by default")
    download.add_argument("--revision", help="a hub branch, tag or commit")
    return parser


def _add_model_and_data(parser: argparse.ArgumentParser, reproducing: bool = False) -> None:
    """What is encoded and how; `reproduce` settles the dtype, the split and the store itself."""
    parser.add_argument("--model", default="mini", help="mini, mini-base, a folder, a hub id, or its vectors")
    parser.add_argument("--revision", help="a hub branch, tag or commit")
    _add_data(parser)
    if not reproducing:
        parser.add_argument("--family", help="how it is asked: coral, gme, lamra, …; told by its name")
        _add_how(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="use only what was downloaded before")
    parser.add_argument("--device", help="cuda, mps or cpu; the best one there is by default")
    parser.add_argument(
        "--data", default="mini", help="mini, a folder of MERIT's files or a hub id, a table's file"
    )
    parser.add_argument("--limit", type=positive, help="only the first so many queries (products for encode)")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip and list what cannot be used, or stop",
    )


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sample",
        type=positive,
        default=500,
        help="for data without queries: so many from its attributes, 500 by default",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--quantize", help="int8: weights in eight bits")
    parser.add_argument("--split", default="test")
    parser.add_argument("--store", help="a folder that keeps embeddings; $CORAL_LAB_STORE by default")
