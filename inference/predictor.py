"""Checkpoints and a clip -> the prediction.

The features are made by preprocess.py's own code with the checkpoint's own settings, and read by
the training's own dataset.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from corpora.manifest import Clip, as_class
from evaluation.ensemble import (
    Member,
    check_finite,
    combine_runs,
    group_checkpoints,
    image_views,
    load_members,
    mean_over_views,
)
from extract import transcribe as recogniser
from extract.clip import Job, facts_of, limits_for, manifest_row, process_clip, warm_up
from extract.media import FORMATS
from extract.transcribe import Cue
from inference.annotate import annotate
from inference.card import cards
from inference.lookup import Lookup
from inference.prediction import ENSEMBLE, FUSED, MEAN, ClipPrediction, Seen
from inference.settings import found_again, settings_of
from inference.sources import SCRATCH, Source, find_sources
from inference.windows import cut_long, has_voice
from models.fusion import Tokens
from training.data import ClipDataset, make_loader
from training.features import Features
from training.inference import Given, encode_views, infer
from training.modalities import MODALITIES, modality
from training.standardize import FEW, Scales, scale_of, vectors_of
from utils import stopwatch
from utils.config import device_name
from utils.errors import ClipError, UsageError
from utils.guard import LOST, RECORDING_MB, guarded
from utils.parallel import available_cores
from utils.scratch import scratch_folder

Logits = dict[str, Tensor]  # head -> (1, K)


class Vote(NamedTuple):
    """What one run says of a clip: by which of its parts, and what that rests on."""

    part: str
    probabilities: np.ndarray  # (K,)
    inputs: list[str]


class Predictor:
    """Trained runs, loaded once, that predict clip after clip. Several runs are an ensemble.

    * `device`: auto, cpu, cuda.
    * `tta`: views of the face per clip, 1, 6 or 12.
    * `word_vectors`: the file that words are looked up in, as in the training.
    * `folder`: where the features of the clips go; without one they are gone with the predictor.
    * `warm`: load now what else the first clip would load, so that its times are those of any clip.
    * `longest`: seconds; a longer recording is cut into utterances.
    * `clip_seconds`: clips are read in a process of its own, which may crash, or take this long for
      a step and 10 MB; 0: in this process. `memory_mb`: what that process may hold; 0: no limit.
    * `encoders`: {name: folder, file or name of the hub}, where a pretrained encoder is to be found
      now; a Python file must be named here.
    * `classes`: the answer is one of these.
    * `transcribe`: faster-whisper:MODEL, which recognises the words of clips that come without any;
      what it heard is in `heard`.
    * `cards` says what each model comes from.
    """

    no_person = f"it is compared with other clips of the person: give {FEW} or more of one person"
    no_words = "no words: give --text, or a .txt, .srt, .vtt or .npz beside the clip"

    def __init__(
        self,
        checkpoints: Iterable[str | Path],
        *,
        folder: Path | None = None,
        device: str = "auto",
        tta: int = 1,
        word_vectors: Path | None = None,
        warm: bool = False,
        longest: float = 15.0,
        clip_seconds: float = 0,
        memory_mb: int = RECORDING_MB,
        encoders: dict[str, str] | None = None,
        classes: list[str] | None = None,
        transcribe: str | None = None,
    ):
        if folder is None:
            self.temporary = scratch_folder(SCRATCH)  # deleted with the predictor
            folder = self.temporary.path
        folder, self.device = Path(folder), device_name(device)
        self.views = image_views(tta)
        self.longest = longest
        paths = [Path(path) for path in checkpoints]
        settings = settings_of(
            [file for files in group_checkpoints(paths).values() for file in files]
        )
        self.encoders = found_again(settings["features"], encoders or {}, self.device)
        self.features = Features(folder, settings, pd.DataFrame(columns=["split", "clip_id"]))
        self.members = load_members(paths, self.features)
        self.cards = cards(self.members)
        self.voice_only = any(card.get("voice_only") for card in self.cards)
        self.chosen = chosen_classes(classes, settings["classes"])
        self.recogniser = recogniser.parse(transcribe) if transcribe else ""
        if self.recogniser:
            recogniser.load(self.recogniser, self.device)
        self.heard: dict[str, list[Cue]] = {}  # what was said in each file, by its name
        self.scales: Scales = {}  # of the person whose clips come, for --standardize speaker
        inputs = (name for member in self.members for name in member.task.inputs)
        self.stage_of = {name: modality(name).folder for name in inputs}  # that makes each input
        looked_up = {row.folder for row in MODALITIES.values() if row.source == "words"}
        # no model reads them, but encoders do; those of words do without the words' vectors
        self.helpers = set(settings["features"]) - {*self.stage_of.values()} - looked_up
        self.words = [name for name in self.stage_of if modality(name).source == "words"]
        self.lookup = Lookup(word_vectors, self.words, settings["features"], self.members)
        self.sentences = [n for n, made in self.encoders.items() if made["reads"] == "transcript"]
        self.job = Job(
            features_dir=folder,
            modalities=tuple(settings["features"]),
            settings=settings["features"],
            word_dim=self.lookup.width,
            device=self.device,
            threads=available_cores(),
            clip_seconds=clip_seconds,
            memory_mb=memory_mb,
            forgiving=True,
        )
        if warm:
            with contextlib.suppress(ClipError):  # the first clip says why
                self.supervised(None, warm_up, self.job)

    @property
    def classes(self) -> list[str]:
        return [self.features.classes[number] for number in self.chosen]

    @property
    def compares(self) -> list[str]:
        """The inputs that some run compares with the other clips of the person."""
        return [
            name
            for name in self.stage_of
            if modality(name).is_vectors
            and any(
                name in member.task.inputs and member.config["standardize"] == "speaker"
                for member in self.members
            )
        ]

    def get_to_know(self, sources: list[Source]) -> None:
        """Take these clips for those of one person, whom the next predictions are about."""
        by_name: dict[str, list[np.ndarray]] = {name: [] for name in self.compares}
        for source in sources:
            row, missing = self.extract(source.clip, source.problem)
            for name in set(by_name) - set(missing):
                by_name[name].append(np.array(vectors_of(self.features, row, name)))
        enough = {name: each for name, each in by_name.items() if len(each) >= FEW}
        self.scales = {name: {"": scale_of(each)} for name, each in enough.items()}

    def __call__(self, clip: str | Path, text: str | None = None) -> ClipPrediction:
        """One clip as a whole, with the words that are given or lie beside it."""
        (source,) = self.with_words(find_sources([Path(clip)], text))
        self.look_up([source.clip.transcript])
        return self.predict(source)

    def recording(self, clip: str | Path, text: str | None = None) -> list[ClipPrediction]:
        """A long recording, utterance by utterance; a clip of up to `longest` seconds as it is."""
        (source,) = find_sources([Path(clip)], text)
        parts = self.with_words(self.cut(source))
        self.look_up([part.clip.transcript for part in parts])
        return [self.predict(part) for part in parts]

    def look_up(self, transcripts: list[str]) -> None:
        """Find the vectors of all words that will come; before the clips that say them.

        IntegrityError for other vectors than the training's, UsageError for another width.
        """
        self.lookup.find(transcripts, self.job.features_dir)

    def cut(self, source: Source) -> list[Source]:
        """The source itself, or the utterances of a long recording."""
        media, folder = source.clip.media, self.features.folder
        try:
            return self.supervised(media, cut_long, source, self.longest, folder)
        except ClipError as error:
            if error.code in LOST:  # else the prediction says why
                print(f"{source.name} is not cut: {error.reason}", file=sys.stderr)
            return [source]

    def supervised(self, media: Path | None, function: Callable, *args: Any) -> Any:
        """`function(*args)`, which reads this file; in the process that reads clips, with
        `clip_seconds`."""
        if not self.job.clip_seconds:
            return function(*args)
        return guarded(function, *args, limits=limits_for(media, self.job))

    def annotate(self, media: Path, predictions: list[ClipPrediction]) -> bytes:
        """The video with each answer drawn in while it holds, as .mp4; ClipError without pictures,
        or where it cannot be read to its end."""
        return self.supervised(media, annotate, media, predictions)

    def with_words(self, sources: list[Source]) -> list[Source]:
        """The clips, and the parts of long ones, with the words that are recognised in them."""
        return [self.listen(source) if self.recogniser else source for source in sources]

    def listen(self, source: Source) -> Source:
        """A clip without words gets those of its sound."""
        clip = source.clip
        if clip.transcript or clip.words or clip.media == Path():
            return source
        try:
            wave, offset = self.supervised(clip.media, recogniser.hear, clip.media)
        except ClipError:  # the prediction says why
            return source
        said = recogniser.recognise(wave, offset, self.recogniser, self.device)
        self.heard.setdefault(source.name, []).extend(said.cues)
        return source._replace(clip=replace(clip, transcript=said.transcript), problem="")

    def work_in(self, folder: Path) -> None:
        """Put the features of the next clips there."""
        self.features = replace(self.features, folder=folder, seen={}, checked=set())
        self.job = replace(self.job, features_dir=folder)
        self.lookup.forget()

    def predict(self, source: Source) -> ClipPrediction:
        """The prediction for one clip; it has no parts when nothing in the clip can be used."""
        stopwatch.seconds.clear()
        self.features.seen.clear()  # a clip of the same name is made anew
        self.features.checked.clear()
        start = time.perf_counter()
        row, missing = self.extract(source.clip, source.problem)
        if part := source.clip.media.name:  # of a recording it is a file of ours
            whole = Path(source.name).name
            missing = {name: why.replace(part, whole) for name, why in missing.items()}
        of_nobody = [name for name in self.compares if name not in {*self.scales, *missing}]
        missing |= dict.fromkeys(of_nobody, f"E_MISSING: {self.no_person}")
        extracted = time.perf_counter()
        prediction = ClipPrediction(source, self.classes, missing, row, cards=self.cards)
        self.vote(prediction)
        self.show_encoded(prediction)
        prediction.seconds = {
            **stopwatch.seconds,
            "extract": extracted - start,
            "network": time.perf_counter() - extracted,
        }
        return prediction

    def show_encoded(self, prediction: ClipPrediction) -> None:
        """What pretrained encoders saw of the clip, for its picture."""
        row = prediction.facts
        for name, made in self.encoders.items():
            shown = made["input"]
            if name in prediction.missing:
                prediction.unseen.setdefault(shown, prediction.missing[name])
            if name in prediction.missing or name not in prediction.seen:
                continue
            prediction.encoders.setdefault(shown, []).append(name)
            if made["reads"] == "transcript" or shown in prediction.encoded:
                continue
            feature = self.features.load(row, shown)
            kind, rng = modality(shown), np.random.default_rng(0)
            whole = {name: each.default for name, each in kind.settings.items()}
            whole |= dict.fromkeys(kind.lengths, max(feature.shape[:2]))
            (view, *_) = kind.view(feature, row, whole, rng, False)
            prediction.encoded[shown] = Seen(view, None)

    def vote(self, prediction: ClipPrediction) -> None:
        """Fill in the parts: what each run says from the inputs that are there, and together."""
        votes: list[tuple[Member, Vote]] = []
        alone: dict[str, list[tuple[Member, np.ndarray]]] = {}
        for member in self.members:
            vote, by_input = self.ask(member, prediction)
            for name, p in by_input.items():
                alone.setdefault(name, []).append((member, p))
            if vote:
                votes.append((member, vote))
        if not votes:
            return
        names = {vote.part for _, vote in votes}
        deciding = names.pop() if len(names) == 1 else ENSEMBLE
        parts = {deciding: combined([(member, vote.probabilities) for member, vote in votes])}
        for name in self.stage_of:
            if name in alone:
                parts.setdefault(name, combined(alone[name]))
        prediction.parts = parts
        rests_on = {name for _, vote in votes for name in vote.inputs}
        prediction.rests_on = [name for name in self.stage_of if name in rests_on]

    def ask(
        self, member: Member, prediction: ClipPrediction
    ) -> tuple[Vote | None, dict[str, np.ndarray]]:
        """One run's vote, and what each input says alone, {input: (K,)}; no vote where no head can
        do with what is there."""
        inputs = [name for name in member.task.inputs if name not in prediction.missing]
        if not inputs:
            return None, {}
        by_head, by_input = self.run(member, inputs, prediction)
        # A head of one input is named as that; without one the fusion says what it makes of it.
        alone = by_input | {name: p for name, p in by_head.items() if name in inputs}
        head = member.task.main_head
        if head in by_head:
            prediction.filled_in |= len(inputs) < len(member.task.inputs)
            return Vote(head if head in inputs else FUSED, by_head[head], inputs), alone
        prediction.not_fused = True
        if not alone:
            return None, {}
        part = next(iter(alone)) if len(alone) == 1 else MEAN
        return Vote(part, np.mean(list(alone.values()), axis=0), list(alone)), alone

    def run(
        self, member: Member, inputs: list[str], prediction: ClipPrediction
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """{head: probabilities (K,)} from all inputs that are there; and {input: what the deciding
        head says to it alone}, of runs with modality dropout."""
        task = replace(member.task, inputs=tuple(inputs))
        row = pd.DataFrame([prediction.facts])
        standardize = member.config["standardize"] == "speaker"
        scales = self.scales if standardize else {}
        dataset = ClipDataset(self.features, row, task, member.config, False, scales)
        model, head = member.model, member.task.main_head
        fusable = inputs if model.missing and len(inputs) > 1 else []

        def read(given: Given) -> tuple[list[Logits], dict[str, list[Tensor]], dict]:
            views = encode_views(model, given, self.views)
            together = [model.classify(tokens).logits for tokens in views]
            single = {
                name: [model.classify({name: tokens[name]}).logits[head] for tokens in views]
                for name in fusable
            }
            return together, single, attention_weights(model, views[0])

        loader = make_loader(dataset, 1, 0, self.device)
        [(_, found)] = infer([model], loader, self.device, read)
        together, single, weights = found
        for name, tensors in dataset[0, 0]["inputs"].items():
            prediction.seen.setdefault(name, Seen(tensors[0].numpy(), weights.get(name)))

        def chosen_probabilities(logits: list[Tensor]) -> np.ndarray:
            p = mean_over_views(logits)[0].cpu().numpy()
            check_finite(member, [p])
            return p[self.chosen] / p[self.chosen].sum()

        return (
            {name: chosen_probabilities([view[name] for view in together]) for name in together[0]},
            {name: chosen_probabilities(logits) for name, logits in single.items()},
        )

    def extract(self, clip: Clip, problem: str = "") -> tuple[dict, dict[str, str]]:
        """Features of everything that the clip has: its manifest row, and why the rest is missing.
        `problem`: why its words cannot be used.

        A stage that fails costs only what reads it. The others are made as for a corpus that never
        had it: the face of a clip without sound is looked for in the whole of it.
        """
        missing = self.lookup.why_not(clip, problem, self.no_words)
        if not clip.transcript:
            why = problem or f"E_MISSING: {self.no_words}"
            missing |= dict.fromkeys(self.sentences, why)
        if self.voice_only and self.hears_nobody(clip):
            voices = [name for name in self.stage_of if modality(name).has_voice]
            missing |= dict.fromkeys(voices, "E_NOVOICE: nobody is heard to speak")
        if clip.media == Path():
            media = [name for name in self.stage_of if name not in self.words + self.sentences]
            missing |= dict.fromkeys(media, "E_MISSING: no clip was given")
        job = self.job_of(clip, missing)
        record = process_clip(clip, job)
        for each in record.get("missing", ()):
            why = f"{each['code']}: {each['reason']}"
            lost = [name for name, stage in self.stage_of.items() if stage == each["stage"]]
            missing |= dict.fromkeys(lost, why)
        return manifest_row(clip, facts_of(record, job.modalities), job.features_dir), missing

    def hears_nobody(self, clip: Clip) -> bool:
        """Whether there is sound, but no voice in it."""
        if clip.media.suffix.lower() not in FORMATS:
            return False
        try:
            return not self.supervised(clip.media, has_voice, clip.media)
        except ClipError:  # the stage of the sound says why
            return False

    def job_of(self, clip: Clip, missing: dict[str, str]) -> Job:
        stages = tuple(stage for name, stage in self.stage_of.items() if name not in missing)
        if clip.media != Path():
            stages += tuple(self.helpers)
        settings = self.job.settings | self.lookup.made_of(clip)
        return replace(self.job, modalities=stages, settings=settings)


def combined(votes: list[tuple[Member, np.ndarray]]) -> np.ndarray:
    """Votes (K,) about one clip -> (K,), as those of an ensemble."""
    members = [member for member, _ in votes]
    _, (p,) = combine_runs(members, [(pd.Index(["clip"]), each[np.newaxis]) for _, each in votes])
    return p


def attention_weights(model: Any, tokens: dict[str, Tokens]) -> dict[str, np.ndarray]:
    """{modality: weights (T,)} of the first clip, where its pooling weighs the tokens."""
    by_name = {}
    for name, (x, mask) in tokens.items():
        pooling = model.encoders[name].pooling
        if hasattr(pooling, "weights") and x.shape[1] > 1:
            by_name[name] = pooling.weights(x, mask)[0].float().cpu().numpy()
    return by_name


def chosen_classes(wanted: list[str] | None, classes: list[str]) -> list[int]:
    """The numbers of the classes that an answer is chosen from."""
    names = list(dict.fromkeys(as_class(name, tuple(classes)) for name in wanted or classes))
    if len(names) < 2 or set(names) - set(classes):
        given = ",".join(names)
        raise UsageError(f"--classes {given}: expected two or more of {','.join(classes)}")
    return [classes.index(name) for name in names]
