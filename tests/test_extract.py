"""One clip -> arrays: right for good clips, and a code for every clip that is not."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import os
import signal
import struct
import subprocess
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import extract_faces, flat, make_clip, moving_picture, tone
from mutants import read_all, read_mutant_clip, read_mutant_words
from PIL import Image
from scipy.io import wavfile

from corpora.manifest import Clip
from extract import audio, detector, faces
from extract.audio import denoise, extract_speech, log_mel_spectrogram, read_mono
from extract.clip import SETTINGS, STAGES, Job, process_clip
from extract.detector import Track, detect, overlap, square
from extract.faces import sample_times
from extract.media import frames_at, open_media, scan_pictures
from extract.words import embed, read_words
from utils import guard
from utils.errors import CLIP_CODES, ClipError, IntegrityError, UsageError
from utils.files import digest, sha256
from utils.guard import Limits, guarded

HOP = audio.SPEECH_SETTINGS["hop_length"] / audio.SPEECH_SETTINGS["sample_rate"]  # seconds
SMALL = faces.FACE_SETTINGS | {"face_size": 48, "detect_every": 1}  # MTCNN looks at every frame
FACE = (40, 20, 80, 60)  # with the margins exactly 48 pixels wide


def code_of(function, *args) -> str:
    """Code of the ClipError that the call raises; its reason must not be empty."""
    with pytest.raises(ClipError) as caught:
        function(*args)
    assert caught.value.reason
    return caught.value.code


# --- sound --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hertz", [200, 1000, 3000, 7000])
def test_a_sine_is_a_line_at_its_mel_bin(hertz):
    import librosa

    wave = tone(1.0, hertz)[:15_999]
    log_mel = log_mel_spectrogram(wave)
    centres = librosa.mel_frequencies(130, fmin=80, fmax=8000)[1:-1]
    assert log_mel.shape == (128, 1 + len(wave) // 256) and log_mel.dtype == np.float32
    assert log_mel.min() >= 0 and log_mel.max() == 1
    assert abs(int(log_mel.mean(axis=1).argmax()) - int(np.abs(centres - hertz).argmin())) <= 1


@pytest.mark.parametrize("level", [0.9, 0.03, 0.003])
def test_the_level_of_the_recording_does_not_matter(level):
    wave = tone(0.5, 1000, level=1.0)
    np.testing.assert_allclose(
        log_mel_spectrogram(level * wave), log_mel_spectrogram(wave), atol=2e-3
    )


def test_the_share_of_samples_at_full_scale_is_told(tmp_path):
    loud = make_clip(tmp_path / "loud.mp4", moving_picture(), np.sign(tone(0.6)))
    good = make_clip(tmp_path / "good.mp4", moving_picture(), tone(0.6))
    assert extract_speech(loud).clipped > 0.05  # the coded square wave swings around full scale
    assert extract_speech(good).clipped == 0


@pytest.mark.parametrize("late", [0.0, 0.5, 2.0])
def test_silence_is_trimmed_and_the_times_are_the_clips_own(tmp_path, late):
    sound = np.concatenate([np.zeros(8000), tone(0.6), np.zeros(8000)])
    clip = make_clip(tmp_path / "a.mp4", moving_picture(), sound, sound_start=late)
    speech = extract_speech(clip)
    window = audio.SPEECH_SETTINGS["n_fft"] / 16_000
    assert -window <= speech.start - (late + 0.5) <= HOP
    assert -HOP <= speech.end - (late + 1.1) <= window
    seconds = speech.end - speech.start
    assert speech.log_mel.shape == (128, 1 + round(seconds * 16_000) // 256)


def test_sound_on_the_right_channel_alone_is_heard(tmp_path):
    sound = np.stack([np.zeros(9600), tone(0.6, 1000)])
    clip = make_clip(tmp_path / "a.mp4", None, sound)
    wave = read_mono(clip).wave
    assert np.abs(wave).max() == pytest.approx(0.15, rel=0.2)  # the mean of 0 and 0.3
    assert extract_speech(clip).log_mel.shape[1] > 30


def test_rates_and_channels_do_not_change_what_is_heard(tmp_path):
    results = []
    for rate, channels in ((8000, 1), (16_000, 1), (44_100, 2), (48_000, 1), (48_000, 6)):
        sound = np.concatenate([np.zeros(rate // 4), tone(0.6, 1000, rate), np.zeros(rate // 4)])
        clip = make_clip(tmp_path / "a.mp4", None, np.tile(sound, (channels, 1)), rate=rate)
        results.append(extract_speech(clip).log_mel)
    lengths = [log_mel.shape[1] for log_mel in results]
    assert max(lengths) - min(lengths) <= 1, lengths
    assert len({int(log_mel.mean(axis=1).argmax()) for log_mel in results}) == 1


def bursts(seed: int) -> np.ndarray:
    """(N,) float32 noise that is loud now and then."""
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.uniform(0, 1, 20) ** 8, rng.integers(50, 2000))
    return (loud * rng.normal(size=len(loud))).astype(np.float32)


def test_the_spectrogram_is_that_of_torch():
    wave = bursts(0)
    expected = torch.stft(
        torch.from_numpy(wave).double(),
        512,
        256,
        window=torch.hann_window(512, dtype=torch.double),
        pad_mode="constant",
        return_complex=True,
    )
    power = audio.power_spectrogram(wave, audio.SPEECH_SETTINGS)
    np.testing.assert_allclose(power, expected.abs().numpy() ** 2, rtol=1e-4, atol=1e-7)


@pytest.mark.slow  # in a fresh environment librosa compiles for half a minute
def test_the_same_is_heard_as_librosa_hears(monkeypatch):
    """Bit for bit, also where it is computed in several blocks."""
    import librosa

    monkeypatch.setattr(audio, "BLOCK", 50)
    for seed in range(20):
        wave = bursts(seed)
        _, expected = librosa.effects.trim(wave, top_db=20, frame_length=512, hop_length=256)
        assert audio.trim(wave) == tuple(expected)
        sizes = {"sr": 16_000, "n_fft": 512, "hop_length": 256, "fmin": 80, "fmax": 8000}
        power = librosa.feature.melspectrogram(y=wave, **sizes)
        decibel = librosa.power_to_db(power / power.max(), top_db=80)
        np.testing.assert_array_equal(
            log_mel_spectrogram(wave), (1 + decibel / 80).clip(0, 1).astype(np.float32)
        )


@pytest.mark.parametrize("wave", [np.zeros(999), np.full(999, 0.25), np.repeat([0, 0.5], 500)])
def test_wiener_filter_leaves_what_does_not_vary(wave):
    filtered = denoise(wave.astype(np.float32))
    assert np.isfinite(filtered).all() and filtered.dtype == np.float32
    np.testing.assert_allclose(filtered[1:490], wave[1:490], atol=1e-6)


def test_wiener_filter_removes_noise():
    noise = np.random.default_rng(0).normal(0, 0.02, 8000).astype(np.float32)
    clean = tone(0.5, 200)
    assert np.square(denoise(clean + noise) - clean).sum() < 0.8 * np.square(noise).sum()


def _with(position: int, value: float) -> np.ndarray:
    wave = tone(0.5)
    wave[position] = value
    return wave


@pytest.mark.parametrize(
    ("sound", "code"),
    [
        (_with(4000, np.nan), "E_NONFINITE"),
        (_with(0, np.inf), "E_NONFINITE"),
        (np.zeros(8000), "E_SILENT"),
        (tone(0.5, level=5e-5), "E_SILENT"),
        (tone(0.02), "E_SHORT"),
        (np.r_[np.zeros(8000), 0.5 * np.ones(48), np.zeros(8000)], "E_SHORT"),
        (None, "E_NOAUDIO"),
    ],
    ids=["nan", "inf", "silent", "nearly silent", "20 ms", "a click", "none"],
)
def test_unusable_sound_has_a_code(tmp_path, sound, code):
    kind = "pcm_f32le" if code == "E_NONFINITE" else "aac"
    clip = make_clip(tmp_path / "a.mov", moving_picture(), sound, sound_codec=kind)
    assert code_of(extract_speech, clip) == code


def test_hours_of_sound_are_refused_before_they_fill_the_memory(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", None, tone(3.0))
    assert code_of(extract_speech, clip, audio.SPEECH_SETTINGS | {"max_seconds": 2}) == "E_LIMIT"


def test_uncompressed_sound_is_read(tmp_path):
    clip = make_clip(tmp_path / "a.mov", moving_picture(), tone(0.5), sound_codec="pcm_f32le")
    assert len(read_mono(clip).wave) == 8000


@pytest.mark.parametrize("channels", [1, 2, 6, 7, 8, 16, 24, 63, 64])
def test_the_mean_of_all_channels_is_heard(tmp_path, channels):
    """With eight or more, planes of their own end in wild memory."""
    sound = np.random.default_rng(0).integers(-9000, 9000, (4000, channels)).astype(np.int16)
    wavfile.write(tmp_path / "a.wav", 16_000, sound)
    wave = read_mono(tmp_path / "a.wav").wave
    np.testing.assert_allclose(wave, sound.mean(axis=1) / 32768, atol=1e-7)


@pytest.mark.parametrize("layout", ["5.1", "6.1", "7.1", "7.1(wide-side)"])
@pytest.mark.parametrize("ending", ["mov", "caf", "aiff"])
def test_channels_with_places_of_their_own_are_read(tmp_path, ending, layout):
    """What PyAV reads of some of them ends the process: so this test asks another one."""
    import av

    path, places = tmp_path / f"a.{ending}", av.AudioLayout(layout)
    sound = np.random.default_rng(0).integers(-9000, 9000, (4000, places.nb_channels))
    with av.open(str(path), "w") as made:
        stream = made.add_stream("pcm_s16be", rate=16_000, layout=layout)
        packed = sound.astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, "s16", layout=layout)
        frame.sample_rate = 16_000
        made.mux([*stream.encode(frame), *stream.encode()])
    wave = guarded(read_mono, path, limits=Limits(60, 0)).wave
    np.testing.assert_allclose(wave, sound.mean(axis=1) / 32768, atol=1e-4)


# --- sound and picture on one clock -------------------------------------------------------------


def remux(source: Path, target: Path, lost=(9, 9), jump=lambda seconds: 0.0) -> Path:
    """The same packets, those of the sound without the seconds `lost` and moved by `jump`."""
    import av

    with av.open(str(source)) as whole, av.open(str(target), "w") as made:
        copies = {stream: made.add_stream_from_template(stream) for stream in whole.streams}
        for packet in whole.demux():
            if packet.pts is None:
                continue
            if packet.stream.type == "audio":
                time = float(packet.pts * packet.time_base)
                if lost[0] <= time < lost[1]:
                    continue
                move = round(jump(time) / packet.time_base)
                packet.pts, packet.dts = packet.pts + move, packet.pts + move
            packet.stream = copies[packet.stream]
            made.mux(packet)
    return target


def clock_clip(path: Path, rate: int = 48_000, **kinds) -> Path:
    """5 s: tones from 0.5 to 1 and from 4 to 4.5 s; every tenth of a second another grey."""
    sound = np.zeros(5 * rate, np.float32)
    for start in (rate // 2, 4 * rate):
        sound[start : start + rate // 2] = tone(0.5, 1000, rate)
    frames = None
    if kinds.get("codec") != "":
        frames = np.stack([flat((5 * number,) * 3) for number in range(50)])
    return make_clip(path, frames, sound, fps=10, rate=rate, **kinds)


def tenth_on_screen(clip: Path, time: float) -> int:
    [(_, frame)] = frames_at(clip, np.array([time]))
    return round(frame.mean() / 5)


@pytest.mark.parametrize(
    ("ending", "sound_codec", "codec"),
    [
        ("mp4", "aac", "libx264"),
        ("mov", "aac", "libx264"),
        ("mkv", "aac", "libx264"),
        ("mkv", "pcm_s16le", "libx264"),
        ("webm", "libopus", "libvpx"),
        ("flv", "aac", "libx264"),
        ("m4a", "aac", ""),
    ],
)
def test_a_hole_in_the_sound_is_silence_of_its_length(tmp_path, ending, sound_codec, codec):
    fast = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {}
    kinds = {"sound_codec": sound_codec, "codec": codec, "codec_options": fast}
    whole = clock_clip(tmp_path / f"whole.{ending}", **kinds)
    expected = extract_speech(whole)
    assert expected.gaps == 0
    for lost in ((1.5, 3.5), (1.5, 1.6)):
        clip = remux(whole, tmp_path / f"clip.{ending}", lost)
        speech = extract_speech(clip)
        assert abs(speech.start - expected.start) <= HOP and abs(speech.end - expected.end) <= HOP
        assert abs(speech.gaps - (lost[1] - lost[0])) < 0.04
        if codec:
            late = speech.end - 4.5  # what the .flv starts late, sound and picture alike
            assert tenth_on_screen(clip, speech.end - 0.15) == 43
            assert tenth_on_screen(clip, 4.35 + late) == tenth_on_screen(whole, 4.35 + late)
        wave, offset, *_ = read_mono(clip)
        middle = round((np.mean(lost) - offset) * 16_000)
        assert not wave[middle - 300 : middle + 300].any()


def test_frames_that_a_flac_lost_are_silence(tmp_path):
    whole = clock_clip(tmp_path / "whole.flac", sound_codec="flac", codec="")
    clip = remux(whole, tmp_path / "clip.flac", (1.5, 1.8))
    assert abs(extract_speech(clip).end - extract_speech(whole).end) <= HOP
    assert extract_speech(clip).gaps > 0.2


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> Path:
    """3 s of uncompressed sound: the value of a sample tells its time."""
    ramp = np.arange(1, 48_001, dtype=np.float32) / 100_000
    options = {"cluster_time_limit": "500", "write_crc32": "0"}
    path = tmp_path_factory.mktemp("steps") / "a.mkv"
    return make_clip(path, None, ramp, sound_codec="pcm_f32le", options=options)


def test_timestamps_that_tremble_change_no_sample(steps, tmp_path):
    clip = remux(steps, tmp_path / "a.mkv", jump=lambda time: 0.01 * np.sin(1e4 * time))
    [wave, offset, _, gaps, _], whole = read_mono(clip), read_mono(steps)
    np.testing.assert_array_equal(wave, whole.wave)
    assert abs(offset - whole.offset) < 0.011 and gaps == 0


def move_clusters(source: Path, target: Path, jump) -> Path:
    """An .mkv whose clusters come earlier or later than they did: no muxer writes overlaps."""
    data = bytearray(source.read_bytes())
    place = data.find(b"\x1f\x43\xb6\x75")
    while place > 0:
        first = data.index(0xE7, place + 4) + 2  # the first thing in it is its time
        end = first + (data[first - 1] & 15)
        time = int.from_bytes(data[first:end], "big")
        data[first:end] = (time + jump(time)).to_bytes(end - first, "big")
        place = data.find(b"\x1f\x43\xb6\x75", place + 4)
    target.write_bytes(data)
    return target


def test_of_samples_for_the_same_time_the_first_count(steps, tmp_path):
    clip = move_clusters(steps, tmp_path / "a.mkv", lambda ms: -200 if ms > 1500 else 0)
    wave, whole = read_mono(clip).wave, read_mono(steps).wave
    [jump] = np.flatnonzero(np.abs(np.diff(wave)) > 1e-3)
    assert 1.5 <= jump / 16_000 < 2.1 and len(whole) - len(wave) == pytest.approx(3200, abs=16)
    np.testing.assert_array_equal(wave[: jump + 1], whole[: jump + 1])
    np.testing.assert_array_equal(wave[jump + 1 :], whole[len(whole) - len(wave) + jump + 1 :])


def test_sound_before_the_first_sample_is_left_out(steps, tmp_path):
    clip = move_clusters(steps, tmp_path / "a.mkv", lambda ms: -220 if ms else 250)
    wave, offset, _, gaps, _ = read_mono(clip)
    assert offset == 0.25 and gaps == pytest.approx(0.47, abs=0.01)
    assert len(wave) / 16_000 == pytest.approx(2.53, abs=0.01)
    assert wave[0] == pytest.approx(1e-5) and wave[-1] == pytest.approx(0.48)


def test_a_forged_hole_is_refused_before_it_fills_the_memory(steps, tmp_path):
    clip = remux(steps, tmp_path / "a.mkv", jump=lambda time: 1e5 if time > 1 else 0)
    tracemalloc.start()
    assert code_of(extract_speech, clip) == "E_LIMIT"
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def hide_by_edit_list(source: Path, target: Path, start: float, seconds: float) -> Path:
    """As phones trim: all samples stay in the .mp4, its edit lists show only some seconds."""
    data = bytearray(source.read_bytes())
    movie_scale = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    place = data.find(b"elst")
    while place > 0:
        scale = struct.unpack_from(">I", data, data.index(b"mdhd", place) + 16)[0]
        media = struct.unpack_from(">i", data, place + 16)[0]  # without what only primes a decoder
        edit = round(seconds * movie_scale), media + round(start * scale)
        struct.pack_into(">Ii", data, place + 12, *edit)
        place = data.find(b"elst", place + 4)
    target.write_bytes(data)
    return target


def copied_by_ffmpeg(source: Path, target: Path, start: float, seconds: float) -> Path:
    from imageio_ffmpeg import get_ffmpeg_exe  # moviepy's

    cut = ["-ss", f"{start}", "-t", f"{seconds}", "-i", source, "-c", "copy", target]
    cut = ["-loglevel", "error", *cut]
    subprocess.run([get_ffmpeg_exe(), *cut], check=True, stdin=subprocess.DEVNULL)
    return target


@pytest.mark.parametrize("trim", [hide_by_edit_list, copied_by_ffmpeg])
def test_what_an_edit_list_hides_is_not_there(tmp_path, trim):
    """The tone at 4 s comes at 1.3 s of the trimmed clip, to the ear and to the eye."""
    faststart = {"movflags": "faststart"}
    options = {"codec_options": {"g": "300", "bf": "0"}, "options": faststart}
    whole = clock_clip(tmp_path / "whole.mp4", rate=44_100, **options)
    clip = trim(whole, tmp_path / "clip.mp4", 2.7, 2.0)
    speech, pictures = extract_speech(clip), scan_pictures(clip)
    assert abs(speech.start - 1.3) < 0.06 and abs(speech.end - 1.8) < 0.06
    assert tenth_on_screen(clip, 1.55) == 42
    assert abs(pictures.start) < 0.1 and abs(pictures.end - 2.0) < 0.11 and pictures.hides
    shown = [index for indices, _ in frames_at(clip, sample_times(0, 1.9, 10)) for index in indices]
    assert shown == list(range(19))
    data = clip.read_bytes()
    (tmp_path / "part.mp4").write_bytes(data[: len(data) * 6 // 10])
    for read in (extract_speech, scan_pictures):
        assert code_of(read, tmp_path / "part.mp4") in ("E_TRUNC", "E_CODEC")


def test_features_of_an_earlier_revision_are_made_anew_only_where_they_were_wrong(tmp_path):
    """Ordinary clips stay as they are, to the minute; what failed then is tried again."""
    kinds = {"codec": "", "sound_codec": "aac"}
    whole = clock_clip(tmp_path / "whole.m4a", **kinds)
    holed = remux(whole, tmp_path / "holed.m4a", (1.5, 3.5))
    job = Job(tmp_path / "features", ("speech",), SETTINGS)
    clips = [Clip(path.stem, "train", path) for path in (whole, holed)]
    records, files = [process_clip(clip, job) for clip in clips], []
    for clip in clips:
        files.append(tmp_path / f"features/train/speech/{clip.clip_id}.npy")
        place = tmp_path / f"features/train/records/{clip.clip_id}.json"
        record = json.loads(place.read_text())
        del record["digest"], record["revision"]
        record["stages"]["speech"]["facts"]["speech_end"] = 1.0
        place.write_text(json.dumps(record | {"digest": digest(record)}))
        os.utime(files[-1], (1, 1))
    now = [process_clip(clip, job)["stages"]["speech"]["facts"]["speech_end"] for clip in clips]
    assert now == [1.0, records[1]["stages"]["speech"]["facts"]["speech_end"]] and now[1] > 4
    assert [file.stat().st_mtime > 1 for file in files] == [False, True]
    assert process_clip(clips[0], job)["revision"] == records[0]["revision"]


def test_sound_that_changes_its_channels_is_read_on(tmp_path):
    """As a broadcast does between a film and what comes before it; nothing lies between."""
    parts = []
    for name, channels in (("a", 1), ("b", 2)):
        sound = np.stack([tone(1.0, 440, 48_000)] * channels)
        parts.append(
            make_clip(tmp_path / f"{name}.ts", None, sound, rate=48_000, sound_codec="ac3")
        )
    whole = tmp_path / "whole.ts"
    with av.open(str(whole), "w") as made:
        with av.open(str(parts[0])) as first:
            track = made.add_stream_from_template(first.streams.audio[0])
        end = 0
        for part in parts:
            last = 0
            with av.open(str(part)) as source:
                for packet in source.demux(source.streams.audio[0]):
                    if packet.pts is None:
                        continue
                    last = packet.pts + packet.duration - source.streams.audio[0].start_time
                    packet.pts = packet.dts = packet.pts - source.streams.audio[0].start_time + end
                    packet.stream = track
                    made.mux(packet)
            end += last
    sound = read_mono(whole)
    assert len(sound.wave) / 16_000 == pytest.approx(2.0, abs=0.1) and sound.gaps < 0.01
    second = sound.wave[24_000:30_000]
    assert np.abs(second).max() == pytest.approx(np.abs(sound.wave[4000:10_000]).max(), rel=0.2)


def test_pictures_of_an_earlier_revision_are_made_anew_only_where_they_were_wrong(tmp_path):
    for name, depth in (("deep", np.uint16), ("flat", np.uint8)):
        grey = np.arange(48 * 48).reshape(48, 48).astype(depth)
        Image.fromarray(grey).save(tmp_path / f"{name}.png")
    job = Job(tmp_path / "features", ("video",), SETTINGS)
    for name, anew in (("deep", True), ("flat", False)):
        clip = Clip(name, "train", tmp_path / f"{name}.png", cropped=True)
        made = process_clip(clip, job)
        place = tmp_path / f"features/train/records/{name}.json"
        record = {key: value for key, value in made.items() if key != "digest"} | {"revision": 2}
        place.write_text(json.dumps(record | {"digest": digest(record)}))
        file = tmp_path / f"features/train/video/{name}.npy"
        os.utime(file, (1, 1))
        clip.media.rename(tmp_path / "away")
        assert process_clip(clip, job)["revision"] == 2  # nobody can look now, so all stays
        (tmp_path / "away").rename(clip.media)
        assert process_clip(clip, job) == made
        assert (file.stat().st_mtime > 1) == anew


def test_a_stage_leaves_its_process_the_threads_that_it_had(tmp_path, monkeypatch):
    """Predictor extracts in the process of those who use it."""
    import cv2
    from threadpoolctl import threadpool_info

    def threads() -> list:
        pools = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
        return [torch.get_num_threads(), cv2.getNumThreads(), pools]

    def make(*_):
        inside.append(threads())
        raise ClipError("E_NOFACE", "no face")

    inside: list = []
    monkeypatch.setitem(STAGES, "video", STAGES["video"]._replace(make=make))
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(5)
    cv2.setNumThreads(7)
    try:
        own = threads()
        job = Job(tmp_path, ("video",), SETTINGS, threads=3)
        assert process_clip(Clip("a", "train", tmp_path / "a.png"), job)["failure"]
        assert threads() == own and inside[0][:2] == [3, 3]
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


# --- picture ------------------------------------------------------------------------------------


class FakeDetector:
    """Answers for MTCNN: `plan` holds the boxes of each frame in turn, or one answer for all."""

    def __init__(self, plan):
        self.plan, self.seen, self.largest_batch = plan, 0, 0

    def __call__(self, network, images):
        answers = self.plan if isinstance(self.plan, list) else [self.plan] * 10_000
        answers = answers[self.seen : self.seen + len(images)]
        self.seen += len(images)
        self.largest_batch = max(self.largest_batch, len(images))
        boxes = [np.array(answer, float).reshape(-1, 4) if answer else None for answer in answers]
        scores = [None if box is None else np.full(len(box), 0.99) for box in boxes]
        return boxes, scores


@pytest.fixture
def fake(monkeypatch):
    """fake(plan) puts a FakeDetector in the place of MTCNN and returns it."""

    def install(plan) -> FakeDetector:
        detector = FakeDetector(plan)
        monkeypatch.setattr(
            "facenet_pytorch.MTCNN.detect", lambda network, images: detector(network, images)
        )
        return detector

    return install


def flags(found) -> str:
    return "".join("01"[int(flag)] for flag in found.valid)


@pytest.mark.parametrize("fps", [1, 12, 30, 240])
def test_the_number_of_crops_follows_from_time_not_from_the_frame_rate(tmp_path, fake, fps):
    fake((FACE,))
    clip = make_clip(tmp_path / "a.mp4", moving_picture(fps), fps=fps)
    found = extract_faces(clip, 0.0, 1.0, SMALL)
    assert found.crops.shape == (10, 48, 48, 3) and found.crops.dtype == np.uint8
    assert flags(found) == "1" * 10


@pytest.mark.parametrize("count", [1, 31, 32, 33, 65])
def test_every_sampled_time_is_there_at_the_edges_of_a_batch(tmp_path, fake, count):
    detector = fake([(FACE,)] * (count - 1) + [None if count > 1 else (FACE,)])
    frames = np.stack([flat((3 * step,) * 3) for step in range(count)])
    clip = make_clip(tmp_path / "a.mp4", frames, fps=10)
    found = extract_faces(clip, 0.0, count / 10, SMALL)
    assert len(found.crops) == len(found.valid) == count == detector.seen
    assert flags(found) == ("1" * (count - 1) + "0" if count > 1 else "1")
    levels = found.crops[found.valid].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, 3 * np.arange(len(levels)), atol=2)
    assert detector.largest_batch <= 32


def test_frames_are_chosen_by_their_timestamps(tmp_path):
    times = [0.0, 0.02, 0.06, 0.46, 0.5, 0.9, 0.91, 1.3]
    frames = np.stack([flat((30 * step,) * 3) for step in range(len(times))])
    clip = make_clip(tmp_path / "a.mp4", frames, times=times, codec="mpeg4")
    wanted = sample_times(0.0, 1.3, 20)
    shown = {}
    for indices, frame in frames_at(clip, wanted):
        shown |= dict.fromkeys(indices, round(frame.mean() / 30))
    expected = np.searchsorted(times, wanted, side="right") - 1
    assert [shown[index] for index in range(len(wanted))] == expected.tolist()


@pytest.mark.parametrize(
    ("start", "count", "seen"),
    [(0.0, 12, "111111111111"), (0.5, 7, "000001111111"), (0.0, 6, "111111000000")],
    ids=["whole", "late picture", "short picture"],
)
def test_times_without_a_picture_are_black_and_flagged(tmp_path, fake, start, count, seen):
    fake((FACE,))
    frames = np.stack([flat((200, 90, 40))] * count)
    found = extract_faces(make_clip(tmp_path / "a.mp4", frames, fps=10, start=start), 0, 1.2, SMALL)
    assert flags(found) == seen
    assert [crop.max() > 0 for crop in found.crops] == [flag == "1" for flag in seen]
    assert np.isnan(found.boxes[~found.valid]).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_clip_has_its_threads_and_leaves_none(tmp_path, threads):
    """The library's own choice is a thread per core and frame, and they stay: other workers wait,
    and after some hundred clips no thread could be started."""
    path = make_clip(tmp_path / "clip.mp4", moving_picture(40), fps=20)
    scan_pictures(path)
    gc.disable()  # which would end them some time
    try:
        before, seen = count_threads(), []
        for _ in frames_at(path, np.arange(0, 2, 0.05), threads):
            seen.append(count_threads() - before)
        left = count_threads() - before
    finally:
        gc.enable()
    assert len(seen) == 40 and max(seen) <= (0 if threads == 1 else 2 * threads), seen
    assert left <= 0, left


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotated_pictures_stand_upright(tmp_path, turn):
    """The file holds the picture turned; its matrix asks the player to turn it back clockwise."""
    ramp = np.add.outer(2 * np.arange(48), np.arange(64))[..., None].repeat(3, axis=2)
    stored = np.rot90(ramp.astype(np.uint8), turn // 90)[None]
    twin = make_clip(tmp_path / "twin.mp4", ramp.astype(np.uint8)[None], quality=1)
    turned = make_clip(tmp_path / "turned.mp4", stored, rotation=turn, quality=1)
    if turn == 90:  # x' = -y, y' = x: what the standard calls a clockwise quarter
        assert struct.pack(">6i", 0, 1 << 16, 0, -1 << 16, 0, 0) in turned.read_bytes()
    at = np.array([0.01])
    [(_, upright)], [(_, expected)] = frames_at(turned, at), frames_at(twin, at)
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected.astype(int)).max() <= 3


def test_crops_are_rgb(tmp_path, fake):
    fake((FACE,))
    clip = make_clip(tmp_path / "a.mp4", np.stack([flat((250, 120, 10))] * 3), fps=10)
    crops = extract_faces(clip, 0.0, 0.3, SMALL).crops
    np.testing.assert_allclose(crops.mean(axis=(0, 1, 2)), (250, 120, 10), atol=6)


def test_one_person_is_followed(tmp_path, fake):
    """Red on the left stays; blue is larger, and there only at first, or after red has left."""
    frame = flat((220, 20, 20), 90, 200)
    frame[:, 100:] = (20, 20, 220)
    red, blue, large_blue = (20, 20, 60, 60), (130, 25, 160, 55), (140, 10, 190, 60)
    plan = [(large_blue, red)] * 2 + [(blue, red)] + [None] + [(red,)] * 4 + [None] * 2
    plan += [(blue,)] * 5
    fake(plan)
    clip = make_clip(tmp_path / "a.mp4", np.stack([frame] * len(plan)), fps=10)
    found = extract_faces(clip, 0.0, len(plan) / 10, SMALL | {"lost_after": 5})
    assert flags(found) == "111011110000011"
    colours = found.crops.mean(axis=(1, 2)).round(-2)
    assert [bool(colour[0]) for colour in colours] == [flag == "1" for flag in "111011110000000"]
    assert [bool(colour[2]) for colour in colours] == [flag == "1" for flag in "000000000000011"]


def test_a_person_is_followed_from_block_to_block():
    boxes = np.array([[0, 0, 50, 50], [60, 0, 90, 30]], np.float32)
    track = Track(0.2, 5)
    assert track.follow([boxes[:0]]) == [None]
    np.testing.assert_array_equal(track.follow([boxes[1:], boxes]), boxes[[1, 1]])
    np.testing.assert_array_equal(track.follow([boxes]), boxes[1:])
    assert track.follow([boxes[:1]] * 4) == [None] * 4
    [lost, found] = track.follow([boxes[:1]] * 2)
    assert lost is None and found.tolist() == boxes[0].tolist()


def test_boxes_come_back_in_pixels_largest_first(fake):
    fake(((10, 20, 50, 60), (60, 20, 160, 120)))
    [boxes] = detector.find_faces(
        [flat((0, 0, 0), 360, 640)], faces.FACE_SETTINGS
    )  # seen at half size
    np.testing.assert_allclose(boxes, [[120, 40, 320, 240], [20, 40, 100, 120]])


@pytest.mark.parametrize(
    "box",
    [(np.nan, 0, 40, 40), (40, 40, 10, 10), (30, 30, 30, 30), (0, 0, np.inf, 40), (9, 9, 9, 40)],
    ids=["nan", "inverted", "a point", "infinite", "a line"],
)
def test_boxes_that_are_no_boxes_are_no_faces(tmp_path, fake, box):
    fake([(box, FACE), (box,), (FACE,)])
    clip = make_clip(tmp_path / "a.mp4", moving_picture(3), fps=10)
    assert flags(extract_faces(clip, 0.0, 0.3, SMALL)) == "101"
    fake((box,))
    assert code_of(extract_faces, clip, 0.0, 0.3, SMALL) == "E_NOFACE"


@pytest.mark.parametrize(
    "box",
    [(40, 20, 80, 60), (-20, -10, 20, 30), (100, 70, 140, 110), (-60, 30, -10, 60)],
    ids=["inside", "top left", "bottom right", "outside"],
)
def test_crops_are_square_and_repeat_the_edge(box):
    frame = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    side = round(1.2 * max(box[2] - box[0], box[3] - box[1]))
    x, y = (round((box[axis] + box[axis + 2]) / 2 - side / 2) + 200 for axis in (0, 1))
    padded = np.pad(frame, ((200, 200), (200, 200), (0, 0)), mode="edge")
    crop = square(frame, np.array(box, np.float32), side, 0.1)
    np.testing.assert_array_equal(crop, padded[y : y + side, x : x + side])
    assert square(frame, np.array(box, np.float32), 32, 0.1).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("height", "width"), [(16, 16), (18, 640), (90, 120)], ids=["tiny", "strip", "flat"]
)
def test_pictures_without_a_face_have_a_code(tmp_path, height, width):
    frames = np.stack([flat((90, 120, 140), height, width)] * 3)
    clip = make_clip(tmp_path / "a.mp4", frames, fps=10)
    assert code_of(extract_faces, clip, 0.0, 0.3, SMALL) == "E_NOFACE"


def test_a_clip_without_a_picture_has_a_code(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", None, tone(0.3))
    assert code_of(extract_faces, clip, 0.0, 0.3, SMALL) == "E_NOVIDEO"


def test_mtcnn_finds_the_face_of_a_photograph(tmp_path, face_image):
    clip = make_clip(tmp_path / "a.mp4", np.stack([face_image] * 5), fps=10)
    found = extract_faces(clip, 0.0, 0.5, SMALL | {"face_size": 96})
    assert flags(found) == "11111"
    expected = np.array([70, 60, 158, 174], np.float32)  # judged by eye
    assert overlap(expected, found.boxes).min() > 0.7
    [again] = detect([found.crops[0]], SMALL)
    assert len(again) == 1 and (again[0][2:] - again[0][:2]).max() > 48  # it fills the crop


@pytest.fixture(scope="module")
def portrait(face_image) -> list[np.ndarray]:
    """25 frames: the photograph walks 24 pixels to the right over a grey wall."""
    frames = [flat((90, 90, 90), 240, 320) for _ in range(25)]
    for step, frame in enumerate(frames):
        frame[30:210, 20 + step : 260 + step] = face_image
    return frames


def test_between_looks_the_faces_are_where_mtcnn_finds_them(portrait):
    each = detector.find_faces(portrait, faces.FACE_SETTINGS | {"detect_every": 1})
    some = detector.find_faces(portrait, faces.FACE_SETTINGS)
    assert [len(boxes) for boxes in some] == [len(boxes) for boxes in each] == [1] * 25
    assert min(overlap(a[0], b).item() for a, b in zip(each, some, strict=True)) > 0.85


@pytest.mark.parametrize("hidden", [[3], [9, 10, 11, 12]], ids=["one frame", "four frames"])
def test_between_looks_no_face_is_invented(portrait, hidden):
    frames = [flat((90, 90, 90), 240, 320) if at in hidden else f for at, f in enumerate(portrait)]
    found = detector.find_faces(frames, faces.FACE_SETTINGS)
    assert [at for at, boxes in enumerate(found) if not len(boxes)] == hidden


@pytest.mark.parametrize("degrees", [-20, 0, 20])
def test_aligned_crops_have_the_eyes_level_and_in_place(portrait, degrees):
    import cv2

    turn = cv2.getRotationMatrix2D((160, 120), degrees, 1.0)
    frame = cv2.warpAffine(portrait[0], turn, (320, 240))
    settings = faces.FACE_SETTINGS | {"face_align": True, "face_size": 112, "margin": 0.0}
    [[box, *_]] = detector.find_faces([frame], settings)
    points = detector.landmarks(frame, box, settings, "cpu")
    slope = np.degrees(np.arctan2(*(points[1] - points[0])[::-1]))
    crop = faces.cut(frame, box, settings)
    assert crop.shape == (112, 112, 3) and crop.dtype == np.uint8
    wide = cv2.copyMakeBorder(crop, 60, 60, 60, 60, cv2.BORDER_REPLICATE)
    again = detector.landmarks(wide, np.float32([60, 60, 172, 172]), settings, "cpu") - 60
    assert np.abs(again / 112 - detector.PLACES).max() < 0.08
    assert abs(np.degrees(np.arctan2(*(again[1] - again[0])[::-1]))) < 6
    assert degrees == 0 or abs(slope) > 12


@pytest.mark.parametrize("height", [1, 4])
def test_blocks_are_limited_in_frames_and_bytes(height):
    frames = [([at], np.zeros((height << 20, 1, 8), np.uint8)) for at in range(70)]
    blocks = list(faces._blocks(iter(frames)))
    assert [at for block in blocks for [at], _ in block] == list(range(70))
    assert max(len(block) for block in blocks) * height <= 32


@pytest.mark.parametrize(
    "options", [{"movflags": "frag_keyframe+empty_moov"}, {"use_editlist": "0"}], ids=str
)
def test_entry_points_a_few_frames_apart_lead_to_every_time(tmp_path, options):
    """There the index leads to a later one, where nothing makes up for the order of decoding."""
    frames = np.random.default_rng(0).integers(0, 255, (20, 72, 96, 3)).astype(np.uint8)
    for number in range(20):
        frames[number, :16] = 10 * number
    often = "keyint=2:min-keyint=1:scenecut=400:bframes=3:b-adapt=0"
    kinds = {"options": options, "codec_options": {"x264-params": often}, "quality": 10}
    clip = make_clip(tmp_path / "a.mp4", frames, fps=10, **kinds)
    start = scan_pictures(clip).start
    for number in range(19):
        [(_, frame)] = frames_at(clip, np.array([start + number / 10 + 0.05]))
        assert round(frame[:12].mean() / 10) == number


@pytest.mark.parametrize("start", [0.0, 0.9, 1.0, 1.4, 2.7])
def test_a_part_is_the_same_as_in_the_whole(tmp_path, start):
    """Four entry points: what comes before the last one that is needed is not decoded."""
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    clip = tmp_path / "a.mp4"
    make_clip(clip, frames, fps=10, codec_options={"g": "8", "bf": "2"})
    times = sample_times(0.0, 3.0, 30)
    whole = {at: frame for indices, frame in frames_at(clip, times) for at in indices}
    after = np.flatnonzero(times >= start)
    part = {at: frame for indices, frame in frames_at(clip, times[after]) for at in indices}
    assert len(part) == len(after) and len(whole) == 90
    for at, index in enumerate(after):
        np.testing.assert_array_equal(part[at], whole[index])


# --- files that are no clips --------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A good clip, its index at the front."""
    path = tmp_path_factory.mktemp("clips") / "whole.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (20, 90, 120, 3), np.uint8)
    faststart = {"movflags": "faststart"}
    return make_clip(path, frames, tone(1.3), options=faststart).read_bytes()


