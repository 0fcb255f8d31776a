"""predict.py on a user's clips: the training's own preprocessing, any input missing, pictures."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    CLASSES,
    QUIET,
    ROOT,
    digests,
    make_clip,
    run_script,
    save_untrained,
    tone,
    voice,
)
from inside import run_main
from PIL import Image

from evaluation.ensemble import load_members, make_dataset
from extract import audio
from inference.annotate import annotate
from inference.figure import token_edges
from inference.prediction import FUSED, ClipPrediction, Seen
from inference.predictor import Predictor, Vote
from inference.sources import find_sources, read_cues, read_words
from models.pooling import FrameAttention
from training.checkpoint import load_checkpoint, save_checkpoint
from training.data import ClipDataset, make_loader
from training.features import Features
from training.inference import encode, infer
from training.tasks import TASKS
from utils import guard
from utils.errors import ClipError, IntegrityError, UsageError

SAID = "a good day"


@pytest.fixture
def ask(place, tmp_path):
    """Run predict.py; its result with `table`, `clips` (from the JSON) and `out`."""

    def run(*args, checkpoints=("any.pth",), code: int = 0):
        given = [place / name for name in checkpoints]
        flags = ("--device", "cpu", "--out", tmp_path / "out", "--checkpoints", *given)
        done = run_main("predict", *args, *flags)
        assert done.code == code, done.err
        done.folder = tmp_path / "out"
        if (done.folder / "predictions.csv").is_file():
            done.table = pd.read_csv(done.folder / "predictions.csv", keep_default_na=False)
            done.clips = json.loads((done.folder / "predictions.json").read_text())["clips"]
        return done

    return run


@pytest.fixture(scope="module")
def predictor(place):
    return Predictor([place / "any.pth"], device="cpu")


def test_features_are_those_of_preprocess(place, tmp_path):
    predictor = Predictor([place / "plain.pth"], folder=tmp_path, device="cpu")
    for source in find_sources([place / "clips"], None):
        predictor.predict(source)
    theirs, ours = digests(place / "features"), digests(tmp_path)
    arrays = [name for name in theirs if name.endswith((".npy", ".npz"))]
    assert len(arrays) == 6 and {name: ours[name] for name in arrays} == {
        name: theirs[name] for name in arrays
    }


@pytest.mark.parametrize("name", ["any.pth", "plain.pth", "speech.pth", "face.pth"])
def test_numbers_are_those_of_the_trained_model_on_those_features(place, ask, name):
    done = ask(place / "clips", "--no_pictures", checkpoints=[name])
    features = Features.open(place / "features")
    (member,) = load_members([place / name], features)
    loader = make_loader(make_dataset(member, features.rows("clips"), features), 1, 0, "cpu")
    model = member.model
    batches = infer([model], loader, "cpu", lambda given: model.classify(encode(model, given)))
    for clip, (_, prediction) in zip(done.clips, batches, strict=True):
        for head, logits in prediction.logits.items():
            part = clip["parts"]["fused" if head == "integrated" else head]
            expected = logits[0].double().softmax(0).tolist()
            assert list(part) == list(CLASSES)
            assert list(part.values()) == pytest.approx(expected, abs=1e-12)


def test_a_face_alone_needs_no_sound(ask, tmp_path, face_image):
    """With sound it is looked for while somebody speaks, as in its training (the test above)."""
    clip = make_clip(tmp_path / "silent.mp4", np.stack([face_image] * 11), None, fps=10)
    done = ask(clip, "--no_pictures", checkpoints=["face.pth"])
    (found,) = done.clips
    assert list(found["parts"]) == ["face"] and not found["missing"], found


def test_views_and_ensemble_are_those_of_a_submission(place, ask, tmp_path):
    both = ["any.pth", "plain.pth"]
    done = ask(*(place / "clips", "--tta", 6, "--no_pictures"), checkpoints=both)
    (tmp_path / "sheet.csv").write_text("FileID\nanna\nben\n")
    flags = ("--tta", 6, "--temperature", 1, "--face_frames", 2, "--num_workers", 0)
    submitted = run_main(
        *("make_submission", "--checkpoints", *(place / name for name in both), *flags),
        *("--sheets", tmp_path / "sheet.csv", "--out", tmp_path, "--split", "clips"),
        *("--features_dir", place / "features"),
    )
    assert submitted.code == 0, submitted.err
    with np.load(tmp_path / "sheet_submission.npz", allow_pickle=False) as archive:
        expected = archive["scores"]
    fused = done.table[done.table["part"] == "fused"]
    assert fused[list(CLASSES)].to_numpy(float) == pytest.approx(expected, abs=1e-6)


FRESH = """
import sys, inference
assert "torch" not in sys.modules, "import inference loads torch"
from inference import Predictor
for checkpoint in sys.argv[2:]:
    print(Predictor([checkpoint])(sys.argv[1]).label)
