"""An exported model on the features of one split -> a line per clip, without torch.

    python examples/onnx_predict.py model.onnx features val

A line holds the clip's id, the most probable class, and the probability of each class. Clips that
lack an input (preprocess.py --partial) have none.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from training.features import Features
from training.modalities import modality
from training.standardize import Scales, speaker_scales
from utils.errors import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="what export.py wrote")
    parser.add_argument("features_dir", type=Path, help="what preprocess.py wrote")
    parser.add_argument("split", help="clips to predict")
    args = parser.parse_args()
    features = Features.open(args.features_dir)
    session = onnxruntime.InferenceSession(args.model)
    metadata = session.get_modelmeta().custom_metadata_map
    about = {name: json.loads(value) for name, value in metadata.items()}
    wanted = {each.name for each in session.get_inputs()}
    every, scales = features.rows(args.split), {}
    rows = features.having(every, about["inputs"], some=False)
    if lacking := len(every) - len(rows):
        print(f"{lacking} of {len(every)} clips lack an input of the model", file=sys.stderr)
    if about["standardize"] == "speaker":
        scales = speaker_scales(features, rows, about["inputs"])
    for row in rows.to_dict("records"):
        probabilities = session.run(None, feed(row, features, about, wanted, scales))[0][0]
        # the first head decides
        print(row["clip_id"], about["classes"][probabilities.argmax()], *probabilities.round(6))


def feed(
    row: dict, features: Features, about: dict, wanted: set[str], scales: Scales
) -> dict[str, Any]:
    """One clip's inputs as a batch of one."""
    arrays = {}
    for name in about["inputs"]:
        feature = features.load(row, name)
        if name in scales:
            feature = scales[name][row["speaker"]].apply(feature)
        view = modality(name).view(feature, row, about, None, False)
        for key, array in zip((name, f"{name}_mask"), view, strict=False):
            arrays[key] = array[np.newaxis]
            if array.dtype == np.uint8:  # pictures: the model sees values from 0 to 1
                arrays[key] = arrays[key] / np.float32(255)
    if "left_out" in wanted:
        arrays["left_out"] = np.zeros((1, len(about["inputs"])), bool)
    return arrays


if __name__ == "__main__":
    run_script(main)
