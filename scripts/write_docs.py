"""Writes the tables in docs/ that follow from the code: `python scripts/write_docs.py`; `--check` only compares.

The prose is written by hand; what lies between `<!-- generated: NAME -->` and `<!-- end -->` is replaced by the block
of that name in `BLOCKS`. Messages, fields and rules come from the registered classes and their `__post_init__`, the
words from their docstrings, settings from `finode.config`. Modules that import torch or libp2p are read as sources and
never imported.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

from finode.config import Config, Role
from finode.models.graph import SUPPORTED
from finode.net import directory as records
from finode.net.standing import GRAYLIST, LOWEST, RECOVERY_PER_HOUR, PeerFault
from finode.node.verdicts import BLAMELESS, WORDS
from finode.wire import (
    committee,
    contribution,
    control,
    cosigning,
    directory,
    message,
    preprocessing,
    receipts,
    reconciliation,
    session,
    shares,
    signed,
)
from finode.wire.committee import RefusalReason
from finode.wire.message import HEADER, KIB, MIB, Message
from finode.wire.shares import Fault

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "docs" / "protocol.md", ROOT / "docs" / "operate.md")
WIRE: tuple[ModuleType, ...] = (
    control,
    directory,
    committee,
    shares,
    preprocessing,
    session,
    receipts,
    cosigning,
    reconciliation,
    contribution,
)
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w./-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What a person may want to know of a refusal beyond its name. A reason that is missing here fails the generation.
REASONS: Mapping[RefusalReason, str] = {
    RefusalReason.BUSY: "as many sessions run on the member as its `capacity` allows",
    RefusalReason.SHUTTING_DOWN: "the member stops",
    RefusalReason.BAD_TERMS: "the terms contradict themselves or the member's own facts; `detail` says how",
    RefusalReason.EXPIRED: "the terms, or the committee, are past `expires_ms`",
    RefusalReason.WRONG_FEDERATION: "`[federation] name` differs",
    RefusalReason.NOT_ON_ROSTER: "a member or the querier is not on the refusing member's roster",
    RefusalReason.ROLE_NOT_OFFERED: "the member does not have the role of its seat",
    RefusalReason.SAME_ORGANIZATION: "two of parties and dealer, or dealer and querier, are of one organization",
    RefusalReason.UNKNOWN_SERVICE: "the service, or its digest, is not the one of the owner's model",
    RefusalReason.UNKNOWN_MODEL: "the owner has no such version, or another plan for it",
    RefusalReason.UNSUPPORTED_ENGINE: "the member, or the model, does not run on the engine",
    RefusalReason.PRICE_TOO_LOW: "the terms offer less than the member asks",
    RefusalReason.BATCH_TOO_LARGE: "more inputs at once than the member, or the terms, allow",
    RefusalReason.PARTY_NOT_ALLOWED: "the owner's `allow_parties` does not name a party's organization",
    RefusalReason.REQUIRED_PARTY_MISSING: "none of the owner's `require_party` is a party",
    RefusalReason.DEALER_NOT_ALLOWED: "the owner's `allow_dealers` does not name the dealer's organization",
    RefusalReason.QUERIER_NOT_ALLOWED: "the owner's `allow_queriers` does not name the querier's organization",
    RefusalReason.QUERY_LIMIT: "the terms' `quota` does not fit into the owner's `queries_per_day`",
    RefusalReason.REVEALS_TOO_MUCH: "the terms reveal more than the owner's `reveal_at_most`",
    RefusalReason.STORAGE_FULL: "the party has no room for weight shares",
    RefusalReason.NOT_SEALED: "the member knows no sealed committee of that id",
    RefusalReason.QUOTA_USED: "the committee's `quota` is used up",
    RefusalReason.OTHER_REWARDS: "a rule of the terms' `rewards` is not the member's `[federation]` setting",
    RefusalReason.NO_CREDIT: "the terms could bring the querier's balance below the federation's `credit_limit`",
    RefusalReason.CONDEMNED: "a member or the querier signed two receipts, or statements, that contradict each other",
}


# -- sources ---------------------------------------------------------------------------------------------------------


def source_of(path: str) -> ast.Module:
    """Return the syntax tree of a source file, by its path from the root."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def module_doc(path: str) -> str:
    return ast.get_docstring(source_of(path)) or ""


