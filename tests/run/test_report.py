# SPDX-License-Identifier: Apache-2.0
import json
import logging
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import from_engine
from PIL import Image
from tqdm import tqdm

from monai_attn.errors import Failure
from monai_attn.handlers import MeanDiceOrNaN
from monai_attn.run import report

from ..conftest import Terminal, read_csv, refused

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def save(path, values, spacing=2.0):
    path.parent.mkdir(exist_ok=True, parents=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(values, np.uint8), np.diag([spacing] * 3 + [1])), path)


def record(case, warnings=(), unit="ml", seconds=1.0, **values):
    return {"case": case, "unit": unit, "values": values, "warnings": list(warnings), "seconds": seconds}


def test_a_table_holds_what_all_runs_have_left_and_measures_masks_without_a_record(tmp_path):
    mask = np.zeros((5, 5, 5))
    mask[1:4, 1:4, 1] = 2
    save(tmp_path / "a" / "t1_seg.nii.gz", mask)
    report._save(tmp_path / "cases", record("a/t1", liver=9.0, tumor=3.0))
    save(tmp_path / "=b_seg.nii.gz", mask)  # its run was killed
    save(tmp_path / ".partial-1-c_seg.nii.gz", mask)
    report.write_table(tmp_path, tmp_path / "volumes.csv")
    rows = read_csv(tmp_path / "volumes.csv")
    assert [list(row.values()) for row in rows] == [
        ["'=b", "0.0", "0.072", "", ""],
        ["a/t1", "9.0", "3.0", "1.0", ""],
    ]
    assert list(rows[0]) == ["case", "liver (ml)", "tumor (ml)", "seconds", "warnings"]
    save(tmp_path / "a" / "t1_seg.nii.gz", mask * 0)  # somebody has edited it
    assert report.read_cases(tmp_path)[1]["warnings"] == ["the mask is empty"]
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", report.write_table, tmp_path / "none", tmp_path / "volumes.csv")


def test_what_was_said_of_an_image_is_kept_with_its_case(tmp_path):
    meta = {"filename_or_obj": "/in/a.nii.gz", "saved_to": str(tmp_path / "a_seg.nii.gz")}
    output = [{"pred": MetaTensor(torch.ones(1, 4, 4, 4), meta=meta)}]
    engine = SimpleNamespace(state=SimpleNamespace(dataloader=None, output=output))
    reporter = report.CaseReport(tmp_path, "segment")
    reporter.begin(engine)
    for file in ("/in/a.nii.gz", "/in/a.nii.gz.nii", "/in/b.nii.gz"):
        logging.getLogger("monai_attn.transforms").warning("%s: it has no contrast", file)
    reporter(engine)
    reporter.end()
    warnings = json.loads((tmp_path / "cases" / "a.json").read_text())["warnings"]
    assert [text for text in warnings if "contrast" in text] == ["it has no contrast"]
    assert reporter.said not in logging.getLogger("monai_attn").handlers


def test_each_case_of_a_batch_has_its_own_score(tmp_path):
    label = torch.zeros(1, 4, 4)
    label[:, :2] = 1
    outputs = [
        {"pred": MetaTensor(pred, meta={"filename_or_obj": f"/in/{name}.png"}), "label": label}
        for name, pred in (("right", label), ("wrong", 1 - label))
    ]
    evaluator = Engine(lambda engine, batch: outputs)
    evaluator.state.key_metric_name = "val_mean_dice"
    MeanDiceOrNaN(output_transform=from_engine(["pred", "label"])).attach(evaluator, "val_mean_dice")
    reporter = report.CaseReport(tmp_path, "scores", structures=["liver"])
    evaluator.add_event_handler(Events.STARTED, reporter.begin)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, reporter)
    evaluator.run([None])
    found = [json.loads((tmp_path / f"scores/{name}.json").read_text()) for name in ("right", "wrong")]
    assert [case["values"] for case in found] == [{"liver": 1.0}, {"liver": 0.0}]


