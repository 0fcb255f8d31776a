"""What happens to the data and the gradients: views, mixing, losses, metrics, order, resuming."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, write_features

from models import build_model
from models.attn_cnn import AttnCNN
from models.backbone import set_batchnorm_momentum
from training import transforms
from training.data import (
    ClipDataset,
    EpochBatches,
    Features,
    collate,
    make_loader,
    to_device,
    training_rows,
)
from training.loop import Trainer
from training.losses import multi_task_loss, smooth_one_hot, soft_cross_entropy
from training.metrics import Metrics
from training.mixing import Mixer, cutmix, draw_box, draw_left_out, mixup
from training.optim import batchnorm_momentum, centralize_gradients, lr_factor, make_optimizer
from training.tasks import TASKS, model_arch, recipe
from utils.errors import IntegrityError, UsageError

MODES = list(TASKS)
TINY = {"speech_coeff": 0, "face_coeff": 0, "text_layers": 1, "speech_frames": 48}
TINY |= {"face_frames": 2, "batch_size": 5, "n_epoch": 2}


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Views of one clip


def columns(count: int) -> np.ndarray:
    """A log-mel (4, T) whose every column holds its number, from 1."""
    return np.tile(np.arange(1, count + 1, dtype="f4"), (4, 1))


@pytest.mark.parametrize(
    ("length", "frames", "kept", "left"),
    [
        (100, 40, range(31, 71), 0),
        (101, 40, range(31, 71), 0),
        (20, 40, range(1, 21), 10),
        (21, 40, range(1, 22), 9),
    ],
)
def test_evaluation_takes_the_middle_and_pads_both_sides(length, frames, kept, left):
    view = transforms.speech_view(columns(length), frames, rng(0), augment=False)
    assert view.shape == (1, 4, frames) and view.dtype == np.float32
    expected = np.zeros(frames)
    expected[left : left + len(kept)] = kept
    np.testing.assert_array_equal(view[0], np.tile(expected, (4, 1)))


def test_training_starts_anywhere(monkeypatch):
    for name in ("brighten", "spec_augment"):
        monkeypatch.setattr(transforms, name, lambda view, rng: view)
    starts = {
        int(transforms.speech_view(columns(50), 40, rng(seed), augment=True)[0, 0, 0])
        for seed in range(200)
    }
    assert starts == set(range(1, 12)), "both ends can be reached, and nothing else"


def test_spec_augment_masks_within_its_bounds(monkeypatch):
    monkeypatch.setattr(transforms, "time_warp", lambda view, rng: view)
    rows, spans = [], []
    for seed in range(200):
        view = transforms.spec_augment(np.ones((128, 400), "f4"), rng(seed))
        assert set(np.unique(view)) <= {0, 1}
        rows.append(int((view.max(axis=1) == 0).sum()))
        spans.append(int((view.max(axis=0) == 0).sum()))
    assert 40 < max(rows) <= 3 * 27 and 100 < max(spans) <= 4 * 50
    short = [transforms.spec_augment(np.ones((128, 40), "f4"), rng(s)).mean() for s in range(50)]
    assert np.mean(short) > 0.3, "of a short input something must be left"


def test_time_warp_keeps_order_and_ends_and_goes_far():
    line = np.linspace(0, 1, 400, dtype="f4")[np.newaxis]
    moved = []
    for seed in range(100):
        warped = transforms.time_warp(line, rng(seed))[0]
        assert warped[0] == 0 and warped[-1] == 1 and (np.diff(warped) > 0).all()
        moved.append(399 * float(np.abs(warped - line).max()))
    assert max(moved) <= 80 and max(moved) > 40 and len({round(each) for each in moved}) > 20
    for frames in (5, 32, 33):
        assert transforms.time_warp(line[:, :frames], rng(1)).shape == (1, frames)


@pytest.mark.parametrize("seed", range(12))
def test_a_clip_of_one_picture_stays_a_still(seed):
    picture = rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    crops = np.repeat(picture[np.newaxis], 9, axis=0)
    view = transforms.face_view(crops, np.ones(9, bool), 4, rng(seed), augment=True)
    assert view.shape == (4, 3, 32, 32) and view.dtype == np.uint8
    assert (view == view[0]).all(), "frames of one clip were augmented differently"


def test_faces_are_augmented_and_evaluation_is_not():
    crops = rng(1).integers(0, 255, (3, 32, 32, 3), np.uint8)
    plain = transforms.face_view(crops, np.ones(3, bool), 3, rng(0), augment=False)
    np.testing.assert_array_equal(plain, crops.transpose(0, 3, 1, 2))
    kinds = set()
    for seed in range(120):
        view = transforms.face_view(crops, np.ones(3, bool), 3, rng(seed), augment=True)
        kinds |= {
            name
            for name, twin in (("same", plain), ("flip", plain[..., ::-1]))
            if (view == twin).all()
        }
    assert kinds == {"same", "flip"}, "flip, brightness and rotation must be drawn on their own"


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("available", [1, 5, 16, 31, 200])
def test_frames_are_ascending_and_only_real_faces(available, augment):
    valid = np.zeros(2 * available + 1, bool)
    valid[1::2] = True
    crops = np.arange(len(valid), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    crops = crops.repeat(32, axis=1).repeat(32, axis=2)
    chosen = transforms.choose_frames(available, 16, rng(0), augment)
    assert (np.diff(chosen) >= 0).all() and chosen.min() >= 0 and chosen.max() < available
    assert len(np.unique(chosen)) == 16 or available < 16
    view = transforms.face_view(crops, valid, 16, rng(0), augment=False)
    assert (view[:, 0, 0, 0] % 2 == 1).all(), "a frame without a face was chosen"
    if not augment:
        parts = np.histogram(chosen, 2, (0, available))[0]
        assert abs(parts[0] - parts[1]) <= 16 / available + 1, "one half of the clip is neglected"


def test_words_are_cut_padded_and_masked():
    texts = [np.ones((3, 5), "f4"), np.arange(30.0).reshape(6, 5), np.ones((1, 5), "f4")]
    views = [transforms.text_view(text, 4) for text in texts]
    assert views[1][0][:, 0].tolist() == [0, 5, 10, 15] and views[1][0].dtype == np.float32
    items = [
        {"inputs": {"text": tuple(map(torch.from_numpy, view))}, "clip_id": str(clip)}
        for clip, view in enumerate(views)
    ]
    batch = collate([items[0], items[2]])
    words, mask = batch["inputs"]["text"]
    assert words.shape == (2, 3, 5), "padded to more than the longest text"
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert words[1, 1:].abs().sum() == 0 and words[0].all() and batch["clip_id"] == ["0", "2"]


# Mixing


def one_hot_batch(seed: int = 0) -> tuple[dict, dict]:
    """Clip b is b-th unit everywhere: each input shows which clips went into it, and how much."""
    unit = torch.eye(6)
    inputs = {
        "speech": (unit.view(6, 6, 1, 1).expand(6, 6, 16, 20),),  # batch, which, F, T: see axes
        "face": (unit.view(6, 1, 6, 1, 1).expand(6, 8, 6, 10, 12),),
        "text": (unit.view(6, 1, 6).expand(6, 9, 6), torch.arange(9) < torch.arange(1, 7)[:, None]),
    }
    return inputs, {"a": unit.clone(), "b": unit.roll(1, 1)}


@pytest.mark.parametrize("alpha", [1e-6, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_mixup_uses_one_ratio_and_permutation_for_everything(seed, alpha):
    inputs, targets = one_hot_batch()
    mixed, labels = Mixer(1, alpha, 0, 1)(inputs, targets, rng(seed))
    torch.testing.assert_close(labels["a"].sum(1), torch.ones(6))
    share = labels["a"]  # (B, clip): how much of each clip is in each clip
    torch.testing.assert_close(labels["b"], share.roll(1, 1))
    torch.testing.assert_close(mixed["speech"][0][:, :, 3, 4], share)
    torch.testing.assert_close(mixed["face"][0][:, 2, :, 3, 4], share)
    torch.testing.assert_close(mixed["text"][0][:, 5], share)
    partner = (share - torch.eye(6) * share.diagonal()).argmax(1)
    if (share.diagonal() < 1).any() and 0 < share.min(1).values.max() + share.max() < 1.9:
        mask = inputs["text"][1]
        assert torch.equal(mixed["text"][1], mask | mask[partner])


@pytest.mark.parametrize("modality", ["speech", "face", "text"])
@pytest.mark.parametrize("seed", range(6))
def test_cutmix_ratio_is_the_volume_that_stayed(seed, modality):
    inputs, targets = one_hot_batch()
    mixed, labels = Mixer(0, 1, 1, 1)({modality: inputs[modality]}, targets, rng(seed))
    axes = {"speech": (2, 3), "face": (1, 3, 4), "text": (1,)}[modality]
    torch.testing.assert_close(mixed[modality][0].mean(axes), labels["a"])
    torch.testing.assert_close(labels["a"].sum(1), torch.ones(6))
    torch.testing.assert_close(labels["b"], labels["a"].roll(1, 1))
    assert set(mixed[modality][0].unique().tolist()) <= {0, 1}, "a box is pasted, not blended"
    own = mixed["face"][0].diagonal(0, 0, 2).permute(3, 0, 1, 2) if modality == "face" else None
    if own is not None:  # (B, T, H, W): where each clip is still itself
        gone = (own == 0).any(0)
        box = [torch.unique(index) for index in gone.nonzero(as_tuple=True)]
        assert gone.sum() == np.prod([len(each) for each in box]), "not a box"
        assert len(box[0]) < 8 or gone.sum() == 960, "cutmix3d cuts in time too"


def test_cutmix_of_several_inputs_keeps_their_mean_ratio():
    inputs, targets = one_hot_batch()
    mixed, labels = Mixer(0, 1, 1, 1)(inputs, targets, rng(3))
    shares = [mixed["speech"][0].mean((2, 3)), mixed["face"][0].mean((1, 3, 4))]
    shares.append(mixed["text"][0].mean(1))
    torch.testing.assert_close(torch.stack(shares).mean(0), labels["a"])
    whole = mixed["text"][1].any(1)
    assert whole.all(), "a clip lost all its words"


def test_draw_box_is_about_the_share_and_inside():
    for seed in range(50):
        box, share = draw_box([16, 30, 40], 0.3, rng(seed))
        sizes = [part.stop - part.start for part in box]
        assert all(0 <= p.start <= p.stop <= n for p, n in zip(box, (16, 30, 40), strict=True))
        assert share == pytest.approx(np.prod(sizes) / (16 * 30 * 40))
        assert share <= 0.36
    assert max(draw_box([100, 100], 0.3, rng(s))[1] for s in range(50)) > 0.29
    order, inputs = torch.tensor([1, 0]), {"speech": (torch.rand(2, 1, 9, 9),)}
    kept, ratio = cutmix(inputs, 1.0, order, rng(0))
    assert ratio == 1 and torch.equal(kept["speech"][0], inputs["speech"][0])
    swapped, ratio = mixup(inputs, 0.0, order, rng(0))
    assert ratio == 0 and torch.equal(swapped["speech"][0], inputs["speech"][0][order])


def test_mixing_can_be_off_or_shared():
    inputs, targets = one_hot_batch()
    for seed in range(20):
        same, labels = Mixer(0, 1, 0, 1)(inputs, targets, rng(seed))
        assert same is inputs and labels is targets
    kinds = set()
    for seed in range(40):
        out, _ = Mixer(0.5, 1, 0.5, 1)(inputs, targets, rng(seed))
        speech = out["speech"][0]
        blended = bool(((speech > 0) & (speech < 1)).any())
        kinds.add("off" if out is inputs else "mixup" if blended else "cutmix")
    assert kinds == {"off", "mixup", "cutmix"}


# Losses, metrics, optimizer


def test_soft_cross_entropy_is_torchs():
    logits, labels = torch.randn(9, 7) * 4, torch.arange(9) % 7
    target = smooth_one_hot(labels, 7, 0.1)
    torch.testing.assert_close(target.sum(1), torch.ones(9))
    assert target[0].tolist() == pytest.approx([0.9 + 0.1 / 7] + [0.1 / 7] * 6)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, target), expected)
    assert soft_cross_entropy(logits.half(), target).dtype == torch.float32
    sure = torch.tensor([[1e4, 0.0]])
    assert soft_cross_entropy(sure, torch.tensor([[1.0, 0.0]])) == 0


def test_other_heads_share_lam():
    logits = {name: torch.randn(4, 3) for name in ("integrated", "speech", "face")}
    targets = {name: smooth_one_hot(torch.arange(4) % 3, 3, 0) for name in logits}
    a, b, c = (soft_cross_entropy(logits[name], targets[name]) for name in logits)
    torch.testing.assert_close(multi_task_loss(logits, targets, 2.0), a + 2.0 * (b + c) / 2)
    torch.testing.assert_close(multi_task_loss(logits, targets, 0.0), a)
    alone = multi_task_loss({"face": logits["face"]}, {"face": targets["face"]}, 2.0)
    torch.testing.assert_close(alone, c)


def test_metrics_are_those_of_all_clips_together():
    logits, labels = torch.randn(23, 4), torch.randint(0, 3, (23,))  # class 3 never occurs
    labels[::5] = -1
    metrics = Metrics(4)
    for first, last in ((0, 10), (10, 20), (20, 23)):
        metrics.update(logits[first:last], labels[first:last])
    known = labels.numpy() >= 0
    z, y = logits.numpy()[known].astype(float), labels.numpy()[known]
    losses = np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
    right = z.argmax(1) == y
    expected = {"loss": losses.mean(), "accuracy": right.mean()}
    expected["uar"] = np.mean([right[y == k].mean() for k in np.unique(y)])
    assert metrics.clips == known.sum() == 18
    assert metrics.summary() == pytest.approx(expected)
    for truth, answer in np.ndindex(4, 4):
        count = ((y == truth) & (z.argmax(1) == answer)).sum()
        assert metrics.confusion[truth, answer] == count
    assert Metrics(4).summary() == {"loss": 0, "accuracy": 0, "uar": 0}


def test_learning_rate_schedules():
    cosine = [lr_factor(step, 100, 0, "cosine") for step in range(101)]
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and cosine[100] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(cosine))
    assert [lr_factor(step, 100, 0, "step") for step in (0, 49, 50, 99)] == [1, 1, 0.1, 0.1]
    assert [lr_factor(step, 100, 4, "cosine") for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert lr_factor(52, 100, 4, "cosine") == pytest.approx(0.5)
    assert {lr_factor(step, 9, 0, "constant") for step in range(9)} == {1}


def test_centralized_gradients_have_zero_mean_per_output():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    (model(torch.rand(4, 2, 3, 3)) ** 2).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    centralize_gradients(torch.optim.SGD(model.parameters(), lr=1))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter.grad, before[name]), "a bias has no mean to take away"
        else:
            assert parameter.grad.flatten(1).mean(1).abs().max() < 1e-6
            moved = (before[name] - parameter.grad).flatten(1)
            torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))


def test_optimizers_by_name():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    made = {name: make_optimizer(name, [weight, frozen], 0.1, 0.2) for name in ("sgd", "adamw")}
    made["ranger"] = make_optimizer("ranger", [weight, frozen], 0.1, 0.2)
    for name, optimizer in made.items():
        assert type(optimizer).__name__.lower() == name
        (group,) = optimizer.param_groups
        assert len(group["params"]) == 1 and group["lr"] == 0.1 and group["weight_decay"] == 0.2
    (group,) = made["sgd"].param_groups
    assert group["nesterov"] and group["momentum"] == 0.9
    with pytest.raises(UsageError, match="frozen"):
        make_optimizer("sgd", [frozen], 0.1, 0)


def test_batchnorm_momentum_follows_the_length():
    momenta = [batchnorm_momentum(steps) for steps in (1, 10, 100, 1000, 10_000, 10**6)]
    assert momenta == sorted(momenta, reverse=True)
    assert momenta[0] >= 0.1 and momenta[2] >= 0.1 and momenta[-1] == 0.01


def test_a_short_training_evaluates_as_well_as_it_trains():
    """The trap: with the trunk's own momentum of 0.01 this evaluates at chance, 1 in 7."""
    torch.manual_seed(0)
    labels = torch.arange(7)
    images = torch.rand(7, 1, 32, 32) * 0.3
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * label : 4 * label + 4] += 0.7
    encoder = AttnCNN("efficientnet-b0", hidden=16)
    model = torch.nn.Sequential(encoder, torch.nn.Linear(encoder.out_dim, 7))
    set_batchnorm_momentum(model, batchnorm_momentum(40))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 2e-3 * lr_factor(step, 40, 0, "cosine")
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(model(images).argmax(1), labels), "it did not even learn"
        assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.8


