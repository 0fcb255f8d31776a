"""An exported model on features, without torch: onnx_predict.py MODEL FEATURES_DIR SPLIT"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training.transforms import face_view, feature_view, speech_view, text_view  # numpy alone

if len(sys.argv) != 4:
    sys.exit(__doc__)
model, folder, split = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
session = onnxruntime.InferenceSession(model)
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
table = list(csv.DictReader(open(folder / "manifest.csv")))
rows = [row for row in table if row["split"] == split]
if not rows:
    sys.exit(
        f"{folder} has no clips of {split}: it has {', '.join({row['split'] for row in table})}"
    )
for row in rows:
    feed = {}
    if "speech" in about["inputs"]:
        log_mel = np.load(folder / split / "speech" / f"{row['clip_id']}.npy", allow_pickle=False)
        feed["speech"] = speech_view(log_mel, about["speech_frames"], None, False)[None]
    if "face" in about["inputs"]:
        crops = np.load(folder / split / "video" / f"{row['clip_id']}.npy", allow_pickle=False)
        valid = np.array([flag == "1" for flag in row["face_valid"]])
        feed["face"] = face_view(crops, valid, about["face_frames"], None, False)[
            None
        ] / np.float32(255)
    if "text" in about["inputs"]:
        words = np.load(folder / split / "text" / f"{row['clip_id']}.npz", allow_pickle=False)
        words, mask = text_view(words["word_embed"], about["max_words"])
        feed |= {"text": words[None], "text_mask": mask[None]}
    for own in {*about["inputs"]} - {"speech", "face", "text"}:
        feature = np.load(folder / split / own / f"{row['clip_id']}.npy", allow_pickle=False)
        feed[own] = feature_view(feature, about["feature_frames"], None, False)[None]
    if any(each.name == "left_out" for each in session.get_inputs()):
        feed["left_out"] = np.zeros((1, len(about["inputs"])), bool)
    probabilities = session.run(None, feed)[0][0]  # the first head is the answer
    print(row["clip_id"], about["classes"][probabilities.argmax()], *probabilities.round(6))
