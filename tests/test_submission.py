"""make_submission.py: the sheet's own bytes, the rules for ids and members, the mean of powers."""

from __future__ import annotations

import os
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, write_features
from inside import run_main

import make_submission
from evaluation.ensemble import Member, image_views, mean_over_views, readable
from evaluation.votes import SharedInputs, votes
from models import build_model
from models.classifier import Prediction
from models.fusion import Tokens
from training.checkpoint import save_checkpoint
from training.data import ClipDataset, make_loader, to_device
from training.features import Features
from training.tasks import TASKS, model_arch, recipe
from utils.errors import IntegrityError, UsageError
from utils.sheet import Sheet

TASK = TASKS["multimodal"]
CONFIG = recipe("multimodal") | {"speech_backbone": "small-32", "face_backbone": "small-16"}
CONFIG |= {"text_layers": 1}
CONFIG |= {"mode": "multimodal", "speech_frames": 48, "face_frames": 2}
SHAPES = {"speech": (128, None), "face": (None, 32, 32, 3), "text": (None, 16)}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"), 1)


def save_member(path, features, seed: int = 0, **changes):
    """A checkpoint whose answers differ from clip to clip, without any training."""
    opened = Features.open(features)
    torch.manual_seed(seed)
    arch = model_arch(TASK, CONFIG, len(CLASSES), SHAPES)
    model = build_model(**arch)
    with torch.no_grad():
        model.heads["integrated"].linear.weight *= 30
    checkpoint = {
        "arch": arch,
        "weights": model.state_dict(),
        "classes": opened.classes,
        "features_config": opened.config_for(TASK.inputs),
        "config": CONFIG,
        "epoch": 1,
        "val": {"accuracy": 0.5, "loss": 1.0},
    }
    save_checkpoint(path, checkpoint | changes)
    return path


