"""The public corpora: names and tables -> clips; folds by speaker; a choice of classes."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
from test_corpora import codes, csv_corpus

from corpora import ased, crema_d, javanese, list_corpus, meld, ravdess
from corpora.manifest import Clip, Listing, keep_classes
from corpora.splits import assign_folds, speaker_folds
from extract.unlisted import not_listed
from utils.errors import UsageError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def ids(listing: Listing) -> list[str]:
    return [clip.clip_id for clip in listing.clips]


# --- RAVDESS ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "emotion", "speaker", "fold", "sentence"),
    [
        ("03-01-01-01-01-01-01.wav", "neu", "Actor_01", "4", "Kids are talking by the door"),
        ("03-01-02-01-02-01-02.wav", "cal", "Actor_02", "0", "Dogs are sitting by the door"),
        ("03-01-03-02-01-02-13.flac", "hap", "Actor_13", "1", "Kids are talking by the door"),
        ("03-01-04-02-02-02-20.flac", "sad", "Actor_20", "2", "Dogs are sitting by the door"),
        ("01-01-05-01-01-01-24.mp4", "ang", "Actor_24", "3", "Kids are talking by the door"),
        ("01-01-06-01-01-01-09.mp4", "fea", "Actor_09", "4", "Kids are talking by the door"),
        ("01-01-07-01-01-01-16.mp4", "dis", "Actor_16", "0", "Kids are talking by the door"),
        ("01-01-08-01-02-01-19.mp4", "sur", "Actor_19", "2", "Dogs are sitting by the door"),
    ],
)
def test_ravdess_names(name, emotion, speaker, fold, sentence):
    clip = ravdess.parse_name(Path("Actor", name))
    assert clip.clip_id == name.rsplit(".", 1)[0] and clip.split == "train"
    assert (clip.speaker, clip.fold, clip.transcript) == (speaker, fold, sentence)
    assert set(clip.labels.values()) == {emotion}


def test_every_ravdess_actor_is_held_out_once():
    assert sorted(actor for held in ravdess.FOLDS for actor in held) == list(range(1, 25))


SOUND, SEEN, MUTE = "03-01-03-01-01-01-02", "01-01-03-01-01-01-02", "02-01-03-01-01-01-02"
SONG = "03-02-03-01-01-01-02"


@pytest.mark.parametrize(
    ("names", "listed", "modalities", "left_out"),
    [
        ([f"{SOUND}.wav"], [SOUND], ("speech",), ""),
        ([f"{SOUND}.WAV", "notes-01.txt", ".DS_Store"], [SOUND], ("speech",), ""),
        ([f"{SEEN}.mp4", f"{MUTE}.mp4"], [SEEN], ("speech", "video"), "1 clip of speech without"),
        ([f"{SEEN}.mp4", f"{SOUND}.wav"], [SEEN], ("speech", "video"), "1 clip of speech (03-01"),
        ([f"{SOUND}.flac", f"{SONG}.flac"], [SOUND], ("speech",), "1 clip of song (03-02-...)"),
        ([f"{SEEN}.wav"], [SEEN], ("speech",), ""),
    ],
)
def test_ravdess_takes_one_kind_and_says_what_it_leaves(
    tmp_path, names, listed, modalities, left_out
):
    listing = list_corpus("ravdess", touch(tmp_path, *(f"Actor_02/{name}" for name in names)))
    assert (ids(listing), listing.modalities) == (listed, modalities)
    assert len(listing.notes) == bool(left_out) and left_out in "".join(listing.notes)


def test_ravdess_copies_deeper_down_are_not_twins(tmp_path):
    """A well-known mirror holds every folder twice. What lies deeper alone counts."""
    name, other = f"Actor_02/{SOUND}.wav", f"{SOUND[:-2]}04"
    touch(tmp_path, name, f"Audio_Speech/{name}", f"Audio_Speech/Actor_04/{other}.wav")
    for path in tmp_path.rglob("*.wav"):
        path.write_bytes(path.name.encode())
    listing = list_corpus("ravdess", tmp_path)
    assert ids(listing) == [SOUND, other] and listing.clips[0].media == tmp_path / name
    (tmp_path / f"Audio_Speech/Actor_04/{other}.wav").unlink()
    (tmp_path / name).unlink()
    (tmp_path / "Actor_02").rmdir()
    assert ids(list_corpus("ravdess", tmp_path)) == [SOUND]


def test_ravdess_faults_have_codes(tmp_path):
    bad, twin = "03-01-09-01-01-01-02", "03-01-01-01-01-01-02"
    names = (f"Actor_02/{name}" for name in (f"{bad}.wav", f"{twin}.wav", f"{twin}.flac"))
    assert codes(list_corpus("ravdess", touch(tmp_path, *names))) == {
        bad: "E_LABELS",
        twin: "E_DUP",
    }


# --- what a folder holds beside its clips ---------------------------------------------------------


def beside(corpus: str, folder: Path, *names: str, classes: str = "") -> list[str]:
    """What preprocess.py says of media files of these names that no clip is of."""
    for name in names:
        touch(folder, name)
        (folder / name).write_text(name)  # no two alike, or they would be copies
    listing = list_corpus(corpus, folder)
    listing = keep_classes(listing, classes) if classes else listing
    return not_listed(corpus, folder, listing)


MERC = "qia2020/train"
OTHERS = "of other names or kinds:"
LEFT_OUT = [
    ("merc2020", [f"{MERC}/1-a-hap-hap-hap.mp4"], ["a.avi", "b.mov"], "qia2020/train/"),
    ("ravdess", [f"A/{SOUND}.wav"], [f"{SEEN}.ogg", "weird.wav"], "A/"),
    ("ravdess", [f"A/{SOUND}.wav"], ["FILM.DIVX", "talk.sph"], "A/"),
    ("crema_d", ["1001_DFA_ANG_XX.wav"], ["1001.wav", "film.wmv"], ""),
    ("javanese", ["01-03-05_01.mp4"], ["01-03-05_01.mkv", "x.mp4"], ""),
    ("ased", ["a1-03-01-02-15.wav"], ["a1.wav", "x.ra"], ""),
    ("images", ["happy/1.png"], ["2.gif", "film.mp4"], "happy/"),
]


@pytest.mark.parametrize(("corpus", "clips", "others", "place"), LEFT_OUT)
def test_media_that_are_no_clip_are_told(tmp_path, corpus, clips, others, place):
    assert beside(corpus, tmp_path, *clips) == []
    hidden = (f"{place}._x.mp4", f"__MACOSX/{place}x.mp4", ".trash/x.mp4", "notes.txt")
    assert beside(corpus, tmp_path, *hidden) == []
    first, second = (f"{place}{name}" for name in others)
    assert beside(corpus, tmp_path, first) == [f"1 file {OTHERS} {first}"]
    assert beside(corpus, tmp_path, second) == [f"2 files {OTHERS} {first}, {second}"]
    [line] = beside(corpus, tmp_path, f"{place}z.divx")
    assert line.startswith("3 files") and line.endswith(" and 1 more")


def test_what_another_note_tells_is_told_once(tmp_path):
    assert beside("ravdess", tmp_path / "r", f"{SOUND}.wav", f"{SEEN}.mp4", f"{SONG}.wav") == []
    shared = ["1001_DFA_ANG_XX.wav", "1001_DFA_ANG_XX.flv", "1002_DFA_HAP_XX.flv"]
    assert beside("crema_d", tmp_path / "c", *shared, classes="ang,sad") == []
    assert beside("images", tmp_path / "i", "happy/1.png", "2.png") == []
    folder = touch(tmp_path / "copies", f"A/{SOUND}.wav", f"B/A/{SOUND}.wav")
    for path in folder.rglob("*.wav"):
        path.write_text("the same")
    assert beside("ravdess", folder) == []


def test_a_corpus_of_tables_tells_media_only_where_some_lie(tmp_path):
    (tmp_path / "labels.txt").write_text("joy sadness")
    (tmp_path / "train.tsv").write_text("Good!\t0\tone\n")
    assert beside("goemotions", tmp_path) == []
    assert beside("goemotions", tmp_path, "x.mp3") == [f"1 file {OTHERS} x.mp3"]


def test_other_folders_beside_the_challenges_are_not_looked_through(tmp_path):
    """--data_dir is the current folder where nothing else is given."""
    assert beside("merc2020", tmp_path, f"{MERC}/1-a-hap-hap-hap.mp4", "logs/answer.mp4") == []
    name = "qia2020/valid/2-a-hap-hap-hap.mp4"  # whose folder is misspelt
    assert beside("merc2020", tmp_path, name) == [f"1 file {OTHERS} {name}"]


# --- CREMA-D ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "emotion", "speaker", "words"),
    [
        ("1001_DFA_ANG_XX.wav", "ang", "1001", "Don't forget a jacket"),
        ("1091_IEO_DIS_HI.flv", "dis", "1091", "It's eleven o'clock"),
        ("1040_ITH_SAD_X.mp4", "sad", "1040", "I think I have a doctor's appointment"),
        ("1002_WSI_NEU_LO.mp3", "neu", "1002", "We'll stop in a couple of minutes"),
    ],
)
def test_crema_d_names(tmp_path, name, emotion, speaker, words):
    [clip] = list_corpus("crema_d", touch(tmp_path, f"any/{name}")).clips
    assert (clip.emotion, clip.speaker, clip.transcript) == (emotion, speaker, words)
    assert clip.split == "train" and clip.emotion in crema_d.CLASSES


def test_crema_d_reads_each_clip_once(tmp_path):
    stems = [f"10{actor:02d}_TIE_HAP_XX" for actor in range(10)]
    for folder, ending in (("AudioWAV", "wav"), ("AudioMP3", "mp3")):
        touch(tmp_path / folder, *(f"{stem}.{ending}" for stem in stems))
    sound = list_corpus("crema_d", tmp_path)
    assert (ids(sound), sound.modalities) == (stems, ("speech",))
    assert sound.notes == ["10 files .mp3: .wav is read instead"]
    assert Counter(clip.fold for clip in sound.clips) == dict.fromkeys("01234", 2)
    touch(tmp_path / "VideoFlash", f"{stems[0]}.flv")
    assert list_corpus("crema_d", tmp_path).modalities == ("speech", "video")


# --- Javanese, ASED ------------------------------------------------------------------------------


def test_javanese_names(tmp_path):
    names = ("01-01-01_01.mp4", "02-04-06_01.mp4", "10-03-05_02.MP4", "notes-01.mp4")
    clips = {clip.clip_id: clip for clip in javanese.list_clips(touch(tmp_path, *names)).clips}
    said = {name: (clip.emotion, clip.speaker, clip.fold) for name, clip in clips.items()}
    assert said == {
        "01-01-01_01": ("neu", "01", "0"),
        "02-04-06_01": ("ang", "02", "0"),
        "10-03-05_02": ("fea", "10", "4"),
    }
    listing = javanese.list_clips(touch(tmp_path / "odd", "01-01-07_01.mp4"))
    assert codes(listing) == {"01-01-07_01": "E_LABELS"}


def test_ased_names(tmp_path):
    names = ("a5-01-02-01-07.wav", "S4-04-02-01-29.mp3", "n1-01-01-02-65.mp3", "x1-01-01-01-01.wav")
    clips = {clip.clip_id: clip for clip in ased.list_clips(touch(tmp_path, *names)).clips}
    said = {name: (clip.emotion, clip.speaker) for name, clip in clips.items()}
    assert said == {
        "a5-01-02-01-07": ("ang", "07"),
        "S4-04-02-01-29": ("sad", "29"),
        "n1-01-01-02-65": ("neu", "65"),
    }


@pytest.mark.parametrize(("corpus", "expected"), [("javanese", "01-03-05_01"), ("ased", "a1-03")])
def test_a_folder_without_their_clips_says_what_is_expected(tmp_path, corpus, expected):
    with pytest.raises(UsageError, match=expected):
        list_corpus(corpus, tmp_path)


# --- MELD ---------------------------------------------------------------------------------------

HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,"
    "StartTime,EndTime\n"
)


def meld_table(folder: Path, name: str, *rows: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f'1,"{words}",{who},{label},x,{ids},4,7,"0","1"\n' for words, who, label, ids in rows)
    (folder / name).write_bytes("".join([HEADER, *lines]).encode("utf-8", "surrogateescape"))


def test_meld_needs_its_tables_alone(tmp_path):
    meld_table(tmp_path / "a", "train_sent_emo.csv", ("Hi, you", "Ross", "joy", "0,3"))
    meld_table(tmp_path, "dev_sent_emo.csv", ("No!", "Joey", "anger", "0,3"))
    meld_table(tmp_path, "test_sent_emo.csv", ("Why?", "All", "boredom", "7,0"))
    listing = list_corpus("meld", tmp_path)
    assert listing.modalities == ("text",) and codes(listing) == {"dia7_utt0": "E_LABELS"}
    first, second = listing.clips
    assert (first.split, first.clip_id, first.emotion) == ("train", "dia0_utt3", "hap")
    assert (first.speaker, first.transcript) == ("Ross", "Hi, you")
    assert (first.dialogue, first.utterance, second.dialogue) == ("train0", "3", "val0")
    assert (second.split, second.emotion) == ("val", "ang")
    assert first.media == tmp_path / "train_splits/dia0_utt3.mp4"  # where it would be
    touch(tmp_path, "MELD.Raw/train/train_splits/dia0_utt3.mp4")
    listing = list_corpus("meld", tmp_path)
    assert listing.modalities == ("speech", "video", "text") and listing.clips[0].media.is_file()


@pytest.mark.parametrize(
    ("damaged", "meant"),
    [
        ("you\x92re", "you’re"),
        ("\x93Well\x85\x94 \x96 caf\xe9", "“Well…” – café"),
        ("you\udc92re", "you’re"),  # a byte that is no UTF-8
        ("you’re", "you’re"),
        ("\x81", "\ufffd"),  # means nothing in Windows-1252 either
    ],
)
def test_meld_quotes_are_repaired(tmp_path, damaged, meant):
    meld_table(tmp_path, "dev_sent_emo.csv", (damaged, "Ross", "neutral", "0,0"))
    assert [clip.transcript for clip in list_corpus("meld", tmp_path).clips] == [meant]


def test_meld_is_what_its_paper_counts():
    if "MELD_DIR" not in os.environ:
        pytest.skip("MELD_DIR does not say where MELD's tables are")
    listing = list_corpus("meld", Path(os.environ["MELD_DIR"]))
    splits = Counter(clip.split for clip in listing.clips)
    assert splits == {"train": 9989, "val": 1109, "test": 2610} and not listing.failures
    assert {clip.emotion for clip in listing.clips} == set(meld.CLASSES)


@pytest.mark.parametrize("corpus", ["ravdess", "crema_d", "meld"])
def test_a_folder_of_something_else_is_refused(tmp_path, corpus):
    with pytest.raises(UsageError, match=r"expected .*--data_dir"):
        list_corpus(corpus, touch(tmp_path, "x.mp4"))


# --- a choice of classes ------------------------------------------------------------------------


def eight() -> Listing:
    clips = [Clip(name, "train", Path(name), *[name] * 3) for name in ravdess.CLASSES]
    return Listing(ravdess.CLASSES, ("speech",), [*clips, Clip("x", "test", Path("x"))])


def test_other_classes_are_left_out_aloud():
    listing = keep_classes(eight(), "sad,hap,neu+cal")
    assert listing.classes == ("sad", "hap", "neu")
    kept = {clip.clip_id: clip.emotion for clip in listing.clips}
    assert kept == {"neu": "neu", "cal": "neu", "hap": "hap", "sad": "sad", "x": ""}
    assert listing.notes == ["4 clips of other classes (ang 1, fea 1, dis 1, sur 1)"]
    assert keep_classes(eight(), "neu,cal,hap,sad,ang,fea,dis,sur").notes == []


@pytest.mark.parametrize("wanted", ["hap", "hap,joy", "hap,hap", "neu+cal,cal", "hap,", "hap+sad"])
def test_impossible_classes_are_refused(wanted):
    with pytest.raises(UsageError, match=r"--classes .*neu cal hap"):
        keep_classes(eight(), wanted)


# --- folds by speaker ---------------------------------------------------------------------------


def speakers(count: int, seed: int = 0) -> dict[str, Counter]:
    rng = random.Random(seed)
    return {f"s{i}": Counter({k: rng.choice([7, 8, 8]) for k in "abcdef"}) for i in range(count)}


@pytest.mark.parametrize("count", [5, 10, 24, 91])
def test_folds_are_balanced_and_know_no_order(count):
    labels = speakers(count)
    folds = speaker_folds(labels, 5)
    assert folds == speaker_folds(dict(reversed(labels.items())), 5)
    for label in "abcdef":
        held = Counter()
        for speaker, fold in folds.items():
            held[fold] += labels[speaker][label]
        assert len(held) == 5 and max(held.values()) <= 1.1 * held.total() / 5 + 8


def test_one_more_speaker_moves_few():
    labels = speakers(91)
    before = speaker_folds(labels, 5)
    for name in ("anna", "ben", "carl"):
        after = speaker_folds({**labels, name: Counter(dict.fromkeys("abcdef", 8))}, 5)
        assert sum(after[speaker] != fold for speaker, fold in before.items()) <= 5


def test_folds_need_to_know_every_speaker():
    known = [Clip(name, "train", Path(name), "hap", speaker=name) for name in "abc"]
    test = Clip("t", "test", Path("t"), speaker="a")
    folds = {clip.clip_id: clip.fold for clip in assign_folds([*known, test])}
    assert sorted(folds[name] for name in "abc") == ["0", "1", "2"] and folds["t"] == ""
    assert assign_folds(known[:1]) == known[:1]
    unknown = [*known, Clip("d", "val", Path("d"), "hap")]
    assert assign_folds(unknown) == unknown


@pytest.mark.parametrize(
    ("columns", "rows", "folds"),
    [
        ("speaker", ["anna", "ben"], {"0", "1"}),
        ("speaker", ["anna", ""], {""}),
        ("speaker,fold", ["anna,x", "ben,"], {"x", ""}),
        ("note", ["anna", "ben"], {""}),
    ],
)
def test_your_own_speakers_get_folds(tmp_path, columns, rows, folds):
    lines = (f"{number}.mp4,train,hap,{row}" for number, row in enumerate(rows))
    listing = csv_corpus(tmp_path, "\n".join([f"media,split,emotion,{columns}", *lines]))
    assert {clip.fold for clip in listing.clips} == folds


# --- GoEmotions ---------------------------------------------------------------------------------


def test_goemotions_takes_the_comments_with_one_emotion(tmp_path):
    (tmp_path / "labels.txt").write_text("anger\ndisgust\njoy\n")
    (tmp_path / "train.tsv").write_text('so good\t2\taa\nYuck\t1\tee\nno "idea\t0,2\tbb\n', "utf-8")
    (tmp_path / "dev.tsv").write_text("yuck\t1\tcc\n", "utf-8")
    listing = list_corpus("goemotions", tmp_path)
    found = [(clip.clip_id, clip.split, clip.emotion, clip.transcript) for clip in listing.clips]
    assert found == [("aa", "train", "hap", "so good"), ("cc", "val", "dis", "yuck")]
    assert listing.modalities == ("text",) and listing.notes == [
        "1 comment of train that stands in dev or test, too",
        "1 comment with several emotions",
    ]
    (tmp_path / "test.tsv").write_text("bad line\t7\tdd\n")
    with pytest.raises(UsageError, match=r"test\.tsv line 1: expected text, numbers below 3"):
        list_corpus("goemotions", tmp_path)
