"""What makes a training quick: few calls of the library, no waiting, and the same results."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pytest
import torch
import torch_optimizer
from conftest import run_script, write_features
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import leaves, make_run

from benchmarks import made
from models.attn_cnn import AttnCNN
from models.transformer import TextTransformer
from training import accelerate
from training.data import on_device
from training.loop import fit
from training.optim import MeanWeights
from training.ranger import STATE, Ranger
from training.readings import Readings
from training.record import NoRecord
from training.stopping import StopSignal
from utils.errors import UsageError


class Calls(TorchDispatchMode):
    """Counts the calls of torch's library: on a GPU each of them launches something or waits."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.counts.total()


SETTINGS = dict(lr=4e-3, weight_decay=5e-3)


def centralized(optimizer: torch.optim.Optimizer, *_) -> None:
    """Gradient centralization, weight by weight (arXiv 2004.01461)."""
    for parameter in optimizer.param_groups[0]["params"]:
        if parameter.grad is not None and parameter.dim() > 1:
            axes = tuple(range(1, parameter.dim()))
            parameter.grad -= parameter.grad.mean(dim=axes, keepdim=True)


def reference(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = torch_optimizer.Ranger(model.parameters(), **SETTINGS)
    optimizer.register_step_pre_hook(centralized)
    return optimizer


def small_model() -> torch.nn.Module:
    """Convolutions in channels-last order, equal lengths in several weights, and a lone weight."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.Conv2d(6, 6, 3, groups=6),
        torch.nn.BatchNorm2d(6),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 4 * 4, 27),
        torch.nn.Linear(27, 1),
    )
    return model.to(memory_format=torch.channels_last)


def give_gradients(models: list[torch.nn.Module], seed: int, without: int = -1) -> None:
    for model in models:
        random = torch.Generator().manual_seed(seed)
        for number, parameter in enumerate(model.parameters()):
            drawn = torch.randn(parameter.shape, generator=random)
            gradient = torch.empty_like(parameter).copy_(drawn)
            parameter.grad = None if number == without else gradient


def steps(models: list, optimizers: list, numbers: range) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This overload of add")  # of the library's own
        for number in numbers:
            give_gradients(models, number, without=4 if number % 5 == 3 else -1)
            for optimizer in optimizers:
                optimizer.step()


def assert_alike(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_ranger_is_that_of_torch_optimizer_over_200_steps():
    """Also for a weight that sometimes has no gradient, and so counts fewer steps."""
    ours, theirs = small_model(), small_model()
    pair = [Ranger(ours.parameters(), **SETTINGS), reference(theirs)]
    steps([ours, theirs], pair, range(200))
    assert_alike(ours, theirs)
    counts = {state["step"] for state in pair[0].state.values()}
    assert counts == {160, 200} == {state["step"] for state in pair[1].state.values()}


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_either_ranger_goes_on_from_the_others_checkpoint(first):
    straight, model = small_model(), small_model()
    optimizer = reference(straight)
    steps([straight], [optimizer], range(23))
    makers = [lambda m: Ranger(m.parameters(), **SETTINGS), reference]
    makers = makers if first == "ours" else makers[::-1]
    before = makers[0](model)
    steps([model], [before], range(11))
    saved = copy.deepcopy((model.state_dict(), before.state_dict()))
    assert {*next(iter(saved[1]["state"].values()))} == {"step", *STATE}
    other = small_model()
    after = makers[1](other)
    other.load_state_dict(saved[0])
    after.load_state_dict(saved[1])
    steps([other], [after], range(11, 23))
    assert_alike(other, straight)


@pytest.mark.parametrize(
    ("make", "most"), [(lambda: AttnCNN("efficientnet-b0"), 60), (TextTransformer, 20)]
)
def test_an_update_is_a_few_calls_whatever_the_number_of_weights(make, most):
    model = make()
    optimizer = Ranger(model.parameters(), **SETTINGS)
    give_gradients([model], 1)
    optimizer.step()
    with Calls() as calls:
        optimizer.step()
    assert calls.total <= most, calls.counts.most_common(5)


def one_step(run) -> Calls:
    """The calls of the loop's second step, from the batch to the update, with all that it draws."""
    seen: list[Calls] = []

    class Watch(NoRecord):
        def is_due(self):
            if not seen:
                seen.append(Calls())
                seen[0].__enter__()
            elif len(seen) == 1:
                seen[0].__exit__(None, None, None)
                seen.append(seen[0])
            return False

    fit(run, Watch(), StopSignal())
    return seen[0]


@pytest.mark.parametrize(("mode", "most"), [("speech", 1700), ("text", 2600)])
def test_a_step_is_not_thousands_of_calls(mode, most, tmp_path):
    """GPU.md's counts were 3,990 and 3,921: a launch each, and the card waits for the CPU."""
    config = made.settings_of(mode, "small", "cpu") | {"batch_size": 4, "n_epoch": 1}
    features = made.write_features(tmp_path, mode, 4, batches=3)
    calls = one_step(made.make_run(config, features, "cpu", 0))
    assert calls.counts["aten._local_scalar_dense.default"] <= 3, "the step waits for numbers"
    assert 500 < calls.total <= most, calls.counts.most_common(8)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"))


def test_numbers_that_are_read_later_are_the_same(features, tmp_path):
    """The rows of metrics.csv and the weights, with and without a lag."""
    found = []
    for lag in (0, 1):
        run = make_run(features, tmp_path, "text", n_epoch=2)
        run.readings = Readings(lag)
        fit(run, NoRecord(), StopSignal())
        assert not run.readings.waiting
        found.append((run.rows, leaves(run.model.state_dict())))
    assert found[0] == found[1]


def test_nothing_is_saved_before_all_steps_are_checked(features, tmp_path):
    run = make_run(features, tmp_path, "text", n_epoch=2)
    run.readings = Readings(1)
    run.readings.add(torch.tensor([float("nan"), 0, 1]), (7, next(iter(run.train_loader))))
    with pytest.raises(Exception, match=r"loss is nan .* at step 7; no checkpoint holds"):
        run.state()


def test_mean_weights_follow_the_model():
    model = small_model()
    means = MeanWeights(model, 0.9)
    expected = copy.deepcopy(model.state_dict())
    for step in range(1, 5):
        with torch.no_grad():
            for each in [*model.parameters(), *model.buffers()]:
                each.add_(1)
        means.update(model, step)
        share = 1 - min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            real = value.is_floating_point()
            expected[name] = expected[name].lerp(value, share) if real else value.clone()
    for name, value in means.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_batches_reach_the_device_in_order(features, tmp_path):
    run = make_run(features, tmp_path, "text")
    run.train_loader.batch_sampler.set_epoch(1)
    plain = list(run.train_loader)
    for (batch, inputs), other in zip(on_device(run.train_loader, "cpu"), plain, strict=True):
        assert batch["clip_id"] == other["clip_id"]
        assert torch.equal(inputs["text"][0], other["inputs"]["text"][0])


@pytest.mark.parametrize(
    ("how", "device", "steps", "compiled"),
    [
        ("auto", "cpu", 10**6, False),
        ("auto", "cuda", accelerate.LONG_RUN, True),
        ("auto", "cuda:1", accelerate.LONG_RUN - 1, False),
        ("off", "cuda", 10**6, False),
        ("on", "cpu", 1, True),
    ],
)
def test_only_a_long_run_on_a_gpu_compiles_by_itself(how, device, steps, compiled):
    assert accelerate.is_wanted(how, device, steps) == compiled


def test_who_asks_to_compile_is_told_why_not(monkeypatch):
    monkeypatch.setattr(accelerate, "why_not", lambda device: "no compiler")
    with pytest.raises(UsageError, match=r"--compile on: torch cannot compile here \(no compiler"):
        accelerate.accelerate(TextTransformer(layers=1), "on", "cpu", 1)


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told(features, tmp_path):
    """TORCH_COMPILE_DISABLE is torch's own; a compiler that is not there, ours to tell."""
    flags = ("--mode", "text", "--exp_name", "a", "--compile", "on", "--dry_run")
    places = ("--features_dir", features, "--logs_dir", tmp_path)
    nothing = {"CXX": str(tmp_path / "nothing"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")}
    done = run_script("train.py", *flags, *places, env=nothing)
    assert done.returncode == 2 and "--compile on: torch cannot compile here" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_long_run_goes_on_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setattr(accelerate, "is_wanted", lambda *_: True)
    monkeypatch.setattr(accelerate, "why_not", lambda device: "no triton")
    assert accelerate.accelerate(TextTransformer(layers=1), "auto", "cpu", 10**6) is False
    assert "not compiled" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_training_learns_the_same(features, tmp_path):
    """Up to the order of sums; a checkpoint has the names of an ordinary one."""
    rows = []
    for how in ("off", "on"):
        run = make_run(features, tmp_path, "text", n_epoch=2, compile=how)
        fit(run, NoRecord(), StopSignal())
        rows.append([row["val_loss"] for row in run.rows])
        assert not any("_orig_mod" in name for name in run.state()["weights"])
    assert rows[0] == pytest.approx(rows[1], rel=0.02)
