"""Worker, actor, raylet and driver killed for real at random moments: the table is a clean run's, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_five_kills_leave_the_table_of_a_clean_run() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "benchmarks/chaos.py", "--kills", "5", "--shards", "10", "--rows", "30"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540)
    said = done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == 0, said
    assert "all equal to the clean run" in done.stdout, said
