"""The checks of ``lipray doctor``: each says what is wrong, with a code and a remedy, and leaves nothing behind."""

import errno
import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from lipray.config import EstimateConfig
from lipray.errors import StoreError, UsageError
from lipray.run.checks import fit, machine, place
from lipray.run.checks.findings import diagnosis, fault, gather, good, warning
from lipray.run.store.files import LocalFiles


def states(findings):
    return {finding.name: finding.state for finding in findings}


def test_errors_are_findings_and_hide_no_others():
    def half():
        yield good("one", "well")
        raise StoreError("there", "is gone", hint="Look.")

    found = gather("half", half)
    assert [finding.state for finding in found] == ["ok", "fault"]
    assert (found[1].text, found[1].remedy, found[1].code) == ("there: is gone", "Look.", 7)
    (found,) = gather("broken", lambda: [1 / 0])
    assert (found.state, found.code) == ("fault", 1)
    assert found.text == "unexpected ZeroDivisionError: division by zero"


def test_the_exit_code_is_that_of_the_first_fault():
    assert diagnosis([good("a", ""), warning("b", "", "")]).exit_code == 0
    assert diagnosis([good("a", ""), fault("b", "", code=8), fault("c", "", code=7)]).exit_code == 8


@pytest.fixture
def installed(monkeypatch):
    """``installed(wanted, present, python)``: what the metadata asks for, and what is there."""

    def install(wanted, present, python=">=3.11"):
        def version(name):
            if name not in present:
                raise metadata.PackageNotFoundError(name)
            return present[name]

        monkeypatch.setattr(metadata, "requires", lambda _: wanted)
        monkeypatch.setattr(metadata, "metadata", lambda _: {"Requires-Python": python})
        monkeypatch.setattr(metadata, "version", version)
        return list(machine.versions())

    return install


def test_versions_that_do_are_listed_and_extras_with_them(installed):
    wanted = ["torch>=2.6", "ray[default]>=2.50", 'onnx>=1.17; extra == "onnx"', 'pytest; extra == "test"']
    found = installed(wanted, {"torch": "2.13.0+cpu", "ray": "2.60.0"})
    assert set(states(found).values()) == {"ok"}
    texts = [finding.text for finding in found]
    assert "torch 2.13.0+cpu, ray 2.60.0" in texts
    assert "onnx not installed (lipray[onnx])" in texts


def test_what_is_old_or_missing_is_a_fault_with_the_command_that_helps(installed):
    found = installed(["torch>=2.6", "numpy>=2.0"], {"torch": "2.5.1"}, python=">=3.99")
    faults = {finding.name: finding for finding in found if finding.state == "fault"}
    assert set(faults) == {"Python", "torch", "numpy"}
    assert faults["torch"].text == "2.5.1, and >=2.6 is needed"
    assert faults["numpy"].text == "not installed, and >=2.0 is needed"
    assert faults["numpy"].remedy == 'python -m pip install "numpy>=2.0"'
    assert {finding.code for finding in faults.values()} == {1}


def test_lipray_without_metadata_is_a_warning():
    (found,) = machine.versions("nosuchdistribution")
    assert found.state == "warning"


def test_what_is_installed_here_does():
    assert set(states(machine.versions()).values()) == {"ok"}


@pytest.mark.parametrize(("content", "state"), [("50000 100000", "warning"), ("max 100000", "ok"), ("nonsense", "ok")])
def test_a_control_group_that_allows_less_than_the_cores_is_told(tmp_path, content, state):
    (tmp_path / "cpu.max").write_text(content)
    (found,) = machine.cores(tmp_path / "cpu.max")
    assert found.state == state
    assert state == "ok" or "--workers 1" in found.remedy


def test_little_memory_comes_with_the_option_that_helps(monkeypatch):
    monkeypatch.setattr(machine, "machine_memory", lambda: 4 * 2**30)
    (found,) = machine.memory()
    assert found.state == "warning"
    option = found.remedy.split("--memory ")[1].split(",")[0]
    assert EstimateConfig(memory=option).memory == 3 * 2**30
    monkeypatch.setattr(machine, "machine_memory", lambda: 64 * 2**30)
    assert states(machine.memory()) == {"memory": "ok"}


