"""The built-in architectures have torchvision's keys, shapes and sizes, and load without touching global state."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from lipray.model.architectures import ARCHITECTURES
from lipray.model.architectures.initial import initialised, skeleton
from lipray.model.importer import import_module

# Parameters of torchvision's models (its documentation).
PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
}

SHAPES = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "bn1.num_batches_tracked": (),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "layer4.1.bn2.bias": (512,),
        "fc.weight": (1000, 512),
        "fc.bias": (1000,),
    },
    "resnet50": {
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer4.2.bn3.weight": (2048,),
        "fc.weight": (1000, 2048),
    },
    "vgg16": {
        "features.0.weight": (64, 3, 3, 3),
        "features.28.bias": (512,),
        "classifier.0.weight": (4096, 25088),
        "classifier.3.bias": (4096,),
        "classifier.6.weight": (1000, 4096),
    },
    "vgg16_bn": {
        "features.1.running_mean": (64,),
        "features.40.weight": (512, 512, 3, 3),
        "features.41.num_batches_tracked": (),
        "classifier.6.bias": (1000,),
    },
    "resnet18-cifar": {"conv1.weight": (64, 3, 3, 3), "fc.weight": (10, 512)},
    "vgg16_bn-cifar": {"features.40.weight": (512, 512, 3, 3), "classifier.weight": (10, 512)},
    "lenet5": {"conv2.weight": (16, 6, 5, 5), "fc1.weight": (120, 400), "fc3.weight": (10, 84)},
}

ABSENT = {
    "resnet18": ("layer1.0.downsample.0.weight", "conv1.bias"),
    "resnet50": ("layer1.1.downsample.0.weight", "layer1.0.conv1.bias"),
    "vgg16": ("features.1.weight", "features.30.weight", "classifier.1.weight"),
    "vgg16-cifar": ("features.1.weight", "classifier.0.weight"),
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    assert sum(parameter.numel() for parameter in skeleton(ARCHITECTURES[name]).parameters()) == count


@pytest.mark.parametrize("name", SHAPES)
def test_state_dict_shapes(name):
    state = skeleton(ARCHITECTURES[name]).state_dict()
    assert {key: tuple(state[key].shape) for key in SHAPES[name]} == SHAPES[name]


@pytest.mark.parametrize("name", ABSENT)
def test_keys_that_do_not_exist(name):
    state = skeleton(ARCHITECTURES[name]).state_dict()
    assert not set(ABSENT[name]) & set(state)


def test_bottleneck_strides_in_the_middle():
    block = skeleton(ARCHITECTURES["resnet50"]).get_submodule("layer2.0")
    assert [block.get_submodule(f"conv{i}").stride for i in (1, 2, 3)] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forward_shape(name):
    architecture = ARCHITECTURES[name]
    module = skeleton(architecture, classes=7).eval()
    with torch.device("meta"):
        out = module(torch.empty(2, *architecture.input_shape))
    assert out.shape == (2, 7)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_arguments_are_inferred_from_shapes(name):
    architecture = ARCHITECTURES[name]
    state = skeleton(architecture, classes=7).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    arguments = architecture.arguments_for(shapes)
    assert arguments["classes"] == 7
    again = skeleton(architecture, **arguments).state_dict()
    assert {key: tuple(value.shape) for key, value in again.items()} == shapes
    assert architecture.arguments_for({}) == {}


def test_channels_and_width_are_inferred():
    for name, arguments in {
        "cnn1": {"channels": (2, 5)},
        "cnn2": {"channels": (1, 2, 3, 4, 5)},
        "resnet18-cifar": {"width": 8},
    }.items():
        state = skeleton(ARCHITECTURES[name], **arguments).state_dict()
        found = ARCHITECTURES[name].arguments_for({key: tuple(value.shape) for key, value in state.items()})
        assert {key: found[key] for key in arguments} == arguments


def test_initial_weights_are_seeded_and_leave_the_global_state():
    before = torch.random.get_rng_state()
    first, second = (initialised(ARCHITECTURES["cnn1"]).state_dict() for _ in range(2))
    other = initialised(ARCHITECTURES["cnn1"], seed=1).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_every_tensor_is_initialised():
    """``to_empty`` leaves garbage behind; a layer type without an initialiser would keep it."""
    known = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    for architecture in ARCHITECTURES.values():
        for layer in skeleton(architecture).modules():
            assert isinstance(layer, known) or not list(layer.parameters(recurse=False))
            assert isinstance(layer, known) or not list(layer.buffers(recurse=False))


@pytest.mark.parametrize("name", ["resnet18-cifar", "vgg16_bn-cifar"])
def test_initial_distributions(name):
    arguments = {"width": 16} if "resnet" in name else {}
    module = initialised(ARCHITECTURES[name], **arguments)
    assert not module.training
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
            deviation = math.sqrt(2 / (layer.out_channels * math.prod(layer.kernel_size)))
            assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.eq(1).all()
            assert layer.bias.eq(0).all()
            assert layer.running_var.eq(1).all()
            assert layer.running_mean.eq(0).all()


@pytest.mark.parametrize("name", ["cnn1", "lenet5", "lenet5-tanh"])
def test_small_ones_import(name):
    architecture = ARCHITECTURES[name]
    network = import_module(initialised(architecture), architecture.input_shape, name=name)
    assert network.output_shape == (architecture.classes,)


def test_a_small_resnet_imports():
    network = import_module(initialised(ARCHITECTURES["resnet18-cifar"], width=2), (3, 16, 16), name="r")
    assert network.output_shape == (10,)


def test_listing_needs_no_torch():
    code = (
        "import sys; from lipray.model.architectures import ARCHITECTURES as a; "
        "assert a['cnn1'].input_shape == (1, 28, 28) and a['cnn2'].classes == 100; "
        "import lipray.model.load; "
        "print([m for m in ('torch', 'ray', 'cvxpy', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
