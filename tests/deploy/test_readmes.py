"""What cluster/README.md and docker/README.md tell people to type exists, and so does what they point at."""

import re
import shlex

import pytest

from tests.deploy.files import CLUSTER, DOCKER, FILES, ROOT, VERSION, name

READMES = (CLUSTER / "README.md", DOCKER / "README.md")
MODEL = "examples/digits_cnn.py:digits_cnn --weights examples/digits_cnn.safetensors --input-shape 1,8,8"
ENDS_ALL = re.compile(r"\bray\s+stop\b")
"""Ends every Ray of the machine, also those of others."""


def typed(readme):
    """The commands in the blocks of a README: lines, continued ones joined, and split where shells split them."""
    blocks = re.findall(r"```sh\n(.*?)```", readme.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").replace("$M", MODEL).splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)
        start = 0
        for at, word in enumerate([*words, ";"]):
            if word in {";", "&&", "&"} or word.endswith(";"):
                yield [one.rstrip(";") for one in words[start : at + word.endswith(";") * (word != ";")]]
                start = at + 1


def uses(program):
    """Pairs of a subcommand and its words, for every use of a program in the READMEs."""
    found = []
    for readme in READMES:
        for words in typed(readme):
            # Also behind `docker compose exec head`, `kubectl exec … --` and the like; after -n it is a namespace.
            places = [at for at, word in enumerate(words[:-1]) if word == program and words[at - 1] != "-n"]
            found += [(words[at + 1], words[at + 2 :]) for at in places[:1] if re.fullmatch(r"[a-z-]+", words[at + 1])]
    return found


def test_the_readmes_are_read_at_all():
    assert {"submit", "status", "logs", "stop", "runs", "verify", "doctor"} <= {word for word, _ in uses("lipray")}
    assert {"up", "down", "exec", "dashboard", "rsync-down"} <= {word for word, _ in uses("ray")}


@pytest.mark.parametrize(("command", "words"), uses("lipray"), ids=str)
def test_lipray_knows_the_commands_and_their_options(command, words):
    from lipray.cli.main import cli

    cli.commands[command].make_context(command, list(words))


@pytest.mark.usefixtures("ray_library")
@pytest.mark.parametrize(("command", "words"), uses("ray"), ids=str)
def test_ray_knows_the_commands(command, words):
    from ray.scripts.scripts import cli

    assert command in cli.commands
    assert words[0] in {"cluster/onpremise.yaml", "cluster/aws.yaml"}
    assert (ROOT / words[0]).exists()


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_what_they_point_at_is_there(readme):
    text = readme.read_text()
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in text.splitlines()}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        if not path:
            assert anchor in anchors, target
        else:
            assert (readme.parent / path).exists(), target
    for path in re.findall(r"(?:cluster|docker)/[a-z/]+\.(?:yaml|sh)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_is_told_of(path):
    assert any(path.name in readme.read_text() for readme in READMES) or path in READMES


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_ends_the_ray_of_others_or_holds_a_token(path):
    text = path.read_text()
    assert not ENDS_ALL.search(text)
    assert not re.search(r"\b[0-9a-f]{32,}\b", text)


def test_versions_in_words_are_this_one():
    for readme in READMES:
        assert set(re.findall(r"lipray:(\d[0-9.]*\d)", readme.read_text())) <= {VERSION}
