"""Stores, states of training, results and reports that strangers might send."""

import io
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from coral_lab import Condition, Dataset, Product, Query, Settings, index, load, open_store
from coral_lab.replication import report_page
from coral_lab.replication.cells import read_results, write_results
from coral_lab.training.loop import Step, TrainConfig, backward, train_loop
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


def _after(change: Callable[[dict], object]) -> Make:
    """A state that training left, changed."""

    def make(folder: Path) -> None:
        _train(folder)
        state = torch.load(folder / "out/state.pt")
        change(state)
        torch.save(state, folder / "out/state.pt")

    return make


class _Marks:
    def __init__(self, file: str):
        self.file = file

    def __reduce__(self) -> tuple:
        return open, (self.file, "w")


def _state(content: Callable[[Path], bytes]) -> Make:
    def make(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out/state.pt").write_bytes(content(folder))

    return make


def _inflating(_: Path) -> bytes:
    """A state of 4 MB that inflates to 4 GB."""
    out, whole = io.BytesIO(), io.BytesIO()
    torch.save({"step": 1, "a": torch.zeros(4)}, whole)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(out, "w") as to:
        for name in source.namelist():
            if not name.endswith("data/0"):
                to.writestr(name, source.read(name))
                continue
            part = zipfile.ZipInfo(name)
            part.compress_type, part.header_offset = zipfile.ZIP_DEFLATED, to.fp.tell()
            part.CRC, part.file_size, part.compress_size = 0, 2**32, 256 * len(block) + 2
            to.fp.write(part.FileHeader(zip64=True) + block * 256 + b"\3\0")
            to.filelist.append(part)
            to.start_dir = to.fp.tell()
    return out.getvalue()


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


def _larger(state: dict) -> None:
    name, own = next(iter(state["parameters"].items()))
    state["parameters"][name] = torch.zeros(len(own) + 1)


def _of_whole_numbers(state: dict) -> None:
    name, own = next(iter(state["parameters"].items()))
    state["parameters"][name] = own.to(torch.int64)


def _broadcast(state: dict) -> None:
    name, _ = next(iter(state["parameters"].items()))
    state["parameters"][name] = torch.zeros(1)


TRAINING: dict[str, tuple[Make, Callable, str]] = {
    "goes on": (_after(lambda state: state.update(step=2)), _train, WORKS),
    "code": (_state(lambda folder: pickle.dumps(_Marks(str(folder / "marks")))), _train, "state.pt"),
    "inflates": (_state(_inflating), _train, "state.pt"),
    "no state": (_state(lambda _: b"PK\x03\x04" + bytes(1000)), _train, "state.pt"),
    "another shape": (_after(_larger), _train, "state.pt"),
    "a shape that fits by repeating": (_after(_broadcast), _train, "state.pt"),
    "another dtype": (_after(_of_whole_numbers), _train, "state.pt"),
    "a step beyond the last": (_after(lambda state: state.update(step=10**9)), _train, "state.pt"),
    "a step before the first": (_after(lambda state: state.update(step=-(10**9))), _train, "state.pt"),
    "a step that is text": (_after(lambda state: state.update(step="2")), _train, "state.pt"),
    "a log that is a link": (_output_link("log.csv"), _train_beside, "log.csv"),
    "a state that is a link": (_output_link("state.pt"), _train_beside, "state.pt"),
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
