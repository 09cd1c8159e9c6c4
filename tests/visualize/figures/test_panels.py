# SPDX-License-Identifier: Apache-2.0
import torch

from monai_attn.visualize.figures import overlay, panels, save


def test_a_picture_has_the_same_bytes_each_time_and_any_title(tmp_path):
    image = torch.rand(1, 12, 10)
    figures = [overlay(image, {"truth": (image > 0.8).int()}, title="$\\evil{$") for _ in "ab"]
    paths = [save(figure, tmp_path / name / "$x.png") for figure, name in zip(figures, "ab")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["$x.png"]


def test_a_picture_of_noise_is_small_too(tmp_path):
    noise, block = torch.rand(1, 300, 300), torch.zeros(1, 300, 300)
    block[:, 100:200, 50:150] = 1
    path = save(overlay(noise, {"truth": block, "other": 2 * block}), tmp_path / "a.png")
    assert path.stat().st_size < 300_000
    assert len(set(panels.class_colors(27))) == 27
