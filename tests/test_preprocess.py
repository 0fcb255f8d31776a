"""preprocess.py as a user runs it: the tree it makes, what it rejects, how it goes on."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import (
    CLASSES,
    QUIET,
    ROOT,
    digests,
    flat,
    make_clip,
    run_script,
    tone,
    write_features,
)
from inside import run_main

from corpora import merc2020
from corpora.audit import load_audit
from corpora.manifest import colliding_names
from extract import audio, faces, words
from extract.clip import STAGES, Job, process_clip
from utils import guard
from utils.errors import CLIP_CODES, LockedError, UsageError
from utils.files import lock_folder, record_path

TRAIN, VAL, TEST = "qia2020/train", "qia2020/val", "qia2020/test"
GOOD = {
    f"{TRAIN}/00001-a-hap-ang-neu.mp4": 0.6,  # seconds of speech
    f"{TRAIN}/00002-b-sad-sad-sad.mp4": 0.8,
    f"{VAL}/00001-a-dis-dis-dis.mp4": 0.5,
    f"{TEST}/00007.mp4": 0.6,
}
FEATURES = ["speech", "text", "video"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, face_image) -> Path:
    """A MERC2020 of four clips and one sheet."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, (name, seconds) in enumerate(GOOD.items()):
        add_clip(folder / name, face_image, seconds, hertz=300 + 200 * number)
    (folder / "test1.csv").write_bytes("\ufeffFileID;Emotion\r\n00007;\r\n".encode())
    return folder


def add_clip(media: Path, picture, seconds: float, hertz: float = 500, level: float = 0.3) -> None:
    sound = np.r_[np.zeros(1600), tone(seconds, hertz, level=level), np.zeros(1600)]
    make_clip(media, np.stack([picture] * round(10 * seconds + 3)), sound, fps=10)
    vectors = np.random.default_rng(int(hertz)).normal(size=(4, 200)).astype(np.float32)
    np.savez(media.with_name(media.stem.split("-")[0]), word_embed=vectors)


def preprocess(data_dir: Path, features_dir: Path, *flags, code: int = 0, **options):
    """Run the script and expect this exit code."""
    small = () if "--face_size" in flags else ("--face_size", 64)
    folders = ("--data_dir", data_dir, "--features_dir", features_dir)
    every = (*folders, *(() if "--workers" in flags else ("--workers", 1)), *small, *flags)
    if options:
        done = run_script("preprocess.py", *every, **options)
        assert done.returncode == code, done.stderr
        return done
    done = run_main("preprocess", *every)  # its workers find their libraries loaded
    assert done.code == code, done.err
    return SimpleNamespace(stdout=done.out, stderr=done.err)


@pytest.fixture(scope="session")
def made(corpus, tmp_path_factory) -> Path:
    """The features of `corpus`."""
    folder = tmp_path_factory.mktemp("made") / "features"
    done = preprocess(corpus, folder)
    assert "4 of 4 clips usable" in done.stdout
    return folder


@pytest.fixture
def copies(corpus, made, tmp_path) -> tuple[Path, Path]:
    """Copies of the corpus and of its features, times of change kept."""
    for name, source in (("data", corpus), ("features", made)):
        shutil.copytree(source, tmp_path / name)
    return tmp_path / "data", tmp_path / "features"


def content(features_dir: Path) -> dict[str, str]:
    """Digests of all files but the lock, which names a process."""
    return {name: value for name, value in digests(features_dir).items() if name != ".lock"}


def stamps(features_dir: Path) -> dict[str, tuple]:
    """Time of change and inode of every feature and record: a rewritten file has others."""
    files = [path for path in features_dir.glob("*/*/*") if path.is_file()]
    found = {path.relative_to(features_dir).as_posix(): path.stat() for path in files}
    return {name: (status.st_mtime_ns, status.st_ino) for name, status in found.items()}


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name] and "records" not in name}


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


# --- the tree -----------------------------------------------------------------------------------


def test_the_tree_is_what_the_documentation_says(corpus, made):
    ids = [("train", "00001"), ("train", "00002"), ("val", "00001"), ("test", "00007")]
    endings = {"speech": ".npy", "text": ".npz", "video": ".npy", "records": ".json"}
    expected = {"audit.json", "failed.csv", "manifest.csv", "settings.json", "test1.csv"}
    expected |= {f"{split}/{kind}/{i}{endings[kind]}" for split, i in ids for kind in endings}
    assert content(made).keys() == expected
    assert (made / "test1.csv").read_bytes() == (corpus / "test1.csv").read_bytes()
    assert (made / "failed.csv").read_text() == "clip_id,media,stage,code,reason\n"
    for row in table(made / "manifest.csv").to_dict("records"):
        folder = made / row["split"]
        log_mel = np.load(folder / "speech" / f"{row['clip_id']}.npy", allow_pickle=False)
        crops = np.load(folder / "video" / f"{row['clip_id']}.npy", allow_pickle=False)
        vectors = np.load(folder / "text" / f"{row['clip_id']}.npz", allow_pickle=False)
        seconds = float(row["speech_end"]) - float(row["speech_start"])
        assert log_mel.dtype == np.float32 and log_mel.min() >= 0 and log_mel.max() == 1
        assert log_mel.shape == (128, int(row["speech_frames"]))
        assert log_mel.shape[1] == pytest.approx(62.5 * seconds, abs=1.5)
        assert crops.dtype == np.uint8 and crops.shape[1:] == (64, 64, 3)
        assert len(crops) == int(row["video_frames"]) == len(row["face_valid"])
        assert len(crops) == pytest.approx(10 * seconds, abs=0.51)
        assert row["face_valid"] == "1" * int(row["face_frames"]) and crops.std() > 20
        assert vectors.files == ["word_embed"] and vectors["word_embed"].dtype == np.float32
        assert vectors["word_embed"].shape == (int(row["words"]), 200)
        assert seconds == pytest.approx(GOOD[row["media"]], abs=0.04)


