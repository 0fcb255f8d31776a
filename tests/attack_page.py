"""Hostile requests to a running app.py, for tests/attack.py: each is refused in a plain answer."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
from attack import Tally, left_in, told_wrongly
from conftest import ROOT, make_place, portrait
from test_app import FOREIGN, STRANGERS, check_headers, get_about, start_app

LOST = "400 404"  # codes that an answer may have
LENGTHY = "POST /answer HTTP/1.1"
UP = "../../../../../../etc/passwd"
SCRIPT = "<script>alert(1)</script>"
SILENCE = "neither an answer nor an end"  # in place of an answer
Request = tuple[str, bytes, str]  # its name, its bytes, the codes of its answer; "": we hang up

PATHS = {
    LOST: [
        *("/" + UP, f"/page.js/{UP}", f"/example/{UP}", f"/thumbnail/{UP}", "//etc/passwd"),
        *(f"/{folder}..%2f..%2f..%2fetc%2fpasswd" for folder in ("", "example/", "thumbnail/")),
        *("/%2e%2e/%2e%2e/etc/passwd", "/..%252f..%252fetc/passwd", "/..\\..\\etc\\passwd"),
        *("/%c0%ae%c0%ae/etc/passwd", "/example//etc/passwd", "/example/%2fetc%2fpasswd"),
        *("/app.py", "/./app.py", "/page.html", "/page.js/", "/page.js%00.css", "/.git/config"),
        *("/.env", "/static/page.js", "/console", "/inference/page.py", "/about/..", "/about;x"),
        *("/example/", "/example/..", "/example/anna.npz", "/example/..%2fanna.npz"),
        *("/example/anna.mp4%00", "/example/anna.mp4/", "/example/ANNA.MP4", "/example/%00"),
        *("/thumbnail/", "/thumbnail/%00", "/thumbnail/" + "%f0" * 300, "/" + "a/" * 5000),
        *(f"/{SCRIPT}", "/%3Cscript%3Ealert(1)", "/about%0d%0aX:%20y", "/\xe9", "/%ff", "/\x01"),
        *("file:///etc/passwd", "*", "/cancel", "/progress/", "/progress/a/b"),
    ],
    "200": ["/?__debugger__=yes&cmd=resource&f=style.css", "/about?x=" + "A" * 9000, "/about#x"],
    "200 404": ["/progress/..%2f..%2fetc%2fpasswd", f"/progress/{SCRIPT[:8]}", "/progress/%00"],
    "200 400 404": ["http://evil.com/about", "http:///about", "about", "", "///about"],
}
MODELS = ["", UP, "*", "any.pth", "x" * 5000, "a\0b", "[]", "\u202e", SCRIPT, "{0.__class__}"]
EXAMPLES = ["../anna.npz", UP, "anna.npz", "ANNA.MP4", "anna.mp4\0", "..", "http://localhost/x.mp4"]
EXAMPLES += ["file:///etc/passwd", SCRIPT]
NAMES = [  # of uploads whose content is nothing
    *(f"{SCRIPT}.mp4", "<img src=x onerror=alert(1)>.wav", '"><b>.mp4', UP + ".mp4", "/etc/x.mp4"),
    *("C:\\Windows\\x.mp4", "..mp4", ".mp4", "....mp4", "-rf.mp4", "\ud55c" * 300 + ".mp4"),
    *("x" * 5000 + ".mp4", "con.mp4", "nul.wav", "a\tb.mp4", "a\0b.mp4", "a\r\nX: y.mp4"),
    *("$(id)`id`;'.mp4", "%s%n.mp4", "x.mp4/", "x.mp4.exe", "x.php", "x.svg", "x.mp4 ", "x.m3u8"),
    *(
        "\u202egpj.mp4",
        "{0.__class__}.mp4",
        "$\\frac{$.mp4",
        "concat:a.mp4",
        "http://evil.com/x.ts",
    ),
    *(".stage.mp4", ".cancelled.mp4", "x.sdp", "\udcff\udcfe.mp4", ".", "..", "/", " "),
]
METHODS = ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 1000]
METHODS += ["POST", "G\xc9T", "GET\t", "-"]
EDGE = "multipart/form-data; boundary="
FIELD = b'--e\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FILE = b'--e\r\nContent-Disposition: form-data; name="clip"; filename="%s"\r\n\r\n%s\r\n'
WHOLE = FIELD % (b"model", b"none") + b"--e--\r\n"
BODIES = {  # name -> (Content-Type, body)
    "no boundary": ("multipart/form-data", WHOLE),
    "an empty boundary": (EDGE, WHOLE),
    "another boundary": (EDGE + "f", WHOLE),
    "a boundary of 10,000": (EDGE + "e" * 10_000, b"--" + b"e" * 10_000 + WHOLE[3:]),
    "a boundary that is odd": (EDGE + '"\\"\xff', WHOLE),
    "no end": (EDGE + "e", WHOLE[:-5]),
    "an edge alone": (EDGE + "e", b"--e"),
    "edges alone": (EDGE + "e", b"--e\r\n" * 50_000),
    "no body": (EDGE + "e", b""),
    "zeros": (EDGE + "e", bytes(100_000)),
    "a part without headers": (EDGE + "e", b"--e\r\n\r\nx\r\n--e--\r\n"),
    "a part without a name": (EDGE + "e", WHOLE.replace(b'; name="model"', b"")),
    "a part without end of headers": (EDGE + "e", b"--e\r\nContent-Disposition: form-data"),
    "a part with large headers": (EDGE + "e", b"--e\r\nX: " + b"x" * 900_000 + WHOLE),
    "a part with many headers": (EDGE + "e", b"--e\r\n" + b"X: y\r\n" * 50_000 + WHOLE[5:]),
    "20,000 fields": (EDGE + "e", FIELD % (b"x", b"y") * 20_000 + WHOLE),
    "2,000 files": (EDGE + "e", FILE % (b"x.mp4", b"y") * 2_000 + WHOLE),
    "two clips": (EDGE + "e", FILE % (b"x.mp4", b"y") * 2 + FIELD % (b"model", b"{model}") + WHOLE),
    "two models": (EDGE + "e", FIELD % (b"model", b"x") + FIELD % (b"model", b"{model}") + WHOLE),
    "a form within a form": (EDGE + "e", FIELD % (b"model", WHOLE) + WHOLE),
    "a clip as a field": (EDGE + "e", FIELD % (b"clip", b"x" * 9000) + WHOLE),
    "an unknown encoding": (EDGE + "e; charset=utf-7", WHOLE),
    "base64": (
        EDGE + "e",
        WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"),
    ),
    "json": ("application/json", b'{"model": "{model}"}'),
    "json without end": ("application/json", b"[" * 100_000),
    "xml": ("text/xml", b'<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]><x>&y;</x>'),
    "urlencoded": ("application/x-www-form-urlencoded", b"model=" + b"%ff" * 100_000),
    "100,000 values": ("application/x-www-form-urlencoded", b"a=b&" * 100_000),
    "no type": ("", WHOLE),
    "an odd type": ("\xff/;=;,", WHOLE),
    "a type without end": ("multipart/form-data; " + "a=b; " * 5000, WHOLE),
}
LENGTHS = ["-1", "+5", "0x10", "1e3", "5, 5", "5 5", " ", "", "x", "\xb2", "5\t6", "1_000", "5.0"]
LARGE = ["9" * 19, "9" * 5000, "3000000", "1000000000000"]  # over the limit
CHUNKS = {
    "one": b"5\r\nhello\r\n0\r\n\r\n",
    "no end": b"5\r\nhello\r\n",
    "a length without end": b"f" * 9000,
    "a negative one": b"-5\r\nhello\r\n0\r\n\r\n",
    "no number": b"z\r\nhello\r\n0\r\n\r\n",
    "an extension": b"5;" + b"x" * 9000 + b"\r\nhello\r\n0\r\n\r\n",
    "a huge one": b"ffffffffffffffff\r\n",
}
FRAMES = {  # headers that say how long a body is -> codes
    "Transfer-Encoding: gzip": "501",
    "Transfer-Encoding: chunked, gzip": "501",
    "Transfer-Encoding: xchunked": "501",
    "Transfer-Encoding: \x0bchunked": "400 501",
    "Transfer-Encoding : chunked": "400",
    "Transfer-Encoding: identity": "501",
    "Content-Length: 5\r\nContent-Length: 6": "400",
    "Content-Length: 5\r\nTransfer-Encoding: chunked": "400 411",
}
HEADERS = {  # -> codes
    "X: " + "x" * 40_000: "431",
    "X: y\r\n" * 9_000 + "Z: z": "431",
    "no colon": "400",
    ": no name": "400",
    "X y: z": "400",
    "X: a\0b": "200 400",
    "X: a\nY: b": "400",
    "X: a\r Y: b": "400",
    " folded: x": "200 400",
    "X: y\r\n folded": "200 400",
    "X_Y: z": "200",
    "\xff: x": "400",
    "Range: bytes=0-0": "200",
    "Range: bytes=" + "0-1," * 1000: "200",
    "Range: bytes=9-1": "200",
    "If-Modified-Since: \xff": "200",
    "If-None-Match: " + '"x",' * 1000: "200",
    "Cookie: " + "a=b; " * 5000: "200",
    "Accept: \xff;q=\xff": "200",
    "Accept-Language: " + "x-" * 5000: "200",
    "Authorization: Basic ////": "200",
    "X-Forwarded-Host: evil.com": "200",
    "X-Forwarded-For: 127.0.0.1": "200",
    "X-Original-URL: /example/x": "200",
    "X-HTTP-Method-Override: PUT": "200",
    "Upgrade: websocket\r\nConnection: upgrade": "400",
    "Expect: nothing": "200",
    "Host: localhost\r\nHost: evil.com": "400",
    "Host:": "400",
    "Host: \xff": "400",
    "Host: localhost:99999999": "400",
    "Host: " + "x" * 9000: "400",
    "Proxy: http://evil.com": "200",
}
LINES = {  # what is no request at all -> codes
    b"\r\n\r\n\r\n": "",
    b"GET\r\n\r\n": "400",
    b"GET /about\r\nHost: localhost\r\n\r\n": "200 400",
    b"GET /about HTTP/9.9\r\nHost: localhost\r\n\r\n": "200 400 505",
    b"GET /about HTTP/1.1\r\n\r\n": "400",
    b"GET /about HTTP/1.0\nHost: localhost\n\n": "",
    b"GET  /about  HTTP/1.0\r\nHost: localhost\r\n\r\n": "200 400",
    b"GET /a b HTTP/1.0\r\nHost: localhost\r\n\r\n": "400 404",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "400",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500): "",
    bytes(1000) + b"\r\n\r\n": "400",
    bytes(range(256)) + b"\r\n\r\n": "400",
    b"x" * 40_000: "431",
    b"POST /answer HTTP/1.0\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nx": "",
}
TEXTS = [
    *("\0", "a\0b good", "\x1b[2J\x07good", "\ud800 good", "\u202e good \u2066", "\ufeffgood"),
    *("good " * 400, "g" * 2000, "Z\u0351\u036b" * 600, "\U0001f600" * 500, "\n" * 1999 + "a"),
    *("$\\frac{$ good", "good $5 and $10", SCRIPT, "&lt;b&gt; good", "{0.__class__} {{7*7}}"),
    *("%s%n%x good", "'; DROP TABLE x; --", "=cmd|' /C calc'!A0", "../../etc/passwd", "|id;`id`"),
    *("", " ", "\u3000", "!!!", "1e999 -1 NaN", "\u0130\u0131\u00df", "a" * 2001, "x" * 600_000),
]
TICKETS = ["..", UP, "x" * 9000, "\0", SCRIPT, ".stage", ""]


def raw(line: str, *headers: str, body: bytes = b"") -> bytes:
    """A request as bytes; with a Host, and the length of a body, unless it brings them."""
    told = list(headers)
    given = {each.partition(":")[0].strip().lower() for each in "\r\n".join(headers).split("\r\n")}
    if "host" not in given:
        told.append("Host: localhost")
    if body and not given & {"content-length", "transfer-encoding"}:
        told.append(f"Content-Length: {len(body)}")
    return "\r\n".join([line, *told, "", ""]).encode("latin-1", "replace") + body


def form(clip: tuple[str, bytes] | None = None, **fields: str) -> bytes:
    """A filled form; names and texts stand in it as they are, whatever they do to it."""
    parts = [FIELD % (name.encode(), as_bytes(text)) for name, text in fields.items()]
    parts += [FILE % (as_bytes(clip[0]), clip[1])] if clip else []
    body = b"".join(parts) + b"--e--\r\n"
    return raw("POST /answer HTTP/1.0", f"Content-Type: {EDGE}e", body=body)


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def requests(model: str) -> dict[str, list[Request]]:
    """Requests of all kinds."""

    def each(line: str, codes: dict[str, str]) -> list[Request]:
        """One request for each header, and the codes of its answer."""
        return [(header, raw(line, header), right) for header, right in codes.items()]

    get, post = "GET /about HTTP/1.0", "POST /answer HTTP/1.0"
    sites = [f"Sec-Fetch-Site: {site}" for site in ("cross-site", "same-site", "none", "\xff")]
    foreign = [f"Origin: {origin}" for origin in FOREIGN] + sites
    targets = ("/about", "/answer", "/example/anna.mp4")
    methods = [f"{method} {target}" for method in METHODS for target in targets]
    bodies = {
        name: raw(post, f"Content-Type: {kind}", body=body.replace(b"{model}", model.encode()))
        for name, (kind, body) in BODIES.items()
    }
    chunked = ("POST /answer HTTP/1.1", "Connection: close", "Transfer-Encoding: chunked")
    answered = {text: "200" if "good" in text else "400 413" for text in TEXTS}
    return {
        "paths": [(at, raw(f"GET {at} HTTP/1.0"), c) for c, paths in PATHS.items() for at in paths],
        "names of models": [(name, form(model=name, text="good"), "400") for name in MODELS],
        "names of examples": [(name, form(model=model, example=name), "400") for name in EXAMPLES],
        "names of uploads": [(name, form((name, b"x"), model=model), "400") for name in NAMES],
        "methods": [(name, raw(f"{name} HTTP/1.0"), "200 400 405") for name in methods],
        "malformed bodies": [(name, data, "400 413") for name, data in bodies.items()],
        "lengths": each(LENGTHY, {f"Content-Length: {n}": "400" for n in LENGTHS})
        + each(LENGTHY, {f"Content-Length: {n}": "400 413" for n in LARGE})
        + each(LENGTHY, FRAMES),
        "chunked bodies": [(name, raw(*chunked, body=b), "411") for name, b in CHUNKS.items()],
        "foreign names": each(get, {f"Host: {name}": "400" for name in STRANGERS}),
        "foreign pages": each(post, dict.fromkeys(foreign, "403")),
        "headers": each(get, HEADERS),
        "no requests": [(repr(data), data, codes) for data, codes in LINES.items()],
        "sentences": [(text, form(model=model, text=text), c) for text, c in answered.items()],
        "tickets": [(name, form(model=model, text="good", ticket=name), "200") for name in TICKETS]
        + [(name, raw(f"POST /cancel/{name} HTTP/1.0"), "200 400 404 405") for name in TICKETS],
    }


def attack(folder: Path, tally: Tally) -> None:
    place, temporary = make_place(folder / "place", portrait()), folder / "t"
    temporary.mkdir()
    np.savez(folder / "v.npz", words=np.array(["good", "day"]), vectors=np.ones((2, 16), "f4"))
    examples = folder / "examples"
    examples.symlink_to(place / "clips")
    more = ("--word_vectors", folder / "v.npz", "--examples", examples, "--max_mb", 1)
    server = start_app(place, temporary, more=more, stdin=subprocess.DEVNULL)
    try:
        for kind, cases in requests(server.model).items():
            for name, data, codes in cases:
                answer = exchange(server.port, data, reads=bool(codes))
                tally.count(kind, name, faults_of(answer, codes, folder))
            slow = get_about(server.port) > 5
            tally.count("neighbours", f"/about after {kind}", ["it took over 5 s"] if slow else [])
        clip = ("anna.mp4", (place / "clips" / "anna.mp4").read_bytes())
        for name, data in {
            "a sentence": form(model=server.model, text="a good day"),
            "a clip": form(clip, model=server.model),
        }.items():
            answer = exchange(server.port, data)
            faults = [] if '"head":' in answer else [f"not answered: {answer[:300]}"]
            tally.count("neighbours", name, faults)
        uploads = [f"left {path.name}" for path in temporary.glob("upload-*")]
        tally.count("what stays", "while it runs", uploads)
    finally:
        server.terminate()
        _, said = server.communicate(timeout=30)
    faults = told_wrongly(said) + left_in(temporary)
    faults += [] if server.returncode == 128 + signal.SIGTERM else [f"exit {server.returncode}"]
    tally.count("what stays", "at its end", faults)


def exchange(port: int, data: bytes, reads: bool = True, patience: float = 60) -> str:
    """The whole answer; "" where the server only hangs up, SILENCE where it does not even that."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), patience) as line:
        try:
            with contextlib.suppress(ConnectionError):  # it may answer before all is sent
                line.sendall(data)
            while reads and (part := line.recv(1 << 16)):
                answer += part
        except ConnectionError:  # the end of its answer: what there is of it is judged
            pass
        except TimeoutError:
            return SILENCE
    return answer.decode("latin-1")


def faults_of(answer: str, codes: str, folder: Path) -> list[str]:
    """What is wrong with an answer: its code, its headers, what it tells."""
    if answer == SILENCE:
        return [SILENCE]
    if not codes:
        return []
    if answer[:7] != "HTTP/1." or answer[9:12] not in codes.split():
        return [f"expected {codes}: {answer[:300]!r}"]
    faults = told_wrongly(answer, ROOT, folder)
    head, _, body = answer.partition("\r\n\r\n")
    try:
        check_headers(head)
    except AssertionError:
        faults.append("lacks a header")
    if "text/html" in head and SCRIPT in body:
        faults.append("has a script of ours")
    if "application/json" in head:
        error = json.loads(body).get("error", "")
        faults += ["an error on many lines"] if len(error.splitlines()) > 1 else []
    return faults
