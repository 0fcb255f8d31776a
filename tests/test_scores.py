"""Scores by hand; intervals, tests and bands of simulated speakers and seeds keep their promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, t

from evaluation import calibration, scores
from evaluation.certificate import prediction_band
from evaluation.summary import about_tests

CLASSES = [f"c{k}" for k in range(8)]
NOBODY = np.array([""] * 64)


def wrong_where(labels, right, rng):
    """Predictions: the label where `right`, else another class."""
    other = (labels + rng.integers(1, len(CLASSES), len(labels))) % len(CLASSES)
    return np.where(right, labels, other)


def simulate(rng, people, models=1, clips=60, level=0.7, apart=0.11, own=0.0):
    """Labels, the predictions of so many models, speakers: each speaker has a level of accuracy,
    and each model differs there by `own`."""
    labels = np.tile(np.arange(clips) % len(CLASSES), people)
    speakers = np.repeat([f"s{k}" for k in range(people)], clips)
    levels = rng.normal(level, apart, people)
    predictions = []
    for _ in range(models):
        mine = (levels + rng.normal(0, own, people)).clip(0, 1)
        right = rng.random(len(labels)) < np.repeat(mine, clips)
        predictions.append(wrong_where(labels, right, rng))
    return labels, predictions, speakers


def coverage(people, draws):
    """How often the intervals of accuracy and UAR hold the level of all speakers, 0.7."""
    rng, inside = np.random.default_rng(people), []
    for _ in range(draws):
        labels, (predictions,), speakers = simulate(rng, people)
        ends = scores.full_scores(labels, predictions, speakers, CLASSES)["intervals"]
        inside.append([ends[name][0] <= 0.7 <= ends[name][1] for name in ("accuracy", "uar")])
    return np.mean(inside, axis=0)


def false_positives(people, draws, own):
    """How often equally good models differ at p < 0.05, in accuracy and UAR."""
    rng, found = np.random.default_rng(people), []
    for _ in range(draws):
        labels, predictions, speakers = simulate(rng, people, models=2, own=own)
        test = scores.paired(labels, *predictions, len(CLASSES), speakers)
        found.append([test[name]["p"] < 0.05 for name in ("accuracy", "uar")])
    return np.mean(found, axis=0)


def test_intervals_hold_for_new_speakers():
    """With a normal quantile in place of Student's they hold in 83 of 100 cases of 4 speakers."""
    assert (coverage(4, 200) >= 0.91).all()


def test_equal_models_rarely_differ():
    """By a bootstrap of 6 speakers they do in 12 of 100 cases."""
    assert (false_positives(6, 300, own=0.05) <= 0.07).all()


@pytest.mark.slow
@pytest.mark.parametrize(("people", "least"), [(5, 0.91), (10, 0.93), (24, 0.93)])
def test_coverage(people, least):
    assert (coverage(people, 1500) >= least).all()


@pytest.mark.slow
@pytest.mark.parametrize("people", [6, 10, 24])
def test_false_positives(people):
    assert (false_positives(people, 1000, own=0.05) <= 0.07).all()


def test_measures_by_hand():
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 3, 2])
    f1 = (0.8, 0.5, 1.0)  # of classes 0, 1, 2; class 3 occurs among the predictions only
    assert scores.measure(labels, predictions) == pytest.approx(
        {
            "accuracy": 4 / 6,
            "uar": (2 / 3 + 1 / 2 + 1) / 3,
            "macro_f1": sum(f1) / 3,
            "weighted_f1": (3 * f1[0] + 2 * f1[1] + f1[2]) / 6,
        }
    )


def test_influences_are_what_a_speaker_changes():
    """Against the measures without each of the speakers; classes are unequal, none is missing."""
    rng = np.random.default_rng(4)
    labels = rng.choice(8, 6000, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05])
    predictions, group = wrong_where(labels, rng.random(6000) < 0.6, rng), np.arange(6000) % 100
    predictions[group == 7] = 3
    influence, whole = (
        scores.influences(labels, predictions, 8),
        scores.measure(labels, predictions),
    )
    for speaker in (7, 8):
        others = group != speaker
        rest = scores.measure(labels[others], predictions[others])
        for name in scores.MEASURES:
            changed = influence[name][~others].sum()
            assert changed == pytest.approx(whole[name] - rest[name], rel=0.06, abs=2e-5), name
    assert all(abs(each.sum()) < 1e-12 for each in influence.values())
    weights = scores.clip_weights(labels, 8)
    assert all(each.sum() == pytest.approx(1) for each in weights.values())


