"""A fused model of this version as plain numbers: names and shapes of its weights, and its logits.

    python tests/golden.py 0.2.0    # writes tests/golden/0.2.0.json, once for each release

Versions that read another format of checkpoints start anew: the old files go. The weights are a
formula of their names, so that no file of them is needed.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from conftest import CLASSES, SMALL, write_features  # noqa: E402

FOLDER = Path(__file__).parent / "golden"
WORD_DIM = 16


def drawn(name: str, shape: list[int]):
    """Normal numbers that follow from a name; numpy keeps this old generator as it is."""
    import numpy as np
    import torch

    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape))


def filled(name: str, shape: list[int]):
    """The tensor of that name: weights scaled by their inputs, norms about 1, the rest small."""
    import torch

    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.tensor(1)
    if len(shape) > 1:
        return (drawn(name, shape) * 2 / math.sqrt(math.prod(shape[1:]))).float()
    return ((kind in ("weight", "running_var")) + 0.05 * drawn(name, shape)).float()


def inputs() -> dict:
    """Two clips of each modality, in float64: these weights enlarge what a CPU rounds."""
    import torch

    shapes = {"speech": [2, 1, 128, 70], "face": [2, 2, 3, 32, 32], "text": [2, 5, WORD_DIM]}
    made = {name: (drawn(name, shape),) for name, shape in shapes.items()}
    padded = {"speech": (70, 40), "text": (5, 3)}  # how much of each clip is real
    for name, lengths in padded.items():
        steps = torch.arange(lengths[0])
        made[name] += (torch.stack([steps < length for length in lengths]),)
    return made


def logits_of(model) -> dict[str, list]:
    """{head: logits (2, K)}."""
    import torch

    with torch.inference_mode():
        prediction = model.double().eval()(inputs())
    return {head: logits.tolist() for head, logits in prediction.logits.items()}


def checkpoint_of(golden: dict) -> dict:
    """What train.py of that version would have saved."""
    weights = {name: filled(name, shape) for name, shape in golden["shapes"].items()}
    known = ("arch", "classes", "features_config", "config")
    measured = {"weights": weights, "epoch": 1, "val": {"loss": 1.0, "accuracy": 0.5}}
    return {name: golden[name] for name in known} | measured


def main() -> None:
    import tempfile

    from models import build_model
    from training.features import Features
    from training.tasks import TASKS, model_arch, recipe

    config, task = recipe("multimodal") | SMALL | {"modality_dropout": 0.3}, TASKS["multimodal"]
    config |= dict.fromkeys(("fold", "val_fold"))
    shapes = {"speech": (128, None), "face": (None, None, None, 3), "text": (5, WORD_DIM)}
    arch = model_arch(task, config, len(CLASSES), shapes)
    with tempfile.TemporaryDirectory() as folder:
        features = Features.open(write_features(Path(folder), 1)).config_for(task.inputs)
    model = build_model(**arch)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    golden = {"arch": arch, "classes": list(CLASSES), "features_config": features}
    golden |= {"config": config, "shapes": shapes}
    model.load_state_dict(checkpoint_of(golden)["weights"])
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(golden | {"logits": logits_of(model)}, separators=(",", ":"))
    (FOLDER / f"{sys.argv[1]}.json").write_text(text.replace(',"encoders', ',\n"encoders') + "\n")


if __name__ == "__main__":
    main()
