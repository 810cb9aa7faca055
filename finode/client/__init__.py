"""The client: `async with Client() as client: answer = await client.query("digits", x)`. On asyncio and on trio.

client.py     the client
results.py    answers, progress, and the views of a node, as frozen types
inputs.py     arrays, lists and tensors as the API takes them
address.py    where the local daemon listens, and its token
"""

from finode.client.client import Client
from finode.client.results import Answer, Progress
from finode.node.interface import (
    CommitteeView,
    ModelView,
    OfferView,
    PeerView,
    ServiceView,
    SessionView,
    StatusView,
    Timings,
    Traffic,
)

__all__ = [
    "Answer",
    "Client",
    "CommitteeView",
    "ModelView",
    "OfferView",
    "PeerView",
    "Progress",
    "ServiceView",
    "SessionView",
    "StatusView",
    "Timings",
    "Traffic",
]