def test_an_interval_over_speakers_by_hand():
    rng = np.random.default_rng(1)
    labels, (predictions,), speakers = simulate(rng, 6)
    found = scores.full_scores(labels, predictions, speakers, CLASSES)
    levels = (labels == predictions).reshape(6, 60).mean(1)
    mean, half = levels.mean(), t.ppf(0.975, 5) * levels.std(ddof=1) / 6**0.5
    middle, half = np.log(mean / (1 - mean)), half / (mean * (1 - mean))
    by_hand = 1 / (1 + np.exp([-(middle - half), -(middle + half)]))
    assert found["intervals"]["accuracy"] == pytest.approx(by_hand)
    assert (found["unit"], found["groups"]) == ("speakers", 6)
    assert set(found["intervals_over"].values()) == {"speakers"}
    alone = scores.full_scores(labels, predictions, np.array([""] * 360), CLASSES)
    assert (alone["unit"], alone["groups"]) == ("clips", 360)
    for name in scores.MEASURES:
        assert np.ptp(alone["intervals"][name]) < 0.8 * np.ptp(found["intervals"][name])


def test_speakers_of_unequal_size_count_as_fewer():
    influence, weights = np.tile([1, -1], 50) / 100, np.full(100, 1 / 100)
    alike, one_large = np.arange(100) % 10, np.r_[np.zeros(82, int), np.arange(1, 10), [9] * 9]
    assert scores.effective_number(np.bincount(alike, weights)) == pytest.approx(10)
    assert scores.effective_number(np.bincount(one_large, weights)) < 1.5
    assert scores.student_half(influence, weights, np.zeros(100, int)) == 0


def test_all_right_is_no_certainty_and_is_named():
    labels = np.repeat([0, 1], [56, 8])
    for speakers in (NOBODY, np.repeat([f"s{k}" for k in range(16)], 4)):
        found = scores.full_scores(labels, labels, speakers, ["a", "b"])
        ends = found["intervals"]["accuracy"]
        assert ends == pytest.approx([0.9434, 1], abs=1e-4)  # 1 / (1 + z²/n)
        assert set(found["intervals_over"].values()) == {"clips"}
        rare = found["per_class"]["b"]
        assert rare["recall_interval"] == pytest.approx([0.6756, 1], abs=1e-4)
        assert rare["recall_interval_over"] == "clips"
        assert found["intervals"]["uar"][0] < ends[0], "8 clips of one class are half of it"
        none = scores.full_scores(labels, 1 - labels, speakers, ["a", "b"])
        assert none["intervals"]["accuracy"] == pytest.approx([0, 0.0566], abs=1e-4)


def test_one_answer_to_all_clips_is_no_certainty_either():
    labels = np.arange(56) % 8
    speakers = np.repeat([f"s{k}" for k in range(7)], 8)  # of each class one clip
    found = scores.full_scores(labels, np.zeros(56, int), speakers, CLASSES)
    assert found["intervals"]["uar"] == pytest.approx(found["intervals"]["accuracy"])
    assert found["intervals"]["uar"] == pytest.approx([0.0619, 0.2363], abs=1e-3)
    assert found["intervals_over"]["uar"] == "clips"


def test_clips_of_unknown_speakers_stand_alone():
    group, unit = scores.group_by_speaker(np.array(["a", "a", "b", "b", ""]))
    assert unit == "speakers and 1 clip of unknown ones" and group.max() == 2
    assert group[0] == group[1] != group[2] == group[3]
    for speakers in (["a", "a", ""], ["a", "a", "a"], ["", "", ""]):
        group, unit = scores.group_by_speaker(np.array(speakers))
        assert unit == "clips" and len(set(group)) == 3


def six_better(people):
    """Labels, a model, one that is right about 1, 2, 3 ... more clips of each speaker."""
    labels, speakers = np.zeros(10 * people, int), np.repeat([f"s{k}" for k in range(people)], 10)
    second = np.tile(np.arange(10) % 2, people)
    first = second.copy()
    for k in range(people):
        first[10 * k : 10 * k + 2 * (k % 5 + 1)] = 1
    return labels, first, second, speakers


def test_sign_flips_by_hand():
    labels, first, second, speakers = six_better(6)
    found = scores.paired(labels, first, second, 2, speakers)
    assert found["accuracy"]["p"] == found["uar"]["p"] == pytest.approx(2 / 2**6)
    assert found["accuracy"]["difference"] == pytest.approx(16 / 60)
    assert (found["gained"], found["lost"], found["groups"]) == (16, 0, 6)
    back = scores.paired(labels, second, first, 2, speakers)["accuracy"]
    low, high = found["accuracy"]["interval"]
    assert back["interval"] == pytest.approx([-high, -low]) and back["p"] == 2 / 2**6
    assert scores.sign_flip(np.array([1, 1, 1, 1, 1, -1.0])) == pytest.approx(14 / 64)
    assert scores.sign_flip(np.zeros(20)) == 1
    exact, drawn = np.r_[np.ones(10), -np.ones(3)], np.r_[np.ones(10), -np.ones(4)]
    assert scores.sign_flip(exact) == pytest.approx(binomtest(10, 13).pvalue)
    assert scores.sign_flip(drawn) == pytest.approx(binomtest(10, 14).pvalue, abs=0.015)
    assert 0 < scores.sign_flip(np.ones(40)) < 0.001, "no p is 0"


def test_too_few_speakers_for_a_p():
    labels, first, second, speakers = six_better(5)
    found = scores.paired(labels, first, second, 2, speakers)
    assert found["accuracy"]["p"] is None and found["uar"]["p"] is None
    assert about_tests([found]) == "too few speakers for a p: 5, at least 6"
    low, high = found["accuracy"]["interval"]
    assert low < found["accuracy"]["difference"] < high


