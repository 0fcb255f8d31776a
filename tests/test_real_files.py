"""Files as people really have them: of phones, recorders, editors and other systems."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_clip, moving_picture, tone, voice

import make_submission
from corpora import list_corpus
from corpora.manifest import as_class
from extract import audio, media, vectors
from inference.annotate import annotate
from inference.prediction import ClipPrediction
from inference.sources import find_sources, left_out, read_cues, read_words
from inference.windows import copy_packets, cut_long, read_subtitles
from models.features import BatchNorm
from utils.errors import ClipError, UsageError
from utils.sheet import Sheet

CODES = ("hap", "ang", "dis", "fea", "sad", "neu", "sur")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Two seconds of a walking square, 120 x 90, and a voice."""
    place = tmp_path_factory.mktemp("base") / "base.mp4"
    return make_clip(place, moving_picture(30), voice(2), fps=15, quality=10)


def ffmpeg(*args: object) -> Path:
    """Run FFmpeg's own program; the file that it wrote, the last argument."""
    from imageio_ffmpeg import get_ffmpeg_exe  # moviepy's

    command = [get_ffmpeg_exe(), "-v", "error", "-y", *map(str, args)]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=120)
    return Path(str(args[-1]))


def frame_of(path: Path, time: float = 1.0) -> np.ndarray:
    [(_, frame)] = media.frames_at(path, np.array([time]))
    return frame.astype(int)


def level(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave))))


# --- pictures as players show them --------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(
    ("filters", "aspect"), [("scale=60:90", 2), ("scale=120:46", 0.5), ("scale=90:90", 4 / 3)]
)
def test_pixels_that_are_not_square(base, tmp_path, ending, filters, aspect):
    squeezed = ffmpeg(
        "-i", base, "-vf", f"{filters},setsar={aspect}", tmp_path / f"squeezed.{ending}"
    )
    frame, whole = frame_of(squeezed), frame_of(base)
    assert abs(frame.shape[0] - whole.shape[0]) <= 2 and frame.shape[1] == whole.shape[1]
    assert np.abs(frame[:90] - whole[: len(frame)]).mean() < 6
    assert not media.is_plain(squeezed) and media.is_plain(base)


def test_a_pixel_is_square_where_an_encoder_only_rounded(base, tmp_path):
    rounded = ffmpeg("-i", base, "-vf", "setsar=491/492", tmp_path / "rounded.mp4")
    assert media.scan_pictures(rounded).aspect == 1 and media.is_plain(rounded)


def test_a_forged_aspect_costs_no_memory(base, tmp_path):
    forged = ffmpeg("-i", base, "-vf", "scale=720:576,setsar=32767/1", tmp_path / "a.mp4")
    with pytest.raises(ClipError, match="pixels") as found:
        frame_of(forged)
    assert found.value.code == "E_LIMIT"


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("hflip", ["-display_rotation", 0, "-display_hflip"]),
        ("vflip", ["-display_rotation", 0, "-display_vflip"]),
        ("hflip,vflip", ["-display_rotation", 180]),
        ("transpose=cclock", ["-display_rotation", -90]),
        ("transpose=clock", ["-display_rotation", 90]),
    ],
)
@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_mirrored_and_turned_pictures(base, tmp_path, stored, asked, ending):
    turned = ffmpeg("-i", base, "-vf", stored, "-c:a", "copy", tmp_path / "stored.mp4")
    flagged = ffmpeg(*asked, "-i", turned, "-c", "copy", tmp_path / f"flagged.{ending}")
    difference = np.abs(frame_of(flagged) - frame_of(base)).mean()
    assert difference < 6, "it is not shown as it was before it was stored"
    assert np.abs(frame_of(turned)[:90, :90] - frame_of(base)[:90, :90]).mean() > 12
    assert media.is_plain(flagged) == (stored not in ("hflip", "vflip"))


