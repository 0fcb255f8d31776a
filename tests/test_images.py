"""Still pictures: folders by label, tables, faces that are cropped already, faces to be found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import extract_faces
from PIL import Image
from test_corpora import codes

import preprocess
from corpora import list_corpus
from corpora.manifest import Clip
from extract.audio import extract_speech
from extract.faces import face_stream
from extract.media import read_picture
from training.features import Features
from utils.errors import ClipError, UsageError

GREY = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)


def save(path: Path, pixels: np.ndarray = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("place", "split", "label"),
    [
        ("angry/a.png", "train", "ang"),
        ("train/happy/a.png", "train", "hap"),
        ("val/Surprise/a.png", "val", "sur"),
        ("test/fear/a.png", "test", "fea"),
        ("Training/0/sadness/a.png", "train", "sad"),
        ("disgust/train/a.png", "train", "dis"),
        ("neu/a.png", "train", "neu"),
        ("Training/angry/a.png", "train", "ang"),
        ("PublicTest/angry/a.png", "val", "ang"),
        ("PrivateTest/angry/a.png", "test", "ang"),
    ],
)
def test_folders_name_split_and_label(tmp_path, place, split, label):
    save(tmp_path / place)
    (clip,) = list_corpus("images", tmp_path).clips
    assert (clip.split, clip.emotion, clip.face_emotion) == (split, label, label)
    assert bool(clip.fold) == (split == "train")


def test_what_is_no_label_is_listed(tmp_path):
    for place in ("train/contempt/a.png", "train/happy/a.png", "beside.png", "train/b.png"):
        save(tmp_path / place)
    listing = list_corpus("images", tmp_path)
    assert [clip.clip_id for clip in listing.clips] == ["happy-a"]
    assert codes(listing) == {"contempt-a": "E_LABELS"}
    assert listing.notes == ["2 pictures that lie in no folder of a label"]
    with pytest.raises(UsageError, match="no pictures in folders"):
        list_corpus("images", tmp_path / "nothing")


def test_folders_that_name_no_split_are_told(tmp_path):
    for place in ("held_out/happy/a.png", "train/old/happy/b.png", "sad/c.png"):
        save(tmp_path / place, GREY + np.uint8(len(place)))
    (warning,) = list_corpus("images", tmp_path).warnings
    assert warning.endswith("what lies there counts as train: held_out")


def test_what_cannot_be_read_costs_itself_alone(tmp_path):
    save(tmp_path / "happy" / "a.png")
    (tmp_path / "happy" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "happy" / "pipe.png")
    save(tmp_path / "happy" / "._a.png")
    save(tmp_path / "__MACOSX" / "happy" / "a.png")
    clips = {clip.clip_id: clip for clip in list_corpus("images", tmp_path).clips}
    assert clips.keys() == {"happy-a", "happy-gone", "happy-pipe"}
    for name, code in (("gone", "E_MISSING"), ("pipe", "E_OPEN")):
        with pytest.raises(ClipError) as caught:
            read_picture(clips[f"happy-{name}"].media)
        assert caught.value.code == code


def test_grey_of_16_bits_keeps_its_shades(tmp_path):
    path = save(tmp_path / "deep.png", GREY.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(path), np.repeat(GREY[..., None], 3, axis=2))


def test_a_face_is_cropped_already_or_turned(tmp_path, monkeypatch):
    save(tmp_path / "happy" / "a.png")
    flags = f"--corpus images --data_dir {tmp_path} --features_dir {tmp_path / 'f'}"
    wrong = ["preprocess.py", *flags.split(), "--face_cropped", "--face_align"]
    monkeypatch.setattr("sys.argv", wrong)
    with pytest.raises(UsageError, match=r"--face_align turns the faces.*: give one"):
        preprocess.main()


def test_a_picture_to_be_tested_on_is_not_trained_on(tmp_path):
    for place in ("train/happy/a.png", "train/sad/b.png", "val/happy/c.png"):
        save(tmp_path / place)  # one picture, three times
    other = GREY.T.copy()
    for place in ("train/angry/d.png", "train/fear/e.png"):
        save(tmp_path / place, other)
    listing = list_corpus("images", tmp_path)
    assert [clip.clip_id for clip in listing.clips] == ["angry-d", "fear-e", "happy-c"]
    assert listing.notes == ["2 pictures of train that stand in val or test, too"]
    assert listing.clips[0].fold == listing.clips[1].fold != "", "one picture in two folds"


def test_a_cropped_picture_is_its_own_crop(tmp_path):
    path = save(tmp_path / "a.png")
    ((crop, box),) = face_stream(path, 0, 0, {"face_size": 48, "face_fps": 10}, cropped=True)
    np.testing.assert_array_equal(crop, np.repeat(GREY[..., None], 3, axis=2))
    assert box.tolist() == [0, 0, 48, 48]


def test_the_face_of_a_photograph_is_found(tmp_path):
    from skimage.data import astronaut

    faces = extract_faces(save(tmp_path / "photo.jpg", astronaut()), 0, 0)
    assert faces.crops.shape == (1, 160, 160, 3) and faces.valid.tolist() == [True]
    x1, y1, x2, y2 = faces.boxes[0]
    assert 150 < x1 < x2 < 300 and 50 < y1 < y2 < 250
    with pytest.raises(ClipError, match=r"no face in none\.png"):
        extract_faces(save(tmp_path / "none.png"), 0, 0)


def test_pictures_that_cannot_be_read(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ClipError, match=r"text\.jpg does not open as JPEG") as caught:
        read_picture(tmp_path / "text.jpg")
    assert caught.value.code == "E_OPEN"
    Image.fromarray(GREY).save(tmp_path / "png.jpg", format="PNG")  # never guessed from the content
    with pytest.raises(ClipError, match="does not open as JPEG"):
        read_picture(tmp_path / "png.jpg")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(ClipError, match="9000 x 9000 pixels"):
        read_picture(tmp_path / "huge.png")
    with pytest.raises(ClipError, match="still picture, without sound"):
        extract_speech(save(tmp_path / "a.png"))


def test_from_folders_to_features(tmp_path, monkeypatch, capsys):
    for number, label in enumerate(("angry", "happy", "sad")):
        save(tmp_path / "raw" / label / f"{number}.png", GREY + np.uint8(number))
    features = tmp_path / "features"
    flags = f"--corpus images --data_dir {tmp_path / 'raw'} --features_dir {features} --workers 1"
    monkeypatch.setattr("sys.argv", ["preprocess.py", *flags.split(), "--face_cropped"])
    assert preprocess.main() == 0
    opened = Features.open(features)
    rows = opened.manifest.to_dict("records")
    assert [row["face_valid"] for row in rows] == ["1", "1", "1"]
    assert opened.load(rows[0], "face").shape == (1, 160, 160, 3)
    monkeypatch.setattr("sys.argv", ["preprocess.py", *flags.split()])
    assert preprocess.main() == 3, "without the flag faces are looked for, and here is none"
    assert "3 no face" in capsys.readouterr().out


def test_a_video_is_no_face(tmp_path):
    clip = Clip("a", "train", tmp_path / "a.mp4")
    with pytest.raises(UsageError, match=r"a\.mp4 is none"):
        preprocess.cropped(clip)
