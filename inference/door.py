"""The door of the page: a request is refused on its first bytes, before it is kept anywhere.

Flask is told of a request when all of it is here. So waitress asks this door while it reads: who
sends it, from which page, how much, and how slowly.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import resource
import socket
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from utils.errors import UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ASKED = ("Host", "Origin", "Sec-Fetch-Site")  # headers that tell who sends a request
HOST = re.compile(r"([\w.-]{1,253}|\[[\da-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {  # of every answer
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
BUSY = "Others are being answered, and no more can wait: please try again in a minute."
IDLE = 20  # seconds that a connection may be silent, and that the headers of a request may take
UPLOAD = 600  # seconds that a whole request may take
LEAST = 8_000  # bytes of a body a second, after the first IDLE seconds: 64 kbit/s
CONNECTIONS = 500
COMING = 100  # bodies that may be on their way at once; the other connections are for the page
BODIES = 16  # of full size that may be on this machine at once
THREADS = 8  # of the server; most of the page's answers take milliseconds


@dataclass
class Refusal:
    """Why a request goes no further; has what waitress expects of an error."""

    code: int
    message: str

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        headers = {"Content-Type": "text/plain; charset=utf-8", **HEADERS}
        status = f"{self.code} {HTTPStatus(self.code).phrase}"
        return status, list(headers.items()), self.message.encode()


@dataclass
class Door:
    """Who may come in, and with how much."""

    names: frozenset[str]  # that the page answers to
    network: bool  # this machine's addresses, too
    megabytes: float
    reading: weakref.WeakSet = field(default_factory=weakref.WeakSet)  # requests that are here

    @property
    def most_bytes(self) -> int:
        """Of a body: the clip, and some room for the form around it."""
        return int((self.megabytes + 1) * 1e6)

    def too_large(self) -> Refusal:
        return Refusal(413, f"The clip is over the limit of {self.megabytes:g} MB.")

    def stranger(self, method: str, host: str, origin: str, site: str) -> Refusal | None:
        """By the headers of ASKED, "" where one is absent: no other page may use this one.

        Browsers tell the page that sends a POST in Origin; Sec-Fetch-Site comes over https and on
        this machine alone. A name of another page's owner could be made to lead here (DNS).
        """
        name = name_of(host)
        if name not in self.names and not (self.network and is_own_address(name)):
            remedy = f" If it leads here, start app.py with --trust {name}." if name else ""
            return Refusal(400, f"This page does not answer to this name (Host).{remedy}")
        foreign = bool(origin) and origin.partition("://")[2].lower() != host.lower()
        if method not in ("GET", "HEAD") and (foreign or site not in ("", "same-origin")):
            return Refusal(403, "Open this page itself to use it.")
        return None

    def refuse_headers(self, request: Any) -> Refusal | None:
        """Asked once, between the headers and the body."""
        told = (request.headers.get(name.upper().replace("-", "_"), "") for name in ASKED)
        refusal = self.stranger(request.command, *told)
        if not refusal and request.chunked:
            refusal = Refusal(411, "Say how long the body is (Content-Length).")
        if not refusal and request.content_length > self.most_bytes:
            refusal = self.too_large()
        if not refusal and sum(map(is_coming, self.reading)) > COMING:
            refusal = Refusal(503, BUSY)
        return refusal

    def refuse_more(self, request: Any) -> Refusal | None:
        """Asked whenever bytes have come of a request that is not complete."""
        took = time.monotonic() - request.began
        has_body = request.headers_finished
        drips = has_body and request.body_bytes_received < LEAST * (took - IDLE)
        if drips or took > (UPLOAD if has_body else IDLE):
            return Refusal(408, "The request took too long.")
        if sum(each.body_bytes_received for each in self.reading) > BODIES * self.most_bytes:
            return Refusal(503, BUSY)
        return None


def is_coming(request: Any) -> bool:
    """Whether its headers are here, and its body not yet all."""
    return request.headers_finished and not request.completed


def name_of(host: str) -> str:
    """The name of a Host header, without port and brackets; "" for what is no name."""
    match = HOST.fullmatch(host)
    return match[1].strip("[]").lower() if match else ""


def is_own_address(name: str) -> bool:
    """Whether this machine has that address: no other can be bound. Nothing is sent."""
    try:
        address = ipaddress.ip_address(name)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((name, 0))
        return not (address.is_multicast or address.is_unspecified)
    except (ValueError, OSError):
        return False


def open_door(host: str, trusted: Iterable[str], megabytes: float) -> Door:
    """The door of a page at `host`; beyond this machine it answers to the machine's names, too."""
    names = {*LOOPBACK, host.lower()}
    for name in trusted:
        names.add(name_of(f"[{name}]" if name.count(":") > 1 and name[0] != "[" else name))
        if "" in names:
            raise UsageError(f"--trust {name}: expected a name or an address, such as my.host.org")
    network = host not in LOOPBACK
    if network:
        hostname = socket.gethostname().lower()
        names |= {hostname, hostname.partition(".")[0], hostname.partition(".")[0] + ".local"}
    return Door(frozenset(names), network, megabytes)


