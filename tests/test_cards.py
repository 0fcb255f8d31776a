"""What an answer comes from: cards of checkpoints, packed models, transfer, few clips, voices."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, make_clip, tone, write_features
from inside import run_main
from trainings import TINY, with_records

from corpora import pool
from evaluation.cards import FIRST, LAST, with_cards
from evaluation.ensemble import load_members
from evaluation.pack import HeldOut, calibrated, evaluate_on
from inference.card import by_run, card_lines, cards
from inference.offer import offer
from inference.predictor import Predictor
from inference.windows import has_voice
from models import build_model
from models.backbone import Backbone
from models.transformer import TextTransformer
from training.checkpoint import best_checkpoint, load_checkpoint, save_checkpoint
from training.features import Features
from utils.errors import UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Features with records, and a run on the words of their fold 0."""
    folder = tmp_path_factory.mktemp("cards")
    features = with_records(write_features(folder / "features", clips_per_class=4))
    places = ("--features_dir", features, "--logs_dir", folder / "logs", "--device", "cpu")
    made = run_main(
        *("train", "--mode", "text", "--exp_name", "a", *places, *TINY, "--fold", 0),
        *("--allow_leaks", "--n_epoch", 8, "--optim", "adamw", "--eval_step", 8),
    )
    assert made.code == 0, made.err
    return folder


def members(path, trained):
    return load_members([path], Features.open(trained / "features"))


def test_a_checkpoint_knows_its_origin(trained):
    (card,) = cards(members(trained / "logs" / "text" / "a", trained))
    assert (card["corpus"], card["clips"], card["people"]) == ("merc2020", 28, 4)
    assert card["inputs"] == ["text"] and card["tested_clips"] == 28 and not card["generated"]
    low, high = card["interval"]
    assert low < card["accuracy"] < high and card["chance"] == pytest.approx(1 / 7, abs=1e-4)
    (line,) = card_lines([card])
    assert line.startswith("words: trained on merc2020, 28 clips of 4 people")
    assert "chance 14%" in line
    assert "over clips) of 28 other clips" in line  # too narrow for other people


def test_folds_of_one_run_share_a_card(trained, tmp_path):
    best = load_checkpoint(best_checkpoint(trained / "logs" / "text" / "a"))
    best["card"]["corpus"], checkpoints = "demo", []
    for fold, (accuracy, clips) in enumerate(((0.5, 20), (0.8, 30))):
        best["val"] |= {"accuracy": accuracy, "clips": clips}
        best["card"]["clips"] = 28 + fold
        best["weights"]["heads.text.linear.bias"] += 1  # no two files are the same model
        save_checkpoint(tmp_path / "run" / f"fold_{fold}" / "1_best_1.0000.pth", best)
        checkpoints.append(copy.deepcopy(best | {"config": best["config"] | {"fold": str(fold)}}))
    found = cards(members(tmp_path / "run", trained))
    line, warning = card_lines(by_run(found))
    assert line.startswith("words: trained on demo, 28 to 29 clips of 4 people; right on 68% (")
    assert line.endswith(" of 50 other clips, chance 14%; 2 folds together")
    assert warning.startswith("TRAINED ON GENERATED CLIPS")
    assert card_lines(by_run(found[:1])) == card_lines(found[:1]), "one alone is as it was"
    ((first, learnt, right, *_),) = offer(checkpoints, "text/run")["cards"]  # of the page
    assert first.endswith("It is 2 networks that answer together: one for each fold.")
    assert "28 to 29 clips" in learnt and "68 % of 50 clips" in right
    for card in found:  # files of one name are different models
        card["model"] = "words.pth"
    assert card_lines(by_run(found)) == card_lines(found)


CHOICES = {  # settings, packed: whether its clips chose the epoch
    "an epoch of many": ({"n_epoch": 8, "eval_step": 1}, False, True),
    "the last epoch": ({"n_epoch": 8, "eval_step": 8}, False, False),
    "packed, an epoch of many": ({"n_epoch": 8, "eval_step": 1}, True, True),
    "packed, the last epoch": ({"n_epoch": 8, "eval_step": 8}, True, False),
    "packed, chosen elsewhere": ({"n_epoch": 8, "eval_step": 1, "val_fold": "1"}, True, False),
}


@pytest.mark.parametrize(("settings", "packed", "chose"), CHOICES.values(), ids=CHOICES)
def test_the_page_says_which_clips_chose_the_epoch(trained, settings, packed, chose):
    checkpoint = load_checkpoint(best_checkpoint(trained / "logs" / "text" / "a"))
    checkpoint["config"] |= settings
    if packed:  # over clips, as where nobody knows who they are
        checkpoint["card"] |= {"accuracy": 0.5, "interval": [0.4, 0.6], "interval_over": "clips"}
    (lines,) = offer([checkpoint], "text/a")["cards"]
    assert ("These clips chose its best epoch: for new people expect less." in lines) == chose


