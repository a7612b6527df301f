"""Commands that train: `train` on any dataset, `mini` the stages that make coral-mini."""

import argparse
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from coral_lab.cli.options import positive, say, say_skipped, with_queries

CONFIG: dict[str, type] = {
    "steps": int,
    "learning_rate": float,
    "seed": int,
    "warmup": int,
    "evaluate_every": int,
    "checkpoint_every": int,
    "accumulate": int,
    "precision": str,
}
"""Settings of `TrainConfig`, and below of `StepConfig` and `Coral`, that both commands have."""

STEP = ("batch_size", "chunk", "negatives")
CORAL = ("lambda1", "lambda2", "vision", "language", "mask_rate", "temperature")
OWN = ("learn_temperature", "reconstruct", "shuffled")  # of `train` alone

MORE: dict[str, type] = {
    "epochs": float,
    "patience": int,
    "tracker": str,
    "weight_decay": float,
    "decoder_learning_rate": float,
    "decoders_first": int,
}
SWITCHES = {
    "checkpointing": "keep no states inside the layers, and work them out again (gradient checkpointing)",
    "augmented": "pictures are moved, turned and enlarged a little",
    "shard": "a part of every parameter on each process (FSDP2), under torchrun or accelerate launch",
    "freeze_vision": "the vision tower does not learn",
    "learn_temperature": "the temperature learns",
    "shuffled": "rebuild from another row's h_eos: the same work without information, an ablation's control",
}


def add_to(commands: Any) -> None:
    """The two commands' parsers."""
    parser = commands.add_parser("train", help="train a model on any dataset; goes on where it was stopped")
    parser.set_defaults(command=train, into_folder=True)
    parser.add_argument(
        "--config", help="a TOML file of these options, or one that ships: see docs; options given here win"
    )
    parser.add_argument("--model", help="where to start: mini-base, a folder or a hub id")
    parser.add_argument("--data", help="mini, a folder of MERIT's files or a hub id, a table's file")
    parser.add_argument("--split", help="of the data; train by default")
    parser.add_argument("--sample", type=positive, help="for data without queries: so many, from attributes")
    parser.add_argument("--objective", choices=("coral", "contrastive"), help="coral by default")
    parser.add_argument("--reconstruct", help="what Coral rebuilds: target (by default), query or both")
    parser.add_argument("--out", required=True, type=Path, help="a folder; it goes on there")
    parser.add_argument("--held-out", type=positive, help="so many queries are kept back, by listing")
    parser.add_argument("--batches", help="mixed: every query once an epoch; closer: more and more alike")
    parser.add_argument("--format", help="how queries are worded: seq, cat, caption, merit, merit cat")
    parser.add_argument(
        "--lora-targets", nargs="+", metavar="LAYER", help="all of the text model's by default"
    )
    parser.add_argument("--dtype", help="what the network is held in; adapters learn in float32 all the same")
    parser.add_argument("--attention", help="sdpa, eager or flash_attention_2")
    parser.add_argument("--pixels", type=positive, help="a picture has no more; the checkpoint's by default")
    parser.add_argument("--on-error", choices=("raise", "skip"), help="skip and list bad lines, or stop")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="publish the model there when it is done")
    for name, text in SWITCHES.items():
        parser.add_argument(_option(name), action=argparse.BooleanOptionalAction, help=text)
    _add_shared(parser, CONFIG | MORE)

    parser = commands.add_parser("mini", help="make coral-mini: its stages, on MERIT-mini")
    parser.set_defaults(command=mini, into_folder=True)
    parser.add_argument(
        "--stage",
        required=True,
        choices=("base", "answers", "contrastive", "coral", "seeing", "pretrained", "all"),
        help="all makes coral-mini from scratch, each stage in a folder below --out; seeing, and pretrained "
        "from it, make mini-pretrained",
    )
    parser.add_argument("--model", help="where to start; base starts from scratch without, seeing always")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument(
        "--without",
        choices=("class", "language", "attribute", "all"),
        help="seeing and pretrained never meet what this out-of-distribution split holds back, or all three",
    )
    _add_shared(parser, CONFIG)