@pytest.mark.parametrize("flip", ["", "hflip,"])
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_all_eight_display_matrices(turn, flip):
    """What the matrix of a file says is what is done to its picture."""
    picture = np.arange(6).reshape(2, 3)
    shown = np.rot90(picture, -turn)
    matrix = [[1, 0, -1, 0][turn], [0, 1, 0, -1][turn], [0, -1, 0, 1][turn], [1, 0, -1, 0][turn]]
    if flip:
        shown, matrix = shown[:, ::-1], [-matrix[0], matrix[1], -matrix[2], matrix[3]]
    a, b, c, d = (int(each * 65536) for each in matrix)

    class Frame:
        width, height = 3, 2

        def __init__(self):
            self.side_data = {"DISPLAYMATRIX": struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)}

        def to_ndarray(self):
            return picture[..., None]

    as_it_is = media.upright(Frame(), 1.0, lambda frame, width, height, format: frame)
    np.testing.assert_array_equal(as_it_is[..., 0], shown)
    assert media.is_mirrored(Frame()) == bool(flip)


def test_a_still_picture_stays_as_long_as_the_sound(base, tmp_path):
    face = ffmpeg("-ss", 1, "-i", base, "-frames:v", 1, tmp_path / "face.png")
    both = ("-i", face, "-i", base, "-map", "0:v", "-map", "1:a", "-pix_fmt", "yuv420p")
    for name in ("still.mp4", "still.mkv"):
        still = ffmpeg(*both, "-c:a", "copy", tmp_path / name)
        found = list(media.frames_at(still, np.array([0.01, 0.5, 1.9])))
        assert [index for indices, _ in found for index in indices] == [0, 1, 2]
    two = make_clip(tmp_path / "two.mp4", moving_picture(2), tone(2))
    assert len(list(media.frames_at(two, np.array([0.01, 0.1, 1.9])))) == 2, "a film that ends"


def test_the_cover_of_a_song_is_no_video(base, tmp_path):
    cover = ffmpeg("-ss", 1, "-i", base, "-frames:v", 1, tmp_path / "cover.png")
    song = ffmpeg(
        *("-i", base, "-i", cover, "-map", "0:a", "-map", "1:v", "-c:v", "copy"),
        *("-disposition:v:0", "attached_pic", tmp_path / "song.m4a"),
    )
    with pytest.raises(ClipError, match="only a cover picture"):
        frame_of(song)
    assert len(audio.read_mono(song).wave) > 30_000


# --- sound that everybody hears -----------------------------------------------------------------


@pytest.mark.parametrize("share", [-1, -0.97])
@pytest.mark.parametrize("name", ["a.wav", "a.mp4", "a.mkv"])
def test_channels_that_cancel_each_other_out(base, tmp_path, share, name):
    pan = f"pan=stereo|c0=c0|c1={share}*c0"
    clip = ffmpeg("-i", base, "-af", pan, *(["-vn"] if name == "a.wav" else []), tmp_path / name)
    sound = audio.read_mono(clip)
    assert level(sound.wave) > 0.9 * level(audio.read_mono(base).wave)
    assert sound.channel in (0, 1)
    assert audio.extract_speech(clip).channel == sound.channel


def test_ordinary_channels_are_averaged(tmp_path):
    low, high = tone(1, 300), tone(1, 1200)
    for channels in ([low], [low, high], [low, 0 * low], [low, 0.3 * high]):
        sound = audio.read_mono(make_clip(tmp_path / "a.wav", None, np.stack(channels), **PCM))
        assert sound.channel == audio.MEAN
        np.testing.assert_allclose(sound.wave[:8000], np.mean(channels, 0)[:8000], atol=2e-3)


PCM = {"sound_codec": "pcm_s16le"}


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("a.mp4", ("-disposition:a:0", "default", "-disposition:a:1", 0)),
        ("a.mkv", ("-disposition:a:0", 0, "-disposition:a:1", "default")),
        ("a.mkv", ("-disposition:a:0", "default", "-disposition:a:1", 0)),
    ],
)
def test_the_first_track_is_silent(base, tmp_path, name, asked):
    """As screen recorders write it: the desktop, then the microphone."""
    silence = ("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono")
    tracks = ("-map", "1:v", "-map", "0:a", "-map", "1:a", "-t", 2, "-c:v", "copy", "-c:a", "aac")
    clip = ffmpeg(*silence, "-i", base, *tracks, *asked, tmp_path / name)
    sound = audio.read_mono(clip)
    assert sound.track == 2 and level(sound.wave) > 0.01
    made = tmp_path / "made.mp4"
    made.write_bytes(annotate(clip, []))
    assert level(audio.read_mono(made).wave) > 0.01, "the annotated video is mute"


