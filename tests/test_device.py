"""The checks for a GPU run to their end without one, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.nightly
def test_the_script_for_one_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    script, file = Path(__file__).parent / "device" / "run", tmp_path / "found.json"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [script, file], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["a_stopped_training_goes_on"] == {"score": True, "measure": True}
    assert {"gates_in_a_step", "packs", "exactness", "searches"} <= found.keys()
