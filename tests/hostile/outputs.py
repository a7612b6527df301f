"""Stores, states of training, results and reports that strangers might send."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from coral_lab import Condition, Dataset, Product, Query, Settings, index, load, open_store
from coral_lab.replication import report_page
from coral_lab.replication.cells import read_results, write_results
from coral_lab.training.config import TrainConfig
from coral_lab.training.loop import Step, backward, train_loop
from tests.hostile.case import WORKS, Case

Make = Callable[[Path], object]
QUIET = Settings(progress=False)


# training


def _train(folder: Path) -> None:
    model = load("mini")
    first = next(p for p in model.network.parameters() if p.ndim == 1)
    for parameter in model.network.parameters():
        parameter.requires_grad_(parameter is first)
    config = TrainConfig(steps=2, warmup=1, checkpoint_every=1)
    train_loop(model, lambda _: Step(backward({"loss": (first**2).sum()})), config, folder / "out")


STATE = "out/state-00000002"


def _told(change: Callable[[dict], object]) -> Make:
    """A state that training left, saying something else of itself."""

    def make(folder: Path) -> None:
        _train(folder)
        file = folder / STATE / "state.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return make


def _holding(change: Callable[[dict], object]) -> Make:
    """A state that training left, with other tensors."""

    def make(folder: Path) -> None:
        _train(folder)
        (file,) = (folder / STATE).glob("*.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return make


def _with(name: str, content: Callable[[Path], bytes]) -> Make:
    """A state that training left, with a file of other bytes in it."""

    def make(folder: Path) -> None:
        _train(folder)
        (folder / STATE / name).write_bytes(content(folder))

    return make


class _Marks:
    def __init__(self, file: str):
        self.file = file

    def __reduce__(self) -> tuple:
        return open, (self.file, "w")


def _of_an_earlier_version(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/state.pt").write_bytes(pickle.dumps(_Marks(str(folder / "marks"))))


def _huge(folder: Path) -> None:
    """A terabyte of nothing."""
    _train(folder)
    with (folder / STATE / "more.safetensors").open("wb") as file:
        file.truncate(2**40)


def _promised(_: Path) -> bytes:
    """A header that promises a tensor of a terabyte."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    return len(header).to_bytes(8, "little") + header


def _pipe(name: str) -> Make:
    def make(folder: Path) -> None:
        _train(folder)
        (folder / STATE / name).unlink(missing_ok=True)
        os.mkfifo(folder / STATE / name)

    return make


def _link_inside(folder: Path) -> None:
    _train(folder)
    (folder / "precious").write_text("precious")
    (folder / STATE / "state.json").unlink()
    (folder / STATE / "state.json").symlink_to(folder / "precious")


def _output_link(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "precious").write_text("precious")
        (folder / "out" / name).symlink_to(folder / "precious")

    return make


def _train_beside(folder: Path) -> None:
    try:
        _train(folder)
    finally:
        assert (folder / "precious").read_text() == "precious"


def _first(tensors: dict) -> str:
    return next(name for name in sorted(tensors) if tensors[name].ndim)


def _larger(tensors: dict) -> None:
    tensors[_first(tensors)] = torch.zeros(len(tensors[_first(tensors)]) + 1)


def _of_whole_numbers(tensors: dict) -> None:
    tensors[_first(tensors)] = tensors[_first(tensors)].to(torch.int64)


def _broadcast(tensors: dict) -> None:
    tensors[_first(tensors)] = torch.zeros(1)


def _nested(_: Path) -> bytes:
    return b"[" * 500_000 + b"]" * 500_000


def _code(folder: Path) -> bytes:
    return pickle.dumps(_Marks(str(folder / "marks")))


TENSORS = "model-00001-of-00001.safetensors"

TRAINING: dict[str, tuple[Make, Callable, str]] = {
    "goes on": (_told(lambda told: told.update(step=1)), _train, WORKS),
    "of an earlier version": (_of_an_earlier_version, _train, "state.pt"),
    "code for tensors": (_with(TENSORS, _code), _train, "state-"),
    "code for what it says": (_with("state.json", _code), _train, "state.json"),
    "a terabyte": (_huge, _train, "state-"),
    "a terabyte promised": (_with(TENSORS, _promised), _train, "state-"),
    "no tensors": (_with(TENSORS, lambda _: b"PK\x03\x04" + bytes(1000)), _train, "state-"),
    "nested": (_with("state.json", _nested), _train, "state.json"),
    "a pipe for tensors": (_pipe("a.safetensors"), _train, "a.safetensors"),
    "a pipe for what it says": (_pipe("state.json"), _train, "state.json"),
    "another shape": (_holding(_larger), _train, "state-"),
    "a shape that fits by repeating": (_holding(_broadcast), _train, "state-"),
    "another dtype": (_holding(_of_whole_numbers), _train, "state-"),
    "a step beyond the last": (_told(lambda told: told.update(step=10**9)), _train, "state.json"),
    "a step before the first": (_told(lambda told: told.update(step=-(10**9))), _train, "state.json"),
    "a step that is text": (_told(lambda told: told.update(step="2")), _train, "state.json"),
    "a link in a state": (_link_inside, _train_beside, "state.json"),
    "a log that is a link": (_output_link("log.csv"), _train_beside, "log.csv"),
    "a state that is a link": (_output_link("state-00000002"), _train_beside, "state-00000002"),
    "a card that is a link": (_output_link("README.md"), _train_beside, "README.md"),
    "weights that are a link": (_output_link("model.safetensors"), _train_beside, "model.safetensors"),
}


# stores


PRODUCTS = [Product(f"{i}", f"a bag {i}") for i in range(4)]