def test_the_default_track_comes_first(base, tmp_path):
    other = make_clip(tmp_path / "other.wav", None, tone(2), **PCM)
    flags = ("-disposition:a:0", 0, "-disposition:a:1", "default", "-map", "0:a", "-map", "1:a")
    both = ffmpeg("-i", other, "-i", base, *flags, tmp_path / "both.mkv")
    assert audio.read_mono(both).track == 1
    flags = ("-disposition:a:0", "default", "-disposition:a:1", 0, "-map", "0:a", "-map", "1:a")
    only = ffmpeg("-i", other, "-i", base, *flags, tmp_path / "both.mp4")
    assert audio.read_mono(only).track == 0


def test_a_long_recording_is_cut_from_the_track_that_speaks(tmp_path):
    speech = make_clip(tmp_path / "speech.wav", None, voice(8), **PCM)
    silence = ("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono")
    tracks = ("-map", "0:a", "-map", "1:a", "-t", 8, "-c:a", "aac")
    long = ffmpeg(*silence, "-i", speech, *tracks, tmp_path / "long.mp4")
    parts = cut_long(find_sources([long], None)[0], 3.0, tmp_path)
    assert len(parts) > 1
    for part in parts:
        assert level(audio.read_mono(part.clip.media).wave) > 0.01


# --- trimmed without encoding anew ---------------------------------------------------------------


