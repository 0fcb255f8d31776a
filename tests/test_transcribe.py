"""Words from the sound: kept with their times, recognised once; a recogniser of the test's own."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_clip, voice
from extras import need
from inside import run_main

import predict
from corpora.manifest import Clip
from extract import transcribe
from extract.clip import deadline_for
from extract.transcribe import Cue
from inference.predictor import Predictor
from inference.sources import Source, read_cues, read_words
from utils.errors import ClipError, UsageError


@pytest.fixture
def recogniser(monkeypatch, tmp_path):
    """Hears "word N" in each whole second N of a sound; its folder and how often it was asked."""
    asked = []

    class WhisperModel:
        def __init__(self, folder, *args, **options):
            self.folder = folder

        def transcribe(self, wave, **options):
            assert options["vad_filter"] and wave.dtype == np.float32
            asked.append(len(wave))
            seconds = range(len(wave) // 16_000)
            found = [segment(f" word {number} ", number, number + 0.5) for number in seconds]
            found.append(segment("thank you thank you thank you", 0, 1, compression_ratio=9.0))
            return iter(found), SimpleNamespace(language="en")

    module = ModuleType("faster_whisper")
    module.WhisperModel = WhisperModel
    module.download_model = refuse
    module.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    transcribe.load.cache_clear()
    yield SimpleNamespace(name=f"faster-whisper:{folder}", folder=folder, asked=asked)
    transcribe.load.cache_clear()


def segment(text, start, end, compression_ratio=1.0):
    return SimpleNamespace(
        text=text,
        start=start,
        end=end,
        tokens=[1, 2],
        avg_logprob=np.log(0.5),
        compression_ratio=compression_ratio,
    )


def refuse(name):
    raise OSError(f"{name} is nowhere\nsecond line")


@pytest.fixture
def clips(tmp_path):
    """Two that speak, of which one has a transcript, and one without sound."""
    folder = tmp_path / "clips"
    picture = np.zeros((30, 32, 32, 3), np.uint8)
    make_clip(folder / "a.mp4", sound=voice(2.3))
    make_clip(folder / "b.mp4", sound=voice(1.4, 1))
    make_clip(folder / "c.mp4", picture)
    rows = ["media,split,emotion,transcript", "a.mp4,train,hap,", "b.mp4,train,sad,as written"]
    (folder / "manifest.csv").write_text("\n".join([*rows, "c.mp4,train,hap,", ""]))
    return folder


def preprocess(clips, *args):
    place = ("--data_dir", clips, "--features_dir", clips.parent / "features")
    flags = ("--corpus", "csv", "--modalities", "speech", "--workers", 1, "--device", "cpu")
    return run_main("preprocess", *flags, *place, *args)


def test_clips_without_words_get_those_of_their_sound(recogniser, clips):
    done = preprocess(clips, "--transcribe", recogniser.name)
    assert done.code == 3 and "transcribed 2 clips (en 1)" in done.out, done.out + done.err
    features = clips.parent / "features"
    table = pd.read_csv(features / "manifest.csv", keep_default_na=False).set_index("clip_id")
    assert table["transcript"].to_dict() == {"a": "word 0 word 1", "b": "as written"}
    assert table.loc["a", ["language", "confidence"]].tolist() == ["en", "0.5"]
    subtitles = features / "train" / "transcripts" / "a.srt"
    assert [cue.words for cue in read_cues(subtitles)] == ["word 0", "word 1"]
    assert read_words(subtitles) == "word 0 word 1"
    failed = pd.read_csv(features / "failed.csv")
    assert failed["code"].tolist() == ["E_NOAUDIO"]
    before = len(recogniser.asked)
    assert before == 1  # the silent one is not worth asking
    preprocess(clips, "--transcribe", recogniser.name)
    assert len(recogniser.asked) == before  # nothing again
    make_clip(clips / "a.mp4", sound=voice(1.2, 5))
    preprocess(clips, "--transcribe", recogniser.name)
    assert len(recogniser.asked) == before + 1
    (recogniser.folder / "model.bin").write_bytes(b"other weights")
    transcribe.load.cache_clear()
    preprocess(clips, "--transcribe", recogniser.name)
    assert len(recogniser.asked) == before + 2


def test_a_sound_that_cannot_be_read_now_is_heard_by_the_next_run(recogniser, clips, monkeypatch):
    def fails(*_, **limits):
        raise ClipError("E_READ", "the disc is away")

    with monkeypatch.context() as patch:
        patch.setattr("extract.corpus.guarded", fails)
        done = preprocess(clips, "--transcribe", recogniser.name)
    said = "warning: 2 clips without recognised words (2 disc or network failed): the next run"
    assert said in done.err and "transcribed 0 clips (no words)" in done.out
    assert not list((clips.parent / "features").glob("train/transcripts/*"))
    preprocess(clips, "--transcribe", recogniser.name)
    assert (clips.parent / "features" / "train" / "transcripts" / "a.srt").exists()


def test_what_is_silent_is_heard_as_that_and_nothing_else_is(clips):
    wave, _ = transcribe.hear(clips / "c.mp4")
    assert not len(wave)
    (clips / "b.mp4").write_bytes((clips / "b.mp4").read_bytes()[:600])
    with pytest.raises(ClipError):
        transcribe.hear(clips / "b.mp4")


def test_a_large_file_has_its_time(tmp_path):
    with open(tmp_path / "large.wav", "wb") as file:
        file.truncate(50_000_000)
    assert deadline_for(tmp_path / "large.wav", 10) == 60 and deadline_for(None, 10) == 10


def test_verify_recognises_only_what_changed(recogniser, clips):
    """The sound, the words, or the note beside them; the silent clip counts none of it."""
    flags = ("--transcribe", recogniser.name, "--verify")
    preprocess(clips, *flags)
    words, media = clips.parent / "features" / "train" / "transcripts" / "a.srt", clips / "a.mp4"
    as_made, times = words.read_bytes(), media.stat()
    preprocess(clips, *flags)
    assert len(recogniser.asked) == 1
    words.write_text("00:00:00,000 --> 00:00:01,000\nnever said\n")
    preprocess(clips, *flags)
    assert len(recogniser.asked) == 2 and words.read_bytes() == as_made
    note = words.with_suffix(".json")
    note.write_text(note.read_text().replace("word 0", "word 7"))
    preprocess(clips, *flags)
    assert len(recogniser.asked) == 3 and "word 7" not in note.read_text()
    data = bytearray(media.read_bytes())
    data[-1] ^= 1  # of the same size, at the same time
    media.write_bytes(data)
    os.utime(media, ns=(times.st_atime_ns, times.st_mtime_ns))
    preprocess(clips, "--transcribe", recogniser.name)
    assert len(recogniser.asked) == 3
    preprocess(clips, *flags)
    assert len(recogniser.asked) == 4


def test_the_library_itself_hears_words_and_their_times(clips, tmp_path):
    """faster-whisper, and a small model in its format which hears "good day" in each sound."""
    need("transformers", "faster_whisper")
    from encoders import a_recogniser

    torch.manual_seed(0)
    a_recogniser(tmp_path / "model")
    transcribe.load.cache_clear()
    name = f"faster-whisper:{tmp_path / 'model'}"
    done = preprocess(clips, "--transcribe", name)
    assert done.code == 3 and "transcribed 2 clips (en 1)" in done.out, done.out + done.err
    features = clips.parent / "features"
    table = pd.read_csv(features / "manifest.csv", keep_default_na=False).set_index("clip_id")
    assert table["transcript"].to_dict() == {"a": "good day", "b": "as written"}
    assert 0 < float(table.loc["a", "confidence"]) < 1
    subtitles = features / "train" / "transcripts" / "a.srt"
    (cue,) = read_cues(subtitles)
    assert (cue.words, cue.end - cue.start) == ("good day", 1.0)
    as_made, when = subtitles.read_bytes(), subtitles.stat().st_mtime_ns
    preprocess(clips, "--transcribe", name, "--verify")
    assert (subtitles.read_bytes(), subtitles.stat().st_mtime_ns) == (as_made, when)
    # in a sound that begins late the words are as late
    late = transcribe.recognise(voice(2.3), 7.5, str(tmp_path / "model"), "cpu")
    early = transcribe.recognise(voice(2.3), 0.0, str(tmp_path / "model"), "cpu")
    assert late.cues[0].start == pytest.approx(early.cues[0].start + 7.5)
    # and in noise nobody speaks
    noise = np.random.default_rng(0).normal(0, 0.01, 48_000).astype(np.float32)
    assert transcribe.recognise(noise, 0.0, str(tmp_path / "model"), "cpu").cues == []


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("whisper:tiny", "expected faster-whisper:MODEL"),
        ("faster-whisper:", "expected faster-whisper:MODEL"),
        ("faster-whisper:nowhere", "cannot load the recogniser .*nowhere is nowhere second line"),
    ],
)
def test_a_recogniser_that_cannot_be_loaded_is_one_line(recogniser, typed, said):
    with pytest.raises(UsageError, match=said):
        transcribe.load(transcribe.parse(typed), "cpu")


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(transcribe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package faster-whisper: pip install -r"):
        transcribe.load("never loaded", "cpu")


def test_predictions_hear_words_too(recogniser, place, tmp_path):
    predictor = Predictor([place / "any.pth"], device="cpu", transcribe=recogniser.name)
    (clip,) = predictor.with_words([source_of(place / "clips" / "anna.mp4")])
    assert clip.clip.words and recogniser.asked == []  # word vectors lie beside it
    make_clip(tmp_path / "alone.mp4", sound=voice(2.3))
    (clip,) = predictor.with_words([source_of(tmp_path / "alone.mp4")])
    assert clip.clip.transcript == "word 0 word 1"
    assert [cue.words for cue in predictor.heard[clip.name]] == ["word 0", "word 1"]


def source_of(path):
    from inference.sources import find_sources

    (source,) = find_sources([path], None)
    return source


def test_predict_leaves_the_subtitles(recogniser, place, tmp_path):
    make_clip(tmp_path / "a clip.mp4", sound=voice(2.3))
    done = run_main(
        *("predict", tmp_path / "a clip.mp4", "--checkpoints", place / "speech.pth"),
        *("--transcribe", recogniser.name, "--out", tmp_path / "out", "--no_pictures"),
        *("--device", "cpu"),
    )
    assert done.code == 0, done.err
    (subtitles,) = (tmp_path / "out").glob("*.srt")
    assert read_words(subtitles) == "word 0 word 1"


def test_clips_of_one_name_have_subtitles_of_their_own(recogniser, place, tmp_path):
    for folder, seconds in (("one", 1.3), ("two", 2.3)):
        make_clip(tmp_path / folder / "a.mp4", sound=voice(seconds))
    done = run_main(
        *("predict", tmp_path / "one", tmp_path / "two", "--checkpoints", place / "speech.pth"),
        *("--transcribe", recogniser.name, "--out", tmp_path / "out", "--no_pictures"),
        *("--device", "cpu"),
    )
    assert done.code == 0, done.err
    said = {path.name: read_words(path) for path in (tmp_path / "out").glob("*.srt")}
    assert said == {"a.srt": "word 0", "a-2.srt": "word 0 word 1"}


def test_subtitles_are_named_as_their_clip_is_and_take_no_file_of_its_owner(
    recogniser, place, tmp_path
):
    for folder in ("one", "two"):
        make_clip(tmp_path / folder / "a.mp4", sound=voice(1.3))
    words = tmp_path / "one" / "a.srt"
    words.write_text("00:00:00,000 --> 00:00:01,000\nword")
    given = ("predict", tmp_path / "one" / "a.mp4", tmp_path / "two" / "a.mp4")
    flags = ("--checkpoints", place / "speech.pth", "--transcribe", recogniser.name)
    flags += ("--no_pictures", "--device", "cpu")
    done = run_main(*given, *flags, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "out").glob("*.srt")] == ["a-2.srt"]
    words.write_bytes("Grüße".encode("latin-1"))
    refused = run_main(*given, *flags, "--out", tmp_path / "one")
    assert refused.code == 2 and f"written over {words}, which was given" in refused.err
    assert words.read_bytes() == "Grüße".encode("latin-1")


DAMAGED = {
    "nothing": {},
    "cues of other types": {"cues": [["0", None, 5]]},
    "no time": {"cues": [[0, float("nan"), "x"]]},
    "no language": {"cues": [], "language": 7},
    "no confidence": {"confidence": "high"},
}


def test_a_damaged_note_is_made_anew(recogniser, clips):
    preprocess(clips, "--transcribe", recogniser.name)
    note = clips.parent / "features" / "train" / "transcripts" / "a.json"
    about = json.loads(note.read_text())
    for what, damage in DAMAGED.items():
        kept = about if damage else {"key": about["key"]}
        note.write_text(json.dumps(kept | damage))
        preprocess(clips, "--transcribe", recogniser.name)
        assert json.loads(note.read_text()) == about, what


def test_the_folder_of_the_subtitles_is_no_encoders(clips):
    done = run_main(
        *("preprocess", "--corpus", "csv", "--data_dir", clips, "--features_dir", clips / "f"),
        *("--encoder", "transcripts=speech:hf:x"),
    )
    assert done.code == 2 and "the name transcripts is taken" in done.err, done.err


def test_times_are_written_as_players_read_them(tmp_path):
    cues = [Cue(0.0, 1.2345, "first"), Cue(3661.5, 3662.0, "second")]
    (tmp_path / "x.srt").write_text(transcribe.srt(cues))
    assert "01:01:01,500 --> 01:01:02,000" in (tmp_path / "x.srt").read_text()
    assert [(cue.start, cue.words) for cue in read_cues(tmp_path / "x.srt")] == [
        (0.0, "first"),
        (3661.5, "second"),
    ]


def test_subtitles_of_a_recording_count_from_its_first_second(tmp_path):
    clip = Clip("a-0011.40", "clips", tmp_path / "a-0011.40.ts")
    parts = [Source("a.ts", clip, start=11.4, end=15.0, extent=(1.4, 41.4)), Source("b.wav", clip)]
    heard = {"a.ts": [Cue(11.4, 12.4, "good day")]}
    predict.write_subtitles(tmp_path, heard, parts)
    (path,) = tmp_path.glob("*.srt")
    assert path.name == "a.srt" and "00:00:10,000 --> 00:00:11,000" in path.read_text()