def test_threads_are_those_of_a_new_process_under_the_variables():
    (found,) = machine.threads()
    assert (found.state, found.text) == ("ok", "numpy 1, torch 1 where the variables say one")


@pytest.mark.parametrize(
    ("probe", "state", "text"),
    [
        ("""print('{"numpy": 5, "torch": 1}')""", "warning", "numpy 5, torch 1 although OMP_NUM_THREADS"),
        ("import nosuchmodule", "fault", "No module named 'nosuchmodule'"),
        ("import time; time.sleep(60)", "fault", "not imported within 1 s"),
    ],
)
def test_threads_that_cannot_be_had_are_told(monkeypatch, probe, state, text):
    monkeypatch.setattr(machine, "_PROBE", probe)
    monkeypatch.setattr(machine, "PROBE_SECONDS", 1.0)
    (found,) = machine.threads()
    assert found.state == state
    assert text in found.text


def test_a_store_is_used_and_left_as_it_was(tmp_path):
    found = gather("store", lambda: place.store(str(tmp_path / "new" / "store")))
    assert set(states(found).values()) == {"ok"}
    assert "written, read, moved, listed, removed" in found[0].text
    assert not list(tmp_path.iterdir())
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    assert set(states(place.store(str(folder))).values()) == {"ok"}
    assert [path.name for path in folder.iterdir()] == ["mine"]
    assert states(place.store(f"memory://{tmp_path.name}/store")) == {"store": "ok"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_store_that_takes_nothing_is_a_fault(tmp_path, monkeypatch, number):
    def refuse(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    found = gather("store", lambda: place.store(str(tmp_path / "store")))
    monkeypatch.undo()
    assert states(found)["store"] == "fault"
    assert found[0].text == f"{tmp_path / 'store'}: a file cannot be written ({os.strerror(number)})"
    assert found[0].code == StoreError.exit_code
    assert found[0].remedy
    assert not list(tmp_path.iterdir())


def test_a_store_in_the_place_of_a_file_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    (found,) = gather("store", lambda: place.store(str(tmp_path / "file" / "store")))
    assert (found.state, found.code) == ("fault", StoreError.exit_code)
    (found,) = gather("store", lambda: place.store("nosuchprotocol://bucket/store"))
    assert (found.state, found.code) == ("fault", UsageError.exit_code)


@pytest.mark.parametrize(
    ("method", "answer", "word"),
    [("read", b"other", "read"), ("move", None, "moved"), ("names", [], "listed"), ("remove", None, "removed")],
)
def test_a_store_that_says_what_is_not_is_a_fault(tmp_path, monkeypatch, method, answer, word):
    monkeypatch.setattr(LocalFiles, method, lambda *_: answer)
    found = gather("store", lambda: place.store(str(tmp_path)))
    assert found[0].state == "fault"
    assert f"cannot be {word} (" in found[0].text


def test_a_disk_that_is_nearly_full_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40 - 2**20, 2**20))
    assert states(place.store(str(tmp_path))) == {"store": "ok", "disk": "warning"}


def test_what_fits_goes_with_the_memory():
    assert fit.fit(2**26, "here").state == "warning"
    some = fit.fit(2**30, "here")
    assert some.state == "ok"
    assert "whole, with as much --memory, lenet5, resnet18-cifar, resnet18;" in some.text
    assert "vgg16 (3×224×224, needs" in some.text
    assert "cut" not in fit.fit(2**33, "here").text


def whole(network, mebibytes):
    from lipray.run.driver import make_plan

    plan = make_plan(network, EstimateConfig(memory=mebibytes * 2**20))
    return [len(block.tiles) for block in plan.blocks] == [1]


@pytest.mark.parametrize(
    ("name", "needed"), [pytest.param(*row[::2], marks=[pytest.mark.slow] * (row[0] != "lenet5")) for row in fit.WHOLE]
)
def test_the_table_says_what_the_planner_does(name, needed):
    from lipray.model.load import load_network

    network = load_network(name, None).network
    assert whole(network, needed)
    assert not whole(network, int(0.9 * needed))


def test_nothing_is_left_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gather("store", lambda: place.store("runs"))
    assert not list(Path().iterdir())
