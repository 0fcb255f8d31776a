"""Raw folders -> lists of clips: every clip that is found is listed, as usable or with a code."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from conftest import CLASSES, run_script

from corpora import list_corpus, merc2020
from corpora.manifest import Clip, Listing, check_listing
from utils.errors import UsageError


def csv_corpus(folder: Path, table: str, *names: str) -> Listing:
    """A folder with this manifest.csv and empty files of these names, listed."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "manifest.csv").write_bytes(table.encode())
    return list_corpus("csv", folder)


def codes(listing: Listing) -> dict[str, str]:
    return {failure.clip_id: failure.code for failure in listing.failures}


# --- MERC2020 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "clip_id", "labels"),
    [
        ("00012-045-hap-ang-neu.mp4", "train", "00012", ("hap", "ang", "neu")),
        ("7-a-b-c-sad-sur-fea.mp4", "val", "7", ("sad", "sur", "fea")),
        ("a.b-1-dis-dis-dis.mp4", "val", "a.b", ("dis", "dis", "dis")),
        ("00012-045-hap-ang-neu.mp4", "test", "00012", ("", "", "")),
        ("00012.mp4", "test_merc", "00012", ("", "", "")),
        ("00012.mp4", "train", "00012", ("", "", "")),
    ],
)
def test_merc2020_names(name, split, clip_id, labels):
    """The name holds the integrated label, then the face's, then the speech's."""
    clip = merc2020.parse_name(Path("folder", name), split)
    assert (clip.clip_id, clip.split, clip.words) == (clip_id, split, Path(f"folder/{clip_id}.npz"))
    assert (clip.emotion, clip.face_emotion, clip.speech_emotion) == labels


def test_merc2020_folders_become_splits(tmp_path):
    names = {
        "qia2020/train": [
            "1-x-hap-ang-neu.mp4",
            "2-x-HAPP-ang-neu.mp4",
            "3.mp4",
            "4-x-hap-jolly-neu.mp4",
        ],
        "qia2020/val": ["1-x-sad-sad-sad.mp4", "5-x-sad-sad-sad.mp4", "5-y-sad-sad-sad.mp4"],
        "qia2020/test": ["6.mp4"],
        "2020-3/test3": ["6.mp4"],
    }
    for folder, files in names.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in [*files, "notes.txt"]:
            (tmp_path / folder / name).touch()
    for sheet in ("test1.csv", "qia2020/test2.csv", "2020-3/test3.csv"):
        (tmp_path / sheet).touch()
    listing = merc2020.list_clips(tmp_path)
    usable = [(clip.split, clip.clip_id) for clip in listing.clips]
    assert usable == [("test", "6"), ("test_merc", "6"), ("train", "1"), ("val", "1")]
    rejected = sorted((failure.clip_id, failure.code) for failure in listing.failures)
    twins = [("5", "E_DUP")] * 2
    assert rejected == [("2", "E_LABELS"), ("3", "E_LABELS"), ("4", "E_LABELS"), *twins]
    reasons = {failure.clip_id: failure.reason for failure in listing.failures}
    assert "HAPP" in reasons["2"] and ", ".join(CLASSES) in reasons["2"]
    assert "5-x-sad-sad-sad.mp4" in reasons["5"] and "5-y-sad-sad-sad.mp4" in reasons["5"]
    assert [sheet.name for sheet in listing.sheets] == ["test1.csv", "test2.csv", "test3.csv"]
    assert (listing.classes, listing.word_dim) == (CLASSES, 200)


def test_of_two_sheets_of_one_name_the_first_counts(tmp_path):
    (tmp_path / "qia2020" / "train").mkdir(parents=True)
    for folder, text in (("", "id\n1\n"), ("qia2020", "id\n2\n")):
        (tmp_path / folder / "test1.csv").write_text(text)
        (tmp_path / folder / "test2.csv").write_text("id\n")
    listing = merc2020.list_clips(tmp_path)
    assert listing.sheets == [tmp_path / "test1.csv", tmp_path / "test2.csv"]
    (warning,) = listing.warnings
    assert warning.startswith(f"{tmp_path / 'qia2020/test1.csv'} is another sheet than")


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip_id", "split", "code"),
    [
        ("../x", "train", "E_ID"),
        ("/abs", "train", "E_ID"),
        ("a\\b", "train", "E_ID"),
        ("", "train", "E_ID"),
        (".hidden", "train", "E_ID"),
        ("-rf", "train", "E_ID"),
        ("con", "train", "E_ID"),
        ("LPT1.b", "train", "E_ID"),
        ("new\nline", "train", "E_ID"),
        ("tab\t", "train", "E_ID"),
        ("\udcff", "train", "E_ID"),
        ("감" * 67, "train", "E_ID"),  # 201 bytes
        ("a", "../train", "E_ID"),
        ("a", "", "E_ID"),
        ("감" * 66, "train", None),
        ("007", "train", None),
        ("한국어 😀 'q' %d", "train", None),
    ],
)
def test_ids_and_splits_become_names_of_files(clip_id, split, code):
    clip = Clip(clip_id, split, Path("x.mp4"), "hap", "hap", "hap")
    listing = check_listing(Listing(CLASSES, ("speech",), [clip]))
    assert codes(listing) == ({clip_id: code} if code else {})
    assert len(listing.clips) == (code is None)


