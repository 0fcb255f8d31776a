"""A corpus that is generated: one photograph and a synthetic voice -> mp4 + npz like MERC2020's.

It measures the pipeline, not the method: the files go through the real adapter, detector and
decoder, but the seven emotions are caricatures that we drew. The face is `skimage.data.astronaut`
(Eileen Collins, NASA, public domain), warped at brows, lids, nose and mouth after the action units
of Ekman & Friesen (1978). The voice is pulses and breath through the formants of Peterson & Barney
(1952); its pitch, range, rate and slope per emotion follow Scherer (2003, Speech Communication 40)
and Juslin & Laukka (2003, Psychological Bulletin 129). Word vectors are drawn.
"""

from __future__ import annotations

import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng

from corpora import merc2020
from corpora.manifest import LABELLED_SPLITS, Clip, Listing
from utils.errors import UsageError
from utils.files import PART, read_json, write_atomic, write_bytes, write_json, write_text
from utils.parallel import available_cores, parallel_map

CLASSES = merc2020.CLASSES
COUNTS = {"train": 16, "val": 8, "test": 3, "test_merc": 2}  # clips per class and split
VERSION = 3  # raise it when the clips change: no older corpus is then used
STAMP, MARKER = f"corpus-v{VERSION}.json", f"corpus-v{VERSION}.unfinished.json"
NOTICE = "GENERATED from a photograph and a synthetic voice: measures the pipeline, not the method"
RATE, FPS, SIZE = 16_000, 16, (240, 180)  # samples and frames a second, pixels
HOP = RATE // FPS  # samples of a frame
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
SUBJECTS = ("it is", "this is", "that was", "I am", "we are", "he was", "she is", "I think it is")
DEGREES, ENDINGS = ("", "so", "very", "quite", "really"), ("", "today", "now", "again", "here")

# Pixels of the photograph (the face is 88 wide). The mouth: half its width, y of its corners, y of
# the lips' inner edges in the middle. Then how far each of PARTS moves down.
FACES = {
    "hap": (23.5, 138.5, 142.7, 151.0, 0.0, 0.0, 0.5, 0.0, 0.0),
    "ang": (20.0, 148.5, 143.0, 152.0, 5.0, -1.0, 1.5, 0.0, 1.0),
    "dis": (17.0, 147.5, 142.0, 145.0, 2.5, 2.0, 2.5, -3.0, -2.0),
    "fea": (22.5, 147.5, 144.5, 149.0, -4.5, -1.0, -2.5, 0.0, 2.0),
    "sad": (16.0, 149.5, 145.2, 145.7, -4.0, 3.0, 1.8, 0.0, -2.0),
    "neu": (17.5, 145.5, 145.5, 146.0, 0.0, 0.0, 0.0, 0.0, -1.5),
    "sur": (13.0, 149.0, 142.5, 156.0, -5.5, -5.5, -2.8, 0.0, 6.0),
}
PHOTO = (21.5, 140.0, 143.2, 149.8, 0.0, 0.0, 0.0, 0.0, 0.0)
OPENING = (0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.5)  # what the loudest sound adds
PARTS = (
    [(207, 90), (213, 93), (238, 93), (245, 92)],  # inner ends of the brows
    [(190, 90), (198, 88), (254, 92), (262, 96)],  # their outer ends
    [(196, 98.5), (203, 96.5), (209, 98.5), (240, 101), (247, 99), (254, 100.5)],  # upper lids
    [(213, 129), (224.5, 133), (236, 130)],  # nose
    [(208, 174), (225, 178), (243, 173)],  # chin
)
FIXED = [(192, 101.5), (213, 102.5), (203, 104), (236, 104), (258, 103.5), (247, 106), (225, 108)]
FIXED += [(183, 120), (270, 122), (186, 150), (264, 147), (196, 168), (254, 166), (225, 188)]
FIXED += [(92, 0), (225, 78), (358, 0), (92, 110), (358, 110), (92, 220), (358, 220)]
CROP, NOSE = ((92, 358), (0, 220)), (133, 118)  # columns and rows that are used; x, y in them

