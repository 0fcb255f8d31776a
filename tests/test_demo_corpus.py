"""The generated corpus: MERC2020's layout, files that decode, clips from the seed alone."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from corpora import demo, merc2020
from utils.errors import UsageError
from utils.files import read_json

av = pytest.importorskip("av")
pytest.importorskip("moviepy")
pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One clip per class, in split train only."""
    folder = tmp_path_factory.mktemp("demo")
    demo.generate(folder, counts={"train": 1}, workers=1)
    return folder


def test_layout_is_merc2020s_and_says_that_it_is_generated(corpus):
    clips = merc2020.list_clips(corpus).clips
    assert sorted(clip.emotion for clip in clips) == sorted(demo.CLASSES)
    ordered = [demo.CLASSES.index(clip.emotion) for clip in clips]  # by FileID
    assert ordered != sorted(ordered), "the FileID tells the class"
    pattern = r"\d{5}-\d{3}-[a-z]{3}-[a-z]{3}-[a-z]{3}\.mp4"
    assert all(re.fullmatch(pattern, clip.media.name) for clip in clips)
    top = {place.name for place in corpus.iterdir()}
    assert top == {"qia2020", "README.txt", "answers.csv", "corpus.json"}
    assert "measures the pipeline" in (corpus / "README.txt").read_text()
    assert "GENERATED" in read_json(corpus / demo.STAMP)["notice"]
    assert not list(corpus.rglob(".*")), "unfinished files were left behind"


def test_answers_tell_labels_and_words_of_every_clip(corpus):
    with open(corpus / "answers.csv", newline="") as file:
        answers = {row["FileID"]: row for row in csv.DictReader(file)}
    for clip in merc2020.list_clips(corpus).clips:
        row = answers[clip.clip_id]
        assert {name: row[name] for name in clip.labels} == clip.labels
        vectors = np.load(clip.words, allow_pickle=False)["word_embed"]
        words = row["transcript"].split()
        assert vectors.shape == (len(words), 200) and vectors.dtype == np.float32
        assert 3 <= len(words) <= 8
        np.testing.assert_array_equal(vectors[0], demo.word_vectors()[words[0]])


def test_movies_decode_to_the_clip_that_was_made(corpus):
    clip = merc2020.list_clips(corpus).clips[0]
    speaker = int(clip.media.name.split("-")[1])
    labels = clip.emotion, clip.face_emotion, clip.speech_emotion
    frames, sound, _ = demo.make_clip(0, int(clip.clip_id), speaker, *labels)
    with av.open(str(clip.media)) as movie:
        seen = [frame.to_ndarray(format="rgb24") for frame in movie.decode(video=0)]
        assert movie.streams.video[0].codec_context.name == "h264"
        assert "GENERATED" in movie.metadata["comment"]
    with av.open(str(clip.media)) as movie:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in movie.decode(audio=0)])
        stream = movie.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.channels) == ("aac", demo.RATE, 1)
    assert np.stack(seen).shape == frames.shape == (len(frames), 180, 240, 3)
    assert np.abs(np.stack(seen).astype(float) - frames).mean() < 8  # of 255: compression only
    assert len(heard) / demo.RATE == pytest.approx(len(frames) / demo.FPS, abs=0.1)
    assert len(sound) / demo.RATE == pytest.approx(len(frames) / demo.FPS, abs=1e-3)
    assert heard.std() == pytest.approx(sound.std(), rel=0.2)  # as loud as it was made


def test_a_clip_is_a_function_of_its_arguments():
    same = [demo.make_clip(3, 7, 1, "sad", "hap", "ang") for _ in range(2)]
    other = demo.make_clip(3, 8, 1, "sad", "hap", "ang")
    for first, second in zip(*same, strict=True):
        np.testing.assert_array_equal(first, second)
    assert other[1].shape != same[0][1].shape or (other[1] != same[0][1]).any()


def test_the_plan_is_balanced_and_its_speakers_stay_in_their_split(tmp_path):
    clips = list(demo.plan(tmp_path, demo.COUNTS, seed=0))
    assert len({clip.clip_id for clip in clips}) == len(clips) == 7 * sum(demo.COUNTS.values())
    for split, count in demo.COUNTS.items():
        own = [clip.emotion for clip in clips if clip.split == split]
        assert {own.count(emotion) for emotion in demo.CLASSES} == {count}
    places = {(clip.speaker, clip.split) for clip in clips}
    assert len(places) == len({speaker for speaker, _ in places})
    mixed = [clip.face_emotion != clip.emotion for clip in clips]
    assert 0.04 < np.mean(mixed) < 0.18


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "qia2020").mkdir()
    (tmp_path / "corpus.json").write_text('{"made_by": "another program"}')
    with pytest.raises(UsageError, match=f"{tmp_path.name} holds something else.*--data_dir"):
        demo.list_clips(tmp_path)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["corpus.json", "qia2020"]


def test_an_interrupted_corpus_is_made_anew_and_a_finished_one_is_kept(tmp_path):
    demo.generate(tmp_path, counts={"test": 1}, workers=1)
    assert len(list(tmp_path.glob("test?.csv"))) == 2
    (tmp_path / demo.STAMP).rename(tmp_path / demo.MARKER)
    (tmp_path / "qia2020/test/.part-demo-x").mkdir()
    with pytest.raises(UsageError, match="something else"):
        demo.generate(tmp_path, counts={"test_merc": 1}, workers=1)
    demo.generate(tmp_path, counts={"test": 1}, workers=1)
    assert [clip.split for clip in demo.list_clips(tmp_path).clips] == ["test"] * 7
    assert not list(tmp_path.rglob(".part*")) and not (tmp_path / demo.MARKER).exists()