def test_names_that_look_the_same_are_duplicates():
    names = [unicodedata.normalize(form, "각오") for form in ("NFC", "NFD")]
    clips = [Clip(name, "train", Path(f"{name}.mp4"), *["hap"] * 3) for name in names]
    other_split = Clip(names[0], "test", Path("z.mp4"))
    listing = check_listing(Listing(CLASSES, ("speech",), [*clips, other_split]))
    assert listing.clips == [other_split]
    assert codes(listing) == dict.fromkeys(names, "E_DUP")
    assert all(f"{name}.mp4" in listing.failures[0].reason for name in names)


# --- your own clips -----------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_three_columns_are_enough(tmp_path, mark):
    table = mark + "media,split,emotion\n007.mp4,train,hap\nsub/b c.mov,test,\n"
    listing = csv_corpus(tmp_path, table, "007.mp4", "sub/b c.mov")
    second, first = listing.clips
    assert (first.clip_id, first.emotion, first.speech_emotion) == ("007", "hap", "hap")
    assert (second.clip_id, second.media) == ("b c", tmp_path / "sub/b c.mov")
    assert listing.modalities == ("speech", "video") and listing.classes == CLASSES


def test_further_columns_are_read_as_text(tmp_path):
    table = (
        "media,split,emotion,clip_id,speaker,transcript,speech_emotion,face_emotion,fold,note\r\n"
        'a.mp4,train,hap,001,03,"well, NA",sad,,2,x\r\n'
    )
    listing = csv_corpus(tmp_path, table, "a.mp4", "a.npz")
    [clip] = listing.clips
    assert (clip.clip_id, clip.speaker, clip.fold, clip.transcript) == (
        "001",
        "03",
        "2",
        "well, NA",
    )
    assert (clip.emotion, clip.speech_emotion, clip.face_emotion) == ("hap", "sad", "hap")
    assert clip.words == tmp_path / "a.npz" and "text" in listing.modalities


@pytest.mark.parametrize("nothing", ["nan", "None", "<NA>"])
def test_columns_that_a_program_wrote_nothing_into(tmp_path, nothing):
    header = "media,split,emotion,clip_id,speech_emotion,face_emotion\n"
    rows = f"a.mp4,train,hap,{nothing},{nothing},sad\nb.mp4,test,{nothing},{nothing},,{nothing}\n"
    rows += f"c.mp4,train,{nothing},,,\nd.mp4,{nothing},hap,,,\n"
    listing = csv_corpus(tmp_path, header + rows)
    b, a = listing.clips
    assert [*a.labels.values()] == ["hap", "hap", "sad"] and a.clip_id == "a"
    assert [*b.labels.values()] == ["", "", ""] and b.clip_id == "b"
    assert codes(listing) == {"c": "E_LABELS", "d": "E_ID"}
    (tmp_path / "classes.txt").write_text(f"hap\nsad\n{nothing.lower()}\n")
    labels = [[*clip.labels.values()] for clip in csv_corpus(tmp_path, header + rows).clips]
    nothing = nothing.lower()
    assert labels == [[nothing] * 3, ["hap", nothing, "sad"], [nothing] * 3]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("../x.mp4,train,hap", {"x": "E_ID"}),
        ("/etc/x.mp4,train,hap", {"x": "E_ID"}),
        ("a/../../x.mp4,train,hap", {"x": "E_ID"}),
        ("a/x.mp4,train,hap\nb/x.mp4,train,sad", {"x": "E_DUP"}),
        ("x.mp4,train,jolly", {"x": "E_LABELS"}),
        ("x.mp4,train,", {"x": "E_LABELS"}),
        ("x.mp4,train", {"x": "E_LABELS"}),
        ("x.mp4,,hap", {"x": "E_ID"}),
    ],
)
def test_rows_that_are_no_clips_have_a_code(tmp_path, rows, expected):
    listing = csv_corpus(tmp_path, f"media,split,emotion\n{rows}\n")
    assert codes(listing) == expected
    assert not listing.clips and len(listing.failures) == 1 + rows.count("\n")


