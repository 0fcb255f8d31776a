"""What happens to the data and the gradients: views, mixing, losses, metrics, order, resuming."""

from __future__ import annotations

import copy
import hashlib
import io
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from conftest import ROOT, write_features
from torch.utils.data import default_collate

from evaluation.votes import seen_by
from models import build_model
from models.attn_cnn import AttnCNN
from models.backbone import set_batchnorm_momentum
from models.classifier import Prediction
from train import start_config
from training import accelerate
from training.augment import (
    AUGMENTATIONS,
    FACE_STRENGTHS,
    SPEECH_STRENGTHS,
    draw_light,
    draw_warp,
    time_warp,
)
from training.checkpoint import keep_best
from training.data import ClipDataset, EpochBatches, collate, make_loader, to_device, training_rows
from training.features import Features
from training.loop import fit
from training.losses import cross_entropy, smooth_one_hot, soft_cross_entropy
from training.metrics import Metrics
from training.mixing import Mixer, cutmix, draw_box, draw_left_out, mixup
from training.modalities import modality
from training.optim import batchnorm_momentum, lr_factor, make_optimizer
from training.randomness import PURPOSES, generator, torch_seed
from training.ranger import Centralizer
from training.run import Run
from training.small import small_recipe
from training.tasks import ALL_SETTINGS, TASKS, model_arch, recipe, task_of
from training.views import (
    choose_frames,
    custom_view,
    face_view,
    other_channel,
    speech_view,
    text_view,
)
from utils.errors import IntegrityError, UsageError

TINY = {"speech_backbone": "small-32", "face_backbone": "small-16", "text_layers": 1}
TINY |= {"speech_frames": 48} | {"face_frames": 2, "batch_size": 5, "n_epoch": 2}
DEFAULTS = {name: setting.default for name, setting in ALL_SETTINGS.items()}
STRENGTHS = SPEECH_STRENGTHS | FACE_STRENGTHS


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Views of one clip


def columns(count: int) -> np.ndarray:
    """A log-mel (4, T) whose every column holds its number, from 1."""
    return np.tile(np.arange(1, count + 1, dtype="f4"), (4, 1))


def sound(log_mel: np.ndarray, frames: int, seed: int, augment: bool = True, **strengths):
    """The view of a log-mel (F, T) as (F, frames), and the mask of its real columns."""
    config = DEFAULTS | {"speech_frames": frames} | strengths
    random = rng(seed)
    arrays = speech_view(log_mel, {}, config, random, augment)
    view, mask = changed("sound", arrays, config, random) if augment else arrays
    assert view.shape == (1, len(log_mel), frames) and view.dtype == np.float32
    assert mask.shape == (frames,) and mask.dtype == bool
    return view[0], mask


def changed(kind: str, arrays: tuple, config: dict, random: np.random.Generator) -> list:
    """What training makes of a clip's arrays, as it does of a batch of it."""
    augmentation = AUGMENTATIONS[kind]
    drawn = default_collate([augmentation.draw(arrays, config, random)])
    batch = to_device({kind: [torch.from_numpy(each)[None] for each in arrays]}, "cpu")[kind]
    return [each[0].numpy() for each in augmentation.apply(*batch, drawn, config)]


def faces(crops: np.ndarray, valid: np.ndarray, frames: int, seed: int, augment=True, **strengths):
    row = {"face_valid": "".join("1" if each else "0" for each in valid)}
    config = DEFAULTS | {"face_frames": frames} | strengths
    random = rng(seed)
    arrays = face_view(crops, row, config, random, augment)
    if not augment:
        return arrays[0]
    return (255 * changed("pictures", arrays, config, random)[0]).round().astype(np.uint8)


CROP_ONLY = dict.fromkeys(("speech_contrast", "time_warp", "frequency_masks", "time_masks"), 0)


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
    view, mask = sound(columns(length), frames, 0, augment=False)
    expected = np.zeros(frames)
    expected[left : left + len(kept)] = kept
    np.testing.assert_array_equal(view, np.tile(expected, (4, 1)))
    np.testing.assert_array_equal(mask, expected > 0)


def test_training_starts_anywhere():
    starts = {int(sound(columns(50), 40, seed, **CROP_ONLY)[0][0, 0]) for seed in range(200)}
    assert starts == set(range(1, 12)), "both ends can be reached, and nothing else"


@pytest.mark.parametrize(
    ("length", "share"), [(300, 0.2), (90, 0.2), (3, 0.2), (90, 0.45), (2, 0.45)]
)
def test_the_mask_tells_the_real_columns_after_a_warp(length, share):
    """No column is silence to the mask and sound to the eye, or the other way round."""
    counts, strengths = set(), CROP_ONLY | {"time_warp": share}
    for seed in range(200):
        view, mask = sound(columns(length), 400, seed, **strengths)
        np.testing.assert_array_equal(mask, (view > 0).all(axis=0))
        np.testing.assert_array_equal(mask, (view > 0).any(axis=0))
        counts.add(int(mask.sum()))
        assert mask.any() and (np.diff(np.flatnonzero(mask)) == 1).all()
    assert len(counts) > 1, "nothing was ever warped"
    view, mask = sound(columns(500), 400, 1, **strengths)
    assert mask.all()


def test_masked_columns_of_a_clip_count_as_real():
    strengths = {"speech_contrast": 0, "time_warp": 0, "time_masks": 9, "time_width": 0.5}
    view, mask = sound(columns(40), 48, 3, **strengths)
    assert mask.sum() == 40 and (view[:, mask] == 0).all(axis=0).any()


