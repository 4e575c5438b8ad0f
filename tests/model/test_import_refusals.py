"""What cannot be bounded is refused by name, with the reason and the remedy, and nothing else happens."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lipray.errors import (
    ImportMismatchError,
    InputShapeError,
    ModelError,
    NonFiniteWeightsError,
    UnsupportedLayerError,
)
from lipray.model.importer import import_module

IMAGE = (4, 6, 6)
SERIES = (4, 6)


class Inner(nn.Module):
    """The fault sits one level down, so that its name is a path."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, value in members.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


class Outer(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stages = nn.ModuleList([nn.Identity(), block])

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return x.flatten(1)


def inner(function, **members):
    return Outer(Inner(function, **members))


def layer(module):
    return Outer(module)


def branch(_, x):
    return x if x.sum() > 0 else -x


def squeeze_excite(s, x):
    return x * s.gate(x.mean((2, 3), keepdim=True)).sigmoid()


REFUSALS = {
    "layernorm": (layer(nn.LayerNorm((4, 6, 6))), IMAGE, "stages.1", "globally Lipschitz"),
    "groupnorm": (layer(nn.GroupNorm(2, 4)), IMAGE, "stages.1", "statistics"),
    "instancenorm": (layer(nn.InstanceNorm2d(4)), IMAGE, "stages.1", "statistics"),
    "rmsnorm": (layer(nn.RMSNorm(6)), IMAGE, "stages.1", "statistics"),
    "localresponse": (layer(nn.LocalResponseNorm(2)), IMAGE, "stages.1", "divides"),
    "attention": (
        inner(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(6, 2)),
        SERIES,
        "stages.1.a",
        "attention",
    ),
    "transposed": (layer(nn.ConvTranspose2d(4, 4, 3)), IMAGE, "stages.1", "transposed"),
    "lstm": (inner(lambda s, x: s.rnn(x)[0], rnn=nn.LSTM(6, 3)), SERIES, "stages.1.rnn", "recurrent"),
    "gru": (inner(lambda s, x: s.rnn(x)[0], rnn=nn.GRU(6, 3)), SERIES, "stages.1.rnn", "recurrent"),
    "embedding": (inner(lambda s, x: s.e(x.long()), e=nn.Embedding(9, 3)), SERIES, "stages.1.e", "integer"),
    "glu": (layer(nn.GLU(1)), IMAGE, "stages.1", "gate"),
    "bilinear": (inner(lambda s, x: s.b(x, x), b=nn.Bilinear(6, 6, 2)), SERIES, "stages.1.b", "multiplies"),
    "F.layer_norm": (inner(lambda _, x: F.layer_norm(x, (6,))), IMAGE, "stages.1.layer_norm", "statistics"),
    "F.group_norm": (inner(lambda _, x: F.group_norm(x, 2)), IMAGE, "stages.1.group_norm", "statistics"),
    "F.attention": (
        inner(lambda _, x: F.scaled_dot_product_attention(x, x, x)),
        SERIES,
        "stages.1.scaled_dot_product_attention",
        "attention",
    ),
    "product": (inner(lambda _, x: x * F.relu(x)), IMAGE, "stages.1.mul", "multiplies two signals"),
    "gate": (inner(squeeze_excite, gate=nn.Conv2d(4, 4, 1)), IMAGE, "stages.1.mul", "gate"),
    "division": (inner(lambda _, x: 1 / (x.abs() + 1)), IMAGE, "stages.1", "not globally Lipschitz"),
    "division-by-signal": (inner(lambda _, x: x / x.abs()), IMAGE, "stages.1.div", "divides by a signal"),
    "floor-division": (inner(lambda _, x: torch.div(x, 2, rounding_mode="floor")), IMAGE, "stages.1.div", "jumps"),
    "square": (inner(lambda _, x: x**2), IMAGE, "stages.1.pow", "power"),
    "exp": (inner(lambda _, x: x.exp()), IMAGE, "stages.1.exp", "not globally Lipschitz"),
    "sign": (inner(lambda _, x: x.sign()), IMAGE, "stages.1.sign", "jumps"),
    "where": (inner(lambda _, x: torch.where(x > 1, x, 0)), IMAGE, "stages.1", "Lipschitz|rule"),
    "matmul": (inner(lambda _, x: x @ x.mT), SERIES, "stages.1.matmul", "two signals"),
    "batch-permute": (inner(lambda _, x: x.permute(1, 0, 2, 3)), IMAGE, "stages.1.permute", "batch"),
    "bmm": (inner(lambda _, x: torch.bmm(x, x)), (6, 6), "stages.1.bmm", "multiplies two signals"),
    "dynamic-conv": (
        inner(lambda _, x: F.linear(x, x[0])),
        SERIES,
        "stages.1",
        "batch|weight depends",
    ),
    "sort": (inner(lambda _, x: x.sort(1)[0]), IMAGE, "stages.1.sort", "no rule"),
    "upsample": (layer(nn.Upsample(scale_factor=2)), IMAGE, "stages.1", "no rule"),
    "permute": (inner(lambda _, x: x.permute(0, 2, 3, 1)), (3, 30, 30), "stages.1.permute", "reorders"),
    "pixelshuffle": (layer(nn.PixelShuffle(2)), IMAGE, "stages.1", "no rule"),
    "circular": (layer(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), IMAGE, "stages.1", "circular"),
    "reflect": (layer(nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect")), SERIES, "stages.1", "reflect"),
    "reflectionpad": (layer(nn.ReflectionPad2d(1)), IMAGE, "stages.1", "no rule|reflect"),
    "batchnorm-no-stats": (
        layer(nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGE,
        "stages.1",
        "running statistics",
    ),
    "F.batch_norm-train": (
        inner(lambda _, x: F.batch_norm(x, None, None, training=True)),
        IMAGE,
        "stages.1",
        "statistics of the batch",
    ),
    "F.dropout-train": (inner(lambda _, x: F.dropout(x)), IMAGE, "stages.1", "dropout is active"),
    "noise": (inner(lambda _, x: x + torch.randn_like(x)), IMAGE, "stages.1.randn_like", "random"),
    "noise-constant": (inner(lambda _, x: x + torch.rand(4, 1, 1)), IMAGE, "stages.1.rand", "random"),
    "softmax-inside": (nn.Sequential(nn.Flatten(), nn.Softmax(1), nn.Linear(144, 2)), IMAGE, "1", "last layer"),
    "softmax-map": (layer(nn.Softmax(1)), IMAGE, "stages.1", "vector"),
    "softplus-jump": (layer(nn.Softplus(threshold=5)), IMAGE, "stages.1", "jumps"),
    "hardshrink": (layer(nn.Hardshrink()), IMAGE, "stages.1", "rule|Lipschitz"),
    "threshold-jump": (layer(nn.Threshold(0.5, 0.0)), IMAGE, "stages.1", "jumps"),
    "celu-negative": (layer(nn.CELU(-1.0)), IMAGE, "stages.1", "exponential"),
    "adaptivemax-uneven": (layer(nn.AdaptiveMaxPool2d(4)), IMAGE, "stages.1", "divide"),
    "max-indices": (inner(lambda _, x: x + x.max(1, keepdim=True)[1]), IMAGE, "stages.1", "indices|jump"),
    "cast": (inner(lambda _, x: x.float().double() * 2), IMAGE, "stages.1", "casts"),
    "batch-mean": (inner(lambda _, x: x - x.mean()), IMAGE, "stages.1.mean", "batch"),
    "batch-flip": (inner(lambda _, x: x + x[1:]), IMAGE, "stages.1.slice", "batch"),
    "batch-axis-mean": (inner(lambda _, x: x - x.mean(0, keepdim=True)), IMAGE, "stages.1.mean", "batch"),
    "batch-fold": (inner(lambda _, x: x.view(-1, 6, 6)), IMAGE, "stages.1.view", "batch"),
    "per-input-constant": (
        inner(lambda _, x: x + torch.arange(x.size(0)).view(-1, 1, 1, 1)),
        IMAGE,
        "stages.1.add",
        "each input",
    ),
    "complex": (
        inner(lambda s, x: x * s.c.real, c=torch.ones(4, 1, 1, dtype=torch.cfloat)),
        IMAGE,
        "stages.1",
        "complex",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_by_name(case):
    module, shape, name, why = REFUSALS[case]
    with pytest.raises(UnsupportedLayerError, match=why) as caught:
        import_module(module.eval(), shape)
    assert caught.value.args[0].startswith(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm2d(4), IMAGE),
        (nn.BatchNorm1d(4), SERIES),
        (nn.Dropout(), IMAGE),
        (nn.Dropout2d(), IMAGE),
        (nn.AlphaDropout(), IMAGE),
        (nn.RReLU(), IMAGE),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(6, 2)), IMAGE),
    ],
)
def test_training_mode_is_refused_and_left_alone(module, shape):
    outer = Outer(module).train()
    with pytest.raises(UnsupportedLayerError, match="training mode") as caught:
        import_module(outer, shape)
    assert caught.value.args[0] == "stages.1"
    assert caught.value.hint == "call module.eval()"
    assert all(part.training for part in outer.modules())


def test_training_mode_without_consequence_is_accepted():
    module = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten()).train()
    assert import_module(module, IMAGE).output_shape == (32,)
    assert module.training


def test_data_dependent_branch(capfd):
    with pytest.raises(ModelError, match=r"data-dependent"):
        import_module(inner(branch).eval(), IMAGE)
    with pytest.raises(UnsupportedLayerError, match=r"batch|data-dependent"):
        import_module(inner(lambda _, x: x * x.max().item()).eval(), IMAGE)
    assert capfd.readouterr() == ("", "")  # torch explains at length on both streams; the error says it all


@pytest.mark.parametrize(
    ("module", "shape", "texts"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(10, 2)), IMAGE, ("'2'", "(144,)", "(10,)")),
        (layer(nn.Conv2d(3, 2, 3)), IMAGE, ("'stages.1'", "(4, 6, 6)", "(3, height, width)")),
        (layer(nn.Conv1d(3, 2, 3)), SERIES, ("'stages.1'", "(4, 6)", "(3, length)")),
        (layer(nn.Conv2d(4, 2, 7)), IMAGE, ("'stages.1'", "(4, 6, 6)", "7x7 kernel")),
        (layer(nn.BatchNorm2d(5)), IMAGE, ("'stages.1'", "(4, 6, 6)", "5 channels")),
        (layer(nn.MaxPool2d(8)), IMAGE, ("'stages.1'", "(4, 6, 6)")),
        (inner(lambda s, x: x + s.a, a=torch.ones(3, 1, 1)), IMAGE, ("'stages.1'", "(4, 6, 6)", "3")),
        (inner(lambda _, x: x[:, :, 6:]), IMAGE, ("stages.1", "(4, 6, 6)", "(4, 0, 6)")),
    ],
)
def test_wrong_input_shape_names_layer_and_shapes(module, shape, texts):
    with pytest.raises(InputShapeError) as caught:
        import_module(module.eval(), shape)
    assert caught.value.args[0] == ",".join(map(str, shape))
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize("shape", [(), (0, 3, 3), (1, 2, 3, 4), (-1,)])
def test_impossible_input_shapes(shape):
    with pytest.raises(InputShapeError):
        import_module(nn.ReLU(), shape)


