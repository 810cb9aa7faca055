from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from finode.errors import ModelError, StorageFull
from finode.models import registry as registry_module
from finode.models.registry import DATABASE_NAME, FOLDER_NAME, ModelEntry, Registry
from finode.wire.directory import MAX_MODELS, InputSpec, ServiceSpec
from tests.models.building import small_import

SERVICE = ServiceSpec(name="digits", input=InputSpec(shape=(1, 2, 2)), classes=("a", "b", "c"))


def files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / FOLDER_NAME).iterdir())


def test_what_is_added_comes_back_in_another_process_life(home: Path) -> None:
    imported = small_import()
    entry = Registry(home, clock=lambda: 1234.5).add(imported, SERVICE, 7)

    again = Registry(home)
    assert again.list() == (entry,)
    assert again.get(entry.version) == entry
    assert again.find(entry.version.hex()[:6].upper()) == entry
    assert again.service("digits") == SERVICE
    assert again.service("other") is None
    assert (entry.price, entry.added, entry.parameters, entry.operators) == (7, 1234.5, 12, ("Flatten", "Gemm"))
    assert entry.offer().plan_digest == imported.plan.digest()
    weights = again.load_weights(entry.version)
    assert weights.keys() == imported.weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, imported.weights[name])
        assert array.dtype == np.float64


def test_an_empty_home_has_no_models_and_nothing_is_made_by_asking(home: Path) -> None:
    registry = Registry(home)
    assert registry.list() == ()
    with pytest.raises(ModelError, match="no model of version"):
        registry.get(bytes(32))
    with pytest.raises(ModelError, match="no model matches"):
        registry.find("ab")
    assert list(home.iterdir()) == []


def test_everything_on_disk_is_the_owners_alone(home: Path) -> None:
    old = os.umask(0)
    try:
        registry = Registry(home)
        entry = registry.add(small_import(), SERVICE, 0)
        with sqlite3.connect(home / DATABASE_NAME) as held:  # keeps the WAL in place
            held.execute("SELECT count(*) FROM models").fetchone()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
        held.close()
    finally:
        os.umask(old)
    assert modes.pop(FOLDER_NAME) == 0o700
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(entry.weights_path.stat().st_mode) == 0o600


def test_the_version_is_bound_to_weights_and_plan_but_cannot_be_guessed(home: Path, tmp_path: Path) -> None:
    registry = Registry(home)
    one, other = registry.add(small_import(1.0), SERVICE, 0), registry.add(small_import(1.5), SERVICE, 0)
    assert one.plan == other.plan
    assert one.version != other.version
    # Another owner with the very same weights gets another version: nobody can test a guess against it.
    elsewhere = Registry(tmp_path / "elsewhere").add(small_import(1.0), SERVICE, 0)
    assert elsewhere.version != one.version
    # The same owner gets the same version again.
    registry.remove(one.version)
    assert registry.add(small_import(1.0), SERVICE, 0).version == one.version


def test_the_same_model_twice_is_refused_and_says_where_it_is(home: Path) -> None:
    registry = Registry(home)
    entry = registry.add(small_import(), SERVICE, 0)
    other = ServiceSpec(name="other", input=SERVICE.input, classes=SERVICE.classes)
    for service in (SERVICE, other):
        with pytest.raises(ModelError, match=r"registered already, as version .* of service 'digits'"):
            registry.add(small_import(), service, 1)
    assert registry.list() == (entry,)
    assert files(home) == [entry.weights_path.name]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (ServiceSpec(name="digits", input=SERVICE.input, classes=("a", "c", "b")), "on classes"),
        (
            ServiceSpec(name="digits", input=InputSpec(shape=(1, 2, 2), scale=1.0), classes=("a", "b", "c")),
            "input.scale",
        ),
        (
            ServiceSpec(name="digits", input=InputSpec(shape=(1, 2, 2), mean=(0.5,)), classes=("a", "b", "c")),
            "input.mean",
        ),
    ],
)
def test_models_of_a_service_must_agree(home: Path, changed: ServiceSpec, words: str) -> None:
    registry = Registry(home)
    registry.add(small_import(1.0), SERVICE, 0)
    with pytest.raises(ModelError, match=f"does not agree with service 'digits' on .*{words}|{words}"):
        registry.add(small_import(2.0), changed, 0)
    assert len(registry.list()) == 1


def test_a_model_must_fit_its_service(home: Path) -> None:
    registry = Registry(home)
    with pytest.raises(ModelError, match="the model has 3 classes, service 'digits' names 2"):
        registry.add(small_import(), ServiceSpec(name="digits", input=SERVICE.input, classes=("a", "b")), 0)
    with pytest.raises(ModelError, match="inputs of the shape"):
        registry.add(small_import(), ServiceSpec(name="d", input=InputSpec(shape=(4,)), classes=("a", "b", "c")), 0)
    with pytest.raises(ModelError, match="price"):
        registry.add(small_import(), SERVICE, -1)


def test_a_removed_model_leaves_no_file(home: Path) -> None:
    registry = Registry(home)
    entry = registry.add(small_import(), SERVICE, 0)
    assert registry.remove(entry.version) == entry
    assert registry.list() == ()
    assert files(home) == []
    with pytest.raises(ModelError, match="no model of version"):
        registry.remove(entry.version)
    with pytest.raises(ModelError, match="no model of version"):
        registry.load_weights(entry.version)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_a_damaged_weight_file_is_named(home: Path, damage: str) -> None:
    registry = Registry(home)
    entry = registry.add(small_import(), SERVICE, 0)
    data = entry.weights_path.read_bytes()
    if damage == "missing":
        entry.weights_path.unlink()
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        entry.weights_path.write_bytes({"truncated": data[:-8], "flipped": flipped, "empty": b""}[damage])
    with pytest.raises(ModelError, match=entry.weights_path.name):
        registry.load_weights(entry.version)


