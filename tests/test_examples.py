"""The scripts that make custom features: from sound, from words, from a table."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import wave
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, tone, voice, write_features
from inside import run_main

from examples import functionals
from extract import encoders
from inference.predictor import Predictor
from inference.sources import find_sources
from utils.errors import UsageError
from utils.files import keep_as_it_is

OWN_COMPILATIONS = functionals.own_compilations


def features_of(folder: Path, name: str) -> np.ndarray:
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    paths = [
        folder / row.split / name / f"{row.clip_id}.npy" for row in table.itertuples(name="Row")
    ]
    return np.stack([np.load(path) for path in paths])


def change(folder: Path, **columns: list | str) -> None:
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table.assign(**columns).to_csv(folder / "manifest.csv", index=False)


def write_wave(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((32_000 * samples).astype("<i2").tobytes())


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    """What librosa compiles, half a minute long, is kept for all tests of this process."""
    monkeypatch.setattr(functionals, "own_compilations", contextlib.nullcontext)
    monkeypatch.setattr(functionals, "available_cores", lambda: 1)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """Features without any feature of seven clips, and the clips themselves."""
    place = tmp_path_factory.mktemp("spoken")
    write_features(place / "f", 1, splits=("train",), modalities=("speech",))
    for index in range(7):
        beat = 1 + 0.5 * np.sin(np.arange(12_000) / 500)
        sound = tone(0.75, 150 + 20 * index) * beat * (1 + index) / 12
        write_wave(place / "train" / f"{index:05d}.wav", sound)
    media = [f"train/{index:05d}.wav" for index in range(7)]
    change(place / "f", media=media, speaker=list("aaaabbb"))
    return place


def start_functionals(place: Path, features: Path, *flags: object):
    places = ("--data_dir", place, "--features_dir", features)
    return run_main("examples.functionals", *places, *flags)


def part_of(spoken: Path, folder: Path, rows: slice, **columns: str) -> Path:
    """Features of some of the clips."""
    folder.mkdir()
    shutil.copy(spoken / "f" / "settings.json", folder)
    table = pd.read_csv(spoken / "f" / "manifest.csv", dtype=str, keep_default_na=False)
    table[rows].assign(**columns).to_csv(folder / "manifest.csv", index=False)
    return folder


def test_a_run_compiles_where_no_other_process_does(monkeypatch):
    for _ in range(2):
        monkeypatch.setenv("NUMBA_CACHE_DIR", "of all")
        with OWN_COMPILATIONS():
            folder = Path(os.environ["NUMBA_CACHE_DIR"])
            assert folder.is_dir() and not list(folder.iterdir())
        assert not folder.exists()


def functionals_are_by_speaker_and_speed(spoken):
    folder = spoken / "f"
    run = start_functionals(spoken, folder)
    assert run.code == 0 and "7 clips: 2144 numbers at 3 speeds each" in run.out, run.err
    assert "2 speakers with under 5 clips" in run.out
    values = features_of(folder, "functionals")
    assert values.shape == (7, 3, 2144) and values.dtype == np.float32
    for rows in (slice(0, 4), slice(4, 7)):
        np.testing.assert_allclose(values[rows].mean(axis=0), 0, atol=1e-3)
        assert values[rows].std(axis=0).max() < 1.001


def the_examples_are_encoders():
    for file, shape, options in (
        ("my_encoder.py", (5,), ",dtype=float32"),
        ("functionals.py", (3, 2144), ",pool=frames,dtype=float32"),
    ):
        _, settings = encoders.parse(f"x=speech:file:{ROOT / 'examples' / file}{options}")
        numbers = encoders.encode(settings, "cpu", voice(1.2))
        assert numbers.shape == shape and np.isfinite(numbers).all()


def functionals_as_an_encoder_are_those_of_the_script():
    wave = voice(1.2).astype("f2").astype("f4")
    _, settings = encoders.parse(f"x=speech:file:{ROOT / 'examples/functionals.py'},pool=frames")
    made = encoders.encode(settings | {"dtype": "float32"}, "cpu", wave)
    np.testing.assert_allclose(made, functionals.of_clip(functionals.at_speeds(wave, 0.0)))


def raw_functionals_know_the_clip_alone(spoken, tmp_path):
    """Neither its speaker nor any other clip changes them."""
    run = start_functionals(spoken, spoken / "f", "--raw")
    assert run.code == 0 and "7 clips: 2144 numbers at 3 speeds each" in run.out, run.err
    values = features_of(spoken / "f", "functionals_raw")
    assert values.shape == (7, 3, 2144) and np.isfinite(values).all()
    single = part_of(spoken, tmp_path / "single", slice(5, 6), speaker="")
    run = start_functionals(spoken, single, "--raw")
    assert run.code == 0 and "1 clip:" in run.out and "warning" not in run.out, run.err
    np.testing.assert_array_equal(features_of(single, "functionals_raw"), values[5:6])
    assert not (single / "train" / "functionals").exists()


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        (slice(0), {}, "has no usable clips"),
        (slice(7), {"speaker": ""}, "7 clips of .* without a speaker in the manifest: --raw does"),
        (slice(1), {"media": "train/gone.wav"}, "no file.*--data_dir is the folder"),
        (slice(1), {"media": "silent.wav"}, "silent.wav is silent"),
    ],
)
def test_functionals_without_usable_clips_say_why(spoken, tmp_path, rows, columns, says):
    write_wave(spoken / "silent.wav", np.zeros(16_000))
    run = start_functionals(spoken, part_of(spoken, tmp_path / "some", rows, **columns))
    assert run.code == 2 and re.search(says, run.err), run.err
    assert len([line for line in run.err.splitlines() if "functionals.py:" in line]) == 1


def test_a_sound_too_short_for_numbers_is_named(tmp_path):
    write_wave(tmp_path / "short.wav", tone(0.05))
    with pytest.raises(UsageError, match=r"only 0\.05 s of sound in short\.wav"):
        functionals.views(tmp_path / "short.wav")


@pytest.mark.parametrize("name", ["functionals", "ngrams"])
def test_manifests_of_older_features_are_named(spoken, tmp_path, name):
    folder = part_of(spoken, tmp_path / "old", slice(7))
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table = table.drop(columns=["media", "utterance"])
    table.to_csv(folder / "manifest.csv", index=False)
    places = ["--features_dir", folder] + (["--data_dir", spoken] if name == "functionals" else [])
    run = run_main(f"examples.{name}", *places)
    lacking = "media" if name == "functionals" else "utterance"
    assert run.code == 2 and f"manifest.csv lacks {lacking}: run preprocess.py" in run.err, run.err
    assert len(run.err.splitlines()) == 1


def a_sound_is_described():
    slow = functionals.describe(tone(1.0, 220), 0.5)
    fast = functionals.describe(tone(0.5, 440), 0.5)
    assert len(slow.values) == len(fast.values) == 2144 - 46 * 47 // 2
    assert len(slow.tracks) == len(fast.tracks) == 46
    np.testing.assert_allclose(np.median(slow.tracks[20]), np.log2(220), atol=0.05)
    np.testing.assert_allclose(np.median(fast.tracks[20]), np.log2(440), atol=0.05)
    assert np.isfinite(functionals.describe(np.zeros(3000, "f4") + 1e-3, 0).values).all()


def test_functionals(spoken, tmp_path):
    """One test, for every process that computes them compiles librosa first, for a minute."""
    a_sound_is_described()
    functionals_are_by_speaker_and_speed(spoken)
    raw_functionals_know_the_clip_alone(spoken, tmp_path)
    the_examples_are_encoders()
    functionals_as_an_encoder_are_those_of_the_script()


def test_a_beat_is_in_its_band():
    time = np.arange(125) / 62.5  # 2 s
    powers = functionals.beats(np.stack([np.sin(2 * np.pi * hertz * time) for hertz in (3, 6, 14)]))
    edges = functionals.BEATS
    found = powers.argmax(axis=1)
    for hertz, band in zip((3, 6, 14), found, strict=True):
        assert edges[band] <= hertz < edges[band + 1]


def test_parts_are_means_whatever_the_length():
    np.testing.assert_allclose(functionals.in_parts(np.arange(8), 4), [[0.5, 2.5, 4.5, 6.5]])
    for length in (3, 7, 100):
        np.testing.assert_allclose(functionals.in_parts(np.full(length, 5), 12), 5)


def words(folder: Path) -> tuple[list[str], list[str]]:
    """Transcripts whose one telling word is the class, in train with a word of their dialogue."""
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    dialogues = [f"{split}{index // 4}" for index, split in enumerate(table["split"])]
    true = dict(zip(table["clip_id"], table["emotion"], strict=True))
    texts = [
        f"well {label or 'hap'} {dialogue}, {label or 'hap'}!"
        for label, dialogue in zip(true.values(), dialogues, strict=True)
    ]
    return texts, dialogues


def test_ngrams_learn_from_train_and_answer_each_clip_from_elsewhere(tmp_path):
    folder = write_features(tmp_path / "f", 20, word_dim=4, modalities=("text",))
    texts, dialogues = words(folder)
    change(folder, transcript=texts, dialogue=dialogues, utterance=list(map(str, range(420))))
    run = run_main("examples.ngrams", "--features_dir", folder)
    assert run.code == 0 and "420 clips: 14 numbers each, learned from 140" in run.out, run.err
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    classes = sorted(set(table["emotion"]) - {""})
    values = features_of(folder, "ngrams")
    answers = np.array(classes)[values[:, :7].argmax(axis=1)]
    known = table["emotion"] != ""
    assert (answers == table["emotion"])[known].all(), "the telling word was not learnt"
    np.testing.assert_allclose(np.exp(values[:, :7]).sum(axis=1), 1, atol=1e-5)
    # a word that only the clip's own dialogue has tells its label, and must not be believed
    labels = np.random.default_rng(0).permutation(np.repeat(classes, 20))
    alone = [f"{'abcdefghijklmnopqrstuvwxyz'[k % 26]}{'qwxz'[k // 26]}ooz" for k in range(35)]
    train = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    train = train[train["split"] == "train"]
    train = train.assign(emotion=labels, dialogue=[f"d{k // 4}" for k in range(140)])
    label_of = train.groupby("dialogue")["emotion"].transform("first")
    train = train.assign(emotion=label_of, transcript=[alone[k // 4] for k in range(140)])
    train.to_csv(folder / "manifest.csv", index=False)
    assert run_main("examples.ngrams", "--features_dir", folder).code == 0
    answers = np.array(sorted(set(label_of)))[features_of(folder, "ngrams")[:, :7].argmax(axis=1)]
    assert (answers == label_of.to_numpy()).mean() < 0.5


def test_ngrams_for_a_fold_know_nothing_of_its_labels(tmp_path):
    folder = write_features(tmp_path / "f", 20, word_dim=4, modalities=("text",))
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    letters = {"0": "abcdefg", "1": "hijklmn", "": "opqrstu"}  # an emotion's in each fold
    known = sorted(set(table["emotion"]))[-7:]
    said = [
        4 * letters[row.fold][known.index(row.emotion)] if row.emotion else "yes"
        for row in table.itertuples()
    ]
    change(folder, transcript=said, dialogue="")
    assert run_main("examples.ngrams", "--features_dir", folder).code == 0
    run = run_main("examples.ngrams", "--features_dir", folder, "--fold", 0)
    assert run.code == 0 and "learned from 140" in run.out, run.err
    judged = (table["fold"] == "0") & (table["emotion"] != "")
    classes = np.array(sorted(set(table["emotion"]) - {""}))
    right = {
        name: classes[features_of(folder, name)[:, :7].argmax(axis=1)] == table["emotion"]
        for name in ("ngrams", "ngrams_0")
    }
    assert right["ngrams"][judged].mean() > 0.9 and right["ngrams_0"][judged].mean() < 0.4
    command = ["--mode", "multimodal", "--features_dir", folder, "--logs_dir", tmp_path]
    command += ["--exp_name", "a", "--dry_run", "--inputs"]
    for inputs, fold, code in (("ngrams", 0, 4), ("ngrams_0", 1, 4), ("ngrams_0", 0, 0)):
        run = run_main("train", *command, inputs, "--fold", fold)
        assert run.code == code, run.err
        assert code == 0 or "was learnt from the labels" in run.err
    assert run_main("train", *command, "ngrams").code == 0
    assert run_main("examples.ngrams", "--features_dir", folder, "--fold", 7).code == 2


SAYINGS = {
    "joy": "what a wonderful lovely day",
    "anger": "get out you stupid liar",
    "sadness": "i miss her and cry",
    "neutral": "the table is over there",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Made tables of MELD's form, with features and a run whose only input are the n-grams."""
    place, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    known = sorted({word for saying in SAYINGS.values() for word in saying.split()})
    np.savez(place / "vectors.npz", words=known, vectors=rng.normal(size=(len(known), 4)))
    for split, dialogues in (("train", 40), ("dev", 12), ("test", 12)):
        rows = ["Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID"]
        for dialogue in range(dialogues):
            for number, emotion in enumerate(rng.permutation([*SAYINGS])):
                said = " ".join(rng.choice(SAYINGS[emotion].split(), 4)) + "!" * (number % 2)
                rows.append(f"{said},{split}{dialogue % 5},{emotion},{dialogue},{number}")
        (place / f"{split}_sent_emo.csv").write_text("\n".join([*rows, ""]))
    features = ("--features_dir", place / "f")
    made = ("--corpus", "meld", "--data_dir", place, "--modalities", "text", "--workers", 1)
    done = run_main("preprocess", *made, "--word_vectors", place / "vectors.npz", *features)
    assert done.code == 0, done.err
    assert run_main("examples.ngrams", *features).code == 0
    done = train_on_ngrams(place, "a")
    assert done.code == 0, done.err
    return place