TONES = {  # semitones: pitch, rise within a syllable, rise over the sentence; rate, slope, breath
    "hap": (5, 8, 0, 1.2, 0.65, 0.005),
    "ang": (0, 3, -5, 1.3, 0.1, 0.05),
    "dis": (-7, 1, -3, 0.75, 0.85, 0.5),
    "fea": (13, 0, 1, 1.3, 0.75, 0.1),
    "sad": (-2, 0, -3, 0.7, 0.98, 0.005),
    "neu": (0, 2, -2, 1.0, 0.9, 0.02),
    "sur": (6, 0, 20, 0.9, 0.86, 0.02),
}
VOWELS = ((730, 1090), (530, 1840), (270, 2290), (570, 840), (300, 870))  # Hz; of a, e, i, o, u
UPPER_FORMANTS, BANDWIDTH = (2450, 3500), 120  # Hz


def make_clip(seed: int, clip: Clip) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Frames (T, 180, 240, 3) uint8 RGB at FPS, sound (N,) float32 at RATE, words.

    A pure function of the seed and of the clip's id, speaker and labels.
    """
    speaker = default_rng((seed, 1, int(clip.speaker)))  # draws what is the speaker's
    rng = default_rng((seed, 2, int(clip.clip_id)))  # draws the rest
    words = make_sentence(clip.emotion, rng)
    sound, loudness = speak(clip.speech_emotion, words, speaker, rng)
    return film(clip.face_emotion, loudness, speaker, rng), sound, words


def another(emotion: str, rng: Generator) -> str:
    return str(rng.choice([other for other in CLASSES if other != emotion]))


def make_sentence(emotion: str, rng: Generator) -> list[str]:
    """Three to seven words that name the emotion, or sometimes another one."""
    named = another(emotion, rng) if rng.random() < AMBIGUOUS else emotion
    parts = (SUBJECTS, DEGREES, EMOTION_WORDS[named].split(), ENDINGS)
    return " ".join(str(rng.choice(part)) for part in parts).split()


@cache
def word_vectors(size: int = 200) -> dict[str, np.ndarray]:
    """Word -> (size,) float32 of length about 3; the words of one emotion resemble each other."""
    rng, vectors = default_rng(20200), {}
    for words in (" ".join(SUBJECTS + DEGREES + ENDINGS), *EMOTION_WORDS.values()):
        centre = rng.standard_normal(size)
        for word in words.split():
            vectors[word] = np.float32(0.17 * centre + 0.12 * rng.standard_normal(size))
    return vectors


def speak(
    emotion: str, words: list[str], speaker: Generator, rng: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sound (N,) float32 with silence at both ends, and its loudness (T,) in 0..1 at each frame."""
    from scipy.signal import lfilter

    pitch, bend, glide, rate, slope, breath = TONES[emotion]
    octaves, scale, pace = speaker.uniform((0, 0.95, 0.95), (0.4, 1.08, 1.08))
    vowels = ["aeiou".index(letter) for letter in " ".join(words).lower() if letter in "aeiou"]
    frames = round(FPS * (0.35 + 0.3 * len(vowels) ** 0.5) / (rate * pace))
    ends = np.cumsum(rng.uniform(0.6, 1.4, len(vowels)))  # of the syllables
    time = np.linspace(0, ends[-1], frames * HOP, endpoint=False)
    place = np.interp(time, [0, *ends], range(len(vowels) + 1))  # the first syllable is 0..1
    stress, vowel = np.array([rng.uniform(0.5, 1, len(vowels)), vowels])[:, place.astype(int)]
    loudness = stress * np.sin(np.pi * (place % 1))  # (N,), 0 between the syllables
    semitones = rng.normal(pitch, 0.4) + bend * loudness + glide * (place / len(vowels) - 0.5)
    turns = np.cumsum(130 * 2 ** (octaves + semitones / 12)) / RATE  # of the vocal folds
    pulses = np.diff(np.floor(turns), prepend=0) + breath * rng.standard_normal(len(turns))
    source = loudness * lfilter([1, -0.98], [1, -2 * slope, slope**2], pulses)
    spoken = np.choose(np.int8(vowel), [resonate(source, scale, *two) for two in VOWELS])
    sound = np.pad(0.4 * spoken / np.abs(spoken).max(), 2 * HOP)
    sound += 1e-3 * rng.standard_normal(len(sound))  # the room
    return np.float32(sound), np.float32(np.pad(loudness[::HOP], 2))