# Order and loading


@pytest.mark.parametrize(("size", "batch"), [(10, 5), (11, 5), (12, 5), (1, 5), (3, 5), (7, 1)])
def test_batches_hold_every_clip_once(size, batch):
    evaluation = list(EpochBatches(size, batch, None))
    assert [index for each in evaluation for _, index in each] == list(range(size))
    sampler = EpochBatches(size, batch, seed=1)
    orders = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) and {e for each in batches for e, _ in each} == {epoch}
        orders.append([index for each in batches for _, index in each])
        dropped = size - len(orders[-1])
        assert len(set(orders[-1])) == len(orders[-1]) and dropped == (size == 11)
        for first in range(len(batches)):
            sampler.set_epoch(epoch, first)
            assert list(sampler) == batches[first:], "resuming inside an epoch changes its batches"
    assert len(EpochBatches(size, batch, None)) == len(evaluation)
    assert size < 10 or orders[0] != orders[1]
    other = EpochBatches(size, batch, seed=2)
    other.set_epoch(1)
    assert size < 10 or [i for each in other for _, i in each] != orders[0]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return Features.open(write_features(tmp_path_factory.mktemp("features")))


def dataset(features, mode="multimodal", training=True, **changes) -> ClipDataset:
    config = recipe(mode) | TINY | changes
    return ClipDataset(features, features.rows("train"), TASKS[mode], config, training)


