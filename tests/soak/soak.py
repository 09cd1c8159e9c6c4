# SPDX-License-Identifier: Apache-2.0
r"""Kill a training and an inference again and again, and see that nothing is lost: ``make soak``.

The quick-start bundle runs on its phantom by the commands that a user types, each in a process of its own, once
undisturbed and then with kills (SIGKILL to its whole process group, which nothing can catch). Every other kill comes at
a moment drawn from all that is still to be done; the rest when, after such a moment, a file of a kind that is drawn too
is being written. After a kill every file that is there must be whole and what it has to become; then the same command
goes on. A run that gets to its end must equal the undisturbed one: weights and optimizer bitwise, best metric, curves,
results, pictures, and no file more or less. Where kills are left then, another run begins in a fresh folder. What is
drawn depends on the seed, what it hits on the machine as well.

Run it as a script; it ends with exit code 1 if anything was lost::

    OMP_NUM_THREADS=1 python tests/soak/soak.py --kills 50 --seed 0
"""

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from lost import damaged, drafts, lost, names

from monai_attn.data.phantom import make_phantom
from monai_attn.weights.checkpoint import read_tensors

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_scse_segmentation"
CASES, EPOCHS = 12, 10
# as little work as can be interrupted at many places
SMALL = {"bundle_root": BUNDLE, "device": "cpu", "network_def#features": 4}
TOO_LONG = 600.0


class Stage(NamedTuple):
    """A command that is killed and given again."""

    name: str  # of the configuration
    overrides: dict[str, Any]  # the same in each run
    steps: int  # epochs or cases
    done: Callable[[Path], int]  # how many of them are finished, from the run's folder
    files: tuple[str, ...]  # endings of what it writes

    def start(self, folder: Path) -> subprocess.Popen:
        """Give the command; what it prints goes to a file beside the folder."""
        overrides = {**SMALL, **self.overrides, "output_dir": folder}
        command = ["-m", "monai.bundle", "run", "--config_file", BUNDLE / "configs" / f"{self.name}.json"]
        command += [text for key, value in overrides.items() for text in (f"--{key}", value)]
        command += ["--ckpt_dir", folder] if self.name == "train" else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with folder.with_suffix(".txt").open("a") as screen:
            return subprocess.Popen(
                [sys.executable, *map(str, command)],
                env=environment, stdout=screen, stderr=screen, start_new_session=True,
            )  # fmt: skip


class Run(NamedTuple):
    """How a run ended: its exit code, the seconds of its start-up and of all of it, and what it was doing."""

    code: int
    start_up: float
    seconds: float
    doing: str


def run(stage: Stage, folder: Path, moment: float = math.inf, ending: str = "") -> Run:
    """Run a stage to its end, or kill it after so many seconds, when a file of this ending is being written."""
    since, begun, start_up = time.time(), time.perf_counter(), math.inf
    manifest, earlier = folder / f"{stage.name}_run.json", drafts(folder)
    process = stage.start(folder)
    try:
        while process.poll() is None:
            seconds = time.perf_counter() - begun
            if seconds > TOO_LONG:
                raise SystemExit(f"{stage.name} does not end, see {folder.with_suffix('.txt')}")
            if start_up == math.inf and manifest.exists() and manifest.stat().st_mtime >= since:
                start_up = seconds  # a run begins its own work with its manifest
            if seconds >= moment and (not ending or any(name.endswith(ending) for name in drafts(folder) - earlier)):
                break
            time.sleep(0.0002 if ending else 0.002)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it and all that it started share a group
        process.wait()
    at_work = "start-up" if start_up == math.inf else "work"
    return Run(process.returncode, start_up, time.perf_counter() - begun, f"writing {ending}" if ending else at_work)


def training(data: Path) -> Stage:
    """Return the training of the bundle."""

    def epochs(folder: Path) -> int:
        latest = folder / "checkpoint_latest.pt"
        return read_tensors(latest)["trainer"]["epoch"] if latest.exists() else 0

    few = {"slices_per_volume": 1, "batch_size": 5, "epochs": EPOCHS, "val_interval": 1}
    files = ("train_run.json", "model.pt", "checkpoint_latest.pt", "curves.csv", "curves.png", "model_final.pt")
    return Stage("train", {**few, "dataset_dir": data, "resume": "auto"}, EPOCHS, epochs, files)


