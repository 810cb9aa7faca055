"""What a query asks of its committee: settings fill in, and what belongs to one vote goes with no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finode.committee.policy import Request
from finode.errors import InputError
from finode.identity import Identity
from finode.node.choices import answer_spec, wanted_of
from finode.node.interface import QueryRequest
from tests.fakes.federation import config_of
from tests.wire.conftest import AUGMENTED


def wanted(tmp_path: Path, querier: dict[str, Any] | None = None, **request: Any) -> Request:
    config = config_of(tmp_path, "asker", ["querier"], querier=querier or {})
    asked = QueryRequest(service="toy", inputs=np.zeros((1, 4)), **request)
    return wanted_of(asked, config, Identity.generate().peer_id, "asker", frozenset())


def test_an_augmented_vote_takes_the_settings_where_the_query_says_nothing(tmp_path: Path) -> None:
    both = wanted(tmp_path, {"copies": 2, "gamma": -0.5}, vote="augmented")
    one = wanted(tmp_path, {"copies": 2, "gamma": -0.5}, vote="augmented", gamma=2.0)

    assert (both.copies, both.gamma) == (2, -128)
    assert (one.copies, one.gamma) == (2, 512)


def test_a_soft_vote_takes_nothing_of_other_votes(tmp_path: Path) -> None:
    found = wanted(tmp_path)

    assert (found.copies, found.gamma, found.weights) == (0, 0, ())
    assert wanted(tmp_path, vote="weighted", weights={"b": 1, "a": 2}).weights == (("a", 2.0), ("b", 1.0))


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"vote": "loud"}, "loud"),
        ({"vote": "weighted"}, "needs weights"),
        ({"weights": {"a": 1.0}}, "takes no weights"),
        ({"copies": 1}, "takes no copies"),
        ({"vote": "prior", "gamma": 1.0}, "no gamma"),
        ({"vote": "augmented", "copies": 16}, "1 to 15"),
        ({"vote": "augmented", "gamma": float("nan")}, "gamma = nan"),
        ({"vote": "augmented", "copies": 8}, "one session"),
        ({"vote": "prior", "engine": "crypten"}, "crypten has no prior vote"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, request_: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        wanted(tmp_path, {"max_batch": 8}, **request_)


def test_an_answer_has_a_row_for_each_input_without_its_copies() -> None:
    assert answer_spec(AUGMENTED, 12).answers == 3
