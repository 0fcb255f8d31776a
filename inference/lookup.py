"""The vectors of the words that a clip's models read, and why they cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from corpora.manifest import Clip
from evaluation.ensemble import Member
from extract import vectors, words
from inference.starter import WORDS
from training.modalities import modality
from utils.errors import IntegrityError, UsageError


class Lookup:
    """Words are looked up in `file`, as in the training, for the inputs `names` of the models.

    `settings`: how the training made their feature; `width`: values of a word's vector.
    """

    def __init__(
        self,
        file: Path | None,
        names: list[str],
        features: dict[str, dict[str, Any]],
        members: list[Member],
    ):
        self.file, self.names = file, names
        self.settings = features[modality(names[0]).folder] if names else {}
        self.width = word_width(members, names)
        self.forget()

    def forget(self) -> None:
        """No words are looked up yet."""
        self.origin: str | None = None  # of the vectors that were found
        self.unknown = ""  # why there are none

    def find(self, transcripts: list[str], folder: Path) -> None:
        """Put the vectors of all words that will come into `folder`.

        IntegrityError for other vectors than the training's, UsageError for another width.
        """
        said = [text for text in transcripts if text]
        if not (self.file and said and self.settings):
            return
        try:
            self.origin = vectors.gather(self.file, said, folder)
        except vectors.NoneKnown as error:  # costs the words alone
            self.unknown = f"E_SHORT: {error}"
            if self.file == WORDS:  # of the models that come along
                self.unknown = "E_SHORT: none of the words is English that the models know"
            return
        if "vectors" not in self.settings:
            print(
                "the checkpoint was trained on vectors from .npz files: nothing tells whether "
                f"{self.file} is where these are from",
                file=sys.stderr,
            )
        if self.settings.get("vectors", self.origin) != self.origin:
            raise IntegrityError(
                f"{self.file} ({self.origin}) is not the file of word vectors that the "
                f"checkpoint was trained with ({self.settings['vectors']})"
            )
        width = len(next(iter(vectors.open_store(folder).values())))
        if width != self.width:
            wide = f"its vectors have {width} values, the checkpoint reads {self.width}"
            raise UsageError(f"--word_vectors {self.file}: {wide}")

    def made_of(self, clip: Clip) -> dict[str, Any]:
        """{feature: settings} for words of this clip that are looked up now."""
        if clip.words:
            return {}
        settings = self.settings | {"vectors": self.origin, "rule": words.RULE}
        return {modality(name).folder: settings for name in self.names}

    def why_not(self, clip: Clip, problem: str, none: str) -> dict[str, str]:
        """{modality: reason} where the words of a clip cannot be used: `problem`, or `none` for a
        clip without any."""
        by_file = "vectors" not in self.settings  # else they are looked up, always
        if problem or (clip.transcript and self.unknown):
            why = problem or self.unknown
        elif (clip.words and by_file) or (clip.transcript and self.origin):
            return {}
        elif clip.transcript:
            why = "E_MISSING: the words need --word_vectors FILE to be looked up in"
        else:
            why = f"E_MISSING: {none}"
        return dict.fromkeys(self.names, why)


def word_width(members: list[Member], names: list[str]) -> int | None:
    """Values of the vector of a word; None where no member reads `names`."""
    arches = [member.checkpoint["arch"]["encoders"] for member in members]
    widths = [arch[name]["dim"] for arch in arches for name in names if name in arch]
    return max(widths, default=None)
