"""The client: `async with Client() as client: answer = await client.query("digits", x)`. On asyncio and on trio.

client.py     the client
results.py    answers, progress, and the views of a node, as frozen types
inputs.py     arrays, lists and tensors as the API takes them
address.py    where the local daemon listens, and its token
"""

from finode.client.client import Client
from finode.client.results import Answer, Progress
from finode.node.interface import (
    BalanceView,
    CommitteeView,
    ExplainedView,
    ExplanationView,
    FeedbackView,
    ModelUseView,
    ModelView,
    OfferView,
    PeerView,
    ReceiptView,
    RewardsView,
    ServiceView,
    SessionView,
    StatusView,
    Timings,
    Traffic,
    WorkView,
)

__all__ = [
    "Answer",
    "BalanceView",
    "Client",
    "CommitteeView",
    "ExplainedView",
    "ExplanationView",
    "FeedbackView",
    "ModelUseView",
    "ModelView",
    "OfferView",
    "PeerView",
    "Progress",
    "ReceiptView",
    "RewardsView",
    "ServiceView",
    "SessionView",
    "StatusView",
    "Timings",
    "Traffic",
    "WorkView",
]
