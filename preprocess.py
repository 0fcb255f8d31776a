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
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from corpora import CORPORA, list_corpus
from corpora.manifest import Listing, colliding_names, keep_classes, relative, similar_speakers
from extract import RANGES
from utils.config import Flags, device_name, ranged
from utils.errors import (
    CLIP_CODES,
    ClipError,
    IntegrityError,
    UsageError,
    counted,
    listed,
    run_script,
    without_controls,
)
from utils.files import (
    digest,
    lock_folder,
    read_known,
    record_path,
    write_bytes,
    write_csv,
    write_json,
)
from utils.guard import CLIP_MB
from utils.parallel import BACKENDS, available_cores, connect, parallel_map
from utils.scratch import delete_all

SAMPLE = 200  # readable .npz files: the width that most of all have shows in them
SHOWN = 20  # rejected clips that are named
# Endings of films, sounds and pictures that we do not read: a folder can hold such clips, too.
UNREAD = ".divx .xvid .vob .m1v .m2v .mpe .mpv .mxf .rm .rmvb .f4v .dv .ogm .qt .m2p .wtv .swf "
UNREAD += ".au .snd .ac3 .eac3 .dts .ra .ape .wv .tta .mp2 .mpa .mpc .spx .gsm .voc .w64 .sph "
UNREAD += ".aifc .m4b .3ga .awb .weba .shn .pcm"
UNREAD_PICTURES = ".gif .tif .tiff .heic .heif .avif .jp2 .jfif .pgm .ppm .tga"
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
    add(
        "--face_fps",
        default=10.0,
        type=ranged(float, *RANGES["face_fps"]),
        help="face crops per second",
    )
    add(
        "--face_size",
        default=160,
        type=ranged(int, *RANGES["face_size"]),
        help="pixels, side of a face crop",
    )
    margin = "around a face, in its longer side; 0 as in FER2013"
    add("--face_margin", default=0.1, type=ranged(float, *RANGES["margin"]), help=margin)
    add("--face_align", action="store_true", help="turn crops upright by eyes, nose and mouth")
    cropped = "still pictures are faces already: look for none in them"
    add("--face_cropped", action="store_true", help=cropped)
    add("--video_embedding", action="store_true", help="also a FaceNet vector per face crop")
    add(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=INPUT:LIBRARY:SOURCE",
        help="a pretrained encoder's features, as often as wanted: docs/encoders.md",
    )
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
    with lock_folder(args.features_dir):
        end_at_signals()
        load_ahead(args, listing)
        args.said = transcribe_clips(args, listing) if args.transcribe else {}
        records, changed = extract(args, listing)
        usable, rejected = write_tables(args, listing, records)
        if args.verify:
            good = sum(not record["failure"] for record in records.values())
            print(verified(args.features_dir, good, changed))
        if usable:
            audit(args.features_dir)
    return REJECTED if rejected else 0


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
    seen = {each["input"] for each in args.encoder.values()}
    with_vectors = args.word_vectors or any(clip.words for clip in listing.clips)
    has_clips = bool(listing.clips)
    spoken = not has_clips or any(args.transcribe or each.transcript for each in listing.clips)
    wanted = asked_for(args) or usual(args, listing)
    # an encoder of words needs no word vectors; one of anything lets a corpus do without them
    if not with_vectors and ("text" in seen or (seen and not args.modalities)):
        wanted = [name for name in wanted if name != "text"]
    if not (wanted or seen):
        raise UsageError("nothing is made of these clips: give --modalities or --encoder")
    check_encoder_inputs(args, wanted, spoken)
    check_words(args, wanted, spoken, bool(with_vectors) or not has_clips)
    if args.video_embedding:
        if "video" not in wanted:
            raise UsageError("--video_embedding needs the modality video")
        wanted.append("video_embedding")
    if "speech" in seen:
        wanted.append("wave")
    return tuple(dict.fromkeys(wanted))