def test_masks_stay_within_their_bounds():
    rows, spans, strengths = [], [], {"time_warp": 0, "speech_contrast": 0}
    ones = np.ones((128, 400), "f4")
    for seed in range(200):
        view, mask = sound(ones, 400, seed, **strengths)
        assert set(np.unique(view)) <= {0, 1} and mask.all()
        rows.append(int((view.max(axis=1) == 0).sum()))
        spans.append(int((view.max(axis=0) == 0).sum()))
    assert 40 < max(rows) <= 3 * 27 and 100 < max(spans) <= 4 * 50
    short = [sound(ones[:, :40], 40, seed, **strengths)[0].mean() for seed in range(50)]
    assert np.mean(short) > 0.3, "of a short input something must be left"


def test_time_warp_keeps_order_and_ends_and_goes_far():
    line, real = torch.linspace(0, 1, 400), torch.ones(100, 400, dtype=torch.bool)
    point, target = torch.from_numpy(np.array([draw_warp(400, 0.2, rng(s)) for s in range(100)])).T
    warped, mask = time_warp(line.expand(100, 1, 1, 400), real, point, target)
    warped = warped[:, 0, 0]
    assert (warped[:, 0] == 0).all() and (warped[:, -1] - 1).abs().max() < 1e-6 and mask.all()
    assert (warped.diff(dim=1) > 0).all()
    moved = 399 * (warped - line).abs().amax(dim=1)
    assert 40 < moved.max() <= 80 and len(set(moved.round().tolist())) > 20
    for frames in (1, 2, 5, 32, 33):
        point, target = torch.from_numpy(draw_warp(frames, 0.2, rng(1)))[:, None]
        few = time_warp(line[None, None, None, :frames], real[:1, :frames], point, target)[0]
        assert few.shape == (1, 1, 1, frames) and few.isfinite().all()


def warp_of_one(view: np.ndarray, mask: np.ndarray, point: int, target: int) -> tuple:
    """A time warp as of one picture, with numpy."""
    last = view.shape[1] - 1
    source = np.interp(np.arange(last + 1), [0, target, last], [0, point, last])
    left = np.floor(source).astype(int)
    right, part = np.minimum(left + 1, last), source - left
    return view[:, left] * (1 - part) + view[:, right] * part, mask[left] | mask[right] & (part > 0)


def test_a_batch_is_warped_as_each_of_its_clips_would_be():
    views, mask = rng(1).random((40, 1, 8, 90)).astype("f4"), np.ones((40, 90), bool)
    mask[:20, 70:] = False
    points = np.array([draw_warp(90, 0.45, rng(seed)) for seed in range(40)])
    seen, real = time_warp(*map(torch.from_numpy, (views, mask, *points.T.copy())))
    for clip, (point, target) in enumerate(points):
        expected, columns = warp_of_one(views[clip, 0], mask[clip], point, target)
        np.testing.assert_allclose(seen[clip, 0], expected, atol=1e-4)
        np.testing.assert_array_equal(real[clip], columns)


@pytest.mark.parametrize(("contrast", "brightness"), [(0.4, -0.2), (-0.3, 0.25), (0.1, 0.5)])
def test_light_is_that_of_albumentations(contrast, brightness):
    """Of floats and of bytes, clipped at both ends."""
    one = albumentations.RandomBrightnessContrast((brightness,) * 2, (contrast,) * 2, p=1)
    config = DEFAULTS | {"face_flip": 0, "face_rotation": 0, "time_warp": 0}
    config |= {"frequency_masks": 0, "time_masks": 0}
    light = torch.tensor([[1 + contrast, brightness]])
    sounds, crops = rng(1).random((128, 50)).astype("f4"), rng(2).integers(0, 256, (9, 9, 3), "u1")
    drawn = {"light": light, "level": torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)}
    real = torch.ones(1, 50, dtype=torch.bool)
    sound_apply, face_apply = (AUGMENTATIONS[kind].apply for kind in ("sound", "pictures"))
    view, _ = sound_apply(torch.from_numpy(sounds)[None, None], real, drawn, config)
    np.testing.assert_allclose(view[0, 0], one(image=sounds)["image"], atol=1e-5)
    picture = torch.from_numpy(crops).permute(2, 0, 1)[None, None] / 255
    (face,) = face_apply(picture, drawn, config)
    seen = (255 * face[0, 0]).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(seen, one(image=crops)["image"], atol=1.01)


@pytest.mark.parametrize("degrees", [-30, 11, 90])
def test_pictures_are_turned_as_by_albumentations(degrees):
    """Around the same middle, as far, the same way round; the edge goes on mirrored."""
    import cv2

    rotate = albumentations.Rotate((degrees, degrees), border_mode=cv2.BORDER_REFLECT, p=1)
    picture = cv2.GaussianBlur(rng(3).integers(0, 256, (40, 40, 3)).astype("f4") / 255, (0, 0), 2)
    angle = np.deg2rad(degrees)
    turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]
    config = DEFAULTS | {"face_contrast": 0}
    (seen,) = AUGMENTATIONS["pictures"].apply(
        torch.from_numpy(picture).permute(2, 0, 1)[None, None],
        {"place": torch.tensor([turn], dtype=torch.float32)},
        config,
    )
    expected = rotate(image=picture)["image"]
    assert np.abs(seen[0, 0].permute(1, 2, 0).numpy() - expected).mean() < 0.01


