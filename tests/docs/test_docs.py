"""The documents say what is true of the code: links, commands, settings, names, and the tables that are generated."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from finode.cli.root import finode
from finode.config import Config
from finode.wire import directory, message
from finode.wire.committee import RefusalReason
from finode.wire.shares import Fault
from scripts import write_docs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as they are made where it is shown."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every `finode ...` that a document shows, in shell blocks and in the text."""
    sources = [line for block in blocks(text, "sh") for line in block.splitlines() if not line.startswith("#")]
    sources += [code for code in inline_code(text) if code.startswith("finode ")]
    for source in sources:
        nested = re.findall(r"\$\(([^)]*)\)", source)
        for piece in (re.sub(r"\$\([^)]*\)", "ID", source), *nested):
            for match in re.findall(r"(?<![\w/.=-])finode ([a-z][^|;&]*)", piece):
                yield shlex.split(match)


def without_generated(text: str) -> str:
    return re.sub(r"<!-- generated: .*?<!-- end -->", "", text, flags=re.DOTALL)


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)) if "://" not in link]


def test_the_documents_are_there() -> None:
    assert {path.name for path in DOCUMENTS} >= {"README.md", "CHANGELOG.md", "design.md", "operate.md", "protocol.md"}


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path

        assert target.exists(), f"{path.name} links to {link}"
        assert target.is_relative_to(ROOT), f"{path.name} links out of the repository: {link}"
        if anchor:
            assert anchor in anchors(target), f"{path.name} links to {link}, which has no such heading"


@each_document
def test_commands_exist_with_the_options_shown(path: Path) -> None:
    for arguments in commands(path.read_text(encoding="utf-8")):
        if arguments[0].isupper():
            continue  # `finode COMMAND --help`: any of them
        result = CliRunner().invoke(finode, [*arguments, "--help"])

        assert result.exit_code == 0, f"{path.name}: finode {shlex.join(arguments)}: {result.output}"
        assert "Usage: " in result.output


def test_commands_are_found_wherever_they_stand() -> None:
    text = '`finode ps` and\n```sh\nfirst=x/$(finode id --home a)\nfinode start --org "A B"  # not finode ps\n```\n'

    assert list(commands(text)) == [
        ["id", "--home", "a"],
        ["start", "--org", "A B", "#", "not", "finode", "ps"],
        ["ps"],
    ]


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    assert CliRunner().invoke(finode, ["peers", "befriend", "--help"]).exit_code == 2
    assert CliRunner().invoke(finode, ["query", "--no-such-option", "--help"]).exit_code == 2


@each_document
def test_settings_exist(path: Path) -> None:
    text = without_generated(path.read_text(encoding="utf-8"))
    named = [pair for code in inline_code(text) for pair in re.findall(r"\[(\w+)\] (\w+)", code)]
    variables = re.findall(r"FINODE_([A-Z]+)__([A-Z_]+)", text)
    for section, setting in [*named, *((section.lower(), setting.lower()) for section, setting in variables)]:
        assert section in SECTIONS, f"{path.name} names the section [{section}]"
        assert setting in SECTIONS[section].model_fields, f"{path.name} names [{section}] {setting}"


@each_document
def test_settings_in_examples_are_accepted(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8"), "toml"):
        values = tomllib.loads(block)
        if not any(isinstance(value, dict) for value in values.values()):
            continue  # a preprocessing file, see the next test
        for section, settings in values.items():
            SECTIONS[section].model_validate(settings)


def test_the_preprocessing_file_shown_is_accepted(tmp_path: Path) -> None:
    from finode.models.service_files import load_preprocess

    shown = [block for block in blocks((ROOT / "docs/operate.md").read_text(encoding="utf-8"), "toml")]
    files = [block for block in shown if "[node]" not in block]
    assert len(files) == 1
    path = tmp_path / "preprocess.toml"
    path.write_text(files[0], encoding="utf-8")

    assert load_preprocess(path).size == (64, 64)


@each_document
def test_names_in_the_text_are_names_in_the_code(path: Path) -> None:
    folders = [ROOT / name for name in ("finode", "cli", "testnet", "scripts")]
    sources = [ROOT / "Makefile", *(source for folder in folders for source in folder.rglob("*.py"))]
    known = set(re.findall(r"\w+", "".join(source.read_text(encoding="utf-8") for source in sources)))
    known |= {source.stem for source in sources}
    text = without_generated(path.read_text(encoding="utf-8"))
    shown = {word for code in inline_code(text) for word in re.findall(r"\b[A-Za-z]\w*_\w+", code)}

    unknown = {word for word in shown if word not in known}

    # A setting's variable is made of two names, and `test_settings_exist` looks at these.
    assert not {word for word in unknown if not re.fullmatch(r"FINODE_[A-Z]+__\w+", word)}


@each_document
def test_python_examples_are_python(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("finode"):
                module = __import__(str(node.module), fromlist=[alias.name for alias in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.slow
@pytest.mark.parametrize("path", write_docs.DOCUMENTS, ids=lambda path: path.name)
def test_generated_tables_are_what_the_code_gives(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert write_docs.render(text) == text, "run python scripts/write_docs.py"


def test_every_generated_block_is_used_once() -> None:
    used = [name for path in write_docs.DOCUMENTS for name in write_docs.names_in(path.read_text(encoding="utf-8"))]

    assert sorted(used) == sorted(write_docs.BLOCKS)


def test_every_message_reason_and_fault_is_documented() -> None:
    text = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")

    assert set(write_docs.REASONS) == set(RefusalReason)
    for cls in message.types().values():
        assert f"#### {cls.__name__}\n" in text
    for value in [*RefusalReason, *Fault]:
        assert f"| `{value}` |" in text


def test_the_topic_is_the_same_in_the_wire_modules_words() -> None:
    named = write_docs.gossip_topic().replace("<federation>", "")

    assert named == "finode/records/1/"
    assert f"`{named}<federation>`" in (directory.__doc__ or "")


def test_the_changelog_has_this_version() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]

    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_costs_in_the_design_are_those_of_the_gates() -> None:
    from finode.smpc.gates.base import Gate
    from finode.smpc.gates.linear import Mask
    from finode.smpc.gates.maximum import ArgMax, Winners
    from finode.smpc.gates.pool import MaxPool, Window
    from finode.smpc.gates.softmax import Exp, Multiply, Reciprocal, Softmax
    from finode.smpc.gates.truncate import Truncate, TruncateRelu

    window = Window(kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0))
    gates: dict[str, Gate[Any]] = {
        "linear layer or convolution": Mask((1,)),
        "truncate,": Truncate((1,), 16),
        "truncate + ReLU": TruncateRelu((1,), 16, 28),
        "2x2 max-pool": MaxPool((1, 1, 1, 2, 2), window, 16, 28, relu=True),
        "exp ": Exp((1,), 16, 28),
        "reciprocal": Reciprocal((1,), 10),
        "product of two secrets": Multiply((1,), (1,)),
        "largest of 10": ArgMax((1, 10), 16, 28, Winners.ONE_HOT),
        "softmax over 10": Softmax((1, 10), 16, 16, 28),
    }
    table = (ROOT / "docs/design.md").read_text(encoding="utf-8").partition("| gate | rounds | bits |")[2]
    rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()[2:]]
    stated = {text: (int(rounds), int(bits)) for text, rounds, bits in rows}

    assert len(stated) == len(gates)
    for name, gate in gates.items():
        (found,) = [cost for text, cost in stated.items() if text.startswith(name)]
        assert found == (gate.cost().rounds, gate.cost().bits), name
