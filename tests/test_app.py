"""app.py: answers and friendly errors, who is let in, and a page under attack.

tests/test_browser.py has a browser.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import QUIET, ROOT, make_clip, moving_picture, tone
from extras import need
from inside import run_main
from PIL import Image

import app
from inference import door, page, service, windows
from inference.settings import check_words
from inference.starter import WORDS, starter_models
from utils.errors import ClipError, UsageError

need("flask", "waitress")


@pytest.fixture
def behind(place):
    """The service behind the page."""
    models = {"any": place / "any.pth"}
    examples = {"anna.mp4": place / "clips" / "anna.mp4"}
    return service.Service(models, examples, None, "cpu", megabytes=1, seconds=20, patience=100)


@pytest.fixture
def client(behind):
    return client_of(behind)


def client_of(behind, host="127.0.0.1", trusted=()):
    return page.create_page(behind, door.open_door(host, trusted, behind.megabytes)).test_client()


def post(client, name="", content=b"", **form):
    data = {"model": "any", **form} | ({"clip": (io.BytesIO(content), name)} if name else {})
    return client.post("/answer", data=data)


REFUSED = {
    "Choose a model.": dict(model="other"),
    "Give a clip or a sentence.": dict(),
    ".exe is not a clip: give a video, a sound or a picture": dict(name="x.exe", content=b"MZ"),
    "A file without an ending is not a clip": dict(name="clip", content=b"x"),
    "over the limit of 1 MB": dict(name="x.mp4", content=bytes(2_100_000)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_before_anything_is_read(client, message):
    response = post(client, **REFUSED[message])
    assert response.status_code in (400, 413) and message in response.json["error"]


def test_too_much_text_is_told_as_what_it_is(client):
    for length in (2001, 600_000):
        response = post(client, text="x" * length)
        assert response.status_code in (400, 413) and "limit is 2000" in response.json["error"]
        assert "MB" not in response.json["error"]


def test_the_limit_of_seconds_is_told_in_true_numbers(monkeypatch, tmp_path):
    for end, told in ((60.04, "60.04 s; the limit is 60 s"), (60.4, "60.4 s; the limit is 60 s")):
        monkeypatch.setattr(windows, "whole", lambda _, end=end: (0.0, end))
        with pytest.raises(UsageError, match=f"lasts {re.escape(told)}"):
            service.check_length(tmp_path, 60.0)
    monkeypatch.setattr(windows, "whole", lambda _: (0.0, 60.001))
    service.check_length(tmp_path, 60.0)  # "60 s" is within 60 s


def test_no_message_tells_where_files_are(behind, monkeypatch, tmp_path):
    (tmp_path / "of somebody").mkdir()
    behind.word_vectors = tmp_path / "of somebody" / "words.txt"
    upload = f"{tempfile.gettempdir()}/upload-1/files/c.mp4"
    secret = f"{behind.word_vectors} and /srv/x/y.pth ({upload}): 3/4 of a/b"

    def fails(*_, **__):
        raise UsageError(secret)

    def rejects(*_, **__):
        raise ClipError("E_READ", secret)

    told = "words.txt and y.pth (c.mp4): 3/4 of a/b"
    for failing in (fails, rejects):
        monkeypatch.setattr(service, "guarded", failing)
        assert post(client_of(behind), text="x").json["error"].rstrip(".") == told
    monkeypatch.setattr(service, "guarded", lambda *_, **__: {"head": "a", "remarks": [secret]})
    assert post(client_of(behind), text="x").json == {"head": "a", "remarks": [told]}


def test_no_message_tells_where_encoders_and_recognisers_are(behind, tmp_path):
    """Also where a folder has a space, at which the folders of a path end otherwise."""
    (tmp_path / "my models" / "of mine").mkdir(parents=True)
    encoder, heard = tmp_path / "my models" / "of mine", tmp_path / "my models" / "of mine.py"
    heard.touch()
    behind.encoders = (("w2v", str(encoder)), ("v", "facebook/wav2vec2"))
    behind.transcribe = f"faster-whisper:{heard}"
    said = f"{encoder / 'config.json'}, {encoder}, {heard}: facebook/wav2vec2"
    assert behind.without_folders(said) == "config.json, of mine, of mine.py: facebook/wav2vec2"


@pytest.mark.parametrize(
    "fault",
    [
        UsageError("--transcribe needs the package faster-whisper: pip install faster-whisper"),
        UsageError("the encoder hf:x needs the package transformers: pip install transformers"),
        ClipError("E_LIMIT", "it needs more than --memory_mb allows"),
    ],
)
def test_faults_of_whoever_runs_the_page_are_told_to_him(behind, monkeypatch, capsys, fault):
    def fails(*_, **__):
        raise fault

    monkeypatch.setattr(service, "guarded", fails)
    assert post(client_of(behind), text="x").json == service.FAULT
    assert "a sentence: " in (told := capsys.readouterr().err) and str(fault.args[-1]) in told


def test_a_recogniser_that_lacks_something_is_told_at_the_start(place, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "serve", lambda *_: None)
    flags = ("--checkpoints", place / "any.pth", "--device", "cpu")
    done = run_main("app", *flags, "--transcribe", f"faster-whisper:{tmp_path}")
    assert done.code == 2 and len(done.err.splitlines()) == 1, done.err
    assert str(tmp_path) in done.err or "--transcribe needs the package" in done.err


def test_a_clip_is_called_as_its_visitor_calls_it(behind, monkeypatch):
    def fails(answer_one, checkpoint, clip, *_, **__):
        raise UsageError(f"cannot open {clip}: it is {clip.name}")

    monkeypatch.setattr(service, "guarded", fails)
    for given in (
        "my clip (1).MP4",
        "<b>a & b</b>.jpg",
        "мой клип.mp4",
        "?.wav",
        80 * "a " + ".mp4",
    ):
        name = given.rpartition("/")[2]
        found = post(client_of(behind), given, b"x").json
        assert found == {"error": f"cannot open {name}: it is {name}"}


def test_a_sentence_alone_is_told_what_is_wrong_with_it():
    from inference.prediction import ClipPrediction, Seen
    from inference.predictor import Predictor
    from inference.sources import find_sources

    (source,) = find_sources([], "zzqx")

    def told(why, seen=()):
        missing = {"speech": "E_MISSING: no clip was given"} | ({"text": why} if why else {})
        prediction = ClipPrediction(source, ["hap", "sad"], missing, {}, seen=dict(seen))
        with pytest.raises(UsageError) as failed:
            service.describe([prediction])
        return str(failed.value)

    unknown = told("E_SHORT: none of the words is English that the models know")
    assert unknown.startswith("Words not used: the model knows none of them.")
    assert "Try other words, or give a clip." in unknown and "no clip" not in unknown
    assert told(f"E_MISSING: {Predictor.no_words}").endswith("given. Give a clip.")
    assert told("") == "A sentence alone cannot be read by this model: give a clip."
    assert "is not enough for" in told("", {"text": Seen(None, None)})


def test_word_vectors_of_another_training_cost_the_words_alone(place, tmp_path, capsys):
    np.savez(tmp_path / "v.npz", words=np.array(["good", "day"]), vectors=np.ones((2, 5), "f4"))
    vectors, clip = tmp_path / "v.npz", place / "clips" / "anna.mp4"
    options = (tmp_path, vectors, "cpu", 60, (), None)
    found = service.answer_one((place / "any.pth",), clip, "a good day", *options)
    assert found["head"] and "Words not used: sentences cannot be read here." in found["remarks"]
    assert "its vectors have 5 values, the checkpoint reads 16" in capsys.readouterr().err


def test_a_sentence_with_dollars_is_answered_as_it_is(behind, monkeypatch, tmp_path):
    np.savez(tmp_path / "v.npz", words=np.array(["good", "day"]), vectors=np.ones((2, 16), "f4"))
    behind.word_vectors = tmp_path / "v.npz"
    monkeypatch.setattr(service, "guarded", lambda function, *args, limits: function(*args))
    sentence = r"a $good$ day for $5 \frac{ <b>"
    found = post(client_of(behind), text=sentence).json
    assert [part["words"] for part in found["parts"]] == [sentence] and "%" in found["head"], found


def test_other_word_vectors_are_told_when_the_page_starts(tmp_path, capsys):
    np.savez(tmp_path / "v.npz", words=np.array(["good", "day"]), vectors=np.ones((2, 25), "f4"))
    models = {path.stem: (path,) for path in starter_models()}
    check_words(models, WORDS)
    assert capsys.readouterr().err == ""
    check_words(models, tmp_path / "v.npz")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("words was trained with other word vectors than") and "v.npz" in line
    with pytest.raises(UsageError, match=r"--word_vectors .*nowhere"):
        check_words(models, tmp_path / "nowhere")


def test_live_mode_says_shortly_that_nobody_is_there():
    from corpora.manifest import Clip
    from inference.prediction import ClipPrediction
    from inference.sources import Source

    def told(**missing):
        source = Source("live.webm", Clip("live", "clips", ROOT))
        prediction = ClipPrediction(source, ["hap", "sad"], missing, {})
        with pytest.raises(UsageError) as failed:
            service.describe([prediction], picture=False)
        return str(failed.value)

    sentence = "E_MISSING: no sentence was given"
    nobody = told(speech="E_SILENT: its peak", face="E_NOFACE: in 9 frames", text=sentence)
    assert nobody == "No face is seen and nobody is heard."
    assert told(speech="E_NOVOICE: nobody", text=sentence) == "Nobody is heard."
    assert told(speech="E_OPEN: x", text=sentence).startswith("Nothing in this clip can be used.")


# Who is let in

STRANGERS = ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com:7860", "[::2]"]
STRANGERS += ["localhost, evil.com", "me@localhost", "localhost:x", "192.0.2.1", " ", "localhost/"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
def test_other_names_are_refused(behind, host):
    client = client_of(behind, host)
    for name in STRANGERS:
        response = client.get("/about", headers={"Host": name})
        assert response.status_code == 400, name
        assert "does not answer to this name" in response.text
    response = client.get("/", headers={"Host": "evil.com:7860"})
    assert "start app.py with --trust evil.com." in response.text
    for name in ("localhost:7860", "127.0.0.1:80", "[::1]:7860", "LocalHost"):
        assert client.get("/about", headers={"Host": name}).status_code == 200, name


def test_on_a_network_it_answers_to_this_machine_and_to_trusted_names(behind):
    client = client_of(behind, "0.0.0.0", ["My.Host.org", "2001:db8::7", "10.9.8.7:80"])
    own = [socket.gethostname(), socket.gethostname() + ":7860", "127.0.0.2:7860", "0.0.0.0:7860"]
    for name in [*own, "my.host.org", "MY.HOST.ORG:443", "[2001:db8::7]:7860", "10.9.8.7"]:
        assert client.get("/about", headers={"Host": name}).status_code == 200, name
    assert client.get("/about", headers={"Host": "host.org"}).status_code == 400
    with pytest.raises(UsageError, match="--trust a/b: expected a name"):
        door.open_door("0.0.0.0", ["a/b"], 1)


FOREIGN = ["http://evil.com", "http://localhost:81", "null", "http://localhost.evil.com", "x"]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_pages_of_others_are_refused(behind, host):
    client = client_of(behind, host)
    for origin in FOREIGN:
        response = client.post("/answer", headers={"Origin": origin, "Host": "localhost:80"})
        assert response.status_code == 403 and "Open this page itself" in response.text, origin
    for site in ("cross-site", "same-site", "none"):
        assert client.post("/answer", headers={"Sec-Fetch-Site": site}).status_code == 403
    for origin in ("http://localhost:80", "https://LOCALHOST:80"):
        response = client.post("/answer", headers={"Origin": origin, "Host": "localhost:80"})
        assert response.json == {"error": "Choose a model."}, origin
    assert client.get("/example/..%2fanna.npz").status_code == 404
    assert [each["name"] for each in client.get("/about").json["models"]] == ["any"]


def check_headers(text: str) -> None:
    for wanted in (
        "X-Content-Type-Options: nosniff",
        "Cross-Origin-Resource-Policy: same-origin",
        "default-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ):
        assert wanted in text, (wanted, text)


def test_every_answer_has_the_headers(client):
    for path in ("/", "/page.js", "/about", "/example/anna.mp4", "/absent"):
        check_headers(str(client.get(path).headers))
    check_headers(str(client.get("/", headers={"Host": "evil.com"}).headers))
    check_headers(str(client.put("/answer").headers))
    check_headers(str(post(client, name="x.mp4", content=bytes(2_100_000)).headers))


def test_the_page_asks_nothing_of_the_internet():
    for name in ("page.html", "page.css", "page.js", "show.js", "live.js"):
        text = (page.ASSETS / name).read_text()
        assert "//" not in text.replace("// ", ""), name


def test_examples_have_a_picture_that_every_browser_shows(behind, monkeypatch, tmp_path):
    monkeypatch.setattr(service, "guarded", lambda function, *args, limits: function(*args))
    make_clip(tmp_path / "old.avi", [*moving_picture()], codec="mpeg4")
    make_clip(tmp_path / "one.wav", sound=tone(1), sound_codec="pcm_s16le")
    behind.examples |= {path.name: path for path in tmp_path.iterdir()}
    behind.draw_thumbnails()
    client = client_of(behind)
    told = {each.pop("name"): each for each in client.get("/about").json["examples"]}
    assert told["old.avi"] == {"title": "old", "sound": False, "thumbnail": True}
    assert told["one.wav"] == {"title": "one", "sound": True, "thumbnail": False}
    for name, size in (("old.avi", (120, 90)), ("anna.mp4", (240, 180))):
        picture = Image.open(io.BytesIO(client.get(f"/thumbnail/{name}").data))
        assert picture.format == "JPEG" and picture.size == size
    assert client.get("/thumbnail/one.wav").status_code == 404


def test_a_visitor_is_told_how_far_his_answer_is_and_may_cancel(behind, monkeypatch):
    """The process that answers is told between two stages, and keeps what it loaded."""
    told: list[str] = []
    go_on = threading.Event()

    def works(answer_one, checkpoint, clip, text, folder, *_, **__):
        service.tell(folder, "Looking")
        told.append(client.get("/progress/7f").json["stage"])
        told.append(client.get("/progress/of-another").json["stage"])
        client.post("/cancel/7f")
        assert go_on.wait(30)
        service.tell(folder, "Listening")

    monkeypatch.setattr(service, "guarded", works)
    client, other = client_of(behind), client_of(behind)
    second: list[dict] = []
    thread = threading.Thread(target=lambda: second.append(post(other, text="y", ticket="8").json))

    def wait_in_line():
        wait_until(lambda: told)
        thread.start()
        wait_until(lambda: client_of(behind).get("/progress/8").json["stage"])
        told.append(client_of(behind).get("/progress/8").json["stage"])
        client_of(behind).post("/cancel/8")
        wait_until(lambda: second, 10)  # he leaves the line at once
        go_on.set()

    helper = threading.Thread(target=wait_in_line)
    helper.start()
    assert post(client, text="x", ticket="7f").json == {"error": "Cancelled."}
    helper.join()
    thread.join()
    assert told == ["Looking", "", "Waiting for the visitors before you"]
    assert second == [{"error": "Cancelled."}] and behind.asked == {}


def test_the_page_says_what_a_model_is(place, tmp_path):
    from inference.offer import TOY, offer
    from training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(place / "any.pth")
    plain = offer([checkpoint], "multimodal/first")
    assert plain["title"] == "voice, face and words (first)" and plain["warning"] == ""
    measured = {"clips": 56, "accuracy": 0.875, "loss": 1.0}
    trained = {"val": measured, "card": {"corpus": "demo", "clips": 112, "people": 0}}
    toy = offer([checkpoint | trained], "multimodal/first")
    (told,) = map(" ".join, toy["cards"])
    assert "112 clips of the corpus demo" in told and "88 % of 56 clips" in told
    assert "76 % to 94 %" in told and "Guessing would be right for 14 %" in told
    assert toy["warning"] == TOY
    elsewhere = {"corpus": "far", "accuracy": 0.3, "tested_clips": 9, "chance": 0.2}
    known = {"card": {"clips": 9, "corpus": "near", "elsewhere": [elsewhere]}, "val": measured}
    *_, chosen, last = offer([checkpoint | known], "a")["cards"][0]
    assert last.startswith("On far, which it has not seen")
    assert chosen.startswith("These clips"), "those of the line before, not the other corpus"
    both = offer([checkpoint | known, checkpoint | trained], "a")["cards"]
    told = [f"Model {number} of 2 reads the voice, face and words." for number in (1, 2)]
    assert [card[0] for card in both] == told


def dies(*_):
    os._exit(3)


def hangs(*_):
    time.sleep(60)


def answers(*_):
    return {"head": "still here"}


@pytest.mark.parametrize(("bad", "patience"), [(dies, 60), (hangs, 3)])
def test_a_process_that_dies_or_hangs_costs_one_answer(behind, monkeypatch, bad, patience):
    behind.patience = patience
    monkeypatch.setattr(service, "answer_one", bad)
    client = client_of(behind)
    assert "could not be read" in post(client, text="x").json["error"]
    monkeypatch.setattr(service, "answer_one", answers)
    behind.patience = 60
    assert post(client, text="x").json["head"] == "still here"


def test_an_answer_that_leaves_nothing_behind(behind, place, monkeypatch, tmp_path):
    """A real one; its process is killed afterwards, as one that hangs would be."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    clip = (place / "clips" / "anna.mp4").read_bytes()
    found = post(client_of(behind), "anna.mp4", clip)
    assert "%" in found.json["head"] and found.json["picture"], found.json
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
        assert list(Path("/dev/shm").glob(f"*{child.pid}-*")) == []
    assert not list(tmp_path.glob("upload-*"))


