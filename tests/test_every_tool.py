"""Whatever build_model builds is read by every tool, and all tools give the same probabilities."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, save_untrained
from extras import need
from inside import run_main
from torch import nn

import evaluation.report
import models
from inference.predictor import Predictor
from models.fusion import FUSIONS
from models.pooling import POOLINGS
from training.modalities import MODALITIES

CLIPS = ("anna", "ben")


class Peak(nn.Module):
    """A pooling that is none of ours: the largest value over the real tokens."""

    def __init__(self, dim: int):
        super().__init__()
        self.out_dim = dim

    def forward(self, tokens, mask):
        return tokens.masked_fill(~mask.unsqueeze(2), -1e4).amax(dim=1)


class Bands(nn.Module):
    """An encoder that is none of ours, with a list and a large number among its settings."""

    def __init__(self, dim: int, bands: list[int], period: int):
        super().__init__()
        self.linear = nn.Linear(dim, sum(bands))
        self.period, self.token_dim = period, sum(bands)
        self.pooling = POOLINGS["peak"](self.token_dim)

    def forward(self, words, mask):
        return self.linear(words) * self.period / 250_000, mask


class Product(nn.Module):
    """A fusion that is none of ours: the product of all vectors, made equally wide."""

    def __init__(self, token_dims, vector_dims, n_classes: int):
        super().__init__()
        self.project = nn.ModuleDict({k: nn.Linear(dim, 9) for k, dim in vector_dims.items()})
        self.linear = nn.Linear(9, n_classes)

    def forward(self, tokens, vectors):
        each = [self.project[name](vector) for name, vector in vectors.items()]
        return self.linear(torch.stack(each).tanh().prod(dim=0))


def bands(config, shape):
    return {"type": "Bands", "dim": shape[-1], "bands": [2, 5, 8], "period": 250_000}


@pytest.fixture(scope="module", autouse=True)
def own_parts():
    """A fusion, a pooling and an encoder as a researcher would add them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(POOLINGS, "peak", Peak)
        patch.setitem(FUSIONS, "product", Product)
        patch.setitem(models.ENCODERS, "Bands", Bands)
        yield


POOLED = {"concat": "attention", "gated": "relation", "attention": "mean", "product": "peak"}
KINDS = [*FUSIONS, "product"]


@pytest.fixture(scope="module")
def fused(place, own_parts, tmp_path_factory):
    """{(fusion, modality_dropout): checkpoint}"""
    folder, made = tmp_path_factory.mktemp("fused"), {}
    for seed, (kind, dropout) in enumerate((k, d) for k in KINDS for d in (0.0, 0.3)):
        with pytest.MonkeyPatch.context() as patch:
            if kind == "product":
                text = replace(MODALITIES["text"], encoder=bands)
                patch.setitem(MODALITIES, "text", text)
            path = made[kind, dropout] = folder / f"{kind}-{dropout}.pth"
            choice = {"fusion": kind, "pooling": POOLED.get(kind, "attention")}
            features = place / "features"
            save_untrained(path, features, seed=seed, modality_dropout=dropout, **choice)
    return made


@pytest.fixture(scope="module")
def wordless(place, tmp_path_factory):
    return shutil.copy(place / "clips" / "anna.mp4", tmp_path_factory.mktemp("wordless"))


@pytest.fixture
def tools(place, tmp_path, monkeypatch):
    """What predict, evaluate and make_submission say of both clips, (2, K) each."""
    tables = []
    monkeypatch.setattr(
        evaluation.report, "write_report", lambda folder, report, table: tables.append(table)
    )

    def by_predict(*checkpoints):
        predictor = Predictor(checkpoints, device="cpu")
        clips = [predictor(place / "clips" / f"{name}.mp4") for name in CLIPS]
        return np.stack([clip.probabilities for clip in clips])

    def by_evaluate(*checkpoints):
        flags = ("--features_dir", place / "features", "--split", "clips", "--num_workers", 0)
        flags += ("--device", "cpu", "--out", tmp_path / "report", "--allow_training_clips")
        done = run_main("evaluate", "--checkpoints", *checkpoints, *flags)
        assert done.code == 0, done.err
        table = tables.pop()
        rows = table[table["run"] == table["run"].iloc[-1]]  # the ensemble
        assert rows["clip_id"].tolist() == [*CLIPS]
        return rows[[f"p_{name}" for name in CLASSES]].to_numpy()

    def by_submission(*checkpoints):
        (tmp_path / "sheet.csv").write_text("\n".join(["FileID", *CLIPS]))
        flags = ("--tta", 1, "--temperature", 1, "--face_frames", 2, "--num_workers", 0)
        flags += ("--features_dir", place / "features", "--split", "clips", "--device", "cpu")
        done = run_main(
            *("make_submission", "--checkpoints", *checkpoints, *flags),
            *("--sheets", tmp_path / "sheet.csv", "--out", tmp_path),
        )
        assert done.code == 0, done.err
        with np.load(tmp_path / "sheet_submission.npz", allow_pickle=False) as archive:
            return archive["probabilities"]

    return {"predict": by_predict, "evaluate": by_evaluate, "make_submission": by_submission}


