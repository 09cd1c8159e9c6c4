# SPDX-License-Identifier: Apache-2.0
"""Results that no change may change unless that is its purpose; ``tests/frozen/freeze.py`` says what they are."""

import base64
import zlib

import numpy as np
import pytest

from .frozen import freeze

NETWORKS, BUNDLE_NETWORKS = freeze.frozen("networks"), freeze.frozen("bundle_networks")
FILES, MASKS, KEYS = (freeze.frozen(name) for name in ("files", "masks", "keys"))


def assert_same_network(found: dict, expected: dict) -> None:
    assert {**found, "logits": None} == {**expected, "logits": None}
    if "logits" in expected:
        tolerance = 1e-5 * expected["logits"][1]  # of the standard deviation
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("call", NETWORKS)
def test_a_network_keeps_its_parameters_keys_and_logits(call):
    assert_same_network(freeze.network_values(call), NETWORKS[call])


@pytest.mark.parametrize("label", BUNDLE_NETWORKS)
def test_a_network_of_a_bundle_keeps_its_parameters_keys_and_logits(label):
    assert_same_network(freeze.bundle_network_values(label), BUNDLE_NETWORKS[label])


def voxels(values: dict) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(values["voxels"])), values["dtype"])


@pytest.mark.slow  # half a minute for all bundles
@pytest.mark.parametrize("label", FILES)
def test_a_bundle_writes_the_same_file(label):
    found, expected = freeze.file_values(label), FILES[label]
    assert {**found, "voxels": None} == {**expected, "voxels": None}
    if "voxels" in expected:
        assert (voxels(found) != voxels(expected)).mean() <= 1e-4


@pytest.mark.slow  # six segmentations
@pytest.mark.parametrize("bundle", MASKS)
def test_the_weights_of_a_bundle_give_the_same_masks(bundle, real_data):
    assert freeze.mask_values(bundle, real_data("hippocampus")) == MASKS[bundle]


@pytest.mark.parametrize("label", KEYS)
def test_a_configuration_keeps_its_plain_keys_and_their_values(label):
    found = freeze.key_values(label)
    assert KEYS[label].keys() <= found.keys()
    plain = {key: value for key, value in KEYS[label].items() if value != "$"}
    assert {key: found[key] for key in plain} == plain
