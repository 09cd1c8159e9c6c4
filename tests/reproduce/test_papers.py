# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from monai_attn.errors import ConfigError
from monai_attn.reproduce import TABLES, find_table
from monai_attn.reproduce.cells import _slug

WIDTHS = {"scse": 7 + 1, "focusnet": 2, "autofocus": 4, "egcnn": 2}


def test_every_table_of_every_paper_is_there():
    assert {paper: sum(table.paper == paper for table in TABLES) for paper in WIDTHS} == WIDTHS
    assert len({(table.paper, table.number) for table in TABLES}) == len(TABLES)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.paper} {table.number}")
def test_a_table_compares_rows_that_it_has_by_a_bundle_that_is_there(table, make_grid):
    names = [row.name for row in table.rows]
    assert len({_slug(name) for name in names}) == len(names)
    assert all(row.baseline in {*names, ""} for row in table.rows)
    for small in (False, True):
        make_grid(table=table, small=small)  # refuses bundles and entries that there are not


def counts(grid):
    return dict(grid.parameters)


def test_table_i_counts_as_the_paper_does(make_grid):
    found = counts(make_grid("scse", "I"))
    assert [found[name] for name in ("FC-DenseNet", "SD-Net", "U-Net")] == [3_200_674, 1_812_636, 2_154_972]
    for name, blocks in {"FC-DenseNet": 8, "SD-Net": 6, "U-Net": 8}.items():
        added = [found[f"{name} + {kind}"] - found[name] for kind in ("cSE", "sSE", "scSE")]
        assert added == [blocks * 4096, blocks * 64, blocks * 4160]


def test_table_3_of_autofocus_counts_as_the_authors_code_does_less_its_inert_biases(make_grid):
    found = counts(make_grid("autofocus", "3"))
    assert found.pop("DeepMedic") == 662_215
    inert = {"ASPP-c": 530, "ASPP-s": 890}
    assert {name: count + inert.get(name, 410) for name, count in found.items()} == {
        "Basic": 315_725, "ASPP-c": 478_435, "ASPP-s": 967_330, "AFN-1": 349_904, "AFN-2": 371_908, "AFN-3": 393_852,
        "AFN-4": 415_796, "AFN-5": 437_740, "AFN-6": 450_209,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("paper", "number", "row", "parameters"),
    [
        ("focusnet", "1", "FocusNet", 18_926_649),
        ("focusnet", "2", "FocusNet", 18_933_497),
        ("scse", "VII", "SD-Net, 4 encoders and decoders", 2_415_132),
        ("scse", "IV", "ReLayNet", 777_482),
        ("egcnn", "2", "Seg-Net + EG-CNN", 19_226_935),
    ],
)
def test_networks_are_those_of_the_paper_unless_small(paper, number, row, parameters, make_grid):
    assert counts(make_grid(paper, number))[row] == parameters
    assert counts(make_grid(paper, number, small=True))[row] < parameters / 5


@pytest.mark.parametrize(
    ("paper", "number", "expected"), [("unet", "1", "scse, focusnet, autofocus, egcnn"), ("focusnet", "III", "1, 2")]
)
def test_a_table_that_there_is_not_is_refused_with_those_that_there_are(paper, number, expected):
    with pytest.raises(ConfigError, match=f"give one of {expected}"):
        find_table(paper, number)
