"""What some tests need beyond the packages of `make test`: without it they skip, with EXTRAS=1
they fail."""

from __future__ import annotations

import importlib
import os
from typing import NoReturn

import pytest

REQUIRED = bool(os.environ.get("REQUIRE_EXTRAS"))


def need(*packages: str) -> None:
    """Import these packages of requirements-extras.txt or -encoders.txt, or skip."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            unavailable(f"needs {package}: make test EXTRAS=1 installs it")


def unavailable(reason: str) -> NoReturn:
    """Skip the test or the whole file; where extras are required, fail."""
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)
