"""What a start loads: libraries that take seconds are loaded by whoever needs them."""

from __future__ import annotations

import json

from conftest import make_clip, moving_picture, run_script, tone

HEAVY = (
    *(
        "torch",
        "torchvision",
        "facenet_pytorch",
        "librosa",
        "scipy",
        "sklearn",
        "joblib",
        "skimage",
    ),
    *("matplotlib", "pandas", "timm", "transformers", "albumentations", "cv2"),
)
SHOW = """
import json, sys
{}
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))
"""


def loaded_by(code: str) -> set[str]:
    """The packages of HEAVY that a process has loaded behind this code."""
    run = run_script("-c", SHOW.format(code), json.dumps(HEAVY))
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_the_parent_of_preprocess_loads_tables_alone(tmp_path):
    clip = make_clip(tmp_path / "clips" / "a.mp4", moving_picture(), tone(0.6))
    clip.with_name("manifest.csv").write_text("media,split,emotion\na.mp4,test,\n")
    flags = ["--corpus", "csv", "--data_dir", str(clip.parent), "--workers", "2"]
    flags += ["--modalities", "speech", "--features_dir", str(tmp_path / "features")]
    run = f"flags, sys.argv[1:] = {flags}, [sys.argv[1]]\nimport preprocess\n"
    run += "given, sys.argv[1:] = sys.argv[1:], flags\npreprocess.main()\nsys.argv[1:] = given"
    assert loaded_by(run) == {"pandas"}
    assert (tmp_path / "features" / "test" / "speech" / "a.npy").is_file()


def test_the_processes_that_read_clips_load_what_these_need():
    code = "from extract.clip import libraries_of\n"
    code += "for name in libraries_of({}): __import__(name)"
    code += "\nassert 'torch._dynamo' not in sys.modules, 'the compiler takes seconds'"
    assert loaded_by(code.format("('speech', 'wave', 'text')")) == {"librosa", "scipy", "joblib"}
    pictures = {"torch", "torchvision", "facenet_pytorch", "cv2"}
    assert loaded_by(code.format("('video',)")) == pictures


def test_a_prediction_begins_with_what_its_model_needs():
    assert loaded_by("import predict") == set()
    assert loaded_by("import inference.predictor") == {"torch", "pandas", "scipy"}


COMPILED = """
import torch
from extract import networks
networks.sys.modules.update({name: networks.Later(name) for name in networks.COMPILER})
from torch._dynamo.utils import is_compile_supported, counters
assert type(counters).__name__ == "defaultdict", "what else is asked is answered at once"
assert networks.importlib.import_module("torchvision.ops").roi_align.__globals__[
    "is_compile_supported"]("cpu") == is_compile_supported("cpu") == True
assert torch.compile(torch.nn.Linear(8, 2), backend="eager")(torch.rand(3, 8)).shape == (3, 2)
"""


def test_the_compiler_is_loaded_when_it_is_needed():
    assert "torchvision" in loaded_by(COMPILED)


OPTIMIZED = """
import torch
from training.ranger import Ranger
layer = torch.nn.Linear(8, 2)
optimizer = Ranger(layer.parameters(), lr=0.1)
layer(torch.ones(3, 8)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""


def test_a_training_loads_no_compiler():
    assert "torch" in loaded_by(OPTIMIZED)