@pytest.fixture(scope="module")
def members(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    return [save_member(folder / f"{seed}.pth", features, seed) for seed in (1, 2, 3)]


@pytest.fixture
def submit(features, members, tmp_path):
    def run(*args, checkpoints=members, features=features):
        places = ["--features_dir", features, "--out", tmp_path / "out", "--num_workers", 0]
        given = ["--checkpoints", *checkpoints, "--face_frames", 2]
        return run_main("make_submission", *places, *given, *args)

    return run


def probabilities(tmp_path, sheet: str = "test1", name: str = "probabilities") -> np.ndarray:
    with np.load(tmp_path / "out" / f"{sheet}_submission.npz") as archive:
        return archive[name]


DIALECTS = {
    "plain": ["FileID\n", "00014\n", "00016\n", "00015"],
    "windows": ["\ufeffFileID,Name\r\n", "00016,Kim\r\n", "00014,Lee\r\n"],
    "semicolon": ["Name;FileID\n", "a,b;00020\n", "\n", "c;00019\n"],
    "quoted": ['"FileID","What, else"\n', '"00017","a ""b"", c"\n', "00018,d\n"],
    "filled": ["FileID\tEmotion\tNote\n", "00014\tneu\tx\n", "00015\t\t y \n"],
}


def test_sheets_come_back_in_their_own_dialect(submit, tmp_path):
    paths = []
    for name, lines in DIALECTS.items():
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_bytes("".join(lines).encode())
    run = submit("--sheets", *paths, "--tta", 1)
    assert run.code == 0, run.err
    answers = set()
    for name, lines in DIALECTS.items():
        written = (tmp_path / "out" / f"{name}_submission.csv").read_bytes().decode()
        assert len(probabilities(tmp_path, name)) == len(Sheet(tmp_path / f"{name}.csv").ids)
        known = dict(
            zip(
                np.load(tmp_path / "out" / f"{name}_submission.npz")["FileID"],
                probabilities(tmp_path, name, "scores").argmax(1),
                strict=True,
            )
        )
        expected = ""
        for number, line in enumerate(lines):
            text = line.rstrip("\r\n")
            end = line[len(text) :]
            ids = [clip_id for clip_id in known if clip_id in text]
            answer = CLASSES[known[ids[0]]] if ids else "Emotion" if number == 0 else ""
            answers.update(answer for _ in ids)
            separator = {"semicolon": ";", "filled": "\t"}.get(name, ",")
            if name == "filled":
                text = text if number == 0 else "\t".join([ids[0], answer, text.split("\t")[2]])
            elif text:
                text += separator + answer
            expected += text + end
        assert written == expected, name
    assert len(answers) > 1, "the model gives one answer to all: nothing was tested"


def test_ids_match_as_text_or_as_unique_numbers(tmp_path):
    (tmp_path / "sheet.csv").write_text("FileID\n7\n")

    def found(wanted: list[str], *rows: tuple[str, str], split=None) -> dict[str, str]:
        (tmp_path / "sheet.csv").write_text("\n".join(["FileID", *wanted, ""]))
        table = pd.DataFrame(rows, columns=["split", "clip_id"])
        stub = SimpleNamespace(manifest=table, rows=lambda name: table[table["split"] == name])
        matched = make_submission.find_rows(Sheet(tmp_path / "sheet.csv"), stub, split)
        return {clip_id: row["clip_id"] for clip_id, row in matched.items()}

    assert found(["7"], ("test", "007")) == {"7": "007"}
    assert found(["007"], ("test", "7")) == {"007": "7"}
    assert found(["007", "7"], ("test", "7"), ("test", "007")) == {"007": "007", "7": "7"}
    assert found(["7"], ("train", "7"), ("val", "007")) == {}, "a training clip is no test clip"
    assert found(["7x"], ("test", "7")) == {}
    long = "1234567890123456789"
    assert found([long], ("test", long), ("test", long + "0")) == {long: long}
    with pytest.raises(UsageError):
        found(["07"], ("test", "7"), ("test", "007"))
    with pytest.raises(UsageError, match="--split"):
        found(["7"], ("test", "7"), ("test_merc", "7"))
    assert found(["7"], ("test", "7"), ("test_merc", "7"), split="test_merc") == {"7": "7"}
    with pytest.raises(UsageError):  # one clip cannot be the answer to two lines
        found(["007", "7"], ("test", "007"))


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ("FileID\n7\n7\n", IntegrityError, "7 more than once"),
        ("FileID\n", IntegrityError, "no clips"),
        ("", UsageError, "no column FileID"),
        ("Name\n7\n", UsageError, "its header is: Name"),
        ("FileID,Name\n7\n", UsageError, "line 2: expected 2"),
        ('FileID,Name\n7,"a\nb"\n8\n', UsageError, "line 4: expected 2"),
    ],
)
def test_faulty_sheets_are_refused(tmp_path, content, error, says):
    (tmp_path / "sheet.csv").write_text(content)
    with pytest.raises(error, match=says):
        Sheet(tmp_path / "sheet.csv")
    (tmp_path / "latin.csv").write_bytes(b"FileID\n\xff\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        Sheet(tmp_path / "latin.csv")


def test_clips_without_features_are_never_guessed(submit, tmp_path):
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("FileID\n00014\n99999\n88888\n")
    run = submit("--sheets", sheet)
    assert run.code == 4 and "2 of 3" in run.err and "99999, 88888" in run.err
    assert not (tmp_path / "out").exists()
    assert submit("--sheets", sheet, "--missing", "joy").code == 2
    run = submit("--sheets", sheet, "--missing", "neu", "--tta", 1)
    assert run.code == 0 and "2 of them filled with neu" in run.out and "99999, 88888" in run.err
    lines = (tmp_path / "out" / "sheet_submission.csv").read_text().splitlines()
    assert lines[0] == "FileID,Emotion" and lines[2:] == ["99999,neu", "88888,neu"]
    with np.load(tmp_path / "out" / "sheet_submission.npz") as archive:
        assert archive["filled"].tolist() == ["99999", "88888"]
        assert archive["FileID"].tolist() == ["00014"]
    sheet.write_text("FileID\n99999\n")
    assert submit("--sheets", sheet, "--missing", "neu").code == 4, "all of them missing"
    sheet.write_text("FileID\n00014\n00014\n")
    assert submit("--sheets", sheet).code == 4


class Payload:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_members_that_do_not_belong_are_refused(submit, members, features, tmp_path):
    def refused(path, *says: str, code: int = 4):
        run = submit(checkpoints=[members[0], path])
        assert run.code == code and str(path) in run.err, run.err
        assert all(each in run.err for each in says), run.err
        assert not (tmp_path / "out").exists()

    def altered(name: str, **changes):
        return save_member(tmp_path / f"{name}.pth", features, **changes)

    (tmp_path / "copy.pth").write_bytes(members[0].read_bytes())
    refused(tmp_path / "copy.pth", "same checkpoint", str(members[0]))
    refused(altered("order", classes=list(CLASSES[::-1])), "classes", "'sur', 'neu'")
    settings = Features.open(features).config_for(TASK.inputs)
    other = settings | {"speech": settings["speech"] | {"n_mels": 64}}
    refused(altered("settings", features_config=other), "n_mels: 64 then", "128 here")
    weights = torch.load(members[1], weights_only=True)["weights"]
    weights["heads.integrated.linear.bias"][2] = float("nan")
    refused(altered("nan", weights=weights), "heads.integrated.linear.bias")
    refused(altered("arch", arch={"encoders": {}, "heads": {}, "n_classes": 7}))
    refused(altered("before", format=1), "another version", "train it anew")
    data = members[1].read_bytes()
    damaged = {"cut": data[: len(data) // 2], "empty": b"", "text": b"text", "zip": data[:9]}
    for name, content in damaged.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
        refused(tmp_path / f"{name}.pth")
    canary = tmp_path / "canary"
    for name, save in (
        ("torch", torch.save),
        ("pickle", lambda x, path: path.write_bytes(pickle.dumps(x))),
    ):
        save({"weights": Payload(f"touch {canary}")}, tmp_path / f"{name}.pth")
        refused(tmp_path / f"{name}.pth")
    assert not canary.exists(), "loading a checkpoint ran code of it"
    torch.save({"weights": {}}, tmp_path / "foreign.pth")
    refused(tmp_path / "foreign.pth", "lacks arch")
    refused(tmp_path / "absent.pth", code=2)


def test_runs_that_learnt_different_labels_vote_and_it_is_said(submit, members, features, tmp_path):
    arch = model_arch(TASKS["speech"], CONFIG, len(CLASSES), SHAPES)
    speech = {
        "arch": arch,
        "weights": build_model(**arch).state_dict(),
        "config": {**CONFIG, "mode": "speech"},
        "features_config": Features.open(features).config_for(("speech",)),
    }
    voice = save_member(tmp_path / "speech.pth", features, **speech)
    plain = ("--tta", 1, "--temperature", 1)
    alone = []
    for given in ([members[0]], [voice]):
        run = submit(*plain, checkpoints=given)
        assert run.code == 0 and "different labels" not in run.err
        alone.append(probabilities(tmp_path))
    run = submit(*plain, checkpoints=[members[0], voice])
    assert run.code == 0 and f"{voice} speech_emotion" in run.err, run.err
    assert "have learnt different labels" in run.err
    np.testing.assert_allclose(probabilities(tmp_path), np.mean(alone, axis=0), atol=1e-9)


def logits_of(members, features, rows, face_frames=2) -> list[np.ndarray]:
    """(N, K) of each member without any script, one clip at a time."""
    config, opened = CONFIG | {"face_frames": face_frames}, Features.open(features)
    data = ClipDataset(opened, rows, TASK, config, False)
    result = []
    for path in members:
        checkpoint = torch.load(path, weights_only=True)
        model = build_model(**checkpoint["arch"]).eval()
        model.load_state_dict(checkpoint["weights"])
        with torch.inference_mode():
            batches = make_loader(data, 1, 0, "cpu")
            given = [model(to_device(b["inputs"], "cpu")).logits["integrated"] for b in batches]
        result.append(torch.cat(given).double().numpy())
    return result


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_one_view_at_temperature_one_is_the_softmax(submit, members, features, tmp_path):
    rows = Features.open(features).rows("test")
    expected = logits_of(members, features, rows)
    plain = ["--tta", 1, "--temperature", 1]
    assert submit(*plain, "--batch_size", 3).code == 0
    csv = (tmp_path / "out" / "test1_submission.csv").read_bytes()
    mean = np.mean([softmax(z) for z in expected], axis=0)
    np.testing.assert_allclose(probabilities(tmp_path), mean, atol=1e-6)
    answers = [line.split(",")[1] for line in csv.decode().splitlines()[1:]]
    assert answers == [CLASSES[index] for index in mean.argmax(1)]
    first = probabilities(tmp_path)
    assert submit(*plain, "--batch_size", 3, checkpoints=members[::-1]).code == 0
    assert np.array_equal(probabilities(tmp_path), first), "the order of the members matters"
    assert submit(*plain, "--batch_size", 7, "--num_workers", 2).code == 0
    np.testing.assert_allclose(probabilities(tmp_path), first, atol=1e-6)
    assert (tmp_path / "out" / "test1_submission.csv").read_bytes() == csv


def test_the_power_makes_scores_and_no_probabilities(submit, members, features, tmp_path):
    """The challenge's 0.1 ranks the classes; what the models believe stands beside it."""
    logits = logits_of(members, features, Features.open(features).rows("test"))
    assert submit("--tta", 1).code == 0
    powers = [softmax(z) ** 0.1 for z in logits]
    scores = np.mean([each / each.sum(1, keepdims=True) for each in powers], axis=0)
    np.testing.assert_allclose(probabilities(tmp_path, name="scores"), scores, atol=1e-6)
    believed = np.mean([softmax(z) for z in logits], axis=0)
    np.testing.assert_allclose(probabilities(tmp_path), believed, atol=1e-6)
    np.testing.assert_allclose(probabilities(tmp_path).sum(1), 1, atol=1e-9)
    assert believed.max(1).mean() > 1.5 * scores.max(1).mean()
    assert probabilities(tmp_path, name="temperature") == 0.1
    csv = (tmp_path / "out" / "test1_submission.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in csv] == [CLASSES[k] for k in scores.argmax(1)]


class Counting(torch.nn.Module):
    """Logits by hand: the mean brightness of the faces decides; counts what is encoded."""

    def __init__(self):
        super().__init__()
        self.counts = dict.fromkeys(TASK.inputs, 0)
        self.views = []

    def encode(self, inputs, absent):
        for name, (first, *_) in inputs.items():
            self.counts[name] += len(first)
        if "face" in inputs:
            self.views.append(inputs["face"][0][0].clone())
        means = {name: given[0].flatten(1).float().mean(1) for name, given in inputs.items()}
        return {name: Tokens(each.view(-1, 1, 1), None) for name, each in means.items()}

    def classify(self, tokens):
        face = tokens["face"].x.flatten()  # (B,)
        logits = torch.stack([face * k for k in range(7)], dim=1)
        return Prediction({"integrated": logits, "speech": -logits, "face": -logits}, {})


@pytest.mark.parametrize("views", [12, 6, 1])
def test_views_of_the_face_only_and_the_mean_of_powers(features, views):
    opened, model = Features.open(features), Counting()
    args = SimpleNamespace(face_frames=2, tta=views, batch_size=3, num_workers=0, temperature=0.5)
    rows = opened.rows("test").to_dict("records")
    place = features / "model.pth"
    member = Member(place, {"config": CONFIG}, model, place)
    clips = [range(len(rows))]
    ((believed, result),) = make_submission.votes_of([member], clips, rows, opened, args, "cpu")
    assert model.counts == {"speech": 7, "text": 7, "face": 7 * views}
    seen = model.views[:views]  # of the first clip
    assert len({view.numpy().tobytes() for view in seen}) == views
    plain = max(seen, key=lambda view: -abs(view - model.views[0]).sum()) if views == 1 else None
    faces = [view.mean().item() for view in seen]
    powers = [softmax(face * np.arange(7)) ** 0.5 for face in faces]
    expected = np.mean([power / power.sum() for power in powers], axis=0)
    np.testing.assert_allclose(result[0], expected, atol=1e-6)
    plainly = np.mean([softmax(face * np.arange(7)) for face in faces], axis=0)
    np.testing.assert_allclose(believed[0], plainly, atol=1e-6)
    data = ClipDataset(opened, opened.rows("test"), TASK, CONFIG, False)
    still = data[0, 0]["inputs"]["face"][0] / 255
    if views == 1:
        torch.testing.assert_close(plain, still)
        return
    flips = [still, still.flip(-1)] + ([still.flip(-2), still.flip(-1, -2)] if views == 12 else [])
    for factor in (0.9, 1.0, 1.1):
        for flip in flips:
            assert any(torch.allclose(view, flip * factor, atol=1e-6) for view in seen)


def one_by_one(members, clips_of, rows, features, views, **changes) -> list[np.ndarray]:
    """The votes without anything shared: a pass for each model, each view of a clip by itself."""
    found = []
    for member, clips in zip(members, clips_of, strict=True):
        own = member.config | changes
        data = ClipDataset(features, rows.iloc[clips], member.task, own, training=False)
        member.model.eval()
        scores = []
        with torch.inference_mode():
            for batch in make_loader(data, 1, 0, "cpu"):
                inputs, logits = to_device(batch["inputs"], "cpu"), []
                for view in views["face"] if "face" in inputs else [None]:
                    face = {"face": (view(inputs["face"][0]),)} if view else {}
                    tokens = member.model.encode(inputs | face, batch.get("absent"))
                    logits.append(member.model.classify(tokens).logits[member.task.main_head])
                scores.append(mean_over_views(logits).numpy())
        found.append(np.concatenate(scores))
    return found


def test_models_that_share_one_pass_say_what_each_says_alone(features, tmp_path, monkeypatch):
    """Of other settings, inputs and clips, too; each file is read once where the settings agree."""
    opened = Features.open(features)
    rows = opened.rows("test").assign(missing="")
    rows.loc[1, "missing"], rows.loc[4, "missing"] = "text", "video speech"
    kinds = {"a": {}, "b": {}, "wide": {"speech_frames": 40}, "some": {"modality_dropout": 0.1}}
    kinds["voice"] = {"mode": "speech"}
    members, clips_of = [], []
    for seed, (name, changes) in enumerate(kinds.items()):
        config = CONFIG | changes
        arch = model_arch(TASKS[config["mode"]], config, len(CLASSES), SHAPES)
        torch.manual_seed(seed)
        place = tmp_path / name
        members.append(Member(place, {"config": config}, build_model(**arch), place))
        clips_of.append(list(readable(members[-1], rows, opened).index))
    assert [len(clips) for clips in clips_of] == [5, 5, 5, 7, 6]
    views = image_views(6)
    expected = one_by_one(members, clips_of, rows, opened, views, face_frames=2)
    parts = SharedInputs(members, clips_of, rows, opened, face_frames=2)
    for size, workers in ((3, 0), (1, 0), (7, 2)):
        found = votes(members, parts, "cpu", views, [1.0], size, workers)
        for (one,), alone in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, alone, atol=1e-6)

    read, load = [], Features.load
    monkeypatch.setattr(Features, "load", lambda *a: read.append(a[0].path(*a[1:])) or load(*a))
    votes(
        members[:2], SharedInputs(members[:2], clips_of[:2], rows, opened), "cpu", views, [1.0, 0.1]
    )
    assert len(read) == len({*read}) == 3 * 5


def test_runs_are_found_and_labelled_splits_are_scored(submit, members, features, tmp_path):
    sheet = tmp_path / "val.csv"
    rows = Features.open(features).rows("val")
    sheet.write_text("\n".join(["FileID", *rows["clip_id"], ""]))
    assert submit("--sheets", sheet).code == 4, "validation clips are no test clips"
    run = submit("--sheets", sheet, "--split", "val", "--tta", 1)
    right = sum(
        row["emotion"] == CLASSES[index]
        for row, index in zip(
            rows.to_dict("records"), probabilities(tmp_path, "val", "scores").argmax(1), strict=True
        )
    )
    assert run.code == 0 and run.out.splitlines()[-1].endswith(f"{right} of 7 right here")
    assert "validation accuracy 0.5000 at training" in run.out
    folder = tmp_path / "logs" / "multimodal" / "a"
    for name, member in (("1_best_1.5000.pth", members[0]), ("last.pth", members[1])):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(member.read_bytes())
    places = [
        "--features_dir",
        features,
        "--logs_dir",
        tmp_path / "logs",
        "--out",
        tmp_path / "out",
    ]
    small = ["--num_workers", 0, "--face_frames", 2, "--tta", 1]
    found = run_main("make_submission", *places, *small)
    assert found.code == 0 and "1_best_1.5000.pth: " in found.out and "last.pth" not in found.out


@pytest.mark.parametrize(
    "flags",
    [
        "--temperature 0",
        "--temperature nan",
        "--batch_size 0",
        "--face_frames 0",
        "--num_workers -1",
        "--split nowhere",
        "--tta 5",
    ],
)
def test_bad_flags_are_usage(submit, tmp_path, flags):
    assert submit("--tta", 1, *flags.split()).code == 2


def test_places_that_cannot_be_written(submit, features, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert submit("--tta", 1).code == 2
    (tmp_path / "out").unlink()
    twins = [tmp_path / name / "test1.csv" for name in ("a", "b")]
    for twin, clip_id in zip(twins, ("00014", "00015"), strict=True):
        twin.parent.mkdir()
        twin.write_text(f"FileID\n{clip_id}\n")
    run = submit("--tta", 1, "--sheets", *twins)
    assert run.code == 2, "both sheets are written to test1_submission.csv: one would be lost"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('FileID,Name\n"000289,x\n', "quote"),
        ("FileID,FileID\n1,2\n", "the column FileID twice"),
        ("FileID,Emotion,Emotion\n1,,\n", "the column Emotion twice"),
    ],
)
def test_sheets_that_would_answer_another_clip(tmp_path, content, says):
    (tmp_path / "sheet.csv").write_text(content)
    with pytest.raises(UsageError, match=says):
        Sheet(tmp_path / "sheet.csv")


def test_empty_rows_stay_empty_and_long_numbers_are_numbers(tmp_path):
    (tmp_path / "sheet.csv").write_text("FileID,Name\n7,x\n,\n")
    sheet = Sheet(tmp_path / "sheet.csv")
    assert sheet.ids == ["7"]
    assert sheet.filled({"7": "neu"}).decode() == "FileID,Name,Emotion\n7,x,neu\n,\n"
    assert make_submission.number("0" * 5000 + "7") == make_submission.number("7")


def test_what_is_left_out_is_told(submit, members, features, tmp_path):
    (tmp_path / "logs" / "multimodal" / "unfinished").mkdir(parents=True)
    shutil.copytree(members[0].parent, tmp_path / "logs" / "multimodal" / "run")
    for path in (tmp_path / "logs" / "multimodal" / "run").glob("*.pth"):
        path.rename(path.with_name("1_best_1.0000.pth"))
    (tmp_path / "sheet.csv").write_text("FileID\n00014\n")
    places = ("--features_dir", features, "--out", tmp_path, "--logs_dir", tmp_path / "logs")
    flags = ("--sheets", tmp_path / "sheet.csv", "--face_frames", 2, "--tta", 1, "--num_workers", 0)
    run = run_main("make_submission", *places, *flags)
    assert run.code == 0 and "left out" in run.err and "unfinished" in run.err, run.err
    assert "clips of test are in no sheet" in run.err
