"""A plain classifier, which says how sure it is that an image is of the class it was made for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipray.data.labelled import Labelled
from lipray.train.augment import augment

BATCH = 64
CHUNK = 1000  # images judged together
RATE = 3e-3
WEIGHT_DECAY = 1e-2


def train_judge(data: Labelled, *, epochs: int = 40, policy: str = "none", seed: int = 0) -> nn.Module:
    """A small convolutional network, trained by cross-entropy on the images given and on nothing generated.

    Args:
        data: labelled images, (channels, height, width) with even sides.
        epochs: how often it sees them.
        policy: augmentation (:mod:`lipray.train.augment`).
        seed: of its weights, the order and the augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels, height, width = data.shape
        network = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * ((height + 1) // 2) * ((width + 1) // 2), 64),
            nn.ReLU(),
            nn.Linear(64, data.classes),
        )
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        order = torch.randperm(len(y), generator=generator)
        for rows in torch.split(order, BATCH):
            optimiser.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(network(augment(x[rows], policy, generator)), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def probabilities(judge: nn.Module, x: Tensor) -> Tensor:
    """The probability that the judge gives each class of each image: (N, classes)."""
    return torch.cat([judge(x[start : start + CHUNK]).softmax(1) for start in range(0, len(x), CHUNK)])