def train_on_ngrams(place: Path, name: str, *more: object):
    size = ("--n_epoch", 8, "--batch_size", 16, "--num_workers", 0, "--device", "cpu")
    recipe = ("--optim", "adamw", "--learning_rate", 0.01, "--mixup_prob", 0, *size)
    flags = ("--mode", "multimodal", "--inputs", "ngrams", "--exp_name", name, *recipe, *more)
    return run_main("train", *flags, "--features_dir", place / "f", "--logs_dir", place / "logs")


def predict_by_ngrams(place: Path, out: Path, *flags: object):
    run = place / "logs" / "multimodal" / "a"
    return run_main("predict", *flags, "--checkpoints", run, "--out", out, "--device", "cpu")


def ngrams_of(place: Path) -> str:
    return f"ngrams={ROOT / 'examples' / 'ngrams.py'}@{place / 'f' / 'ngrams.npz'}"


def test_a_model_of_ngrams_answers_for_a_sentence_and_for_a_clip(scenes, tmp_path):
    asked = ("--text", "you liar, get out!")
    done = predict_by_ngrams(scenes, tmp_path, *asked)
    named = f"examples/ngrams.py@{scenes / 'f' / 'ngrams.npz'}"
    assert done.code == 2 and "which is run only if you say so" in done.err and named in done.err
    write_wave(tmp_path / "clip.wav", tone(0.75))
    for clip in ([], [tmp_path / "clip.wav"]):
        done = predict_by_ngrams(scenes, tmp_path, *clip, *asked, "--encoder", ngrams_of(scenes))
        assert done.code == 0, done.err
        (row,) = pd.read_csv(tmp_path / "predictions.csv").to_dict("records")
        assert row["answer"] == "ang" and row["ang"] > 0.5