def create_server(page: Any, door: Door, host: str, port: int) -> Any:
    """A waitress server that asks the door; UsageError where it cannot be at that place."""
    import waitress

    # it warns of each request that waits for a moment
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    sockets: dict[int, Any] = {}
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        server = waitress.create_server(
            page,
            map=sockets,
            host=host,
            port=port,
            ident=None,
            threads=THREADS,
            max_request_body_size=door.most_bytes + 1,  # it refuses what is as long as this
            max_request_header_size=1 << 15,
            channel_timeout=IDLE,
            cleanup_interval=IDLE // 4,
            # each may hold three: itself, the body it sends, the answer it reads
            connection_limit=CONNECTIONS if files < 0 else min(CONNECTIONS, max(files // 3, 20)),
            log_socket_errors=False,  # visitors may leave
            asyncore_use_poll=True,  # select knows no more than 1024 files
        )
    except OSError as error:
        raise UsageError(f"port {port} of {host}: {error.strerror}; try --port") from error
    except ValueError as error:
        raise UsageError(f"--host {host}: this machine has no such name or address") from error
    for each in sockets.values():
        each.channel_class = channel_of(door)
    return server


def channel_of(door: Door) -> type:
    """The class of waitress for a connection, with the door in front of it."""
    from waitress.channel import HTTPChannel
    from waitress.parser import HTTPRequestParser, ParsingError

    class Parser(HTTPRequestParser):
        def __init__(self, settings: Any):
            super().__init__(settings)
            self.began = time.monotonic()
            door.reading.add(self)

        def parse_header(self, header_plus: bytes) -> None:
            try:
                super().parse_header(header_plus)
            except ValueError as error:  # a length of more digits than Python reads
                raise ParsingError("Content-Length is invalid") from error

        def received(self, data: bytes) -> int:
            headers_were_here = self.headers_finished
            used = super().received(data)
            refusal = self.refusal(headers_were_here)
            if refusal:
                self.error, self.completed = refusal, True
                self.expect_continue = False  # else waitress asks for the body all the same
            return used

        def refusal(self, headers_were_here: bool) -> Refusal | None:
            if self.empty:
                return None
            error: Any = self.error  # of waitress
            if error and error.code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                return door.too_large()
            if error:
                return Refusal(error.code, f"{error.reason}: {error.body}")
            refusal = None
            if self.headers_finished and not headers_were_here:
                refusal = door.refuse_headers(self)
            return refusal if refusal or self.completed else door.refuse_more(self)

    class Channel(HTTPChannel):
        parser_class = Parser

        def __init__(self, server: Any, *args: Any, map: dict[int, Any]):
            super().__init__(server, *args, map=map)
            if len(map) >= server.adj.connection_limit:  # else the next would have to wait
                waiting = [each for each in map.values() if isinstance(each, Channel)]
                waiting = [each for each in waiting if each is not self and each.is_idle()]
                if waiting:
                    min(waiting, key=lambda each: each.creation_time).handle_close()

        def is_idle(self) -> bool:
            """Whether nobody asks anything here yet: the headers of a request come at once."""
            has_body = self.request is not None and self.request.headers_finished
            return not (self.requests or has_body or self.total_outbufs_len)

        def service(self) -> None:
            """Answer the first of its requests; the connection ends where more are sent before it
            is answered. No browser does that, and a thread waits for each answer to be read."""
            with self.requests_lock:
                first, *others = self.requests
                if others:
                    first.headers["CONNECTION"] = "close"
                for each in others:
                    each.close()
                del self.requests[1:]
            super().service()

        def write_soon(self, data: Any) -> int:
            if not self.total_outbufs_len:
                self.last_activity = time.time()  # it has IDLE seconds from here on
            return super().write_soon(data)

        def writable(self) -> bool:
            """Asked about once a second: who reads nothing of an answer for too long is not waited
            for. Waitress would wait until something can be sent to say so."""
            if self.total_outbufs_len and time.time() - self.last_activity > IDLE:
                self.will_close = True
            if self.will_close:
                self.handle_close()
                return False
            return super().writable()

    return Channel
