"""Orders of epochs: the ratio, the same for any number of workers, and what is refused."""

import numpy as np
import pytest

from lipray.errors import TrainingError
from lipray.train.mixing import epoch_order, worker_order


def order(real=100, generated=1000, batch=16, seed=0, epoch=0, ratio=(1, 3)):
    return epoch_order(real, generated, batch=batch, seed=seed, epoch=epoch, ratio=ratio)


def test_every_batch_has_the_ratio_and_every_real_example_comes_once():
    taken = order()
    assert taken.shape == (25, 16)
    assert ((taken < 100).sum(axis=1) == 4).all()
    assert sorted(taken[taken < 100]) == list(range(100))
    generated = taken[taken >= 100]
    assert len(set(generated)) == len(generated) == 300
    assert generated.max() < 1100


def test_few_generated_examples_are_all_taken_before_any_comes_again():
    taken = order(generated=70)
    times = np.bincount(taken[taken >= 100] - 100, minlength=70)
    assert times.min() >= 4
    assert times.max() <= 5


def test_without_generated_examples_a_batch_is_real():
    taken = order(generated=0)
    assert taken.shape == (6, 16)
    assert len(set(taken.ravel())) == 96
    assert order(generated=50, ratio=(1, 0)).max() < 100


def test_it_repeats_and_epochs_and_seeds_differ():
    np.testing.assert_array_equal(order(), order())
    assert not np.array_equal(order(), order(epoch=1))
    assert not np.array_equal(order(), order(seed=1))
    assert not np.array_equal(order(seed=1), order(epoch=1))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_workers_share_out_the_same_batches(world):
    whole = order()
    parts = [worker_order(whole, rank, world) for rank in range(world)]
    assert {part.shape for part in parts} == {(25, 16 // world)}
    np.testing.assert_array_equal(np.sort(np.concatenate(parts, axis=1)), np.sort(whole))
    if world <= 4:  # as many real ones for each
        assert all(((part < 100).sum(axis=1) == 4 // world).all() for part in parts)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"real": 3}, "takes 4 real examples, of which there are 3"),
        ({"batch": 0}, "no batch"),
        ({"ratio": (-1, 3)}, "no batch"),
        ({"ratio": (0, 0)}, "no batch"),
        ({"ratio": (1, 99)}, "no real example"),
        ({"ratio": (0, 1)}, "no real example"),
    ],
)
def test_what_is_refused(change, why):
    with pytest.raises(TrainingError, match=why):
        order(**change)


def test_batches_that_cannot_be_shared_out():
    with pytest.raises(TrainingError, match="16 examples cannot be shared out evenly among 3"):
        worker_order(order(), 0, 3)
    with pytest.raises(TrainingError, match="number 2 of 2"):
        worker_order(order(), 2, 2)
