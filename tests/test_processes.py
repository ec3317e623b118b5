"""Scripts without a guard start processes and are not run again by them."""

from __future__ import annotations

import subprocess
import sys

PROCESS = """
from multiprocessing import get_context
from vlascope.processes import script_left_alone
print("script", __file__ is not None)
worker = get_context("spawn").Process(target=print, args=("worker",))
with script_left_alone():
    worker.start()
worker.join()
print(worker.exitcode, __file__ is not None)
"""

FACTORIAL = """
from vlascope.sim.factorial import record_factorial
print("script")
record_factorial("factors", n_images=104, image_px=32, processes=2, quiet=True)
print("done")
"""


def run(tmp_path, script: str) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, "-u", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_process_does_not_run_the_script(tmp_path):
    assert run(tmp_path, PROCESS) == ["script True", "worker", "0 True"]


def test_a_script_renders_factors_in_processes(tmp_path):
    assert run(tmp_path, FACTORIAL) == ["script", "done"]
    assert len(list((tmp_path / "factors" / "images").iterdir())) == 104
