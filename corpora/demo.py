"""A corpus that is generated: one photograph and a synthetic voice -> mp4 + npz like MERC2020's.

It measures the pipeline, not the method: the files go through the real adapter, detector and
decoder, but the seven emotions are caricatures that we drew. The face is `skimage.data.astronaut`
(Eileen Collins, NASA, public domain), moved by smooth warps of brows, lids, nose and mouth after
the action units of Ekman & Friesen (1978). The voice is pulses and breath through the formants of
Peterson & Barney (1952); its pitch, range, rate and slope per emotion follow Scherer (2003, Speech
Communication 40) and Juslin & Laukka (2003, Psychological Bulletin 129). Word vectors are drawn.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corpora import merc2020
from corpora.manifest import LABELLED_SPLITS, Clip, Listing
from utils.errors import UsageError
from utils.files import read_json, write_atomic, write_json, write_text
from utils.parallel import available_cores, parallel_map

CLASSES = merc2020.CLASSES
COUNTS = {"train": 16, "val": 8, "test": 3, "test_merc": 2}  # clips per class and split
VERSION = 1  # raise it when the clips change: an older corpus is then made anew
STAMP, MARKER = "corpus.json", "corpus.unfinished.json"
NOTICE = (
    "GENERATED demo corpus: one photograph (skimage.data.astronaut), warped, and synthetic voices. "
    "It measures the pipeline, not the method; it says nothing about real emotions."
)
RATE, FPS, SIZE = 16_000, 16, (240, 180)  # samples and frames a second (1/16 is exact), pixels
SILENCE = 0.12  # seconds before and after the voice
MIXED = 0.1  # how often the voice, and how often the face, shows another emotion than the clip
AMBIGUOUS = 1 / 8  # of the sentences name another emotion than the one that is meant

EMOTION_WORDS = {
    "hap": "happy glad delighted cheerful wonderful",
    "ang": "angry furious mad outrageous unfair",
    "dis": "disgusting gross filthy rotten nasty",
    "fea": "afraid scared terrified dangerous frightening",
    "sad": "sad lonely miserable gloomy hopeless",
    "neu": "ordinary usual normal average plain",
    "sur": "surprised amazed unexpected incredible astonishing",
}
OPENINGS = ("", "well", "look", "but", "you know", "then", "I think")
SUBJECTS = ("it is", "this is", "that was", "I am", "we are", "he was", "she is")
DEGREES, ENDINGS = ("", "so", "very", "quite", "really"), ("", "today", "now", "again", "here")


class Face(NamedTuple):
    """The mouth, and how far other parts move; pixels of the photograph (face 88 wide), y down."""

    half: float  # width of the mouth
    corner: float  # y of the mouth's corners
    top: float  # y of the lips' inner edges, in the middle
    bottom: float
    upper: float = 3.5  # thickness of the lips
    lower: float = 5.0
    together: float = 0.0  # of the brows
    inner: float = 0.0  # dy of the brows' inner and outer ends
    outer: float = 0.0
    lid: float = 0.0  # dy of the upper and the lower lids
    bag: float = 0.0
    nose: float = 0.0
    chin: float = 0.0
    smile: float = 0.0  # share of the photograph's own teeth and folds; the rest is smoothed


PHOTO = Face(21.5, 140.0, 143.2, 149.8)
FACES = {
    "hap": Face(23.5, 138.5, 142.7, 151, bag=-1.5, smile=1),
    "ang": Face(
        17.5, 147, 146.2, 146.7, 2, 3, together=2.5, inner=4, outer=0.5, lid=1.3, chin=-1.5
    ),
    "dis": Face(17, 147.5, 142, 145, 3, 4, 0.5, 2.5, 2, lid=1.8, bag=-1.8, nose=-3, smile=0.3),
    "fea": Face(22, 146, 144, 151, 2.5, 4, 2.5, -4.5, -2, -2.2, bag=0.5, chin=2),
    "sad": Face(16, 149.5, 145.2, 145.7, 3, 5.5, 2, -4, 3, lid=1.5, chin=-2.5),
    "neu": Face(17.5, 145.5, 145.5, 146),
    "sur": Face(13, 149, 142.5, 156, 3.2, 4.5, 0, -5.5, -5.5, -2.5, bag=0.8, chin=7),
}
BROWS = [(190, 90), (198, 88), (206, 90), (213, 93), (238, 93), (245, 92), (254, 92), (262, 96)]
INNER = np.array([0, 0.3, 0.7, 1, 1, 0.7, 0.3, 0])  # how much each of them is an inner end
LIDS = [(196, 98.5), (203, 96.5), (209, 98.5), (240, 101), (247, 99), (254, 100.5)]
BAGS = [(196, 104), (203, 105.5), (209, 104.5), (240, 106.5), (247, 107.5), (254, 106)]
NOSE, CHIN = [(213, 129), (224.5, 133), (236, 130)], [(208, 174), (225, 178), (243, 173)]
FIXED = [(192, 101.5), (213, 102.5), (236, 104), (258, 103.5), (203, 101), (247, 103), (225, 108)]
FIXED += [(183, 120), (270, 122), (186, 150), (264, 147), (196, 168), (254, 166), (225, 188)]
FIXED += [(190, 77), (225, 79), (260, 81)]
FOLDS = [[(204, 129), (197, 135), (197, 139)], [(243, 129), (249, 136), (249, 143)]]  # of the smile
CROP = (92, 0, 358, 220)  # x0, y0, x1, y1: the part of the photograph that a frame may show
WINDOW = (170, 72, 280, 190)  # the part of it that moves
ZOOM = 2  # both are enlarged before the warp, and shrunk into the frame after it


class Tone(NamedTuple):
    """What an emotion does to a voice."""

    pitch: float = 0.0  # semitones
    span: float = 2.0  # semitones up and down within a stressed syllable
    glide: float = -2.0  # semitones from the first to the last syllable
    rate: float = 1.0
    slope: float = 0.90  # pole of the source's low-pass: nearer to 1 is darker
    breath: float = 0.02  # noise in the source
    shake: float = 0.2  # semitones of a tremor at 7 Hz
    attack: float = 0.7  # exponent of a syllable's envelope: small is abrupt
    level: float = 0.0  # dB


TONES = {
    "hap": Tone(5, 8, 0, 1.2, 0.65, 0.005, 0.2, 0.4, 3),
    "ang": Tone(0, 3, -5, 1.3, 0.10, 0.05, 1.0, 0.25, 6),
    "dis": Tone(-7, 1, -3, 0.75, 0.85, 0.50, 0.2, 1.6, -2),
    "fea": Tone(13, 0, 1, 1.3, 0.75, 0.10, 2.5, 0.2, -2),
    "sad": Tone(-2, 0.5, -3, 0.7, 0.98, 0.005, 0.2, 1.0, -7),
    "neu": Tone(),
    "sur": Tone(6, 0, 20, 0.9, 0.86, 0.02, 0.2, 0.15, 2),
}
VOWELS = {"a": (730, 1090), "e": (530, 1840), "i": (270, 2290), "o": (570, 840), "u": (300, 870)}
UPPER_FORMANTS, BANDWIDTHS = (2450, 3500), np.array([70, 100, 140, 220])  # Hz, as are the vowels


def make_clip(
    seed: int, number: int, speaker: int, emotion: str, face_emotion: str, speech_emotion: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One clip, a pure function of its arguments; the words follow `emotion`.

    Frames (T, 180, 240, 3) uint8 RGB at FPS, sound (N,) float32 at RATE, words.
    """
    voice, look = (np.random.default_rng((seed, part, speaker)) for part in (1, 2))
    rng = np.random.default_rng((seed, 3, number))
    words = make_sentence(emotion, rng)
    sound, loudness = speak(words, TONES[speech_emotion], voice, rng)
    return film(face_emotion, loudness, look, rng), sound, words