def test_single_clips_are_tested_as_by_mcnemar():
    labels = np.arange(64) % 2
    worse = np.where(np.arange(64) < 5, 1 - labels, labels)
    found = scores.paired(labels, worse, labels, 2, NOBODY)
    assert found["accuracy"]["p"] == pytest.approx(2 / 2**5) and found["unit"] == "clips"
    same = scores.paired(labels, labels, labels, 2, NOBODY)["accuracy"]
    assert same["p"] == 1 and same["difference"] == 0
    assert same["interval"] == pytest.approx([-0.0433, 0.0433], abs=1e-4), "no certainty"


def test_holm_by_hand():
    assert scores.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert scores.holm([0.9, 0.8]) == [1, 1] and scores.holm([]) == []


def test_calibration_by_hand_and_its_temperature():
    log_p = np.log(np.array([[0.8, 0.2], [0.8, 0.2], [0.3, 0.7]]))
    found = calibration.calibration(log_p, np.array([0, 1, 1]))
    assert found["ece"] == pytest.approx((2 * abs(0.8 - 0.5) + abs(0.7 - 1)) / 3)
    assert [each["clips"] for each in found["curve"]] == [3]
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5000, 4)) * 3
    labels = (logits / 2.5 + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from softmax(z / 2.5)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.06)
    before, after = (
        calibration.calibration(calibration.temper(logits, each), labels) for each in (1, 2.5)
    )
    assert after["ece"] < after["ece_if_calibrated_high"] < 0.03 < before["ece"]
    assert [each["clips"] for each in after["curve"]] == [500] * 10
    for each in after["curve"]:
        low, high = each["interval"]
        assert low < each["accuracy"] < high and abs(each["accuracy"] - each["confidence"]) < 0.06


def test_few_clips_make_a_calibration_error():
    """As large as stated: of models that are right just as often as they say."""
    rng, shown, below = np.random.default_rng(3), [], []
    log_p = calibration.temper(2 * rng.normal(size=(56, 8)), 1)
    for _ in range(40):
        labels = (log_p + rng.gumbel(size=log_p.shape)).argmax(1)
        found = calibration.calibration(log_p, labels)
        shown.append(found["ece"])
        below.append(found["ece"] <= found["ece_if_calibrated_high"])
    assert np.mean(shown) == pytest.approx(found["ece_if_calibrated"], abs=0.02) and shown[0] > 0.1
    assert np.mean(below) >= 0.85


def test_no_clip_helps_to_fit_its_own_temperature():
    rng = np.random.default_rng(2)
    log_p, group = calibration.temper(rng.normal(size=(90, 3)), 1), np.repeat(np.arange(9), 10)
    labels = (log_p + rng.gumbel(size=log_p.shape)).argmax(1)
    first, temperatures = calibration.cross_fitted(log_p, labels, group)
    assert len(set(temperatures)) == 5
    parts = [
        frozenset(group[np.isclose(first, calibration.temper(log_p, each)).all(1)])
        for each in temperatures
    ]
    for part in parts:
        inside = np.isin(group, list(part))
        changed = np.where(inside, (labels + 1) % 3, labels)
        second, _ = calibration.cross_fitted(log_p, changed, group)
        assert np.array_equal(first[inside], second[inside])
        assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("clips", "seeds_apart"), [(60, 0.0), (300, 0.1), (1440, 0.0), (1440, 0.2)]
)
def test_an_honest_seed_meets_the_band_and_a_worse_model_does_not(clips, seeds_apart):
    """Clips are right with chances of their own, and seeds are apart (in log odds)."""
    rng, weights = np.random.default_rng(clips), np.full(clips, 1 / clips)
    honest, worse, much_worse = [], [], []
    for _ in range(1000):
        odds = rng.normal(1.5, 3, clips) + rng.normal(0, seeds_apart, (6, 1))
        right = rng.random((6, clips)) < 1 / (1 + np.exp(-odds))
        band, _, _ = prediction_band(right[:5], weights)
        gap = (right[5] - right[:5].mean(0)) @ weights
        honest.append(abs(gap) <= band)
        worse.append(abs(gap - 3 * band / 1.96) > band)  # by 3 deviations, of which it has 1.96
        much_worse.append(abs(gap - 3 * band) > band)
    assert 0.93 <= np.mean(honest) <= 0.99
    assert np.mean(worse) > 0.85 and np.mean(much_worse) > 0.99


def test_a_band_is_never_narrow_by_luck():
    weights = np.full(100, 1 / 100)
    same = np.tile(np.arange(100) < 70, (5, 1))
    band, deviation, _ = prediction_band(same, weights)
    assert deviation == 0 and band > 1 / 100, "equal runs: one clip more or less is no failure"
    others = np.array([np.roll(same[0], 20 * k) for k in range(5)])  # each right about other clips
    band, deviation, noise = prediction_band(others, weights)
    assert deviation < 1e-12 and noise > 0.04 and band > 0.08