def test_a_model_of_generated_clips_says_so(trained, tmp_path):
    best = best_checkpoint(trained / "logs" / "text" / "a")
    checkpoint = load_checkpoint(best)
    checkpoint["card"]["corpus"] = "demo"
    save_checkpoint(tmp_path / "demo.pth", checkpoint)
    (card,) = cards(members(tmp_path / "demo.pth", trained))
    assert card["generated"] and "mean nothing for real people" in card["warning"]
    assert any("MEAN NOTHING FOR REAL PEOPLE" in line for line in card_lines([card]))


def test_a_card_that_is_no_plain_data_is_refused(trained, tmp_path):
    checkpoint = load_checkpoint(best_checkpoint(trained / "logs" / "text" / "a"))
    save_checkpoint(tmp_path / "odd.pth", checkpoint | {"card": {"clips": torch.ones(2)}})
    with pytest.raises(Exception, match="its card is none of ours"):
        load_checkpoint(tmp_path / "odd.pth")


def test_a_packed_model_is_smaller_and_less_sure(trained, tmp_path):
    run, out = trained / "logs" / "text" / "a", tmp_path / "models" / "words.pth"
    done = run_main(
        *("evaluation.pack", run, "--features_dir", trained / "features", "--out", out),
        *("--corpus", "made up", "--language", "none", "--device", "cpu"),
        *("--setting", "max_words=7"),
    )
    assert done.code == 0, done.err
    before, after = load_checkpoint(best_checkpoint(run)), load_checkpoint(out)
    card = after["card"]
    assert (before["config"]["max_words"], after["config"]["max_words"]) == (38, 7)
    assert card["corpus"] == "made up" and card["tested_clips"] == 28 and not card["voice_only"]
    assert 0.05 < card["ece_if_calibrated"] < 0.3  # 28 clips alone make such an error
    shown = f"{card['ece']:.2f} ({card['ece_if_calibrated']:.2f} if calibrated) |"
    empty = f"{FIRST}\n{LAST}\n"
    assert with_cards(empty, out.parent).count(shown) == 1
    kinds = {(value.dim() > 1, value.dtype) for value in after["weights"].values()}
    assert kinds <= {(True, torch.float16), (False, torch.float32), (False, torch.int64)}
    weights = [each["weights"]["heads.text.linear.weight"].float() for each in (before, after)]
    ratio = (weights[0] / weights[1]).median()
    assert float(ratio) == pytest.approx(card["temperature"], rel=1e-2)
    ((member,), (old,)) = members(out.parent, trained), members(run, trained)
    words = torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool)
    new, own = (each.model.eval()({"text": words}).logits["text"] for each in (member, old))
    torch.testing.assert_close(new * card["temperature"], own, atol=0.05, rtol=0.02)


def test_a_run_is_not_packed_over_itself(trained):
    best = best_checkpoint(trained / "logs" / "text" / "a")
    before = best.read_bytes()
    for run in (best, best.parent):
        done = run_main(
            "evaluation.pack", run, "--features_dir", trained / "features", "--out", best
        )
        assert done.code == 2 and "is the run itself, which would be lost" in done.err
    assert best.read_bytes() == before