def another(emotion: str, rng: np.random.Generator) -> str:
    return str(rng.choice([other for other in CLASSES if other != emotion]))


@cache
def word_vectors(size: int = 200) -> dict[str, np.ndarray]:
    """Word -> (size,) float32: length about 3, half of it for fillers, as for frequent words.

    The words of one emotion share two thirds of their variance.
    """
    rng = np.random.default_rng(20200)
    fillers = " ".join(OPENINGS + SUBJECTS + DEGREES + ENDINGS).split()
    vectors = {word: rng.standard_normal(size) / 2 for word in fillers}
    for words in EMOTION_WORDS.values():
        centre = rng.standard_normal(size)
        for word in words.split():
            vectors[word] = 0.82 * centre + 0.57 * rng.standard_normal(size)
    return {word: np.float32(vector * 3 / size**0.5) for word, vector in vectors.items()}


def make_sentence(emotion: str, rng: np.random.Generator) -> list[str]:
    """Three to eight words that name the emotion, or sometimes another one."""
    named = another(emotion, rng) if rng.random() < AMBIGUOUS else emotion
    parts = (OPENINGS, SUBJECTS, DEGREES, EMOTION_WORDS[named].split(), ENDINGS)
    return " ".join(str(rng.choice(part)) for part in parts).split()


