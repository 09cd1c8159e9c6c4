# SPDX-License-Identifier: Apache-2.0
import os
import sys

import numpy as np
import pytest
import torch

from monai_attn.errors import ConfigError, DataError
from monai_attn.nets import FocusNet
from monai_attn.weights import load_keras_weights, load_pretrained

from ..conftest import count

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="keras is not installed")
absl_logging = pytest.importorskip("absl.logging", reason="keras is not installed")
h5py = pytest.importorskip("h5py", reason="h5py is not installed")
# pytest's own stream otherwise, which MONAI's set-up of the logging would close
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

CHANNELS = (16, 16, 32, 48, 64)


def conv(x, filters, size, stride=1, bias=True):
    return keras.layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=bias)(x)


def norm_relu(x):
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(x))


def residual(x, filters, stride=1):
    h = conv(norm_relu(x) if stride == 2 else x, filters, 3, stride)
    h = conv(norm_relu(h), filters, 3)
    if stride == 1 and x.shape[-1] == filters:
        return keras.layers.Add()([h, x])
    return keras.layers.Add()([h, conv(x, filters, 1, stride)])


def squeeze_excite(x):
    channels = x.shape[-1]
    squeezed = keras.layers.GlobalAveragePooling2D()(x)
    hidden = keras.layers.Dense(channels // 16, activation="relu", use_bias=False)(squeezed)
    excitation = keras.layers.Dense(channels, activation="sigmoid", use_bias=False)(hidden)
    return keras.layers.Multiply()([x, keras.layers.Reshape((1, 1, channels))(excitation)])


def up(x, filters):
    return keras.layers.ReLU()(conv(keras.layers.UpSampling2D(2)(x), filters, 2))


def joined(skip, x):
    return keras.layers.Concatenate()([skip, x])


def keras_focusnet(in_channels, variant, c=CHANNELS):
    """The table of the authors' code, written with Keras."""
    image = keras.Input((32, 48, in_channels))
    a1 = keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(conv(image, c[0], 3, bias=False))
    a1 = keras.layers.LeakyReLU(negative_slope=0.3)(a1)
    a2 = residual(residual(a1, c[0], 2), c[1])
    a3 = residual(residual(a2, c[1], 2), c[2])
    bottleneck = keras.layers.Dropout(0.2)(residual(residual(a3, c[2], 2), c[3]))
    g3 = residual(joined(a3, up(bottleneck, c[3])), c[3])
    g2 = residual(joined(a2, up(g3, c[2])), c[2])
    g1 = residual(joined(a1, up(g2, c[1])), c[1])

    x = norm_relu(conv(image, c[1], 7))
    skips = [x]
    for width, gate in ((c[1], g1), (c[2], g2), (c[3], g3), (c[4], None)):
        x = squeeze_excite(residual(x, width))
        if gate is not None:
            x = squeeze_excite(keras.layers.Multiply()([x, keras.layers.Activation("sigmoid")(gate)]))
        x = residual(x, width, 2)
        skips.append(x)
    skips.pop()
    decoded = []
    for width in (c[3], c[2], c[1]):
        x = residual(joined(skips.pop(), up(x, width)), width)
        decoded.append(x)
    x = residual(joined(skips.pop(), up(x, c[0])), c[0])
    x = residual(residual(x, c[0] // 2), c[0] // 8)
    logits = conv(x, 1, 1)
    if variant == "series":
        outputs = []
        for feature, factor in zip(decoded, (8, 4, 2)):
            hidden = keras.layers.ReLU()(conv(keras.layers.UpSampling2D(factor)(feature), 32, 3))
            outputs.append(keras.layers.Activation("sigmoid")(conv(hidden, 1, 1)))
        outputs.append(keras.layers.Activation("sigmoid")(logits))
        hidden = keras.layers.ReLU()(conv(keras.layers.Concatenate()(outputs), 32, 3))
        logits = conv(hidden, 1, 1)
    return keras.Model(image, logits)


@pytest.fixture(scope="module", params=["isbi2019", "series"])
def pair(request):
    """A Keras network with random weights and statistics, and an empty one of ours."""
    keras.utils.set_random_seed(0)
    theirs = keras_focusnet(3, request.param)
    rng = np.random.RandomState(0)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights(
                [rng.uniform(0.5, 1.5, shape), rng.randn(*shape) / 4, rng.randn(*shape) / 4, rng.uniform(0.5, 2, shape)]
            )
    return theirs, FocusNet(2, 3, 1, channels=CHANNELS, variant=request.param, padding="tf")


def layers_of(model):
    return {layer.name: layer.get_weights() for layer in model.layers if layer.get_weights()}


def test_our_network_with_the_weights_of_keras_gives_the_output_of_keras(pair):
    theirs, ours = pair
    load_keras_weights(ours, layers_of(theirs))
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.as_tensor(keras.ops.convert_to_numpy(theirs(x.movedim(1, -1), training=False)))
        output = ours.eval()(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(output, expected.movedim(-1, 1), atol=2e-6, rtol=1e-5)
    assert count(ours) == sum(int(np.prod(variable.shape)) for variable in theirs.trainable_variables)


def write_h5(path, layers, group=None):
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            names = [f"{name}/{index}:0" for index in range(len(arrays))]
            part = root.create_group(name)
            part.attrs["weight_names"] = [text.encode() for text in names]
            for text, array in zip(names, arrays):
                part[text] = array


def test_a_file_of_save_weights_or_save_gives_the_same_as_the_mapping(pair, tmp_path):
    theirs, ours = pair
    expected = {name: value.clone() for name, value in load_keras_weights(ours, layers_of(theirs)).state_dict().items()}
    for group, load in ((None, load_keras_weights), ("model_weights", load_pretrained)):
        write_h5(tmp_path / "focusnet.h5", {"input_1": [], **layers_of(theirs)}, group)
        for parameter in ours.parameters():
            torch.nn.init.zeros_(parameter)
        load(ours, tmp_path / "focusnet.h5")
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def test_a_mismatch_is_one_clear_error_and_changes_nothing(pair):
    theirs, ours = pair
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    whole, fourth = layers_of(theirs), [name for name in layers_of(theirs) if name.startswith("conv")][3]
    count = sum(name.startswith("conv") for name in whole)
    few = {name: arrays for name, arrays in whole.items() if name != fourth}
    narrow = [array[..., :-1] for array in whole[fourth]]
    for layers, problem in [
        (few, f"{count - 1} convolution layers, the network {count}"),
        ({**whole, fourth: narrow}, f"2 of another shape: {fourth}/0 \\("),
        ({**whole, "embedding_1": [np.zeros((3, 3))]}, "1 not of this network: embedding_1/0"),
    ]:
        with pytest.raises(DataError, match=problem):
            load_keras_weights(ours, layers)
        assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    other = FocusNet(2, 3, 1, channels=CHANNELS, variant="isbi2019" if ours.fusion else "series", padding="tf")
    with pytest.raises(DataError, match=r"(?s)convolution layers.*variant"):
        load_keras_weights(other, whole)


@pytest.mark.fault(97)
def test_a_file_that_is_not_of_keras_is_refused(tmp_path, monkeypatch):
    network = FocusNet(2, 3, 1, channels=(8, 16, 16), padding="tf")
    (tmp_path / "text.h5").write_text("weights")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["array"] = [1.0]
    for name in ("text.h5", "other.h5", "absent.h5"):
        with pytest.raises(DataError, match=name):
            load_keras_weights(network, tmp_path / name)
    with h5py.File(tmp_path / "lie.h5", "w") as file:  # 4 TB of which nothing is stored
        file.attrs["layer_names"] = ["conv2d"]
        file.create_group("conv2d").attrs["weight_names"] = ["kernel"]
        file["conv2d"].create_dataset("kernel", (10**12,), "f4", chunks=(1 << 20,))
    with pytest.raises(DataError, match="larger than what it stores"):
        load_keras_weights(network, tmp_path / "lie.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match='padding="tf"'):  # it pads symmetrically
        load_keras_weights(FocusNet(2, 3, 1, channels=(8, 16, 16)), {})
    with pytest.raises(ConfigError, match="pip install h5py"):
        load_keras_weights(network, tmp_path / "other.h5")
