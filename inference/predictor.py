"""Checkpoints and a clip -> the answer.

The features are made by the training's own code with the checkpoint's own settings, and read by the
training's own dataset: the road that preprocess.py and evaluation/ensemble.py take.
"""

from __future__ import annotations

import contextlib
import cProfile
import pstats
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from corpora.manifest import Clip
from evaluation.ensemble import Member, face_views, load_members, power_mean, predict
from extract import audio, detector, vectors, words
from extract.clip import SETTINGS, Job, facts_of, manifest_row, process_clip
from inference.answer import FUSED, Answer, Look, answer_first
from inference.sources import Source
from models.attention import FrameAttention
from models.fusion import EmotionClassifier
from training.checkpoint import find_checkpoints, load_checkpoint
from training.data import ClipDataset, Features, folder_of
from training.tasks import FOLDERS
from utils.errors import IntegrityError, UsageError
from utils.parallel import available_cores

STEPS = {  # functions of extract/ by what their time is spent on
    **{"read_mono": "decode", "frames_at": "decode", "find_faces": "detect"},
    **{"denoise": "mel", "log_mel_spectrogram": "mel"},
}


class Predictor:
    """Trained runs, loaded once, that answer clip after clip."""

    longest = 15.0  # seconds: a longer clip is cut into utterances
    no_words = "no words: give --text, or a .txt, .srt or .npz beside the clip"

    def __init__(
        self,
        checkpoints: list[Path],
        folder: Path,
        device: str = "cpu",
        tta: int = 1,
        temperature: float = 1.0,
        word_vectors: Path | None = None,
        times: bool = False,
    ):
        """`folder`: where the features of the clips go. Several checkpoints are an ensemble."""
        settings = settings_of(find_checkpoints(checkpoints))
        self.features = Features(folder, settings, pd.DataFrame())
        self.members = load_members(checkpoints, self.features)
        self.device, self.temperature, self.word_vectors = device, temperature, word_vectors
        self.views = face_views(tta)
        text = [member.checkpoint["arch"]["encoders"].get("text", {}) for member in self.members]
        word_dim = max((each["word_dim"] for each in text if each), default=None)
        self.job = Job(folder, (), settings["features"], word_dim, device, available_cores())
        self.origin: str | None = None  # of the word vectors that words are looked up in
        self.unknown = ""  # why none of them can be
        self.times = times and warm_up(self.job)

    @property
    def classes(self) -> list[str]:
        return self.features.classes

    def work_in(self, folder: Path) -> None:
        """Put the features of the next clips there."""
        self.features = replace(self.features, folder=folder)
        self.job = replace(self.job, features_dir=folder)
        self.origin, self.unknown = None, ""

    def answer(self, source: Source) -> Answer:
        """The answer to one clip; it has no parts when nothing in the clip can be used."""
        start, profile = time.perf_counter(), cProfile.Profile()
        with profile if self.times else contextlib.nullcontext():
            row, missing = self.extract(source.clip, source.problem)
        extracted = time.perf_counter()
        answer = Answer(source, self.classes, missing, row)
        parts: dict[str, list] = defaultdict(list)
        for member in self.members:
            for part, probabilities in self.scores(member, answer).items():
                parts[part].append(probabilities)
        answer.parts = answer_first({part: np.mean(each, axis=0) for part, each in parts.items()})
        answer.seconds = {"extract": extracted - start, "network": time.perf_counter() - extracted}
        if self.times:
            answer.seconds = split(profile) | answer.seconds
        return answer

    def extract(self, clip: Clip, problem: str = "") -> tuple[dict, dict[str, str]]:
        """Features of everything that the clip has: its manifest row, and why the rest is missing.
        `problem`: why its words cannot be used.

        A stage that fails is left out and the others are made without it, as for a corpus that
        never had it: the face of a clip without sound is looked for in the whole of it.
        """
        wanted = {name: folder_of(name) for member in self.members for name in member.task.inputs}
        missing = self.why_no_words(clip, problem) if "text" in wanted else {}
        if clip.media == Path():
            missing |= dict.fromkeys(wanted.keys() - {"text"}, "E_MISSING: no clip was given")
        while True:
            job = self.job_of(clip, missing, wanted)
            record = process_clip(clip, job)
            failure = record["failure"]
            if not failure:
                return manifest_row(
                    clip, facts_of(record, job.modalities), job.features_dir
                ), missing
            name = next(name for name, stage in wanted.items() if stage == failure["stage"])
            missing[name] = f"{failure['code']}: {failure['reason']}"

    def look_up(self, transcripts: list[str]) -> None:
        """Find the vectors of all words that will come; before the clips that say them.

        IntegrityError for other vectors than the training's, UsageError for another width.
        """
        said = [text for text in transcripts if text]
        text = self.job.settings.get("text")
        if not (self.word_vectors and said and text):
            return
        try:
            self.origin = vectors.gather(self.word_vectors, said, self.job.features_dir)
        except vectors.NoneKnown as error:  # costs the words alone
            self.unknown = f"E_SHORT: {error}"
            return
        if "vectors" not in text:
            print(
                "the checkpoint was trained on vectors from .npz files: nothing tells whether "
                f"{self.word_vectors} is where these are from",
                file=sys.stderr,
            )
        if text.get("vectors", self.origin) != self.origin:
            raise IntegrityError(
                f"{self.word_vectors} ({self.origin}) is not the file of word vectors that the "
                f"checkpoint was trained with ({text['vectors']})"
            )
        width = len(next(iter(vectors.open_store(self.job.features_dir).values())))
        if width != self.job.word_dim:
            wide = f"its vectors have {width} values, the checkpoint reads {self.job.word_dim}"
            raise UsageError(f"--word_vectors {self.word_vectors}: {wide}")

    def job_of(self, clip: Clip, missing: dict[str, str], wanted: dict[str, str]) -> Job:
        stages = tuple(stage for name, stage in wanted.items() if name not in missing)
        settings = dict(self.job.settings)
        if "text" in stages and not clip.words:
            settings["text"] = settings["text"] | {"vectors": self.origin, "rule": words.RULE}
        return replace(self.job, modalities=stages, settings=settings)

    def why_no_words(self, clip: Clip, problem: str) -> dict[str, str]:
        if problem or (clip.transcript and self.unknown):
            return {"text": problem or self.unknown}
        by_file = "vectors" not in self.job.settings["text"]  # else they are looked up, always
        if (clip.words and by_file) or (clip.transcript and self.origin):
            return {}
        if clip.transcript:
            return {"text": "E_MISSING: the words need --word_vectors FILE to be looked up in"}
        return {"text": f"E_MISSING: {self.no_words}"}

    def scores(self, member: Member, answer: Answer) -> dict[str, np.ndarray]:
        """One model's probabilities (K,) by part, from the inputs that are there."""
        inputs = tuple(name for name in member.task.inputs if name not in answer.missing)
        parts = self.run(member, inputs, answer) if inputs else {}
        for name in inputs if member.model.absent and len(inputs) > 1 else ():
            if name not in parts:  # no head of its own: what the fusion says to it alone
                parts[name] = self.run(member, (name,), answer)[FUSED]
        return parts

    def run(self, member: Member, inputs: tuple, answer: Answer) -> dict[str, np.ndarray]:
        task = replace(member.task, inputs=inputs)
        rows = pd.DataFrame([answer.facts])
        dataset = ClipDataset(self.features, rows, task, member.config, training=False)
        views = self.views if "face" in inputs else None
        with watch_attention(member.model) as seen:
            (logits,) = predict(member, dataset, self.device, views, batch_size=1)
        for name, tensors in dataset[0, 0]["inputs"].items():
            answer.looks.setdefault(name, Look(tensors[0].numpy(), seen.get(name)))
        parts = {}
        for head in logits[0]:
            probabilities = power_mean([view[head] for view in logits], self.temperature)
            if not probabilities.isfinite().all():
                raise IntegrityError(f"{member.path} gives probabilities that are not numbers")
            parts[head if head in FOLDERS else FUSED] = probabilities[0].cpu().numpy()
        return parts


