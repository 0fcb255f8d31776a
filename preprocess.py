"""Raw clips -> features/: log-mels, face crops and word vectors, a manifest and a list of failures.

    python preprocess.py                                    # MERC2020 under the current folder
    python preprocess.py --corpus csv --data_dir my_clips   # your own clips, listed in manifest.csv

Prints how many clips are usable and why the others are not. A second run does only what is missing
or has changed. Formats: features/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import unicodedata
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from corpora import CORPORA, list_corpus
from corpora.manifest import LABELLED_SPLITS, keep_classes
from utils.config import Flags, device_name, ranged
from utils.errors import CLIP_CODES, ClipError, UsageError, run_script
from utils.files import digest, lock_folder, read_known, write_bytes, write_csv, write_json
from utils.parallel import BACKENDS, available_cores, connect, parallel_map

ODD = ("train", "training", "val", "valid", "validation", "dev")  # what train and val are called
ASKED = 200  # readable .npz files: a majority of all shows in them
REJECTED = 3  # exit code: finished, but some clips were rejected


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("--corpus", default="merc2020", choices=CORPORA, help="which corpus the clips are from")
    add("--data_dir", default=Path(), type=Path, help="folder of the raw clips")
    add("--features_dir", default=Path("features"), type=Path, help="where the features go")
    add("--classes", help="only these, in this order: hap,sad,neu+cal counts cal as neu")
    add("--modalities", help="comma list of speech,video,text; default: what the corpus provides")
    add("--word_vectors", type=Path, help="word2vec, GloVe or .npz: for the words of transcripts")
    add("--workers", default=available_cores(), type=ranged(int, 1), help="clips worked on at once")
    add("--backend", default="loky", choices=BACKENDS, help="loky: this machine; else a cluster")
    add("--scheduler", help="address of the dask or ray cluster; default: start one here")
    add(
        "--face_fps",
        default=10.0,
        type=ranged(float, 0.1, 240),
        help="face crops per second of speech",
    )
    add(
        "--face_size", default=160, type=ranged(int, 16, 1024), help="side of a face crop in pixels"
    )
    add("--face_align", action="store_true", help="turn crops upright by eyes, nose and mouth")
    add("--video_embedding", action="store_true", help="also a FaceNet vector per face crop")
    add("--device", default="auto", help="auto, cpu, cuda: where faces are detected")
    add(
        "--clip_seconds",
        default=60.0,
        type=ranged(float, 0.1, 1e6),
        help="deadline for each modality of a clip, and as much again per 10 MB of its file",
    )
    limit = ranged(int, 0, 1 << 24)
    add("--memory_mb", default=2048, type=limit, help="limit of each worker; 0: no limit")
    add("--follow_links", action="store_true", help="also clips that links bring from elsewhere")
    add("--retry_failed", action="store_true", help="try the clips of failed.csv again")
    add("--verify", action="store_true", help="read all clips and features, make what changed anew")
    return flags.parse_args()


def main() -> int:
    args = parse_args()
    if args.features_dir.resolve() == args.data_dir.resolve():
        raise UsageError(f"--features_dir {args.features_dir} is the folder of the clips itself")
    listing = list_corpus(args.corpus, args.data_dir, args.follow_links)
    if not listing.clips and not listing.failures:
        raise UsageError(f"no clips found under {args.data_dir.resolve()}")
    if args.classes:
        listing = keep_classes(listing, args.classes)
    modalities = chosen_modalities(args, listing)
    print(describe(args, listing, modalities), file=sys.stderr)
    connect(args.backend, args.scheduler)
    with lock_folder(args.features_dir):
        end_at_signals()
        outcomes = extract(args, listing, modalities)
        rejected = write_tables(args, listing, outcomes)
        for names in same_recordings(outcomes)[:5]:
            print(
                f"warning: one recording, byte for byte: {names}; see corpora.audit",
                file=sys.stderr,
            )
        if args.verify:
            print(verified(args.features_dir, outcomes))
    return REJECTED if rejected else 0


def end_at_signals() -> None:
    """SIGTERM and Ctrl-C end the run at once; the workers see it and remove what they write."""

    def end(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        with contextlib.suppress(RuntimeError):  # it could be in the middle of a print
            sys.stdout.flush()
        os.write(2, f"\npreprocess.py: ended by {name}; the same command goes on\n".encode())
        os._exit(128 + number)  # an exception would wait for the clips at hand

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def chosen_modalities(args: argparse.Namespace, listing) -> tuple[str, ...]:
    """Every clip must provide all of these; a clip that lacks one is rejected with its reason."""
    from extract.clip import STAGES

    words = ("text",) * bool(args.word_vectors and "text" not in listing.modalities)
    given = tuple(name.strip() for name in (args.modalities or "").split(","))
    wanted = given if args.modalities else listing.modalities + words
    known = [name for name in STAGES if name != "video_embedding"]  # it has a flag of its own
    if not wanted or not set(wanted).issubset(known):
        raise UsageError(
            f"--modalities {args.modalities}: expected {','.join(known)} or some of it"
        )
    if args.video_embedding and "video" not in wanted:
        raise UsageError("--video_embedding needs the modality video")
    if "text" in wanted and args.word_vectors:
        if not any(clip.transcript for clip in listing.clips):
            raise UsageError(f"--word_vectors: no clip of {args.corpus} has a transcript")
        # the transcripts are looked up, then; word vectors beside the clips are not read
        listing.clips = [replace(clip, words=None) for clip in listing.clips]
    elif "text" in wanted and listing.clips and not any(clip.words for clip in listing.clips):
        raise UsageError(f"the text of {args.corpus} needs --word_vectors FILE, see --help")
    return wanted + ("video_embedding",) * args.video_embedding


def describe(args: argparse.Namespace, listing, modalities: tuple[str, ...]) -> str:
    splits = Counter(clip.split for clip in listing.clips)
    counts = ", ".join(f"{split} {count}" for split, count in sorted(splits.items()))
    total = len(listing.clips) + len(listing.failures)
    first = (
        f"{args.corpus}: {total} clips ({counts}) -> {', '.join(modalities)} "
        f"in {args.features_dir}, {args.workers} workers"
    )
    left_out = [f"left out: {note}" for note in listing.notes]
    if "text" not in modalities and any(clip.transcript for clip in listing.clips):
        left_out.append("transcripts are not used: --word_vectors FILE makes text of them")
    if odd := {name for name in splits if name.lower() in ODD and name not in LABELLED_SPLITS}:
        left_out.append(f"warning: train.py takes the splits train and val, not {', '.join(odd)}")
    return "\n".join([first, *left_out, *twins(listing.clips)])


def twins(clips: list) -> list[str]:
    """A warning for each group of ids that other systems take for the same file name."""
    groups = defaultdict(list)
    for clip in clips:
        groups[clip.split, unicodedata.normalize("NFC", clip.clip_id).casefold()].append(clip)
    return [
        f"warning: clips {', '.join(ascii(clip.clip_id) for clip in group)} have names that are "
        "one file where capitals or Unicode forms do not count: do not copy features/ there"
        for group in groups.values()
        if len(group) > 1
    ]


def extract(args: argparse.Namespace, listing, modalities: tuple[str, ...]) -> dict:
    """(failure, facts, changed files, sha256 of the recording) of all clips by (split, id)."""
    from tqdm import tqdm

    from extract.clip import SETTINGS, Job
    from extract.faces import embedder

    device = args.device if args.device in ("auto", "cpu") else device_name(args.device)
    if args.video_embedding:
        embedder(device_name(device))  # missing weights are known before any work
    given = {name: getattr(args, name) for name in ("face_fps", "face_size", "face_align")}
    job = Job(
        features_dir=args.features_dir,
        modalities=modalities,
        settings=SETTINGS
        | {"video": SETTINGS["video"] | given}
        | word_settings(args, listing, modalities),
        word_dim=listing.word_dim or common_width(listing),
        device=device,
        threads=max(1, available_cores() // args.workers),
        retry_failed=args.retry_failed,
        verify=args.verify,
        clip_seconds=args.clip_seconds,
        memory_mb=args.memory_mb,
    )
    begin_tree(args.features_dir, settings_of(args, listing, job))
    work = [(clip, job) for clip in listing.clips]
    results = parallel_map(work_on, work, max(1, min(args.workers, len(work))), args.backend)
    progress = tqdm(results, "loading libraries", len(work), unit="clip", smoothing=0.05)
    outcomes = {}
    for name, outcome in progress:
        progress.set_description("extracting", refresh=False)
        outcomes[name] = outcome
    return outcomes


def begin_tree(features_dir: Path, settings: dict) -> None:
    """Write the settings; where they change the manifest goes: features of both kinds lie there.

    It comes back when all clips are done, so nobody trains on a mixture.
    """
    path = features_dir / "settings.json"
    before = read_known(path)
    if before != settings:
        (features_dir / "manifest.csv").unlink(missing_ok=True)
        for name in ("corpus", "classes", "modalities"):
            then, now = before.get(name), settings[name]
            if then not in (None, now):
                print(f"{features_dir} had {name} {then}, it gets {now}", file=sys.stderr)
    write_json(path, settings)


def word_settings(args: argparse.Namespace, listing, modalities: tuple[str, ...]) -> dict:
    """The text stage's settings where words are looked up; prints how many are known."""
    if not args.word_vectors or "text" not in modalities:
        return {}
    from extract import vectors, words

    said = [clip.transcript for clip in listing.clips]
    origin = vectors.gather(args.word_vectors, said, args.features_dir, args.verify)
    print(words.coverage(said, vectors.open_store(args.features_dir)))
    return {"text": words.TEXT_SETTINGS | {"vectors": origin, "rule": words.RULE}}