def inference(data: Path, weights: Path) -> Stage:
    """Return the inference of the bundle."""

    def cases(folder: Path) -> int:
        return sum(name.endswith("_seg.nii.gz") for name in names(folder))

    overrides = {"dataset_dir": data, "input": data / "images", "checkpoint": weights}
    return Stage("inference", overrides, CASES, cases, ("_seg.nii.gz", "_overlay.png", "inference_run.json"))


class Soak:
    """Kills of stages, and what they did."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place = place
        self.random = Random(seed)
        self.kills: Counter[tuple[str, str]] = Counter()
        self.cut_off = self.rounds = 0
        self.problems: list[str] = []

    def undisturbed(self, stage: Stage) -> tuple[Path, Run]:
        """Run a stage to its end."""
        folder = self.place / stage.name
        reference = run(stage, folder)
        if reference.code:
            raise SystemExit(folder.with_suffix(".txt").read_text())
        return folder, reference

    def kill(self, stage: Stage, whole: Path, reference: Run, kills: int) -> Path:
        """Kill a stage so many times and let it end after that; return the folder of the run that ended last."""
        until = self.kills.total() + kills
        while True:
            self.rounds += 1
            folder = self.place / f"{stage.name}_{self.rounds}"
            self._run_one(stage, folder, whole, reference, until)
            if self.kills.total() == until:
                return folder

    def _run_one(self, stage: Stage, folder: Path, whole: Path, reference: Run, until: int) -> None:
        """One run, killed as long as something is to be done and kills are left."""
        done = 0
        while True:
            left = until - self.kills.total() if done < stage.steps else 0
            work = (reference.seconds - reference.start_up) * (1 - done / stage.steps)
            moment = self.random.uniform(0, reference.start_up + work) if left else math.inf
            before, unfinished = names(folder), drafts(folder)
            ended = run(stage, folder, moment, self.random.choice(stage.files) if left % 2 else "")
            if ended.code != -signal.SIGKILL:
                print(f"    {stage.name} ended and is compared with the undisturbed one", flush=True)
                self._note(folder, [f"exit code {ended.code}"] if ended.code else [])
                self._note(folder, lost(folder, whole))
                return
            self.kills[stage.name, ended.doing] += 1
            found = damaged(folder, whole) + [f"{name}: it was there before" for name in before - names(folder)]
            earlier, done = done, done if found else stage.done(folder)  # a damaged file does not tell
            found += [f"{done} of {stage.steps} done, {earlier} before"] if done < earlier else []
            cut = sorted(drafts(folder) - unfinished)
            self.cut_off += bool(cut)
            line = f"{self.kills.total():3} {stage.name:9} {ended.seconds:5.1f} s  {ended.doing:28} {done:2} done"
            print(line, *(f"cut off: {name}" for name in cut), flush=True)
            self._note(folder, found)

    def _note(self, folder: Path, problems: list[str]) -> None:
        for problem in problems:
            self.problems.append(f"{folder / problem}, kill {self.kills.total()}")
            print(f"    LOST {problem}", flush=True)

    def table(self, seconds: float) -> str:
        """Return the kills by what was going on, as text."""
        lines = [f"{stage:9} {doing:28} {count:3} kills" for (stage, doing), count in sorted(self.kills.items())]
        lines += [f"{'in all':38} {self.kills.total():3} kills in {self.rounds} runs and {seconds:.0f} s"]
        lines += [f"{self.cut_off} kills cut off a file that was being written; {len(self.problems)} losses"]
        return "\n".join([*lines, *self.problems])


def main(kills: int, seed: int) -> int:
    """Make the data, the undisturbed runs and the kills; return the exit code."""
    begun = time.perf_counter()
    soak = Soak(Path(tempfile.mkdtemp(prefix="soak_")), seed)
    data = make_phantom(BUNDLE.name, soak.place / "data", cases=CASES)
    print(f"{kills} kills, seed {seed}, in {soak.place}", flush=True)
    train = training(data)
    whole, reference = soak.undisturbed(train)
    trained = soak.kill(train, whole, reference, kills - kills // 2)
    segmented = soak.undisturbed(inference(data, whole / "model.pt"))
    soak.kill(inference(data, trained / "model.pt"), *segmented, kills // 2)
    print(soak.table(time.perf_counter() - begun))
    if not soak.problems:
        shutil.rmtree(soak.place)
    return bool(soak.problems)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills, half of them in each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (%(default)s)")
    arguments = parser.parse_args()
    sys.exit(main(arguments.kills, arguments.seed))