def asked_for(args: argparse.Namespace) -> list[str]:
    """What --modalities names."""
    from extract.clip import STAGES

    given = [name.strip().lower() for name in (args.modalities or "").split(",")]
    wanted = [CALLED.get(name, name) for name in given if args.modalities]
    known = [name for name in STAGES if name not in ("video_embedding", "wave")]  # of other flags
    if not set(wanted).issubset(known):
        names = ",".join(known)
        raise UsageError(f"--modalities {args.modalities}: expected {names} or some of it")
    return wanted


def usual(args: argparse.Namespace, listing: Listing) -> list[str]:
    """What the corpus provides."""
    wanted = [name for name in listing.modalities if name not in never_there(listing)]
    return [*wanted, "text"] if args.word_vectors and "text" not in wanted else wanted


def check_words(
    args: argparse.Namespace, wanted: list[str], spoken: bool, has_vectors: bool
) -> None:
    """UsageError where word vectors are of no use, or are lacking."""
    if args.word_vectors and "text" not in wanted:
        what = f"which --modalities {args.modalities} leaves out: add it there"
        raise UsageError(f"--word_vectors is for text, {what}")
    if args.word_vectors and not spoken:
        raise UsageError(f"--word_vectors: no clip of {args.corpus} has a transcript")
    if "text" in wanted and not has_vectors:
        raise UsageError(f"the text of {args.corpus} needs --word_vectors FILE, see --help")


def never_there(listing: Listing) -> set[str]:
    """What no clip can have, by the endings of all of them: a picture, a sound."""
    from extract.media import PICTURES, SOUNDS

    endings = {clip.media.suffix.lower() for clip in listing.clips}
    if not endings:
        return set()
    return {"video"} if endings <= SOUNDS else {"speech"} if endings <= {*PICTURES} else set()


def check_encoder_inputs(args: argparse.Namespace, wanted: list[str], spoken: bool) -> None:
    """UsageError where nothing makes what an encoder sees."""
    for name, settings in args.encoder.items():
        needed = {"speech": "speech", "face": "video"}.get(settings["input"])
        if needed and needed not in wanted:
            what = f"--encoder {name} reads the {settings['input']}"
            raise UsageError(f"{what}, which needs {needed} in --modalities {','.join(wanted)}")
        if not (needed or spoken):
            raise UsageError(f"--encoder {name}: no clip of {args.corpus} has a transcript")


def describe(args: argparse.Namespace, listing: Listing) -> list[str]:
    """Lines about what is found, what is left out, and what may be meant otherwise."""
    splits = Counter(clip.split for clip in listing.clips)
    counts = ", ".join(f"{split} {count}" for split, count in sorted(splits.items()))
    counts = f" ({counts})" if counts else ""  # where every clip is rejected
    total = len(listing.clips) + len(listing.failures)
    made = ", ".join([*args.modalities, *args.encoder])
    where = f"in {args.features_dir}, {counted(args.workers, 'worker')}"
    lines = [f"{args.corpus}: {counted(total, 'clip')}{counts} -> {made} {where}"]
    lines += [f"left out: {note}" for note in [*listing.notes, *not_listed(args, listing)]]
    lines += [f"warning: {each}" for each in listing.warnings]
    used = ["text" in args.modalities, *(e["input"] == "text" for e in args.encoder.values())]
    if not any(used) and any(clip.transcript for clip in listing.clips):
        lines.append("transcripts are not used: --word_vectors FILE makes text of them")
    return lines + colliding_names(listing.clips) + similar_speakers(listing.clips)