def common_width(listing) -> int | None:
    """Values per word in most .npz files, by up to 200 of them: two widths train nothing."""
    from extract.words import read_words

    paths = [clip.words for clip in listing.clips if clip.words]
    widths: Counter = Counter()
    for path in sorted(paths, key=lambda path: digest(path.name)):  # as good as drawn
        with contextlib.suppress(ClipError):  # the clip's own process says it
            widths[read_words(path, None).shape[1]] += 1
        if widths.total() == ASKED:
            break
    return next((width for width, _ in widths.most_common(1)), None)


def work_on(item: tuple) -> tuple[tuple[str, str], tuple[dict | None, dict, list[Path], str]]:
    from extract.clip import facts_of, process_clip, remove_changed

    clip, job = item
    changed = remove_changed(clip, job) if job.verify else []
    record = process_clip(clip, job)
    facts = facts_of(record, job.modalities)
    made = (record["stages"].get(name, {}) for name in ("speech", "video"))
    recording = next((each["source_sha256"] for each in made if each), "")
    return (clip.split, clip.clip_id), (record["failure"], facts, changed, recording)


def settings_of(args: argparse.Namespace, listing, job) -> dict:
    """What makes these features what they are; checkpoints carry it and check it."""
    from importlib.metadata import version

    from extract.clip import SCHEMA

    libraries = ("numpy", "librosa", "av", "facenet-pytorch", "opencv-python-headless", "scipy")
    return {
        "schema": SCHEMA,
        "corpus": args.corpus,
        "classes": list(listing.classes),
        "modalities": list(job.modalities),
        "features": {name: job.settings[name] for name in job.modalities},
        "versions": {library: version(library) for library in libraries},
    }


