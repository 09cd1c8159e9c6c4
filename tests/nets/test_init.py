# SPDX-License-Identifier: Apache-2.0
import inspect

import pytest

from monai_attn import nets

OTHERS = {"EGCNN", "AllOutputs"}  # they take a network


@pytest.mark.parametrize("name", sorted(set(nets.__all__) - OTHERS))
def test_a_network_takes_dimensions_and_channels_first_and_all_options_by_keyword(name):
    parameters = list(inspect.signature(getattr(nets, name)).parameters.values())
    assert [parameter.name for parameter in parameters[:3]] == ["spatial_dims", "in_channels", "out_channels"]
    assert {parameter.kind for parameter in parameters[3:]} == {inspect.Parameter.KEYWORD_ONLY}