def test_clips_that_an_edit_list_trims_are_whole(base, tmp_path):
    whole = ffmpeg("-i", base, "-g", 300, "-c:a", "aac", tmp_path / "whole.mp4")
    for name in ("start.mp4", "start.mov"):
        cut = ffmpeg("-ss", 1, "-i", whole, "-c", "copy", tmp_path / name)
        sound, pictures = audio.read_mono(cut), media.scan_pictures(cut)
        assert 0.8 < len(sound.wave) / 16_000 < 1.1 and 0.8 < pictures.end < 1.1
        assert np.abs(frame_of(cut, 0.5) - frame_of(whole, 1.5)).mean() < 8
    data = whole.read_bytes()
    (tmp_path / "short.mp4").write_bytes(data)
    index_first = ffmpeg("-i", whole, "-c", "copy", "-movflags", "faststart", tmp_path / "f.mp4")
    (tmp_path / "short.mp4").write_bytes(index_first.read_bytes()[: len(data) // 2])
    with pytest.raises(ClipError) as found:
        audio.read_mono(tmp_path / "short.mp4")
    assert found.value.code == "E_TRUNC"


# --- endings ------------------------------------------------------------------------------------

SOUNDS = {
    "note.opus": ("libopus",),
    "note.ogg": ("libvorbis",),
    "note.oga": ("libopus",),
    "note.aac": ("aac",),
    "note.aiff": ("pcm_s16be",),
    "note.aif": ("pcm_s16be",),
    "note.wma": ("wmav2",),
    "note.caf": ("pcm_s16le",),
    "note.mka": ("libopus",),
    "note.amr": ("libopencore_amrnb", "-ar", 8000, "-ac", 1),
}
FILMS = {
    "clip.3gp": ("-c:v", "mpeg4", "-c:a", "aac"),
    "clip.wmv": ("-c:v", "wmv2", "-c:a", "wmav2"),
    "clip.ts": ("-c:v", "libx264", "-c:a", "aac"),
    "clip.mts": ("-c:v", "libx264", "-c:a", "ac3", "-f", "mpegts"),
    "clip.mpg": ("-r", 25, "-c:v", "mpeg2video", "-c:a", "mp2"),
    "clip.ogv": ("-c:v", "libtheora", "-c:a", "libvorbis"),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_voice_notes_are_read(base, tmp_path, name):
    codec, *more = SOUNDS[name]
    note = ffmpeg("-i", base, "-vn", "-c:a", codec, *more, tmp_path / name)
    sound = audio.read_mono(note)
    assert 1.9 < len(sound.wave) / 16_000 < 2.3
    assert level(sound.wave) == pytest.approx(level(audio.read_mono(base).wave), rel=0.25)


@pytest.mark.parametrize("name", FILMS)
def test_films_of_other_containers_are_read(base, tmp_path, name):
    film = ffmpeg("-i", base, *FILMS[name], tmp_path / name)
    assert 1.8 < len(audio.read_mono(film).wave) / 16_000 < 2.3
    pictures = media.scan_pictures(film)
    assert 1.8 < pictures.end - pictures.start < 2.3
    assert np.abs(frame_of(film, pictures.start + 1) - frame_of(base)).mean() < 15


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """Eight seconds of picture and voice."""
    place = tmp_path_factory.mktemp("long") / "long.mp4"
    return make_clip(place, moving_picture(120), voice(8), fps=15)


# Far apart are the key frames of clip.ts: it has one. What is shown before the one that it is
# decoded behind ("open GOP") comes in .mpg and .mkv.
LONG_FILMS = FILMS | {
    "often.m2ts": ("-c:v", "libx264", "-g", 15, "-c:a", "ac3", "-f", "mpegts"),
    "clip.mpg": ("-r", 25, "-c:v", "mpeg2video", "-bf", 2, "-c:a", "mp2"),
    "clip.mkv": ("-c:v", "libx265", "-x265-params", "log-level=0:keyint=40", "-c:a", "aac"),
    "clip.flv": ("-c:v", "flv", "-c:a", "libmp3lame", "-ar", 44100),
    "clip.avi": ("-c:v", "mpeg4", "-bf", 2, "-c:a", "libmp3lame"),
}


@pytest.mark.parametrize("name", [*SOUNDS, *LONG_FILMS])
def test_long_recordings_of_every_container_are_cut(long, tmp_path, name):
    flags = LONG_FILMS.get(name) or ("-vn", "-c:a", *SOUNDS[name])
    film = ffmpeg("-i", long, *flags, tmp_path / name)
    parts = cut_long(find_sources([film], None)[0], 3.0, tmp_path)
    assert len(parts) > 1
    for part in parts:
        assert part.start is not None and part.end is not None
        sound = audio.read_mono(part.clip.media)
        assert len(sound.wave) / 16_000 == pytest.approx(part.end - part.start, abs=0.3)
        assert sound.offset == pytest.approx(part.start, abs=0.3) and level(sound.wave) > 0.01
        if name in LONG_FILMS:
            times = np.arange(part.start + 0.2, part.end - 0.1, 0.4)
            found, whole = ([*media.frames_at(path, times)] for path in (part.clip.media, film))
            assert [place for place, _ in found] == [place for place, _ in whole]
            assert sum(len(place) for place, _ in found) == len(times)
            for (_, shown), (_, expected) in zip(found, whole, strict=True):
                assert np.abs(shown.astype(int) - expected).mean() < 2
            first, *more = [time for time, _ in media.scan_pictures(film).keyframes]
            entry = max([first, *(time for time in more if time <= part.start)])
            assert media.scan_pictures(part.clip.media).start == pytest.approx(entry, abs=0.1)


def test_no_part_of_an_mpg_rests_on_guessed_times(long, tmp_path):
    """FFmpeg guesses them behind a seek, where the pictures are not in the order of decoding."""
    flags = ("-r", 25, "-c:v", "mpeg2video", "-bf", 1, "-g", 8, "-c:a", "mp2")
    film = ffmpeg("-i", long, *flags, tmp_path / "film.mpg")
    for start in (2.1, 3.3, 4.7, 5.9):
        ending, data = copy_packets(film, start, start + 1, None)
        part = tmp_path / f"part{ending}"
        part.write_bytes(data)
        for time in (start, start + 0.4):
            assert np.abs(frame_of(part, time) - frame_of(film, time)).mean() < 2


def test_cut_recordings_that_tell_their_length_are_called_so(base, tmp_path):
    for name in ("clip.wmv", "note.aiff"):
        flags = FILMS.get(name) or ("-vn", "-c:a", *SOUNDS[name])
        whole = ffmpeg("-i", base, *flags, tmp_path / name)
        whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ClipError) as found:
            audio.read_mono(whole)
        assert found.value.code == "E_TRUNC"


KINDS = {
    "mov": ("-vn", "-c:a", "aac", "-f", "ipod"),
    "mp3": ("-vn", "-c:a", "libmp3lame", "-f", "mp3"),
    "aac": ("-vn", "-c:a", "aac", "-f", "adts"),
    "matroska": ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus", "-f", "webm"),
    "wav": ("-vn", "-f", "wav"),
    "flac": ("-vn", "-f", "flac"),
    "ogg": ("-vn", "-c:a", "libopus", "-f", "ogg"),
    "avi": ("-c:v", "mpeg4", "-c:a", "libmp3lame", "-f", "avi"),
    "flv": ("-c:v", "flv", "-c:a", "libmp3lame", "-ar", 44100, "-f", "flv"),
    "asf": ("-c:v", "wmv2", "-c:a", "wmav2", "-f", "asf"),
    "aiff": ("-vn", "-f", "aiff"),
    "caf": ("-vn", "-f", "caf"),
    "amr": ("-vn", "-c:a", "libopencore_amrnb", "-ar", 8000, "-ac", 1, "-f", "amr"),
    "mpegts": ("-c:v", "libx264", "-c:a", "aac", "-f", "mpegts"),
    "mpeg": ("-r", 25, "-c:v", "mpeg2video", "-c:a", "mp2", "-f", "mpeg"),
}


def test_a_good_file_under_another_ending_is_told_what_it_is(base, tmp_path):
    """Of every kind under every other's ending: it is read rightly, or its true kind is named."""
    assert KINDS.keys() == media.KINDS.keys()
    expected, wrong = level(audio.read_mono(base).wave), []
    for kind, flags in KINDS.items():
        made = ffmpeg("-i", base, *flags, tmp_path / kind)
        with open(made, "rb") as file:
            assert media.kind_of(file.read(512)) == kind
        for ending in {each.endings.split()[0] for each in media.KINDS.values()}:
            named = tmp_path / f"named{ending}"
            named.write_bytes(made.read_bytes())
            try:
                sound = audio.read_mono(named)
                right = level(sound.wave) == pytest.approx(expected, rel=0.25)
            except ClipError as error:
                right = media.KINDS[kind].name in error.reason and "rename it" in error.reason
            if not right:
                wrong.append((kind, ending))
    assert not wrong


# --- folders, and words beside a clip ------------------------------------------------------------


def test_what_a_folder_holds_and_is_not_read_is_told(base, tmp_path):
    for name in (
        "a.mp4",
        "b.MP4",
        "._a.mp4",
        "__MACOSX/._a.mp4",
        "a.TXT",
        "notes.docx",
        ".DS_Store",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(base.read_bytes() if name[:1] in "ab" else b"x")
    (tmp_path / "a.TXT").write_text("I am glad")
    found = find_sources([tmp_path], None)
    assert [source.clip.clip_id for source in found] == ["a", "b"]
    assert [source.clip.transcript for source in found] == ["I am glad", ""]
    assert [path.name for path in left_out([tmp_path])] == ["notes.docx"]


VTT = """WEBVTT
Kind: captions

NOTE a remark

00:01.000 --> 00:02.500 align:start position:0%
<v Ann>I &amp; you</v>

1:00:03.000 --> 1:00:04.000
are glad
"""
SCROLLED = """WEBVTT

00:00:00.000 --> 00:00:02.000
so<00:00:00.500><c> it</c><00:00:01.000><c> was</c>

00:00:02.000 --> 00:00:02.010
so it was

00:00:02.010 --> 00:00:04.000
so it was
very<00:00:02.500><c> nice</c>
"""


def test_subtitles_of_the_web(tmp_path):
    (tmp_path / "a.vtt").write_bytes(VTT.replace("\n", "\r\n").encode("utf-8-sig"))
    cues = read_cues(tmp_path / "a.vtt")
    assert [(cue.start, cue.end, cue.words) for cue in cues] == [
        (1.0, 2.5, "I & you"),
        (3603.0, 3604.0, "are glad"),
    ]
    (tmp_path / "b.VTT").write_text(SCROLLED)
    assert read_words(tmp_path / "b.VTT") == "so it was very nice"


@pytest.mark.parametrize(
    "name",
    ["a.TXT", "a.tXt", "a.SRT", "a.vtt", "a.en.vtt", "a.pt-BR.SRT", "a.eng.txt", "a.mp4.vtt"],
)
def test_words_beside_a_clip(base, tmp_path, name):
    words = "I am glad"
    if not name.lower().endswith("txt"):
        words = f"00:00:00,500 --> 00:00:01,500\n{words}\n"
    (tmp_path / name).write_text(words)
    (tmp_path / "a.mp4").write_bytes(base.read_bytes())
    for given in ("a.mp4", name):
        (source,) = find_sources([tmp_path / given], None)
        assert source.clip.transcript == "I am glad" and not source.problem
    assert not source.clip.media.name, "words alone are no clip"
    assert left_out([tmp_path]) == []


def test_words_in_several_languages(tmp_path):
    """The downloader that fetches a.en.srt fetches a.en-orig.srt, the same words, as well."""
    for name in (
        "a.mp4",
        "a.de.mp4",
        "a.de.srt",
        "a.en-orig.srt",
        "a.en.vtt",
        "a.mov.srt",
        "a.7.srt",
    ):
        (tmp_path / name).write_text(f"00:00:00,500 --> 00:00:01,500\n{name}\n")
    german, english = find_sources([tmp_path], None)
    assert german.clip.transcript == "a.de.srt" and english.clip.transcript == "a.en-orig.srt"
    assert [path.name for path in left_out([tmp_path])] == ["a.7.srt", "a.mov.srt"]
    (tmp_path / "a.fr.srt").write_text("x")
    (source,) = find_sources([tmp_path / "a.mp4"], None)
    expected = "the words of a.mp4 are there in en and fr: rename one to a.srt, or give --text"
    assert source.clip.transcript == "" and source.problem == f"E_READ: {expected}"
    assert read_subtitles(source, 0) == ([], source.problem)
    (source,) = find_sources([tmp_path / "a.mp4"], "bonjour")
    assert source.clip.transcript == "bonjour" and not source.problem


# --- corpora ------------------------------------------------------------------------------------


def list_csv(folder: Path, table: str, *names: str):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "manifest.csv").write_text(table)
    return list_corpus("csv", folder)


def test_paths_of_windows(tmp_path):
    rows = "a\\x.wav,train,hap\nC:\\me\\y.wav,val,hap\n/home/me/z.wav,val,hap\n"
    listing = list_csv(tmp_path, f"media,split,emotion\n{rows}", "a/x.wav")
    (clip,) = listing.clips
    assert clip.media == tmp_path / "a" / "x.wav" and clip.clip_id == "x"
    assert {failure.clip_id: failure.code for failure in listing.failures} == {
        "y": "E_ID",
        "z": "E_ID",
    }
    assert all("another machine" in failure.reason for failure in listing.failures)


@pytest.mark.parametrize("nothing", ["nan", "NaN", "None", "N/A", "NA", "null", "<NA>", ""])
def test_unknown_fields_as_programs_write_them(tmp_path, nothing):
    table = f"media,split,emotion,speaker,transcript\na.wav,train,hap,{nothing},None!\n"
    (clip,) = list_csv(tmp_path, table, "a.wav").clips
    assert clip.speaker == "" and clip.transcript == "None!"


@pytest.mark.parametrize("nobody", ["unknown", "Unknown", "?", "-"])
def test_unknown_speakers_are_not_one_person(tmp_path, nobody):
    table = f"media,split,emotion,speaker,transcript\na.wav,train,hap,{nobody},{nobody}\n"
    (clip,) = list_csv(tmp_path, table, "a.wav").clips
    assert clip.speaker == "" and clip.transcript == nobody


def test_names_of_splits_that_others_use(tmp_path):
    table = "media,split,emotion\na.wav,Training,hap\nb.wav,dev,hap\nc.wav,validation,hap\n"
    listing = list_csv(tmp_path, f"{table}d.wav,test2,\n", "a.wav")
    assert [clip.split for clip in listing.clips] == ["test2", "train", "val", "val"]


def test_a_table_with_the_line_of_excel(tmp_path):
    (clip,) = list_csv(tmp_path, "sep=;\nmedia;split;emotion\na.wav;train;hap\n", "a.wav").clips
    assert clip.clip_id == "a"
    with pytest.raises(UsageError, match="line 3"):
        list_csv(tmp_path, "sep=;\nmedia;split;emotion\na.wav;train;hap;b\n")


@pytest.mark.parametrize(
    ("written", "classes", "meant"),
    [
        ("Hap", CODES, "hap"),
        ("angry", CODES, "ang"),
        ("Happiness", CODES, "hap"),
        ("FEARFUL", CODES, "fea"),
        ("sadness", CODES, "sad"),
        ("Neutral", CODES, "neu"),
        ("surprised", CODES, "sur"),
        ("disgust", CODES, "dis"),
        ("happy", ("Happiness", "Sadness"), "Happiness"),
        ("sad", ("Happiness", "Sadness"), "Sadness"),
        ("happy", ("happiness", "happy"), "happy"),
        ("glad", CODES, "glad"),
        ("hap", ("happiness", "happy"), "hap"),
        ("calm", CODES, "calm"),
        ("happy-ish", CODES, "happy-ish"),
        ("기쁨", ("기쁨", "슬픔"), "기쁨"),
    ],
)
def test_labels_in_plain_words(written, classes, meant):
    assert as_class(written, classes) == meant


def test_labels_that_mean_no_class_are_told_first(tmp_path):
    rows = "a.wav,train,merry\nb.wav,train,bored\nc.wav,val,bored\nd.wav,test,\ne.wav,val,\n"
    rows += "f.wav,val,Happy\n"
    listing = list_csv(tmp_path, f"media,split,emotion\n{rows}")
    assert [clip.emotion for clip in listing.clips] == ["", "hap"]
    (warning,) = listing.warnings
    assert (
        "4 clips" in warning and "bored 2, merry 1, none 1" in warning and "classes.txt" in warning
    )


def test_equal_copies_of_a_corpus_count_once(tmp_path):
    for place in ("archive", "archive/audio_speech_actors_01-24"):
        for emotion in ("01", "03", "05"):
            file = tmp_path / place / "Actor_01" / f"03-01-{emotion}-01-01-01-01.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(emotion)
    listing = list_corpus("ravdess", tmp_path)
    assert len(listing.clips) == 3 and not listing.failures
    assert listing.notes[0].startswith("copies of other files: 3, such as")
    file.write_text("another recording")
    listing = list_corpus("ravdess", tmp_path)
    assert len(listing.clips) == 2 and {each.code for each in listing.failures} == {"E_DUP"}


def test_macos_files_are_no_clips_of_the_challenge(tmp_path):
    for name in ("11090-a-hap-hap-hap.mp4", "._11090-a-hap-hap-hap.mp4"):
        (tmp_path / "qia2020" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "qia2020" / "train" / name).write_text("x")
    listing = list_corpus("merc2020", tmp_path)
    assert [clip.clip_id for clip in listing.clips] == ["11090"] and not listing.failures


# --- word vectors -------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["", "2 3\n"])
def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path, first):
    path = tmp_path / "a.vec"
    path.write_text(f"{first}i 1 2 3\nam 4 5 6\n", "utf-8-sig")
    found = vectors.read_vectors(path, {"i", "am"})
    np.testing.assert_array_equal(found["i"], [1, 2, 3])
    assert len(found) == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack("<ii", 793712314, 12) + bytes(500), "a fastText model: give the .vec"),
        (b"\x80\x04\x95" + bytes(500), "a Python pickle"),
        (b"i\nam\nglad\n", "its first line"),
        (b"i,0.1,0.2\n", "its first line"),
        (b"the cat sat\non the mat\n", "no word with its values"),
        (b"\xff\xfei\x00 \x001\x00\n", "its first line"),
        (bytes(range(256)) * 20, "its first line"),
    ],
)
def test_what_is_no_file_of_word_vectors_is_named(tmp_path, data, says):
    (tmp_path / "a.vec").write_bytes(data)
    with pytest.raises(UsageError, match=says):
        vectors.read_vectors(tmp_path / "a.vec", {"i", "am"})


