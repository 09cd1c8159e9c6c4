# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import torch
from ignite.engine import Engine

from monai_attn.handlers import EpochProgressBar, training_loss


class Terminal:
    """Stands in for a terminal and keeps what is drawn on it."""

    def __init__(self, interactive: bool) -> None:
        self.interactive, self.text = interactive, ""

    def isatty(self) -> bool:
        return self.interactive

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def draw(monkeypatch, interactive: bool, **options) -> str:
    terminal = Terminal(interactive)
    monkeypatch.setattr(sys, "stderr", terminal)
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(0.25)})
    EpochProgressBar(**options).attach(engine)
    engine.run([1, 2, 3], max_epochs=2)
    return terminal.text


def test_the_bar_shows_epoch_and_loss_on_a_terminal(monkeypatch):
    text = draw(monkeypatch, interactive=True)
    assert "[2/2]" in text
    assert "loss=0.25" in text


def test_the_bar_needs_no_loss(monkeypatch):
    text = draw(monkeypatch, interactive=True, show_loss=False)
    assert "loss" not in text
    assert "[2/3]" in text


def test_the_bar_is_silent_where_there_is_no_terminal(monkeypatch):
    assert draw(monkeypatch, interactive=False) == ""


def test_the_training_loss_is_a_number_without_a_graph():
    loss = training_loss({"loss": torch.ones(1, requires_grad=True).sum()})
    assert type(loss) is float
    assert loss == 1.0