def loaded(features, workers: int, epochs=(1, 2), **changes) -> list[dict]:
    loader = make_loader(dataset(features, **changes), 5, workers, "cpu")
    batches = []
    for epoch in epochs:
        loader.batch_sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def flat(batches: list[dict]) -> dict[str, list[bytes]]:
    """{clip id: its view in each epoch}; of the words those that are there, whatever the padding"""
    views = {}
    for batch in batches:
        words, mask = batch["inputs"]["text"]
        for place, clip_id in enumerate(batch["clip_id"]):
            pictures = [tensors[0][place] for tensors in batch["inputs"].values()][:2]
            tensors = [*pictures, words[place][mask[place]]]
            view = b"".join(tensor.numpy().tobytes() for tensor in tensors)
            views.setdefault(clip_id, []).append(view)
    return views


def test_views_follow_from_seed_epoch_and_clip_alone(features):
    alone, two = loaded(features, 0), loaded(features, 2)
    assert [batch["clip_id"] for batch in alone] == [batch["clip_id"] for batch in two]
    views = flat(alone)
    assert views == flat(two), "the number of workers changes the data"
    assert all(first != second for first, second in views.values()), "epochs repeat"
    assert len({view for each in views.values() for view in each}) == 2 * len(views) == 28
    assert all(views[clip] != other for clip, other in flat(loaded(features, 0, seed=7)).items())
    assert flat(loaded(features, 0, epochs=(2,)))["00003"] == views["00003"][1:]
    for still in (
        flat(loaded(features, 0, training=False)),
        flat(loaded(features, 0, augment=False)),
    ):
        assert all(first == second for first, second in still.values())