def test_the_manifest_tells_labels_and_leaves_out_unknown_ones(made, tmp_path):
    manifest = table(made / "manifest.csv").set_index(["split", "clip_id"])
    columns = ["emotion", "face_emotion", "speech_emotion"]
    assert manifest.loc[("train", "00001"), columns].tolist() == ["hap", "ang", "neu"]
    assert manifest.loc[("test", "00007"), columns].tolist() == ["", "", ""]
    settings = json.loads((made / "settings.json").read_text())
    assert settings["classes"] == list(CLASSES) and settings["features"]["video"]["face_size"] == 64
    fake = write_features(tmp_path)  # what the tests of training are given has the same form
    assert list(table(fake / "manifest.csv")) == list(table(made / "manifest.csv"))
    pretended = json.loads((fake / "settings.json").read_text())
    assert pretended.keys() == settings.keys() and pretended["schema"] == settings["schema"]
    for name in FEATURES:
        assert pretended["features"][name].keys() == settings["features"][name].keys()


# --- going on -----------------------------------------------------------------------------------


def test_a_second_run_makes_only_what_is_missing_or_has_changed(copies, face_image):
    data, features = copies
    before, first = stamps(features), content(features)
    tables = {path: path.stat() for path in features.glob("*.[cj]s*")}
    preprocess(data, features)
    assert stamps(features) == before and content(features) == first
    assert len(tables) == 5 and tables == {path: path.stat() for path in tables}  # not even those

    (features / "val/speech/00001.npy").unlink()
    (features / "train/text/00002.npz").unlink()
    preprocess(data, features)
    assert changed(before, stamps(features)) == {"val/speech/00001.npy", "train/text/00002.npz"}
    assert content(features) == first

    preprocess(data, features, "--modalities", "speech")
    assert set(table(features / "manifest.csv")["face_valid"]) == {""}
    preprocess(data, features)
    remade = {"val/speech/00001.npy", "train/text/00002.npz"}
    assert changed(before, stamps(features)) == remade, "what one run did not ask for is kept"
    assert content(features) == first

    before = stamps(features)
    preprocess(data, features, "--face_fps", 5)
    assert changed(before, stamps(features)) == {name for name in before if "/video/" in name}
    assert set(table(features / "manifest.csv")["video_frames"]) <= {"2", "3", "4"}

    before = stamps(features)
    add_clip(data / TRAIN / "00002-b-sad-sad-sad.mp4", face_image, 0.5, hertz=500)
    preprocess(data, features, "--face_fps", 5)
    assert changed(before, stamps(features)) == {
        f"train/{kind}/00002{ending}"
        for kind, ending in (("speech", ".npy"), ("video", ".npy"), ("text", ".npz"))
    }


def test_the_margin_around_a_face(corpus, made, tmp_path):
    """Without it the crop is the middle of the usual one, five sixths of its side."""
    import cv2

    preprocess(corpus, tmp_path / "close", "--face_margin", 0, "--modalities", "video")
    name = next((made / "train" / "video").glob("*.npy"))
    usual, close = (
        np.load(f / "train" / "video" / name.name)[0] for f in (made, tmp_path / "close")
    )
    middle = cv2.resize(usual[5:59, 5:59], (64, 64), interpolation=cv2.INTER_LINEAR)
    away = [float(np.abs(np.int16(close) - each).mean()) for each in (middle, usual)]
    assert away[0] < 0.3 * away[1], away
    assert (
        json.loads((tmp_path / "close" / "settings.json").read_text())["features"]["video"][
            "margin"
        ]
        == 0
    )