def _add_shared(parser: argparse.ArgumentParser, config: dict[str, type]) -> None:
    for name, kind in config.items():
        parser.add_argument(_option(name), type=kind)
    for name in CORAL:
        parser.add_argument(_option(name), type=float, help="see coral_lab.training.reconstruction.Coral")
    parser.add_argument("--batch-size", type=positive, help="pairs a step, of all processes; 128 by default")
    parser.add_argument(
        "--chunk", type=positive, help="pairs in memory at a time (GradCache); all by default"
    )
    parser.add_argument("--negatives", type=int, help="hard negatives a query; none by default")
    parser.add_argument("--lora", type=positive, metavar="RANK", help="train adapters of this rank only")
    parser.add_argument("--device", help="cuda, mps or cpu; the best one there is by default")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def train(options: argparse.Namespace) -> None:
    from coral_lab.models.loading import load_network
    from coral_lab.models.model import with_most_pixels
    from coral_lab.models.sharing import check_repository, push_to_hub
    from coral_lab.sources.opening import dataset, has_splits
    from coral_lab.training import distributed
    from coral_lab.training.config import TrainConfig
    from coral_lab.training.from_data import OBJECTIVES
    from coral_lab.training.from_data import train as train_on
    from coral_lab.training.lora import TARGETS, add_lora, freeze_vision

    _take_config(options)
    if not options.model or not options.data:
        raise ValueError("--model and --data are needed, here or in a --config file")
    objective = OBJECTIVES[options.objective or "coral"]
    coral = replace(objective.coral, **_given(options, (*CORAL, *OWN)))
    step = replace(
        objective, coral=coral, **_given(options, (*STEP, "batches", "format", "checkpointing", "augmented"))
    )
    config = TrainConfig(**{"learning_rate": 1e-5, **_given(options, (*CONFIG, *MORE, "shard"))})
    if options.push_to_hub:
        check_repository(options.push_to_hub)
    distributed.start(options.device)  # before the model is loaded: each process has a device of its own
    quiet = distributed.rank() > 0
    split = options.split or ("train" if has_splits(options.data) else "test")
    shop = dataset(options.data, split, on_error=options.on_error or "raise")
    if not quiet:
        say_skipped(shop.skipped)
    shop = with_queries(shop, options.sample)
    if not shop.queries:
        raise ValueError(f"{options.data} has no queries to train on; sample some with --sample 5000")
    dtype, attention = options.dtype or "float32", options.attention
    model = load_network(options.model, device=options.device, dtype=dtype, attention=attention)
    if options.pixels:
        model = with_most_pixels(model, options.pixels)
    if options.freeze_vision:
        freeze_vision(model)
    if options.lora:
        add_lora(model, options.lora, config.seed, options.lora_targets or TARGETS)
    train_on(model, shop, options.out, step, config, held_out=options.held_out or 0)
    if quiet:
        return
    say(f"saved in {options.out}, with its log in {options.out / 'log.csv'}")
    if options.push_to_hub:
        say(f"published: {push_to_hub(options.out, options.push_to_hub)}")


def _take_config(options: argparse.Namespace) -> None:
    """Options of a TOML file where none were given. Raises ValueError for what is none, or no value of it."""
    if options.config is None:
        return
    from coral_lab.sources.package_files import shipped

    file = Path(options.config)
    if not file.is_file():
        known = sorted(own.stem for own in shipped("data/training").glob("*.toml"))
        if options.config not in known:
            raise ValueError(f"--config {options.config} is no file and none of {', '.join(known)}")
        file = shipped(f"data/training/{options.config}.toml")
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no TOML: {error}") from None
    kinds = CONFIG | MORE | dict.fromkeys(CORAL, float) | dict.fromkeys(SWITCHES, bool)
    kinds |= dict.fromkeys((*STEP, "held_out", "lora", "pixels", "sample"), int) | {"lora_targets": list}
    texts = ("model", "data", "split", "objective", "batches", "format", "dtype", "attention", "on_error")
    kinds |= dict.fromkeys((*texts, "push_to_hub", "device", "reconstruct"), str)
    lasts = options.steps or options.epochs  # given on the command line, which wins in either unit
    for name, value in found.items():
        kind = kinds.get(name)
        if kind is None:
            raise ValueError(f"{file}: {name} is no option; they are {', '.join(sorted(kinds))}")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{file}: {name} is {value!r}, wanted {kind.__name__}")
        if getattr(options, name) is None and not (lasts and name in ("steps", "epochs")):
            setattr(options, name, value)


def mini(options: argparse.Namespace) -> None:
    from coral_lab.mini import pretraining
    from coral_lab.mini.recipe import DEFAULTS, train_all, train_stage
    from coral_lab.models.loading import load_network
    from coral_lab.training import distributed
    from coral_lab.training.from_data import OBJECTIVES

    rungs = pretraining.DEFAULTS
    if options.without and options.stage not in rungs:
        raise ValueError(f"--stage {options.stage} takes no --without; {' and '.join(rungs)} do")
    if options.stage in rungs and (other := _given(options, [*STEP, "lora", *CORAL])):
        raise ValueError(f"--stage {options.stage} takes no {', '.join(other)}; leave it out")
    distributed.start(options.device)  # before the model is loaded: each process has a device of its own
    if options.stage == "all":
        if other := _given(options, ["model", *STEP, "lora", *CORAL]):
            raise ValueError(f"--stage all takes no {', '.join(other)}; leave it out, or train one stage")
        train_all(options.out, _given(options, CONFIG), options.device)
        return say(f"saved below {options.out}, each stage with its log.csv")
    config = replace({**DEFAULTS, **rungs}[options.stage], **_given(options, CONFIG))
    step = OBJECTIVES.get(options.stage)
    if step is not None:
        step = replace(step, coral=replace(step.coral, **_given(options, CORAL)), **_given(options, STEP))
    # Parameters learn in float32, whatever the network runs in.
    model = load_network(options.model, device=options.device, dtype="float32") if options.model else None
    lora, device = options.lora, options.device
    if options.stage in rungs:
        pretraining.pretrain(
            options.stage, model, options.out, config, without=options.without, device=device
        )
    else:
        train_stage(options.stage, model, options.out, config, step=step, lora=lora, device=device)
    say(f"saved in {options.out}, with its log in {options.out / 'log.csv'}")
