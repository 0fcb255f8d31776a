"""A long recording -> utterances by voice, the words of each, and files that hold just that."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from conftest import flat, make_clip, tone, voice

from corpora.manifest import Clip
from extract.audio import read_mono
from extract.media import frames_at
from inference.sources import Cue, Source, find_sources, read_words
from inference.windows import (
    UTTERANCE,
    cut_long,
    notes_on,
    share_words,
    told_alone,
    utterances,
)

PAUSE, BREATH = np.zeros(16_000, np.float32), np.zeros(3200, np.float32)  # 1 s, 0.2 s


def bang(seconds: float = 0.2) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(-0.99, 0.99, int(16_000 * seconds))
    return noise.astype(np.float32)


def approximately(*spans: tuple[float, float]):
    return pytest.approx(np.array(spans), abs=0.25)


def source_of(path) -> Source:
    return find_sources([path], None)[0]


# --- where somebody speaks ----------------------------------------------------------------------


@pytest.mark.parametrize("level", [1.0, 0.05, 0.02])
def test_quiet_talk_is_found_and_a_bang_is_not(level):
    """17 s of talk, then the loudest moment by far."""
    talk = np.concatenate([each for seed in range(6) for each in (voice(2.3, seed), PAUSE[:9600])])
    spans = utterances(np.concatenate([PAUSE, level * talk, PAUSE, bang(), PAUSE]))
    assert np.array(spans) == approximately(*((1 + 2.9 * n, 3.3 + 2.9 * n) for n in range(6)))


def test_utterances_join_breaths_and_drop_clicks():
    wave = [voice(1), BREATH, voice(1, 1), PAUSE, bang(0.1), PAUSE, voice(2, 2)]
    assert np.array(utterances(np.concatenate(wave))) == approximately((0, 2.2), (4.3, 6.3))


def test_long_talk_is_cut_at_its_longest_pauses():
    wave = np.concatenate([voice(4), BREATH, voice(4, 1), BREATH, voice(4, 2)])
    spans = utterances(wave)
    assert max(end - start for start, end in spans) <= UTTERANCE
    assert spans[0][0] < 0.2 and spans[-1][1] > len(wave) / 16_000 - 0.3
    assert [round(start, 1) for start, _ in spans[1:]] == pytest.approx([4.2, 8.4], abs=0.25)


@pytest.mark.parametrize("wave", [tone(3), bang(3)], ids=["a tone", "noise"])
def test_what_is_no_voice_is_no_utterance(wave):
    assert utterances(wave) == []


def test_the_detector_leaves_the_threads_of_others_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        utterances(voice(1))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


# --- the words of each --------------------------------------------------------------------------


def sure(words: list[str], cues: list[Cue]) -> bool:
    return " ".join(words).split() == " ".join(cue.words for cue in cues).split()


def test_subtitles_longer_than_the_parts_reach_every_part():
    """12 parts of 1.5 s with pauses; each subtitle covers three of them."""
    spans = [(2.0 * number, 2.0 * number + 1.5) for number in range(12)]
    cues = [Cue(6.0 * n, 6.0 * n + 5.9, f"a{n} b{n} c{n} d{n} e{n} f{n}") for n in range(4)]
    said = share_words(cues, spans)
    assert said[:4] == ["a0 b0", "c0 d0", "e0 f0", "a1 b1"] and sure(said, cues)


@pytest.mark.parametrize(
    ("start", "end", "part"),
    [
        (0.5, 2.0, 0),  # within
        (0.5, 4.5, 0),  # it stays on the screen, into the next part
        (2.8, 5.9, 1),  # it comes early
        (3.1, 3.4, 0),  # in the pause, nearer to what was said
        (3.6, 3.9, 1),
        (13.5, 31.0, 2),  # behind everything
        (9.5, 9.5, 2),  # of no length
    ],
)
def test_a_subtitle_belongs_to_the_part_that_it_overlaps_most(start, end, part):
    said = share_words([Cue(start, end, "one two three")], [(0, 3), (4, 8), (9, 12)])
    assert [bool(words) for words in said] == [number == part for number in range(3)]
    assert said[part] == "one two three"


def test_words_that_nobody_is_heard_to_say_are_a_part_of_their_own():
    """Not those of a voice that is twenty seconds away."""
    heard = [(0.4, 1.0), (30.0, 33.0)]
    cues = [Cue(20, 25, "far"), Cue(27, 29, "early"), Cue(40, 47, "a b"), Cue(70, 71, "lost")]
    alone = told_alone(cues, heard, (0, 60))
    assert alone == [(20, 25), (40, 43.5), (43.5, 47)]
    parts = sorted([*heard, *alone])
    assert share_words(cues, parts) == ["", "far", "early", "a", "b lost"]
    covered, stray = notes_on(cues, parts, (0, 60))
    assert (
        "about 15.6 of 60.0 seconds; nobody is heard" in covered and "1 subtitle outside" in stray
    )
    assert not notes_on(cues[:3], [(0, 55)], (0, 60))


def test_no_word_is_lost():
    rng = np.random.default_rng(0)
    for _ in range(200):
        edges = np.sort(rng.uniform(0, 60, 2 * rng.integers(1, 13))).reshape(-1, 2)
        starts = np.sort(rng.uniform(-5, 70, 20))
        cues = [
            Cue(start, start + rng.exponential(5), " ".join(map(str, rng.integers(0, 99, n))))
            for n, start in enumerate(starts)
        ]
        heard = [(start, end) for start, end in edges]
        parts = sorted([*heard, *told_alone(cues, heard, (-5, 999))])
        said = share_words(cues, parts)
        assert sorted(" ".join(said).split()) == sorted(" ".join(c.words for c in cues).split())


def test_all_parts_together_say_what_the_file_says(tmp_path):
    wave = np.concatenate([each for n in range(5) for each in (voice(1.5, n), PAUSE)])
    clip = make_clip(tmp_path / "long.m4a", None, wave)
    lines = ["1\n00:00:00,000 --> 00:00:07,000\n<i>one</i> two\nthree four five six"]
    lines += ["2\n00:00:07,100 --> 00:00:20,000\nseven eight", "3\n00:09:00,0 --> 00:09:01,0\nnine"]
    (tmp_path / "long.srt").write_text("\n\n".join(lines))
    parts = cut_long(source_of(clip), 3, tmp_path / "parts")
    said = [part.clip.transcript for part in parts]
    assert len(parts) == 5 and " ".join(said).split() == read_words(tmp_path / "long.srt").split()
    assert all(said[:3]) and said[-1].endswith("nine") and not parts[0].problem


def test_subtitles_count_from_the_first_second_of_a_recording(tmp_path):
    """As players do: the clock of a broadcast begins anywhere."""
    wave = np.concatenate([each for n in range(4) for each in (voice(1.5, n), PAUSE)])
    clip = make_clip(tmp_path / "long.ts", None, wave, sound_start=100)
    times = [f"00:00:{2.5 * n:06.3f} --> 00:00:{2.5 * n + 1.5:06.3f}\n{n}" for n in range(4)]
    (tmp_path / "long.srt").write_text("\n\n".join(times))
    parts = cut_long(source_of(clip), 3, tmp_path / "parts")
    assert [part.clip.transcript for part in parts] == list("0123")
    assert parts[0].start > 99 and "outside" not in str(parts[0].notes)


# --- the file of each ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "sound_codec", "codec"),
    [
        ("mp4", "aac", "libx264"),
        ("mkv", "aac", "libx264"),
        ("flv", "aac", "libx264"),
        ("avi", "libmp3lame", "mpeg4"),
    ],
)
def test_a_part_holds_that_part(tmp_path, ending, sound_codec, codec):
    """Sound and picture of a part are those of the recording, also far from a key frame."""
    rate = 48_000
    frames = np.stack([flat((2 * number,) * 3) for number in range(120)])
    sound = np.concatenate([tone(1.0, 200 + 100 * number, rate) for number in range(8)])
    kinds = {"sound_codec": sound_codec, "codec": codec, "codec_options": {"g": "25"}}
    clip = make_clip(tmp_path / f"long.{ending}", frames, sound, fps=15, rate=rate, **kinds)
    sources = cut_long(source_of(clip), 3, tmp_path / "parts")  # nobody speaks: two equal parts
    assert [(round(s.start), round(s.end)) for s in sources] == [(0, 4), (4, 8)]
    part, whole = read_mono(sources[1].clip.media), read_mono(clip)
    assert abs(part.offset - sources[1].start) < 0.1 and part.gaps == 0
    first = round((part.offset - whole.offset) * 16_000)
    spectrum = [np.abs(np.fft.rfft(wave[2000:34_000])) for wave in (part.wave, whole.wave[first:])]
    assert np.abs(spectrum[0] - spectrum[1]).max() < 0.1 * spectrum[1].max()
    for time in (4.5, 6.0, 7.5):
        [(_, shown)], [(_, expected)] = (
            frames_at(file, np.array([time])) for file in (sources[1].clip.media, clip)
        )
        np.testing.assert_allclose(shown, expected, atol=1)


def test_parts_without_sound_are_equal(tmp_path):
    clip = make_clip(tmp_path / "silent.mp4", np.stack([flat((9, 9, 9))] * 70), None, fps=10)
    sources = cut_long(source_of(clip), 5, tmp_path / "parts")
    assert [s.clip.span for s in sources] == [pytest.approx((0, 3.5)), pytest.approx((3.5, 7))]


def test_a_recording_that_claims_years_is_left_whole(tmp_path, monkeypatch):
    """Cut, it would be millions of parts; the prediction says that it is too long."""
    clip = make_clip(tmp_path / "long.mp4", None, tone(3.0))
    source = Source(str(clip), Clip("long", "clips", clip))
    monkeypatch.setattr("inference.windows.LONGEST", 2)
    assert cut_long(source, 1, tmp_path / "parts") == [source]
