"""The same tree whatever the backend; skipped where dask or ray are not installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import QUIET, ROOT, digests, make_clip, run_script, tone
from extras import need

need("distributed")


@pytest.fixture(scope="module")
def clips(tmp_path_factory, face_image) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        sound = tone(0.4, 300 + 100 * number)
        make_clip(folder / f"{number}.mp4", np.stack([face_image] * 5), sound, fps=10)
    (folder / "4.mp4").write_bytes(b"no clip")
    rows = [f"{number}.mp4,test," for number in range(5)]
    (folder / "manifest.csv").write_text("\n".join(["media,split,emotion", *rows]))
    return folder


def tree(clips: Path, features: Path, *flags) -> dict[str, str]:
    where = ("--corpus", "csv", "--data_dir", clips, "--features_dir", features)
    done = run_script("preprocess.py", *where, "--face_size", 64, *flags, timeout=400)
    assert done.returncode == 3, done.stderr
    assert "4 of 5 clips usable" in done.stdout
    found = {name: value for name, value in digests(features).items() if name != ".lock"}
    shutil.rmtree(features)
    return found


@pytest.fixture(scope="module")
def alone(clips, tmp_path_factory) -> dict[str, str]:
    return tree(clips, tmp_path_factory.mktemp("alone") / "features")


def test_a_dask_cluster_makes_the_same_tree(clips, alone, tmp_path, monkeypatch):
    import distributed

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as on a cluster: the workers find our packages
    os.environ.update(QUIET)
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = ("--backend", "dask", "--scheduler", cluster.scheduler_address)
        assert tree(clips, tmp_path / "features", *address) == alone


def test_ray_makes_the_same_tree(clips, alone, tmp_path, monkeypatch):
    need("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert tree(clips, tmp_path / "features", "--backend", "ray") == alone
