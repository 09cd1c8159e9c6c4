# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from functools import partial

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.transforms import Compose, Lambda, RandFlipd, Spacingd
from torch import nn

from monai_attn.handlers.settings import describe, differences, digest
from monai_attn.nets import SCSEUNet


def test_two_objects_of_the_same_settings_are_described_alike():
    def parts(roi=32, weight=1.0):
        steps = Compose([Spacingd("image", (1, 1, 2)), RandFlipd("image", prob=0.5)])
        return [steps, SlidingWindowInferer(roi, device="cpu"), DiceCELoss(weight=torch.tensor([1.0, weight]))]

    assert describe(parts()) == describe(parts())
    assert differences(describe(parts()), describe(parts(roi=48))).startswith("1.roi_size 32, now 48")
    assert differences(describe(parts()), describe(parts(weight=2.0)))


def scaled(factor):
    return lambda x: x * factor


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (Lambda(lambda x: x + 1), Lambda(lambda x: x * 2)),
        (lambda x: x.amin(), lambda x: x.amax()),
        (lambda x, by=1: x, lambda x, by=2: x),
        (scaled(2), scaled(3)),
        (partial(pow, 2), partial(pow, 3)),
        ({1, 2}, {1, 3}),
    ],
)
def test_a_function_without_a_name_of_its_own_is_known_by_its_content(first, other):
    assert describe(first) != describe(other)


def test_a_function_is_described_alike_in_every_process():
    text = "lambda x: [y for y in x if y in {'a', 'b', 'c', 'd'}]"
    code = f"from monai_attn.handlers.settings import *; print(describe(eval({text!r})))"
    outputs = [subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)]
    assert outputs[0] == outputs[1] != ""
    assert " at 0x" not in outputs[0]


def test_a_network_is_known_by_its_layers_and_not_by_its_weights():
    def network(**options):
        return SCSEUNet(2, 1, 2, features=4, **options)

    first, second = network(se="scse"), network(se="scse")
    nn.init.zeros_(next(second.parameters()))
    assert digest(describe(first)) == digest(describe(second.eval()))
    other = network(se=("scse", {"aggregation": "add"}))
    assert digest(describe(first)) != digest(describe(other))


def test_what_refers_to_itself_ends_and_devices_do_not_count():
    class Part:
        def __init__(self, device):
            self.own, self.device, self.rate, self._hidden = self, torch.device(device), 0.5, object()

    settings = describe(Part("cpu"), "part")
    assert settings.pop("part").endswith("Part")
    assert settings == {"part.rate": "0.5"}
    assert differences({"a": "1", "b": "2"}, {"a": "1", "c": "3"}) == "b 2, now (none); c (none), now 3"
