"""The digest of what a run opened: equal at all parties, and for any number of them, until one of them lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from finode.smpc import frames, sharing
from finode.smpc.engine import Exchange, Finished
from finode.smpc.frames import Frame
from finode.smpc.session import Run, Session
from finode.smpc.simulation import exchange
from finode.smpc.transcript import Transcript
from tests.smpc import models
from tests.smpc.parties import committee_of

VALUES = torch.tensor([5, -7, 2**62])
BITS = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1], dtype=torch.uint8)
RESIDUES = torch.tensor([0, 1, 30, 31])


@dataclass(frozen=True)
class Opens:
    """A run that opens shares of known values: elements, bits and residues in one round, and elements in the next."""

    elements: list[torch.Tensor]
    bits: list[torch.Tensor]

    def run(self, party: int) -> Run:
        async def body(session: Session) -> int:
            await session.branch("all").open_together(
                frames.elements(self.elements[party]),
                frames.bits(self.bits[party]),
                frames.residues(RESIDUES if party == 0 else RESIDUES * 0 + 32, 5),
            )
            await session.branch("again").open(self.elements[party])
            return party

        return Run(body, party, len(self.elements))


def opens(parties: int) -> Opens:
    shares = sharing.share_elements(VALUES.numpy(), parties)
    elements = [torch.from_numpy(np.frombuffer(share, "<i8").copy()) for share in shares]
    generator = torch.Generator().manual_seed(parties)
    bits = [torch.randint(0, 2, BITS.shape, generator=generator, dtype=torch.uint8) for _ in range(parties - 1)]
    last = BITS.clone()
    for share in bits:
        last ^= share
    return Opens(elements, [*bits, last])


def digests(parties: int) -> set[bytes]:
    party = opens(parties)
    return set(exchange([party.run(i) for i in range(parties)]).transcripts)


def test_equal_at_all_parties_and_for_any_number_of_them() -> None:
    (digest,) = digests(2) | digests(3) | digests(5)

    assert len(digest) == 32
    # The encoding is fixed: another one would tell parties of different releases that they were lied to.
    assert digest.hex() == "61b9e48ef0b0853bf2416f2ba31009a48ef4ca64efc299d6b67955a89e688566"


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_programs_end_with_one_transcript_at_all_parties(parties: int) -> None:
    makers = [models.small_cnn(0), models.mlp(1)]
    program = models.program_of(makers, parties=parties, statistics=True)
    committee = committee_of(program, makers, np.full((1, 1, 8, 8), 0.5))

    answer = exchange([committee.run(i) for i in range(parties)])
    rest = exchange(answer.rests)

    assert len(set(answer.transcripts)) == len(set(rest.transcripts)) == 1
    assert answer.transcripts[0] != rest.transcripts[0]


@pytest.mark.parametrize("kind", ["elements", "bits"])
def test_a_party_that_opens_something_else_to_another_stands_out(kind: str) -> None:
    """Party 2 sends party 0 another frame than party 1; nothing else of the run is disturbed."""
    parties = 3
    party = opens(parties)
    runs = [party.run(i) for i in range(parties)]
    outcomes = [run.start() for run in runs]
    first = True
    while isinstance(outcomes[0], Exchange):
        sent = [outcome for outcome in outcomes if isinstance(outcome, Exchange)]
        received = [{j: bytes(sent[j].frames[i]) for j in range(parties) if j != i} for i in range(parties)]
        if first:
            other = bytearray(received[0][2])
            # After the header and three entries: 24 bytes of elements, then a word of bits.
            other[16 + 3 * 24 + (0 if kind == "elements" else 24)] ^= 1
            received[0][2], first = bytes(other), False
        outcomes = [run.resume(frames_of) for run, frames_of in zip(runs, received, strict=True)]
    found = [outcome.transcript for outcome in outcomes if isinstance(outcome, Finished)]

    assert found[1] == found[2]
    assert found[0] != found[1]


def test_bits_that_fill_up_a_byte_do_not_count() -> None:
    """A party may send anything in the padding of its bits: no one opens it, and the transcripts stay equal."""
    share = frames.bits(BITS)
    found = []
    for padding in (0, 0b1010_0000):
        frame = Frame(0, 0, {"a": [share]})
        other = bytearray(Frame(1, 0, {"a": [share]}).data)
        other[16 + 24 + 1] ^= padding
        transcript = Transcript()
        frame.transcribe(frame.open({1: other}), transcript)
        found.append(transcript.digest())

    assert found[0] == found[1]


def test_rounds_descriptions_and_values_are_told_apart() -> None:
    def digest(*rounds: tuple[int, bytes, list[bytes]]) -> bytes:
        transcript = Transcript()
        for round_, description, values in rounds:
            transcript.add(round_, description, values)
        return transcript.digest()

    seen = {
        digest(),
        digest((0, b"", [])),
        digest((1, b"", [])),
        digest((0, b"ab", [b"c"])),
        digest((0, b"a", [b"bc"])),
        digest((0, b"a", [b"b"]), (1, b"a", [b"b"])),
    }

    assert len(seen) == 6
    assert digest((0, b"a", [b"b", b"c"])) == digest((0, b"a", [b"bc"]))  # the description says where a value ends
    assert repr(Transcript()) == "Transcript(...)"