def test_a_packed_model_is_as_sure_as_it_is_right_elsewhere(trained, tmp_path):
    """Where all its answers are right, it may be sure of all, at home too."""
    run = trained / "logs" / "text" / "a"
    other = shutil.copytree(trained / "features", tmp_path / "other")
    table = pd.read_csv(other / "manifest.csv", dtype=str, keep_default_na=False)
    apart = table["split"] == "test"
    for answers in ("sad", ""):  # any label; then what the model says
        if not answers:
            asked, log_p, _ = evaluate_on(run, other, "test", "cpu")
            answers = [CLASSES[k] for k in log_p.argmax(1)]
            assert asked.clips["clip_id"].tolist() == table.loc[apart, "clip_id"].tolist()
        table.loc[apart, "emotion"] = answers
        table.to_csv(other / "manifest.csv", index=False)
    pack = ("evaluation.pack", run, "--features_dir", trained / "features", "--device", "cpu")
    found = []
    for name, more in (("home", ()), ("away", ("--elsewhere", f"away={other}@test"))):
        done = run_main(*pack, "--out", tmp_path / f"{name}.pth", *more)
        assert done.code == 0, done.err
        found.append(load_checkpoint(tmp_path / f"{name}.pth")["card"])
    home, away = found
    assert away["temperature"] < 0.2 < 1 < home["temperature"]
    assert home["accuracy"] == away["accuracy"] < 0.9 and away["ece"] > home["ece"] + 0.1
    (elsewhere,) = away["elsewhere"]
    assert (elsewhere["corpus"], elsewhere["accuracy"]) == ("away", 1)
    _, log_p, labels = evaluate_on(run, trained / "features", None, "cpu")
    asked, other_p, truth = evaluate_on(run, other, "test", "cpu")
    alone = replace(asked, clips=asked.clips.assign(speaker="ann"))  # of one person, clips count
    assert 0.05 < calibrated([HeldOut(alone, log_p, labels)])[0] < 20
    own, fitted = HeldOut(asked, log_p, labels), []
    for times in (1, 9):  # a corpus whose clips stand there nine times over counts as before
        clips = pd.concat(times * [asked.clips])
        repeated = np.tile(other_p, (times, 1)), np.tile(truth, times)
        more = HeldOut(replace(asked, clips=clips), *repeated)
        temperature, tempered = calibrated([own, own, more])
        assert [len(each) for each in tempered] == [28, 28, 28 * times]
        fitted.append(temperature)
    assert fitted[0] == pytest.approx(fitted[1], abs=1e-3) and fitted[0] > 0.5
    done = run_main(*pack, "--out", tmp_path / "x.pth", "--elsewhere", "away")
    assert done.code == 2 and "expected NAME=DIR@SPLIT" in done.err


def test_the_page_of_the_starter_models_says_what_their_cards_say(tmp_path):
    starter = Path(__file__).parent.parent / "starter"
    text = (starter / "README.md").read_text("utf-8")
    assert with_cards(text, starter) == text, "python -m evaluation.cards starter"
    folder = shutil.copytree(starter, tmp_path / "starter")
    (folder / "face.pth").unlink()
    done = run_main("evaluation.cards", folder)
    assert done.code == 0, done.err
    changed = (folder / "README.md").read_text("utf-8")
    assert "`voice.pth`, Javanese AV" in changed and "| `face.pth` |" not in changed
    assert changed.startswith(text[: text.index(FIRST)])
    (folder / "README.md").write_text("no marks\n")
    refused = run_main("evaluation.cards", folder)
    assert refused.code == 2 and f"expected the lines {FIRST}" in refused.err


def test_a_card_that_says_little_has_dashes(trained, tmp_path):
    checkpoint = load_checkpoint(best_checkpoint(trained / "logs" / "text" / "a"))
    (tmp_path / "README.md").write_text(f"{FIRST}\n{LAST}\n")
    for name, card in {"a": {}, "b": {"corpus": "x | y\nz", "clips": 7}}.items():
        save_checkpoint(tmp_path / f"{name}.pth", checkpoint | {"card": card})
    done = run_main("evaluation.cards", tmp_path)
    assert done.code == 0, done.err
    page = (tmp_path / "README.md").read_text("utf-8")
    assert "| `a.pth` | – | – |" in page and r"| `b.pth` | x \| y z | 7 clips |" in page
    assert "| `a.pth` | held out: – | – | – | – | – |" in page
    save_checkpoint(tmp_path / "c.pth", checkpoint | {"card": {"clips": "7"}})
    refused = run_main("evaluation.cards", tmp_path)
    assert refused.code == 4 and "its card is none of ours" in refused.err


def test_prediction_and_its_files_carry_the_card(trained, tmp_path):
    np.savez(tmp_path / "words.npz", words=np.array(["good"]), vectors=np.ones((1, 16), "f4"))
    done = run_main(
        *("predict", "--text", "good", "--word_vectors", tmp_path / "words.npz", "--no_pictures"),
        *("--checkpoints", trained / "logs" / "text" / "a", "--out", tmp_path / "out"),
    )
    assert done.code == 0, done.err
    assert "words: trained on merc2020, 28 clips of 4 people; right on" in done.out
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found["models"][0]["corpus"] == "merc2020" and found["models"][0]["interval"]
    assert found["clips"][0]["card"][0].startswith("words: trained on merc2020")