def test_words_without_vectors_cost_the_encoder_of_words_nothing(scenes):
    small = ("--text_layers", 1, "--text_heads", 1, "--n_epoch", 1, "--modality_dropout", 0.3)
    done = train_on_ngrams(scenes, "both", "--inputs", "text,ngrams", *small)
    assert done.code == 0, done.err
    encoder, run = dict([ngrams_of(scenes).split("=")]), scenes / "logs" / "multimodal" / "both"
    vectors = scenes / "vectors.npz"
    predictor = Predictor([run], device="cpu", encoders=encoder, word_vectors=vectors)
    predictor.look_up(["get out", "vade retro"])
    prediction = predictor.predict(*find_sources([], "vade retro"))
    assert prediction.rests_on == ["ngrams"] and [*prediction.missing] == ["text"]


def test_ngrams_of_a_sentence_are_those_of_a_clip_that_begins_its_dialogue(scenes, tmp_path):
    table = pd.read_csv(scenes / "f" / "manifest.csv", dtype=str)
    first = table[(table["split"] != "train") & (table["utterance"] == "0")]
    later = table[(table["split"] != "train") & (table["utterance"] == "1")]
    encoder = dict([ngrams_of(scenes).split("=")])
    run = scenes / "logs" / "multimodal" / "a"
    predictor = Predictor([run], folder=tmp_path, device="cpu", encoders=encoder)
    same = {"first": [], "later": []}
    for name, rows in (("first", first), ("later", later)):
        for row in rows.itertuples():
            prediction = predictor.predict(*find_sources([], row.transcript))
            assert prediction.rests_on == ["ngrams"]
            made = (tmp_path / "clips" / "ngrams" / "text.npy").read_bytes()
            there = scenes / "f" / row.split / "ngrams" / f"{row.clip_id}.npy"
            same[name].append(made == there.read_bytes())
    assert len(same["first"]) == 24 and all(same["first"])
    assert not any(same["later"]), "their place and what was said before count"