"""


def test_two_lines_of_python_give_a_label(place, tmp_path, predictor):
    """In a fresh process, for a .pth and for a run folder, on the device that is there."""
    shutil.copy(place / "any.pth", tmp_path / "1_best_1.0000.pth")
    clip = place / "clips" / "anna.mp4"
    run = subprocess.run(
        [sys.executable, "-c", FRESH, clip, place / "any.pth", tmp_path],
        cwd=ROOT,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split() == [predictor(clip).label] * 2, run.stderr


@pytest.fixture(scope="module")
def inputs(place, face_image):
    """Clips that lack something, by what they have."""
    folder = place / "lacking"
    picture = np.stack([face_image] * 11)
    sound = np.r_[np.zeros(1600), tone(0.8), np.zeros(1600)]
    made = {
        "speech": make_clip(folder / "voice.wav", None, sound, sound_codec="pcm_s16le"),
        "face": make_clip(folder / "silent.mp4", picture, None, fps=10),
        "speech of a faceless clip": make_clip(folder / "wall.mp4", picture // 99, sound, fps=10),
        "speech, face": make_clip(folder / "wordless.mp4", picture, sound, fps=10),
    }
    shutil.copy(place / "clips" / "anna.npz", folder / "words.npz")
    return made | {"text": folder / "words.npz"}


@pytest.mark.parametrize("have", ["speech", "face", "text", "speech, face"])
def test_learnt_vectors_answer_for_what_is_missing(inputs, predictor, have):
    given = predictor(inputs[have])
    assert given.rests_on == have.split(", ")
    assert set(given.missing) == {"speech", "face", "text"} - set(given.rests_on)
    assert "fused" in given.parts and given.probabilities.sum() == pytest.approx(1)
    assert "learnt tokens stand for what is missing" in given.remarks[0]


def test_a_fused_answer_is_the_models_own_with_learnt_tokens(inputs, predictor):
    given = predictor(inputs["speech"])
    (member,) = predictor.members
    row = pd.DataFrame([given.facts])
    tensors = ClipDataset(predictor.features, row, TASKS["speech"], member.config, training=False)[
        0, 0
    ]["inputs"]["speech"]
    with torch.inference_mode():
        speech = tuple(tensor[None] for tensor in tensors)
        logits = member.model.classify(member.model.encode({"speech": speech})).logits
    expected = logits["integrated"][0].softmax(0).numpy()
    assert given.parts["fused"] == pytest.approx(expected, abs=1e-6)
    with torch.no_grad():  # and the token that stands for the face is what was learnt
        member.model.missing["face"] += 1
    try:
        other = predictor(inputs["speech"])
        assert np.abs(other.parts["fused"] - expected).max() > 1e-3
    finally:
        with torch.no_grad():
            member.model.missing["face"] -= 1


REMARKS = {  # of a clip with a voice alone
    ("any.pth",): "rests on voice; learnt tokens stand for what is missing",
    ("plain.pth",): "rests on voice; trained without --modality_dropout: "
    "all inputs are needed for a fused answer",
    ("speech.pth", "face.pth"): "rests on voice",
    ("speech.pth",): None,
}


@pytest.mark.parametrize("given", REMARKS, ids=" ".join)
def test_learnt_tokens_are_named_only_where_they_were_used(inputs, place, given):
    found = Predictor([place / name for name in given], device="cpu")(inputs["speech"])
    assert next(iter(found.remarks), None) == REMARKS[given]
    assert found.filled_in == (given == ("any.pth",))


def test_what_is_no_sound_of_the_clip_counts_nothing(inputs, place):
    """A short clip stands in the middle of the columns that the model sees."""
    save_untrained(place / "wide.pth", place / "features", "speech", speech_frames=192)
    given = Predictor([place / "wide.pth"], device="cpu")(inputs["speech"])
    view, weights = given.seen["speech"]
    real = 32 < given.facts["speech_frames"] < 128
    assert real and view.shape == (1, 128, 192) and weights.shape == (6,)
    sound = (view[0] > 0).any(axis=0).reshape(6, 32).any(axis=1)
    assert 0 < sound.sum() < 6
    assert np.array_equal(weights > 0, sound) and weights.sum() == pytest.approx(1)


PLAIN = {
    "speech": ["speech"],
    "face": ["face"],
    "speech, face": ["mean", "speech", "face"],
    "speech of a faceless clip": ["speech"],
}


@pytest.mark.parametrize("have", PLAIN)
def test_without_learnt_vectors_the_heads_that_can_answer(inputs, ask, have):
    done = ask(inputs[have], "--no_pictures", checkpoints=["plain.pth"])
    assert list(done.table["part"]) == PLAIN[have]
    assert "trained without --modality_dropout" in done.out
    assert "learnt tokens" not in done.out, "where none were used"
    (clip,) = done.clips
    if "mean" in clip["parts"]:
        heads = [list(clip["parts"][name].values()) for name in ("speech", "face")]
        assert list(clip["parts"]["mean"].values()) == pytest.approx(np.mean(heads, axis=0))
    assert clip["rests_on"] == [part for part in PLAIN[have] if part != "mean"]


def test_a_clip_that_nothing_can_answer_is_listed_and_the_others_are_answered(inputs, place, ask):
    (place / "junk.mp4").write_text("not a video")
    done = ask(
        *(place / "junk.mp4", inputs["text"], inputs["speech"], "--no_pictures"),
        checkpoints=["plain.pth"],
        code=3,
    )
    assert [clip["answer"] is None for clip in done.clips] == [True, True, False]
    assert "no voice: cannot open junk.mp4" in done.out and "2 of 3 have no answer" in done.err
    assert "E_" not in done.out + "".join(done.clips[0]["remarks"])
    assert done.clips[0]["missing"]["speech"].startswith("E_OPEN: "), "programs need the code"


@pytest.mark.parametrize("name", [b"c$\\frac{$.mp4", b"bad\xff.mp4"])
def test_any_name_can_be_drawn(place, ask, tmp_path, name):
    """tests/test_pictures.py has words, classes, and what would be a formula."""
    (tmp_path / "clips").mkdir()
    clip = tmp_path / "clips" / os.fsdecode(name)
    shutil.copy(place / "clips" / "anna.mp4", clip)
    done = ask(clip, checkpoints=["face.pth"])
    (picture,) = done.folder.glob("*.png")
    assert picture.stat().st_size > 20_000


DEADLY = {  # what reading a clip does to its process
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "--memory_mb": lambda: np.empty(8 << 30, np.uint8),
}


@pytest.mark.parametrize("why", DEADLY)
def test_a_clip_that_kills_its_reader_costs_no_other(place, ask, tmp_path, monkeypatch, why):
    def deadly(path, *args):
        if path.name == "deadly.mp4":
            DEADLY[why]()
        return read(path, *args)

    read = audio.read_mono
    monkeypatch.setattr(audio, "read_mono", deadly)
    monkeypatch.setattr(guard, "START", "fork")  # so that the child knows it, too
    monkeypatch.setattr(guard, "_here", threading.local())
    (tmp_path / "clips").mkdir()
    for name in ("anna", "deadly"):
        shutil.copy(place / "clips" / "anna.mp4", tmp_path / "clips" / f"{name}.mp4")
    done = ask(tmp_path / "clips", "--no_pictures", checkpoints=["speech.pth"], code=3)
    assert [clip["answer"] is None for clip in done.clips] == [False, True]
    assert why in done.out and "1 of 2 have no answer" in done.err, done.out + done.err


def crash(path, predictions):
    faulthandler.disable()  # pytest's: it would print what looks like a crash of the tests
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_video_that_kills_what_draws_into_it_costs_that_video(place, ask, monkeypatch):
    monkeypatch.setattr("inference.predictor.annotate", crash)
    monkeypatch.setattr(guard, "START", "fork")  # so that the child knows it, too
    monkeypatch.setattr(guard, "_here", threading.local())
    clip = place / "clips" / "anna.mp4"
    done = ask(clip, "--annotate", "--no_pictures", checkpoints=["speech.pth"])
    assert "anna.mp4 is not annotated: its process died of SIGSEGV" in done.err
    assert not (done.folder / "anna.mp4").exists() and done.clips[0]["answer"]


def test_seconds_are_those_of_the_process_that_reads(place, ask):
    clip = place / "clips" / "anna.mp4"
    done = ask(clip, "--times", "--no_pictures", checkpoints=["any.pth"])
    told = dict(re.findall(r"(\w+) (\d+\.\d+) s", done.out))
    assert set(told) == {"decode", "mel", "detect", "extract", "network"}, done.out
    within = sum(float(told[name]) for name in ("decode", "mel", "detect"))
    assert 0 < within <= float(told["extract"]) + 0.02


def test_pictures_and_tables(place, inputs, ask):
    from PIL import Image

    done = ask(
        place / "clips", inputs["face"], inputs["text"], "--annotate", checkpoints=["any.pth"]
    )
    names = {path.name for path in done.folder.iterdir()}
    pictures = {"anna.png", "ben.png", "silent.png", "words.png"}
    assert names == pictures | {"predictions.csv", "predictions.json"} | {
        "anna.mp4",
        "ben.mp4",
        "silent.mp4",
    }
    assert "words.npz is not annotated: words have no picture to draw the answer in" in done.err
    with pytest.raises(ClipError, match="a still picture is no video"):
        annotate(Path("a.jpg"), [])
    for name in pictures:
        width, height = Image.open(done.folder / name).size
        assert width / height == pytest.approx(11 / 5.4, abs=0.01) and width > 1000
    for _, row in done.table.iterrows():
        assert sum(row[name] for name in CLASSES) == pytest.approx(1, abs=1e-5)
        assert row["answer"] == max(CLASSES, key=lambda name: row[name])
    assert done.out.splitlines()[0].split()[3:] == list(CLASSES)


def test_the_annotated_video_shows_the_answer_while_it_holds(place, face_image, tmp_path):
    from corpora.manifest import Clip
    from extract.faces import frames_at
    from inference.annotate import annotate
    from inference.sources import Source

    media = make_clip(
        tmp_path / "clip.mp4",
        np.full((30, 180, 321, 3), 200, np.uint8)[:, :, :320],
        tone(2),
        fps=15,
    )
    source = Source(str(media), Clip("clip", "clips", media), 0.0, 1.0)
    drawn = ClipPrediction(source, list(CLASSES), {}, {}, {"face": np.full(7, 1 / 7)})
    (tmp_path / "drawn.mp4").write_bytes(annotate(media, [drawn]))
    (_, during), (_, after) = frames_at(tmp_path / "drawn.mp4", np.array([0.5, 1.5]))
    assert during.shape == after.shape == (180, 320, 3)
    assert during[-20:, :20].mean() < 130 and after[-20:, :20].mean() > 190


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_an_annotated_video_keeps_two_channels_and_the_mean_of_others(channels):
    import av

    from inference.annotate import as_heard

    samples = np.random.default_rng(0).uniform(-1, 1, (50, channels)).astype("f4")
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "flt", layout=f"{channels} channels")
    frame.sample_rate, frame.pts, frame.time_base = 48_000, 7, Fraction(1, 48_000)
    heard = as_heard(frame)
    expected = samples if channels == 2 else samples.mean(axis=1)
    np.testing.assert_allclose(heard.to_ndarray().ravel(), expected.ravel(), atol=1e-6)
    assert (heard.pts, heard.layout.nb_channels) == (7, 2 if channels == 2 else 1)


def test_a_time_line_says_what_its_answers_rest_on():
    """Its colours look the same whether a voice was heard or not."""
    from inference.timeline import bases

    seen, even = Seen(np.zeros(1), None), np.full(7, 1 / 7)
    looked = {"speech": seen, "face": seen}
    both = ({FUSED: even, "face": even}, looked, ["speech", "face"])
    given = [both, ({"face": even}, looked, ["face"]), both, ({}, {}, [])]
    predictions = [ClipPrediction(None, list(CLASSES), {}, {}, *each) for each in given]
    assert bases(predictions) == "rests on voice + face (2 of 4), face (1 of 4), no answer (1 of 4)"


def test_words_are_looked_up(place, inputs, ask, tmp_path):
    """--text with the vectors of an .npz beside the clip gives that clip's answer."""
    vectors = tmp_path / "vectors.npz"
    with np.load(place / "clips" / "anna.npz", allow_pickle=False) as archive:
        np.savez(vectors, words=np.array(SAID.split()), vectors=archive["word_embed"])
    clip = place / "clips" / "anna.mp4"
    beside = ask(clip, "--no_pictures").clips[0]["parts"]
    given = ask(clip, "--no_pictures", "--text", SAID, "--word_vectors", vectors).clips[0]
    assert given["parts"] == beside and given["words"] == SAID
    (tmp_path / "alone.txt").write_text(SAID)
    shutil.copy(clip, tmp_path / "alone.mp4")
    read = ask(tmp_path / "alone.mp4", "--no_pictures", "--word_vectors", vectors).clips[0]
    assert read["parts"] == beside
    alone = ask("--no_pictures", "--text", SAID, "--word_vectors", vectors).clips[0]
    assert alone["rests_on"] == ["text"]
    assert alone["missing"] == dict.fromkeys(("speech", "face"), "E_MISSING: no clip was given")
    without = ask(tmp_path / "alone.mp4", "--no_pictures").clips[0]
    assert "--word_vectors FILE" in without["missing"]["text"]
    np.savez(vectors, words=np.array(SAID.split()), vectors=np.ones((3, 5), "f4"))
    wrong = ask(clip, "--text", SAID, "--word_vectors", vectors, code=2)
    assert "its vectors have 5 values, the checkpoint reads 16" in wrong.err


