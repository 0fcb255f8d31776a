"""The whole pipeline on a generated corpus: clips, features, four models, three submissions.

    python demo.py          # or `make demo`; minutes on a laptop, a second run only shows the table

Everything lands in demo_run/ and is made by the same commands that you would type, printed as they
run. The corpus is generated from one photograph and synthetic voices: its accuracies measure that
the pipeline works, not how well the method recognises people.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from utils.config import Flags
from utils.errors import UsageError, run_script
from utils.files import write_atomic, write_text

SPEECH, FACE = "--speech_coeff 0 --speech_frames 96", "--face_coeff 0 --face_frames 6"
QUICK = "--optim adamw --augment False --num_workers 0"
TRAINING = {  # the recipes made small; augmentation would need more steps
    "speech": f"{SPEECH} {QUICK} --learning_rate 1e-3 --n_epoch 32 --batch_size 16 --mixup_prob 0",
    "face": f"{FACE} {QUICK} --learning_rate 1e-3 --n_epoch 8 --batch_size 8 --cutmix_prob 0",
    "text": f"{QUICK} --learning_rate 1e-3 --text_layers 4 --n_epoch 6 --batch_size 16",
    "multimodal": f"{SPEECH} {FACE} {QUICK} --learning_rate 1e-3 --text_layers 4 --n_epoch 4 "
    "--mixup_prob 0 --freeze_backbone True",
}


def parse_args() -> argparse.Namespace:
    flags = Flags(__doc__)
    add = flags.add
    add("--out", default=Path("demo_run"), type=Path, help="folder of everything that is made")
    add("--seed", default=42, type=int, help="of the trainings")
    return flags.parse_args()


def main() -> None:
    args = parse_args()
    raw, features, logs = (args.out / name for name in ("raw", "features", "logs"))
    folders = f"--features_dir {features} --logs_dir {logs}"
    args.out.mkdir(parents=True, exist_ok=True)
    run(f"preprocess.py --corpus demo --data_dir {raw} --features_dir {features} --face_size 64")
    write_vectors(raw / "word_vectors.npz")
    weights = ""
    for mode, flags in TRAINING.items():
        name = f"demo-seed{args.seed}"
        run_folder = logs / mode / name
        if not (run_folder / "seconds.txt").is_file():
            start = weights if mode == "multimodal" else ""
            command = f"train.py --mode {mode} --exp_name {name} --seed {args.seed} {flags}"
            seconds = run(f"{command} {start}{folders} --overwrite")
            write_text(run_folder / "seconds.txt", f"{seconds:.0f}\n")
        weights += f"--{mode}_load_weights {run_folder} "
    answers = args.out / f"submission-seed{args.seed}"
    sheets = [answers / f"test{number}_submission.csv" for number in (1, 2, 3)]
    members = logs / "multimodal" / f"demo-seed{args.seed}"
    if not all(path.is_file() for path in sheets):
        run(
            f"make_submission.py --checkpoints {members} --features_dir {features} "
            f"--out {answers} --face_frames 8 --tta 6"
        )
    report = args.out / f"report-seed{args.seed}"
    if not (report / "metrics.json").is_file():
        runs = " ".join(str(logs / mode / f"demo-seed{args.seed}") for mode in TRAINING)
        run(
            f"evaluate.py --checkpoints {runs} --features_dir {features} --label emotion "
            f"--out {report} --num_workers 0"
        )
    print(table(logs, args.seed, report))
    print("submissions: " + " ".join(map(str, sheets)))
    print(f"report: {report}/index.html")
    print(f"pictures: {logs}/<mode>/demo-seed{args.seed}/curves.png and confusion.png")
    print("a clip of your own: python predict.py CLIP (models of real people's clips, starter/)")
    print("generated corpus: these figures and models mean nothing for real people")


def run(command: str) -> float:
    """Run one script of ours as a user would, show the command, return the seconds it took.

    The script is the one beside this file: the demo can be started from any folder.
    """
    print(f"\n$ python {command}", flush=True)
    start = time.monotonic()
    script, *flags = shlex.split(command)
    path = str(Path(__file__).with_name(script))
    code = subprocess.run([sys.executable, path, *flags], check=False).returncode
    if code:
        raise UsageError(f"{script} ended with exit code {code}, see above")
    return time.monotonic() - start


def write_vectors(path: Path) -> None:
    """The corpus' words as a file for `--word_vectors` of predict.py and app.py."""
    import numpy as np

    from corpora.demo import word_vectors

    known = word_vectors()
    arrays = {"words": np.array(list(known)), "vectors": np.stack(list(known.values()))}
    write_atomic(path, lambda file: np.savez(file, **arrays))


def table(logs: Path, seed: int, report: Path) -> str:
    """One row per mode from the run folders: clips, validation loss, accuracy, seconds; and from
    the report the accuracy by the emotion of the whole clip, which all modes are judged by there.
    """
    systems = json.loads((report / "metrics.json").read_text("utf-8"))["systems"]
    whole = {each["name"]: each["measures"]["accuracy"] for each in systems}
    lines = [f"\n{'mode':<12} clips  val loss  accuracy  clip's emotion  seconds"]
    for mode in TRAINING:
        folder = logs / mode / f"demo-seed{seed}"
        best = json.loads((folder / "best.json").read_text("utf-8"))
        seconds = int((folder / "seconds.txt").read_text("utf-8"))
        measured = f"{best['clips']:>6}{best['loss']:>10.4f}{best['accuracy']:>10.4f}"
        lines.append(f"{mode:<12}{measured}{whole[str(folder)]:>16.4f}{seconds:>9}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    run_script(main)