def write_tables(args: argparse.Namespace, listing, outcomes: dict) -> int:
    """Write manifest.csv, failed.csv and the sheets; report; return how many were rejected."""
    import pandas as pd

    from corpora.manifest import Failure, relative
    from extract.clip import MANIFEST_COLUMNS, manifest_row

    failures, rows = list(listing.failures), []
    for clip in listing.clips:
        failure, facts, *_ = outcomes[clip.split, clip.clip_id]
        if failure:
            why = (failure["stage"], failure["code"], failure["reason"])
            failures.append(Failure(clip.clip_id, clip.media, *why))
        else:
            rows.append(manifest_row(clip, facts, args.data_dir))
    columns = ["clip_id", "media", "stage", "code", "reason"]
    failures = [replace(each, media=relative(each.media, args.data_dir)) for each in failures]
    failures.sort(key=lambda failure: (str(failure.media), failure.clip_id))
    failed = pd.DataFrame(failures, columns=columns)
    write_csv(args.features_dir / "failed.csv", failed)
    manifest = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
    write_csv(args.features_dir / "manifest.csv", manifest)
    for sheet in listing.sheets:
        write_bytes(args.features_dir / sheet.name, sheet.read_bytes())
    report(args.features_dir, len(rows), failures)
    return len(failures)


def same_recordings(outcomes: dict) -> list[str]:
    """The names of clips that are made from equal files. All are kept: which of them make a score
    too good depends on the splits, and training asks."""
    groups = defaultdict(list)
    for (split, clip_id), (*_, recording) in sorted(outcomes.items()):
        groups[recording].append(f"{split}/{clip_id}")
    return [", ".join(group[:5]) for sha, group in groups.items() if sha and len(group) > 1]


def verified(features_dir: Path, outcomes: dict) -> str:
    changed = sorted(path for _, _, paths, _ in outcomes.values() for path in paths)
    if not changed:
        return f"verified: the features of {len(outcomes)} clips are as they were written"
    names = [ascii(str(path.relative_to(features_dir))) for path in changed[:5]]
    listed = ", ".join(names) + ", ..." * (len(changed) > 5)
    return f"verified: {len(changed)} files were missing or changed, and are made anew: {listed}"


LACKS = {"E_NOAUDIO": "sound", "E_SILENT": "sound", "E_NOFACE": "a face", "E_NOVIDEO": "a face"}


def report(features_dir: Path, usable: int, failures: list) -> None:
    for failure in failures[:20]:
        line = f"rejected {failure.clip_id}: {failure.code}: {failure.reason}"
        print("".join(each if each.isprintable() else "?" for each in line), file=sys.stderr)
    if len(failures) > 20:
        print(f"... and {len(failures) - 20} more", file=sys.stderr)
    free = shutil.disk_usage(features_dir).free >> 30
    print(f"{usable} of {usable + len(failures)} clips usable, {free} GiB free in {features_dir}")
    if failures:
        kinds = Counter(failure.code for failure in failures)
        listed = ", ".join(f"{count} {CLIP_CODES[code]}" for code, count in kinds.most_common())
        print(f"{len(failures)} rejected ({listed}): see {features_dir / 'failed.csv'}")
        if lost := {LACKS[code] for code in kinds if code in LACKS}:
            print(f"clips without {' or '.join(sorted(lost))} can still be used: --modalities")


if __name__ == "__main__":
    run_script(main)