@pytest.mark.parametrize(
    ("module", "path", "named"),
    [
        (nn.Conv2d(4, 2, 3), "weight", "stages.1.weight"),
        (nn.Conv2d(4, 2, 3), "bias", "stages.1.bias"),
        (nn.BatchNorm2d(4), "running_mean", "stages.1.running_mean"),
        (nn.PReLU(4), "weight", "stages.1.weight"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named(module, path, named, value):
    outer = Outer(module).eval()
    tensor = getattr(module, path).data
    kept = tensor.clone()
    tensor.view(-1)[0] = value
    try:
        with pytest.raises(NonFiniteWeightsError) as caught:
            import_module(outer, IMAGE)
        assert caught.value.args[0] == named
        assert "1 of" in caught.value.args[1]
    finally:
        tensor.copy_(kept)


def test_negative_variance_and_zero_divisor_are_named():
    norm = nn.BatchNorm2d(4)
    norm.running_var[2] = -1.0
    with pytest.raises(NonFiniteWeightsError, match=r"stages\.1\.running_var"):
        import_module(Outer(norm).eval(), IMAGE)
    with pytest.raises(NonFiniteWeightsError, match=r"stages\.1\.div"):
        import_module(inner(lambda s, x: x / s.std, std=torch.zeros(4, 1, 1)).eval(), IMAGE)


def test_unused_layers_do_not_matter():
    block = Inner(lambda s, x: s.used(x), used=nn.ReLU(), norm=nn.LayerNorm(6), bad=nn.Linear(6, 6))
    block.bad.weight.data[0, 0] = float("nan")
    assert import_module(Outer(block).train(), IMAGE).output_shape == (144,)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda _, x: (x, x), "returns tuple"),
        (lambda _, x: {"logits": x}, "returns dict"),
        (lambda s, x: s.missing(x), "AttributeError|missing"),
        (lambda *_: torch.zeros(2, 3), "does not depend on the input|constant"),
        (lambda s, x: x.view(1, -1) @ s.w, "batch of one"),
        (lambda _, x: F.conv2d(x, torch.ones(1, 4, 1, 1)), "float64"),
        (lambda s, x: [s.w.add_(1), x][1], "changes"),
    ],
)
def test_other_faults_of_forward(function, match):
    with pytest.raises(ModelError, match=match):
        import_module(Inner(function, w=torch.ones(144, 2)).eval(), IMAGE)