def test_changes_are_drawn_as_the_recipe_says():
    """Another light and a turn for seven clips in ten, evenly among their strengths."""
    lights = np.array([draw_light(0.3, rng(seed)) for seed in range(3000)])
    others = lights[lights[:, 1] != 0]
    assert 0.67 < len(others) / len(lights) < 0.73
    for values in ((others[:, 0] - 1) / 0.3, others[:, 1] / 0.3):
        assert scipy.stats.kstest(values, "uniform", (-1, 2)).pvalue > 1e-3
    assert abs(np.corrcoef(others.T)[0, 1]) < 0.1, "the two are drawn on their own"
    places = np.array(
        [AUGMENTATIONS["pictures"].draw((), DEFAULTS, rng(seed))["place"] for seed in range(3000)]
    )
    sides = np.sign(np.linalg.det(places[:, :, :2]))
    angles = np.rad2deg(np.arctan2(-places[:, 0, 1], places[:, 1, 1]))
    turned = angles[np.abs(angles) > 1e-3]
    assert 0.47 < (sides < 0).mean() < 0.53 and 0.67 < len(turned) / len(angles) < 0.73
    assert scipy.stats.kstest(turned / 30, "uniform", (-1, 2)).pvalue > 1e-3
    assert (places[:, :, 2] == 0).all() and np.allclose(np.abs(np.linalg.det(places[:, :, :2])), 1)


NO_CHANGE = {
    "speech": {"speech_contrast": 0.0, "time_warp": 0.0, "frequency_masks": 0, "time_masks": 0},
    "masks of no width": CROP_ONLY
    | {"frequency_masks": 3, "frequency_width": 0}
    | {"time_masks": 4, "time_width": 0.0},
    "face": {"face_flip": 0.0, "face_contrast": 0.0, "face_rotation": 0.0},
}


@pytest.mark.parametrize("strengths", NO_CHANGE.values(), ids=NO_CHANGE)
def test_augmentation_of_strength_0_changes_nothing(strengths):
    log_mel, crops = rng(1).random((128, 48)).astype("f4"), rng(2).integers(0, 255, (4, 32, 32, 3))
    crops, valid = crops.astype(np.uint8), np.ones(4, bool)
    for seed in range(10):
        if "face_flip" in strengths:
            seen, plain = (faces(crops, valid, 4, seed, on, **strengths) for on in (True, False))
        else:
            seen, plain = (sound(log_mel, 64, seed, on, **strengths)[0] for on in (True, False))
        np.testing.assert_array_equal(seen, plain)


@pytest.mark.parametrize("name", sorted(STRENGTHS.keys() - {"frequency_width", "time_width"}))
def test_every_strength_of_augmentation_is_a_setting_that_acts(name):
    """Alone at its recipe's value (or 0.2), all others at 0, it changes some of the clips."""
    off = dict.fromkeys(STRENGTHS, 0) | {name: STRENGTHS[name].default or 0.2}
    off |= {each: STRENGTHS[each].default for each in ("frequency_width", "time_width")}
    log_mel, changed = rng(1).random((128, 90)).astype("f4"), 0
    crops = rng(2).integers(0, 255, (3, 32, 32, 3), np.uint8)
    for seed in range(20):
        views = [
            faces(crops, np.ones(3, bool), 3, seed, on, **off)
            if name in FACE_STRENGTHS
            else sound(log_mel, 90, seed, on, **off)[0]
            for on in (True, False)
        ]
        changed += not np.array_equal(*views)
    assert changed > 3


@pytest.mark.parametrize("seed", range(12))
def test_a_clip_of_one_picture_stays_a_still(seed):
    picture = rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    crops = np.repeat(picture[np.newaxis], 9, axis=0)
    view = faces(crops, np.ones(9, bool), 4, seed)
    assert view.shape == (4, 3, 32, 32) and view.dtype == np.uint8
    assert (view == view[0]).all(), "frames of one clip were augmented differently"


