"""`vlascope app` whose clicks only read the matrix: what an exact answer cannot be quicker than, in the same situation.

    python -m benchmarks._app_reading TIMES RUN [options of vlascope app]

The same threads get the same blocks in the same order while the same browser draws; in place of the product, each byte
is read once. Milliseconds of every such pass are appended to the file TIMES.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vlascope.app import similarity
from vlascope.app.workers import each
from vlascope.cli import main


def reading(times: Path) -> Any:
    """Return what stands in for `vlascope.app.kernel.cosines`."""

    def read(tasks: Any, *_: Any, norms_n: Any, **__: Any) -> Any:
        started = time.perf_counter()
        each(lambda task: task[1].view(np.uint64).max(), tasks)
        with times.open("a") as file:
            file.write(f"{1000 * (time.perf_counter() - started):.3f}\n")
        return np.zeros(len(norms_n), np.float32)

    return read


if __name__ == "__main__":
    similarity.cosines = reading(Path(sys.argv[1]))
    sys.exit(main(["app", *sys.argv[2:]]))
