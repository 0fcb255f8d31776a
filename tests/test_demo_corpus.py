"""The generated corpus: MERC2020's layout, files that decode, clips from the seed alone."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import av
import numpy as np
import pytest

from corpora import demo, merc2020
from utils.errors import UsageError
from utils.files import read_json


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
    assert top == {"qia2020", "README.txt", "answers.csv", demo.STAMP, *merc2020.SHEETS}
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
        assert 3 <= len(words) <= 7
        np.testing.assert_array_equal(vectors[0], demo.word_vectors()[words[0]])


def test_movies_decode_to_the_clip_that_was_made(corpus):
    clip = demo.plan(corpus, {"train": 1}, seed=0)[0]
    frames, sound, _ = demo.make_clip(0, clip)
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
    assert len(sound) / demo.RATE == len(frames) / demo.FPS
    assert heard.std() == pytest.approx(sound.std(), rel=0.2)  # as loud as it was made


def test_a_clip_is_a_function_of_seed_number_speaker_and_labels(tmp_path):
    clip = demo.plan(tmp_path, {"val": 1}, seed=0)[0]
    frames, sound, words = demo.make_clip(3, clip)
    for first, second in zip(demo.make_clip(3, clip), (frames, sound, words), strict=True):
        np.testing.assert_array_equal(first, second)
    others = [replace(clip, **change) for change in ({"clip_id": "12345"}, {"speaker": "7"})]
    for changed in (demo.make_clip(4, clip), *(demo.make_clip(3, other) for other in others)):
        assert not np.array_equal(changed[0], frames) and not np.array_equal(changed[1], sound)
    sad, glad = (demo.make_clip(3, replace(clip, face_emotion=face)) for face in ("sad", "hap"))
    np.testing.assert_array_equal(sad[1], glad[1])
    assert np.abs(sad[0].astype(float) - glad[0])[:, 60:160, 70:170].mean() > 4  # of 255


def test_the_plan_is_balanced_and_its_speakers_stay_in_their_split(tmp_path):
    clips = demo.plan(tmp_path, demo.COUNTS, seed=0)
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
    (tmp_path / "corpus-v1.json").write_text('{"made_by": "another version"}')
    with pytest.raises(UsageError, match=f"{tmp_path.name} holds something else.*--data_dir"):
        demo.list_clips(tmp_path)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["corpus-v1.json", "qia2020"]


def test_an_interrupted_corpus_is_made_anew_and_a_finished_one_is_kept(tmp_path):
    demo.generate(tmp_path, counts={"test": 1}, workers=1)
    sheets = [(tmp_path / sheet).read_text().split() for sheet in merc2020.SHEETS]
    assert [len(sheet) for sheet in sheets] == [5, 4, 1]  # the first line is FileID
    (tmp_path / demo.STAMP).rename(tmp_path / demo.MARKER)
    (tmp_path / "qia2020/test/.0123456789abcdef.part").touch()  # as after a kill
    with pytest.raises(UsageError, match="something else"):
        demo.generate(tmp_path, counts={"test_merc": 1}, workers=1)
    demo.generate(tmp_path, counts={"test": 1}, workers=1)
    assert [clip.split for clip in demo.list_clips(tmp_path).clips] == ["test"] * 7
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / demo.MARKER).exists()