def settings_of(paths: list[Path]) -> dict[str, Any]:
    """Classes and extraction settings of checkpoints, as preprocess.py writes them.

    UsageError for inputs that no clip can give; IntegrityError for settings of another version.
    """
    features: dict[str, dict] = {}
    for path in paths:
        checkpoint = load_checkpoint(path)
        own = set(checkpoint["arch"]["encoders"]) - set(FOLDERS)
        if own:
            raise UsageError(f"{path} reads {', '.join(own)}: features that no clip alone gives")
        features = checkpoint["features_config"] | features
        for stage, settings in checkpoint["features_config"].items():
            if stage not in SETTINGS or not settings:
                raise IntegrityError(f"{path} reads {stage}, of which no settings are known")
            unknown = set(SETTINGS[stage]) - set(settings)
            if unknown:
                what = f"{stage} without {', '.join(sorted(unknown))}"
                raise IntegrityError(f"{path} was trained on features of another version: {what}")
    return {"classes": checkpoint["classes"], "modalities": list(features), "features": features}


def warm_up(job: Job) -> bool:
    """Load what the first clip would load, so that its times are those of any clip."""
    import librosa

    noise = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    librosa.effects.trim(audio.log_mel_spectrogram(audio.denoise(noise))[0])
    if "video" in job.settings:
        detector.detector(job.device, job.settings["video"]["min_face"])
    return True


def split(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds of the extraction's steps."""
    seconds = dict.fromkeys(STEPS.values(), 0.0)
    for (file, _, name), (_, _, _, total, _) in pstats.Stats(profile).stats.items():
        if name in STEPS and Path(file).parent.name == "extract":
            seconds[STEPS[name]] += total
    return seconds


@contextlib.contextmanager
def watch_attention(model: EmotionClassifier) -> Iterator[dict[str, np.ndarray]]:
    """Collect {modality: weights (T,)} of the first clip and view that the model sees."""
    seen: dict[str, np.ndarray] = {}

    def keeper(name: str) -> Callable:
        def keep(module: FrameAttention, args: tuple, output: Any) -> None:
            seen.setdefault(name, module.weights(args[0])[0].cpu().numpy())

        return keep

    handles = [
        module.register_forward_hook(keeper(name))
        for name, encoder in model.encoders.items()
        for module in encoder.modules()
        if isinstance(module, FrameAttention)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
