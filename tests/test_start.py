"""What a start loads: libraries that take seconds are loaded by whoever needs them."""

from __future__ import annotations

import json

from conftest import make_clip, moving_picture, run_script, tone

HEAVY = (
    *("torch", "torchvision", "facenet_pytorch", "librosa", "scipy", "sklearn", "joblib"),
    *("skimage", "matplotlib", "pandas", "timm", "transformers", "albumentations", "cv2"),
)
SHOW = "print(json.dumps([name for name in HEAVY if name in sys.modules]))"


def loaded_by(*steps: str) -> list[set[str]]:
    """The packages of HEAVY that one process has loaded behind each of these pieces of code."""
    code = f"import json, sys\nHEAVY = {HEAVY}\n"
    run = run_script("-c", code + "".join(f"{step}\n{SHOW}\n" for step in steps))
    assert run.returncode == 0, run.stderr
    return [set(json.loads(line)) for line in run.stdout.splitlines() if line.startswith("[")]


def test_the_parent_of_preprocess_loads_tables_alone(tmp_path):
    clip = make_clip(tmp_path / "clips" / "a.mp4", moving_picture(), tone(0.6))
    clip.with_name("manifest.csv").write_text("media,split,emotion\na.mp4,test,\n")
    flags = ["--corpus", "csv", "--data_dir", str(clip.parent), "--workers", "2"]
    flags += ["--modalities", "speech", "--features_dir", str(tmp_path / "features")]
    run = f"import preprocess\nsys.argv[1:] = {flags}\npreprocess.main()"
    assert loaded_by(run) == [{"pandas"}]
    assert (tmp_path / "features" / "test" / "speech" / "a.npy").is_file()


LIBRARIES = """
from extract.clip import libraries_of
for name in libraries_of({}): __import__(name)
assert 'torch._dynamo' not in sys.modules, 'the compiler takes seconds'
"""
COMPILER = """
import importlib
from extract import networks
asked = importlib.import_module("torchvision.ops.roi_align").is_compile_supported
assert asked is networks.is_compile_supported
with networks.without_compiler():
    from torch._dynamo.utils import counters
assert type(counters).__name__ == "defaultdict", "what else is asked is answered at once"
from torch._dynamo.utils import is_compile_supported
assert is_compile_supported is not asked and asked("cpu") == is_compile_supported("cpu") == True
assert torch.compile(torch.nn.Linear(8, 2), backend="eager")(torch.rand(3, 8)).shape == (3, 2)
"""


def test_the_processes_that_read_clips_load_what_these_need():
    """And the compiler when it is asked for."""
    sounds, pictures = (
        LIBRARIES.format("('speech', 'wave', 'text')"),
        LIBRARIES.format("('video',)"),
    )
    heard, seen, _ = loaded_by(sounds, pictures, f"import torch{COMPILER}")
    assert heard == {"librosa", "scipy", "joblib"}
    assert seen == heard | {"torch", "torchvision", "facenet_pytorch", "cv2"}


OPTIMIZED = """
import torch
from training.optim import OPTIMIZERS, make_optimizer
for name in OPTIMIZERS:
    layer = torch.nn.Linear(8, 2)
    optimizer = make_optimizer(name, layer.parameters(), 0.1, 0.01)
    before = layer.weight.clone()
    layer(torch.ones(3, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not torch.equal(layer.weight, before), name
assert "torch._dynamo" not in sys.modules, "the compiler takes seconds"
"""


def test_commands_predictions_and_trainings_begin_with_what_they_need():
    started, predicting, _ = loaded_by(
        "import predict, preprocess, extract.clip", "import inference.predictor", OPTIMIZED
    )
    assert started == set() and predicting == {"torch", "pandas", "scipy"}