class Counting(nn.Module):
    """A module whose output changes from call to call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Scrambled(nn.Linear):
    """A hook that torch.export does not see would be a wrong graph; here forward itself lies while tracing."""

    def forward(self, x):
        factor = 1.0 if torch.compiler.is_exporting() else 1.0 + 1e-7
        return super().forward(x) * factor


class Transposed(nn.Module):
    """The graph would flatten (c, h, w) where the module flattens (h, w, c)."""

    def forward(self, x):
        return x.flatten(1) if torch.compiler.is_exporting() else x.permute(0, 2, 3, 1).flatten(1)


class Unbiased(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, None if torch.compiler.is_exporting() else self.bias)


class Company(nn.Module):
    def forward(self, x):
        return x if torch.compiler.is_exporting() else x - x[:1]


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Counting(), IMAGE), (Scrambled(6, 3), SERIES), (Transposed(), IMAGE), (Unbiased(6, 2), (6,)), (Company(), IMAGE)],
)
def test_disagreement_is_found(module, shape):
    with pytest.raises(ImportMismatchError):
        import_module(module.eval(), shape)


def test_meta_and_lazy_modules():
    with pytest.raises(ModelError, match="meta"):
        import_module(nn.Linear(3, 2, device="meta"), (3,))
    with pytest.raises(ModelError, match="initialised"):
        import_module(nn.LazyLinear(2), (3,))
