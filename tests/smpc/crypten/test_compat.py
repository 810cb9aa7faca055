"""CrypTen's own communicator, generators and tuple providers cannot be reached."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from finode.errors import ConfigError, LocalError, LocalProtocolError
from finode.smpc.crypten import availability, compat


@pytest.fixture
def crypten() -> Any:
    return compat.library()


@pytest.mark.parametrize(
    "use",
    [
        lambda crypten: crypten.init(),
        lambda crypten: crypten.init_thread(0, 1),
        lambda crypten: crypten.communicator._init(use_threads=True),
        lambda crypten: crypten.manual_seed(1, 2, 3),
        lambda crypten: crypten.mpc.provider.TrustedFirstParty(),
        lambda crypten: crypten.mpc.provider.TrustedThirdParty(),
        lambda crypten: crypten.mpc.provider.tfp_provider.TrustedFirstParty(),
        lambda crypten: crypten.mpc.provider.ttp_provider.TrustedThirdParty(),
    ],
)
def test_its_own_ways_are_refused(crypten: Any, use: Callable[[Any], object]) -> None:
    with pytest.raises(LocalError, match="cannot be used here"):
        use(crypten)


def test_the_provider_is_no_setting(crypten: Any) -> None:
    cfg = crypten.config.cfg

    for change in (
        lambda: setattr(cfg, "mpc.provider", "TFP"),
        lambda: cfg.__setitem__("mpc.provider", "TFP"),
        lambda: cfg.temp_override({"mpc.provider": "TFP"}).__enter__(),
    ):
        with pytest.raises(LocalError, match="cannot be changed"):
            change()
    assert getattr(crypten.mpc, "__SUPPORTED_PROVIDERS") == {}


def test_outside_of_a_run_there_is_no_communicator_provider_or_randomness(crypten: Any) -> None:
    for use in (
        crypten.communicator.get,
        crypten.mpc.get_default_provider,
        lambda: crypten.generators["prev"][torch.device("cpu")],
        lambda: crypten.mpc.MPCTensor(torch.tensor([1.0])),
        lambda: crypten.common.rng.generate_random_ring_element((2,)),
        lambda: crypten.common.rng.generate_kbit_random_tensor((2,), bitlength=1),
    ):
        with pytest.raises(LocalProtocolError, match="outside of a run"):
            use()


def test_what_stands_in_for_a_moved_module_is_gone_after_the_import(crypten: Any) -> None:
    assert "torch.onnx._internal.registration" not in sys.modules


def test_a_missing_crypten_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert not availability.is_available()
    with pytest.raises(ConfigError, match="not installed") as caught:
        availability.require()
    assert caught.value.hint == "pip install --no-deps crypten==0.4.1"


def test_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.0")

    assert availability.problem() == "CrypTen 0.5.0 is installed, and the engine needs 0.4.1"