@pytest.fixture(scope="module")
def runs(place, tmp_path_factory):
    """Runs by what they read; `folds`: a --fold all with two folds."""
    folder, features = tmp_path_factory.mktemp("runs"), place / "features"
    for seed, mode in enumerate(("speech", "face", "text")):
        save_untrained(folder / f"{mode}.pth", features, mode, seed)
    save_untrained(folder / "fused.pth", features, seed=3, modality_dropout=0.3)
    for fold in ("0", "1"):
        place = folder / "folds" / f"fold_{fold}"
        place.mkdir(parents=True)
        name = "1_best_1.0000.pth"
        save_untrained(place / name, features, seed=4 + int(fold), fold=fold)
    return folder


ENSEMBLES = {
    "a fused and a text run": ("fused.pth", "text.pth"),
    "a fused run of --modality_dropout and a face run": ("fused.pth", "face.pth"),
    "runs of one input each": ("speech.pth", "face.pth", "text.pth"),
    "the folds of a run and another run": ("folds", "speech.pth"),
}


@pytest.mark.parametrize("given", ENSEMBLES.values(), ids=ENSEMBLES)
def test_one_rule_of_ensembles(runs, tools, given):
    """Every run has one vote, whatever it reads; the folds of a --fold all share theirs."""

    def vote(name):
        folds = sorted((runs / name).glob("fold_*"))
        alone = [tools["make_submission"](path) for path in folds or [runs / name]]
        return np.mean(alone, axis=0)

    expected = np.mean([vote(name) for name in given], axis=0)
    assert np.abs(expected - vote(given[0])).max() > 0.01, "these runs agree: nothing is tested"
    for name, tool in tools.items():
        found = tool(*(runs / each for each in given))
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_predict_reads_every_fusion(fused, place, wordless, kind, dropout):
    predictor = Predictor([fused[kind, dropout]], device="cpu")
    whole = predictor(place / "clips" / "anna.mp4")
    assert whole.rests_on == ["speech", "face", "text"] and whole.deciding_part == "fused"
    without = predictor(wordless)
    assert without.rests_on == ["speech", "face"] and [*without.missing] == ["text"]
    assert without.deciding_part == ("fused" if dropout else "mean")
    assert without.filled_in == (dropout > 0)
    assert without.probabilities.sum() == pytest.approx(1)
    differences = np.log(without.probabilities) - np.log(whole.probabilities)
    assert np.abs(differences).max() > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_all_tools_read_every_fusion(fused, tools, dropout):
    given = [path for (_, each), path in fused.items() if each == dropout]
    assert len(given) == len(KINDS)
    expected = np.mean([tools["make_submission"](path) for path in given], axis=0)
    for name, tool in tools.items():
        np.testing.assert_allclose(tool(*given), expected, atol=1e-6, err_msg=name)


SLOW_EXPORTS = ("gated", "attention", "late")  # in a release; tests/test_export.py has concat


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow if k in SLOW_EXPORTS else ()) for k in KINDS],
)
def test_export_reads_every_fusion(place, tmp_path, kind):
    """In ONNX, too, the batch and the length of each input are open. Of the words and a custom
    feature: tests/test_export.py has the other encoders, which take most of the time."""
    need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    from training.checkpoint import load_checkpoint, restore_model

    path, choice = tmp_path / "m.pth", {"fusion": kind, "pooling": POOLED.get(kind, "attention")}
    settings = choice | {"inputs": "text,au", "modality_dropout": 0.3}
    save_untrained(path, place / "features", **settings)
    done = run_main("export", "--checkpoint", path, "--out", tmp_path / "m.onnx")
    assert done.code == 0, done.err
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    model = restore_model(load_checkpoint(path), path).eval()
    for batch, words in ((1, 7), (3, 1)):
        text, au = torch.rand(batch, words, 16), torch.rand(batch, 12)
        spoken = torch.arange(words) < torch.tensor([words, 1, 1])[:batch, None]
        left_out = torch.arange(2 * batch).view(batch, 2) % 3 == 1
        with torch.inference_mode():
            columns_out = {"text": left_out[:, 0], "au": left_out[:, 1]}
            logits = model({"text": (text, spoken), "au": (au,)}, columns_out).logits
        given = (text, spoken, au, left_out)
        names = ("text", "text_mask", "au", "left_out")
        feed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        expected = logits["integrated"].softmax(1).numpy()
        assert np.abs(session.run(None, feed)[0] - expected).max() < 1e-4