def not_listed(args: argparse.Namespace, listing: Listing) -> list[str]:
    """A line about the films and sounds of the folder that are no clip, no failure and in no note;
    where clips of it are pictures, about pictures, too."""
    from extract.media import FORMATS, PICTURES

    endings = {*FORMATS, *UNREAD.split()}
    if any(clip.media.suffix.lower() in PICTURES for clip in listing.clips):
        endings |= {*PICTURES, *UNREAD_PICTURES.split()}
    clips = [clip.media for clip in listing.clips]
    failed = [failure.media for failure in listing.failures]
    named = {path.absolute() for path in [*clips, *failed, *listing.noted]}
    folders = listing.folders or [args.data_dir]
    below = (file for folder in folders for file in shown_below(folder, tuple(endings)))
    others = sorted(file for file in below if file.absolute() not in named)
    if not others:
        return []
    what = "in no row of manifest.csv"
    if args.corpus != "csv":
        what = f"{counted(len(others), 'file')} of other names or kinds"
        others = [relative(file, args.data_dir) for file in others]
    return [without_controls(f"{what}: {listed(others, 2)}").replace("\n", "?")]


def shown_below(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """The files with these endings, without those that are hidden or in a hidden folder; of many
    thousands in a second."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        for name in files:
            if name[0] != "." and name.lower().endswith(endings):
                yield Path(place, name)


def extract(args: argparse.Namespace, listing: Listing) -> tuple[dict, list[Path]]:
    """The clips' records by split and id, and the files that --verify found changed."""
    from tqdm import tqdm

    from extract.clip import Job

    device = args.device if args.device in ("auto", "cpu") else device_name(args.device)
    job = Job(
        features_dir=args.features_dir,
        modalities=args.modalities,
        settings=settings_of(args, listing, device),
        word_dim=listing.word_dim or common_width(listing),
        device=device,
        threads=max(1, available_cores() // args.workers),
        retry_failed=args.retry_failed,
        partial=args.partial,
        verify=args.verify,
        clip_seconds=args.clip_seconds,
        memory_mb=args.memory_mb,
    )
    whole = replace(job, modalities=(*job.modalities, *args.encoder))
    begin_tree(args, listing, whole)
    for name in ("pandas", "corpora.audit"):  # while the workers' libraries are loaded
        import_module(name)
    work = [(clip, job, whole) for clip in listing.clips]
    results = parallel_map(work_on, work, max(1, min(args.workers, len(work))), args.backend)
    progress = tqdm(results, "loading libraries", len(work), unit="clip", smoothing=0.05)
    records, changed = {}, []
    for name, record, files in progress:
        progress.set_description("extracting", refresh=False)
        records[name] = record
        changed += files
    for name in args.encoder:
        job = replace(job, modalities=(*job.modalities, name))
        encode_clips(name, listing, job, records)
    return records, changed


def settings_of(args: argparse.Namespace, listing: Listing, device: str) -> dict[str, dict]:
    """Of every stage. Weights and word vectors that are not there are known here, before any work
    on clips."""
    from extract import encoders
    from extract.clip import SETTINGS
    from extract.faces import embedder, embedding_weights

    settings = {name: dict(each) for name, each in SETTINGS.items()}
    if args.video_embedding:
        embedder(device_name(device))
        settings["video_embedding"]["sha256"] = embedding_weights()
    settings["video"] |= {name: getattr(args, name) for name in FACE_FLAGS}
    settings["video"]["margin"] = args.face_margin
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


def transcribe_clips(args: argparse.Namespace, listing: Listing) -> dict[tuple[str, str], Any]:
    """Give the clips of `listing` that have no transcript the words of their sound.

    Returns what is said by split and id. The subtitles stay in features/<split>/transcripts/: a
    rerun recognises only new clips.
    """
    from tqdm import tqdm

    from extract import transcribe
    from extract.clip import SOUND, deadline_for, stamp
    from utils.guard import Limits, guarded

    model, device = transcribe.parse(args.transcribe), device_name(args.device)
    weights = transcribe.load(model, device).weights
    clips, said, unheard = [], {}, Counter[str]()
    for clip in tqdm(listing.clips, "transcribing", unit="clip", smoothing=0.05):
        if not clip.transcript:
            place = args.features_dir / clip.split / transcribe.FOLDER / f"{clip.clip_id}.srt"
            key = [weights, stamp(clip.media)]
            found = transcribe.kept(place, key, clip.media if args.verify else None)
            if found is None:
                seconds = deadline_for(clip.media, args.clip_seconds)
                limits = Limits(seconds, args.memory_mb, SOUND)
                try:
                    wave, start = guarded(transcribe.hear, clip.media, limits=limits)
                    found = transcribe.recognise(wave, start, model, device)
                    transcribe.keep(place, key, found, clip.media)
                except ClipError as error:  # nothing is kept: the next run tries again
                    unheard[error.code] += 1
            if found is not None:
                said[clip.split, clip.clip_id] = found
                clip = replace(clip, transcript=found.transcript)
        clips.append(clip)
    listing.clips = clips
    transcribe.load.cache_clear()
    languages = Counter(each.language for each in said.values() if each.cues)
    heard = ", ".join(f"{name} {count}" for name, count in languages.most_common())
    number = counted(len(said), "clip")
    print(f"transcribed {number} ({heard or 'no words'}), {args.transcribe}")
    if unheard:
        reasons = ", ".join(f"{count} {CLIP_CODES[code]}" for code, count in unheard.most_common())
        what = f"{counted(unheard.total(), 'clip')} without recognised words ({reasons})"
        print(f"warning: {what}: the next run tries again", file=sys.stderr)
    return said


def encode_clips(name: str, listing: Listing, job: Any, records: dict) -> None:
    """Make one encoder's features of all usable clips, in this process, which loads it once, and on
    all cores. Renews `records`."""
    from tqdm import tqdm

    from extract import encoders
    from extract.clip import process_clip

    job = replace(job, threads=available_cores())  # as predict.py does: its numbers are the same
    # with --partial a clip without a sound and a face may have words all the same
    reads_words = job.partial and job.settings[name]["input"] == "text"
    usable = [
        clip
        for clip in listing.clips
        if not records[clip.split, clip.clip_id]["failure"] or (reads_words and clip.transcript)
    ]
    for clip in tqdm(usable, f"encoding {name}", unit="clip", smoothing=0.05):
        records[clip.split, clip.clip_id] = process_clip(clip, job)
    for line in encoders.notes(job.settings[name], device_name(job.device)):
        print(f"warning: {name}: {line}", file=sys.stderr)
    encoders.load.cache_clear()


def earlier_encoders(features_dir: Path) -> dict[str, dict]:
    """Settings of encoders that an earlier run had: what they made is kept for a later one."""
    from extract.clip import STAGES

    features = read_known(features_dir / "settings.json").get("features")
    found = features.items() if isinstance(features, dict) else ()
    return {
        name: settings
        for name, settings in found
        if name not in STAGES and isinstance(settings, dict) and "library" in settings
    }


def work_on(item: tuple) -> tuple[tuple[str, str], dict, list[Path]]:
    from extract.clip import process_clip, remove_changed

    clip, job, whole = item
    changed = remove_changed(clip, whole) if job.verify else []
    return (clip.split, clip.clip_id), process_clip(clip, job), changed


def looked_up(args: argparse.Namespace, listing: Listing) -> dict:
    """Where the words are looked up, for the settings of text; prints how many are known."""
    from extract import vectors, words

    said = [clip.transcript for clip in listing.clips]
    origin = vectors.gather(args.word_vectors, said, args.features_dir, args.verify)
    print(words.coverage(said, vectors.open_store(args.features_dir)))
    return {"vectors": origin, "rule": words.RULE}


def common_width(listing: Listing) -> int | None:
    """Values per word in most .npz files, by a sample of them: two widths train nothing."""
    from extract.words import read_words

    paths = [clip.words for clip in listing.clips if clip.words]
    widths: list[int] = []
    for path in sorted(paths, key=lambda path: digest(path.name)):  # as good as drawn
        with contextlib.suppress(ClipError):  # the clip's own process says it
            widths.append(read_words(path, None).shape[1])
        if len(widths) == SAMPLE:
            break
    return statistics.mode(widths) if widths else None


def begin_tree(args: argparse.Namespace, listing: Listing, job: Any) -> None:
    """Write settings.json: what makes these features what they are, for checkpoints to check.

    Where it changes the manifest goes until all clips are done: nobody trains on a mixture.
    """
    from importlib.metadata import version

    from extract.clip import SCHEMA, STAGES

    libraries = ("numpy", "librosa", "av", "facenet-pytorch", "opencv-python-headless", "scipy")
    settings = {
        "schema": SCHEMA,
        "corpus": args.corpus,
        "classes": list(listing.classes),
        "modalities": list(job.modalities),
        "features": {name: job.settings[name] for name in job.modalities},
        "versions": {library: version(library) for library in libraries},
    }
    before = read_known(args.features_dir / "settings.json")
    if before != settings:
        (args.features_dir / "manifest.csv").unlink(missing_ok=True)
    for name in ("corpus", "classes", "modalities"):
        if before.get(name, settings[name]) != settings[name]:
            change = f"had {name} {before[name]}, it gets {settings[name]}"
            print(f"{args.features_dir} {change}", file=sys.stderr)
    if lost := ", ".join(name for name in job.settings if name not in {*STAGES, *job.modalities}):
        what = "not made now, so no tool can ask a model of it; repeat --encoder to keep it"
        print(f"{args.features_dir} {lost}: {what}", file=sys.stderr)
    write_json(args.features_dir / "settings.json", settings)


def write_tables(args: argparse.Namespace, listing: Listing, records: dict) -> tuple[int, int]:
    """Write manifest.csv, failed.csv and the sheets; report; how many are usable and rejected."""
    import pandas as pd

    from corpora.manifest import Failure
    from extract.clip import MANIFEST_COLUMNS, facts_of, manifest_row, missing_of

    failures, rows = [*listing.failures], []
    for clip in listing.clips:
        record = records[clip.split, clip.clip_id]
        if failure := record["failure"]:
            reason = (failure["stage"], failure["code"], failure["reason"])
            failures.append(Failure(clip.clip_id, clip.media, *reason))
        else:
            row = manifest_row(clip, facts_of(record, args.modalities), args.data_dir)
            if args.partial:
                row["missing"] = missing_of(record, (*args.modalities, *args.encoder))
            if said := args.said.get((clip.split, clip.clip_id)):
                row |= {"language": said.language, "confidence": said.confidence}
            rows.append(row)
    failures = [replace(each, media=relative(each.media, args.data_dir)) for each in failures]
    failures.sort(key=lambda failure: (str(failure.media), failure.clip_id))
    columns = [each.name for each in fields(Failure)]
    failed = pd.DataFrame(failures, columns=columns, dtype=object)  # pyarrow takes no odd names
    write_csv(args.features_dir / "failed.csv", failed, for_people=True)
    manifest_columns = [*MANIFEST_COLUMNS, *(["missing"] if args.partial else [])]
    manifest_columns += ["language", "confidence"] if args.said else []
    rows = [dict.fromkeys(manifest_columns, "") | row for row in rows]  # beside NaN 3 becomes 3.0
    manifest = pd.DataFrame(rows, columns=manifest_columns)
    write_csv(args.features_dir / "manifest.csv", manifest)
    for sheet in listing.sheets:
        write_bytes(args.features_dir / sheet.name, sheet.read_bytes())
    report(args, failures, [row.get("missing", "") for row in rows])
    return len(rows), len(failures)


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
        found = load_audit(features_dir)
    except IntegrityError as error:
        print(f"warning: splits and folds were not compared: {error}", file=sys.stderr)
        return
    for line in found.lines(LEAKS, 5):
        print(f"warning: {line}", file=sys.stderr)
    print(f"audit: {found.summary()}")


if __name__ == "__main__":
    run_script(main)
