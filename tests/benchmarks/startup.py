# SPDX-License-Identifier: Apache-2.0
"""What ``import monai_attn`` adds to ``import monai``, in processor seconds of fresh processes."""

import resource
import subprocess
import sys
from collections.abc import Iterator

import measure


def start(code: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def seconds_of_children(way: measure.Way) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    way()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows(rounds: int = 3) -> Iterator[measure.Row]:
    ways = [lambda code=code: start(code) for code in ("import monai, monai_attn", "import monai")]
    times = measure.take_turns(*ways, rounds + 1, seconds_of_children)
    # the first round fills the caches of files
    yield measure.ratio_row("import monai_attn", "import monai", "<= 1.05 x time", *(found[1:] for found in times))


if __name__ == "__main__":
    measure.main(rows)