def _index_last(path: Path, whole: bytes) -> None:
    make_clip(path, moving_picture(), tone(1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def _index_damaged(path: Path, whole: bytes) -> None:
    path.write_bytes(whole.replace(b"moov", b"voom"))


def _ffconcat(path: Path, whole: bytes) -> None:
    (path.parent / "other.mp4").write_bytes(whole)
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


def _matroska(path: Path, whole: bytes) -> None:
    make_clip(path.with_suffix(".mkv"), moving_picture(), tone(1)).rename(path)


def _write(data: bytes):
    return lambda path, whole: path.write_bytes(data)


BAD_FILES = {
    "absent": (lambda path, whole: None, "E_MISSING", "no file"),
    "no bytes": (_write(b""), "E_OPEN", "0 bytes"),
    "html": (_write(b"<html>404 not found</html>"), "E_OPEN", "<html>"),
    "index lost": (_index_last, "E_TRUNC", " of "),
    "index damaged": (_index_damaged, "E_OPEN", "moov"),
    "half": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "E_TRUNC", " of "),
    "ffconcat": (_ffconcat, "E_OPEN", "ffconcat"),
    "playlist": (_write(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hosts\n"), "E_OPEN", "EXTM3U"),
    "matroska": (_matroska, "E_OPEN", "is a Matroska or WebM file"),
    "pipe": (lambda path, whole: os.mkfifo(path), "E_OPEN", "regular"),
    "folder": (lambda path, whole: path.mkdir(), "E_OPEN", "regular"),
    "dangling": (lambda path, whole: path.symlink_to("nowhere.mp4"), "E_MISSING", "no file"),
    "link loop": (lambda path, whole: path.symlink_to(path.name), "E_MISSING", "no file"),
}


@pytest.fixture
def deadline():
    """Five seconds for what must be refused at once."""

    def stop(*_):
        raise TimeoutError("still reading after 5 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("reader", [extract_speech, lambda path: extract_faces(path, 0, 1, SMALL)])
@pytest.mark.parametrize("fault", BAD_FILES)
def test_files_that_are_no_clips_have_a_code(tmp_path, whole, deadline, fault, reader):
    make, code, why = BAD_FILES[fault]
    path = tmp_path / "clip.mp4"
    make(path, whole)
    with pytest.raises(ClipError) as caught:
        reader(path)
    assert caught.value.code == code and why in caught.value.reason
    assert "clip.mp4" in caught.value.reason


def test_a_clip_that_lost_its_last_bytes_says_so(tmp_path, whole):
    (tmp_path / "a.mp4").write_bytes(whole[:-9])
    with pytest.raises(ClipError, match=f"{len(whole) - 9} of {len(whole)} bytes") as caught:
        extract_speech(tmp_path / "a.mp4")
    assert caught.value.code == "E_TRUNC"


def _npz_and_clip(folder: Path) -> tuple[Path, Path]:
    for name in ("a.npz", "a.mp4"):
        (folder / name).write_bytes(bytes(64))
    return folder / "a.npz", folder / "a.mp4"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EIO, "E_READ"),
        (errno.ESTALE, "E_READ"),
        (errno.EACCES, "E_PERM"),
        (errno.ENOENT, "E_MISSING"),
    ],
)
def test_what_the_system_cannot_read_is_no_damaged_file(tmp_path, monkeypatch, number, code):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    words, clip = _npz_and_clip(tmp_path)
    assert code_of(extract_speech, clip) == "E_OPEN" and code_of(read_words, words, 8) == "E_NPZ"
    monkeypatch.setattr("extract.media.open", fails, raising=False)
    monkeypatch.setattr("zipfile.io.open", fails)
    assert code_of(extract_speech, clip) == code_of(read_words, words, 8) == code


def test_a_decoder_that_gets_no_thread_says_nothing_about_the_file(tmp_path, whole):
    clip = tmp_path / "a.mp4"
    clip.write_bytes(whole)

    def decode(path):
        with open_media(path):
            raise av.error.BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    assert code_of(decode, clip) == "E_READ"


def test_an_unknown_ending_is_refused(tmp_path, whole):
    (tmp_path / "clip.xyz").write_bytes(b"no film")
    with pytest.raises(ClipError, match="known endings are") as caught:
        extract_speech(tmp_path / "clip.xyz")
    assert caught.value.code == "E_OPEN"


@pytest.mark.parametrize("name", ["한국어.mp4", "a 😀 'b'.mp4", "%d.mp4", "-i.MP4", "http:x.mp4"])
def test_names_of_all_kinds_are_read(tmp_path, whole, name):
    (tmp_path / name).write_bytes(whole)
    assert extract_speech(tmp_path / name).log_mel.shape[1] > 60
    assert list(frames_at(tmp_path / name, np.array([0.5])))


def test_bytes_after_the_end_change_nothing(tmp_path, whole):
    (tmp_path / "a.mp4").write_bytes(whole)
    (tmp_path / "b.mp4").write_bytes(whole + os.urandom(4096))
    a, b = (extract_speech(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    np.testing.assert_array_equal(a.log_mel, b.log_mel)


MUTANTS = 2000 if os.environ.get("RELEASE") else 500  # clips; and as many word vectors


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read", [read_mutant_clip, read_mutant_words], ids=["clips", "words"])
def test_mutants_are_read_or_classified(tmp_path, monkeypatch, read):
    """No crash, no hang, no other exception, and memory stays below the limit."""
    monkeypatch.setattr(guard, "_here", threading.local())  # what earlier tests read would count
    noise = np.random.default_rng(0).integers(0, 255, (8, 32, 48, 3), np.uint8)
    small = make_clip(tmp_path / "a.mp4", noise, tone(0.5), options={"movflags": "faststart"})
    small.rename(tmp_path / "whole")
    (tmp_path / "words").write_bytes(npz())
    codes = []
    for first in range(0, MUTANTS, 50):
        limits = Limits(seconds=60, memory_mb=1000)
        codes += guarded(read_all, tmp_path, read, range(first, first + 50), limits=limits)
    guard._stop()
    assert len(codes) == MUTANTS
    expected = {"E_OPEN", "E_CODEC"} if read is read_mutant_clip else {"E_NPZ"}
    assert expected <= set(codes) <= {*CLIP_CODES, "read"} - {"E_CRASH"}


CUT = {  # (ending, sound codec, picture)
    "wav": ("pcm_s16le", None),
    "flac": ("flac", None),
    "mp3": ("libmp3lame", None),
    "mkv": ("aac", "libx264"),
    "webm": ("libopus", "libvpx"),
    "avi": ("libmp3lame", "mpeg4"),
    "flv": ("aac", "libx264"),
}


@pytest.mark.parametrize("ending", CUT)
def test_clips_that_are_cut_short_are_named_in_every_kind_of_file(tmp_path, ending):
    sound, picture = CUT[ending]
    whole = make_clip(
        tmp_path / f"whole.{ending}",
        moving_picture(45) if picture else None,
        tone(3.0, rate=48_000),
        rate=48_000,
        sound_codec=sound,
        codec=picture or "",
    )
    assert abs(extract_speech(whole).log_mel.shape[1] - 188) <= 4
    part = tmp_path / f"part.{ending}"
    data = whole.read_bytes()
    body = len(data) if ending != "avi" else data.find(b"idx1")  # its index lies behind
    part.write_bytes(data[: body * 6 // 10])
    assert code_of(extract_speech, part) in ("E_TRUNC", "E_CODEC")
    if picture:
        assert scan_pictures(whole).end > 2.8 and code_of(scan_pictures, part) == "E_TRUNC"


def test_a_stream_of_unknown_length_is_read(tmp_path):
    """As ffmpeg writes a .wav into a pipe."""
    path = make_clip(tmp_path / "a.wav", sound=tone(1.0), sound_codec="pcm_s16le")
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff" * 4
    path.write_bytes(data)
    assert extract_speech(path).log_mel.shape[1] > 50


def test_samples_that_no_sound_has_are_refused(tmp_path):
    loud = make_clip(tmp_path / "a.mov", sound=1e20 * tone(1.0), sound_codec="pcm_f32le")
    assert code_of(extract_speech, loud) == "E_NONFINITE"


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_bombs_that_zipfile_would_unpack_whole_are_refused(tmp_path, packing):
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive,
        archive.open("word_embed.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f4", "fortran_order": False, "shape": (1, 20 << 18)}
        )
        for _ in range(20):
            member.write(bytes(1 << 20))
    tracemalloc.start()
    assert code_of(read_words, tmp_path / "a.npz", None) == "E_NPZ"
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    clip = make_clip(tmp_path / "a.mp4", moving_picture(3), fps=10)
    monkeypatch.setattr("extract.media.MAX_PIXELS", 120 * 90 - 1)
    assert code_of(extract_faces, clip, 0.0, 0.3, SMALL) == "E_LIMIT"


# --- words --------------------------------------------------------------------------------------

WORDS = np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("canary",)


def npz(array=WORDS, key="word_embed", **others) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{key: array}, **others)
    return file.getvalue()


def npy(array=WORDS, **header) -> bytes:
    """The bytes of an .npy whose header claims what `header` says."""
    file = io.BytesIO()
    claims = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, claims | header)
    return file.getvalue() + array.tobytes()


def raw(header: str, body: bytes = b"") -> bytes:
    """An archive whose array has this text for a header."""
    return archive(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body)


def archive(*members: bytes, names=("word_embed.npy",) * 9, how=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how, compresslevel=1) as made:
        for name, member in zip(names, members, strict=False):
            made.writestr(name, member)
    return file.getvalue()


def patched(data: bytes, local: int, central: int, value: int) -> bytes:
    """`data` with a 16 bit field of the first file header and of the first directory entry set."""
    changed = bytearray(data)
    struct.pack_into("<H", changed, local, value)
    struct.pack_into("<H", changed, data.index(b"PK\x01\x02") + central, value)
    return bytes(changed)


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


def _set(value: float) -> np.ndarray:
    array = WORDS.copy()
    array[3, 3] = value
    return array


BAD_WORDS = {
    "cut short": (lambda: npz()[:200], "E_NPZ"),
    "one bit flipped": (lambda: flipped(npz()), "E_NPZ"),
    "one bit flipped, deflated": (
        lambda: flipped(archive(npy(), how=zipfile.ZIP_DEFLATED)),
        "E_NPZ",
    ),
    "wrong key": (lambda: npz(key="embeddings"), "E_NPZ"),
    "empty archive": (lambda: archive(), "E_NPZ"),
    "no bytes": (lambda: b"", "E_NPZ"),
    "text": (lambda: b"<html>404</html>", "E_NPZ"),
    "no words": (lambda: npz(WORDS[:0]), "E_SHORT"),
    "one dimension": (lambda: npz(WORDS[0]), "E_SHAPE"),
    "three dimensions": (lambda: npz(WORDS[None]), "E_SHAPE"),
    "wrong width": (lambda: npz(WORDS[:, :5]), "E_SHAPE"),
    "NaN": (lambda: npz(_set(np.nan)), "E_NONFINITE"),
    "infinite": (lambda: npz(_set(-np.inf)), "E_NONFINITE"),
    "too large for float32": (lambda: npz(_set(1).astype("f8") * 1e300), "E_NONFINITE"),
    "objects": (lambda: npz(np.array([WORDS[0], "x"], dtype=object)), "E_DTYPE"),
    "a pickle that runs": (lambda: npz(np.array([[Payload()]], dtype=object)), "E_DTYPE"),
    "text values": (lambda: npz(WORDS.astype("U8")), "E_DTYPE"),
    "complex": (lambda: npz(WORDS.astype("c8")), "E_DTYPE"),
    "bool": (lambda: npz(WORDS > 0), "E_DTYPE"),
    "too many words": (lambda: npz(np.zeros((10_001, 8), "f4")), "E_LIMIT"),
    "header claims 800 TB": (lambda: archive(npy(shape=(2**40, 200))), "E_LIMIT"),
    "header claims less": (lambda: archive(npy(shape=(2, 8))), "E_NPZ"),
    "shape overflows": (lambda: archive(npy(shape=(2**62, 8))), "E_LIMIT"),
    "header not closed": (lambda: raw("{'descr': '<f4', 'shape': (2, 3"), "E_NPZ"),
    "header too deep": (lambda: raw("-" * 9000 + "1"), "E_NPZ"),
    "header with mixed keys": (lambda: raw("{1: 2, 'shape': []}"), "E_NPZ"),
    "negative shape": (lambda: archive(npy(WORDS[:0], shape=(0, -8))), None),
    "values of no bytes": (lambda: archive(npy(WORDS[:0], descr="|S0", shape=(2, 8))), None),
    "truth for a shape": (lambda: archive(npy(WORDS[:0], shape=(True, 0))), None),
    "no array": (lambda: archive(b"hello"), "E_NPZ"),
    "a member elsewhere": (
        lambda: archive(npy(), b"x", names=("word_embed.npy", "../../evil.npy")),
        "E_NPZ",
    ),
    "the member twice": (lambda: archive(npy(), npy()), "E_NPZ"),
    "encrypted": (lambda: patched(npz(), 6, 8, 1), "E_NPZ"),
    "unknown compression": (lambda: patched(npz(), 8, 10, 77), "E_NPZ"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:overflow")
@pytest.mark.parametrize("fault", BAD_WORDS)
def test_word_vectors_that_are_none_have_a_code(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "deep" / "er" / "a.npz"
    path.parent.mkdir(parents=True)
    make, code = BAD_WORDS[fault]
    path.write_bytes(make())
    with pytest.raises(ClipError, match=r"a\.npz") as caught:
        read_words(path, 8)
    assert caught.value.code == code or code is None
    assert {place.name for place in tmp_path.rglob("*")} == {"deep", "er", "a.npz"}


@pytest.mark.parametrize("shape", [(1, 0), (0, 8)])
def test_words_have_values(tmp_path, shape):
    (tmp_path / "a.npz").write_bytes(npz(np.zeros(shape, "f4")))
    assert code_of(read_words, tmp_path / "a.npz", None) in ("E_SHAPE", "E_SHORT")


def test_small_letters_of_turkish_and_soft_hyphens_are_found():
    known = {word: np.ones(2, np.float32) for word in ("iyi", "istanbul", "bahnhof")}
    for said, count in (("İyi", 1), ("İstanbul'da", 1), ("Bahn\u00adhof İYİ", 2)):
        assert len(embed(said, known)) == count


def test_absent_words_have_a_code(tmp_path):
    assert code_of(read_words, tmp_path / "a.npz", 8) == "E_MISSING"
    assert code_of(read_words, None, 8) == "E_MISSING"


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2", "<i4", ">i8", "<u2", "fortran"])
def test_numbers_of_all_kinds_are_words(tmp_path, kind):
    values = (10 * np.abs(WORDS)).round()
    array = np.asfortranarray(values) if kind == "fortran" else values.astype(kind)
    np.savez_compressed(tmp_path / "a.npz", word_embed=array, more=np.arange(3))
    words = read_words(tmp_path / "a.npz", 8)
    np.testing.assert_array_equal(words, values)
    assert words.dtype == np.dtype("=f4") and words.flags.c_contiguous


@pytest.mark.parametrize("size", [1 << 30, 100], ids=["honest", "its directory claims 100 bytes"])
def test_a_zip_bomb_is_refused_fast_and_small(tmp_path, size):
    bomb = bytearray(archive(npy() + bytes(100 << 20), how=zipfile.ZIP_DEFLATED))
    if size == 100:
        struct.pack_into("<I", bomb, bomb.rindex(b"PK\x01\x02") + 24, size)
    (tmp_path / "a.npz").write_bytes(bomb)
    began = time.perf_counter()
    tracemalloc.start()
    code = code_of(read_words, tmp_path / "a.npz", 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == ("E_LIMIT" if size > 100 else "E_NPZ")
    assert time.perf_counter() - began < 1 and peak < 60 << 20


def test_damaged_arrays_are_read_or_classified(tmp_path):
    """Bytes of the array's header changed, the archive's checksum right."""
    path, good = tmp_path / "a.npz", npy()
    header = len(good) - WORDS.nbytes
    for seed in range(300):
        rng, mutant = np.random.default_rng(seed), bytearray(good)
        for place in rng.integers(6, header, 1 + seed % 4):
            mutant[place] = rng.choice(list(b"0123456789(){}[]'\",:<|-e \x00\xff"))
        path.write_bytes(archive(bytes(mutant)))
        with contextlib.suppress(ClipError):
            assert read_words(path, 8).dtype == np.float32


def test_embeddings_come_from_the_cached_weights_and_are_zero_without_a_face(tmp_path, monkeypatch):
    import torch
    from facenet_pytorch import InceptionResnetV1

    from extract import faces

    torch.manual_seed(0)
    network = InceptionResnetV1(classify=True, num_classes=8631).eval()  # people of vggface2
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    torch.save(network.state_dict(), cache / "20180402-114759-vggface2.pt")
    network.classify = False
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    faces.embedder.cache_clear()
    crops = np.random.default_rng(0).integers(0, 255, (3, 160, 160, 3)).astype(np.uint8)
    known = sha256(cache / "20180402-114759-vggface2.pt")
    vectors = faces.embed(crops, np.array([True, False, True]), "cpu", known)
    assert vectors.shape == (3, 512) and vectors.dtype == np.float32
    assert (vectors[1] == 0).all()
    with pytest.raises(IntegrityError, match=r"are not those published .sha256 281cebca8662"):
        faces.embed(crops, np.array([True, False, True]))
    with pytest.raises(IntegrityError, match=r"not those that the features know .sha256 000000"):
        faces.embed(crops, np.array([True, False, True]), "cpu", "0" * 64)
    faces.embedder.cache_clear()
    picture = torch.from_numpy(crops[2]).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        expected = network((picture - 127.5) / 128)[0].numpy()
    np.testing.assert_allclose(vectors[2], expected, atol=1e-5)


def test_downloaded_weights_are_compared_before_they_are_kept(tmp_path, monkeypatch):
    """The address of a file stands for the internet."""
    from extract import faces

    served = tmp_path / "20180402-114759-vggface2.pt"
    served.write_bytes(b"other weights")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(faces, "WEIGHTS", served.as_uri())
    faces.embedder.cache_clear()
    with pytest.raises(UsageError, match="invalid hash value") as error:
        faces.embedder("cpu")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "torch").rglob("*.*"))


def test_headers_that_promise_what_nobody_wrote_reject_nothing(tmp_path):
    """Sizes of 2 GiB stand for none; a longer recording's seconds may stand in an .flv; letters of
    a title are no frame of an encoder."""
    wav = make_clip(tmp_path / "a.wav", sound=tone(1.0), sound_codec="pcm_s16le")
    data = bytearray(wav.read_bytes())
    data[4:8] = (0x7FFFF024).to_bytes(4, "little")
    wav.write_bytes(data)
    flv = make_clip(tmp_path / "a.flv", moving_picture(), tone(1.0, rate=44_100), rate=44_100)
    data = flv.read_bytes()
    place = data.index(b"duration") + 9
    flv.write_bytes(data[:place] + struct.pack(">d", 600) + data[place + 8 :])
    mp3 = make_clip(tmp_path / "a.mp3", sound=tone(1.0), sound_codec="libmp3lame")
    tag = b"ID3\4\0\0" + bytes([0, 0, 2, 0]) + b"Info" * 64
    mp3.write_bytes(tag + mp3.read_bytes())
    for path in (wav, flv, mp3):
        assert extract_speech(path).log_mel.shape[1] > 55
    start = flv.read_bytes()
    flv.write_bytes(start[: len(start) * 6 // 10 - 7])  # within a tag
    assert code_of(extract_speech, flv) in ("E_TRUNC", "E_CODEC")
