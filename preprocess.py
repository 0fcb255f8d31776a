"""Raw clips -> features/: log-mels, face crops and word vectors, a manifest and a list of failures.

    python preprocess.py                                    # MERC2020 under the current folder
    python preprocess.py --corpus csv --data_dir my_clips   # your own clips, listed in manifest.csv

Prints how many clips are usable, why the others are not, and what splits or folds share. A second
run does only what is missing or has changed. Formats: features/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from corpora import CORPORA, list_corpus
from corpora.manifest import Listing, colliding_names, keep_classes, similar_speakers
from extract import RANGES
from utils.config import Flags, device_name, ranged
from utils.errors import (
    CLIP_CODES,
    IntegrityError,
    UsageError,
    counted,
    listed,
    run_script,
    without_controls,
)
from utils.files import lock_folder, record_path
from utils.guard import CLIP_MB
from utils.parallel import BACKENDS, available_cores, connect
from utils.scratch import delete_all

SHOWN = 20  # rejected clips that are named
FACE_FLAGS = ("face_fps", "face_size", "face_align")
CALLED = {"voice": "speech", "audio": "speech", "face": "video", "words": "text"}  # by people
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
    keep = "keep clips that lack a sound, a face or words, with what they have"
    add("--partial", action="store_true", help=keep)
    fps, size = ranged(float, *RANGES["face_fps"]), ranged(int, *RANGES["face_size"])
    add("--face_fps", default=10.0, type=fps, help="face crops per second")
    add("--face_size", default=160, type=size, help="pixels, side of a face crop")
    margin = "around a face, in its longer side; 0 as in FER2013"
    add("--face_margin", default=0.1, type=ranged(float, *RANGES["margin"]), help=margin)
    add("--face_align", action="store_true", help="turn crops upright by eyes, nose and mouth")
    cropped = "still pictures are faces already: look for none in them"
    add("--face_cropped", action="store_true", help=cropped)
    add("--video_embedding", action="store_true", help="also a FaceNet vector per face crop")
    encoder = "a pretrained encoder's features, as often as wanted: docs/encoders.md"
    form = "NAME=INPUT:LIBRARY:SOURCE"
    add("--encoder", action="append", default=[], metavar=form, help=encoder)
    transcribe = "recognise the words of clips without a transcript: docs/encoders.md"
    add("--transcribe", metavar="faster-whisper:MODEL", help=transcribe)
    add("--device", default="auto", help="auto, cpu, cuda: of face detection and encoders")
    deadline = "deadline for each modality of a clip, and as much again per 10 MB of its file"
    add("--clip_seconds", default=60.0, type=ranged(float, 0.1, 1e6), help=deadline)
    memory = ranged(int, 0, 1 << 24)
    add("--memory_mb", default=CLIP_MB, type=memory, help="limit of each worker; 0: no limit")
    add("--follow_links", action="store_true", help="also clips that links bring from elsewhere")
    add("--retry_failed", action="store_true", help="try the clips of failed.csv again")
    add("--verify", action="store_true", help="read all clips and features, make what changed anew")
    return flags.parse_args()


def main() -> int:
    args = parse_args()
    if args.data_dir.is_file():
        raise UsageError(f"--data_dir {args.data_dir} is a file: give the folder it lies in")
    if args.features_dir.resolve() == args.data_dir.resolve():
        raise UsageError(f"--features_dir {args.features_dir} is the folder of the clips itself")
    if args.word_vectors and args.word_vectors.resolve().parent == args.features_dir.resolve():
        what = "lies in the features, where the words of the corpus are kept"
        raise UsageError(f"--word_vectors {args.word_vectors} {what}: put the file elsewhere")
    manifest = args.features_dir / "manifest.csv"
    if manifest.exists() and not (args.features_dir / "settings.json").exists():
        raise UsageError(f"{manifest} would be written over, and is none of preprocess.py")
    listing = list_corpus(args.corpus, args.data_dir, args.follow_links)
    if not listing.clips and not listing.failures:
        raise UsageError(f"no clips found under {args.data_dir.resolve()}")
    if args.classes:
        listing = keep_classes(listing, args.classes)
    if args.face_cropped and args.face_align:
        what = "takes the pictures as they are, and --face_align turns the faces in them"
        raise UsageError(f"--face_cropped {what}: give one of the two")
    if args.face_cropped:
        listing.clips = [cropped(clip) for clip in listing.clips]
    args.encoder = parsed_encoders(args.encoder)
    args.modalities = chosen_modalities(args, listing)
    if args.word_vectors:  # words are looked up, so word vectors beside the clips are not read
        listing.clips = [replace(clip, words=None) for clip in listing.clips]
    print(*describe(args, listing), sep="\n", file=sys.stderr)
    connect(args.backend, args.scheduler)
    # Below here files are written; nobody else may, and no training may read.
    with lock_folder(args.features_dir):
        end_at_signals()
        load_ahead(args, listing)
        return process(args, listing)


def process(args: argparse.Namespace, listing: Listing) -> int:
    """Make the features and their tables, and say what became of the clips; the exit code."""
    from extract.corpus import make_features
    from extract.tables import write_settings, write_tables
    from extract.words import common_width

    job = job_of(args)
    # Words first: they decide which vectors are looked up, and what encoders of words read.
    said = transcribe_clips(args, listing, job) if args.transcribe else {}
    job = replace(
        job,
        settings=settings_of(args, listing, job.device),
        word_dim=listing.word_dim or common_width(clip.words for clip in listing.clips),
    )
    # before any feature: a run that is killed leaves no manifest that offers old and new ones
    write_settings(args.corpus, listing, job)
    for name in ("pandas", "corpora.audit"):  # while the workers' libraries are loaded
        import_module(name)
    records, changed = make_features(listing.clips, job, args.workers, args.backend)
    rows, failures = write_tables(listing, records, said, job, args.data_dir)
    report(args, failures, [row.get("missing", "") for row in rows])
    if args.verify:
        good = sum(not record["failure"] for record in records.values())
        print(verified(args.features_dir, good, changed))
    if rows:
        audit(args.features_dir)
    return REJECTED if failures else 0


def cropped(clip: Any) -> Any:
    from extract.media import PICTURES

    if clip.media.suffix.lower() not in PICTURES:
        what = "is for still pictures that show a face and nothing else"
        raise UsageError(f"--face_cropped {what}: {clip.media} is none")
    return replace(clip, cropped=True)


def load_ahead(args: argparse.Namespace, listing: Listing) -> None:
    """Have the libraries of the workers loaded from now on, where there is a clip to work on."""
    from extract.clip import libraries_of
    from utils.guard import begin_loading

    places = (record_path(args.features_dir, each.split, each.clip_id) for each in listing.clips)
    # a run that has nothing to do shall end at once
    if args.backend == "loky" and not all(place.exists() for place in places):
        begin_loading(libraries_of(args.modalities))


def end_at_signals() -> None:
    """SIGTERM and Ctrl-C end the run at once; the workers see it and remove what they write."""

    def end(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        with contextlib.suppress(RuntimeError):  # it could be in the middle of a print
            sys.stdout.flush()
        os.write(2, f"\npreprocess.py: ended by {name}; the same command goes on\n".encode())
        delete_all()
        os._exit(128 + number)  # an exception would wait for the clips at hand

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def parsed_encoders(given: list[str]) -> dict[str, dict]:
    """{name: settings} of --encoder."""
    from extract import encoders, transcribe
    from extract.clip import STAGES

    return encoders.parse_all(given, {*STAGES, *encoders.INPUTS, "records", transcribe.FOLDER})


def chosen_modalities(args: argparse.Namespace, listing: Listing) -> tuple[str, ...]:
    """Every clip must provide all of these; a clip that lacks one is rejected with its reason."""
    from extract.clip import STAGES

    reads = [settings["reads"] for settings in args.encoder.values()]
    has_vectors = bool(args.word_vectors or any(clip.words for clip in listing.clips))
    wanted = named(args.modalities) if args.modalities else provided(args, listing)
    # an encoder of words needs no word vectors; one of anything lets a corpus do without them
    if not has_vectors and ("transcript" in reads or (reads and not args.modalities)):
        wanted = [name for name in wanted if name != "text"]
    if not (wanted or reads):
        raise UsageError("nothing is made of these clips: give --modalities or --encoder")
    check_chosen(args, listing, wanted, has_vectors)
    if args.video_embedding:
        wanted.append("video_embedding")
    # what an encoder reads, such as the wave, is made by a stage of ours
    wanted += [stage for stage in reads if stage in STAGES]
    return tuple(dict.fromkeys(wanted))


def named(typed: str) -> list[str]:
    """What --modalities names. A stage that reads the files of another one has its own flag."""
    from extract.clip import STAGES

    names = [name.strip().lower() for name in typed.split(",")]
    wanted = [CALLED.get(name, name) for name in names]
    known = [name for name, stage in STAGES.items() if not stage.needs]
    if not set(wanted).issubset(known):
        expected = ",".join(known)
        raise UsageError(f"--modalities {typed}: expected {expected} or some of it")
    return wanted


def provided(args: argparse.Namespace, listing: Listing) -> list[str]:
    """What the corpus provides, but not the face of sounds alone or the voice of pictures alone."""
    from extract.media import PICTURES, SOUNDS

    endings = {clip.media.suffix.lower() for clip in listing.clips}
    wanted = [*listing.modalities]
    if endings and endings <= SOUNDS:
        wanted = [name for name in wanted if name != "video"]
    elif endings and endings <= {*PICTURES}:
        wanted = [name for name in wanted if name != "speech"]
    if args.word_vectors and "text" not in wanted:
        wanted.append("text")
    return wanted


def check_chosen(
    args: argparse.Namespace, listing: Listing, wanted: list[str], has_vectors: bool
) -> None:
    """UsageError where nothing makes what an encoder or FaceNet sees, and where word vectors are of
    no use, or are lacking. Without a usable clip nothing is known of their words."""
    from extract.clip import STAGES

    clips = listing.clips
    spoken = not clips or any(args.transcribe or clip.transcript for clip in clips)
    for name, settings in args.encoder.items():
        reads = settings["reads"]
        if reads == "transcript" and not spoken:
            raise UsageError(f"--encoder {name}: no clip of {args.corpus} has a transcript")
        needed = (STAGES[reads].needs or (reads,)) if reads in STAGES else ()
        if not set(needed).issubset(wanted):
            what = f"--encoder {name} reads the {settings['input']}, which needs {','.join(needed)}"
            raise UsageError(f"{what} in --modalities {','.join(wanted)}")
    if args.word_vectors and "text" not in wanted:
        what = f"which --modalities {args.modalities} leaves out: add it there"
        raise UsageError(f"--word_vectors is for text, {what}")
    if args.word_vectors and not spoken:
        raise UsageError(f"--word_vectors: no clip of {args.corpus} has a transcript")
    if "text" in wanted and clips and not has_vectors:
        raise UsageError(f"the text of {args.corpus} needs --word_vectors FILE, see --help")
    if args.video_embedding and "video" not in wanted:
        raise UsageError("--video_embedding needs the modality video")


def describe(args: argparse.Namespace, listing: Listing) -> list[str]:
    """Lines about what is found, what is left out, and what may be meant otherwise."""
    from extract.unlisted import not_listed

    splits = Counter(clip.split for clip in listing.clips)
    counts = ", ".join(f"{split} {count}" for split, count in sorted(splits.items()))
    counts = f" ({counts})" if counts else ""  # where every clip is rejected
    total = len(listing.clips) + len(listing.failures)
    made = ", ".join([*args.modalities, *args.encoder])
    where = f"in {args.features_dir}, {counted(args.workers, 'worker')}"
    lines = [f"{args.corpus}: {counted(total, 'clip')}{counts} -> {made} {where}"]
    unlisted = not_listed(args.corpus, args.data_dir, listing)
    lines += [f"left out: {note}" for note in [*listing.notes, *unlisted]]
    lines += [f"warning: {each}" for each in listing.warnings]
    used = ["text" in args.modalities, *(e["input"] == "text" for e in args.encoder.values())]
    if not any(used) and any(clip.transcript for clip in listing.clips):
        lines.append("transcripts are not used: --word_vectors FILE makes text of them")
    return lines + colliding_names(listing.clips) + similar_speakers(listing.clips)


def job_of(args: argparse.Namespace) -> Any:
    """What is wanted of every clip, as far as the flags say it."""
    from extract.clip import Job

    return Job(
        features_dir=args.features_dir,
        modalities=(*args.modalities, *args.encoder),
        settings={},
        # auto is asked by the workers: here it would load torch, which takes seconds
        device=args.device if args.device in ("auto", "cpu") else device_name(args.device),
        threads=max(1, available_cores() // args.workers),
        retry_failed=args.retry_failed,
        partial=args.partial,
        verify=args.verify,
        clip_seconds=args.clip_seconds,
        memory_mb=args.memory_mb,
    )


def settings_of(args: argparse.Namespace, listing: Listing, device: str) -> dict[str, dict]:
    """Of every stage. Weights and word vectors that are not there are known here, before any work
    on clips."""
    from extract import encoders
    from extract.clip import SETTINGS
    from extract.corpus import earlier_encoders
    from extract.faces import WEIGHTS_SHA256, embedder

    settings = {name: dict(each) for name, each in SETTINGS.items()}
    if args.video_embedding:
        embedder(device_name(device))
        settings["video_embedding"]["sha256"] = WEIGHTS_SHA256
    settings["video"] |= {name: getattr(args, name) for name in FACE_FLAGS}
    settings["video"]["margin"] = args.face_margin
    # of an encoder that is not asked for now the files stay, for a later run that asks
    settings |= earlier_encoders(args.features_dir)
    if any(given["library"] == "run" for given in args.encoder.values()):
        from inference import frozen  # it takes seconds to load, and few runs need it

        frozen.register()
    for name, given in args.encoder.items():
        settings[name] = encoders.known(given, device_name(device))
        if len(args.encoder) > 1:
            encoders.load.cache_clear()  # the memory holds one at a time
    if args.word_vectors and "text" in args.modalities and listing.clips:
        settings["text"] |= looked_up(args, listing)
    return settings


def transcribe_clips(args: argparse.Namespace, listing: Listing, job: Any) -> dict:
    """Give the clips of `listing` that have no transcript the words of their sound; what is said by
    split and id."""
    from extract import transcribe
    from extract.corpus import recognise_words

    said, unheard = recognise_words(listing.clips, job, transcribe.parse(args.transcribe))
    for place, clip in enumerate(listing.clips):
        if heard := said.get((clip.split, clip.clip_id)):
            listing.clips[place] = replace(clip, transcript=heard.transcript)
    languages = Counter(each.language for each in said.values() if each.cues)
    counts = ", ".join(f"{name} {count}" for name, count in languages.most_common())
    number = counted(len(said), "clip")
    print(f"transcribed {number} ({counts or 'no words'}), {args.transcribe}")
    if unheard:
        reasons = ", ".join(f"{count} {CLIP_CODES[code]}" for code, count in unheard.most_common())
        what = f"{counted(unheard.total(), 'clip')} without recognised words ({reasons})"
        print(f"warning: {what}: the next run tries again", file=sys.stderr)
    return said


def looked_up(args: argparse.Namespace, listing: Listing) -> dict:
    """Where the words are looked up, for the settings of text; prints how many are known."""
    from extract import vectors, words

    said = [clip.transcript for clip in listing.clips]
    origin = vectors.gather(args.word_vectors, said, args.features_dir, args.verify)
    print(words.coverage(said, vectors.open_store(args.features_dir)))
    return {"vectors": origin, "rule": words.RULE}


LACKS = {"speech": "sound", "video": "a face", "text": "words"}  # stage -> what there is none of


def report(args: argparse.Namespace, failures: list, missing: list[str]) -> None:
    """What became of the clips; `missing`: of each usable one, what --partial keeps it without."""
    from extract.clip import LACKING

    usable = len(missing)
    for failure in failures[:SHOWN]:
        line = f"rejected {failure.clip_id}: {failure.code}: {failure.reason}"
        print(without_controls(line).replace("\n", "?"), file=sys.stderr)
    if len(failures) > SHOWN:
        print(f"... and {len(failures) - SHOWN} more", file=sys.stderr)
    free = shutil.disk_usage(args.features_dir).free >> 30
    total = usable + len(failures)
    print(f"{usable} of {counted(total, 'clip')} usable, {free} GiB free in {args.features_dir}")
    if any(missing):
        lacking = Counter(name for names in missing for name in names.split())
        counts = ", ".join(f"{count} without {name}" for name, count in lacking.items())
        parts = sum(map(bool, missing))
        print(f"{parts} of them {'has' if parts == 1 else 'have'} a part only ({counts})")
    if failures:
        kinds = Counter(failure.code for failure in failures)
        reasons = ", ".join(f"{count} {CLIP_CODES[code]}" for code, count in kinds.most_common())
        print(f"{len(failures)} rejected ({reasons}): see {args.features_dir / 'failed.csv'}")
        lost = {LACKS[each.stage] for each in failures if each.code in LACKING.get(each.stage, ())}
        if lost and not args.partial:
            without = " or ".join(sorted(lost))
            print(f"clips without {without} can still be used: --partial keeps what they have")


def verified(features_dir: Path, clips: int, changed: list[Path]) -> str:
    """What --verify found."""
    if not changed:
        return f"verified: the features of {counted(clips, 'clip')} are as they were written"
    names = listed(ascii(str(path.relative_to(features_dir))) for path in sorted(changed))
    if len(changed) == 1:
        return f"verified: 1 file was missing or changed, and is made anew: {names}"
    return f"verified: {len(changed)} files were missing or changed, and are made anew: {names}"


def audit(features_dir: Path) -> None:
    """Make audit.json, which train.py reads; until it is there, train.py makes it."""
    from corpora.audit import LEAKS, load_audit

    try:
        result = load_audit(features_dir)
    except IntegrityError as error:
        print(f"warning: splits and folds were not compared: {error}", file=sys.stderr)
        return
    for line in result.lines(LEAKS, 5):
        print(f"warning: {line}", file=sys.stderr)
    print(f"audit: {result.summary()}")


if __name__ == "__main__":
    run_script(main)