def test_items_carry_labels_and_pictures_as_bytes(features):
    data = dataset(features)
    item = data[1, 3]
    assert (
        item["labels"] == {"integrated": 3, "speech": 3, "face": 3} and item["clip_id"] == "00003"
    )
    shapes = {name: [tuple(t.shape) for t in given] for name, given in item["inputs"].items()}
    assert shapes == {"speech": [(1, 128, 48)], "face": [(2, 3, 32, 32)], "text": [(4, 16), (4,)]}
    face, mask = item["inputs"]["face"][0], item["inputs"]["text"][1]
    ready = to_device({"face": [face], "text": [mask]}, "cpu")
    torch.testing.assert_close(ready["face"][0], face.float() / 255)
    assert ready["text"][0].dtype == torch.bool and data.shapes()["text"][1] == 16
    test_rows = ClipDataset(features, features.rows("test"), TASKS["face"], data.config, False)
    assert test_rows[0, 0]["labels"] == {"face": -1}


def test_folds_split_the_manifest(features):
    train, val = training_rows(features, "1")
    assert set(val["fold"]) == {"1"} and set(train["fold"]) == {"0"} and len(train) == len(val)
    assert "test" not in {*train["split"], *val["split"]}, "test clips are never trained on"
    for wrong in ({"fold": "9"}, {"fold": "1", "val_fold": "1"}, {"fold": "1", "val_fold": "0"}):
        with pytest.raises(UsageError, match=r"--fold .*: the manifest has the folds 0, 1"):
            training_rows(features, **wrong)
    without = Features.open(features.folder)
    without.manifest["fold"] = ""
    with pytest.raises(UsageError, match="--fold 0: the manifest has no folds"):
        training_rows(without, "0")
    train, val = training_rows(features, None)
    assert set(train["split"]) == {"train"} and set(val["split"]) == {"val"}