def test_packed_vectors_are_known_by_their_bytes(tmp_path):
    import gzip

    (tmp_path / "a.vec").write_bytes(gzip.compress(b"i 1 2 3\n"))
    assert vectors.read_vectors(tmp_path / "a.vec", {"i"})["i"].tolist() == [1, 2, 3]


# --- submission sheets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sheet", "filled"),
    [
        ("FileID, Emotion\n7, \n8, \n", "FileID, Emotion\n7,sad\n8,hap\n"),
        ("FileID,emotion\n7,\n8,\n", "FileID,emotion\n7,sad\n8,hap\n"),
        ("FileID , Emotion\n7,\n8,\n", "FileID , Emotion\n7,sad\n8,hap\n"),
        ("fileid;EMOTION\r\n7;\r\n8;\r\n", "fileid;EMOTION\r\n7;sad\r\n8;hap\r\n"),
        ("sep=;\nFileID;Emotion\n7;\n8;\n", "sep=;\nFileID;Emotion\n7;sad\n8;hap\n"),
        (
            'FileID,Text\n7,"a\nb"\n8,"c,\n\n""d"\n',
            'FileID,Text,Emotion\n7,"a\nb",sad\n8,"c,\n\n""d",hap\n',
        ),
        ("FileID,Text\n7,a\u2028b\n8,c\n", "FileID,Text,Emotion\n7,a\u2028b,sad\n8,c,hap\n"),
        ('FileID,Text\n7,5" tall\n8,"c"\n', 'FileID,Text,Emotion\n7,5" tall,sad\n8,"c",hap\n'),
    ],
)
def test_sheets_as_people_make_them(tmp_path, sheet, filled):
    (tmp_path / "a.csv").write_bytes(sheet.encode())
    read = Sheet(tmp_path / "a.csv")
    assert read.ids == ["7", "8"]
    assert read.filled({"7": "sad", "8": "hap"}).decode() == filled


