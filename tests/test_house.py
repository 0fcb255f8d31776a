"""The rules of the house: who imports whom, no unsafe loads, one writer, nothing on import."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, run_script

from benchmarks.architecture import imported

PACKAGES = ("models", "training", "evaluation", "extract", "corpora", "inference", "utils")
SCRIPTS = sorted(path for path in ROOT.glob("*.py"))
PRODUCT = [*SCRIPTS, *(path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py")))]
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in PRODUCT}
IDS = [path.as_posix() for path in TREES]
files = pytest.mark.parametrize(("path", "tree"), TREES.items(), ids=IDS)


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


FORBIDDEN = {
    "models": {
        "training",
        "extract",
        "corpora",
        "inference",
        "utils",
        "numpy",
        "pandas",
        "argparse",
        "json",
    },
    "extract": {"training", "models", "evaluation", "inference"},
    "corpora": {"training", "models", "evaluation", "inference"},
    "training": {"extract", "corpora", "evaluation", "inference"},
    "evaluation": {"extract", "corpora", "inference"},
    "utils": {"training", "models", "evaluation", "extract", "corpora", "inference"},
}


@files
def test_floors(path: Path, tree: ast.AST):
    names = imported(tree)
    tops = {name.split(".")[0] for name in names}
    assert not tops & FORBIDDEN.get(path.parts[0], set())
    assert not tops & {script.stem for script in SCRIPTS}, "scripts are imported by nobody"
    assert not any(name.startswith("None.") or name.endswith(".*") for name in names)
    assert ast.get_docstring(tree), "what is this file?"


@files
def test_nothing_unsafe(path: Path, tree: ast.AST):
    forbidden = ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load")
    for name, call in calls(tree):
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in forbidden and not name.endswith((".extractall", ".unpack_archive")), name
        assert words.get("allow_pickle") != "True" and words.get("shell") != "True", name
        if name == "torch.load" or name.endswith("load_state_dict_from_url"):
            assert words.get("weights_only") == "True", f"{name} in line {call.lineno}"
        if name.endswith("load_state_dict_from_url"):
            assert words.get("check_hash") == "True", f"{name} in line {call.lineno}"
        if name == "np.load":
            assert words.get("allow_pickle") == "False", f"np.load in line {call.lineno}"
        if name.endswith(".read_text"):  # else a system without UTF-8 cannot read our own files
            assert call.args or call.keywords, f"the encoding, in line {call.lineno}"


SAVES = {"torch.save", "np.save", "np.savez", "np.savez_compressed"}
WRITES = {"write_text", "write_bytes", "to_csv", "to_json", "savefig", "touch"}


def in_memory(call: ast.Call) -> bool:
    """A frame.to_csv() that returns text, or a picture that goes to a buffer."""
    targets = [*call.args, *(k.value for k in call.keywords if k.arg in ("path_or_buf", "fname"))]
    return [ast.unparse(target) for target in targets] in ([], ["picture"])


@files
def test_there_is_one_writer(path: Path, tree: ast.AST):
    if path.as_posix() == "utils/files.py":
        return
    inside = {
        node
        for name, call in calls(tree)
        if name.split(".")[-1] in ("write_atomic", "write_sealed")
        for argument in call.args
        if isinstance(argument, ast.Lambda)
        for node in ast.walk(argument)
    }
    inside |= {  # a stage of extract/clip.py is handed the file that write_atomic has opened
        node
        for stage in ast.walk(tree)
        if isinstance(stage, ast.FunctionDef) and ast.unparse(stage.args).endswith("file: BinaryIO")
        for node in ast.walk(stage)
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.args[0]) == "file"
    }
    for name, call in calls(tree):
        where = f"{name} in line {call.lineno}"
        if name in SAVES:
            assert call in inside, f"{where}: only inside write_atomic or write_sealed"
        in_buffer = [ast.unparse(argument) for argument in call.args[:1]] == ["buffer"]
        if name == "open" or (name.endswith(".open") and call.args and not in_buffer):
            modes = [
                *call.args[name == "open" :],
                *(k.value for k in call.keywords if k.arg == "mode"),
            ]
            texts = [m.value for m in modes if isinstance(m, ast.Constant)]
            assert not any(
                isinstance(t, str) and set(t) & set("wax+") and len(t) < 4 for t in texts
            ), where
        if name.split(".")[-1] in WRITES and "." in name:
            assert in_memory(call), f"{where}: use utils/files.py"


def test_the_guards_see_what_they_forbid():
    """The two rules above, on code that breaks them."""
    unsafe = ("torch.load(p)", "np.load(p)", "eval(x)", "f(shell=" + "True)", "a.extractall(p)")
    for bad in (*unsafe, "p.read_text()"):
        with pytest.raises(AssertionError):
            test_nothing_unsafe(Path("x.py"), ast.parse(bad))
    for bad in (
        "torch.save(x, p)",
        "np.save(p, x)",
        "def make(file: BinaryIO): np.save(p, x)",
        "open(p, 'w')",
        "p.open('wb')",
        "open(p, mode='a')",
    ):
        with pytest.raises(AssertionError):
            test_there_is_one_writer(Path("x.py"), ast.parse(bad))
    for bad in ("p.write_text('x')", "frame.to_csv(p)", "p.touch(1)"):
        with pytest.raises(AssertionError):
            test_there_is_one_writer(Path("x.py"), ast.parse(bad))
    good = "write_atomic(p, lambda file: torch.save(x, file))\nopen(p)\nopen(p, 'rb')\nf.to_csv()"
    test_there_is_one_writer(Path("x.py"), ast.parse(good))
    for bad in (
        "from utils import files",
        "from . import pooling",
        "import_module('utils.files')",
        "opener('utils.files', 'sha256')",
        "for name in ('utils.files', 'numpy'): __import__(name)",
        "import_module(f'utils.{name}')",
        "importlib.import_module('utils')",
    ):
        with pytest.raises(AssertionError):
            test_floors(Path("models/x.py"), ast.parse(f"'doc'\n{bad}"))


IMPORT_ALL = """
import importlib, random, signal, sys
import numpy, sklearn.model_selection, torch  # rich, which sklearn loads if it is there, draws
def state():
    threads, handlers = torch.get_num_threads(), [signal.getsignal(s) for s in (2, 15)]
    numbers = [repr(numpy.random.get_state()), torch.get_rng_state().tolist(), random.getstate()]
    return [threads, handlers, torch.get_default_dtype(), *numbers]
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert state() == before, "an import changed global state"
"""


def test_nothing_happens_on_import():
    modules = [path.with_suffix("").as_posix().replace("/", ".") for path in TREES]
    modules = [name.removesuffix(".__init__") for name in modules]
    run = run_script("-c", IMPORT_ALL, *modules)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_help_is_quick(script):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run = run_script(script, "--help")
        seconds.append(time.perf_counter() - start)
        assert run.returncode == 0 and run.stdout.startswith("usage: ")
        if seconds[-1] < 1.5:
            return
    assert min(seconds) < 1.5, seconds


def test_the_flags_of_a_training_fit_four_screens():
    lines = run_script("train.py", "--help").stdout.splitlines()
    assert len(lines) <= 112 and max(map(len, lines)) <= 100
    flags = [line.split() for line in lines]
    assert "optimization:" in lines and ["--time_masks", "N", "SpecAugment", "[4]"] in flags


def test_a_flag_of_another_name_gets_the_right_one():
    """By what it means where a script says so, else by its letters."""
    run = run_script("train.py", "--wd", "3", "--epochs=3", "--batch-size", 8)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1
    for wrong, right in {"--wd": "--weight_decay", "--epochs": "--n_epoch"}.items():
        assert f"{wrong}: did you mean {right}?" in run.stderr
    assert "--batch-size: did you mean --batch_size?" in run.stderr


def test_an_installation_has_every_package_and_its_files():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(setup["packages"]) == found == set(PACKAGES)
    for package in PACKAGES:
        folder, patterns = ROOT / package, setup["package-data"].get(package, [])
        named = {path for pattern in patterns for path in folder.glob(pattern)}
        others = {path for path in folder.rglob("*.*") if path.suffix not in (".py", ".pyc")}
        assert named == others


def test_wrong_calls_are_found_before_they_run(tmp_path):
    """Also in functions without annotations, as small scripts have them."""
    lines = ["from utils.files import sha256", "def main():", "    sha256('a', 2)"]
    (tmp_path / "wrong.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", str(tmp_path / "wrong.py")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 'wrong.py:3: error: Too many arguments for "sha256"' in run.stdout


def test_nobody_bends_the_search_path():
    beside = [path for name in ("examples", "benchmarks") for path in (ROOT / name).glob("*.py")]
    assert [path for path in [*PRODUCT, *beside] if "sys.path" in path.read_text()] == []