def test_what_ngrams_have_learnt_belongs_to_the_run(scenes, tmp_path):
    shutil.copytree(scenes, place := tmp_path / "scenes")
    features, npz = place / "f", place / "f" / "ngrams.npz"
    report = ("--out", tmp_path / "report", "--features_dir", features)
    asked = ("--text", "get out", "--encoder", ngrams_of(place))
    before = npz.read_bytes()
    assert run_main("examples.ngrams", "--features_dir", features).code == 0
    assert npz.read_bytes() == before, "the same clips teach the same"
    run = ("--checkpoints", place / "logs" / "multimodal" / "a")
    assert run_main("evaluate", *run, *report).code == 0
    npz.write_bytes(before[: len(before) // 2])
    done = predict_by_ngrams(place, tmp_path, *asked)
    assert done.code == 4 and "ngrams.npz is damaged, or none of ngrams.py" in done.err, done.err
    table = pd.read_csv(features / "manifest.csv", dtype=str, keep_default_na=False)
    labels = {"hap": "ang", "ang": "hap"}
    train = table["split"] == "train"
    change(features, emotion=table["emotion"].where(~train, table["emotion"].replace(labels)))
    encoders.load.cache_clear()  # of a process before
    assert run_main("examples.ngrams", "--features_dir", features).code == 0
    done = run_main("evaluate", *run, *report)
    assert done.code == 4 and "ngrams" in done.err, done.err
    done = predict_by_ngrams(place, tmp_path, *asked)
    assert done.code == 4 and "the encoder ngrams from" in done.err, done.err


def test_preprocess_asks_no_encoder_that_knows_the_labels(scenes, tmp_path):
    made = ("--corpus", "meld", "--data_dir", scenes, "--modalities", "text", "--workers", 1)
    made += ("--word_vectors", scenes / "vectors.npz", "--features_dir", tmp_path)
    flag = ngrams_of(scenes).replace("ngrams=", "again=text:file:")
    done = run_main("preprocess", *made, "--encoder", flag)
    assert done.code == 2 and "has learnt the labels of clips" in done.err, done.err
    flag = f"again=text:file:{ROOT / 'examples' / 'ngrams.py'}"
    done = run_main("preprocess", *made, "--encoder", flag)
    assert done.code == 2 and "needs what it has learnt" in done.err, done.err


def test_beats_of_a_long_clip_count_its_end():
    bands = np.random.default_rng(0).normal(size=(4, 900))
    other = bands.copy()
    other[:, 600:] = np.sin(np.arange(300) / 2)
    assert np.abs(functionals.beats(bands) - functionals.beats(other)).max() > 0.5
    short = bands[:, :200]
    power = functionals.modulation(short)
    assert functionals.beats(short).shape == (4, 10) and power.shape == (4, 129)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "100 or more training clips with words"),
        ({"transcript": "hello there", "emotion": "hap"}, "nothing to learn from, "),
        (
            {"transcript": "hello there", "dialogue": "one", "utterance": "first"},
            "nothing to learn from, ",
        ),
        ({"transcript": list(map(str, range(140)))}, "nothing to learn from, "),
    ],
)
def test_ngrams_need_words_classes_and_dialogues(tmp_path, columns, says):
    folder = write_features(tmp_path / "f", 20, splits=("train",), modalities=("text",))
    change(folder, **columns)
    run = run_main("examples.ngrams", "--features_dir", folder)
    assert run.code == 2 and says in run.err and len(run.err.splitlines()) == 1, run.err
    assert not (folder / "ngrams.json").exists()


