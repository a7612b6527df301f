"""Pictures at addresses, fetched once and kept in a folder: politely, and gone on with after a kill."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from coral_lab.errors import ItemError
from coral_lab.images import digest, open_image
from coral_lab.query import Dataset, Product, Query, name_of
from coral_lab.sources.border import brief
from coral_lab.sources.fetching import RefusedError, fetch
from coral_lab.sources.files import check_can_be_written, fresh_file, output_folder
from coral_lab.sources.tables import RemotePicture

AT_ONCE = 4
"""Pictures."""

OF_A_HOST = 2
"""Pictures at once from one host."""

TRIES = 4
"""Of a picture whose host is busy (429, 503)."""

FIRST_PAUSE = 1.0
"""Seconds that a busy host is left alone where it does not say how long; twice as many each further time."""

LONGEST_PAUSE = 120.0
"""Seconds that are waited; a host that wants more is left, and its pictures are listed."""

BUSY = (429, 503)


def fetch_pictures(dataset: Dataset, folder: str | Path, *, progress: bool = True) -> Dataset:
    """The dataset with its pictures at addresses in files of `folder`; what is there is not fetched again.

    For `cl.dataset(table, remote_images=True)`. At most 4 at once and 2 from one host; one that is busy is
    left alone as long as it asks (`Retry-After`), up to 2 minutes. A picture is written whole or not at all,
    under a name made of its address: killed at any moment, the next call goes on. Products whose picture
    cannot be had are left out and listed in `skipped`, each with its reason; the next call tries them again.
    Raises ValueError for a folder that cannot be written.
    """
    check_can_be_written(Path(folder).expanduser(), "folder", is_folder=True)
    home = output_folder(Path(folder).expanduser())
    wanted = {own.image.address: own for own in dataset.products if isinstance(own.image, RemotePicture)}
    kept = {file.stem: file for file in home.iterdir() if _counts(file)}
    files = {a: kept[digest([a])] for a in wanted if digest([a]) in kept}
    wrong: dict[str, ItemError] = {}
    left = {address: product for address, product in wanted.items() if address not in files}
    shown = {"desc": "pictures", "unit": "picture", "disable": not progress}
    with tqdm(total=len(wanted), initial=len(files), **shown) as bar:
        for address, found in _fetched(left, home):
            if isinstance(found, ItemError):
                wrong[address] = found
            else:
                files[address] = found
            bar.update()
    return _pointing(dataset, files, wrong)


def _counts(file: Path) -> bool:
    """Whether a file of the folder is a picture that was fetched; those half written begin with a dot."""
    return not file.name.startswith(".") and not file.is_symlink() and file.is_file()


def _fetched(left: Mapping[str, Product], home: Path) -> Iterator[tuple[str, Path | ItemError]]:
    """Each address with its file, or why there is none."""
    stopped = threading.Event()
    hosts = {host: _Host(stopped) for host in {_host_of(address) for address in left}}
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        asked = {
            pool.submit(_kept, address, product, hosts[_host_of(address)], home): address
            for address, product in left.items()
        }
        for done in as_completed(asked):
            yield asked[done], done.result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)  # those in flight come to their end


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).netloc.rpartition("@")[2].lower()
    except ValueError:  # fetching it says what is wrong
        return ""


def _kept(address: str, product: Product, host: "_Host", home: Path) -> Path | ItemError:
    name = name_of(product)
    try:
        content = _patiently(address, name, host)
        kind = open_image(content, name) and _suffix(content)
    except ItemError as error:
        return ItemError(name, error.problem)
    file = home / f"{digest([address])}{kind}"
    with fresh_file(file) as written:
        written.write(content)
    return file


def _suffix(content: bytes) -> str:
    starts = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
    return next((own for start, own in starts.items() if content.startswith(start)), ".tif")


@dataclass
class _Host:
    """Whose turn it is with a host, and from when it may be asked again; `stopped` ends all waiting."""

    stopped: threading.Event
    places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(OF_A_HOST))
    free_at: float = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self.places:
            while (wait := self.free_at - time.monotonic()) > 0:
                if self.stopped.wait(wait):
                    raise ItemError("picture", "was not fetched: somebody stopped it; call again")
            yield


def _patiently(address: str, name: str, host: _Host) -> bytes:
    for attempt in range(TRIES):
        with host.turn():
            try:
                return fetch(address, name)
            except ItemError as error:
                refused = error.__cause__
                if not isinstance(refused, RefusedError) or refused.status not in BUSY:
                    raise
                pause = _pause(refused.again, attempt)
                if attempt == TRIES - 1 or pause > LONGEST_PAUSE:
                    problem = f"picture {brief(address)} is not given: {refused}, asked {attempt + 1} times"
                    raise ItemError(name, f"{problem}; come again later") from None
                host.free_at = max(host.free_at, time.monotonic() + pause)
    raise AssertionError("the last attempt returns or raises")


def _pause(again: str, attempt: int) -> float:
    """Seconds until a busy host may be asked again: as it says, in seconds or by a date."""
    try:
        if again.strip().isascii() and again.strip().isdigit():
            return float(again[:9])
        return max(0.0, (parsedate_to_datetime(again) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # it does not say
        return FIRST_PAUSE * 2**attempt


def _pointing(dataset: Dataset, files: Mapping[str, Path], wrong: Mapping[str, ItemError]) -> Dataset:
    """The dataset with files in place of addresses, in its queries too."""
    skipped: list[ItemError] = []

    def here(products: Iterable[Product]) -> Iterator[Product]:
        for product in products:
            address = product.image.address if isinstance(product.image, RemotePicture) else ""
            if address in wrong:
                skipped.append(ItemError(name_of(product), wrong[address].problem))
            else:
                yield replace(product, image=files[address]) if address else product

    products = tuple(here(dataset.products))
    known = {product.id: product for product in products}

    def asked(query: Query) -> Query:
        own = tuple(replace(c, product=known.get(c.product.id, c.product)) for c in query.conditions)
        return replace(query, conditions=own)

    queries = tuple(map(asked, dataset.queries))
    return replace(dataset, products=products, queries=queries, skipped=(*dataset.skipped, *skipped))
