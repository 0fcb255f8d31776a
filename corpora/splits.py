"""Clips with speakers -> folds: speaker-disjoint, class-balanced, the same on every machine.

The rule, for corpora without published folds: speakers stand in the order of a hash of their
name, and each has the folds in an order of preference, a hash of its name and the fold. In that
order each takes the first fold that has room for all its clips of every class; room is 1.1 times
the even share. Where no fold has room, it takes the one that overflows least. So the order of a
listing means nothing, and one more speaker moves few others (hashing with bounded loads, arXiv
1608.01350).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

from corpora.manifest import LABELLED_SPLITS, Clip
from utils.files import digest

SLACK = 1.1  # nearer to 1: more even folds; larger: fewer speakers move when one is added


def assign_folds(clips: list[Clip], folds: int = 5) -> list[Clip]:
    """The clips, those of train and val with a fold "0", "1"...

    Unchanged when one of these has no known speaker, or when there are fewer than two speakers.
    """
    labels: dict[str, Counter] = defaultdict(Counter)
    for clip in clips:
        if clip.split in LABELLED_SPLITS:
            labels[clip.speaker][clip.emotion] += 1
    if "" in labels or len(labels) < 2:
        return clips
    fold_of = speaker_folds(labels, min(folds, len(labels)))
    return [
        replace(clip, fold=str(fold_of[clip.speaker])) if clip.split in LABELLED_SPLITS else clip
        for clip in clips
    ]


def speaker_folds(labels: dict[str, Counter], folds: int) -> dict[str, int]:
    """Speaker -> fold, from the number of clips of every class that each speaker has."""
    total = sum(labels.values(), Counter())
    room = {label: SLACK * count / folds for label, count in total.items()}
    held: list[Counter] = [Counter() for _ in range(folds)]
    fold_of = {}
    for speaker in sorted(labels, key=digest):
        own, overflow = labels[speaker], {}
        for _, fold in sorted((digest([speaker, fold]), fold) for fold in range(folds)):
            excess = [held[fold][label] + own[label] - room[label] for label in own]
            overflow[fold] = sum(max(0, each) for each in excess)
        fold_of[speaker] = min(overflow, key=overflow.__getitem__)  # of equals the preferred one
        held[fold_of[speaker]] += own
    return fold_of
