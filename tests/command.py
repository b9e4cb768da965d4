"""The command line, run in the tests' own process."""

from __future__ import annotations

import sys

from datas3_ray import cli


def datas3(*words: str, capsys) -> tuple[int, str, str]:
    """Run the command; returns status, what it printed, and what it complained."""
    before = sys.argv
    sys.argv = ["datas3", *words]
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = before
    printed = capsys.readouterr()
    return status, printed.out, printed.err
