"""The original's faults that change results, one test each: none of them may come back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import extract_faces, make_clip, moving_picture, tone

import make_submission
from corpora.manifest import Clip
from evaluation.ensemble import image_views
from extract import audio, clip, faces
from models import build_model
from training.augment import draw_warp, time_warp
from training.inference import encode_views
from training.metrics import Metrics
from training.tasks import ALL_SETTINGS, TASKS, model_arch, recipe
from training.views import choose_frames, face_view, speech_view
from utils.errors import ClipError, IntegrityError

CONFIG = {name: setting.default for name, setting in ALL_SETTINGS.items()}
CONFIG |= {"speech_frames": 48, "face_frames": 2}
SHAPES = {"speech": (128, None), "face": (None, None, None, 3), "text": (1, 16)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_text_attention_across_the_batch():
    torch.manual_seed(0)
    config = recipe("text") | {"text_layers": 2}
    model = build_model(**model_arch(TASKS["text"], config, 7, SHAPES)).eval()
    words, mask = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    both, alone = model({"text": (words, mask)}), model({"text": (words[:1], mask[:1])})
    torch.testing.assert_close(both.logits["text"][:1], alone.logits["text"], atol=1e-5, rtol=0)


def test_evaluation_frames_of_the_first_half_only():
    chosen = choose_frames(31, 16, rng(), False)
    assert chosen.max() >= 29 and sum(chosen > 15) in (7, 8)


def test_every_detected_face_appended(monkeypatch):
    picture = np.zeros((90, 120, 3), np.uint8)
    three = np.array([[0, 0, 60, 60], [60, 0, 100, 40], [0, 60, 30, 90]], np.float32)
    shown = [([index], picture) for index in range(12)]
    monkeypatch.setattr(faces, "frames_at", lambda *_: iter(shown))
    monkeypatch.setattr(faces, "find_faces", lambda frames, *_: [three for _ in frames])
    found = extract_faces(Path("two.mp4"), 0.0, 1.2)
    assert len(found.crops) == len(found.valid) == 12
    np.testing.assert_array_equal(found.boxes, three[:1].repeat(12, axis=0))


@pytest.fixture
def job(monkeypatch, tmp_path):
    """Two stages that need no clip; `broken` makes the second one fail."""
    broken = []

    def make_video(clip, job, facts, file):
        if broken:
            raise ClipError("E_NOFACE", "no face in a.mp4 (0 of 2 frames)")
        np.save(file, np.ones((2, 4, 4, 3), np.uint8))
        return {}

    def make_speech(clip, job, facts, file):
        np.save(file, np.ones((128, 9), np.float32))
        return {}

    stages = {
        "speech": clip.Stage(make_speech, lambda clip: None, ".npy"),
        "video": clip.Stage(make_video, lambda clip: None, ".npy"),
    }
    monkeypatch.setattr(clip, "STAGES", stages)
    settings = {"speech": {}, "video": {}}
    return clip.Job(tmp_path, ("speech", "video"), settings), broken


CLIP = Clip("a", "train", Path("a.mp4"))


def test_half_written_clips_skipped_for_ever(job, tmp_path):
    job, _ = job
    clip.process_clip(CLIP, job)
    speech, video = (tmp_path / "train" / name / "a.npy" for name in ("speech", "video"))
    before = speech.stat().st_mtime_ns
    video.unlink()
    clip.process_clip(CLIP, job)
    assert video.is_file() and speech.stat().st_mtime_ns == before


def test_failures_printed_and_swallowed(job):
    job, broken = job
    broken.append(True)
    failure = clip.process_clip(CLIP, job)["failure"]
    assert (failure["stage"], failure["code"]) == ("video", "E_NOFACE")
    assert "0 of 2 frames" in failure["reason"]
    crops = np.eye(3, dtype=np.uint8).repeat(64).reshape(3, 8, 8, 3)
    (seen,) = face_view(crops, {"face_valid": "101"}, CONFIG, rng(), False)
    np.testing.assert_array_equal(seen, crops[[0, 2]].transpose(0, 3, 1, 2))  # 0.0 s and 0.2 s


def test_clips_without_features_answered_neu():
    sheet = SimpleNamespace(path=Path("test1.csv"), ids=["1", "2"])
    args = SimpleNamespace(missing="error", features_dir=Path("features"))
    features = SimpleNamespace(manifest=pd.DataFrame({"clip_id": ["1"], "split": ["test"]}))
    with pytest.raises(IntegrityError, match="1 of 2 clips have no features: 2"):
        make_submission.check_missing(args, [sheet], [{"1": {}}], features)


def test_only_the_left_channel_read(tmp_path):
    right = np.stack([np.zeros(16_000, np.float32), tone(1)])
    wave = audio.read_mono(make_clip(tmp_path / "a.mp4", moving_picture(), right)).wave
    assert 0.1 < np.abs(wave).max() < 0.2, "the mean of silence and 0.3"


def test_spectrogram_of_a_spectrogram():
    low, high = (audio.log_mel_spectrogram(tone(1, hertz)) for hertz in (440, 3000))
    assert low.shape == (128, 1 + 16_000 // 256) and low.dtype == np.float32
    assert low.min() >= 0 and low.max() == high.max() == 1
    import librosa

    for log_mel, hertz in ((low, 440), (high, 3000)):
        centres = librosa.mel_frequencies(130, fmin=80, fmax=8000)[1:-1]
        assert abs(int(log_mel.mean(axis=1).argmax()) - int(abs(centres - hertz).argmin())) <= 1
    quiet = audio.log_mel_spectrogram(tone(1, 440) / 10)
    np.testing.assert_allclose(quiet, low, atol=1e-4), "the level must not matter"


def test_time_warp_of_five_frames():
    line, real = torch.arange(400.0).expand(20, 1, 1, 400), torch.ones(20, 400, dtype=torch.bool)
    drawn = [draw_warp(400, CONFIG["time_warp"], rng(seed)) for seed in range(20)]
    warped, _ = time_warp(line, real, *torch.from_numpy(np.array(drawn)).unbind(1))
    assert (warped - line).abs().max() > 20


@pytest.mark.filterwarnings("error")
def test_wiener_filter_on_zeros():
    for wave in (np.zeros(999), np.r_[np.zeros(500), tone(0.1), np.zeros(500)]):
        filtered = audio.denoise(wave.astype(np.float32))
        assert np.isfinite(filtered).all() and (filtered[:400] == 0).all()


def test_global_seeds():
    """No global state decides: the same generator gives the same view whatever the global seed."""
    log_mel = rng(1).random((128, 90)).astype(np.float32)
    views = []
    for seed in (1234, 1235):
        np.random.seed(seed)
        torch.manual_seed(seed)
        views.append(speech_view(log_mel, {}, CONFIG, rng(5), augment=True)[0])
    np.testing.assert_array_equal(*views)
    assert (views[0] != speech_view(log_mel, {}, CONFIG, rng(6), augment=True)[0]).any()


def test_averages_of_batches():
    logits, labels = torch.eye(3)[[0, 0, 0, 0, 1]] * 5, torch.tensor([0, 0, 0, 0, 2])
    metrics = Metrics(3)
    for part in (slice(0, 4), slice(4, 5)):
        metrics.update(logits[part], labels[part])
    assert metrics.summary()["accuracy"] == pytest.approx(4 / 5)  # not (1 + 0) / 2
    whole = torch.nn.functional.cross_entropy(logits, labels).item()
    assert metrics.summary()["loss"] == pytest.approx(whole)


def test_short_clips_cut_to_nothing():
    assert len(faces.sample_times(1.0, 1.04, 10)) == 1
    assert audio.log_mel_spectrogram(tone(0.3)).shape[1] == 1 + 4800 // 256
    view, mask = speech_view(np.ones((128, 12), np.float32), {}, CONFIG, rng(), False)
    assert view.sum() == 128 * 12 and mask.sum() == 12


def test_faces_stored_per_mel_frame():
    times = faces.sample_times(1.0, 3.25, faces.FACE_SETTINGS["face_fps"])
    assert len(times) in (22, 23)
    assert len(times) * faces.FACE_SETTINGS["face_size"] ** 2 * 3 < 21.2e6 / 6  # bytes, as uint8


def test_speech_and_text_encoded_for_every_view():
    """Test-time augmentation of the face encodes the other modalities once."""
    seen = {"speech": [], "face": [], "text": []}

    def encode(inputs, absent):
        for name, (tensor, *_) in inputs.items():
            seen[name].append(tensor)
        return inputs

    torch.manual_seed(0)
    batch = {"speech": (torch.rand(2, 3),), "face": (torch.rand(2, 1, 3, 4, 4),)}
    batch |= {"text": (torch.rand(2, 5, 3), torch.ones(2, 5))}
    encoded = encode_views(SimpleNamespace(encode=encode), (batch, {}), image_views(12))
    assert {name: len(each) for name, each in seen.items()} == {"speech": 1, "face": 12, "text": 1}
    assert len({each.numpy().tobytes() for each in seen["face"]}) == len(encoded) == 12
    for tokens, face in zip(encoded, seen["face"], strict=True):
        assert tokens["face"][0] is face and tokens["speech"] is batch["speech"]


@pytest.mark.parametrize("mode", ["speech", "face", "text"])
def test_phase_one_by_commenting_out_lines(mode):
    """Each modality alone is a mode of the same script."""
    arch = model_arch(TASKS[mode], recipe(mode), 7, SHAPES)
    assert list(arch["encoders"]) == list(arch["heads"]) == [mode]