IDS = ["10914.mp4", "10914.MP4", "10914 ", "10914.0", "010914.0", "10914"]


@pytest.mark.parametrize("id_written", IDS)
def test_ids_as_people_write_them(tmp_path, id_written):
    (tmp_path / "a.csv").write_text(f"FileID,Emotion\n{id_written},\n")
    table = pd.DataFrame([("test", "10914"), ("test", "1091")], columns=["split", "clip_id"])
    features = SimpleNamespace(manifest=table, rows=lambda name: table)
    sheet = Sheet(tmp_path / "a.csv")
    ((given, row),) = make_submission.find_rows(sheet, features, None).items()
    assert row["clip_id"] == "10914" and given == id_written.strip()
    assert sheet.filled({given: "hap"}).decode() == f"FileID,Emotion\n{id_written},hap\n"


# --- a batch of one clip ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1)])
def test_batches_of_one_value_teach_the_scale_of_a_feature(shape):
    torch.manual_seed(0)
    norm = BatchNorm(5)
    for _ in range(300):
        value = 1000 + 50 * torch.randn(shape)
        assert torch.isfinite(norm(value)).all()
    assert (norm.running_mean - 1000).abs().max() < 60
    assert 1 < norm(1000 + 50 * torch.randn(shape)).abs().max() + 2 < 8
    ordinary, many = torch.nn.BatchNorm1d(5), torch.randn(8, 5)
    torch.testing.assert_close(BatchNorm(5)(many), ordinary(many))


