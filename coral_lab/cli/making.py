"""Commands that write something to go on with: checkpoints, data, notebooks, downloads."""

from dataclasses import replace

from coral_lab.cli.options import say
from coral_lab.sources.files import output_folder, write_text

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
STEP = ("batch_size", "chunk", "negatives")
CORAL = ("lambda1", "lambda2", "vision", "language", "mask_rate", "temperature")


def train(options) -> None:
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
        return say(f"saved below {options.out}, each stage with its log.csv")
    config = replace(DEFAULTS[options.stage], **given(CONFIG))
    step = OBJECTIVES.get(options.stage)
    if step is not None:
        step = replace(step, coral=replace(step.coral, **given(CORAL)), **given(STEP))
    # Parameters learn in float32, whatever the network runs in.
    model = load(options.model, device=options.device, dtype="float32") if options.model else None
    lora, device = options.lora, options.device
    train_stage(options.stage, model, options.out, config, step=step, lora=lora, device=device)
    say(f"saved in {options.out}, with its log in {options.out / 'log.csv'}")


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
        write_text(options.out / file.name, file.read_text(encoding="utf-8"))
        say(options.out / file.name)


def rehearse(options) -> None:
    from coral_lab.mini.rehearsal import rehearse

    wanted = {name: options.only in (None, name) for name in ("checkpoint", "data")}
    rehearse(options.out, vocabulary=options.vocabulary, **wanted)