def test_faces_are_augmented_and_evaluation_is_not():
    crops = rng(1).integers(0, 255, (3, 32, 32, 3), np.uint8)
    plain = faces(crops, np.ones(3, bool), 3, 0, augment=False)
    np.testing.assert_array_equal(plain, crops.transpose(0, 3, 1, 2))
    kinds = set()
    for seed in range(120):
        view = faces(crops, np.ones(3, bool), 3, seed)
        pairs = (("same", plain), ("flip", plain[..., ::-1]))
        kinds |= {name for name, twin in pairs if (view == twin).all()}
    assert kinds == {"same", "flip"}, "flip, brightness and rotation must be drawn on their own"


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("available", [1, 5, 16, 31, 200])
def test_frames_are_ascending_and_only_real_faces(available, augment):
    valid = np.zeros(2 * available + 1, bool)
    valid[1::2] = True
    crops = np.arange(len(valid), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    crops = crops.repeat(32, axis=1).repeat(32, axis=2)
    chosen = choose_frames(available, 16, rng(0), augment)
    assert (np.diff(chosen) >= 0).all() and chosen.min() >= 0 and chosen.max() < available
    assert len(np.unique(chosen)) == 16 or available < 16
    view = faces(crops, valid, 16, 0, augment=False)
    assert (view[:, 0, 0, 0] % 2 == 1).all(), "a frame without a face was chosen"
    if not augment:
        parts = np.histogram(chosen, 2, (0, available))[0]
        assert abs(parts[0] - parts[1]) <= 16 / available + 1, "one half of the clip is neglected"


def test_a_clip_without_a_face_is_named():
    row = {"face_valid": "000", "split": "train", "clip_id": "00007"}
    with pytest.raises(IntegrityError, match="'000' of clip train/00007 has no frame to see"):
        face_view(np.zeros((3, 8, 8, 3), np.uint8), row, DEFAULTS, rng(0), False)


def test_words_are_cut_padded_and_masked():
    texts = [np.ones((3, 5), "f4"), np.arange(30.0).reshape(6, 5), np.ones((1, 5), "f4")]
    views = [text_view(text, {}, {"max_words": 4}, rng(0), False) for text in texts]
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


def test_a_custom_feature_is_a_vector_a_sequence_or_a_row():
    rows = np.arange(12, dtype=np.float64).reshape(6, 2)

    def view(feature, frames, augment=False, seed=0):
        given = {"feature_frames": frames}
        (seen,) = custom_view(feature, {}, given, rng(seed), augment)
        assert seen.dtype == np.float32
        return seen.tolist()

    assert view(rows[0], 3) == rows[0].tolist()
    assert view(rows, 3) == rows[[1, 3, 5]].tolist()
    assert view(rows, 1) == rows.mean(axis=0).tolist()
    drawn = {tuple(view(rows, 1, True, seed)) for seed in range(60)}
    assert drawn == {*map(tuple, rows.tolist())}


# Mixing


SOUND, WORDS = (20, 13, 7, 2, 1, 16), (1, 2, 3, 4, 6, 9)  # real steps of each clip
LENGTHS = {"speech": SOUND, "face": (8,) * 6, "text": WORDS}


def real_steps(name: str) -> torch.Tensor:
    """(B, T) as the views make them: sound has padding at both ends, words at the end."""
    lengths = torch.tensor(LENGTHS[name])[:, None]
    steps = torch.arange(lengths.max())
    begin = (lengths.max() - lengths) // 2 if name == "speech" else 0
    return (steps >= begin) & (steps < begin + lengths)


def one_hot_batch() -> tuple[dict, dict]:
    """Clip b is b-th unit everywhere: each input shows which clips went into it, and how much.
    Padding is 9: nothing may look at it."""
    unit, sound, words = torch.eye(6), real_steps("speech"), real_steps("text")
    speech = unit.view(6, 6, 1, 1).expand(6, 6, 16, 20)  # batch, which, F, T
    inputs = {
        "speech": (torch.where(sound[:, None, None], speech, 9.0), sound),
        "face": (unit.view(6, 1, 6, 1, 1).expand(6, 8, 6, 10, 12),),
        "text": (torch.where(words[:, :, None], unit.view(6, 1, 6), 9.0), words),
    }
    return inputs, {"a": unit.clone(), "b": unit.roll(1, 1)}


def shares(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """(B, clip): how much of each clip is in what is real of each clip."""
    if name == "face":
        return tensor.mean((1, 3, 4))
    real = real_steps(name).float()
    tensor = tensor.mean(2) if name == "speech" else tensor.transpose(1, 2)  # (B, clip, T)
    return torch.einsum("bkt,bt->bk", tensor, real) / real.sum(1, keepdim=True)


@pytest.mark.parametrize("alpha", [1e-6, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_mixup_uses_one_ratio_and_permutation_for_everything(seed, alpha):
    inputs, targets = one_hot_batch()
    mixed, labels, _ = Mixer(1, alpha, 0, 1)(inputs, targets, rng(seed))
    torch.testing.assert_close(labels["a"].sum(1), torch.ones(6))
    share = labels["a"]  # (B, clip): how much of each clip is in each clip
    torch.testing.assert_close(labels["b"], share.roll(1, 1))
    torch.testing.assert_close(mixed["face"][0][:, 2, :, 3, 4], share)
    partner = (share - torch.eye(6) * share.diagonal()).argmax(1)
    for name in ("speech", "text"):
        tensor, mask = mixed[name]
        both = inputs[name][1] & inputs[name][1][partner]
        steps = tensor.mean(2) if name == "speech" else tensor.transpose(1, 2)  # (B, clip, T)
        found = steps.transpose(1, 2)[both]  # where both clips are real
        torch.testing.assert_close(found, share[:, None].expand(6, len(both[0]), 6)[both])
        if 0 < share.diagonal().max() < 1:
            assert torch.equal(mask, inputs[name][1] | inputs[name][1][partner])


@pytest.mark.parametrize("modality", LENGTHS)
@pytest.mark.parametrize("seed", range(6))
def test_cutmix_ratio_is_the_volume_that_stayed(seed, modality):
    inputs, targets = one_hot_batch()
    mixed, labels, _ = Mixer(0, 1, 1, 1)({modality: inputs[modality]}, targets, rng(seed))
    torch.testing.assert_close(shares(modality, mixed[modality][0]), labels["a"])
    torch.testing.assert_close(labels["a"].sum(1), torch.ones(6))
    torch.testing.assert_close(labels["b"], labels["a"].roll(1, 1))
    assert set(mixed[modality][0].unique().tolist()) <= {0, 1, 9}, "a box is pasted, not blended"
    own = mixed["face"][0].diagonal(0, 0, 2).permute(3, 0, 1, 2) if modality == "face" else None
    if own is not None:  # (B, T, H, W): where each clip is still itself
        gone = (own == 0).any(0)
        box = [torch.unique(index) for index in gone.nonzero(as_tuple=True)]
        assert gone.sum() == np.prod([len(each) for each in box]), "not a box"
        assert len(box[0]) < 8 or gone.sum() == 960, "cutmix3d cuts in time too"


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_cutmix_stays_within_what_is_real_of_each_clip(modality):
    """Padding is neither pasted nor covered, lengths stay, and no clip keeps all of itself while
    its label moves."""
    inputs, targets = one_hot_batch()
    real, unchanged, drawn = real_steps(modality), 0, 300
    for seed in range(drawn):
        mixed, labels, _ = Mixer(0, 1, 1, 1)({modality: inputs[modality]}, targets, rng(seed))
        tensor, mask = mixed[modality]
        assert torch.equal(mask, real), "a clip has another length"
        steps = tensor.amax((1, 2)) if modality == "speech" else tensor.amax(2)  # (B, T)
        assert torch.equal(steps == 9, ~real), "padding was pasted or overwritten"
        share = shares(modality, tensor)
        torch.testing.assert_close(labels["a"], share, atol=1e-5, rtol=0)
        unchanged += int((share.diagonal() == 1).sum())
        assert (labels["a"].diagonal()[share.diagonal() == 1] > 1 - 1e-6).all()
    assert unchanged < 0.45 * 6 * drawn, "the box misses most clips"  # 1 in 6 is its own partner


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_cutmix_draws_its_ratio_within_long_and_short_clips_alike(modality):
    """Of clips of 20 steps and more in a batch of 200, about 1 - ratio is replaced, on average."""
    lengths = torch.tensor([20, 38, 100, 200])
    mask = torch.arange(200) < lengths[:, None]
    shape = (4, 1, 16, 200) if modality == "speech" else (4, 200, 1)
    own = torch.arange(4.0).view(4, *[1] * (len(shape) - 1)).expand(shape)
    axis = (1, 2) if modality == "speech" else 2
    order, inside = torch.tensor([1, 2, 3, 0]), []
    for seed in range(400):
        mixed, kept = cutmix({modality: (own, mask)}, 0.6, order, rng(seed))
        changed = (mixed[modality][0] != own).float().mean(axis)  # (4, 200)
        replaced = (changed * mask).sum(1) / lengths
        torch.testing.assert_close(1 - kept, replaced, atol=0.02, rtol=0)
        inside.append(replaced)
    mean = torch.stack(inside).mean(0)  # of 0.4, a part falls off the ends
    assert mean.min() > 0.25 and mean.max() - mean.min() < 0.03, mean


def test_cutmix_pastes_the_same_place_of_the_other_clip():
    """Step by step where both are equally long, else stretched or shrunk; never out of order."""
    for length in (49, 93, 127, 400):  # k / length x length is less than k for some k
        steps = torch.arange(float(length)).view(1, length, 1)
        words = torch.cat([steps, -steps - 1])
        given = {"text": (words, torch.ones(2, length, dtype=torch.bool))}
        found = cutmix(given, 0.0, torch.tensor([1, 0]), rng(1))[0]["text"][0]
        pasted = found[0] < 0
        assert torch.equal(found[0][pasted], words[1][pasted]) and pasted.sum() >= length // 2
    lengths = torch.tensor([[10], [40]])
    mask = torch.arange(40) < lengths
    words = (torch.arange(40.0) / lengths).unsqueeze(2)  # the place within its own clip
    words[1] += 5
    found = cutmix({"text": (words, mask)}, 0.2, torch.tensor([1, 0]), rng(0))[0]["text"][0]
    pasted = found[0, :10, 0] >= 5
    assert pasted.any()
    places = found[0, :10, 0][pasted] - 5
    torch.testing.assert_close(places, words[0, :10, 0][pasted], atol=0.03, rtol=0)


def test_cutmix_of_several_inputs_keeps_their_mean_ratio():
    inputs, targets = one_hot_batch()
    mixed, labels, _ = Mixer(0, 1, 1, 1)(inputs, targets, rng(3))
    each = [shares(name, mixed[name][0]) for name in inputs]
    torch.testing.assert_close(torch.stack(each).mean(0), labels["a"])
    assert mixed["text"][1].any(1).all(), "a clip lost all its words"


def test_draw_box_is_about_the_share_and_inside():
    volumes = []
    for seed in range(50):
        span, box, covered = draw_box(0.3, [30, 40], rng(seed))
        assert 0 <= span[0] <= span[1] <= 1
        assert all(0 <= start <= end <= n for (start, end), n in zip(box, (30, 40), strict=True))
        sizes = [end - start for start, end in box]
        assert covered == pytest.approx(np.prod(sizes) / (30 * 40))
        volumes.append(covered * (span[1] - span[0]))
    assert 0.28 < max(volumes) <= 0.33
    order = torch.tensor([1, 0])
    inputs = {"speech": (torch.rand(2, 1, 9, 9), torch.ones(2, 9, dtype=torch.bool))}
    kept, ratio = cutmix(inputs, 1.0, order, rng(0))
    assert (ratio == 1).all() and torch.equal(kept["speech"][0], inputs["speech"][0])
    swapped, ratio = mixup(inputs, 0.0, order, rng(0))
    assert (ratio == 0).all() and torch.equal(swapped["speech"][0], inputs["speech"][0][order])


def test_mixing_can_be_off_or_shared():
    inputs, targets = one_hot_batch()
    for seed in range(20):
        same, labels, _ = Mixer(0, 1, 0, 1)(inputs, targets, rng(seed))
        assert same is inputs and labels is targets
    kinds = set()
    for seed in range(40):
        out, *_ = Mixer(0.5, 1, 0.5, 1)(inputs, targets, rng(seed))
        face = out["face"][0]
        blended = bool(((face > 0) & (face < 1)).any())
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

    def loss(heads: tuple[str, ...], lam: float) -> torch.Tensor:
        prediction = Prediction(logits, {})
        return cross_entropy(prediction, {head: targets[head] for head in heads}, {}, {"lam": lam})

    torch.testing.assert_close(loss((*logits,), 2.0), a + 2.0 * (b + c) / 2)
    torch.testing.assert_close(loss((*logits,), 0.0), a)
    torch.testing.assert_close(loss(("face",), 2.0), c)


def test_class_weights_are_an_argument_of_the_loss():
    """They multiply the terms of the loss, not the targets: torch's own with hard labels."""
    logits, labels, weights = torch.randn(9, 3), torch.arange(9) % 3, torch.tensor([0.5, 1, 4])
    target = smooth_one_hot(labels, 3, 0)
    heads = {"integrated": logits, "speech": logits}
    loss = cross_entropy(
        Prediction(heads, {}), dict.fromkeys(heads, target), {"integrated": weights}, {"lam": 1.0}
    )
    plain = torch.nn.functional.cross_entropy(logits, labels)
    each = torch.nn.functional.cross_entropy(logits, labels, weights, reduction="none")
    torch.testing.assert_close(loss, each.mean() + plain)
    torch.testing.assert_close(target.sum(1), torch.ones(9))


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
    model.to(memory_format=torch.channels_last)
    (model(torch.rand(4, 2, 3, 3)) ** 2).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    seen = dict(Centralizer([*model.parameters()])([*model.parameters()]))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(seen[parameter], before[name]), "a bias has no mean to take away"
        else:
            assert seen[parameter].flatten(1).mean(1).abs().max() < 1e-6
            moved = (before[name] - seen[parameter]).flatten(1)
            torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))
            torch.testing.assert_close(parameter.grad, before[name])


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
    momenta = [batchnorm_momentum(steps, 1) for steps in (1, 10, 100, 1000, 10_000, 10**6)]
    assert momenta == sorted(momenta, reverse=True)
    assert momenta[0] >= 0.1 and momenta[2] >= 0.1 and momenta[-1] == pytest.approx(0.01)
    for parts in (2, 3, 8):
        kept = (1 - batchnorm_momentum(100, parts)) ** parts
        assert kept == pytest.approx(1 - batchnorm_momentum(100, 1))


def test_a_short_training_evaluates_as_well_as_it_trains():
    """The trap: with the backbone's own momentum of 0.01 this evaluates at chance, 1 in 7."""
    torch.manual_seed(0)
    labels, mask = torch.arange(7), torch.ones(7, 32, dtype=torch.bool)
    images = torch.rand(7, 1, 32, 32) * 0.3
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * label : 4 * label + 4] += 0.7
    encoder = AttnCNN("efficientnet-b0", hidden=16)
    head = torch.nn.Linear(encoder.token_dim, 7)
    model = torch.nn.ModuleList([encoder, head])
    set_batchnorm_momentum(model, batchnorm_momentum(40, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def predict() -> torch.Tensor:
        return head(encoder.pooling(*encoder(images, mask)))

    for step in range(40):
        optimizer.param_groups[0]["lr"] = 2e-3 * lr_factor(step, 40, 0, "cosine")
        loss = torch.nn.functional.cross_entropy(predict(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(predict().argmax(1), labels), "it did not even learn"
        model.eval()
        assert (predict().argmax(1) == labels).float().mean() > 0.8


# Order and loading


SIZES = [
    (10, 5, 0),
    (11, 5, 1),
    (12, 5, 0),
    (1, 5, 0),
    (3, 5, 0),
    (7, 1, 0),
    (13, 5, 1),
    (300, 256, 0),
]


@pytest.mark.parametrize(("size", "batch", "left_out"), SIZES)
def test_batches_hold_every_clip_once(size, batch, left_out):
    evaluation = list(EpochBatches(size, batch, None))
    assert [index for each in evaluation for _, index in each] == list(range(size))
    sampler = EpochBatches(size, batch, seed=1)
    orders = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) and {e for each in batches for e, _ in each} == {epoch}
        orders.append([index for each in batches for _, index in each])
        assert len({*orders[-1]}) == len(orders[-1]) == size - left_out
        assert {len(each) for each in batches} == {sampler.clips}, "batches of several sizes"
        for first in range(len(batches)):
            sampler.set_epoch(epoch, first)
            assert list(sampler) == batches[first:], "resuming inside an epoch changes its batches"
    assert len(EpochBatches(size, batch, None)) == len(evaluation)
    assert size < 10 or orders[0] != orders[1]
    other = EpochBatches(size, batch, seed=2)
    other.set_epoch(1)
    assert size < 10 or [i for each in other for _, i in each] != orders[0]


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_two_purposes_never_share_a_stream(seed):
    """Also where their positions are equal, as an epoch and a step can be."""
    for position in [(0,), (1,), (2, 0), (3, 7), (5, 2**32 - 1)]:
        for one, other in combinations(PURPOSES, 2):
            streams = [generator(seed, name, *position).random(4) for name in (one, other)]
            assert not set(streams[0]) & set(streams[1])
            assert torch_seed(seed, one, *position) != torch_seed(seed, other, *position)
    again = (generator(seed, "clip", 3, 7).random(4) for _ in range(2))
    np.testing.assert_array_equal(*again)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return Features.open(write_features(tmp_path_factory.mktemp("features")))


def dataset(features, mode="multimodal", training=True, **changes) -> ClipDataset:
    config = recipe(mode) | TINY | changes
    return ClipDataset(features, features.rows("train"), TASKS[mode], config, training)


def loaded(features, workers: int, epochs=(1, 2), **changes) -> list[dict]:
    loader = make_loader(dataset(features, **changes), 7, workers, "cpu")
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
            others = [batch["inputs"][name] for name in ("speech", "face")]
            tensors = [tensor[place] for given in others for tensor in given]
            tensors.append(words[place][mask[place]])
            for drawn in batch.get("drawn", {}).values():
                tensors += [each[place] for each in drawn.values()]
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
    assert shapes["speech"] == [(1, 128, 48), (48,)]
    assert shapes["face"] == [(2, 3, 32, 32)] and shapes["text"] == [(4, 16), (4,)]
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
        with pytest.raises(UsageError, match=r"--fold .*: .*manifest.csv has the folds 0, 1"):
            training_rows(features, **wrong)
    without = Features.open(features.folder)
    without.manifest["fold"] = ""
    with pytest.raises(UsageError, match=r"--fold 0: .*manifest\.csv has no folds"):
        training_rows(without, "0")
    train, val = training_rows(features, None)
    assert set(train["split"]) == {"train"} and set(val["split"]) == {"val"}


def test_a_fold_for_choices_leaves_the_tested_one_unseen(features):
    table = features.manifest.assign(fold=[str(number % 3) for number in range(42)])
    three = Features(features.folder, features.settings, table)
    for val_fold in ("2", "next"):
        train, val = training_rows(three, "1", val_fold)
        assert set(train["fold"]) == {"0"} and set(val["fold"]) == {"2"}
    with pytest.raises(UsageError, match="0, 1; one more is needed"):
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


# Whole steps, in the same process


class Saves:
    """Stands in for the record of a run: it saves after every step and every epoch, what `keep`
    makes of the state; and falls over when it has saved `most` times."""

    def __init__(self, keep: Callable[[dict], Any], most: int = 0):
        self.keep, self.most, self.states = keep, most, []

    def is_due(self) -> bool:
        return True

    def save_last(self, state: dict) -> None:
        self.states.append(self.keep(state))
        if len(self.states) == self.most:
            raise Killed

    def __getattr__(self, name: str) -> Callable:
        return lambda *_: None


class Killed(Exception):
    pass


GO_ON = Namespace(signum=0, requested=lambda: False)


def fresh_run(features, mode: str, folder: Path, **changes) -> Run:
    config = start_config(mode) | TINY | {"amp": False} | changes
    options = Namespace(num_workers=0, save_minutes=10, resume=False, overwrite=False)
    options.verify_features, options.leaks, options.given = False, "", {*changes}
    return Run(config, features, folder, "cpu", options)


def trained(features, mode: str, folder: Path, keep=copy.deepcopy, **changes) -> tuple[Run, list]:
    """A finished run, and its state after every step and every epoch."""
    run, record = fresh_run(features, mode, folder, **changes), Saves(keep)
    fit(run, record, GO_ON)
    return run, record.states


def digest(value) -> str:
    """Of all the numbers of a nested state, in order."""
    state = hashlib.blake2b()

    def add(value) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                add(key)
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for each in value:
                add(each)
        elif isinstance(value, torch.Tensor):
            state.update(value.contiguous().numpy())
        else:
            state.update(repr(value).encode())

    add(value)
    return state.hexdigest()


def digests(state: dict) -> dict[str, str]:
    return {name: digest(each) for name, each in state.items()}


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


@pytest.mark.parametrize("mode", TASKS)
def test_resuming_from_every_step_is_exact(features, tmp_path, mode):
    """Torn down after each step and rebuilt from a file, a run equals one that never stopped."""
    changes = {"n_epoch": 2 if mode == "text" else 1}  # images take longer
    if mode == "speech":  # the recipe's kind of backbone, whose drop-connect is random, too
        changes |= {"speech_backbone": None, "speech_coeff": 0}
    _, expected = trained(features, mode, tmp_path, digests, **changes)
    assert len(expected) == 4 * changes["n_epoch"], "each has three steps and a validation"
    saved = None
    for number, whole in enumerate(expected):
        torch.manual_seed(number)  # a new process starts with any state
        run, record = fresh_run(features, mode, tmp_path, **changes), Saves(through_a_file, most=1)
        if saved:
            run.load_state(saved)
        with pytest.raises(Killed):
            fit(run, record, GO_ON)
        (saved,) = record.states
        assert digests(saved) == whole, f"save {number}"


def test_validation_leaves_training_alone(features, tmp_path):
    """Validating after every epoch, or at the end alone, gives the same weights; each clip counts
    once."""
    weights = []
    for every in (1, 2):
        run, _ = trained(features, "text", tmp_path, eval_step=every)
        assert ["val_loss" in row for row in run.rows] == [every == 1, True]
        assert run.best["clips"] == 14 and np.isfinite(run.best["loss"])
        weights.append(digest(run.model.state_dict()))
    assert weights[0] == weights[1]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_loss_that_is_no_number_stops_before_it_is_kept(features, tmp_path, monkeypatch, lag):
    """Also where it is read a step later, as on a GPU: by then weights hold it, but no file."""
    run, record = fresh_run(features, "text", tmp_path), Saves(digests)
    run.readings.lag = lag
    before, view = digest(run.model.state_dict()), ClipDataset.view

    def broken(dataset, row, name, rng):
        words, mask = view(dataset, row, name, rng)
        words[0, 0] = float("nan")
        return words, mask

    monkeypatch.setattr(ClipDataset, "view", broken)
    run.train_loader.batch_sampler.set_epoch(1)
    first = next(iter(run.train_loader.batch_sampler))
    clips = ", ".join(run.train_loader.dataset.rows[index]["clip_id"] for _, index in first)
    reason = rf"loss is nan .* at step 0; .*Clips: {clips}\. Inputs: text .* 4 of \d+ not finite"
    with pytest.raises(UsageError, match=reason):
        fit(run, record, GO_ON)
    assert run.step == lag and not record.states
    assert lag or digest(run.model.state_dict()) == before


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Custom features beside the words: `same` is (1, 2, 3) for every clip, `other` is random."""
    folder = write_features(tmp_path_factory.mktemp("vectors"), modalities=("text",))
    draw = rng(3)
    for path in sorted(folder.glob("*/text/*.npz")):
        for name, vector in (("same", np.arange(1, 4)), ("other", 5 + draw.normal(size=3))):
            place = folder / path.parent.parent.name / name / f"{path.stem}.npy"
            place.parent.mkdir(exist_ok=True)
            np.save(place, vector.astype("f4"))
    return Features.open(folder)


def test_no_two_draws_of_a_training_share_a_stream(vectors, tmp_path, monkeypatch):
    """Order, clips, mixing, modality dropout and dropout, where steps and epochs both are 1, 2."""
    askers, make = defaultdict(set), np.random.default_rng

    def record(seed):
        stream, frame = make(seed), sys._getframe(1)
        while frame.f_code.co_name in ("generator", "torch_seed"):
            frame = frame.f_back
        place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        askers[stream.bit_generator.state["state"]["state"]].add(place)
        return stream

    monkeypatch.setattr(np.random, "default_rng", record)
    run = fresh_run(vectors, "multimodal", tmp_path, inputs="text,other", modality_dropout=0.3)
    fit(run, Saves(digests), GO_ON)
    assert len(set.union(*askers.values())) == 5
    assert [each for each in askers.values() if len(each) > 1] == []


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_running_statistics_move_as_far_in_parts_as_at_once(vectors, tmp_path, parts):
    """--grad_accumulation N: N batches pass through batch norm, each counts for less."""
    names = {"inputs": "same,other", "batch_size": 12, "n_epoch": 4, "mixup_prob": 0.0}
    run, states = trained(vectors, "multimodal", tmp_path, grad_accumulation=parts, **names)
    assert len(run.split(12)) == parts and run.steps_per_epoch == 2
    momentum, first = batchnorm_momentum(8, 1), states[0]["weights"]
    moved = first["encoders.same.norm.running_mean"]
    torch.testing.assert_close(moved, momentum * torch.tensor([1.0, 2, 3]), atol=0, rtol=1e-4)
    moved = first["encoders.other.norm.running_mean"]
    assert abs(moved.mean() / (momentum * 5) - 1) < 0.1
    assert first["encoders.same.norm.num_batches_tracked"] == parts


def test_no_page_claims_the_same_gradient_with_batch_norm():
    """Where the documentation speaks of a batch in parts and its gradient, it names batch norm."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    points = [point for page in pages for point in page.read_text().split("\n* ")]
    said = [" ".join(point.split()).lower() for point in points if "--grad_acc" in point]
    assert said, "the flag is explained nowhere"
    for text in (*said, ALL_SETTINGS["grad_accumulation"].help):
        assert "gradient" not in text or "batch norm" in text, text
        assert "same gradient" not in text, text


def test_manifest_keeps_ids_as_text(tmp_path):
    folder = write_features(tmp_path, 1, splits=("train",), modalities=("text",))
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table["clip_id"] = ["007", "7", "NA", "1e5", "nan", "0x1", "5.0"]
    table.to_csv(folder / "manifest.csv", index=False)
    assert list(Features.open(folder).rows("train")["clip_id"]) == list(table["clip_id"])


def test_another_microphone_and_room_leave_the_voice():
    """Steady noise and coloured bands, and again the loudest point is 1; 0 changes nothing."""
    rng = np.random.default_rng(0)
    quiet = np.full((128, 60), 0.05, np.float32)
    spoken = quiet.copy()
    spoken[20:60, 10:50] = 0.5 + 0.5 * rng.random((40, 40), np.float32)
    assert other_channel(spoken, 0.0, rng) is spoken
    floors, tilts = [], []
    for seed in range(200):
        far = other_channel(spoken, 0.8, np.random.default_rng(seed))
        assert far.dtype == np.float32 and far.min() >= 0 and far.max() == 1
        assert np.corrcoef(far[20:60, 10:50].ravel(), spoken[20:60, 10:50].ravel())[0, 1] > 0.5
        floors.append(np.median(far[:, :8]))
        tilts.append(far[100:, :8].mean() - far[:20, :8].mean())
        assert np.array_equal(far, other_channel(spoken, 0.8, np.random.default_rng(seed)))
    assert min(floors) < 0.05 and 0.3 < max(floors) < 0.6, (min(floors), max(floors))
    assert min(tilts) < -0.1 and max(tilts) > 0.1
    weak = [np.median(other_channel(spoken, 0.1, np.random.default_rng(s))) for s in range(50)]
    assert max(weak) < 0.1 < np.median(floors)


def test_rows_of_a_feature_are_rows_where_the_first_clip_has_one():
    """Still pictures have one vector of a face; only layers of an encoder are pooled so."""
    config = recipe("multimodal")
    encoder = modality("mine").encoder
    assert encoder(config, (1, 12)) == encoder(config, (9, 12))
    assert encoder(config, (1, 12))["type"] == "SequenceEncoder"
    assert encoder(config, (4, 1, 12))["type"] == "VectorEncoder"


def test_the_small_recipe_of_a_fusion_builds_small_networks(features):
    own = recipe("multimodal") | small_recipe("multimodal", features, None)
    shapes = {"speech": (128, None), "face": (None, None, None, 3), "text": (3, 16)}
    model = build_model(**model_arch(task_of(own), own, len(features.classes), shapes))
    assert sum(weight.numel() for weight in model.parameters()) < 2e6
    for mode in ("speech", "face", "text"):
        alone = small_recipe(mode, features, None)
        kept = [name for name in modality(mode).settings if name in alone]
        assert kept and [own[name] for name in kept] == [alone[name] for name in kept]


def test_files_of_the_user_stay_beside_the_best_checkpoint(tmp_path):
    for name in ("3_best_1.0000.pth", "2_best_1.5000.pth", "my_best_model.pth"):
        (tmp_path / name).touch()
    keep_best(tmp_path, {"epoch": 3, "loss": 1.0})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["3_best_1.0000.pth", "my_best_model.pth"]


@pytest.mark.parametrize("name", ["speech_frames", "speech_norm", "standardize"])
def test_no_setting_is_none_but_where_that_is_its_default(name):
    assert not ALL_SETTINGS[name].allows(None)
    assert ALL_SETTINGS["speech_backbone"].allows(None)


def test_a_compiler_that_fails_without_a_word_costs_no_run(monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(torch, "compile", fail)
    assert accelerate.why_not("cpu") == "AssertionError"


def test_inputs_are_read_once_for_runs_that_see_them_alike():
    small, large = (recipe("speech") | {"speech_coeff": number} for number in (0, 4))
    assert seen_by(small, "speech") == seen_by(large, "speech")
    assert seen_by(small, "speech") != seen_by(small | {"speech_norm": "clip"}, "speech")