def resonate(source: np.ndarray, scale: float, *formants: float) -> np.ndarray:
    """Source (N,) through four resonators side by side: (N,)."""
    from scipy.signal import iirpeak, lfilter

    peaks = (iirpeak(scale * hertz, hertz / BANDWIDTH, RATE) for hertz in formants + UPPER_FORMANTS)
    return sum(lfilter(*peak, source) for peak in peaks)


def mouth(half: float, corner: float, top: float, bottom: float) -> np.ndarray:
    """The lips' outer and inner edges from above, each from left to right: (4, 7, 2) of x, y."""
    t = np.linspace(-0.95, 0.95, 7)
    edges = [corner + (y - corner) * (1 - t**2) for y in (top - 3.5, top, bottom, bottom + 5)]
    return np.stack([np.tile(224 + half * t, (4, 1)), edges], axis=-1)


def landmarks(face: np.ndarray) -> np.ndarray:
    """Where the landmarks of the photograph go: (73, 2)."""
    parts = [np.add(points, (0, down)) for points, down in zip(PARTS, face[4:], strict=True)]
    return np.concatenate([*parts, mouth(*face[:4]).reshape(-1, 2), FIXED])


@cache
def warp(emotion: str, opening: float = 0.0) -> np.ndarray:
    """Where in the photograph each pixel of the crop comes from: (220, 266, 2) float32 of x, y."""
    from scipy.interpolate import RBFInterpolator

    grid = np.stack(np.meshgrid(*(np.arange(*side, dtype=float) for side in CROP)), axis=-1)
    there = landmarks(np.add(FACES[emotion], opening * np.array(OPENING)))
    spline = RBFInterpolator(there, landmarks(PHOTO) - there, smoothing=0.5)
    return np.float32(grid + spline(grid.reshape(-1, 2)).reshape(grid.shape))


def film(emotion: str, loudness: np.ndarray, speaker: Generator, rng: Generator) -> np.ndarray:
    """Frames (T, 180, 240, 3) uint8 RGB; the expression stays, the mouth follows `loudness` (T,).

    Light, size, place and mirror are the speaker's.
    """
    import cv2
    from skimage import data

    photo, (_, top, bottom, _) = data.astronaut(), mouth(*PHOTO[:4])
    if emotion != "hap":  # only the smile keeps its teeth
        cv2.fillPoly(photo, [np.int32(np.rint([*top, *bottom[::-1]]))], (70, 25, 25), cv2.LINE_AA)
    light = rng.uniform(0.92, 1.08) * speaker.uniform(0.8, 1.1) * speaker.uniform(0.95, 1.05, 3)
    photo = cv2.multiply(photo, (*light, 1))
    size, centre, mirror = (
        speaker.uniform(1.05, 1.22),
        speaker.uniform(-8, 8, 2),
        speaker.integers(2),
    )
    sway = np.linspace(*rng.uniform(-1, 1, (2, 3)) * (4, 3, 3), len(loudness))  # (T, 3)
    shown = warp("neu") + rng.uniform(0.85, 1.15) * (warp(emotion) - warp("neu"))
    opening, frames = warp(emotion, 1.0) - warp(emotion), []
    for loud, (angle, *shift) in zip(loudness, sway, strict=True):
        bent = cv2.remap(photo, shown + loud * opening, None, cv2.INTER_LINEAR)
        turn = cv2.getRotationMatrix2D(NOSE, angle, size)
        turn[:, 2] += centre + shift + np.divide(SIZE, 2) - NOSE
        frames.append(cv2.warpAffine(bent, turn, SIZE, borderMode=cv2.BORDER_REPLICATE))
    return np.stack(frames)[:, :, :: 1 - 2 * mirror]


def list_clips(data_dir: Path) -> Listing:
    """The clips of the corpus under `data_dir`, which is generated first when it is not there."""
    if not (data_dir / STAMP).is_file():
        generate(data_dir)
    return merc2020.list_clips(data_dir)