def _open(folder: Path) -> None:
    store = open_store(folder / "store", load("mini"))
    len(store)
    store.search(Query("q", "bag", text=" that is red."), k=2)
    index(load("mini"), PRODUCTS, settings=Settings(progress=False, store=folder / "store"))


def _stored(change: Callable[[Path], object]) -> Make:
    """A store of four products, and then what is done to it."""

    def make(folder: Path) -> None:
        open_store(folder / "store", load("mini")).add(PRODUCTS, QUIET)
        change(folder / "store")

    return make


def _table(folder: Path):
    import lancedb

    database = lancedb.connect(str(folder))
    name = next(name for name in database.list_tables().tables if name != "coral_lab")
    return database, database.open_table(name)


def _vectors(values: Callable[[int], list], bad: str = "error") -> Make:
    """Other vectors in place of those that are there."""

    def change(folder: Path) -> None:
        import pyarrow as pa

        database, table = _table(folder)
        rows = table.to_arrow()
        at = rows.schema.get_field_index("vector")
        field = rows.schema.field(at)
        own = pa.array(values(field.type.list_size), field.type)
        settings = {"on_bad_vectors": bad, "fill_value": float("nan")}
        database.create_table(table.name, rows.set_column(at, field, own), mode="overwrite", **settings)

    return _stored(change)


def _version(folder: Path) -> None:
    import lancedb

    lancedb.connect(str(folder)).create_table("coral_lab", pd.DataFrame({"version": [99]}), mode="overwrite")


def _file(folder: Path) -> Path:
    return next(file for file in folder.glob("*.lance/data/*") if file.parts[-3] != "coral_lab.lance")


def _moved_out(folder: Path) -> None:
    """The data of a table, moved out of the store, and a link to them."""
    data = _file(folder).parent
    data.rename(folder.parent / "elsewhere")
    data.symlink_to(folder.parent / "elsewhere")


def _damaged(folder: Path) -> None:
    _file(folder).write_bytes(b"\xff" * _file(folder).stat().st_size)


def _no_manifest(folder: Path) -> None:
    for file in folder.glob("*.lance/_versions/*"):
        file.write_bytes(bytes(1000))


def _lock_elsewhere(folder: Path) -> None:
    (folder / ".coral_lab.lock").unlink(missing_ok=True)
    (folder / ".coral_lab.lock").symlink_to(folder.parent / "marks")


STORES: dict[str, tuple[Make, str]] = {
    "as it was": (_stored(lambda _: None), WORKS),
    "vectors of any length": (_vectors(lambda dim: [[7.0] * dim] * 4), "norm 7"),
    "vectors of no number": (_vectors(lambda dim: [[float("nan")] * dim] * 4, "fill"), "store"),
    "no vectors": (_vectors(lambda dim: [None] * 4, "null"), "store"),
    "of another version": (_stored(_version), "version 99"),
    "data elsewhere": (_stored(_moved_out), "store"),
    "damaged": (_stored(_damaged), "store"),
    "no manifest": (_stored(_no_manifest), "store"),
    "a lock elsewhere": (_stored(_lock_elsewhere), "lock"),
    "something else": (
        lambda folder: [(folder / "store").mkdir(), (folder / "store/a").touch()],
        "something else",
    ),
}


# results and reports


ODD = ["a # b", "007", "NA", "=1+1", "a\nb", 'a"b', "1e5", "null", " ", "@SUM(A1)"]


def _results(folder: Path) -> None:
    frame = pd.DataFrame({"arm": ODD, "seed": range(len(ODD)), "R@1": np.linspace(0, 1, len(ODD))})
    write_results(folder / "a.csv", frame, "coral-lab experiment '#'\nforged,1,1")
    again = read_results(folder / "a.csv")
    assert again["arm"].tolist() == ODD
    assert again["seed"].tolist() == list(range(len(ODD)))


def _linked_result(folder: Path) -> None:
    (folder / "precious").write_text("precious")
    for name in ("a.csv", "a.part", "a.tmp"):
        (folder / name).symlink_to(folder / "precious")


def _write_result(folder: Path) -> None:
    try:
        write_results(folder / "a.csv", pd.DataFrame({"arm": ["a"]}), "command")
    finally:
        assert (folder / "precious").read_text() == "precious"


EVIL = (
    '"><script src="http://evil.invalid/a.js"></script><img src=http://evil.invalid/a.png onerror=alert(1)>'
)


def _report(folder: Path) -> None:
    """A report whose every text is markup: none of it is left as markup."""
    products = [
        Product(f"{EVIL}{i}", EVIL, class_name=EVIL, language=EVIL, attributes={EVIL: EVIL}) for i in "abcd"
    ]
    queries = [
        Query(f"{EVIL}{i}", EVIL, (Condition(EVIL, products[i], EVIL),), " .", (products[i + 1].id,))
        for i in range(3)
    ]
    pool = index(load("mini"), products, settings=QUIET)
    report_page._findings = lambda: ""  # of the figures that ship with the package
    report_page.report(pool, Dataset(EVIL, products, queries), folder / "report.html", sensitivity=0)
    page = (folder / "report.html").read_text(encoding="utf-8")
    body = page[: page.rindex("<script")] if page.count("<script") else page
    assert "<script src" not in page
    assert "<img src=http" not in body
    assert "Content-Security-Policy" in page


def _nothing(folder: Path) -> None:
    pass


CASES = {f"training: {name}": Case(*how) for name, how in TRAINING.items()}
CASES |= {f"store: {name}": Case(make, _open, says) for name, (make, says) in STORES.items()}
CASES |= {
    "results: odd names": Case(_nothing, _results, WORKS),
    "results: a link": Case(_linked_result, _write_result, "a.csv"),
    "report: markup everywhere": Case(_nothing, _report, WORKS),
}
