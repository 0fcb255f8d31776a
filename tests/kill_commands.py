"""kill -9 at random moments of every command, and started again until it ends: what is left?

    python tests/kill_commands.py --kills 77

Prints one line per command and ends with exit code 1 unless every chain of killed and repeated runs
left, byte for byte, what a run that nobody killed leaves: no file that opens only in part at any
time, no lock that stays, no unfinished or temporary file at the end. tests/kill_training.py does
the same with trainings that go on in their middle.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import wave
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import numpy as np  # noqa: E402
from conftest import digests, save_untrained, voice, write_features  # noqa: E402
from kill_training import TINY, import_all, remains, wait  # noqa: E402

MOST_IN_A_CHAIN = 4  # kills before a run may end
COMMANDS = {  # {place} is where everything lies, {out} is new in every chain
    "preprocess": "--corpus csv --data_dir {place}/clips --features_dir {out} --workers 2 "
    "--modalities speech",
    "train": f"--mode text --resume {TINY} --features_dir {{place}}/features --logs_dir {{out}} "
    "--exp_name a",
    "evaluate": "--checkpoints {place}/a.pth --features_dir {place}/features --out {out} "
    "--allow_training_clips",
    "make_submission": "--checkpoints {place}/a.pth --features_dir {place}/features --out {out} "
    "--face_frames 2",
    "predict": "{place}/clips --checkpoints {place}/speech.pth --out {out}",
    "export": "--checkpoint {place}/speech.pth --out {out}/speech.onnx",
}
LOCKED = 5  # exit code


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--commands", default=",".join(COMMANDS))
    flags.add_argument("--kills", type=int, default=12, help="of all commands together")
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    import_all()
    names, good = args.commands.split(","), True
    with tempfile.TemporaryDirectory() as folder:
        make_place(Path(folder))
        for number, name in enumerate(names):
            kills = args.kills // len(names) + (number < args.kills % len(names))
            good &= torture(name, kills, Path(folder), random.Random(args.seed))
    sys.exit(not good)


def make_place(place: Path) -> None:
    """Clips, features and checkpoints that nobody trained."""
    (place / "clips").mkdir()
    rows = ["media,split,emotion"]
    for number in range(6):
        with wave.open(str(place / "clips" / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((voice(1.5, number) * 32_000).astype(np.int16).tobytes())
        rows.append(
            f"{number}.wav,{('train', 'val')[number % 2]},{('hap', 'sad')[number % 3 == 0]}"
        )
    (place / "clips" / "manifest.csv").write_text("\n".join(rows) + "\n")
    write_features(place / "features", 3)
    save_untrained(place / "a.pth", place / "features")
    save_untrained(place / "speech.pth", place / "features", "speech")


def torture(name: str, kills: int, place: Path, rng: random.Random) -> bool:
    out, temporary = place / f"{name}-out", place / "tmp"
    expected, seconds = whole(name, place, out)
    found: Counter[str] = Counter()
    while found["kills"] < kills:
        found["chains"] += 1
        shutil.rmtree(out, ignore_errors=True)
        code, here = None, 0
        while code not in (0, "failed"):
            kill = found["kills"] < kills and here < MOST_IN_A_CHAIN
            code = wait(launch(name, place, out), rng.uniform(0, seconds) if kill else 600)
            found["kills"] += code == -signal.SIGKILL
            here += code == -signal.SIGKILL
            found["stuck locks"] += code == LOCKED
            found["partial files"] += sum(not opens(path) for path in files(out))
            if code not in (0, -signal.SIGKILL):
                print((place / f"{name}.txt").read_text()[-2000:], file=sys.stderr)
                code = "failed"
        found["ended otherwise"] += code != 0 or left_by(name, out) != expected
        found["unfinished files"] += sum(path.name.endswith(".part") for path in files(out))
        found["temporary folders"] += len([*temporary.glob("predict-*")])
    kinds = "partial files, stuck locks, ended otherwise, unfinished files, temporary folders"
    told = ", ".join(f"{found[kind]} {kind}" for kind in kinds.split(", "))
    print(f"{name}: {found['kills']} kills in {found['chains']} chains of {seconds:.1f} s: {told}")
    sys.stdout.flush()
    return not any(found[kind] for kind in kinds.split(", "))


def whole(name: str, place: Path, out: Path) -> tuple[object, float]:
    """What a run that nobody kills leaves, and how long it takes."""
    start = time.monotonic()
    code = wait(launch(name, place, out), 600)
    assert code == 0, (place / f"{name}.txt").read_text()
    return left_by(name, out), time.monotonic() - start


def launch(name: str, place: Path, out: Path) -> int:
    """A child that runs the command; its process id."""
    child = os.fork()
    if child:
        return child
    log = os.open(place / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (place / "tmp").mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
    from importlib import import_module

    from utils.errors import run_script

    sys.argv = [f"{name}.py", *COMMANDS[name].format(place=place, out=out).split()]
    try:
        run_script(import_module(name).main)
    except SystemExit as stop:
        os._exit(stop.code or 0)
    finally:
        os._exit(1)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def opens(path: Path) -> bool:
    """Whether a visible file is whole, as far as its format tells."""
    from PIL import Image

    from training.checkpoint import load_checkpoint

    readers = {
        ".json": lambda: json.loads(path.read_bytes()),
        ".npy": lambda: np.load(path),
        ".npz": lambda: dict(np.load(path)),
        ".png": lambda: Image.open(path).load(),
        ".pth": lambda: load_checkpoint(path),
        ".csv": lambda: path.read_bytes().endswith(b"\n") or 1 / 0,
        ".html": lambda: b"</html>" in path.read_bytes()[-20:] or 1 / 0,
    }
    if path.name.startswith("."):
        return True
    try:
        readers.get(path.suffix, lambda: None)()
    except Exception as error:
        print(f"{path}: {error!r}", file=sys.stderr)
        return False
    return True


def left_by(name: str, out: Path) -> object:
    """Everything that two runs must agree in."""
    if name == "train":
        return remains(out / "text" / "a")
    left = {k: v for k, v in digests(out).items() if not Path(k).name.startswith(".")}
    timed = {"predictions.json"}  # it says how many seconds each clip took
    return {k: v for k, v in left.items() if k not in timed} | dict.fromkeys(timed & {*left})


if __name__ == "__main__":
    main()
