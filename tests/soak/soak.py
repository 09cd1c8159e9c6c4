# SPDX-License-Identifier: Apache-2.0
r"""Kill a training and an inference again and again, and see that nothing is lost: ``make soak``.

The quick-start bundle runs on its phantom by the commands that a user types, each in a process of its own, once
undisturbed and then with kills (SIGKILL to its whole process group, which nothing can catch). Every other kill comes at
a moment drawn from all that is still to be done, with the start-up or without; the rest when, after such a moment, a
file is being written, of a kind that is drawn too. After a kill every file that is there must be whole and what it has
to become; then the same command goes on. A run that gets to its end must equal the undisturbed one: weights and
optimiser bitwise, best metric, curves, results, pictures, and no file more or less. Where kills are left then, another
run begins in a fresh folder. What is drawn depends on the seed, what it hits on the machine as well.

Run it as a script; it ends with exit code 1 if anything was lost::

    OMP_NUM_THREADS=1 python tests/soak/soak.py --kills 50 --seed 0
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from lost import damaged, drafts, lost, names

from monai_attn.data.phantom import make_phantom
from monai_attn.weights.files import read_tensors

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_scse_segmentation"
CASES, EPOCHS = 12, 10
# as little work as can be interrupted at many places
SMALL = {"bundle_root": BUNDLE, "device": "cpu", "network_def#features": 4}
_TOO_LONG = 600.0


class Stage(NamedTuple):
    """A command that is killed and given again.

    Args:
        name: what it does.
        config: name of the configuration.
        overrides: entries that are the same in each run.
        steps: number of epochs or cases.
        done: tells how many of them are finished, from the run's folder.
        files: endings of the files that it writes.
    """

    name: str
    config: str
    overrides: dict[str, Any]
    steps: int
    done: Callable[[Path], int]
    files: tuple[str, ...]

    def start(self, folder: Path) -> subprocess.Popen:
        """Give the command; what it prints goes to a file beside the folder."""
        overrides = {**SMALL, **self.overrides, "output_dir": folder}
        if self.config == "train":
            overrides["ckpt_dir"] = folder
        config = BUNDLE / "configs" / f"{self.config}.json"
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config]
        command += [text for key, value in overrides.items() for text in (f"--{key}", value)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with screen_of(folder).open("a") as screen:
            return subprocess.Popen(
                [str(part) for part in command], env=environment, stdout=screen, stderr=screen, start_new_session=True
            )

    def has_begun(self, folder: Path, since: float) -> bool:
        """Whether the command has got to its own work, which it begins with its manifest."""
        manifest = folder / f"{self.config}_run.json"
        return manifest.exists() and manifest.stat().st_mtime >= since

    def doing(self, folder: Path, since: float) -> str:
        """What the command is at."""
        if not self.has_begun(folder, since):
            return "start-up"
        return "ending" if self.done(folder) == self.steps else "cases" if self.config == "inference" else "epochs"


class Reference(NamedTuple):
    """The undisturbed run: its folder, and how many seconds the start-up and all of it took."""

    folder: Path
    start_up: float
    seconds: float


class Plan(NamedTuple):
    """When to kill.

    Args:
        moment: after so many seconds.
        at_work: whether they count from where the start-up is over.
        file: ending of a file; the kill waits until one is being written.
    """

    moment: float
    at_work: bool = False
    file: str = ""

    def fits(self, being_written: set[str]) -> bool:
        """Whether such a file is being written, if that is to be waited for."""
        return not self.file or any(name.endswith(self.file) for name in being_written)


def training(data: Path) -> Stage:
    """The training of the bundle."""

    def epochs(folder: Path) -> int:
        latest = folder / "checkpoint_latest.pt"
        return read_tensors(latest)["trainer"]["epoch"] if latest.exists() else 0

    few = {"slices_per_volume": 1, "batch_size": 5, "epochs": EPOCHS, "val_interval": 1}
    files = ("train_run.json", "model.pt", "checkpoint_latest.pt", "curves.csv", "curves.png", "model_final.pt")
    return Stage("training", "train", {**few, "dataset_dir": data, "resume": "auto"}, EPOCHS, epochs, files)


def inference(data: Path, weights: Path) -> Stage:
    """The inference of the bundle."""

    def cases(folder: Path) -> int:
        return sum(name.endswith("_seg.nii.gz") for name in names(folder))

    overrides = {"dataset_dir": data, "input": data / "images", "checkpoint": weights}
    files = ("_seg.nii.gz", "_overlay.png", "inference_run.json")
    return Stage("inference", "inference", overrides, CASES, cases, files)


def run_through(stage: Stage, folder: Path) -> Reference:
    """Run a stage undisturbed."""
    since, begun, start_up = time.time(), time.perf_counter(), 0.0
    with running(stage, folder) as process:
        while process.poll() is None:
            if not start_up and stage.has_begun(folder, since):
                start_up = time.perf_counter() - begun
            time.sleep(0.002)
    if process.returncode:
        raise SystemExit(screen_of(folder).read_text())
    return Reference(folder, start_up, time.perf_counter() - begun)


def run_until(stage: Stage, folder: Path, plan: Plan) -> tuple[str, float] | int:
    """Run a stage until it is killed: what it was doing, and after how many seconds; or its exit code, if it ended."""
    since, begun = time.time(), time.perf_counter()
    counted_from = math.inf if plan.at_work else begun
    earlier = drafts(folder)
    with running(stage, folder) as process:
        while process.poll() is None:
            now = time.perf_counter()
            if now < counted_from and stage.has_begun(folder, since):
                counted_from = now
            if now - counted_from >= plan.moment and plan.fits(drafts(folder) - earlier):
                kill(process)
                if process.returncode != -signal.SIGKILL:
                    break  # it ended by itself in the meantime
                return f"writing {plan.file.lstrip('_')}" if plan.file else stage.doing(folder, since), now - begun
            if now - begun > _TOO_LONG:
                raise SystemExit(f"{stage.name} does not end, see {screen_of(folder)}")
            time.sleep(0.0002 if plan.file else 0.002)
    return process.returncode


@contextmanager
def running(stage: Stage, folder: Path) -> Iterator[subprocess.Popen]:
    """A stage that has been started, and is no more behind the block."""
    process = stage.start(folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all that it started, which share its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def screen_of(folder: Path) -> Path:
    """What the runs in a folder print."""
    return folder.with_suffix(".txt")


def draw(random: Random, stage: Stage, reference: Reference, to_do: float, at_a_file: bool) -> Plan:
    """A moment in all that is still to be done, or, every other time, in what comes after the start-up."""
    at_work = random.random() < 0.5
    work = (reference.seconds - reference.start_up) * to_do
    moment = random.uniform(0, work if at_work else reference.start_up + work)
    return Plan(moment, at_work, random.choice(stage.files) if at_a_file else "")


class Soak:
    """Kills of a stage, and what they did."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place = place
        self.random = Random(seed)
        self.pace = 1.0
        self.kills: Counter[tuple[str, str]] = Counter()
        self.cut_off = self.rounds = 0
        self.problems: list[str] = []

    def run(self, stage: Stage, reference: Reference, kills: int) -> Path:
        """Kill a stage so many times, and let it end after that; returns the folder of the run that ended last."""
        until = self.kills.total() + kills
        while True:
            self.rounds += 1
            folder = self.place / f"{stage.name}_{self.rounds}"
            self._run_one(stage, reference, folder, until)
            if self.kills.total() == until:
                return folder

    def _run_one(self, stage: Stage, reference: Reference, folder: Path, until: int) -> None:
        """One run, killed as long as something is to be done and kills are left."""
        present, unfinished, done = set[str](), set[str](), 0
        while True:
            left = until - self.kills.total() if done < stage.steps else 0
            to_do = self.pace * (1 - done / stage.steps)
            plan = draw(self.random, stage, reference, to_do, left % 2 == 0) if left else Plan(math.inf)
            ended = run_until(stage, folder, plan)
            if isinstance(ended, int):
                print(f"    {stage.name} ended and is compared with the undisturbed one", flush=True)
                if left:  # the end came before the kill: the machine has less else to do than in the reference
                    self.pace *= 0.8
                found = [f"exit code {ended}, see {screen_of(folder)}"] if ended else []
                self._note(stage, folder, [*found, *lost(folder, reference.folder)])
                return
            doing, seconds = ended
            self.pace = min(self.pace * 1.1, 1)
            self.kills[stage.name, doing] += 1
            found = damaged(folder, reference.folder)
            found += [f"{name}: it was there before" for name in sorted(present - names(folder))]
            before, done = done, done if found else stage.done(folder)  # a damaged file does not tell
            found += [f"{done} of {stage.steps} done, {before} before"] if done < before else []
            cut = sorted(drafts(folder) - unfinished)
            present, unfinished = names(folder), drafts(folder)
            self.cut_off += bool(cut)
            print(
                f"{self.kills.total():3} {stage.name:9} {seconds:5.1f} s  {doing:28} {done:2} of {stage.steps} done, "
                f"{len(present):2} files{', cut off: ' if cut else ''}{' '.join(cut)}",
                flush=True,
            )
            self._note(stage, folder, found)

    def _note(self, stage: Stage, folder: Path, problems: list[str]) -> None:
        for problem in problems:
            self.problems.append(f"{stage.name}, kill {self.kills.total()}, {folder / problem}")
            print(f"    LOST {problem}", flush=True)

    def table(self, seconds: float) -> str:
        """The kills by what was going on."""
        lines = [f"{stage:9} {doing:28} {count:3} kills" for (stage, doing), count in sorted(self.kills.items())]
        lines += [f"{'in all':38} {self.kills.total():3} kills in {self.rounds} runs and {seconds:.0f} s"]
        lines += [f"{self.cut_off} kills cut off a file that was being written; {len(self.problems)} losses"]
        return "\n".join([*lines, *self.problems])


def main(kills: int, seed: int) -> int:
    """Make the data, the undisturbed runs and the kills; returns the exit code."""
    begun = time.perf_counter()
    place = Path(tempfile.mkdtemp(prefix="soak_"))
    data = make_phantom(BUNDLE.name, place / "data", cases=CASES)
    print(f"{kills} kills, seed {seed}, in {place}", flush=True)

    soak = Soak(place, seed)
    train = training(data)
    whole = run_through(train, place / "training")
    trained = soak.run(train, whole, kills - kills // 2)
    segmented = run_through(inference(data, whole.folder / "model.pt"), place / "inference")
    soak.run(inference(data, trained / "model.pt"), segmented, kills // 2)

    print(soak.table(time.perf_counter() - begun))
    if soak.problems:
        return 1
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills, half of them in each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (%(default)s)")
    arguments = parser.parse_args()
    sys.exit(main(arguments.kills, arguments.seed))