def test_a_start_from_other_classes_leaves_the_last_layer(trained, tmp_path):
    other = shutil.copytree(trained / "features", tmp_path / "other")
    settings = json.loads((other / "settings.json").read_text())
    settings["classes"] = settings["classes"][:5]
    (other / "settings.json").write_text(json.dumps(settings))
    table = pd.read_csv(other / "manifest.csv", dtype=str, keep_default_na=False)
    table = table[table["emotion"].isin(settings["classes"])]
    table["clip_id"] = "x" + table["clip_id"]  # another corpus: no clip of it is known there
    for path in [path for path in other.glob("*/*/*") if path.is_file()]:
        path.rename(path.with_name(f"x{path.name}"))
    table.to_csv(other / "manifest.csv", index=False)
    done = run_main(
        *("train", "--mode", "text", "--exp_name", "b", "--features_dir", other, *TINY),
        *("--logs_dir", tmp_path, "--fold", "all", "--allow_leaks", "--device", "cpu"),
        *("--text_load_weights", trained / "logs" / "text" / "a", "--n_epoch", 1),
    )
    assert done.code == 0, done.err
    assert done.out.count("all but the last layer: its classes are ['hap', 'ang'") == 2
    made = load_checkpoint(best_checkpoint(tmp_path / "text" / "b" / "fold_1"))
    assert made["weights"]["heads.text.linear.weight"].shape[0] == 5


@pytest.mark.parametrize("mode", ["speech", "face", "text"])
def test_the_recipe_for_few_clips(trained, tmp_path, mode, monkeypatch):
    places = ("--features_dir", trained / "features", "--logs_dir", tmp_path, "--mode", mode)
    flags = ("--exp_name", "few", "--dry_run", "--fold", "0", "--allow_leaks")
    small = ("train", *places, *flags, "--recipe", "small", "--batch_size", 4)
    kept = ("--freeze_backbone", True)  # its name ends as that of a backbone
    cases = [(True, (), 1), (True, kept, 1), (True, ("--amp", True), 0), (False, (), 0)]
    for has_tiles, more, told in cases:
        can = {"amx_bf16": has_tiles}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can, raising=False)
        done = run_main(*small, *more)
        assert done.code == 0 and done.err.count("--amp True takes half") == told, done.err
    assert "small recipe:" in done.out and " batch_size=4 " in done.out
    if mode == "speech":
        assert "speech_backbone=small-32" in done.out and " speech_frames=96" in done.out
    again = run_main("train", *places, *flags)
    assert "28 training clips are few" in again.err, again.err
    chosen = run_main("train", *places, *flags, "--optim", "adamw")
    assert "are few" not in chosen.err


def test_small_backbones():
    for name, stride in (("small-16", 16), ("small-32", 32), ("small-32-wide", 32)):
        backbone = Backbone(name, in_channels=3)
        colours = torch.rand(2, 3, 48, 96)
        out = backbone.eval()(colours)
        assert out.shape == (2, backbone.out_channels, 48 // stride, 96 // stride)
        grey = colours.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        torch.testing.assert_close(backbone(grey), out)


def test_faces_by_themselves_do_not_mind_their_order():
    encoder = {"type": "CLSTM", "backbone": "small-16", "lstm": False}
    model = build_model({"face": encoder}, {"face": ["face"]}, 7).eval()
    faces = torch.rand(1, 5, 3, 48, 48)
    given, turned = ({"face": (each,)} for each in (faces, faces.flip(1)))
    torch.testing.assert_close(model(given).logits["face"], model(turned).logits["face"])


def test_a_transformer_of_its_own_width():
    encoder = TextTransformer(dim=25, layers=1, heads=4, width=64)
    x, _ = encoder(torch.rand(2, 3, 25), torch.ones(2, 3, dtype=torch.bool))
    assert x.shape == (2, 3, 64)
    with pytest.raises(ValueError, match="that the 4 heads divide"):
        TextTransformer(dim=25, layers=1, heads=4, width=66)


def test_a_beep_is_no_voice(tmp_path, place, monkeypatch):
    beep = make_clip(tmp_path / "beep.mp4", None, tone(2, 440))
    assert not has_voice(beep)
    checkpoint = load_checkpoint(place / "speech.pth")
    save_checkpoint(tmp_path / "speech.pth", checkpoint | {"card": {"voice_only": True}})
    for seconds in (0, 60):
        asked = Predictor([tmp_path / "speech.pth"], device="cpu", clip_seconds=seconds)(beep)
        assert not asked.parts
        assert asked.missing == {"speech": "E_NOVOICE: nobody is heard to speak"}
    assert Predictor([place / "speech.pth"], device="cpu")(beep).parts, "any sound is answered"


def test_corpora_are_pooled_under_one_set_of_classes(tmp_path, monkeypatch, capsys):
    for name in ("03-01-01-01-01-01-01", "03-01-02-01-01-01-02", "03-01-07-01-01-01-02"):
        (tmp_path / "r" / "Actor").mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / "Actor" / f"{name}.wav").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a1-03-01-02-15.wav").touch()
    given = [f"ravdess={tmp_path / 'r'}", f"ased={tmp_path / 'a'}@test"]
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["pool", str(out), *given, "--classes", "ang,neu+cal"])
    pool.main()
    table = pd.read_csv(out / "manifest.csv", dtype=str, keep_default_na=False)
    assert table["emotion"].tolist() == ["neu", "neu", "ang"]
    assert table["split"].tolist() == ["train", "train", "test"]
    assert table["speaker"].tolist() == ["ravdess-Actor_01", "ravdess-Actor_02", "ased-15"]
    assert (out / "classes.txt").read_text() == "ang\nneu\n"
    assert "ravdess: 2 clips of 2 people" in capsys.readouterr().out
    given = [f"ravdess={tmp_path / 'r'}", f"ased={tmp_path / 'a'}", "--folds", "corpus"]
    monkeypatch.setattr("sys.argv", ["pool", str(out), *given, "--classes", "ang,neu+cal"])
    pool.main()
    table = pd.read_csv(out / "manifest.csv", dtype=str, keep_default_na=False)
    assert table["fold"].tolist() == ["ravdess", "ravdess", "ased"]
    assert {*table["split"]} == {"train"}
    monkeypatch.setattr("sys.argv", ["pool", str(out), *given, "--classes", "ang,nue"])
    with pytest.raises(UsageError, match="--classes nue: no clip"):
        pool.main()
    monkeypatch.setattr("sys.argv", ["pool", str(out), "x=y", "--classes", "ang,neu"])
    with pytest.raises(UsageError, match="corpus"):
        pool.main()


