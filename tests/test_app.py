"""app.py: answers and friendly errors, in a test client; tests/test_browser.py has a browser."""

from __future__ import annotations

import io
import os
import socket
import time

import pytest
from extras import need
from inside import run_main

from inference import page

pytestmark = pytest.mark.extra
need("flask", "waitress")


@pytest.fixture
def service(place):
    models = {"any": place / "any.pth"}
    examples = {"anna.mp4": place / "clips" / "anna.mp4"}
    return page.Service(models, examples, None, "cpu", megabytes=1, seconds=20, patience=100)


@pytest.fixture
def client(service):
    return page.create_page(service, ["localhost"]).test_client()


def post(client, name="", content=b"", **form):
    data = {"model": "any", **form} | ({"clip": (io.BytesIO(content), name)} if name else {})
    return client.post("/answer", data=data)


REFUSED = {
    "Choose a model.": dict(model="other"),
    "Give a clip or a sentence.": dict(),
    ".exe is not a clip": dict(name="x.exe", content=b"MZ"),
    "A file without an ending is not a clip": dict(name="clip", content=b"x"),
    "over the limit of 1 MB": dict(name="x.mp4", content=bytes(2_100_000)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_before_anything_is_read(client, message):
    response = post(client, **REFUSED[message])
    assert response.status_code in (400, 413) and message in response.json["error"]


def test_other_sites_and_other_names_are_refused(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    response = client.post("/answer", headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 403
    assert client.get("/example/..%2fanna.npz").status_code == 404
    about = client.get("/about")
    assert about.json["models"] == ["any"] and "default-src 'self'" in str(about.headers)


def test_the_page_asks_nothing_of_the_internet():
    for name in ("page.html", "page.css", "page.js"):
        text = (page.ASSETS / name).read_text()
        assert "//" not in text.replace("// ", ""), name


def dies(*_):
    os._exit(3)


def hangs(*_):
    time.sleep(60)


def answers(*_):
    return {"head": "still here"}


@pytest.mark.parametrize(("bad", "patience"), [(dies, 60), (hangs, 3)])
def test_a_process_that_dies_or_hangs_costs_one_answer(service, monkeypatch, bad, patience):
    service.patience = patience
    monkeypatch.setattr(page, "answer_one", bad)
    client = page.create_page(service, None).test_client()
    assert "could not be read" in post(client, text="x").json["error"]
    monkeypatch.setattr(page, "answer_one", answers)
    service.patience = 60
    assert post(client, text="x").json == {"head": "still here"}


def test_a_busy_port_is_one_line(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_main("app", "--checkpoints", place / "any.pth", "--port", port)
    assert done.code == 2 and f"port {port}" in done.err and "--port" in done.err