def generate(data_dir: Path, counts: dict = COUNTS, seed: int = 0, workers: int = 0) -> None:
    """Write the corpus under `data_dir`: `counts` clips per class and split, sheets, answers.

    UsageError, and nothing is touched, when the folder holds anything else.
    """
    from tqdm import tqdm

    about = {"notice": NOTICE, "seed": seed, "counts": counts}
    check_place(data_dir, about)
    write_json(data_dir / MARKER, about)
    write_text(data_dir / "README.txt", f"{NOTICE}\n\nMade by corpora/demo.py from seed {seed}.\n")
    clips = plan(data_dir, counts, seed)
    test, test3 = ([c.clip_id for c in clips if c.split == name] for name in ("test", "test_merc"))
    for name, listed in zip(merc2020.SHEETS, (*np.array_split(test, 2), test3), strict=True):
        write_text(data_dir / name, "\n".join(["FileID", *listed, ""]))
    made = parallel_map(partial(write_clip, seed), clips, workers or available_cores())
    rows = sorted(tqdm(made, "demo corpus", len(clips), unit="clip"))
    columns = ",".join(["FileID", *clips[0].labels, "transcript"])
    write_text(data_dir / "answers.csv", "\n".join([columns, *rows, ""]))
    (data_dir / MARKER).replace(data_dir / STAMP)


def check_place(data_dir: Path, about: dict) -> None:
    """UsageError unless `data_dir` is new, empty, or holds the same corpus, unfinished."""
    unfinished = (data_dir / MARKER).is_file() and read_json(data_dir / MARKER) == about
    if not unfinished and data_dir.exists() and any(data_dir.iterdir()):
        raise UsageError(
            f"{data_dir} holds something else than the demo corpus of this version: "
            "nothing was touched; empty it, or give another folder with --data_dir"
        )
    for left in data_dir.rglob(f".*{PART}"):  # of a run that was killed
        left.unlink()


def plan(data_dir: Path, counts: dict[str, int], seed: int) -> list[Clip]:
    """Every clip of the corpus by id: emotions balanced, speakers of their own in each split."""
    rng, clips = default_rng((seed, 0)), []
    ids = map(str, rng.permutation(np.arange(10_000, 100_000)))
    for split, count in counts.items():
        folder, first = data_dir / merc2020.FOLDERS[split], 100 * list(COUNTS).index(split)
        for turn, which in np.ndindex(count, len(CLASSES)):
            emotion, name = CLASSES[which], next(ids)
            voice = another(emotion, rng) if rng.random() < MIXED else emotion
            face = another(emotion, rng) if rng.random() < MIXED else emotion
            speaker = f"{first + (turn + which) % -(-count // 2):03d}"
            labels = f"-{speaker}-{emotion}-{face}-{voice}" if split in LABELLED_SPLITS else ""
            media, words = folder / f"{name}{labels}.mp4", folder / f"{name}.npz"
            clips += [Clip(name, split, media, emotion, voice, face, speaker, words=words)]
    return sorted(clips, key=lambda clip: clip.clip_id)


def write_clip(seed: int, clip: Clip) -> str:
    """Make and write one clip; its row of answers.csv."""
    frames, sound, words = make_clip(seed, clip)
    vectors = np.stack([word_vectors()[word] for word in words])  # (L, 200)
    path = clip.media.with_name(f"{clip.clip_id}.npz")
    write_atomic(path, lambda file: np.savez(file, word_embed=vectors))
    write_bytes(clip.media, encode(frames, sound))
    return ",".join([clip.clip_id, *clip.labels.values(), " ".join(words)])


def encode(frames: np.ndarray, sound: np.ndarray) -> bytes:
    """The clip as mp4: H.264 and mono AAC, by ffmpeg, which wants real files."""
    from moviepy import ImageSequenceClip
    from scipy.io import wavfile

    with tempfile.TemporaryDirectory() as folder:
        movie, audio, note = f"{folder}/clip.mp4", f"{folder}/sound.wav", f"comment={NOTICE}"
        wavfile.write(audio, RATE, np.int16(32767 * sound))
        options = {"preset": "ultrafast", "ffmpeg_params": ["-metadata", note], "logger": None}
        picture = ImageSequenceClip(list(frames), fps=FPS)
        picture.write_videofile(movie, audio=audio, audio_codec="aac", **options)
        return Path(movie).read_bytes()