def test_a_fold_for_choices_leaves_the_tested_one_unseen(features):
    table = features.manifest.assign(fold=[str(number % 3) for number in range(42)])
    three = Features(features.folder, features.settings, table)
    for val_fold in ("2", "next"):
        train, val = training_rows(three, "1", val_fold)
        assert set(train["fold"]) == {"0"} and set(val["fold"]) == {"2"}
    with pytest.raises(UsageError, match="0, 1; a third is needed"):
        training_rows(features, "1", "next")


def test_modality_dropout_keeps_one_input_of_every_clip():
    rng, names = np.random.default_rng(0), ("speech", "face", "text")
    drawn = torch.stack(list(draw_left_out(names, 5000, 0.5, rng).values()))
    assert drawn.shape == (3, 5000) and not drawn.all(dim=0).any()
    shares = drawn.float().mean(dim=1)
    assert (abs(shares - (0.5 - 0.125 / 3)) < 0.03).all(), shares


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file", b"\x93NUMPY\x01\x00", b"text"])
@pytest.mark.parametrize("modality", ["speech", "face", "text"])
def test_damaged_features_are_named(tmp_path, modality, damage):
    broken = Features.open(write_features(tmp_path, 1, splits=("train",)))
    row = broken.rows("train").to_dict("records")[0]
    broken.path(row, modality).write_bytes(damage)
    with pytest.raises(IntegrityError, match=r"00000\.np"):
        broken.load(row, modality)