def member_docs(cls: type[Enum]) -> dict[str, str]:
    """Return the docstring under each member of an enum, which Python itself forgets."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]).body
    docs = {}
    for statement, following in pairwise(body):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.targets[0].id] = inspect.cleandoc(str(following.value.value)).replace("\n", " ")
    return docs


def calls(name: str, position: int) -> Iterator[tuple[str, ast.expr]]:
    """Yield (file, argument) of every call of `name`, or `x.name`, in finode."""
    for path in sorted((ROOT / "finode").rglob("*.py")):
        if path.is_relative_to(ROOT / "finode" / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) > position:
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == name:
                    yield path.relative_to(ROOT).as_posix(), node.args[position]


def hash_domains() -> list[str]:
    """Return the domain tags under which anything is hashed with `canonical.digest`."""
    found = {argument.value for _, argument in calls("digest", 0) if isinstance(argument, ast.Constant)}
    return sorted(str(value) for value in found)


def signed_statements() -> list[str]:
    """Return the names of the message types that `open_signed` is called for."""
    return sorted({argument.id for _, argument in calls("open_signed", 1) if isinstance(argument, ast.Name)} - {"cls"})


def constant(path: str, name: str) -> object:
    """Return the value of a module's constant, without importing the module."""
    for node in source_of(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise SystemExit(f"{path} has no {name}")


def gossip_topic() -> str:
    """Return the topic as finode.net publishes on it, with the field's name in place of its value."""
    for node in ast.walk(source_of("finode/net/gossip.py")):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self.topic":
            parts = typing.cast(ast.JoinedStr, node.value).values
            return "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"<{ast.unparse(part.value)}>"
                for part in parts
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
    raise SystemExit("finode/net/gossip.py sets no self.topic")


# -- types and rules -------------------------------------------------------------------------------------------------


def type_name(kind: object) -> str:
    """Return how a field's type is written in the tables."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"list of {type_name(arguments[0])}"
        return "(" + ", ".join(map(type_name, arguments)) + ")"
    if isinstance(kind, types.UnionType) and arguments[-1] is types.NoneType:
        return f"{type_name(arguments[0])} or nil"
    if isinstance(kind, typing.NewType):
        return kind.__name__
    if isinstance(kind, type):
        if dataclasses.is_dataclass(kind) or issubclass(kind, Enum):
            return f"[{kind.__name__}](#{kind.__name__.lower()})"
        return {"str": "text", "int": "integer", "bool": "boolean", "float": "float64"}.get(
            kind.__name__, kind.__name__
        )
    raise SystemExit(f"no name for the type {kind}")


def rules(cls: type) -> list[str]:
    """Return what `__post_init__` of a class checks, as expressions over its fields."""
    if "__post_init__" not in vars(cls):
        return []
    namespace = vars(importlib.import_module(cls.__module__))
    tree = ast.parse(textwrap.dedent(inspect.getsource(vars(cls)["__post_init__"]))).body[0]
    return list(_rules(typing.cast(ast.FunctionDef, tree).body, namespace, "", {}))


def _rules(
    body: list[ast.stmt], namespace: Mapping[str, object], where: str, outer: Mapping[str, str]
) -> Iterator[str]:
    known = dict(outer)
    for statement in body:
        if isinstance(statement, ast.For):
            target, values = ast.unparse(statement.target), _text(statement.iter, namespace)
            yield from _rules(statement.body, namespace, f", for each `{target}` in `{values}`", known)
        elif isinstance(statement, ast.If):
            yield from _rules(statement.body, namespace, f"{where}, if `{_text(statement.test, namespace)}`", known)
        elif isinstance(statement, ast.Assign):
            value = _text(statement.value, namespace)
            known[ast.unparse(statement.targets[0])] = "that field" if value == "getattr(self, name)" else f"`{value}`"
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            rule = _rule(statement.value, namespace)
            used = [name for name in known if re.search(rf"\b{name}\b", rule)]
            yield rule + "".join(f", where `{name}` is {known[name]}" for name in used) + where


def _rule(call: ast.Call, namespace: Mapping[str, object]) -> str:
    subject = _text(call.args[0], namespace).replace("getattr(self, name)", "name")
    match ast.unparse(call.func):
        case "check":
            return f"`{subject}`"
        case "check_id":
            return f"`{subject}` has {_text(call.args[1], namespace)} bytes"
        case "check_printable":
            return f"`{subject}` is printable"
        case "check_seconds":
            return f"`{subject}` is finite and not negative"
        case "check_ascending":
            return f"`{subject}` is ascending, at most {_text(call.args[1], namespace)}"
        case "public_key_of":
            return f"`{subject}` is an Ed25519 peer id"
    raise SystemExit(f"no words for the check {ast.unparse(call)}")


class _Plain(ast.NodeTransformer):
    """Drops `self.` and puts the values of constants in the place of their names."""

    def __init__(self, namespace: Mapping[str, object]) -> None:
        self._namespace = namespace

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return ast.copy_location(ast.Name(node.attr), node)
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self._namespace.get(node.id)
        return ast.copy_location(ast.Constant(value), node) if isinstance(value, int) and node.id.isupper() else node


def _text(node: ast.expr, namespace: Mapping[str, object]) -> str:
    text = ast.unparse(_Plain(namespace).visit(node))
    # ast writes a generator's own parentheses inside of those of the call.
    return text.replace("all((", "all(").replace("))", ")") if "all((" in text else text


# -- blocks ----------------------------------------------------------------------------------------------------------


def table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headers, tuple("---" for _ in headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def size(count: int) -> str:
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"


def doc_of(cls: type) -> str:
    """Return a class's docstring as one paragraph, "" where dataclasses made one up."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    return "" if doc.startswith(f"{cls.__name__}(") else re.sub(r"\s*\n\s*", " ", doc)


def messages_of(module: ModuleType) -> list[type[Message]]:
    registered = message.types().values()
    return sorted((cls for cls in registered if cls.__module__ == module.__name__), key=lambda cls: cls.code)


def members_of(module: ModuleType, kind: type) -> list[type]:
    """Return the classes that a module defines, in its order, which are dataclasses but no messages, or enums."""
    found = [
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    if kind is Enum:
        return [cls for cls in found if issubclass(cls, Enum)]
    return [cls for cls in found if dataclasses.is_dataclass(cls) and not issubclass(cls, Message)]


def describe(cls: type, heading: str) -> str:
    """Return the section of one dataclass."""
    hints = typing.get_type_hints(cls)
    parts = [f"#### {cls.__name__}\n\n{heading}"]
    if doc := doc_of(cls):
        parts.append(f"{doc}\n")
    # No column of defaults: every field is always on the wire.
    rows: list[tuple[str, ...]] = [
        (f"`{field.name}`", type_name(hints[field.name])) for field in dataclasses.fields(cls)
    ]
    parts.append(table(("field", "type"), rows))
    if checked := rules(cls):
        parts.append("Checked:\n\n" + "".join(f"- {rule}\n" for rule in checked))
    return "\n".join(parts)


def enum_section(cls: type[Enum]) -> str:
    values = ", ".join(f"`{member.value}`" for member in cls)
    return f"#### {cls.__name__}\n\n{doc_of(cls)} Text: {values}.\n"


def protocol_block(module: ModuleType) -> str:
    """Return everything about one protocol."""
    parts = [f"```text\n{inspect.cleandoc(module.__doc__ or '')}\n```\n"]
    for cls in messages_of(module):
        parts.append(describe(cls, f"Code {cls.code}, at most {size(cls.limit)}.\n"))
    parts += [describe(cls, "Part of a message.\n") for cls in members_of(module, object)]
    listed_elsewhere = (RefusalReason, Fault)
    parts += [enum_section(cls) for cls in members_of(module, Enum) if cls not in listed_elsewhere]
    return "\n".join(parts)


def protocols_block() -> str:
    rows = [
        (
            f"`{module.PROTOCOL}`",
            ", ".join(f"[{cls.__name__}](#{cls.__name__.lower()})" for cls in messages_of(module)),
        )
        for module in WIRE
    ]
    return table(("protocol id", "messages"), rows)


def codes_block() -> str:
    rows = [
        (str(code), f"[{cls.__name__}](#{cls.__name__.lower()})", size(cls.limit), f"`{_module(cls).PROTOCOL}`")
        for code, cls in sorted(message.types().items())
    ]
    return table(("code", "message", "limit", "protocol"), rows)


def _module(cls: type) -> ModuleType:
    return importlib.import_module(cls.__module__)


def frame_block() -> str:
    header = f"The header is `struct` format `{HEADER.format}`, {HEADER.size} bytes."
    kinds = f"Kind {message.KIND_MESSAGE} is a message, {message.KIND_RAW} a raw frame."
    bulk = f"Bulk is cut into raw frames of at most {size(shares.CHUNK_BYTES)}."
    return f"```text\n{inspect.cleandoc(message.__doc__ or '')}\n```\n\n{header} {kinds} {bulk}\n"


def signatures_block() -> str:
    rows = []
    for name in signed_statements():
        cls = next(cls for cls in message.types().values() if cls.__name__ == name)
        tag = signed._domain(cls).decode().replace("\0", "\\0")
        rows.append((f"[{name}](#{name.lower()})", f"`{tag}`", size(cls.limit)))
    return "\n".join(
        [
            table(("statement", "domain tag", "limit of the body"), rows),
            describe(signed.Signed, "Part of a message.\n"),
        ]
    )


def hashes_block() -> str:
    return table(("hash of", "prefix of the hashed bytes"), [(tag, f"`finode/{tag}\\0`") for tag in hash_domains()])


def reasons_block() -> str:
    return table(("reason", "meaning"), [(f"`{reason.value}`", REASONS[reason]) for reason in RefusalReason])


def faults_block() -> str:
    rows = [
        (f"`{fault.value}`", f"the culprit {WORDS[fault]}", "no" if fault in BLAMELESS else "yes") for fault in Fault
    ]
    return table(("fault", "meaning", "lowers its standing at the querier"), rows)


def records_block() -> str:
    rows = []
    for verdict in records.Verdict:
        fault = records.FAULT_OF.get(verdict)
        cost = f"{fault.value:g}" if fault else "0"
        if verdict is records.Verdict.CONTRADICTORY:
            cost = f"0; its signer's {PeerFault.BAD_RECORD.value:g}"
        rows.append((f"`{verdict.value}`", "kept" if verdict.is_good else "dropped", cost))
    limits = (
        f"A record, in its envelope, has at most {size(records.MAX_ENVELOPE)}. It may live for "
        f"{records.MAX_LIFETIME_MS // 1000} s at most, and be issued up to {records.SKEW_MS // 1000} s ahead of the "
        f"receiver's clock. A directory holds {records.MAX_RECORDS} peers; one answer of a sync carries up to "
        f"{size(records.SYNC_BYTES)} of records, the rest comes with the next one.\n"
    )
    return limits + "\n" + table(("verdict", "the record is", "points it costs the sender's standing"), rows)


def standing_block() -> str:
    docs = member_docs(PeerFault)
    rows = [(fault.name.lower().replace("_", " "), f"{fault.value:g}", docs.get(fault.name, "")) for fault in PeerFault]
    points = constant("finode/node/querier.py", "FAULT_POINTS")
    mishap = constant("finode/node/querier.py", "MISHAP_POINTS")
    words = (
        f"A newcomer has 0, the lowest is {LOWEST:g}; {RECOVERY_PER_HOUR:g} points come back in an hour. At "
        f"{GRAYLIST:g} and below a peer's gossip and records are not looked at. A member that ended a session with a "
        f"fault that counts (see [faults](#faults)) loses {points:g} at the querier if it broke the protocol, and "
        f"{mishap:g} otherwise.\n"
    )
    return words + "\n" + table(("fault", "points", "what it is"), rows)


def settings_block() -> str:
    """Return a table for every section of `finode.toml`."""
    parts = []
    for section, field in Config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows = [
                (f"`{name}`", f"`{_setting(setting.default)}`", setting.description or "")
                for name, setting in kind.model_fields.items()
            ]
            doc = inspect.cleandoc(kind.__doc__ or "").replace("\n", " ")
            parts.append(f"**`[{section}]`** {doc}\n\n{table(('setting', 'default', 'what it is'), rows)}")
    return "\n".join(parts)


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_setting, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _source_block(path: str) -> Callable[[], str]:
    return lambda: f"```text\n{module_doc(path)}\n```\n"


def operators_block() -> str:
    """Return the ONNX operators that a model may have, in lines of one paragraph."""
    return textwrap.fill(", ".join(f"`{name}`" for name in SUPPORTED), width=120)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "protocols": protocols_block,
    "codes": codes_block,
    "frame": frame_block,
    "canonical": _source_block("finode/wire/canonical.py"),
    "multistream": _source_block("finode/net/negotiation.py"),
    "topic": lambda: f"Topic: `{gossip_topic()}`.\n",
    "signatures": signatures_block,
    "hashes": hashes_block,
    "reasons": reasons_block,
    "faults": faults_block,
    "records": records_block,
    "standing": standing_block,
    "engine-frames": _source_block("finode/smpc/frames.py"),
    "export": _source_block("finode/ledger/export.py"),
    "settings": settings_block,
    "plan": _source_block("finode/smpc/plan.py"),
    "operators": operators_block,
    "role": lambda: enum_section(Role),
    **{module.__name__.rpartition(".")[2]: partial(protocol_block, module) for module in WIRE},
}


def render(text: str) -> str:
    """Return the document with every generated block written anew; `KeyError` for a name that no block has."""
    return _BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match['name']]().rstrip()}\n\n{match[3]}", text)


def names_in(text: str) -> list[str]:
    """Return the names of the generated blocks of a document."""
    return [match["name"] for match in _BLOCK.finditer(text)]


def main(arguments: list[str]) -> int:
    """Rewrite the documents, or with `--check` only say which of them are not what the code gives."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: write_docs.py [--check]\n")
        return 2
    stale = [path for path in DOCUMENTS if render(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")]
    for path in stale:
        if arguments:
            sys.stderr.write(f"{path} is not what the code gives: run python scripts/write_docs.py\n")
        else:
            path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
    return int(bool(arguments and stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
