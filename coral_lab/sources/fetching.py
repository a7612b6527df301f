"""Pictures at addresses that a dataset names: fetched only if that is asked for, from public hosts, in
bounded time and size.
"""

import asyncio
import ipaddress
import socket
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING

from coral_lab.errors import ItemError, require
from coral_lab.sources.border import brief

if TYPE_CHECKING:
    import httpx
else:
    httpx = require("httpx", "data")

LONGEST = 20 * 2**20  # bytes of a picture
PATIENCE = 30.0  # seconds for all of it, by the clock
REDIRECTS = 3
AGENT = "coral_lab (a research workbench; fetches pictures of a product dataset for its user)"

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedError(OSError):
    """An answer that is no success: its `status`, and what it says of when to come again (`Retry-After`)."""

    def __init__(self, status: int, reason: str, again: str):
        super().__init__(f"the answer is {status} {reason}")
        self.status, self.again = status, again


def fetch(address: str, item: str) -> bytes:
    """The bytes at an http(s) address, at most 20 MB within 30 seconds, after at most 3 redirects.

    Straight from the host, through no proxy. Raises ItemError, also where an address or a redirect leads to a
    private, local or reserved network: each host's name is looked up once, and the connection goes to the
    address that was checked.
    """
    found: Future[bytes] = Future()
    # A thread of its own: a notebook's has an event loop already, and a name that is never resolved is left.
    Thread(target=_run, args=(address, item, found), daemon=True).start()
    try:
        return found.result(PATIENCE + 1)
    except ItemError:
        raise
    except TimeoutError:
        problem = f"picture {brief(address)} takes more than {PATIENCE:g} seconds; download it another way"
        raise ItemError(item, problem) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise ItemError(item, f"picture {brief(address)} cannot be fetched ({error}); check it") from error


def _run(address: str, item: str, found: Future) -> None:
    try:
        found.set_result(asyncio.run(_in_time(address, item)))
    except BaseException as error:  # for the thread that waits
        found.set_exception(error)


async def _in_time(address: str, item: str) -> bytes:
    return await asyncio.wait_for(_fetch(httpx.URL(address), item), PATIENCE)


async def _fetch(url: httpx.URL, item: str) -> bytes:
    said = {"accept-encoding": "identity", "user-agent": AGENT}  # what is packed may have any size
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE, headers=said) as client:
        for _ in range(REDIRECTS + 1):
            answer = await _answer(client, url, item)
            try:
                if not answer.has_redirect_location:
                    return await _content(answer, url, item)
                url = url.join(answer.headers["location"])
            finally:
                await answer.aclose()
    raise ItemError(
        item, f"picture {brief(str(url))} comes after {REDIRECTS} redirects; give its own address"
    )


async def _answer(client: httpx.AsyncClient, url: httpx.URL, item: str) -> httpx.Response:
    host = url.raw_host.decode("ascii")
    if url.scheme not in ("http", "https") or not host:
        raise ItemError(item, f"picture leads to {brief(str(url))}; only http and https are followed")
    found = await asyncio.get_running_loop().getaddrinfo(
        host, url.port or {"http": 80, "https": 443}[url.scheme], type=socket.SOCK_STREAM
    )
    places = list(dict.fromkeys(str(own[4][0]) for own in found))
    if hidden := [place for place in places if not is_public(place)]:
        problem = f"picture leads to {brief(str(url))}, which is {hidden[0]}, no public address; download it"
        raise ItemError(item, problem)
    for place in places:
        there = url.copy_with(host=place)
        asked = client.build_request(
            "GET", there, headers={"host": url.netloc.decode("ascii")}, extensions={"sni_hostname": host}
        )
        try:
            return await client.send(asked, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if place == places[-1]:
                raise
    raise OSError(f"{host} has no address")


def is_public(place: str) -> bool:
    """Whether an IP address is one of the internet's, and not of the machine's own networks."""
    own = ipaddress.ip_address(place)
    if isinstance(own, ipaddress.IPv6Address):
        inner = own.ipv4_mapped or own.sixtofour
        if own in _NAT64:
            inner = ipaddress.IPv4Address(int(own) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if own.is_site_local:
            return False
    return own.is_global and not (own.is_multicast or own.is_reserved or own.is_unspecified)


async def _content(answer: httpx.Response, url: httpx.URL, item: str) -> bytes:
    if not answer.is_success:
        again = answer.headers.get("retry-after", "")
        raise RefusedError(answer.status_code, answer.reason_phrase, again)
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise OSError("it comes packed, and plain was asked for")
    content = bytearray()
    async for piece in answer.aiter_raw():
        content += piece
        if len(content) > LONGEST:
            raise ItemError(item, f"picture {brief(str(url))} has more than {LONGEST:,} bytes; shrink it")
    return bytes(content)