def test_a_pool_takes_no_table_and_says_what_it_leaves_out(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            (tmp_path / folder / f"{folder}-{name}.wav").touch()
        labels = {"a": "hap", "b": "sad"}
        rows = [f"{folder}-{name}.wav,train,{label},{name}" for name, label in labels.items()]
        table = ["media,split,emotion,speaker", *rows, f"{tmp_path}/c.wav,train,sad,c", ""]
        (tmp_path / folder / "manifest.csv").write_text("\n".join(table))
    table = (tmp_path / "one" / "manifest.csv").read_text()
    given = [f"csv={tmp_path / folder}" for folder in ("one", "two")]
    for folder in ("one", "two"):
        refused = run_main("corpora.pool", tmp_path / folder, given[0], "--classes", "hap,sad")
        assert refused.code == 2 and "manifest.csv would be written over" in refused.err
    assert (tmp_path / "one" / "manifest.csv").read_text() == table
    for _ in range(2):  # its own table may be made anew
        done = run_main("corpora.pool", tmp_path / "out", *given, "--classes", "hap,sad")
        assert done.code == 0, done.err
    assert f"csv: rejected E_ID: no {tmp_path}/c.wav" in done.err
    assert "warning: 2 people of" in done.err and "as if the same: csv-a, csv-b" in done.err
    more = run_main("corpora.pool", tmp_path / "out", *given, "--classes", "hap,dis,sad")
    assert more.code == 0 and "--classes dis: no clip of these corpora has" in more.err
    assert (tmp_path / "out" / "classes.txt").read_text() == "hap\ndis\nsad\n"
    misspelt = run_main("corpora.pool", tmp_path / "out", *given, "--classes", "hap,sda")
    assert misspelt.code == 2 and "--classes sda: no clip" in misspelt.err
    refused = run_main(
        *("corpora.pool", tmp_path / "out", f"csv={tmp_path / 'out'}", "--classes", "hap,sad")
    )
    assert refused.code == 2 and "would be written over" in refused.err


def test_the_models_that_come_along():
    from inference.sources import find_sources
    from inference.starter import FOLDER, WORDS, starter_models

    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert size < 12e6 and [path.stem for path in starter_models()] == ["face", "voice", "words"]
    predictor = Predictor(starter_models(), device="cpu", word_vectors=WORDS)
    assert predictor.voice_only
    for card in predictor.cards:
        assert card["corpus"] and card["clips"] and card["interval"] and not card["generated"]
    for said, label in (("thank you, i love it", "hap"), ("i hate you, idiot", "ang")):
        (source,) = find_sources([], said)
        predictor.look_up([said])
        answer = predictor.predict(source)
        assert answer.label == label and answer.rests_on == ["text"]


def test_the_models_that_come_along_answer_without_a_word_about_labels(tmp_path):
    done = run_main("predict", "--text", "i hate you", "--no_pictures", "--out", tmp_path / "out")
    assert done.code == 0 and "labels" not in done.err, done.err
