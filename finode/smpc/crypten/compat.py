"""CrypTen 0.4.1, imported under a current torch and cut off from its own network, dealer and randomness.

`library()` imports it once per process and then

1. lets it find, while it imports, what it names and never uses here: `torch.onnx._internal.registration`, which moved,
   and `crypten.config`, for which it would want omegaconf and yaml; our settings are constant but for `functions.*`;
2. puts in place of its communicator, its default tuple provider and its generators those of the *current party*. Its
   own are unreachable: the first party that makes everybody's randomness, the third party, gloo, Mersenne Twisters;
3. switches its autograd off.

CrypTen keeps all of these in globals. The current party is a context variable instead, and each run's thread has a
context of its own, so that several runs in one process do not meet.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from finode.errors import LocalError, LocalProtocolError
from finode.smpc.crypten.availability import require
from finode.smpc.crypten.communicator import Communicator
from finode.smpc.crypten.randomness import Generator

if TYPE_CHECKING:
    from finode.smpc.crypten.tuples import Provider

_SETTINGS: Mapping[str, Any] = {
    # CrypTen's configs/default.yaml, as far as inference reads it; the provider is ours and has no name in CrypTen.
    "communicator.verbose": False,
    "debug.debug_mode": False,
    "debug.validation_mode": False,
    "encoder.precision_bits": 16,
    "functions.max_method": "log_reduction",
    "functions.exp_iterations": 8,
    "functions.reciprocal_method": "NR",
    "functions.reciprocal_nr_iters": 10,
    "functions.reciprocal_log_iters": 1,
    "functions.reciprocal_all_pos": False,
    "functions.reciprocal_initial": None,
    "mpc.active_security": False,
    "mpc.provider": "the dealer of the session",
    "mpc.protocol": "beaver",
}


@dataclass(slots=True)
class Party:
    """What CrypTen's globals stand for during one run: one party's, or a dry run's."""

    communicator: Communicator
    provider: Provider
    generators: Mapping[str, Generator]
    precision_bits: int
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that CrypTen changes for as long as one of its functions lasts."""


_current: ContextVar[Party] = ContextVar("the party whose run it is")


def current() -> Party:
    """Return the party whose run it is."""
    try:
        return _current.get()
    except LookupError:
        raise LocalProtocolError("CrypTen is used outside of a run") from None


@contextmanager
def running(party: Party) -> Iterator[None]:
    """Make `party` the current one."""
    token = _current.set(party)
    try:
        yield
    finally:
        _current.reset(token)


class _Section:
    """`cfg.functions` and its like."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        key, party = f"{self._name}.{name}", _current.get(None)
        if party is not None:
            if key == "encoder.precision_bits":
                return party.precision_bits
            if key in party.settings:
                return party.settings[key]
        if key not in _SETTINGS:
            raise AttributeError(f"CrypTen's setting {key} is not used here")
        return _SETTINGS[key]


class Settings:
    """Stands for CrypTen's `cfg`: it can be read, and functions may override `functions.*` while they last."""

    def __getattr__(self, name: str) -> _Section:
        return _Section(name)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise LocalError(f"CrypTen's setting {name} cannot be changed")

    __setitem__ = __setattr__

    @contextmanager
    def temp_override(self, changes: Mapping[str, Any]) -> Iterator[None]:
        """Change settings of the current party for as long as the body lasts."""
        if other := [name for name in changes if not name.startswith("functions.")]:
            raise LocalError(f"CrypTen's setting {other[0]} cannot be changed")
        settings = current().settings
        before = dict(settings)
        settings.update(changes)
        try:
            yield
        finally:
            settings.clear()
            settings.update(before)


class _Generators:
    """Stands for `crypten.generators`: by role, then by device."""

    def __getitem__(self, role: str) -> _OfRole:
        return _OfRole(role)


class _OfRole:
    def __init__(self, role: str) -> None:
        self._role = role

    def __getitem__(self, device: torch.device) -> Generator:
        return current().generators[self._role]


def _random_ring_element(
    size: tuple[int, ...], ring_size: int = 2**64, generator: Generator | None = None, device: Any = None
) -> Tensor:
    if ring_size != 2**64:
        raise LocalError(f"a ring of {ring_size} elements")
    return _random_bits(size, 64, generator, device)


def _random_bits(
    size: tuple[int, ...], bitlength: int | None = None, generator: Generator | None = None, device: Any = None
) -> Tensor:
    source = current().generators["local"] if generator is None else generator
    return source.elements(tuple(size), bitlength or 64, torch.device("cpu" if device is None else device))


def _refuse(*_: object, **__: object) -> NoReturn:
    raise LocalError("CrypTen's own communicator, generators and tuple providers cannot be used here")


class _Refused:
    """Stands for the providers that would make tuples elsewhere than at the dealer."""

    def __init__(self, *_: object, **__: object) -> None:
        _refuse()


@lru_cache(maxsize=1)
def library() -> ModuleType:
    """Return the module `crypten`, ready for use; raise `ConfigError` if it is not installed."""
    require()
    with _stand_ins():
        import crypten
        import crypten.communicator
        import crypten.mpc
        from crypten.common import rng
        from crypten.mpc.primitives import arithmetic, binary
        from crypten.mpc.provider import tfp_provider, ttp_provider

    def communicator() -> Communicator:
        return current().communicator

    def provider() -> Provider:
        return current().provider

    for name in ("init", "init_thread", "_setup_prng", "_sync_seeds", "manual_seed", "load_from_party"):
        setattr(crypten, name, _refuse)
    crypten.communicator._init = _refuse
    crypten.communicator.get = communicator
    crypten.mpc.get_default_provider = provider
    setattr(crypten.mpc, "__SUPPORTED_PROVIDERS", {})
    for module in (crypten.mpc.provider, tfp_provider, ttp_provider):
        for name in ("TrustedFirstParty", "TrustedThirdParty", "HomomorphicProvider"):
            setattr(module, name, _Refused)
    # Found in sys.modules, a module is not bound to its package by the import.
    crypten.config = sys.modules["crypten.config"]
    crypten.generators = _Generators()
    for module in (rng, arithmetic, binary, tfp_provider, ttp_provider):
        module.generate_random_ring_element = _random_ring_element
        module.generate_kbit_random_tensor = _random_bits
    crypten.CrypTensor.AUTOGRAD_ENABLED = False
    loaded: ModuleType = crypten
    return loaded


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Have the modules found that CrypTen imports and that are not there, for as long as it imports."""
    config = ModuleType("crypten.config")
    config.cfg = Settings()  # type: ignore[attr-defined]
    registration = ModuleType("torch.onnx._internal.registration")
    registration.registry = None  # type: ignore[attr-defined]
    sys.modules[config.__name__] = config
    sys.modules[registration.__name__] = registration
    try:
        yield
    finally:
        # torch's own exporter must not find it; CrypTen asks for `crypten.config` again and again.
        del sys.modules[registration.__name__]
