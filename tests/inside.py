"""Run a script's main in this process: as from the shell, but torch is imported only once."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
from types import SimpleNamespace

from utils import errors


def run_main(script: str, *args: object) -> SimpleNamespace:
    """`code`, `out` and `err` of `python <script>.py ARGS`; a bug raises."""
    argv, environment, out, err = sys.argv, dict(os.environ), io.StringIO(), io.StringIO()
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    sys.argv = [f"{script}.py", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            errors.run_script(importlib.import_module(script).main)
    except SystemExit as stop:
        return SimpleNamespace(code=stop.code, out=out.getvalue(), err=err.getvalue())
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        for each, handler in handlers.items():
            signal.signal(each, handler)
