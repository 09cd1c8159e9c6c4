# SPDX-License-Identifier: Apache-2.0
"""What our package adds to the start of MONAI, in processor seconds of fresh processes.

``import monai_attn`` is compared to ``import monai`` alone. A bundle's start, by ``monai.bundle run`` up to the end of
``initialize``, is compared to that of the same configuration with what MONAI has for it: ``set_determinism``, the data
set given by its path, and no module of ours.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import measure

BUNDLES = Path(__file__).parents[2] / "bundles"
COUNT = "import sys; print(len(sys.modules))"
START = """
import sys
from monai.bundle import run
run(config_file=sys.argv[1], bundle_root=sys.argv[2], dataset_dir=sys.argv[2], run="$None")
"""


def start(*command: str) -> int:
    """Run Python code in a fresh process; how many modules that loaded."""
    code, *arguments = command
    line = [sys.executable, "-W", "ignore", "-c", f"{code}\n{COUNT}", *arguments]
    found = subprocess.run(line, check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def seconds(way: measure.Way) -> float:
    """Processor time of the processes that a way starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    way()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def plain(config: Path, folder: Path) -> Path:
    """The same configuration as one without our package would start."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content["imports"] = [line for line in content["imports"] if "monai_attn" not in line]
    content["initialize"] = "$monai.utils.set_determinism(seed=@seed)"
    del content["session"]
    path = folder / config.name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def rows(bundles: tuple[str, ...] = ("hippocampus_mri_scse_segmentation",), rounds: int = 3) -> Iterator[measure.Row]:
    yield row("import monai_attn", ["import monai, monai_attn"], "import monai", ["import monai"], rounds)
    for name in sorted(os.listdir(BUNDLES)) if "all" in bundles else bundles:
        with tempfile.TemporaryDirectory() as folder:
            config = BUNDLES / name / "configs" / "train.json"
            without = plain(config, Path(folder))
            peer = "the same without monai_attn"
            yield row(f"start of {name}", [START, str(config), folder], peer, [START, str(without), folder], rounds)


def row(what: str, ours: list[str], peer: str, theirs: list[str], rounds: int) -> measure.Row:
    modules = start(*ours), start(*theirs)  # also fills the caches of files
    times = measure.take_turns({"ours": lambda: start(*ours), "peer": lambda: start(*theirs)}, rounds, seconds)
    found = measure.time_row(f"{what} ({modules[0]} / {modules[1]} modules)", peer, times, "<= 1.05 x time")
    return found


if __name__ == "__main__":
    measure.main(rows)
