"""The house keeps its rules: who imports whom, where heavy libraries may be, and what must not be in a file."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lipray"
FILES = sorted(PACKAGE.rglob("*.py"))
EARLY = ("model", "verify", "partition", "certify", "compose", "run", "report")
STAGES = (*EARLY, "jobs", "data", "robust", "train", "cli")
ANYWHERE = {"errors", "config"}
LONGEST = 600


def imports(path):
    """Every module a file imports, wherever in the file, and whether at the top level of the module."""
    found = []

    def visit(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = False
            else:
                inner = top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: imports are absolute"
                found.append((child.module, top))
                found.extend((f"{child.module}.{alias.name}", top) for alias in child.names)
            visit(child, inner)

    visit(ast.parse(path.read_text()), top=True)
    return found


def stage(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "lipray" and len(parts) > 1 and parts[1] in STAGES else None


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE], ids=name)
def test_imports_point_one_way(path):
    own = path.relative_to(PACKAGE).parts[0]
    for module, _ in imports(path):
        other = stage(module)
        if other is not None:
            assert STAGES.index(other) <= STAGES.index(own), f"{name(path)} imports {module}"
        elif module.startswith("lipray."):
            assert module.split(".")[1] in ANYWHERE | {"__version__"}, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "verify").rglob("*.py")), ids=name)
def test_what_a_bound_rests_on_knows_no_solver(path):
    """The verifier imports the graph's types and the errors; no planner, optimiser, executor, or importer of models."""
    for module, _ in imports(path):
        if module.startswith("lipray"):
            assert module.startswith(("lipray.verify", "lipray.model.network")) or (
                module in {"lipray.errors", "lipray.model"} or module.startswith("lipray.errors.")
            ), f"{name(path)} imports {module}"
        assert module.split(".")[0] not in {"ray", "cvxpy", "clarabel"}


@pytest.mark.parametrize("path", [PACKAGE / "errors.py", PACKAGE / "config.py"], ids=name)
def test_what_all_may_import_imports_no_stage(path):
    assert not [module for module, _ in imports(path) if stage(module)]


@pytest.mark.parametrize(
    ("part", "seen"),
    [("store", {"store", "lower_bound", "stop"}), ("record", {"record", "store", "events"})],
)
def test_what_is_kept_knows_nothing_of_who_keeps_it(part, seen):
    for path in (PACKAGE / "run" / part).rglob("*.py"):
        for module, _ in imports(path):
            if module.startswith("lipray.run."):
                assert module.split(".")[2] in seen, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_libraries_stay_where_they_belong(path):
    place = path.relative_to(PACKAGE).as_posix()
    for module, top in imports(path):
        library = module.split(".")[0]
        if library == "ray":
            lazily = place in {"jobs/client.py", "train/workers.py"}
            assert place.startswith("run/ray/") or (lazily and not top), place
        if library in {"cvxpy", "clarabel"}:
            assert place == "certify/sdp.py", place
        if library == "torch":
            whole = ("model/", "verify/", "certify/", "run/", "robust/", "train/")
            assert place.startswith(whole) or (place == "api.py" and not top), place
            assert not (top and place.startswith("run/")), f"{place} imports torch when it is loaded"
        if library in {"PIL", "sklearn"}:
            assert place in {"data/tiny_imagenet.py", "data/digits.py"}, place
            assert not top, place
        if library == "onnx":
            assert place.startswith("model/"), place
        if library == "matplotlib":
            assert place.startswith("report/plots/") or (place == "report/write.py" and not top), place
        if library in {"jinja2", "markupsafe"}:
            assert place.startswith("report/html/") or (place == "report/write.py" and not top), place
        if library == "pyarrow":
            assert place == "run/record/tables.py", place
            assert not top, place


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= LONGEST
    assert path.name != "utils.py"


def test_tracked_files_name_no_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(rb"/(?:home|root|Users|work|mnt)/[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]|file:///")
    for line in listed.stdout.split(b"\0"):
        path = ROOT / line.decode()
        if line and path.is_file() and path != Path(__file__) and b"\0" not in (content := path.read_bytes()):
            assert not pattern.search(content), f"{line.decode()} names a path of some machine"