def test_a_picture_is_measured_in_pixels_whatever_value_marks_its_structure(tmp_path):
    Image.fromarray(np.pad(np.full((2, 3), 255, np.uint8), 1)).save(tmp_path / "a_seg.png")
    (found,) = report.read_cases(tmp_path, ["lesion"])
    assert (found["unit"], found["values"]) == ("pixels", {"lesion": 6})


CASES = [
    *(record(f"usual_{number}", liver=100.0 + number) for number in range(5)),
    record("large", liver=150.0),
    record("<script>alert(1)</script> ü", ["at the border of the image: liver"], liver=102.0),
]


def page(folder, cases=CASES, failures=()):
    for name in ("large_seg.nii.gz", "large_overlay.png", "large_attention.png"):
        (folder / name).touch()
    cases = [{**case, "mask": f"{case['case']}_seg.nii.gz"} for case in cases]
    report.write_page(folder / "report.html", "segment: <liver>", cases, failures)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_a_page_begins_with_what_needs_a_look(tmp_path):
    failure = Failure("b&b.nii", "it is empty", "copy it again")
    text = page(tmp_path, failures=[failure])
    names = re.findall(r"<tr><th scope=\"row\"><span>(.*?)</span>", text)
    assert names == ["&lt;script&gt;alert(1)&lt;/script&gt; ü", "large", *(f"usual_{number}" for number in range(5))]
    assert "<liver>" not in text
    assert "<li>cannot use b&amp;b.nii\n" in text
    assert re.findall(r'href="(.*?)"', text) == ["large_overlay.png", "large_seg.nii.gz", "large_attention.png"]
    assert text.count("number odd") == text.count("unusual volume of liver") == 1

    scored = [record(str(dice), unit="Dice", liver=dice) for dice in (0.9, 0.2, 0.5)]
    assert re.findall(r"<span>(.*?)</span>", page(tmp_path, scored)) == ["0.2", "0.5", "0.9"]
    assert 'data-value="nan">-<' in page(tmp_path, [record("a", liver=math.nan)])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium or google-chrome")
def test_a_browser_sorts_the_page_by_a_column(tmp_path):
    cases = [record(name, liver=value) for name, value in (("b", 9.0), ("c", 10.0), ("a", math.nan))]
    text = page(tmp_path, cases)

    def shown(clicks):
        script = "".join(f"heads[{index}].firstChild.click();" for index in clicks)
        (tmp_path / "clicked.html").write_text(text.replace("</body>", f"<script>{script}</script></body>"))
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", str(tmp_path / "clicked.html")]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
        return re.findall(r"<span>(.*?)</span>", found), re.findall(r'aria-sort="(\w+)"', found)

    assert shown([2]) == (["b", "c", "a"], ["ascending"])
    assert shown([2, 2]) == (["c", "b", "a"], ["descending"])
    assert shown([2, 0]) == (["a", "b", "c"], ["ascending"])


def test_lines_stand_above_the_bars_and_metrics_and_traces_only_in_the_log(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    console = logging.StreamHandler(screen)
    logging.getLogger().addHandler(console)
    try:
        with report.tidy_screen(), tqdm(total=2, file=screen, ncols=40) as bar:
            bar.update()
            logging.getLogger("monai_attn.progress").info("epoch 1")
            logging.getLogger("monai_attn.progress").debug("for the log")
            logging.getLogger("a").warning("odd")
            logging.getLogger("a").error("failed", exc_info=ValueError("trace"))
        logging.getLogger("a").warning("as before")
    finally:
        logging.getLogger().removeHandler(console)
    text = screen.getvalue()
    for line in ("epoch 1\n", "odd\n"):
        assert re.search(rf"\r *\r{line}\r *50%", text)
    assert "log" not in text
    assert "trace" not in text
    assert text.endswith("as before\n")