# --- the annotated video ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flags", "size"),
    [
        (
            "browser.webm",
            ("-c:v", "libvpx", "-c:a", "libopus", "-f", "webm", "-live", 1),
            (90, 120),
        ),
        ("phone.mp4", ("-vf", "transpose=1", "-c:a", "copy"), (90, 120)),
        ("camera.mp4", ("-vf", "scale=60:90,setsar=2"), (90, 120)),
        ("film.avi", ("-an", "-c:v", "mpeg4"), (90, 120)),
        ("sound_first.avi", ("-c:v", "mpeg4", "-c:a", "libmp3lame"), (90, 120)),
        ("odd.mkv", ("-vf", "crop=119:89:0:0", "-pix_fmt", "yuv444p"), (88, 118)),
    ],
)
def test_annotated_videos_look_as_players_show_them(base, tmp_path, name, flags, size):
    clip = ffmpeg("-i", base, *flags, tmp_path / name)
    if name == "phone.mp4":
        turned = ("-display_rotation", 90, "-i", clip, "-c", "copy")
        clip = ffmpeg(*turned, tmp_path / "turned.mp4")
    (source,) = find_sources([clip], None)
    answer = ClipPrediction(source, list(CODES), {}, {}, {"face": np.full(7, 1 / 7)})
    made = tmp_path / "made.mp4"
    made.write_bytes(annotate(clip, [replace(answer, source=source._replace(end=1.0))]))
    during, after = frame_of(made, 0.5), frame_of(made, 1.5)
    assert during.shape[:2] == after.shape[:2] == size
    assert np.abs(after - frame_of(clip, 1.5)[: size[0], : size[1]]).mean() < 8
    assert np.abs(during - frame_of(clip, 0.5)[: size[0], : size[1]]).mean() > 10, "no answer"
    pictures = media.scan_pictures(made)
    assert pictures.end - pictures.start == pytest.approx(2, abs=0.2)
    if "-an" not in flags:
        assert level(audio.read_mono(made).wave) > 0.02