def test_order_workers_and_hash_seeds_change_nothing(corpus, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(corpus / TRAIN, data)
    rows = [f"{path.name},train,hap" for path in sorted(data.glob("*.mp4"))]
    trees = []
    # the first run in this process, whose seed is another one
    for order, workers, options in ((1, 1, {}), (-1, 2, {"env": {"PYTHONHASHSEED": "1"}})):
        (data / "manifest.csv").write_text("\n".join(["media,split,emotion", *rows[::order]]))
        features = tmp_path / f"features{workers}"
        preprocess(data, features, "--corpus", "csv", "--workers", workers, **options)
        trees.append(content(features))
    assert trees[0] == trees[1] and len(trees[0]) == 2 * 3 + 4


@pytest.fixture
def spoilt(copies, face_image) -> tuple[Path, Path]:
    """The corpus with bad clips among the good ones, and an empty place for its features."""
    data, features = copies
    shutil.rmtree(features)
    add_clip(data / TRAIN / "00010-a-hap-hap-hap.mp4", face_image, 0.5, level=0)
    add_clip(data / TRAIN / "00011-a-hap-hap-hap.mp4", flat((90, 120, 140)), 0.5)
    add_clip(data / TRAIN / "00012-a-merry-hap-hap.mp4", face_image, 0.5)
    add_clip(data / VAL / "00013-a-hap-hap-hap.mp4", face_image, 0.5)
    (data / VAL / "00013-a-hap-hap-hap.mp4").write_bytes(b"")
    add_clip(data / VAL / "00014-a-hap-hap-hap.mp4", face_image, 0.5)
    (data / VAL / "00014.npz").rename(data / "kept.npz")
    add_clip(data / VAL / "00015-a-hap-hap-hap.mp4", face_image, 0.5)
    np.savez(data / VAL / "00015.npz", word_embed=np.full((4, 200), np.nan, np.float32))
    return data, features


def test_bad_clips_are_listed_and_harm_no_other(spoilt, made):
    data, features = spoilt
    done = preprocess(data, features, code=3)
    expected = {
        "00010": ("speech", "E_SILENT"),
        "00011": ("video", "E_NOFACE"),
        "00012": ("list", "E_LABELS"),
        "00013": ("speech", "E_OPEN"),
        "00014": ("text", "E_MISSING"),
        "00015": ("text", "E_NONFINITE"),
    }

    def rejected() -> dict:
        rows = table(features / "failed.csv").to_dict("records")
        assert all(row["reason"] and row["media"].endswith(".mp4") for row in rows)
        assert len(rows) + len(table(features / "manifest.csv")) == 10
        return {row["clip_id"]: (row["stage"], row["code"]) for row in rows}

    assert rejected() == expected
    assert "4 of 10 clips usable" in done.stdout and "1 silent" in done.stdout
    for clip_id, (_, code) in expected.items():
        assert f"rejected {clip_id}: {code}: " in done.stderr
    good, all_files = content(made), content(features)
    same = good.keys() - {"failed.csv"}
    assert {name: all_files[name] for name in same} == {name: good[name] for name in same}

    mended = data / VAL / "00015.npz"
    status = mended.stat()
    np.savez(mended, word_embed=np.ones((4, 200), np.float32))
    os.utime(mended, ns=(status.st_atime_ns, status.st_mtime_ns))  # mended, and nobody can see it
    (data / "kept.npz").rename(data / VAL / "00014.npz")
    preprocess(data, features, code=3)
    del expected["00014"]
    assert rejected() == expected

    preprocess(data, features, "--retry_failed", code=3)
    del expected["00015"]
    assert rejected() == expected


def test_names_that_are_not_utf8_are_listed(copies):
    data, features = copies
    (data / VAL / os.fsdecode(b"\xff-a-hap-hap-hap.mp4")).touch()
    preprocess(data, features, "--modalities", "text", code=3)
    [row] = table(features / "failed.csv").to_dict("records")
    assert (row["clip_id"], row["code"]) == ("\\udcff", "E_ID") and row["clip_id"] in row["media"]


def test_until_all_clips_have_the_new_settings_there_is_no_manifest(copies, monkeypatch):
    def stopped(*_):
        raise UsageError("stopped")

    data, features = copies
    with monkeypatch.context() as patch:
        patch.setattr("extract.corpus.parallel_map", stopped)
        preprocess(data, features, code=2)
        assert (features / "manifest.csv").is_file()
        preprocess(data, features, "--modalities", "text", code=2)
        assert not (features / "manifest.csv").exists()
    preprocess(data, features, "--modalities", "text")
    assert len(table(features / "manifest.csv")) == 4


# --- crashes and company ------------------------------------------------------------------------


FORKS = """
import os, sys
import facenet_pytorch, librosa, numpy, pandas, torch  # once, not for every run
import preprocess
from extract.audio import denoise, log_mel_spectrogram
from utils import guard
guard.START = "fork"
log_mel_spectrogram(denoise(numpy.ones(4096, "f4")))
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(2, 1)  # its report is not ours
        os._exit(preprocess.main())
    print(child, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def wait_for_lock(folder: Path) -> None:
    began = time.perf_counter()
    while time.perf_counter() - began < 10:
        with contextlib.suppress(LockedError), lock_folder(folder):
            return
        time.sleep(0.005)
    raise AssertionError("a worker has outlived its run by 10 s")


KILLS = 200 if os.environ.get("RELEASE") else 10
ENDS = [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)]


def test_killed_runs_leave_nothing_that_the_next_run_does_not_mend(corpus, made, tmp_path):
    """Runs are killed, or told to end, at random instants after a new file; whenever one is done,
    they begin anew."""
    features, rng, whole, killed = tmp_path / "features", random.Random(0), content(made), 0
    command = [sys.executable, "-c", FORKS, "--workers", "1", "--face_size", "64"]
    command += ["--data_dir", str(corpus), "--features_dir", str(features)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, **QUIET}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as parent:
        last = False
        while killed < KILLS or not last:
            last = killed >= KILLS  # this one may end
            print(file=parent.stdin, flush=True)
            child, began = int(parent.stdout.readline()), time.perf_counter()
            number, ends = rng.choice(ENDS)
            there = len(list(features.glob("*/*/*")))
            while not last and len(list(features.glob("*/*/*"))) <= there < len(whole) - 5:
                time.sleep(0.001)
                assert time.perf_counter() - began < 60
            if not last:
                time.sleep(rng.uniform(0, 0.03))
                began = time.perf_counter()
                os.kill(child, number)
                wait_for_lock(features)  # the dead run's worker, a fork, holds it for moments
                left = list(features.rglob(".*.part"))
            died = parent.stdout.readline() == f"ended {ends}\n"
            assert not died or (time.perf_counter() - began < 5 and not left)
            killed += died
            for name, value in content(features).items():
                if Path(name).suffix in (".npy", ".npz"):
                    assert value == whole[name], f"{name} is not whole"
            if not died:
                assert content(features) == whole  # and no .part among them
                shutil.rmtree(features)
        parent.stdin.close()


def test_death_after_any_step_of_a_clip_is_mended(corpus, tmp_path):
    [clip] = [clip for clip in merc2020.list_clips(corpus).clips if clip.split == "val"]
    settings = {
        "speech": audio.SPEECH_SETTINGS,
        "video": faces.FACE_SETTINGS,
        "text": words.TEXT_SETTINGS,
    }

    def process(place: str) -> dict:
        job = Job(tmp_path / place, ("speech", "text"), settings, word_dim=200)
        assert process_clip(clip, job)["failure"] is None
        return content(tmp_path / place)

    whole, step, died = process("whole"), 0, True
    assert len(whole) == 3
    while died:
        step += 1
        child = os.fork()
        if not child:
            signal.alarm(20)
            left = [step]

            def then_die(call, left=left):
                def dies(*args):
                    result = call(*args)
                    left[0] -= 1
                    return result if left[0] else os._exit(9)

                return dies

            os.fsync, os.replace = then_die(os.fsync), then_die(os.replace)
            process(f"step{step}")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        died = code == 9
        with lock_folder(tmp_path / f"step{step}"):
            pass
        assert process(f"step{step}") == whole
    assert step == 3 * len(whole) + 1  # sync, rename, sync of each file, then none is left


def test_ids_that_other_systems_take_for_one_are_named():
    clips = [
        SimpleNamespace(split="val", clip_id=each)
        for each in ("A1", "a1", "b", "\u00e9", "e\u0301")
    ]
    first, second = colliding_names([*clips, SimpleNamespace(split="train", clip_id="B")])
    assert "'A1', 'a1'" in first and "'\\xe9', 'e\\u0301'" in second


def test_every_code_is_explained_and_named():
    explained = (ROOT / "docs/questions.md").read_text()
    assert set(re.findall(r"^\| `(E_[A-Z]+)`", explained, re.M)) == set(CLIP_CODES)


def test_a_clip_that_kills_its_process_costs_only_itself(corpus, tmp_path, monkeypatch):
    def fatal(clip, *args):
        if clip.clip_id == "00002":
            faulthandler.disable()  # pytest's: it would print what looks like a crash of the tests
            os.kill(os.getpid(), signal.SIGSEGV)
        return text.make(clip, *args)

    features, whole, text = tmp_path / "features", tmp_path / "whole", STAGES["text"]
    preprocess(corpus, whole, "--modalities", "text")
    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "text", text._replace(make=fatal))
        patch.setattr("utils.guard.START", "fork")  # so that the process has the fault, too
        patch.setattr("utils.guard._here", threading.local())
        done = preprocess(corpus, features, "--modalities", "text", code=3)
        guard._stop()
    [row] = table(features / "failed.csv").to_dict("records")
    assert (row["clip_id"], row["stage"], row["code"]) == ("00002", "text", "E_KILLED")
    assert "SIGSEGV" in row["reason"] and "1 rejected (1 killed their process)" in done.stdout
    good, others = content(whole), content(features)
    tables = {"audit.json", "manifest.csv", "failed.csv"}
    kept = {name for name in good if "00002" not in name} - tables
    assert {name: others[name] for name in kept} == {name: good[name] for name in kept}

    before = stamps(features)
    preprocess(corpus, features, "--modalities", "text", code=3)
    assert stamps(features) == before
    preprocess(corpus, features, "--modalities", "text", "--retry_failed")
    assert content(features) == good
    assert {name for name in before if before[name] != stamps(features)[name]} == {
        "train/records/00002.json"
    }


def test_one_run_at_a_time(corpus, made):
    with lock_folder(made):
        done = preprocess(corpus, made, code=5)
    assert f"process {os.getpid()}" in done.stderr and len(done.stderr.splitlines()) <= 3


# --- usage --------------------------------------------------------------------------------------

BAD_FLAGS = {
    "an unknown flag": (["--face_fsp", "5"], "--face_fsp"),
    "an unknown corpus": (["--corpus", "iemocap"], "merc2020"),
    "an unknown modality": (["--modalities", "speech,smell"], "speech,video,text"),
    "a wrong folder": (["--data_dir", "nowhere"], "nowhere"),
    "no workers": (["--workers", "0"], "--workers: 0"),
    "no rate": (["--face_fps", "nan"], "--face_fps: nan"),
    "a size in letters": (["--face_size", "big"], "--face_size"),
    "embedding without video": (["--modalities", "text", "--video_embedding"], "video"),
    "vectors without text": (
        ["--modalities", "speech", "--word_vectors", "words.npz"],
        "--word_vectors is for text, which --modalities speech leaves out",
    ),
}


@pytest.mark.parametrize("fault", BAD_FLAGS)
def test_wrong_flags_are_refused_before_any_work(corpus, tmp_path, fault):
    flags, named = BAD_FLAGS[fault]
    done = preprocess(corpus, tmp_path / "features", *flags, code=2)
    assert named in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("place", ["file", "file/features", "features"])
def test_places_that_cannot_be_written_are_refused(corpus, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "features").mkdir()
    (tmp_path / "features/train").touch()  # where a folder of features belongs
    done = preprocess(corpus, tmp_path / place, code=2)
    assert str(tmp_path / place) in done.stderr and "Traceback" not in done.stderr


def test_missing_weights_are_known_before_any_work(corpus, tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("urllib.request._opener", None)  # which would keep other proxies
    features = tmp_path / "features"
    done = preprocess(corpus, features, "--video_embedding", code=2)
    assert "vggface2" in done.stderr and str(tmp_path / "torch") in done.stderr
    assert "Traceback" not in done.stderr and not list(features.glob("*/*"))


def test_help_is_quick():
    began = time.perf_counter()
    assert "--face_fps" in run_script("preprocess.py", "--help").stdout
    assert time.perf_counter() - began < 1.5


# --- real clips ---------------------------------------------------------------------------------

REAL = ROOT / "../shared/data/clips"
REAL_CODES = {
    "01-01-08-02-01-01-19": "E_NOAUDIO",
    "mead_contempt": "E_NOAUDIO",
    "mead_fear": "E_NOAUDIO",
    "mead_happy": "E_NOAUDIO",
    "WolfgangLanger_Pexels": "E_SILENT",
    "mead_disgust": "E_SILENT",
    "mead_surprise": "E_SILENT",
    "mead_sad": "E_TRUNC",
    "face_noface": "E_NOFACE",  # the speech falls on the cartoon
    "no_face": "E_NOFACE",
    "noface_face": "E_NOFACE",
}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the developers' clips in ../shared/data/clips")
def test_real_clips_are_usable_or_have_a_code(tmp_path):
    data = tmp_path / "data"
    shutil.copytree(REAL, data)
    media = sorted([*data.glob("*.mp4"), *data.glob("*.mov")])
    rows = [f"{path.name},test," for path in media]
    (data / "manifest.csv").write_text("\n".join(["media,split,emotion", *rows]))
    features = tmp_path / "features"
    preprocess(data, features, "--corpus", "csv", "--face_fps", 4, code=3)
    usable, failed = table(features / "manifest.csv"), table(features / "failed.csv")
    assert dict(zip(failed["clip_id"], failed["code"], strict=True)) == REAL_CODES
    assert {*usable["clip_id"], *failed["clip_id"]} == {path.stem for path in media}
    assert len(usable) + len(failed) == len(media)
    assert "merc2020_example" in set(usable["clip_id"])


def test_all_clips_rejected_at_listing_are_listed(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = "media,split,emotion\na.mp4,Train,merry\nb.mp4,val,blue\n"
    (tmp_path / "raw" / "manifest.csv").write_text(rows)
    places = ("--data_dir", tmp_path / "raw", "--features_dir", tmp_path / "features")
    done = run_main("preprocess", "--corpus", "csv", *places)
    assert done.code == 3 and "0 of 2 clips usable" in done.out, done.err
    assert "csv: 2 clips -> speech, video in" in done.err
    failed = pd.read_csv(tmp_path / "features" / "failed.csv")
    assert failed["media"].tolist() == ["a.mp4", "b.mp4"] and set(failed["code"]) == {"E_LABELS"}
    assert run_main("train", "--mode", "text", "--exp_name", "x", *places[2:]).code == 2


def test_damaged_records_and_settings_cost_their_clip_alone(tmp_path):
    make_clip(tmp_path / "raw" / "a.mp4", sound=tone(1.0))
    make_clip(tmp_path / "raw" / "b.mp4", sound=tone(1.2))
    rows = "media,split,emotion\na.mp4,train,hap\nb.mp4,val,sad\n"
    (tmp_path / "raw" / "manifest.csv").write_text(rows)
    features = tmp_path / "features"
    places = ("--data_dir", tmp_path / "raw", "--features_dir", features)
    command = ("preprocess", "--corpus", "csv", "--modalities", "speech", *places)
    assert run_main(*command).code == 0
    whole = digests(features)
    for content in ("{", "[1]"):
        for name in ("settings.json", "train/records/a.json"):
            (features / name).write_text(content)
        assert run_main(*command).code == 0
        assert digests(features) == whole


def test_changed_files_are_found_and_made_anew_when_asked(copies):
    data, features = copies
    whole, before = content(features), stamps(features)
    changed = ("test/text/00007.npz", "train/speech/00001.npy", "val/records/00001.json")
    for name, change in zip(
        changed,
        (
            lambda old: old[:-40],
            lambda old: old[:-1] + bytes([old[-1] ^ 1]),  # one bit of a value: it still loads
            lambda old: old.replace(b'"words": 4', b'"words": 5'),
        ),
        strict=True,
    ):
        old = (features / name).read_bytes()
        (features / name).write_bytes(change(old))
        assert change(old) != old
    done = preprocess(data, features, "--verify", "--workers", 2)
    listed = f"3 files were missing or changed, and are made anew: {', '.join(map(repr, changed))}"
    assert f"verified: {listed}\n" in done.stdout
    assert content(features) == whole
    made_anew = {name for name, stamp in stamps(features).items() if stamp != before[name]}
    assert {*changed} <= made_anew <= {*changed} | {name for name in before if "val/" in name}

    before = stamps(features)
    done = preprocess(data, features, "--verify")
    assert "verified: the features of 4 clips are as they were written\n" in done.stdout
    assert stamps(features) == before


def test_word_vectors_of_another_width_than_most_are_refused(tmp_path):
    raw, features = tmp_path / "raw", tmp_path / "features"
    raw.mkdir()
    widths = {"a": 25, "b": 300, "c": 300, "d": 300, "e": 0}
    for name, width in widths.items():
        np.savez(raw / f"{name}.npz", word_embed=np.ones((3, width), np.float32))
        (raw / f"{name}.mp4").touch()
    rows = [f"{name}.mp4,train,hap" for name in widths]
    (raw / "manifest.csv").write_text("\n".join(["media,split,emotion", *rows]))
    command = ("--corpus", "csv", "--modalities", "text")
    preprocess(raw, features, *command, code=3)
    found = {row["clip_id"]: row for row in table(features / "failed.csv").to_dict("records")}
    assert found.keys() == {"a", "e"}
    assert found["a"]["reason"] == "a.npz: shape (3, 25), expected (words, 300)"
    assert found["a"]["code"] == "E_SHAPE"
    before = stamps(features)
    preprocess(raw, features, *command, code=3)
    assert stamps(features) == before


def test_a_replaced_file_of_the_same_size_and_time_is_seen_by_name_or_verified(tmp_path):
    raw, features = tmp_path / "raw", tmp_path / "features"
    for name, hertz in (("x", 300), ("y", 900), ("z", 1500)):
        path = make_clip(raw / f"{name}.wav", sound=tone(1.0, hertz), sound_codec="pcm_s16le")
        os.utime(path, (1e9, 1e9))
    command = ("--corpus", "csv", "--modalities", "speech")

    def made(name: str, *flags) -> str:
        head = "media,split,emotion,clip_id"
        (raw / "manifest.csv").write_text(f"{head}\n{name}.wav,train,hap,one\n")
        preprocess(raw, features, *command, *flags)
        return digests(features)["train/speech/one.npy"]

    first, second = made("x"), made("y")
    assert first != second
    shutil.copy2(raw / "z.wav", raw / "y.wav")  # as large and as old
    assert made("y") == second and made("y", "--verify") not in (first, second)


LEVEL = """
import numpy as np

def load(settings, device):
    return lambda wave: np.array([[np.abs(wave).mean()]], np.float32)
"""


def test_only_usable_clips_are_verified(tmp_path):
    raw, features = tmp_path / "raw", tmp_path / "features"
    make_clip(raw / "a.ogg", sound=tone(1.0, rate=48_000), rate=48_000, sound_codec="libopus")
    (raw / "b.ogg").write_bytes(b"no sound")
    (raw / "manifest.csv").write_text("media,split,emotion\na.ogg,train,hap\nb.ogg,train,sad\n")
    done = preprocess(raw, features, "--corpus", "csv", "--verify", code=3)  # of sound alone
    assert "verified: the features of 1 clip are as they were written\n" in done.stdout


@pytest.fixture
def short():
    """A folder for temporary files; in pytest's own the paths of sockets would be too long."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


def test_a_run_that_is_ended_leaves_no_folder_of_sockets(corpus, tmp_path, short):
    command = [sys.executable, "preprocess.py", "--workers", "1", "--data_dir", str(corpus)]
    command += ["--features_dir", str(tmp_path / "f"), "--modalities", "speech"]
    environment = {**os.environ, **QUIET, "TMPDIR": str(short)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        began = time.perf_counter()
        while not list(short.glob("pymp-*")):
            assert run.poll() is None and time.perf_counter() - began < 60
            time.sleep(0.005)
        run.send_signal(signal.SIGTERM)
        assert run.wait(10) == 143
    assert not list(short.iterdir())


def test_what_was_made_from_a_changed_file_is_verified_with_it(tmp_path):
    """An encoder's feature has no source of its own: what it was shown has."""
    raw, features = tmp_path / "raw", tmp_path / "features"
    for name, level in (("a", 0.5), ("b", 0.1), ("c", 0.3)):
        sound = np.r_[tone(0.5, level=level), tone(0.5, level=0.5)]
        make_clip(raw / f"{name}.wav", sound=sound, sound_codec="pcm_s16le")
        os.utime(raw / f"{name}.wav", (1e9, 1e9))
    (raw / "manifest.csv").write_text("media,split,emotion\na.wav,train,hap\nc.wav,val,sad\n")
    (tmp_path / "level.py").write_text(LEVEL)
    encoder = ("--encoder", f"level=speech:file:{tmp_path / 'level.py'}")
    preprocess(raw, features, *SOUND, *encoder)
    before = digests(features)["train/level/a.npy"]
    shutil.copy2(raw / "b.wav", raw / "a.wav")  # as large and as old
    done = preprocess(raw, features, *SOUND, "--verify")
    assert "3 files were missing or changed" in done.stdout  # the encoder's, too, and for later
    assert not (features / "train/level/a.npy").exists()
    preprocess(raw, features, *SOUND, *encoder)
    assert digests(features)["train/level/a.npy"] != before
    assert "as they were written" in preprocess(raw, features, *SOUND, *encoder, "--verify").stdout


def test_what_a_run_does_not_ask_for_or_cannot_make_stays(copies):
    """Other flags, then a disc that is not there: nothing is made a second time."""
    data, features = copies
    before = stamps(features)
    preprocess(data, features, "--modalities", "speech,text", "--face_size", 96)
    preprocess(data, features, "--modalities", "speech")
    preprocess(data, features)
    assert changed(before, stamps(features)) == set()
    clip = data / f"{VAL}/00001-a-dis-dis-dis.mp4"
    clip.rename(data / "away")
    clip.symlink_to(data / "nowhere")
    preprocess(data, features, code=3)
    clip.unlink()
    (data / "away").rename(clip)
    preprocess(data, features)
    assert changed(before, stamps(features)) == set()


def test_nothing_names_a_feature_that_is_being_replaced(copies, monkeypatch):
    """A run that is killed between a new file and its record leaves no mixture that opens."""
    data, features = copies
    [clip] = [each for each in merc2020.list_clips(data).clips if each.split == "val"]
    settings = json.loads((features / "settings.json").read_text())["features"]
    job = Job(features, ("speech", "video", "text"), settings, word_dim=200)
    process_clip(clip, job)
    assert (features / "manifest.csv").exists()  # nothing was made
    os.utime(clip.media, (1e9, 1e9))

    def dies(*_):
        raise KeyboardInterrupt

    from extract import clip as made

    old = made.read_record(record_path(features, clip.split, clip.clip_id))
    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "video", STAGES["video"]._replace(make=dies))
        with contextlib.suppress(KeyboardInterrupt):
            process_clip(clip, job)
    assert not (features / "manifest.csv").exists()
    left = made.read_record(record_path(features, clip.split, clip.clip_id))["stages"]
    assert left == {name: old["stages"][name] for name in ("video", "text")}


def test_failures_are_tried_again_when_their_cause_may_be_gone(tmp_path, monkeypatch):
    raw, features = tmp_path / "raw", tmp_path / "features"
    make_clip(raw / "a.wav", sound=tone(120), sound_codec="pcm_s16le")
    (raw / "manifest.csv").write_text("media,split,emotion\na.wav,train,hap\n")
    command = ("--corpus", "csv", "--modalities", "speech")
    # in a new process: what clips of earlier tests freed in the old one is memory, too
    monkeypatch.setattr(guard, "_here", threading.local())
    preprocess(raw, features, *command, "--memory_mb", 1, code=3)
    [row] = table(features / "failed.csv").to_dict("records")
    assert row["code"] in ("E_KILLED", "E_CODEC") and "--memory_mb" in row["reason"]
    before = stamps(features)
    preprocess(raw, features, *command, "--memory_mb", 1, code=3)
    assert stamps(features) == before
    preprocess(raw, features, *command)
    guard._stop()


def test_the_folder_of_the_clips_is_no_place_for_features(tmp_path):
    raw = make_clip(tmp_path / "a.wav", sound=tone(1.0), sound_codec="pcm_s16le").parent
    (raw / "manifest.csv").write_text("media,split,emotion\na.wav,train,hap\n")
    before = digests(raw)
    done = preprocess(raw, raw, "--corpus", "csv", code=2)
    assert "the folder of the clips itself" in done.stderr and digests(raw) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.csv").write_text("somebody's\n")
    done = preprocess(raw, other, "--corpus", "csv", code=2)
    assert "would be written over" in done.stderr and [*other.iterdir()] == [other / "manifest.csv"]


def test_many_clips_of_one_name_are_told_in_few_words(tmp_path):
    files = [f"clip_{number}/video.mp4" for number in range(300)]
    rows = [f"{name},train,hap" for name in files]
    (tmp_path / "manifest.csv").write_text("\n".join(["media,split,emotion", *rows]))
    features = tmp_path / "features"
    preprocess(tmp_path, features, "--corpus", "csv", code=3)
    failed = table(features / "failed.csv")
    assert set(failed["code"]) == {"E_DUP"} and len(failed) == 300
    assert (
        failed["reason"].str.contains("300 files").all() and max(map(len, failed["reason"])) < 400
    )


def test_verifying_goes_on_beside_a_clip_that_cannot_be_read(copies, monkeypatch):
    data, features = copies
    before = stamps(features)

    def refuse(path, *_):
        if path.name.startswith("00001"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *_)

    from extract import clip

    real = clip._digest_of
    with monkeypatch.context() as patch:
        patch.setattr("extract.clip._digest_of", refuse)
        done = preprocess(data, features, "--verify")
    assert "verified: the features of 4 clips" in done.stdout and stamps(features) == before
    (features / "val/records/00001.json").unlink()
    done = preprocess(data, features, "--verify")
    assert "1 file was missing or changed" in done.stdout and "val/records/00001" in done.stdout


# --- the audit ----------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path) -> tuple[Path, Path]:
    """Three sounds of which two are one recording, in train and val; a place for features."""
    raw = make_clip(tmp_path / "raw" / "a.wav", sound=tone(1.0), sound_codec="pcm_s16le").parent
    shutil.copy(raw / "a.wav", raw / "b.wav")
    make_clip(raw / "c.wav", sound=tone(1.1, 1500), sound_codec="pcm_s16le")
    rows = ["a.wav,train,hap,anna", "b.wav,val,hap,ben", "c.wav,val,sad,anna"]
    (raw / "manifest.csv").write_text("\n".join(["media,split,emotion,speaker", *rows]))
    return raw, tmp_path / "features"


SOUND = ("--corpus", "csv", "--modalities", "speech")


def test_what_splits_share_is_named_and_stored_for_training(recordings, monkeypatch):
    raw, features = recordings
    done = preprocess(raw, features, *SOUND)
    assert "3 of 3 clips" in done.stdout
    assert "warning: speaker anna: in splits train (1), val (1)" in done.stderr
    assert "warning: duplicate same bytes, same sound, same speech features: in " in done.stderr
    assert "val (1); folds 0 (1), 1 (1): train/a, val/b" in done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("audit: ")]
    assert line.startswith("audit: 2 leaks across 2 splits, 1 leak across 2 folds; compared: spea")
    assert line.endswith("dialogues: unknown for 3 of 3 clips, not compared")
    # a run without work, and a training, compare nothing again
    monkeypatch.setattr("corpora.audit.compare", None)
    assert line in preprocess(raw, features, *SOUND).stdout
    assert len(load_audit(features).findings) == 2


def test_an_interrupted_audit_costs_nothing_else(recordings, monkeypatch):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    raw, features = recordings
    preprocess(raw, features, *SOUND)
    whole = content(features)
    shutil.rmtree(features)
    with monkeypatch.context() as patch:
        patch.setattr("corpora.audit.compare", interrupt)
        child = os.fork()
        if not child:
            preprocess(raw, features, *SOUND)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert content(features) == {name: whole[name] for name in whole if name != "audit.json"}
    assert len(load_audit(features).findings) == 2 and content(features) == whole


def test_a_damaged_sound_is_no_reason_to_fail(recordings):
    """`--verify` mends it; until then a training names it."""
    raw, features = recordings
    preprocess(raw, features, *SOUND)
    (features / "audit.json").unlink()
    (features / "val/speech/c.npy").write_bytes(b"x")
    done = preprocess(raw, features, *SOUND)
    assert "warning: splits and folds were not compared: " in done.stderr
    assert "val/speech/c.npy is missing or damaged" in done.stderr and "audit: " not in done.stdout
    assert "audit: 2 leaks" in preprocess(raw, features, *SOUND, "--verify").stdout