def test_ngrams_of_no_clip_or_one_are_refused(spoken, tmp_path):
    for count in (0, 1):
        folder = part_of(spoken, tmp_path / f"{count}", slice(count), transcript="hello")
        run = run_main("examples.ngrams", "--features_dir", folder)
        assert run.code == 2 and "100 or more training clips with words" in run.err, run.err


@pytest.fixture
def table(tmp_path) -> tuple[Path, pd.DataFrame]:
    """Features of the clips y-00000 ..., and a table of the clips x-00000 ... in another order."""
    write_features(tmp_path / "f", 2, splits=("train", "val"), modalities=("speech",))
    ids = [f"{k:05d}" for k in range(28)]
    change(tmp_path / "f", clip_id=[f"y-{name}" for name in ids])
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(5, 3, (28, 3)), columns=["AU01", "AU02", "speech"])
    return tmp_path, rows.assign(clip=[f"x-{name}" for name in ids]).sample(frac=1, random_state=0)


def start_table(place: Path, rows: pd.DataFrame, *args: object):
    rows.to_csv(place / "t.csv", index=False)
    places = [place / "t.csv", "--features_dir", place / "f", "--name", "au"]
    return run_main("examples.table", *places, *args)


@pytest.mark.parametrize("raw", [True, False])
def test_a_table_becomes_a_feature(table, raw):
    place, rows = table
    run = start_table(place, rows, "--columns", "AU*", "--skip", 2, *["--raw"] * raw)
    assert run.code == 0 and "28 clips: 2 numbers each" in run.out, run.err
    values, wanted = features_of(place / "f", "au"), rows.sort_values("clip")[["AU01", "AU02"]]
    if raw:
        np.testing.assert_allclose(values, wanted, rtol=1e-6)
        return
    clips = pd.read_csv(place / "f" / "manifest.csv", dtype=str)
    for _, own in clips.groupby("speaker").indices.items():
        np.testing.assert_allclose(values[own].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(values[own].std(axis=0), 1, atol=1e-3)


def test_no_feature_is_written_under_who_reads(table):
    place, rows = table
    with keep_as_it_is(place / "f"):
        run = start_table(place, rows, "--skip", 2)
        other = start_functionals(place, place / "f")
    assert run.code == other.code == 5 and "is in use by process" in run.err, run.err
    assert not (place / "f" / "train" / "au").exists()


@pytest.mark.parametrize(
    "args, spoil, says",
    [
        ([], lambda rows: rows[:-3], "no row for 28 of 28 clips"),
        (["--skip", 2], lambda rows: rows[:-3], "no row for 3 of 28 clips"),
        (["--skip", 2], lambda rows: pd.concat([rows, rows[:1]]), "1 row of the name"),
        (["--skip", 2], lambda rows: rows.assign(AU01="high"), "could not convert"),
        (["--skip", 2], lambda rows: rows.assign(AU01=np.nan), "not all finite numbers: AU01\n"),
        (["--skip", 2, "--columns", "zz*"], lambda rows: rows, "named like 'zz*'; it has AU01, AU"),
        (["--skip", 2], lambda rows: rows[["clip"]], "named like 'AU*'; it has no column but that"),
        (["--id", "name"], lambda rows: rows, "no column 'name' for --id; it has AU01, AU02, spee"),
        ([], lambda rows: rows[:0], "no row for 28 of 28 clips"),
        (["--name", "../up"], lambda rows: rows, "expected a new name"),
        (["--name", "video"], lambda rows: rows, "expected a new name"),
        (["--name", "wave"], lambda rows: rows, "expected a new name"),
        (["--name", "transcripts"], lambda rows: rows, "expected a new name"),
        (["--name", "made"], lambda rows: rows, "expected a new name"),
    ],
)
def test_a_faulty_table_is_refused(table, args, spoil, says):
    place, rows = table
    settings = json.loads((place / "f" / "settings.json").read_text())
    settings["features"]["made"] = {"library": "hf", "input": "speech", "reads": "wave"}
    (place / "f" / "settings.json").write_text(json.dumps(settings))
    spoilt = spoil(rows)
    run = start_table(place, spoilt, "--columns", "AU*", *args)
    assert run.code == 2 and says in run.err and len(run.err.splitlines()) < 3, run.err
    assert not (place / "f" / "train" / "au").exists()


def test_tables_of_no_clip_or_one(table):
    place, rows = table
    manifest = pd.read_csv(place / "f" / "manifest.csv", dtype=str, keep_default_na=False)
    manifest[:1].to_csv(place / "f" / "manifest.csv", index=False)
    run = start_table(place, rows, "--columns", "AU*", "--skip", 2)
    assert run.code == 0 and "1 speaker with under 5 clips" in run.out, run.err
    assert "1 clip: 2 numbers each" in run.out
    assert (features_of(place / "f", "au") == 0).all()
    manifest[:1].drop(columns="speaker").to_csv(place / "f" / "manifest.csv", index=False)
    run = start_table(place, rows, "--columns", "AU*", "--skip", 2)
    assert run.code == 2 and "no speaker in the manifest: give --raw" in run.err
    manifest[:0].to_csv(place / "f" / "manifest.csv", index=False)
    run = start_table(place, rows, "--columns", "AU*", "--skip", 2)
    assert run.code == 2 and "has no usable clips" in run.err and run.err.count("\n") == 1


def test_spaces_of_a_header_do_not_count(table):
    """OpenFace writes `clip, AU01_r, AU02_r`."""
    place, rows = table
    run = start_table(place, rows.rename(columns=" {} ".format), "--columns", "AU*", "--skip", 2)
    assert run.code == 0 and "28 clips: 2 numbers each" in run.out, run.err


@pytest.mark.parametrize("content", [None, "a,b\n1\n1,2,3,4\n", ""])
def test_what_is_no_table_is_refused(table, content):
    place, _ = table
    if content is not None:
        (place / "no.csv").write_text(content)
    run = run_main(
        "examples.table", place / "no.csv", "--name", "au", "--features_dir", place / "f"
    )
    assert run.code == 2 and "no.csv as a CSV" in run.err, run.err


def test_the_scripts_say_what_they_do():
    for name in ("functionals", "ngrams", "table"):
        run = run_main(f"examples.{name}", "--help")
        assert run.code == 0 and "custom feature" in run.out