def test_no_name_of_an_upload_puts_words_into_its_mouth(behind, place):
    """The process that answers leaves files beside the upload, for whoever asks how far it is."""
    clip = (place / "clips" / "anna.mp4").read_bytes()
    for name in ("stage.mp4", "cancelled.mp4", ".stage.mp4"):
        found = post(client_of(behind), name, clip).json
        assert "Words not used: no sentence was given." in found["remarks"], found
        assert found["parts"][0]["words"] == ""


def test_a_still_picture_is_answered(behind, face_image, tmp_path):
    file = io.BytesIO()
    Image.fromarray(face_image).save(file, "jpeg")
    found = post(client_of(behind), "face.JPG", file.getvalue()).json
    assert "%" in found["head"] and found["picture"], found
    assert "Voice not used: the clip has no sound." in found["remarks"]
    assert ".jpg" in post(client_of(behind), "x.txt", b"x").json["error"]


def test_still_pictures_of_a_folder_are_told_to_be_left_out(tmp_path, capsys):
    from inference.sources import find_sources, left_out

    (tmp_path / "face.jpg").touch()
    with pytest.raises(UsageError, match=r"no clip in .*: still pictures are read where they are"):
        find_sources([tmp_path], None)
    (tmp_path / "a.wav").touch()
    (source,) = find_sources([tmp_path], None)
    assert source.clip.clip_id == "a" and left_out([tmp_path]) == []
    assert "left out: still pictures are read where they are named" in capsys.readouterr().err
    found = find_sources([tmp_path, tmp_path / "face.jpg"], None)
    assert [each.clip.clip_id for each in found] == ["a", "face"]
    assert capsys.readouterr().err == ""