def test_a_database_that_is_none_is_named(home: Path) -> None:
    (home / DATABASE_NAME).write_bytes(b"not a database at all" * 100)
    for use in (lambda: Registry(home).list(), lambda: Registry(home).add(small_import(), SERVICE, 0)):
        with pytest.raises(ModelError, match=DATABASE_NAME):
            use()


def test_a_row_that_cannot_be_read_is_reported(home: Path) -> None:
    registry = Registry(home)
    registry.add(small_import(), SERVICE, 0)
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        connection.execute("UPDATE models SET plan = x'00'")
    connection.close()
    with pytest.raises(ModelError, match="a model's row cannot be read"):
        registry.list()


def test_a_newer_database_is_left_alone(home: Path) -> None:
    registry = Registry(home)
    registry.add(small_import(), SERVICE, 0)
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ModelError, match="newer finode"):
        registry.list()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    registry = Registry(home)
    kept = registry.add(small_import(1.0), SERVICE, 0)

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFull, match="no space left"):
            registry.add(small_import(2.0), SERVICE, 0)
    assert registry.list() == (kept,)
    assert files(home) == [kept.weights_path.name]
    registry.add(small_import(2.0), SERVICE, 0)


def test_a_full_database_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(home)
    kept = registry.add(small_import(1.0), SERVICE, 0)
    connect = sqlite3.connect

    def limited(*arguments: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)  # type: ignore[call-overload]
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    def add_many() -> None:
        for index in range(20):
            registry.add(small_import(3.0 + index), wide, 0)

    wide = ServiceSpec(name="wide", input=SERVICE.input, classes=tuple(letter * 128 for letter in "xyz"))
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", limited)
        # A row of some hundred bytes fits into a page that is there already; so many of them do not.
        with pytest.raises(StorageFull):
            add_many()
    assert kept in registry.list()
    assert files(home) == sorted(entry.weights_path.name for entry in registry.list())


def test_what_a_crash_left_is_swept_away_by_the_next_change(home: Path) -> None:
    registry = Registry(home)
    kept = registry.add(small_import(1.0), SERVICE, 0)
    (home / FOLDER_NAME / "0123-aa.weights").write_bytes(b"no row")
    (home / FOLDER_NAME / ".0123.weights.bb.partial").write_bytes(b"torn")
    (home / FOLDER_NAME / "notes.txt").write_text("not ours")
    added = registry.add(small_import(2.0), SERVICE, 0)
    assert files(home) == sorted(["notes.txt", kept.weights_path.name, added.weights_path.name])


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_the_registry_whole(home: Path) -> None:
    kept = Registry(home).add(small_import(1.0), SERVICE, 0)
    program = f"""
import os, signal
from pathlib import Path
from finode.models import registry
from tests.models.building import small_import
from tests.models.test_registry import SERVICE
write = registry.write_atomically
def killed(path, data):
    write(path, data)
    os.kill(os.getpid(), signal.SIGKILL)
registry.write_atomically = killed
registry.Registry(Path({str(home)!r})).add(small_import(2.0), SERVICE, 0)
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, check=False, timeout=60)
    assert ended.returncode == -9
    assert len(files(home)) == 2
    registry = Registry(home)
    assert registry.list() == (kept,)
    added = registry.add(small_import(2.0), SERVICE, 0)
    assert set(registry.list()) == {kept, added}
    assert len(files(home)) == 2


@pytest.mark.slow
def test_threads_and_processes_add_at_once(home: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from finode.models.registry import Registry
from tests.models.building import small_import
from tests.models.test_registry import SERVICE
for index in range(4):
    Registry(Path({str(home)!r})).add(small_import(100.0 * int(sys.argv[1]) + index), SERVICE, 0)
"""
    root = Path(__file__).parents[2]
    others = [subprocess.Popen([sys.executable, "-c", program, str(number)], cwd=root) for number in (1, 2)]
    registry = Registry(home)
    added: list[ModelEntry] = []
    threads = [
        threading.Thread(target=lambda value=value: added.append(registry.add(small_import(value), SERVICE, 0)))
        for value in (1.0, 2.0, 3.0, 4.0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(timeout=60) for other in others] == [0, 0]
    assert len(added) == 4
    entries = registry.list()
    assert len({entry.version for entry in entries}) == 12
    assert files(home) == sorted(entry.weights_path.name for entry in entries)


def test_more_models_than_a_record_holds_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_MODELS > 2
    monkeypatch.setattr(registry_module, "MAX_MODELS", 2)
    registry = Registry(home)
    for value in (1.0, 2.0):
        registry.add(small_import(value), SERVICE, 0)
    with pytest.raises(ModelError, match="at most 2 models"):
        registry.add(small_import(3.0), SERVICE, 0)


def test_labels_that_do_not_fit_into_a_record_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_MAX_SERVICES_BYTES", 100)
    with pytest.raises(ModelError, match="directory record"):
        Registry(home).add(
            small_import(), ServiceSpec(name="long", input=SERVICE.input, classes=("x" * 90, "y", "z")), 0
        )
    assert files(home) == []


def test_no_secret_in_reprs(home: Path) -> None:
    entry = Registry(home).add(small_import(1.2345), SERVICE, 0)
    assert "1.2345" not in repr(entry)
    assert "1.2345" not in repr(small_import(1.2345))
