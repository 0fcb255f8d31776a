"""Which words and letters speak for which emotion: a custom feature (2 K,) for train.py,
(K,) where the clips have no dialogues.

    python examples/ngrams.py                                 # -> features/<split>/ngrams/
    python train.py --mode multimodal --inputs text,ngrams --exp_name first

Two logistic regressions, on the utterance (TF-IDF of words, word pairs and letters; marks and
capitals) and on the utterance before it, each give the logarithm of every class's probability.
They learn from the split train alone; its own clips are answered by models that saw none of their
dialogue, so that what is fused with them learns how far to trust them (stacking, Wolpert 1992).

What is learnt from labels belongs to one division of the clips, and train.py refuses it for any
other. For a run that holds out a fold:

    python examples/ngrams.py --fold 2                        # -> features/<split>/ngrams_2/
    python train.py --mode multimodal --inputs text,ngrams_2 --fold 2 --exp_name held-out-2

What the regressions have learnt stays in features/ngrams.npz. With it this file is also the encoder
of such a run, which gives a new sentence the numbers that a clip outside of train has here:

    python predict.py --text "You did what?!" --checkpoints logs/multimodal/first \
        --encoder ngrams=examples/ngrams.py@features/ngrams.npz

A new sentence has no dialogue: it is read as the first utterance of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack
from scipy.special import log_softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from extract import encoders
from training.features import Features
from utils.config import Flags
from utils.errors import IntegrityError, UsageError, counted, in_short, run_script
from utils.files import DAMAGED, lock_folder, write_atomic, write_json

LEARNT_FROM_LABELS = True  # preprocess.py takes no such encoder: it would know the labels of train
WORDS = {"token_pattern": r"[^\W\d_]+(?:'[^\W\d_]+)?|[!?]+|\.\.+|[,.]", "sublinear_tf": True}
LETTERS = {"analyzer": "char_wb", "ngram_range": (2, 4), "min_df": 3, "sublinear_tf": True}
VIEWS: dict[str, dict[str, dict[str, Any]]] = {  # what a regression reads -> how it is cut
    "transcript": {"words": {"ngram_range": (1, 2), "min_df": 2, **WORDS}, "letters": LETTERS},
    "before": {"words": {"min_df": 3, **WORDS}},
}
SURFACE = ["length", "exclamations", "questions", "capitals", "place"]
SURFACE_SHARE = 0.3  # beside TF-IDF, whose rows have the length 1
LEAST = -20.0  # a part of the training clips may lack a class
Learnt = dict[str, np.ndarray]


def main() -> None:
    flags = Flags(__doc__)
    flags.add("--features_dir", default=Path("features"), type=Path, help="of preprocess.py")
    flags.add("--fold", help="learn from the other folds, for train.py --fold")
    args = flags.parse_args()
    features = Features.open(args.features_dir)
    if lacking := {"transcript", "dialogue", "utterance"} - {*features.manifest}:
        lacks = f"{args.features_dir / 'manifest.csv'} lacks {', '.join(sorted(lacking))}"
        raise UsageError(f"{lacks}: run preprocess.py again")
    clips = with_context(features.manifest)
    train, name = clips["split"] == "train", "ngrams"
    if args.fold is not None:
        if args.fold not in features.folds():
            known = ", ".join(features.folds()) or "none"
            raise UsageError(f"--fold {args.fold}: the folds are {known}")
        name = f"ngrams_{args.fold}"
        train = clips["split"].isin(("train", "val")) & ~clips["fold"].isin(("", args.fold))
    train = train.to_numpy()
    if train.sum() < 100 or clips.loc[train, "transcript"].eq("").any():
        raise UsageError(f"{args.features_dir}: expected 100 or more training clips with words")
    reads = ["transcript"]
    if clips.loc[train, "before"].ne("").sum() >= 100:
        reads.append("before")
    try:
        models = [learn(column, clips[train]) for column in reads]
        values = np.concatenate([answers(each, clips, train) for each in models], axis=1)
    except ValueError as error:  # one class, a handful of dialogues, no word twice
        what = f"{args.features_dir}: nothing to learn from, {in_short(error)}"
        raise UsageError(what) from error
    with lock_folder(args.features_dir):
        save(args.features_dir / f"{name}.npz", models)
        about = {"learnt_without_fold": args.fold, "encoder": as_encoder(args.features_dir, name)}
        write_json(args.features_dir / f"{name}.json", about)
        for clip, value in zip(clips.itertuples(), values, strict=True):
            path = args.features_dir / clip.split / name / f"{clip.clip_id}.npy"
            write_atomic(path, partial(np.save, arr=value))
    numbers = counted(values.shape[1], "number")
    print(f"{counted(len(values), 'clip')}: {numbers} each, learned from {train.sum()}")


def as_encoder(features_dir: Path, name: str) -> dict[str, str]:
    """The settings by which a checkpoint knows what makes this feature of a new sentence."""
    source = f"{os.path.relpath(__file__)}@{features_dir / name}.npz"
    _, settings = encoders.parse(f"{name}=text:file:{source},dtype=float32")
    weights = encoders.load(encoders.given(settings), "cpu").weights
    return settings | {"revision": "", "weights": weights}


def load(settings: dict[str, str], device: str) -> Callable[[str], np.ndarray]:
    """The encoder of extract/encoders.py: a sentence -> (2 K,), or (K,), as of a clip outside of
    train that begins its dialogue."""
    if not settings["weights"]:
        source = settings["source"]
        raise UsageError(f"{source} needs what it has learnt: {source}@features/ngrams.npz")
    models = read(Path(settings["weights"]))

    def encode(sentence: str) -> np.ndarray:
        row = dict.fromkeys(("split", "clip_id", "dialogue", "utterance"), "")
        return outside(models, with_context(pd.DataFrame([row | {"transcript": sentence}])))[0]

    return encode


def with_context(clips: pd.DataFrame) -> pd.DataFrame:
    """The clips with what was said before in their dialogue, and numbers about their letters."""
    place = pd.to_numeric(clips["utterance"], errors="coerce").fillna(0)
    clips = clips.assign(place=place)
    alone = clips["dialogue"] == ""  # each is a dialogue of its own
    clips["dialogue"] = clips["dialogue"].where(~alone, clips["split"] + "/" + clips["clip_id"])
    clips = clips.sort_values(["split", "dialogue", "place"]).reset_index(drop=True)
    text = clips["transcript"]
    return clips.assign(
        before=clips.groupby(["split", "dialogue"])["transcript"].shift().fillna(""),
        length=np.log1p(text.str.len()),
        exclamations=text.str.count("!"),
        questions=text.str.count(r"\?"),
        capitals=text.str.count(r"\b[A-Z]{2,}\b"),
        place=clips["place"].clip(0, 10),
    )


class Regression:
    """A logistic regression on what stands in the column `reads`: clips -> log-probabilities.

    `learnt` is all that it is: of each view its terms, one a line, and their IDF; mean and scale of
    the surface; a row of weights (V,) and a bias for each class.
    """

    def __init__(self, reads: str, learnt: Learnt):
        self.reads, self.learnt = reads, learnt
        self.views = []
        for view, cut in VIEWS[reads].items():
            terms = learnt[view].tobytes().decode().split("\n")
            self.views.append(TfidfVectorizer(**cut, vocabulary=terms))
            self.views[-1].idf_ = learnt[f"{view}_idf"]

    def __call__(self, clips: pd.DataFrame) -> np.ndarray:  # (N, K)
        parts = [view.transform(clips[self.reads]) for view in self.views]
        x = side_by_side(parts, clips, self.learnt)
        logits = x @ self.learnt["weights"].T + self.learnt["bias"]
        return log_softmax(logits, axis=1).clip(LEAST, 0)


def side_by_side(parts: list[csr_matrix], clips: pd.DataFrame, learnt: Learnt) -> csr_matrix:
    """TF-IDF of the views, and the surface where it was learnt: (N, V)."""
    if "mean" in learnt:
        surface = (clips[SURFACE].to_numpy() - learnt["mean"]) / learnt["scale"]
        parts = [*parts, csr_matrix(SURFACE_SHARE * surface)]
    return hstack(parts, format="csr")


def learn(reads: str, clips: pd.DataFrame) -> Regression:
    learnt: Learnt = {}
    parts = []
    for view, cut in VIEWS[reads].items():
        fitted = TfidfVectorizer(**cut)
        parts.append(fitted.fit_transform(clips[reads]))
        terms = "\n".join(fitted.get_feature_names_out())
        learnt |= {view: np.frombuffer(terms.encode(), "u1"), f"{view}_idf": fitted.idf_}
    if reads == "transcript":
        scaler = StandardScaler().fit(clips[SURFACE].to_numpy())
        learnt |= {"mean": scaler.mean_, "scale": scaler.scale_}
    model = LogisticRegression(C=1.0, max_iter=300)
    model.fit(side_by_side(parts, clips, learnt), clips["emotion"])
    weights, bias = model.coef_, model.intercept_
    if len(weights) == 1:  # of two classes it has one row, for the second
        weights, bias = np.vstack([0 * weights, weights]), np.append(0, bias)
    return Regression(reads, learnt | {"weights": weights, "bias": bias})


def outside(models: list[Regression], clips: pd.DataFrame) -> np.ndarray:
    """(N, 2 K) of clips that taught none of the models."""
    return np.concatenate([model(clips) for model in models], axis=1).astype(np.float32)


def answers(model: Regression, clips: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """(N, K) float32; of each training clip by a model that did not learn from its dialogue."""
    values, known = outside([model], clips), clips[train]
    classes, own = np.unique(known["emotion"]), np.full((len(known), values.shape[1]), LEAST)
    for taught, asked in GroupKFold(5).split(known, groups=known["dialogue"]):
        part = known.iloc[taught]
        there = np.isin(classes, part["emotion"])
        own[np.ix_(asked, there)] = learn(model.reads, part)(known.iloc[asked])
    values[train] = own
    return values


def save(path: Path, models: list[Regression]) -> None:
    arrays = {f"{each.reads}.{key}": value for each in models for key, value in each.learnt.items()}
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


def read(path: Path) -> list[Regression]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found: dict[str, Learnt] = {}
            for name in arrays:
                reads, _, key = name.partition(".")
                found.setdefault(reads, {})[key] = arrays[name]
        return [Regression(reads, found[reads]) for reads in VIEWS if reads in found]
    except DAMAGED as error:
        what = f"{path} is damaged, or none of {Path(__file__).name} ({in_short(error)})"
        raise IntegrityError(f"{what}: make it anew") from error


if __name__ == "__main__":
    run_script(main)
