"""The Dockerfile's installation in a new environment: what it copies, what it runs, and lipray as users run it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.deploy.files import PINS, ROOT, VERSION
from tests.deploy.test_image import stages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MODEL = ROOT / "examples" / "digits_small"
PINNED = {canonicalize_name(name): version for name, version in PINS.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The root of the build stage after its steps: the context copied into /src, lipray installed into /opt/lipray."""
    root = tmp_path_factory.mktemp("image")
    build = stages()[0]
    folder = root / dict(build)["WORKDIR"].lstrip("/")
    for word, rest in build:
        if word != "COPY":
            continue
        *sources, target = rest.split()
        for source in sources:
            to = folder / target if len(sources) == 1 else folder / target / source
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, to)
    (run,) = [rest for word, rest in build if word == "RUN"]
    words = [str(root) + word if word.startswith("/") else word for word in shlex.split(run)]
    unwanted = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {"PYTHON": sys.executable, "HOME": str(root)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"lipray, version {VERSION}"
    return root


def user(place, *words):
    """Run a command as a user of the image would: its path, a home, and nothing else."""
    home = place / "home"
    home.mkdir(exist_ok=True)
    environment = {"PATH": f"{place}/opt/lipray/bin:/usr/bin:/bin", "HOME": str(home)}
    done = subprocess.run(
        [*map(str, words)], cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_package_is_at_its_pinned_version(place):
    listed = json.loads(user(place, "python", "-m", "pip", "--disable-pip-version-check", "list", "--format=json"))
    found = {canonicalize_name(one["name"]): one["version"].split("+")[0] for one in listed}
    assert found.pop("lipray") == VERSION
    for name in ("pip", "setuptools", "wheel"):
        found.pop(name, None)
    assert {name: version for name, version in found.items() if PINNED.get(name) != version} == {}
    assert found.keys() >= {"ray", "torch", "onnx", "s3fs"}


def test_the_source_is_not_needed_any_more(place):
    path = user(place, "python", "-c", "import lipray; print(lipray.__file__)").strip()
    assert Path(path).is_relative_to(place / "opt" / "lipray")


def test_an_estimate_with_it(place):
    model = (f"{MODEL}.py:digits_small", "--weights", f"{MODEL}.safetensors", "--input-shape", "1,8,8")
    assert "ellipsoid" in user(place, "lipray", "plan", *model)
    words = ("--executor", "serial", "--store", "store", "--run-id", "first", "--json", "--quiet")
    result = json.loads(user(place, "lipray", "estimate", *model, *words))
    assert result["lower"] <= result["upper"] == pytest.approx(36.8646, abs=1e-3)
    assert json.loads((place / "home" / "store" / "first" / "manifest.json").read_text())["state"] == "finished"
