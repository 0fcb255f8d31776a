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
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from training.features import Features
from utils.config import Flags
from utils.errors import UsageError, run_script
from utils.files import lock_folder, write_atomic, write_json

WORDS = {"token_pattern": r"[^\W\d_]+(?:'[^\W\d_]+)?|[!?]+|\.\.+|[,.]", "sublinear_tf": True}
SURFACE = ["length", "exclamations", "questions", "capitals", "place"]


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
    models = [utterance_model()]
    if clips.loc[train, "before"].ne("").sum() >= 100:
        models.append(context_model())
    try:
        values = np.concatenate([log_probabilities(each, clips, train) for each in models], axis=1)
    except ValueError as error:  # one class, a handful of dialogues, no word twice
        reason = str(error).splitlines()[0]
        raise UsageError(f"{args.features_dir}: nothing to learn from, {reason}") from error
    with lock_folder(args.features_dir):
        write_json(args.features_dir / f"{name}.json", {"learnt_without_fold": args.fold})
        for clip, value in zip(clips.itertuples(), values.astype(np.float32), strict=True):
            path = args.features_dir / clip.split / name / f"{clip.clip_id}.npy"
            write_atomic(path, partial(np.save, arr=value))
    print(f"{len(values)} clips: {values.shape[1]} numbers each, learned from {train.sum()}")


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


def utterance_model() -> Pipeline:
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, **WORDS)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=3, sublinear_tf=True)
    views = [("words", words, "transcript"), ("letters", letters, "transcript")]
    surface = ("surface", StandardScaler(), SURFACE)
    weights = {"surface": 0.3}
    return classifier(ColumnTransformer([*views, surface], transformer_weights=weights))


def context_model() -> Pipeline:
    return classifier(ColumnTransformer([("before", TfidfVectorizer(min_df=3, **WORDS), "before")]))


def classifier(columns: ColumnTransformer) -> Pipeline:
    return make_pipeline(columns, LogisticRegression(C=1.0, max_iter=300))


def log_probabilities(model: Pipeline, clips: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """(N, K) log-probabilities; those of a training clip by a model without its dialogue."""
    known, labels = clips[train], clips.loc[train, "emotion"]
    values = np.empty((len(clips), labels.nunique()))
    values[train] = cross_val_predict(
        model, known, labels, groups=known["dialogue"], cv=GroupKFold(5), method="predict_log_proba"
    )
    if not train.all():
        values[~train] = model.fit(known, labels).predict_log_proba(clips[~train])
    return values.clip(-20, 0)  # a part of the training clips may lack a class


if __name__ == "__main__":
    run_script(main)
