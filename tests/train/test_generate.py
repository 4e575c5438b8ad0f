"""The small flow: shapes, repetition, a loss that falls, samples of the class asked for, and the filter."""

import numpy as np
import pytest
import torch

from lipray.data.labelled import labelled
from lipray.data.read import read_data
from lipray.errors import TrainingError
from lipray.train.generate.draw import draw_images
from lipray.train.generate.flow import FlowSettings, flow_loss, sample_flow, train_flow
from lipray.train.generate.judge import probabilities, train_judge
from lipray.train.generate.network import FlowNetwork


def bars(count=200, seed=0):
    """Two classes that even a small network tells apart: an upright bar and a lying one, of some brightness."""
    random = np.random.default_rng(seed)
    x = np.zeros((count, 1, 4, 4))
    y = np.arange(count) % 2
    bright = random.uniform(0.7, 1, count)
    x[y == 0, 0, :, 1:3] = bright[y == 0, None, None]
    x[y == 1, 0, 1:3, :] = bright[y == 1, None, None]
    return labelled(x, y, "bars")


def network(shape=(1, 4, 4), classes=2, **changed):
    torch.manual_seed(0)
    return FlowNetwork(shape, classes, **{"width": 16, "depth": 2, **changed})


SHORT = FlowSettings(steps=200, batch=64, rate=5e-3, warm_up=20)


@pytest.fixture(scope="module")
def trained():
    losses = []
    net = train_flow(network(), bars(), SHORT, progress=lambda _, loss: losses.append(loss))
    return net, losses


@pytest.fixture(scope="module")
def judge():
    return train_judge(bars(), epochs=5)


@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 2), ((3, 8, 12), 4), ((2, 4, 6), 1)])
def test_the_field_has_the_shape_of_the_image(shape, patch):
    net = network(shape, 3, patch=patch)
    x = torch.randn(5, *shape)
    assert net(x, torch.rand(5), torch.arange(5) % 3).shape == x.shape
    assert sample_flow(net, torch.arange(5) % 3, seed=0, steps=2).shape == x.shape


def test_time_and_class_matter_and_images_of_a_batch_do_not_mix(trained):
    net, _ = trained
    x, time, y = torch.randn(4, 1, 4, 4), torch.full((4,), 0.4), torch.zeros(4, dtype=torch.long)
    whole = net(x, time, y)
    torch.testing.assert_close(net(x[2:3], time[2:3], y[2:3]), whole[2:3])
    assert (net(x, time + 0.3, y) - whole).abs().max() > 0.01
    assert (net(x, time, y + 1) - whole).abs().max() > 0.01


def test_patches_are_put_together_again():
    net = network((2, 4, 6), 2, width=8, depth=0)
    with torch.no_grad():
        net.enter.weight.copy_(torch.eye(8))
        net.leave.weight.copy_(torch.eye(8))
        net.enter.bias.zero_()
        net.places.zero_()
    net.last = lambda_module(lambda tokens, _: tokens)
    x = torch.randn(3, 2, 4, 6)
    torch.testing.assert_close(net(x, torch.rand(3), torch.zeros(3, dtype=torch.long)), x)


def lambda_module(call):
    class Module(torch.nn.Module):
        def forward(self, *values):
            return call(*values)

    return Module()


def test_the_loss_falls(trained):
    _, losses = trained
    assert len(losses) == SHORT.steps
    assert np.mean(losses[-50:]) < 0.5 * np.mean(losses[:10])


def test_training_and_sampling_repeat():
    settings = FlowSettings(steps=4, batch=16)
    one, two = (train_flow(network(), bars(), settings) for _ in range(2))
    assert all(torch.equal(one.state_dict()[name], two.state_dict()[name]) for name in one.state_dict())
    y = torch.arange(6) % 2
    assert torch.equal(sample_flow(one, y, seed=3), sample_flow(two, y, seed=3))
    assert not torch.equal(sample_flow(one, y, seed=3), sample_flow(one, y, seed=4))
    x = torch.from_numpy(bars(16).x)
    other = [float(flow_loss(one, x, y[:1].expand(16), torch.Generator().manual_seed(5)).detach()) for _ in range(2)]
    assert other[0] == other[1]


def test_samples_are_of_their_class(trained):
    y = torch.arange(100) % 2
    x = sample_flow(trained[0], y, seed=0)
    assert x.min() >= 0
    assert x.max() <= 1
    upright = x[:, 0, [0, 3], 1:3].mean((1, 2)) - x[:, 0, 1:3][:, :, [0, 3]].mean((1, 2))
    assert ((upright < 0).long() == y).double().mean() > 0.95


def test_the_judge_learns(judge):
    data = bars(50, seed=1)
    likely = probabilities(judge, torch.from_numpy(data.x))
    torch.testing.assert_close(likely.sum(1), torch.ones(50))
    assert (likely.argmax(1).numpy() == data.y).all()


def test_what_is_kept_is_certain_and_balanced_and_can_be_read(tmp_path, trained, judge):
    seen = []
    made = draw_images(
        trained[0], judge, 60, threshold=0.9, levels=16, progress=lambda kept, drawn: seen.append((kept, drawn))
    )
    assert np.bincount(made.y).tolist() == [30, 30]
    assert (made.confidence >= 0.9).all()
    assert made.levels.dtype == np.uint8
    assert made.levels.max() <= 16
    assert seen[-1] == (60, made.drawn)
    assert made.kept <= made.agreed <= 1
    made.save(tmp_path / "made.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["made.npz"]
    read = read_data(str(tmp_path / "made.npz"), "train")
    np.testing.assert_array_equal(read.x, made.levels.astype(np.float32) / 16)
    likely = probabilities(judge, torch.from_numpy(read.x)).numpy()[np.arange(60), read.y]
    np.testing.assert_allclose(likely, made.confidence, rtol=1e-4)
    assert made.save(tmp_path / "again.npz") is None
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "made.npz").read_bytes()


def test_the_filter_leaves_out_what_the_judge_takes_for_something_else(trained, judge):
    """A judge that knows nothing of the first class leaves none of it."""

    class Biased(torch.nn.Module):
        def forward(self, x):
            return judge(x) + torch.tensor([-100.0, 100.0])

    with pytest.raises(TrainingError, match="30 are missing"):
        draw_images(trained[0], Biased(), 60)


@pytest.mark.parametrize("wrong", [{"count": 61}, {"count": 0}, {"threshold": 1.0}, {"levels": 0}])
def test_what_cannot_be_asked_for(trained, judge, wrong):
    asked = {"count": 60, "threshold": 0.5, "levels": 16, **wrong}
    with pytest.raises(TrainingError, match="cannot be asked for"):
        draw_images(trained[0], judge, **asked)


def test_data_that_do_not_fit_the_network():
    with pytest.raises(TrainingError, match="shape"):
        network((1, 5, 5))
    with pytest.raises(TrainingError, match="bars has 2"):
        train_flow(network((1, 8, 8)), bars(), SHORT)
    with pytest.raises(TrainingError, match="at step 1"):
        train_flow(network(), bars(), FlowSettings(steps=2, batch=16, rate=float("inf"), warm_up=0))


@pytest.mark.slow
def test_a_short_training_on_digits_gives_digits():
    data = read_data("digits", "train")
    net = train_flow(FlowNetwork(data.shape, 10), data, FlowSettings(steps=1500, batch=128))
    made = draw_images(net, train_judge(data, epochs=20), 500, threshold=0.8, levels=16)
    assert made.agreed > 0.85