def test_paths_that_lead_nowhere_stop_no_listing(tmp_path):
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    rows = f"loop.mp4,val,hap,a\n{'x' * 300}.mp4,val,hap,b\nx\0.mp4,val,hap,c\n"
    listing = csv_corpus(tmp_path, f"media,split,emotion,clip_id\n{rows}")
    assert [clip.clip_id for clip in listing.clips] == ["a", "b"]
    assert codes(listing) == {"c": "E_ID"}


def test_links_that_leave_the_folder_are_refused(tmp_path):
    (tmp_path / "secret.mp4").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.mp4").symlink_to("../secret.mp4")
    listing = csv_corpus(tmp_path / "data", "media,split,emotion\nx.mp4,train,hap\n")
    assert codes(listing) == {"x": "E_ID"}
    assert "--follow_links (manifest.csv line 2)" in listing.failures[0].reason
    assert not list_corpus("csv", tmp_path / "data", follow_links=True).failures


def test_a_sheet_that_is_no_file_of_the_folder_is_refused_at_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").touch()
    sheet = tmp_path / "data/test1.csv"
    sheet.symlink_to("../secret")
    with pytest.raises(UsageError, match=r"test1\.csv leaves the data folder .*--follow_links"):
        csv_corpus(tmp_path / "data", "media,split,emotion\nx.mp4,train,hap\n", "x.mp4")
    assert list_corpus("csv", tmp_path / "data", follow_links=True).sheets == [sheet]
    sheet.unlink()
    os.mkfifo(sheet)
    with pytest.raises(UsageError, match=r"submission sheet .*test1\.csv: no regular file"):
        list_corpus("csv", tmp_path / "data")


@pytest.mark.parametrize("ending", [".mp4", ".npz"])
def test_links_that_leave_the_challenge_are_refused(tmp_path, ending):
    folder, name = tmp_path / "data/qia2020/train", "00001-1-hap-hap-hap"
    folder.mkdir(parents=True)
    (folder / f"{name}.mp4").touch()
    (folder / "00001.npz").touch()
    place = folder / {".mp4": f"{name}.mp4", ".npz": "00001.npz"}[ending]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    listing = list_corpus("merc2020", tmp_path / "data")
    assert codes(listing) == {"00001": "E_ID"} and not listing.clips
    assert "--follow_links" in listing.failures[0].reason
    place.unlink()
    place.symlink_to(place.with_name("inside"))
    assert not list_corpus("merc2020", tmp_path / "data").failures


def test_the_folder_may_name_its_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("glad\n\nmoody \n")
    listing = csv_corpus(tmp_path, "media,split,emotion\na.mp4,val,moody\nb.mp4,val,hap\n")
    assert listing.classes == ("glad", "moody")
    assert [clip.emotion for clip in listing.clips] == ["moody"] and codes(listing)[
        "b"
    ] == "E_LABELS"


@pytest.mark.parametrize("text", ["glad\n", "glad\nglad\n"])
def test_one_class_is_no_choice(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UsageError, match=r"classes\.txt"):
        csv_corpus(tmp_path, "media,split,emotion\na.mp4,val,glad\n")


BAD_FOLDERS = {
    "no MERC2020": ("merc2020", None, "qia2020/train"),
    "no manifest": ("csv", None, "media,split,emotion"),
    "a column less": ("csv", "media,split\na.mp4,train\n", "emotion"),
    "no rows": ("csv", "media,split,emotion\n", "no clips"),
    "empty": ("csv", "", "manifest.csv"),
    "not text": ("csv", b"media,split,emotion\n\xff\xfe,\x00,", "manifest.csv"),
    "ragged": ("csv", "media,split,emotion\na,train,hap\nb,train,hap,1,2\n", "manifest.csv"),
}


@pytest.mark.parametrize("fault", BAD_FOLDERS)
def test_unusable_folders_are_usage_errors(tmp_path, fault):
    corpus, table, named = BAD_FOLDERS[fault]
    (tmp_path / "data").mkdir()
    if table is not None:
        content = table if isinstance(table, bytes) else table.encode()
        (tmp_path / "data/manifest.csv").write_bytes(content)
    arguments = ("--data_dir", tmp_path / "data", "--features_dir", tmp_path / "features")
    done = run_script("preprocess.py", "--corpus", corpus, *arguments)
    assert done.returncode == 2 and named in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "features").exists()