# Resuming, in the same process: through the file format, from every step


def fresh_trainer(features, mode: str) -> tuple[Trainer, torch.utils.data.DataLoader]:
    config = recipe(mode) | TINY | {"amp": False}
    task, data = TASKS[mode], dataset(features, mode)
    torch.manual_seed(config["seed"])
    model = build_model(**model_arch(task, config, len(CLASSES), data.shapes()))
    loader = make_loader(data, config["batch_size"], 0, "cpu")
    return Trainer(model, task, config, "cpu", len(loader.batch_sampler)), loader


def never() -> bool:
    return False


def leaves(value) -> list:
    """All the numbers of a nested state, in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in leaves(each)]
    return [value.numpy().tobytes() if isinstance(value, torch.Tensor) else value]


@pytest.mark.parametrize("mode", MODES)
def test_resuming_from_every_step_is_exact(features, mode):
    """Torn down after each step and rebuilt from bytes, a run equals one that never stopped."""
    trainer, loader = fresh_trainer(features, mode)
    assert all(trainer.train_epoch(loader, epoch, never) for epoch in (1, 2))
    expected = trainer.state()
    saved = None
    for step in range(6):
        torch.manual_seed(step)  # a new process starts with any state
        trainer, loader = fresh_trainer(features, mode)
        if saved:
            trainer.load_state(torch.load(io.BytesIO(saved), weights_only=True))
        assert not trainer.train_epoch(loader, step // 3 + 1, lambda: True)
        assert trainer.step == step + 1
        buffer = io.BytesIO()
        torch.save(trainer.state(), buffer)
        saved = buffer.getvalue()
    assert leaves(torch.load(io.BytesIO(saved), weights_only=True)) == leaves(expected)


def test_evaluation_leaves_training_alone(features):
    """Validating after every epoch, or never, gives the same weights and counts each clip once."""
    weights = []
    for validates in (True, False):
        trainer, loader = fresh_trainer(features, "text")
        val = make_loader(dataset(features, "text", training=False), 4, 0, "cpu")
        for epoch in (1, 2):
            trainer.train_epoch(loader, epoch, never)
            if validates:
                metrics = trainer.evaluate(val)["text"]
                assert metrics.clips == 14 and np.isfinite(metrics.summary()["loss"])
        weights.append(leaves(trainer.model.state_dict()))
    assert weights[0] == weights[1]


def test_a_loss_that_is_no_number_stops_before_the_update(features):
    trainer, loader = fresh_trainer(features, "text")
    before = leaves(trainer.model.state_dict())
    loader.batch_sampler.set_epoch(1)
    batch = next(iter(loader))
    batch["inputs"]["text"][0][2, 0, 0] = float("nan")
    with pytest.raises(UsageError, match=rf"nan .* at step 0; .*{batch['clip_id'][2]}"):
        trainer.train_step(batch)
    assert leaves(trainer.model.state_dict()) == before and trainer.step == 0


def test_manifest_keeps_ids_as_text(tmp_path):
    folder = write_features(tmp_path, 1, splits=("train",), modalities=("text",))
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table["clip_id"] = ["007", "7", "NA", "1e5", "nan", "0x1", "5.0"]
    table.to_csv(folder / "manifest.csv", index=False)
    assert list(Features.open(folder).rows("train")["clip_id"]) == list(table["clip_id"])
