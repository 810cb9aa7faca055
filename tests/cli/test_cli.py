"""The commands, against a fake node's API and real homes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from click.testing import CliRunner, Result

from finode import errors
from finode.cli.root import COMMANDS, finode
from finode.daemon.home import init_home
from finode.identity import Identity
from finode.net.roster import load_roster
from finode.node.interface import ProgressCallback, QueryRequest
from tests.fakes.node import CLASSES, COMMITTEE, DEALER, OWNER, PARTIES, PEER, SESSION, SILENT, FakeNode

Run = Callable[..., Result]


@pytest.fixture
def idle_home(tmp_path: Path) -> Path:
    """A home on which nothing runs."""
    path = tmp_path / "idle"
    init_home(path, "Clinic South")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(finode, [str(argument) for argument in arguments])


def found(*arguments: object) -> Any:
    """Run a command that succeeds and prints JSON and nothing else on standard output."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result, *says: str, status: int = 1) -> None:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    for text in says:
        assert text in result.stderr
    assert "Traceback" not in result.stderr
    if status == 1:
        assert result.stderr.startswith("finode: error: ")
        assert len(result.stderr.splitlines()) <= 2


def fits_80_columns(result: Result) -> None:
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


# ---- the command line itself


def test_help_lists_every_command_and_each_has_help_of_its_own() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"  {name} " in result.stdout
        assert run(name, "--help").exit_code == 0
    assert run("--version").stdout == "finode 0.1.0\n"


