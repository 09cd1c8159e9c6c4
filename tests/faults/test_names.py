# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import nibabel
import numpy as np
import pytest

from monai_attn.data import cases

from ..conftest import read_csv

fault = pytest.mark.fault


@fault(70)
def test_a_name_that_is_a_formula_or_a_command(lab):
    data = lab.dataset()
    listing = json.loads((data / "dataset.json").read_text())
    original = cases(data, "validation")[0]
    names = ["=HYPERLINK(1)", "<script>alert(1)<", "$\\frac{", "a,b\"c'"]
    listing["validation"] = []
    for name in names:
        item = {}
        for kind in ("image", "label"):
            item[kind] = f"{kind}s/{name.replace('/', '')}.nii.gz"
            shutil.copy(original[kind], data / item[kind])
        listing["validation"].append(item)
    (data / "dataset.json").write_text(json.dumps(listing))
    attempt = lab.evaluate(data).finished()
    for table in attempt.output.glob("*_raw.csv"):
        rows = read_csv(table)
        assert [row["filename"].removeprefix("'") for row in rows] == names
        assert not any(row["filename"].startswith(("=", "+", "-", "@")) for row in rows)
        assert all(np.isfinite(float(row["mean"])) for row in rows)
    assert len(list(attempt.output.glob("*_overlay.png"))) == len(names)
    segmented = lab.segment(data / "images").finished()
    found = [path for path in segmented.output.rglob("*_seg.nii.gz") if nibabel.load(path).shape]
    assert len(found) == 5 + len(names) + 1
    assert all(path.is_relative_to(segmented.output) for path in found)
