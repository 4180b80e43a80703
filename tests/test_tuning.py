"""Tuning: what may be mirrored, and that the tuned network is a copy which learns the kept labels."""

import numpy as np
import pytest
import torch
from torch import nn

from kdaudit.tuning import Kept, mirrors_harmlessly, tune

torch.set_num_threads(1)
CLASSES = 3


class Thirds(nn.Module):
    """Gives each image the class of its brightest third: left, middle, right, or another for each."""

    def __init__(self, order: tuple[int, int, int] = (0, 1, 2)) -> None:
        super().__init__()
        self.order = order
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [part.mean((1, 2, 3)) for part in x.split(4, dim=3)]
        return torch.stack([parts[i] for i in self.order], 1) * self.weight


def images(targets: np.ndarray) -> Kept:
    """Images whose third number `target` is bright; class 1 is in the middle."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (len(targets), 12, 12, 1), dtype=np.uint8)
    for picture, target in zip(pixels, targets, strict=True):
        picture[:, 4 * target : 4 * target + 4] += 100
    return Kept(pixels, targets, np.empty((0, 12, 12, 1), np.uint8), np.empty(0, np.int64))


@pytest.mark.parametrize(
    ("counts", "harmless"),
    [
        ((0, 300, 0), True),  # all in the middle: a mirror changes nothing
        ((100, 100, 100), False),  # two thirds change places
        ((12, 2000, 0), False),  # 0.99 of all stay right, and one class does not
        ((6, 2000, 0), True),  # too few to tell
    ],
)
def test_mirrored_views_are_used_where_no_class_changes(counts, harmless):
    targets = np.repeat(np.arange(CLASSES), counts)
    assert mirrors_harmlessly(Thirds().eval(), images(targets)) is harmless


def test_a_network_that_gets_nothing_right_says_nothing_about_mirrors():
    assert not mirrors_harmlessly(Thirds((1, 2, 0)).eval(), images(np.full(50, 1)))


def test_tuning_teaches_a_copy_the_kept_labels():
    kept = images(np.arange(1200) % CLASSES)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, CLASSES)).eval()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    tuned = tune(network, kept, epochs=20, seed=0, batch=64)
    assert all(torch.equal(before[name], weight) for name, weight in network.state_dict().items())
    assert (tuned.images, tuned.held_out) == (1140, 60)
    assert tuned.right > max(50, tuned.right_before)
