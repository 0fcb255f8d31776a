"""A checkpoint -> one ONNX file that predicts without torch, any batch and any lengths.

    python export.py --checkpoint logs/multimodal/NAME --out model.onnx
    python examples/onnx_predict.py model.onnx features val

Inputs are what the model sees: speech (B, 1, 128, T) with speech_mask (B, T) and face
(B, T, 3, S, S) in [0, 1], text (B, L, D) with text_mask (B, L), and for models trained with
--modality_dropout left_out (B, inputs). Outputs are probabilities by head. Classes and settings
are in the file's metadata.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.config import Flags
from utils.errors import IntegrityError, UsageError, run_script
from utils.files import write_bytes

TOLERANCE = 1e-4  # of a probability


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    flags.add("--checkpoint", type=Path, required=True, help=".pth file or run folder (its best)")
    flags.add("--out", type=Path, default=Path("model.onnx"), help="the file to write")
    return flags.parse_args()


def main() -> None:
    args = parse_args()
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        need = "pip install -r requirements-export.txt"
        raise UsageError(f"export needs one more package, {error.name}: {need}") from error

    from evaluation.ensemble import Member
    from inference.portable import largest_difference, to_onnx
    from training.checkpoint import find_checkpoint, load_checkpoint, restore_model

    path = find_checkpoint(args.checkpoint)
    if args.out.resolve() == path.resolve():
        raise UsageError(f"--out {args.out} is the checkpoint itself: choose another name")
    checkpoint = load_checkpoint(path)
    member = Member(path, checkpoint, restore_model(checkpoint, path).eval(), path.parent)
    data = to_onnx(member)
    difference = largest_difference(member, data)
    if not difference <= TOLERANCE:
        raise IntegrityError(f"{path}: onnxruntime's probabilities differ by {difference:.1e}")
    write_bytes(args.out, data)
    print(f"{args.out}: {len(data) / 1e6:.1f} MB, probabilities within {difference:.0e} of torch's")


if __name__ == "__main__":
    run_script(main)