def test_an_unknown_corpus_lists_the_known(tmp_path):
    with pytest.raises(UsageError, match=r"'iemocap'.*merc2020.*csv"):
        list_corpus("iemocap", tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        "Media; SPLIT;Emotion\na.mp4;train; hap \n",
        "media\tsplit\temotion\na.mp4\ttrain\thap\n",
        "\ufeffmedia,split,emotion,\r\na.mp4,train,hap,\r\n,,,\r\n",
        'media,split,emotion,transcript\na.mp4,train,hap,"hi, you"\n',
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, table):
    [clip] = csv_corpus(tmp_path, table, "a.mp4").clips
    assert (clip.clip_id, clip.split, clip.emotion) == ("a", "train", "hap")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (b"media,split,emotion,transcript\na.mp4,train,hap,hi, you\n", "line 2: 5 fields.*quotes"),
        (b"media,split,emotion,emotion\na.mp4,train,hap,sad\n", "a column twice"),
        (b"media,split,emotion\n\xff.mp4,train,hap\n", "save it as .CSV. UTF-8"),
        (b'sep=,\nmedia,split,emotion\n"a.mp4,train,hap\n\n', "line 3"),
        (b"media,split\na.mp4,train\n", "no column emotion; it has media, split"),
        (b"", "it has nothing"),
    ],
)
def test_tables_that_cannot_be_read_are_usage(tmp_path, table, says):
    (tmp_path / "manifest.csv").write_bytes(table)
    with pytest.raises(UsageError, match=says):
        list_corpus("csv", tmp_path)


def test_classes_of_a_windows_editor(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffhappy\r\nsad\r\n".encode())
    assert csv_corpus(tmp_path, "media,split,emotion\na.mp4,train,happy\n", "a.mp4").clips


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff", "is not UTF-8 text"),
        (b"hap\nsad\nhap\n", "one a line; more than once: hap"),
        (b"hap\n\x1b[2Jsad\n", "holds signs that no terminal shows"),
        (b"hap, sad, ang\n", "one a line; it names 1"),
        (None, "no regular file"),
    ],
)
def test_classes_that_are_no_list_are_usage(tmp_path, content, says):
    csv_corpus(tmp_path, "media,split,emotion\na.mp4,train,happy\n", "a.mp4")
    if content is None:
        os.mkfifo(tmp_path / "classes.txt")
    else:
        (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UsageError, match=says):
        list_corpus("csv", tmp_path)


def test_a_long_list_of_classes_is_told_in_short(tmp_path):
    (tmp_path / "classes.txt").write_text("".join(f"c{n}\n" for n in range(5000)))
    (failure,) = csv_corpus(tmp_path, "media,split,emotion\na.mp4,train,joy\n", "a.mp4").failures
    assert failure.reason.count(" c") == 30 and "and 4970 more" in failure.reason


def test_reasons_name_the_remedy(tmp_path):
    rows = "a/x.mp4,train,hap\nb/x.mp4,train,hap\ny.mp4,val,glad\nz.mp4,val,hap\nz.mp4,val,sad\n"
    listing = csv_corpus(tmp_path, f"media,split,emotion\n{rows}")
    reasons = {failure.clip_id: failure.reason for failure in listing.failures}
    assert "column clip_id" in reasons["x"] and "is not one of hap, ang" in reasons["y"]
    assert "listed 2 times" in reasons["z"]


def test_rejected_rows_are_told_with_their_lines(tmp_path):
    rows = 'ok.mp4,val,hap,"two\nlines"\n\ny.mp4,val,glad\n,val,hap\nC:\\w.mp4,val,hap\n'
    rows += "".join(f"z.mp4,val,{label}\n" for label in CLASSES[:5])
    listing = csv_corpus(tmp_path, f"sep=,\nmedia,split,emotion,transcript\n{rows}")
    told = {(each.clip_id, each.reason.partition("line")[2]) for each in listing.failures}
    assert len(listing.clips) == 1 and told == {
        ("y", " 6)"),
        ("", " 7 names no media"),
        ("w", " 8)"),
        ("z", "s 9, 10, 11 and 2 more)"),
    }


@pytest.mark.parametrize(
    ("said", "split"),
    [("Train", "train"), ("TRAINING", "train"), ("Val", "val"), ("Dev", "val"), ("Test", "test")],
)
def test_splits_may_be_written_as_people_do(tmp_path, said, split):
    (tmp_path / "manifest.csv").write_text(f"media,split,emotion\na.mp4,{said},Joy\n")
    (clip,) = list_corpus("csv", tmp_path).clips
    assert (clip.split, clip.emotion) == (split, "hap")