def test_other_word_vectors_than_the_trainings_are_refused(place, ask, tmp_path):
    checkpoint = load_checkpoint(place / "any.pth")
    checkpoint["features_config"]["text"] |= {"vectors": "0123456789abcdef", "rule": 1}
    save_checkpoint(place / "by_name.pth", checkpoint)
    np.savez(tmp_path / "v.npz", words=np.array(["a"]), vectors=np.ones((1, 16), "f4"))
    flags = ("--text", SAID, "--word_vectors", tmp_path / "v.npz")
    done = ask(place / "clips" / "anna.mp4", *flags, checkpoints=["by_name.pth"], code=4)
    assert "0123456789abcdef" in done.err
    beside = ask(place / "clips" / "anna.mp4", "--no_pictures", checkpoints=["by_name.pth"])
    assert beside.clips[0]["rests_on"] == ["speech", "face"]  # not the .npz of who knows what


BAD = {
    "no such file or folder": lambda place: ["nowhere.mp4"],
    "nothing given": lambda place: [],
    "no clip in": lambda place: [place / "features" / "clips" / "text"],
    "--text is one clip's words, here are 2": lambda place: [place / "clips", "--text", "x"],
    "no checkpoint at": lambda place: [place / "clips" / "anna.mp4"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_usage_is_one_line(place, ask, message):
    name = "absent" if message == "no checkpoint at" else "any.pth"
    done = ask(*BAD[message](place), checkpoints=[name], code=2)
    assert message in done.err and done.err.count("\n") == 1


def test_a_clip_behind_the_checkpoints_is_told_where_it_belongs(place):
    clip = place / "clips" / "anna.mp4"
    done = run_main("predict", "--checkpoints", place / "any.pth", clip)
    assert done.code == 2 and f"{clip} stands behind --checkpoints" in done.err


def test_checkpoints_that_no_clip_can_feed(place, tmp_path):
    checkpoint = load_checkpoint(place / "any.pth")
    checkpoint["arch"]["encoders"]["my_au"] = {"type": "VectorEncoder", "dim": 3}
    save_checkpoint(tmp_path / "own.pth", checkpoint)
    with pytest.raises(UsageError, match="custom features, my_au, which nothing makes of a clip"):
        Predictor([tmp_path / "own.pth"])
    checkpoint = load_checkpoint(place / "any.pth")
    del checkpoint["features_config"]["video"]["margin"]
    save_checkpoint(tmp_path / "old.pth", checkpoint)
    with pytest.raises(IntegrityError, match="another version: video without margin"):
        Predictor([tmp_path / "old.pth"])


def test_a_long_recording_is_cut_at_its_pauses(place, ask, face_image, tmp_path):
    pause = np.zeros(16_000)
    parts = [voice(2.0), pause, voice(1.5, 1), pause, voice(1.0, 2)]
    sound = np.concatenate(parts)
    clip = make_clip(tmp_path / "long.mp4", np.stack([face_image] * 65), sound, fps=10)
    cues = (
        "1\n00:00:03,100 --> 00:00:04,200\n<i>a good</i>\nday\n\n2\n00:09:00,0 --> 00:09:01,0\nx\n"
    )
    (tmp_path / "long.srt").write_text(cues)
    np.savez(tmp_path / "v.npz", words=np.array(SAID.split()), vectors=np.ones((3, 16), "f4"))
    done = ask(clip, "--longest", 3, "--word_vectors", tmp_path / "v.npz")
    spans = [(each["start"], each["end"]) for each in done.clips]
    assert np.array(spans) == pytest.approx(np.array([(0, 2), (3, 4.5), (5.5, 6.5)]), abs=0.25)
    assert [each["words"] for each in done.clips] == ["", SAID, "x"]
    assert [each["rests_on"] for each in done.clips] == [
        ["speech", "face"],
        ["speech", "face", "text"],
        ["speech", "face"],
    ]
    assert {path.name for path in done.folder.iterdir()} >= {"long.png"}
    whole = ask(clip, "--longest", 60, "--no_pictures")
    assert [each["start"] for each in whole.clips] == [None]


def test_subtitles(tmp_path):
    srt = tmp_path / "a.srt"
    srt.write_bytes(
        b"\xef\xbb\xbf1\r\n00:00:01,500 --> 00:00:02,250 X1:0\r\n- Hi <b>you</b>\r\n\r\n"
    )
    assert read_cues(srt) == [(1.5, 2.25, "- Hi you")]
    assert read_words(srt) == "- Hi you"
    srt.write_text("no times")
    with pytest.raises(UsageError, match="holds no subtitles"):
        read_cues(srt)
    srt.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"save it as .CSV. UTF-8"):
        read_words(srt)


def test_names_of_clips_stay_in_the_folder_and_apart(tmp_path):
    for name in ("a.mp4", "sub/a.mp4", "..mp4", "-rf.mp4", "x y'\n.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    names = [source.clip.clip_id for source in find_sources([tmp_path], None)]
    assert sorted(names) == ["a", "a-2", "clip", "rf", "x_y_"]


@pytest.mark.parametrize(
    ("columns", "tokens"), [(400, 13), (400, 12), (48, 2), (33, 2), (96, 3), (70, 2)]
)
def test_the_line_over_a_spectrogram_stands_where_its_tokens_do(columns, tokens):
    """A backbone makes a token of each 32 columns; some make one of what is left."""
    assert token_edges(columns, tokens).tolist() == [32 * k for k in range(tokens + 1)]


@pytest.mark.parametrize("relation", [False, True])
def test_attention_tells_its_weights(relation):
    """The weighted mean with these weights is the output; padding has no weight."""
    attention, x = FrameAttention(5, relation), torch.randn(3, 4, 5)
    mask = torch.arange(4) < torch.tensor([[4], [3], [1]])
    weights = attention.weights(x, mask)
    assert weights.shape == (3, 4) and torch.allclose(weights.sum(dim=1), torch.ones(3))
    assert torch.equal(weights > 0, mask)
    frames, _ = attention.weigh(x, mask)
    again = (frames * weights.unsqueeze(2)).sum(dim=1)
    assert torch.allclose(again, attention(x, mask), atol=1e-6)


def test_bad_words_cost_the_words_alone(place, ask, tmp_path):
    for name in ("anna", "ben"):
        shutil.copy(place / "clips" / f"{name}.mp4", tmp_path)
    (tmp_path / "anna.txt").write_bytes(b"caf\xe9")
    (tmp_path / "ben.txt").write_text("xyzzy")
    vectors = tmp_path / "vectors.npz"
    np.savez(vectors, words=np.array(["good"]), vectors=np.ones((1, 16), "f4"))
    done = ask(tmp_path, "--word_vectors", vectors, "--no_pictures")
    reasons = [clip["missing"]["text"] for clip in done.clips]
    assert "is not UTF-8 text" in reasons[0] and "knows none of the words" in reasons[1]
    assert all({*clip["rests_on"]} == {"face", "speech"} for clip in done.clips), done.clips


def test_words_without_times_are_named_when_a_clip_is_cut(place, ask, face_image, tmp_path):
    make_clip(tmp_path / "long.mp4", np.stack([face_image] * 30), tone(3.0), fps=10)
    done = ask(tmp_path / "long.mp4", "--text", SAID, "--longest", 1, "--no_pictures")
    assert all("an .srt, or raise --longest" in clip["missing"]["text"] for clip in done.clips)
    (tmp_path / "long.txt").write_bytes(b"caf\xe9")
    (tmp_path / "long.srt").write_text("no cues")
    done = ask(tmp_path / "long.mp4", "--longest", 1, "--no_pictures")
    assert all("holds no subtitles" in clip["missing"]["text"] for clip in done.clips)
    (tmp_path / "long.srt").write_text(f"1\n00:00:00,000 --> 00:00:03,000\n{SAID}\n")
    done = ask(tmp_path / "long.mp4", "--longest", 1, "--no_pictures")
    assert [clip["words"] for clip in done.clips].count(SAID) == 1, "the good .srt counts"


def test_answers_that_are_no_numbers_are_refused(place, ask, tmp_path):
    checkpoint = load_checkpoint(place / "any.pth")
    for name in ("missing.text", "heads.integrated.linear.weight"):
        checkpoint["weights"][name].fill_(3e38)
    save_checkpoint(place / "huge.pth", checkpoint)
    shutil.copy(place / "clips" / "anna.mp4", tmp_path)
    done = ask(tmp_path / "anna.mp4", checkpoints=["huge.pth"], code=4)
    assert "huge.pth gives probabilities that are not numbers" in done.err


def test_words_alone_say_which_model_would_answer(place, ask, tmp_path):
    vectors = tmp_path / "vectors.npz"
    np.savez(vectors, words=np.array(SAID.split()), vectors=np.ones((3, 16), "f4"))
    flags = ("--text", SAID, "--word_vectors", vectors, "--no_pictures")
    done = ask(*flags, checkpoints=["plain.pth"], code=3)
    assert "no head answers from words alone" in done.out


def test_an_answering_head_of_one_input_is_the_answer(place, ask):
    checkpoint = load_checkpoint(place / "speech.pth")
    checkpoint["config"] |= {"mode": "multimodal", "inputs": "speech"}
    checkpoint["arch"]["heads"] = {"integrated": ["speech"], "speech": ["speech"]}
    for name in ("linear.weight", "linear.bias"):
        checkpoint["weights"][f"heads.integrated.{name}"] = torch.randn_like(
            checkpoint["weights"][f"heads.speech.{name}"]
        )
    save_checkpoint(place / "one.pth", checkpoint)
    done = ask(place / "clips" / "anna.mp4", "--no_pictures", checkpoints=["one.pth"])
    assert done.table["part"].tolist() == ["fused", "speech"]


def test_an_input_that_several_runs_compare_is_named_once():
    task, by_speaker = SimpleNamespace(inputs=("speech", "mine")), {"standardize": "speaker"}
    runs = [SimpleNamespace(task=task, config=by_speaker)] * 2
    asked = SimpleNamespace(stage_of={"speech": "speech", "mine": "mine"}, members=runs)
    assert Predictor.compares.fget(asked) == ["mine"]


ODD = {  # what a checkpoint claims of its features or its settings: the place, and a value
    "no numbers of the sound": ("features_config.speech.sample_rate", "x"),
    "windows without end": ("features_config.speech.n_fft", 10**9),
    "half a window": ("features_config.speech.n_fft", 2.5),
    "a step of nothing": ("features_config.speech.hop_length", 0),
    "another kind of sample": ("features_config.wave", {"dtype": "U1000000"}),
    "another input": ("config.mode", "face"),
    "one input more": ("config", {"mode": "multimodal", "inputs": "speech,face"}),
}


@pytest.mark.parametrize("what", ODD)
def test_a_checkpoint_that_claims_odd_settings_is_refused(place, ask, tmp_path, what):
    found = load_checkpoint(place / "speech.pth")
    (*keys, last), value = ODD[what][0].split("."), ODD[what][1]
    into = found
    for key in keys:
        into = into[key]
    into[last] = into[last] | value if isinstance(into.get(last), dict) else value
    save_checkpoint(tmp_path / "odd.pth", found)
    clip = place / "clips" / "anna.mp4"
    done = ask(clip, "--no_pictures", checkpoints=[tmp_path / "odd.pth"], code=4)
    assert "odd.pth" in done.err and len(done.err.splitlines()) == 1, done.err


def test_no_text_takes_the_terminal(place, ask, tmp_path):
    found = load_checkpoint(place / "speech.pth")
    found["card"] = {"corpus": "\x1b[31mmine\r"}
    save_checkpoint(tmp_path / "odd.pth", found)
    clip = tmp_path / "\x1b[Hanna\nben.mp4"
    shutil.copy(place / "clips" / "anna.mp4", clip)
    done = ask(clip, "--no_pictures", checkpoints=[tmp_path / "odd.pth"])
    assert "?[31mmine?" in done.out and "?[Hanna?ben.mp4" in done.out
    assert not set("\x1b\r") & {*done.out, *done.err}


@pytest.mark.parametrize(("name", "flag"), [("a.mp4", "--annotate"), ("a.png", "--tta=1")])
def test_no_clip_is_written_over(place, ask, face_image, tmp_path, name, flag):
    clip = tmp_path / "out" / name
    clip.parent.mkdir()
    if name.endswith(".png"):
        Image.fromarray(face_image).save(clip)
    else:
        shutil.copy(place / "clips" / "anna.mp4", clip)
    before = clip.read_bytes()
    done = ask(clip, flag, checkpoints=["face.pth"], code=2)
    assert f"would be written over {clip}, which was given" in done.err
    assert clip.read_bytes() == before and [*clip.parent.iterdir()] == [clip]
    ask(clip, "--no_pictures", checkpoints=["face.pth"])


def test_names_that_differ_by_a_number_stay_apart(tmp_path):
    names = ("x/a.wav", "y/a.wav", "z/a-2.wav")
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    sources = find_sources([tmp_path / name for name in names], None)
    assert len({source.clip.clip_id for source in sources}) == 3


def test_what_a_killed_call_left_is_swept(place, ask, tmp_path, monkeypatch):
    """Faces and voices are in there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os; from utils.scratch import scratch_folder; made = scratch_folder('predict-')\n"
    )
    code += "(made.path / 'a.npy').write_bytes(b'a'); os.kill(os.getpid(), 9)"
    killed = run_script("-c", code, env={"TMPDIR": str(tmp_path)})
    assert killed.returncode == -9 and list(tmp_path.glob("predict-*/files/a.npy"))
    ask("--text", "good", checkpoints=["plain.pth"], code=3)
    assert not list(tmp_path.glob("predict-*"))


def test_what_an_input_says_alone_counts_as_in_the_ensemble():
    """Five folds of one run share their vote there, too."""
    predictor = Predictor.__new__(Predictor)
    shares = [("a", 0.9)] * 5 + [("b", 0.1)]
    members = [SimpleNamespace(run=Path(run), p=np.array([p, 1 - p])) for run, p in shares]
    predictor.members, predictor.stage_of = members, {"speech": "speech"}

    def ask(member, prediction):
        name = "fused" if member.run == Path("a") else "speech"
        return Vote(name, member.p, ["speech"]), {"speech": member.p}

    predictor.ask = ask
    prediction = ClipPrediction(None, ["x", "y"], {}, {})
    predictor.vote(prediction)
    for part in ("ensemble", "speech"):
        np.testing.assert_allclose(prediction.parts[part], [0.5, 0.5])
