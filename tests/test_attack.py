"""Hostile requests, hostile media and odd surroundings, in a release: tests/attack.py."""

from __future__ import annotations

import socket

import pytest
from attack import SETS, Tally
from attack_page import exchange, faults_of
from conftest import run_script
from extras import need

need("flask", "waitress")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_what_is_hostile_breaks_nothing(name):
    run = run_script("tests/attack.py", "--sets", name, timeout=7200)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_table_counts_what_broke_and_what_was_skipped(capsys):
    tally = Tally()
    tally.count("paths", "/", [])
    tally.count("paths", "/x", ["says Traceback", "lacks a header"])
    tally.skip("discs", "no name spaces")
    *_, paths, discs, together = tally.table("requests").splitlines()
    assert paths == "| paths | 2 | 1 | 0 |" and together == "| together | 2 | 1 | 1 |"
    assert discs == "| discs | 0 | 0 | 1: no name spaces |"
    assert capsys.readouterr().err.count("BROKEN paths: '/x': ") == 2


def test_a_server_that_says_nothing_is_a_fault(tmp_path):
    """Not taken for one that hangs up, which some requests may end with."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = exchange(silent.getsockname()[1], b"GET / HTTP/1.0\r\n\r\n", patience=0.2)
    assert faults_of(answer, "", tmp_path) and faults_of(answer, "400", tmp_path)
    assert not faults_of("", "", tmp_path)