@pytest.mark.slow
def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import finode.cli.__main__\n"
        "from finode.cli.root import finode, COMMANDS\n"
        "import importlib\n"
        "for module, _, _ in COMMANDS.values():\n"
        "    if module.startswith('.'): importlib.import_module(module, 'finode.cli')\n"
        "heavy = {'torch', 'libp2p', 'fastapi', 'pydantic', 'onnx', 'numpy', 'httpx', 'trio'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["query"],
        ["query", "digits"],
        ["query", "digits", "x.npy", "--parties", "1"],
        ["query", "digits", "x.npy", "--vote", "loud"],
        ["query", "digits", "x.npy", "--weights", "a"],
        ["query", "digits", "x.npy", "--weights", "a=1,a=2"],
        ["query", "digits", "x.npy", "--weights", "a=much"],
        ["query", "digits", "x.npy", "--copies", "0"],
        ["query", "digits", "x.npy", "--deadline", "0"],
        ["start", "--role", "king"],
        ["models", "add", "m.onnx"],
        ["models", "add", "m.onnx", "--service", "s", "--price", "-1"],
        ["peers", "trust", "12D3KooW"],
        ["status", "--colour"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    refused(run(*arguments), "Usage:", "Error:", status=2)


def test_interrupting_is_quiet(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anyio.run", interrupted)

    result = run("status", "--home", home)

    assert (result.exit_code, result.stdout, result.stderr.strip()) == (130, "", "")


@pytest.mark.slow
def test_a_bug_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    code = (
        "import finode.cli.setup as s, finode.cli.__main__ as m, sys\n"
        "s.resolved = lambda home: 1 / 0\n"
        "sys.argv = ['finode', 'init']\n"
        "m.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "finode: internal error: ZeroDivisionError: division by zero",
        "hint: this is a bug; FINODE_TRACEBACK=1 shows where",
    ]


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error_to_speak_of(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "finode.cli", "peers", "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# ---- init, start, id


def test_init_makes_a_home_once(tmp_path: Path) -> None:
    home = tmp_path / "new"

    result = run("init", "--home", home, "--org", "Clinic North")

    assert result.exit_code == 0
    peer = Identity.load(home / "identity.key").peer_id
    assert peer in result.stdout
    assert load_roster(home / "roster.toml") == {peer: "Clinic North"}
    refused(run("init", "--home", home), "identity.key exists already", "hint: ")


def test_the_home_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINODE_HOME", str(tmp_path / "from-environment"))

    assert run("init").exit_code == 0
    assert (tmp_path / "from-environment" / "identity.key").exists()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that `start` was asked to run with; nothing is really run."""
    configs: list[Any] = []

    def record(config: Any) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(importlib.import_module("finode.daemon.run"), "run", record)
    return configs


def test_start_on_a_fresh_home_makes_it_first(tmp_path: Path, started: list[Any]) -> None:
    home = tmp_path / "fresh"
    arguments = ["start", "--home", home, "--role", "party", "--role", "dealer", "--org", "Clinic", "--api", "[::1]:0"]

    result = run(*arguments, "--listen", "/ip4/127.0.0.1/tcp/0", "--log-format", "json", "--trust", "open")

    assert result.exit_code == 0, result.output
    (config,) = started
    assert config.node.roles == ("party", "dealer")
    assert config.node.organization == "Clinic"
    assert config.network.listen == ("/ip4/127.0.0.1/tcp/0",)
    assert (config.api.bind, config.log.format, config.federation.trust) == ("[::1]:0", "json", "open")
    peer = Identity.load(home / "identity.key").peer_id
    assert load_roster(home / "roster.toml") == {peer: "Clinic"}
    assert run("start", "--home", home, "--role", "party").exit_code == 0
    assert Identity.load(home / "identity.key").peer_id == peer


def test_flags_come_before_the_environment_and_that_before_the_file(
    tmp_path: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "finode.toml").write_text(
        '[node]\norganization = "file"\ncapacity = 9\n[querier]\nparties = 5\n[api]\nbind = "127.0.0.1:1"\n'
    )
    monkeypatch.setenv("FINODE_QUERIER__PARTIES", "4")
    monkeypatch.setenv("FINODE_NODE__ORGANIZATION", "environment")

    result = run("start", "--home", home, "--org", "flag", "--api", "127.0.0.1:2")

    assert result.exit_code == 0, result.output
    (config,) = started
    assert (config.node.organization, config.node.capacity, config.querier.parties) == ("flag", 9, 4)
    assert config.api.bind == "127.0.0.1:2"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--api", "nowhere"], "HOST:PORT"),
        (["--api", "0.0.0.0:7878"], "token"),
        (["--bootstrap", "/ip4/10.0.0.1/tcp/1"], "/p2p/PEER_ID"),
    ],
)
def test_a_wrong_flag_leaves_no_home_behind(tmp_path: Path, started: list[Any], flags: list[str], says: str) -> None:
    refused(run("start", "--home", tmp_path / "fresh", *flags), says)
    assert not (tmp_path / "fresh").exists()
    assert started == []


def test_id(home: Path, idle_home: Path) -> None:
    peer = Identity.load(home / "identity.key").peer_id
    assert run("id", "--home", home).stdout.splitlines() == [peer]
    assert run("id", "--addresses", "--home", home).stdout.splitlines() == [peer, f"/ip4/127.0.0.1/tcp/4001/p2p/{peer}"]
    idle = Identity.load(idle_home / "identity.key").peer_id
    assert found("id", "--home", idle_home, "--json") == {"peer": idle, "addresses": []}
    refused(run("id", "--home", idle_home / "nothing"), "no identity", "finode init")


# ---- status, services, ps, peers


def test_views_as_json_have_full_ids(home: Path) -> None:
    assert found("status", "--home", home, "--json")["peer"] == PEER
    peers = found("peers", "--home", home, "--json")
    assert [peer["peer"] for peer in peers] == list(PARTIES)
    services = found("services", "--home", home, "--json")
    assert [service["name"] for service in services] == ["digits", "vectors"]
    assert services[0]["input"]["shape"] == [1, 2, 2]
    assert found("ps", "--home", home, "--json")[0]["session"] == SESSION


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("status", [PEER, "Clinic South", "owner, querier", "3 connected of 4 known"]),
        ("peers", [f"…{PARTIES[0][-8:]}", "Clinic East", "0.7 ms"]),
        ("services", ["digits", "1×2×2", "Clinic North"]),
        ("ps", [SESSION[:8], "digits", "round 3", "1.5 s"]),
    ],
)
def test_views_as_tables_fit_80_columns(home: Path, command: str, says: list[str]) -> None:
    result = run(command, "--home", home)

    fits_80_columns(result)
    for text in says:
        assert text in result.stdout


def test_without_a_daemon_it_is_said(idle_home: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 2)))
    for command in (["status"], ["peers"], ["services"], ["ps"], ["query", "digits", tmp_path / "x.npy"]):
        refused(run(*command, "--home", idle_home), "no daemon runs on", "finode start")


def test_peers_trust_and_distrust(home: Path, idle_home: Path, node: FakeNode) -> None:
    peer = Identity.generate().peer_id

    result = run("peers", "trust", peer, "--org", "Clinic East", "--home", home)

    assert result.exit_code == 0, result.output
    assert load_roster(home / "roster.toml")[peer] == "Clinic East"
    assert node.reloads == 1
    assert "already" in run("peers", "trust", peer, "--org", "Clinic East", "--home", home).stdout
    assert node.reloads == 1
    assert run("peers", "--home", home, "distrust", peer).exit_code == 0
    assert peer not in load_roster(home / "roster.toml")
    assert node.reloads == 2
    refused(run("peers", "distrust", peer, "--home", home), "not on the roster")
    refused(run("peers", "trust", "12D3KooWnope", "--org", "x", "--home", home), "12D3KooWnope")
    refused(run("peers", "trust", peer, "--org", "x", "--home", home / "nothing"), "not the home of a node")
    assert run("peers", "trust", peer, "--org", "Clinic East", "--home", idle_home).exit_code == 0


def test_a_daemon_that_cannot_reload_is_told_of_and_the_change_stays(home: Path, node: FakeNode) -> None:
    node.reload_error = errors.ConfigError("finode.toml is not valid TOML")
    peer = Identity.generate().peer_id

    result = run("peers", "trust", peer, "--org", "Clinic East", "--home", home)

    assert result.exit_code == 0
    assert "warning: the roster is changed, but" in result.stderr
    assert peer in load_roster(home / "roster.toml")


# ---- query


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    x = np.zeros((2, 1, 2, 2))
    x[0, 0, 0, 0] = 1
    np.save(path, x)
    return path


def test_query_passes_on_what_belongs_to_one_vote(home: Path, batch: Path, node: FakeNode) -> None:
    weights = "North Hospital=2, ab12=0.5,*=0"
    assert found("query", "digits", batch, "--home", home, "--vote", "weighted", "--weights", weights, "--json")
    assert found(
        "query", "digits", batch, "--home", home, "--vote", "augmented", "--copies", 5, "--gamma", -2.5, "--json"
    )
    assert found("query", "digits", batch, "--home", home, "--vote", "prior", "--json")

    first, second, third = node.requests
    assert (first.vote, first.weights) == ("weighted", {"North Hospital": 2.0, "ab12": 0.5, "*": 0.0})
    assert (second.vote, second.copies, second.gamma, second.weights) == ("augmented", 5, -2.5, None)
    assert (third.vote, third.copies, third.gamma) == ("prior", None, None)


def test_query_as_json_follows_the_schema(home: Path, batch: Path, node: FakeNode) -> None:
    arguments = ["--parties", 3, "--vote", "hard", "--deadline", "7.5", "--engine", "crypten", "--json"]

    answer = found("query", "digits", batch, "--home", home, *arguments)

    schema = ["service", "labels", "probabilities", "classes", "committee", "timings", "traffic", "engine"]
    assert list(answer)[: len(schema)] == schema
    assert answer["service"] == "digits"
    assert answer["labels"] == ["one", "zero"]
    assert answer["probabilities"] == [[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]
    assert answer["classes"] == list(CLASSES)
    committee = answer["committee"]
    assert (committee["id"], committee["parties"]) == (COMMITTEE, list(PARTIES))
    assert (committee["dealer"], committee["owners"]) == (DEALER, [OWNER])
    assert committee["left_out"] == [{"owner": SILENT, "version": "5a" * 32, "reason": "did not answer within 5 s"}]
    assert list(answer["timings"]) == ["negotiation_s", "deployment_s", "offline_s", "online_s", "total_s"]
    assert answer["traffic"] == {"rounds": 17, "bytes_sent_per_party": [1000, 1001], "offline_bytes": 5000}
    assert answer["engine"] == "native"
    (request,) = node.requests
    assert (request.parties, request.vote, request.deadline_s, request.engine) == (3, "hard", 7.5, "crypten")


def test_query_reveals_no_more_than_asked(home: Path, batch: Path) -> None:
    answer = found("query", "digits", batch, "--home", home, "--reveal", "label", "--json")
    assert (answer["labels"], answer["probabilities"], answer["top"]) == (["one", "zero"], None, None)
    table = run("query", "digits", batch, "--home", home, "--reveal", "label")
    assert "one" in table.stdout
    assert "probability" not in table.stdout


def test_query_prints_a_table_and_its_progress_elsewhere(home: Path, batch: Path) -> None:
    result = run("query", "digits", batch, "--home", home)

    fits_80_columns(result)
    for text in ("one", "0.800", f"…{DEALER[-8:]} (Dealer Ltd)", "17 rounds", "1000 B, 1001 B", "4.9 KiB"):
        assert text in result.stdout
    assert f"model 5a5a5a5a of …{SILENT[-8:]} (Clinic South): did not answer" in " ".join(result.stdout.split())
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["committee", "deployment", "preprocessing", "rounds"]


def test_query_takes_json_and_images(home: Path, tmp_path: Path, node: FakeNode) -> None:
    from PIL import Image

    (tmp_path / "x.json").write_text("[[[0, 0.5], [1, 0.25]]]")
    pixels = np.array([[0, 8], [16, 4]], np.uint8)  # the service's scale is 1/16
    Image.fromarray(pixels).save(tmp_path / "x.png")

    for name in ("x.json", "x.png"):
        assert run("query", "digits", tmp_path / name, "--home", home).exit_code == 0

    assert [request.inputs.tolist() for request in node.requests] == [[[[[0, 0.5], [1, 0.25]]]]] * 2


def test_what_is_wrong_with_a_query_is_said(home: Path, batch: Path, tmp_path: Path, node: FakeNode) -> None:
    np.save(tmp_path / "nan.npy", np.array([[[[0, np.nan], [1, 1]]]]))
    np.save(tmp_path / "shape.npy", np.zeros((2, 3)))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY garbage")
    (tmp_path / "words.json").write_text('["a"]')
    cases = {"nan.npy": "NaN", "shape.npy": "shape", "broken.npy": "broken.npy", "words.json": "words.json"}
    for name, says in {**cases, "x.txt": "x.txt", "missing.npy": "missing.npy"}.items():
        refused(run("query", "digits", tmp_path / name, "--home", home), says)
    refused(run("query", "chest-xray", batch, "--home", home), "'chest-xray'", "services known: digits, vectors")
    assert node.requests == []


def test_a_session_that_ends_badly_says_who_and_where(home: Path, batch: Path, node: FakeNode) -> None:
    async def fail(_: QueryRequest, __: ProgressCallback) -> None:
        await trio.lowlevel.checkpoint()
        raise errors.SessionAborted(
            f"{PARTIES[1]} went silent at round 7\nand stayed so", culprit=PARTIES[1], round=7, hint="ask again"
        )

    node.before_answer = fail

    result = run("query", "digits", batch, "--home", home, "--json")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-2:] == [
        f"finode: error: {PARTIES[1]} went silent at round 7 and stayed so",
        "hint: ask again",
    ]


@pytest.mark.slow
def test_ctrl_c_cancels_the_query_at_the_daemon(home: Path, batch: Path, node: FakeNode) -> None:
    import signal

    async def forever(_: QueryRequest, __: ProgressCallback) -> None:
        await trio.sleep_forever()

    node.before_answer = forever
    with subprocess.Popen(
        [sys.executable, "-m", "finode.cli", "query", "digits", str(batch), "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("rounds"):
                break
        process.send_signal(signal.SIGINT)
        output, rest = process.communicate(timeout=10)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in rest
    deadline = time.monotonic() + 5
    while not node.query_cancelled.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert node.query_cancelled.is_set()