def test_folds_are_one_model_and_models_of_one_name_are_two(place, tmp_path):
    for fold, name in ((0, "any"), (1, "plain")):
        folder = tmp_path / "one" / "speech" / "all" / f"fold_{fold}"
        folder.mkdir(parents=True)
        shutil.copy(place / f"{name}.pth", folder / "1_best_0.5000.pth")
    shutil.copytree(folder, tmp_path / "two" / "speech" / "all")
    runs = [tmp_path / "one" / "speech" / "all", tmp_path / "two" / "speech" / "all"]
    models = app.find_models(SimpleNamespace(checkpoints=runs, encoder=[]))
    assert {name: len(files) for name, files in models.items()} == {
        "speech/all": 2,
        "speech/all (2)": 1,
    }
    (tmp_path / "one" / "speech" / "begun" / "fold_0").mkdir(parents=True)
    args = SimpleNamespace(checkpoints=None, encoder=[], logs_dir=tmp_path / "one")
    assert {name: len(files) for name, files in app.find_models(args).items()} == {"speech/all": 2}


def test_a_busy_port_is_one_line(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_main("app", "--checkpoints", place / "any.pth", "--port", port)
    assert done.code == 2 and f"port {port}" in done.err and "--port" in done.err


# A server that is attacked


@pytest.fixture
def live(behind):
    """The page behind waitress, in this process: `port`, and `answer` to be replaced."""
    yield serve(behind, "127.0.0.1")


def serve(behind, host):
    guard = door.open_door(host, (), behind.megabytes)
    server = door.create_server(page.create_page(behind, guard), guard, host, 0)
    threading.Thread(target=server.run, daemon=True).start()
    port = int(server.effective_port)
    return SimpleNamespace(port=port, behind=behind, guard=guard, server=server)


def head(port, length="", path="/answer", **headers) -> bytes:
    """The first lines of an upload."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: text/plain"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {length}"] if length else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def connect(port, data=b"", host="127.0.0.1") -> socket.socket:
    line = socket.create_connection((host, port), 10)
    line.sendall(data)
    return line


def read_all(line: socket.socket) -> str:
    text = b""
    with line, contextlib.suppress(ConnectionResetError):
        while part := line.recv(65_536):
            text += part
    return text.decode()


LIMITED = {  # what of an upload is sent, without any byte of its body
    "413 ": dict(length=5_000_000),
    "413  waits for a go-ahead": dict(length=5_000_000, Expect="100-continue"),
    "411 ": dict(Transfer_Encoding="chunked"),
    "411  waits for a go-ahead": dict(Transfer_Encoding="chunked", Expect="100-continue"),
    "403 ": dict(length=900_000, Sec_Fetch_Site="cross-site"),
    "403  by its origin": dict(length=900_000, Origin="http://evil.com"),
    "400 ": dict(length=900_000, Host="evil.com"),
    "400  without a number": dict(length="x"),
    "400  a number without end": dict(length="9" * 5000),
    "501 ": dict(Transfer_Encoding="gzip"),
}


@pytest.mark.parametrize("why", LIMITED)
def test_a_body_is_refused_before_its_first_byte(live, why):
    answer = read_all(connect(live.port, head(live.port, **LIMITED[why])))
    assert answer.startswith(f"HTTP/1.1 {why[:4]}"), answer
    assert "100 Continue" not in answer and "waitress" not in answer
    assert ("over the limit of 1 MB." in answer) == (why[:4] == "413 ")
    check_headers(answer)
    assert get_about(live.port) < 5


def test_slow_headers_and_silence_are_ended(live, monkeypatch):
    monkeypatch.setattr(door, "IDLE", 0.5)
    line = connect(live.port, b"GET /about HTTP/1.1\r\nX: ")
    time.sleep(0.8)
    line.sendall(b"x")
    assert read_all(line).startswith("HTTP/1.0 408 ")


def test_who_says_or_reads_nothing_is_ended(behind, monkeypatch, tmp_path):
    monkeypatch.setattr(door, "IDLE", 1)
    live = serve(with_large_example(behind, tmp_path), "127.0.0.1")
    silent, deaf = connect(live.port), connect(live.port, LARGE)
    wait_until(lambda: len(live.server.active_channels) == 2, 5)
    wait_until(lambda: not live.server.active_channels, 10)
    assert read_all(silent) == ""
    deaf.close()


LARGE = b"GET /example/large.mp4 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def with_large_example(behind, folder):
    """One of more bytes than systems and waitress keep for a connection."""
    with open(folder / "large.mp4", "wb") as file:
        file.truncate(40_000_000)
    behind.examples["large.mp4"] = folder / "large.mp4"
    return behind


def test_who_asks_much_at_once_and_reads_nothing_holds_nobody_up(live, tmp_path):
    with_large_example(live.behind, tmp_path)
    lines = [connect(live.port, 9 * LARGE) for _ in range(door.THREADS)]
    time.sleep(0.5)
    assert get_about(live.port) < 5
    for line in lines:
        line.close()


def test_who_asks_for_a_part_and_reads_nothing_holds_nobody_up(live, tmp_path):
    with_large_example(live.behind, tmp_path)
    part = LARGE.replace(b"\r\n\r\n", b"\r\nRange: bytes=7-\r\n\r\n")
    lines = [connect(live.port, part) for _ in range(door.THREADS)]
    time.sleep(0.5)
    assert get_about(live.port) < 5
    for line in lines:
        line.close()
    client = client_of(live.behind)
    for asked, told in {
        "7-": f"7-{7 + page.PIECE - 1}",
        "7-9": "7-9",
        "-9": "39999991-39999999",
        "-39999999": f"1-{page.PIECE}",
    }.items():
        response = client.get("/example/large.mp4", headers={"Range": f"bytes={asked}"})
        assert response.headers["Content-Range"] == f"bytes {told}/40000000"
        assert response.status_code == 206 and len(response.data) <= page.PIECE
    for asked in ("40000000-", "0-1,5-6"):
        response = client.get("/example/large.mp4", headers={"Range": f"bytes={asked}"})
        assert response.status_code == 416


def test_of_requests_that_are_sent_at_once_the_first_is_answered(live):
    host = f"Host: 127.0.0.1:{live.port}\r\n\r\n"
    both = f"GET /about HTTP/1.1\r\n{host}GET /page.js HTTP/1.1\r\n{host}".encode()
    answer = read_all(connect(live.port, both))
    assert answer.startswith("HTTP/1.1 200 ") and '"models"' in answer
    assert answer.count("HTTP/1.1") == 1 and "Connection: close" in answer


def test_a_slow_upload_has_its_time(live, monkeypatch):
    monkeypatch.setattr(door, "IDLE", 0.5)
    monkeypatch.setattr(door, "LEAST", 1)
    line = connect(live.port, head(live.port, length=3))
    for _ in range(3):
        time.sleep(0.4)
        line.sendall(b"x")
    assert line.recv(100).startswith(b"HTTP/1.1 400 ")  # it chose no model
    line.close()


def test_a_body_that_drips_is_ended(live, monkeypatch):
    monkeypatch.setattr(door, "IDLE", 0.3)
    line = connect(live.port, head(live.port, length=900_000) + b"x")
    time.sleep(0.5)
    line.sendall(b"x")
    answer = read_all(line)
    assert answer.startswith("HTTP/1.1 408 ") and "took too long" in answer


def test_bodies_that_are_on_their_way_leave_room_for_others(live, monkeypatch):
    """Who is one too many is told so before the first byte, and one that ends makes room."""
    monkeypatch.setattr(door, "COMING", 2)
    lines = [connect(live.port, head(live.port, length=3)) for _ in range(2)]
    wait_until(lambda: len(live.guard.reading) == 2)
    third = read_all(connect(live.port, head(live.port, length=3)))
    assert third.startswith("HTTP/1.1 503 ") and door.BUSY in third and get_about(live.port) < 5
    lines[0].sendall(b"abc")
    assert lines[0].recv(100).startswith(b"HTTP/1.1 400 ")  # it chose no model
    last = connect(live.port, head(live.port, length=3) + b"abc")
    assert last.recv(100).startswith(b"HTTP/1.1 400 ")
    for line in (*lines, last):
        line.close()


def test_who_says_nothing_makes_room_for_others(behind, monkeypatch):
    """More connections than there may be, which drip: the oldest ends, and bodies go on."""
    monkeypatch.setattr(door, "CONNECTIONS", 20)
    live = serve(behind, "127.0.0.1")
    body = connect(live.port, head(live.port, length=3))
    wait_until(lambda: live.guard.reading)
    lines = [connect(live.port, b"GET / HTTP/1.1\r\nX: ") for _ in range(40)]
    assert max(get_about(live.port) for _ in range(5)) < 2
    body.sendall(b"abc")
    assert body.recv(100).startswith(b"HTTP/1.1 400 ")  # it chose no model
    assert read_all(lines[0]) == ""
    for line in (body, *lines):
        line.close()


def test_all_uploads_together_have_a_limit(live, monkeypatch):
    monkeypatch.setattr(door, "BODIES", 1)
    first = connect(live.port, head(live.port, length=1_900_000) + bytes(1_500_000))
    wait_until(lambda: sum(each.body_bytes_received for each in live.guard.reading) >= 1_500_000)
    second = connect(live.port, head(live.port, length=1_900_000))
    with contextlib.suppress(OSError):
        second.sendall(bytes(1_800_000))
    assert read_all(second).startswith("HTTP/1.1 503 ")
    wait_until(lambda: len(live.guard.reading) == 1)  # what the second has sent counts no more
    first.sendall(bytes(400_000))
    assert first.recv(100).startswith(b"HTTP/1.1 400 ")
    first.close()


def get_about(port, host="127.0.0.1") -> float:
    """Seconds until a visitor has /about."""
    began = time.perf_counter()
    name = f"[{host}]" if ":" in host else host
    line = connect(port, f"GET /about HTTP/1.0\r\nHost: {name}:{port}\r\n\r\n".encode(), host)
    answer = read_all(line)
    assert answer.startswith("HTTP/1.0 200 ") and '"models"' in answer, answer
    return time.perf_counter() - began


def ask(port, content=bytes(1000), seconds=60, name="x.mp4", model="any") -> int:
    """Upload a clip; the code of the answer."""
    edge, begin = "7d3f", 'Content-Disposition: form-data; name="'
    form = (
        f'--{edge}\r\n{begin}model"\r\n\r\n{model}\r\n--{edge}\r\n{begin}clip"; filename="{name}"'
    )
    body = f"{form}\r\n\r\n".encode() + content + f"\r\n--{edge}--\r\n".encode()
    lines = f"POST /answer HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n"
    lines += f"Content-Type: multipart/form-data; boundary={edge}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), seconds) as line:
        line.sendall(lines.encode() + body)
        return int(read_all(line).split()[1])


def test_a_busy_page_says_so_at_once(live, monkeypatch):
    go_on = threading.Event()

    def waits(*_, **__):
        assert go_on.wait(30)
        return {"head": "done"}

    monkeypatch.setattr(service, "guarded", waits)
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(ask(live.port))) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(codes) == 5)
    assert codes == [503] * 5 and get_about(live.port) < 5
    assert "Others are being answered" in client_of(live.behind).get("/about").json["busy"]
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] * 3 + [503] * 5
    assert client_of(live.behind).get("/about").json["busy"] == ""


def wait_until(what, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s"
        time.sleep(0.02)


class Attack:
    """So many uploads at a time, and so many connections that send a byte of a header a second."""

    def __init__(self, port: int, uploads: int, slow: int, content: bytes, **options):
        self.port, self.content, self.options = port, content, options
        self.over = threading.Event()
        self.codes: list[int] = []
        self.threads = [threading.Thread(target=self.upload) for _ in range(uploads)]
        self.threads.append(threading.Thread(target=self.drip, args=(slow,)))

    def upload(self):
        while not self.over.is_set():
            with contextlib.suppress(ConnectionError):
                self.codes.append(ask(self.port, self.content, 300, **self.options))

    def drip(self, count: int):
        start = b"GET / HTTP/1.1\r\nX: "
        lines = [connect(self.port, start) for _ in range(count)]
        while not self.over.wait(1):
            for place, line in enumerate(lines):
                try:
                    line.sendall(b"x")
                except ConnectionError:  # it was ended, and comes again
                    line.close()
                    lines[place] = connect(self.port, start)
        for line in lines:
            line.close()

    def measure(self, seconds: float) -> list[float]:
        for thread in self.threads:
            thread.start()
        try:
            time.sleep(1)
            until, times = time.monotonic() + seconds, []
            while time.monotonic() < until:
                times.append(get_about(self.port))
                time.sleep(0.02)
        finally:
            self.over.set()
            for thread in self.threads:
                thread.join()
        return times


def test_the_page_answers_under_attack(live, monkeypatch):
    def works(*_, **__):
        time.sleep(0.3)
        return {"head": "done"}

    monkeypatch.setattr(service, "guarded", works)
    attack = Attack(live.port, uploads=20, slow=120, content=bytes(300_000))
    times = attack.measure(4)
    print(f"/about: worst {max(times):.3f} s, median {statistics.median(times):.3f} s")
    assert len(times) > 5 and max(times) < 3, times
    assert set(attack.codes) == {200, 503}


# The whole program


STUB = """
import time
from pathlib import Path
import inference.service

def slow(checkpoint, clip, text, folder, *_):
    (folder / "made.npy").write_bytes(b"features of a face")
    time.sleep(600)

inference.service.answer_one = slow
if __name__ == "__main__":
    import app
    from utils.errors import run_script
    run_script(app.main)
"""


def start_app(place, folder, script="app.py", more=(), **options):
    """app.py as a process of its own, whose temporary files go to `folder`; it has said its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--checkpoints", place / "any.pth", "--port", port, "--device", "cpu", *more]
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, **QUIET, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    said = process.stdout.readline()
    if f"open http://127.0.0.1:{port}/ " not in said:
        process.kill()
        raise AssertionError(said + process.communicate()[1])
    process.port, process.model = port, f"{place.name}/any.pth"
    return process


def kept(folder) -> list:
    return list(folder.glob("upload-*"))


def answering(server, folder) -> None:
    """A visitor whose clip is being answered, and two who wait: their uploads are there."""

    def visit():
        with contextlib.suppress(OSError, IndexError):
            ask(server.port, bytes(100_000), seconds=600, model=server.model)

    for _ in range(3):
        threading.Thread(target=visit, daemon=True).start()
    wait_until(lambda: len([*folder.rglob("x.mp4")]) == 3 and [*folder.rglob("made.npy")])


@pytest.fixture
def busy(place, tmp_path):
    """A function that starts app.py on the same temporary folder and makes it answer for ever."""
    (tmp_path / "stub.py").write_text(STUB)
    folder, started = tmp_path / "temporary", []
    folder.mkdir()

    def start():
        started.append(start_app(place, folder, tmp_path / "stub.py"))
        assert kept(folder) == []
        answering(started[-1], folder)
        return started[-1], folder

    yield start
    for server in started:
        server.kill()
        server.communicate()


def end_by(server: subprocess.Popen, folder: Path, signum: int) -> None:
    began = time.monotonic()
    server.send_signal(signum)
    _, err = server.communicate(timeout=30)
    assert server.returncode == 128 + signum and kept(folder) == [], err
    assert len(err.splitlines()) == 1 and time.monotonic() - began < 8, err


def test_no_upload_outlives_a_signal_and_the_next_start_sweeps_what_a_kill_leaves(busy):
    server, folder = busy()
    server.kill()
    server.communicate()
    assert len(kept(folder)) == 3
    end_by(*busy(), signal.SIGTERM)  # which looks before it answers


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_leave_no_upload(busy, signum):
    end_by(*busy(), signum)


def test_the_urls_that_are_printed(place, monkeypatch):
    monkeypatch.setattr(app, "serve", lambda *_: None)
    for host, told in {"::1": "[::1]", "[::1]": "[::1]", "localhost": "localhost"}.items():
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        flags = ["--checkpoints", place / "any.pth", "--device", "cpu", "--port", port]
        done = run_main("app", *flags, "--host", host)
        assert done.code == 0 and f"open http://{told}:{port}/ " in done.out, done
    done = run_main("app", *flags, "--host", "192.0.2.1")
    assert done.code == 2 and len(done.err.splitlines()) == 1, done.err


def test_a_page_at_an_ipv6_address(behind):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert get_about(serve(behind, "::1").port, "::1") < 5


@pytest.mark.slow
def test_the_whole_program_answers_under_attack(place, tmp_path):
    """With real answers, to clips of which each is some seconds of work."""
    clip = make_clip(tmp_path / "clip.wav", sound=tone(50), sound_codec="pcm_s16le").read_bytes()
    server = start_app(place, tmp_path, stdin=subprocess.DEVNULL)
    try:
        attack = Attack(
            server.port, uploads=20, slow=120, content=clip, name="x.wav", model=server.model
        )
        times = attack.measure(60)
    finally:
        server.terminate()
        server.communicate(timeout=30)
    median = statistics.median(times)
    print(f"/about: {len(times)} times, worst {max(times):.3f} s, median {median:.3f} s")
    counts = {code: attack.codes.count(code) for code in set(attack.codes)}
    print(f"answers to {len(attack.codes)} uploads: {counts}")
    assert max(times) < 5 and set(attack.codes) == {200, 503}, (max(times), counts)