def speak(
    words: list[str], tone: Tone, voice: np.random.Generator, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sound (N,) float32 with silence at both ends, and its loudness (T,) in 0..1 at each frame.

    `voice` draws what is the speaker's, `rng` what is the clip's.
    """
    from scipy.signal import lfilter

    base, formants, rate = 130 * 2 ** voice.uniform(0, 0.4), *voice.uniform(0.95, 1.08, 2)
    vowels = [run[0].replace("y", "i") for run in re.findall("[aeiouy]+", " ".join(words).lower())]
    seconds = (0.35 + 0.3 * len(vowels) ** 0.5) / (tone.rate * rate)
    time = np.arange(int(seconds * RATE)) / RATE  # (N,)
    place = time / seconds * len(vowels)  # the first syllable is 0..1, the second 1..2
    syllable, phase = np.divmod(place, 1)
    bump = np.sin(np.pi * phase)
    stress, hiss = rng.uniform(0, 1, (2, len(vowels)))[:, syllable.astype(int)]
    noise = rng.standard_normal((2, len(time)))
    semitones = tone.pitch + tone.glide * (time / seconds - 0.5) + tone.span * stress * (bump - 0.5)
    semitones += tone.shake * np.sin(2 * np.pi * 7 * time) + rng.normal(0, 0.4)
    turns = np.cumsum(base * 2 ** (semitones / 12)) / RATE  # of the vocal folds
    pulses = np.diff(np.floor(turns), prepend=0) + tone.breath * noise[0]
    envelope = bump**tone.attack * (0.5 + 0.5 * stress)
    source = envelope * lfilter([1, -0.98], [1, -2 * tone.slope, tone.slope**2], pulses)
    spoken = vocal_tract(source, vowels, place, formants)
    consonants = hiss * (phase < 0.15) * np.diff(noise[1], prepend=0)
    spoken = spoken / np.abs(spoken).max() + 0.03 * consonants
    edge = int(SILENCE * RATE)
    frames = -(-(len(time) + 2 * edge) * FPS // RATE)
    sound = 1e-3 * rng.standard_normal(frames * RATE // FPS)  # the room
    sound[edge : edge + len(time)] += 0.4 * 10 ** (tone.level / 20) * spoken
    loudness = np.interp(np.arange(frames) / FPS - SILENCE, time, envelope, 0, 0)
    return sound.astype(np.float32).clip(-1, 1), loudness


def vocal_tract(
    source: np.ndarray, vowels: list[str], place: np.ndarray, scale: float, block: int = 160
) -> np.ndarray:
    """Source (N,) through four resonators whose frequencies glide from vowel to vowel: (N,)."""
    from scipy.signal import sosfilt

    targets = np.array([VOWELS[vowel] + UPPER_FORMANTS for vowel in vowels])  # (syllables, 4) Hz
    radius = np.exp(-np.pi * BANDWIDTHS / RATE)
    state, spoken = np.zeros((4, 2)), []
    for start in range(0, len(source), block):
        now = [np.interp(place[start] - 0.5, np.arange(len(vowels)), f) for f in targets.T]
        turn = -2 * radius * np.cos(2 * np.pi * scale * np.array(now) / RATE)
        poles = np.stack([np.ones(4), turn, radius**2], axis=1)
        zeros = poles.sum(axis=1, keepdims=True) * (1, 0, 0)  # gain 1 at 0 Hz
        part = source[start : start + block]
        out, state = sosfilt(np.concatenate([zeros, poles], axis=1), part, zi=state)
        spoken.append(out)
    return np.concatenate(spoken)


def landmarks(face: Face) -> np.ndarray:
    """Where the landmarks of the photograph go: (62, 2)."""
    inward = np.repeat([1, -1], 4) * INNER * face.together
    down = INNER * face.inner + (1 - INNER) * face.outer
    moved = ((LIDS, face.lid), (BAGS, face.bag), (NOSE, face.nose), (CHIN, face.chin), (FIXED, 0))
    parts = [np.add(points, (0, dy)) for points, dy in moved]
    return np.concatenate([BROWS + np.stack([inward, down], 1), *parts, mouth(face)])


def mouth(face: Face) -> list[tuple[float, float]]:
    """22 points: both corners, then both edges of both lips at five places from left to right."""
    points = [(224 - face.half, face.corner), (224 + face.half, face.corner)]
    for t in (-0.75, -0.4, 0.0, 0.4, 0.75):
        arch = 1 - abs(t) ** 2.5
        top, bottom = (face.corner + (y - face.corner) * arch for y in (face.top, face.bottom))
        edges = (top - face.upper * arch**0.5, top, bottom, bottom + face.lower * arch**0.5)
        points += [(224 + t * face.half, y) for y in edges]
    return points


@cache
def displacement(face: Face) -> np.ndarray:
    """Where each pixel of the enlarged window comes from, relative to itself: (h, w, 2) float32.

    A thin-plate spline through the landmarks that fades to zero at the border.
    """
    import cv2
    from scipy.interpolate import RBFInterpolator

    x0, y0, x1, y1 = WINDOW
    grid = np.stack(np.meshgrid(np.arange(x0, x1), np.arange(y0, y1)), axis=-1)  # (h, w, 2)
    here, there = landmarks(PHOTO), landmarks(face)
    bend = RBFInterpolator(there, here - there, smoothing=0.5)(grid.reshape(-1, 2).astype(float))
    border = np.minimum(grid - (x0, y0), (x1 - 1, y1 - 1) - grid).min(axis=-1, keepdims=True)
    field = np.float32(ZOOM * bend.reshape(grid.shape) * (border / 8).clip(0, 1))
    return cv2.resize(field, None, fx=ZOOM, fy=ZOOM)


def enlarged(points: list, box: tuple = WINDOW) -> np.ndarray:
    """Pixels (N, 2) of the photograph -> of its enlarged part."""
    return np.rint((np.array(points) - box[:2]) * ZOOM).astype(np.int32)


@cache
def person() -> np.ndarray:
    """The crop, enlarged: (440, 532, 4) uint8 RGB and how much of each pixel is the person."""
    import cv2
    from skimage import data

    x0, y0, x1, y1 = CROP
    photo = np.ascontiguousarray(data.astronaut()[y0:y1, x0:x1])
    mask = np.where(photo.min(axis=-1) > 140, cv2.GC_PR_BGD, cv2.GC_PR_FGD).astype(np.uint8)
    mask[:120, :45] = mask[:160, -50:] = mask[:60, :60] = mask[:15] = cv2.GC_BGD
    cv2.ellipse(mask, (132, 95), (45, 70), 0, 0, 360, cv2.GC_FGD, -1)
    cv2.setRNGSeed(0)
    cv2.grabCut(photo, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    cut = np.dstack([photo, (mask & 1) * 255])
    cut = cv2.resize(cut, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
    cut[..., 3] = cv2.GaussianBlur(cut[..., 3], (0, 0), 1.5)
    return cut


@cache
def skin(smile: float) -> np.ndarray:
    """The enlarged window before its warp, (236, 220, 4) uint8; 0 has a dark mouth and no folds."""
    import cv2

    (x0, y0), (x1, y1) = enlarged([WINDOW[:2], WINDOW[2:]], CROP)
    photo = person()[y0:y1, x0:x1]
    blank = np.zeros(photo.shape[:2], np.uint8)
    folds = cv2.polylines(blank.copy(), [enlarged(fold) for fold in FOLDS], False, 255, 7)
    calm = np.float32(cv2.inpaint(photo[..., :3].copy(), folds, 5, cv2.INPAINT_TELEA))
    points = mouth(PHOTO)
    gap = enlarged([points[0], *points[3::4], points[1], *points[4::4][::-1]])
    dark = cv2.GaussianBlur(cv2.fillPoly(blank, [gap], 255), (0, 0), 1.0)[..., None] / 255
    calm += dark * ((70, 25, 25) - calm)
    calm += smile * (photo[..., :3] - calm)
    return np.dstack([calm, photo[..., 3]]).clip(0, 255).astype(np.uint8)


def film(
    emotion: str, loudness: np.ndarray, look: np.random.Generator, rng: np.random.Generator
) -> np.ndarray:
    """Frames (T, 180, 240, 3) uint8 RGB; the expression stays, the mouth follows `loudness` (T,).

    `look` draws what is the speaker's (light, background, size, place, mirror), `rng` the rest.
    """
    import cv2

    face, calm = FACES[emotion], displacement(FACES["neu"])
    more = 4.0 if face.bottom - face.top < 5 else 1.5  # an open mouth opens less
    talk = displacement(face._replace(bottom=face.bottom + more, chin=face.chin + more / 2))
    talk = talk - displacement(face)
    stray = displacement(FACES[another(emotion, rng)]) - calm  # nobody shows one emotion only
    bend = rng.uniform(0.8, 1.1) * (displacement(face) - calm) + rng.uniform(0, 0.15) * stray
    onset = rng.uniform(0.1, 0.3)  # seconds
    h, w = calm.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=-1)  # (h, w, 2)
    (x, y), nose = enlarged([WINDOW[:2], (225, 118)], CROP)
    light = np.arange(256)[:, None] / 255 * look.uniform(0.9, 1.1, 3)  # (256, 3)
    light = rng.uniform(0.92, 1.08) * light.clip(0, 1) ** look.uniform(0.8, 1.25)
    light = (255 * light).clip(0, 255).astype(np.uint8)[None]
    wall = look.uniform(70, 190, (2, 1)) + look.uniform(-30, 30, (2, 3))
    wall = np.linspace(*wall, SIZE[1])[:, None]  # (180, 1, 3): a colour for every row
    size, centre = look.uniform(1.05, 1.22), look.uniform((112, 84), (128, 100))
    mirror = -1 if look.random() < 0.5 else 1
    sway = np.linspace(*rng.uniform(-1, 1, (2, 4)) * (4, 3, 3, 0.02), len(loudness))  # (T, 4)
    body, frames = person().copy(), []
    for step, (loud, (angle, *shift, grow)) in enumerate(zip(loudness, sway, strict=True)):
        on = min(1.0, 0.3 + 0.7 * step / FPS / onset)
        where = np.float32(grid + calm + on * bend + loud * talk)
        texture = cv2.addWeighted(skin(face.smile), on, skin(0), 1 - on, 0)
        warped = cv2.remap(texture, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        body[y : y + h, x : x + w] = warped
        turn = cv2.getRotationMatrix2D(nose.tolist(), angle, size * (1 + grow) / ZOOM)
        turn[:, 2] += centre + shift - nose
        frame = cv2.warpAffine(body, turn, SIZE, borderMode=cv2.BORDER_REPLICATE)
        lit = cv2.LUT(np.ascontiguousarray(frame[..., :3]), light)
        frames.append((wall + frame[..., 3:] / 255 * (lit - wall)).astype(np.uint8))
    return np.stack(frames)[:, :, ::mirror]


def list_clips(data_dir: Path) -> Listing:
    """The clips of the corpus under `data_dir`, which is generated first when it is not there."""
    stamp = read_json(data_dir / STAMP) if (data_dir / STAMP).is_file() else {}
    if not isinstance(stamp, dict) or stamp.get("version") != VERSION:
        generate(data_dir)
    return merc2020.list_clips(data_dir)


def generate(
    data_dir: Path, counts: dict[str, int] = COUNTS, seed: int = 0, workers: int | None = None
) -> None:
    """Write the corpus under `data_dir`: `counts` clips per class and split, sheets, answers.

    UsageError, and nothing is touched, when the folder holds anything else.
    """
    from tqdm import tqdm

    about = {"notice": NOTICE, "version": VERSION, "seed": seed, "counts": counts}
    check_place(data_dir, about)
    clips = sorted(plan(data_dir, counts, seed), key=lambda clip: clip.clip_id)
    ids = {split: [clip.clip_id for clip in clips if clip.split == split] for split in COUNTS}
    half = len(ids["test"]) // 2
    write_json(data_dir / MARKER, about)
    write_text(data_dir / "README.txt", f"{NOTICE}\n\nMade by corpora/demo.py from seed {seed}.\n")
    sheets = (ids["test"][:half], ids["test"][half:], ids["test_merc"])
    for name, listed in zip(merc2020.SHEETS, sheets, strict=True):
        if listed:
            write_text(data_dir / name, "\n".join(["FileID", *listed, ""]))
    jobs = [(seed, clip) for clip in clips]
    made = parallel_map(_write_clip, jobs, workers or available_cores())
    rows = sorted(tqdm(made, "demo corpus", len(jobs), unit="clip"))
    header = "FileID,emotion,face_emotion,speech_emotion,transcript"
    write_text(data_dir / "answers.csv", "\n".join([header, *rows, ""]))
    (data_dir / MARKER).replace(data_dir / STAMP)


def check_place(data_dir: Path, about: dict) -> None:
    """UsageError unless `data_dir` is new, empty, or holds the same corpus, unfinished."""
    marker = data_dir / MARKER
    unfinished = marker.is_file() and read_json(marker) == about
    if not unfinished and data_dir.exists() and any(data_dir.iterdir()):
        raise UsageError(
            f"{data_dir} holds something else than this version of the demo corpus; nothing was "
            "touched: empty it, or give another folder with --data_dir"
        )
    for left in data_dir.glob("*/*/.part-demo-*"):
        shutil.rmtree(left)


def plan(data_dir: Path, counts: dict[str, int], seed: int) -> Iterator[Clip]:
    """Every clip of the corpus: emotions balanced, speakers of their own in each split."""
    rng = np.random.default_rng((seed, 0))
    ids = map(str, rng.permutation(np.arange(10_000, 100_000)))
    for split, count in counts.items():
        folder, first = data_dir / merc2020.FOLDERS[split], 100 * list(COUNTS).index(split)
        for turn, which in np.ndindex(count, len(CLASSES)):
            emotion, name = CLASSES[which], next(ids)
            voice, face = (another(emotion, rng) if rng.random() < MIXED else emotion for _ in "vf")
            speaker = f"{first + (turn + which) % -(-count // 2):03d}"
            labels = f"-{speaker}-{emotion}-{face}-{voice}" if split in LABELLED_SPLITS else ""
            media, words = folder / f"{name}{labels}.mp4", folder / f"{name}.npz"
            yield Clip(name, split, media, emotion, voice, face, speaker, words=words)


def _write_clip(job: tuple[int, Clip]) -> str:
    """Make and write one clip; its row of answers.csv."""
    seed, clip = job
    labels = clip.emotion, clip.face_emotion, clip.speech_emotion
    frames, sound, words = make_clip(seed, int(clip.clip_id), int(clip.speaker), *labels)
    vectors = np.stack([word_vectors()[word] for word in words])  # (L, 200)
    write_atomic(clip.words, lambda file: np.savez(file, word_embed=vectors))
    _write_mp4(clip.media, frames, sound)
    return ",".join([clip.clip_id, *labels, " ".join(words)])


def _write_mp4(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    """H.264 + AAC mono, through a temporary folder beside `path`: ffmpeg wants a real path."""
    from moviepy import ImageSequenceClip
    from scipy.io import wavfile

    with tempfile.TemporaryDirectory(prefix=".part-demo-", dir=path.parent) as folder:
        wavfile.write(f"{folder}/sound.wav", RATE, np.int16(32767 * sound))
        ImageSequenceClip(list(frames), fps=FPS).write_videofile(
            f"{folder}/clip.mp4",
            codec="libx264",
            preset="ultrafast",
            audio=f"{folder}/sound.wav",
            audio_codec="aac",
            ffmpeg_params=["-metadata", f"comment={NOTICE}"],
            threads=1,
            logger=None,
        )
        Path(folder, "clip.mp4").replace(path)
