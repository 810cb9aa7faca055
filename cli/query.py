"""`finode query SERVICE INPUT`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import click

from .options import home_option, json_option
from .output import print_fields, print_json, print_table, short_hash, short_peer, size_text
from .progress import shown_progress

if TYPE_CHECKING:
    from finode.client import Answer
    from finode.client.client import VoteName


def parse_weights(context: click.Context, option: click.Parameter, value: str | None) -> dict[str, float] | None:
    """Return `NAME=W,NAME=W` as a dict; what the names mean is for the daemon to say."""
    if value is None:
        return None
    found: dict[str, float] = {}
    for part in value.split(","):
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight):
            raise click.BadParameter(f"{part.strip()!r} is not NAME=NUMBER", context, option)
        if name in found:
            raise click.BadParameter(f"{name!r} has two weights", context, option)
        found[name] = weight
    return found


@click.command()
@click.argument("service")
@click.argument("input", type=click.Path(path_type=Path))
@click.option("--parties", type=click.IntRange(2, 16), help="Computing parties of the committee.")
@click.option(
    "--vote",
    type=click.Choice(("soft", "hard", "weighted", "entropy", "spectral", "augmented", "prior")),
    default="soft",
    show_default=True,
    help="How the models' answers become one; entropy and spectral weigh sure models more, augmented stable ones, "
    "prior those that saw more of a class.",
)
@click.option(
    "--weights",
    callback=parse_weights,
    metavar="NAME=W,...",
    help="Of the vote weighted: by organization, by first digits of a version, or by * for all others.",
)
@click.option("--copies", type=click.IntRange(1, 15), help="Of the vote augmented: copies of each input.")
@click.option("--gamma", type=click.FloatRange(-16, 16), help="Of the vote augmented: below 0 stable models win.")
@click.option(
    "--reveal",
    type=click.Choice(("probabilities", "top1", "label")),
    default="probabilities",
    show_default=True,
    help="How much of the answer anybody, you included, gets to see.",
)
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Give up after this.")
@click.option("--engine", type=click.Choice(("native", "crypten")), help="Engine that computes the answer.")
@home_option
@json_option
def query(
    service: str,
    input: Path,
    parties: int | None,
    vote: VoteName,
    weights: dict[str, float] | None,
    copies: int | None,
    gamma: float | None,
    reveal: Literal["probabilities", "top1", "label"],
    deadline: float | None,
    engine: Literal["native", "crypten"] | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Ask SERVICE about INPUT: a .npy or .json file of one input or a batch, or an image."""
    from finode.client import Client
    from finode.daemon.admin import load_query_input
    from finode.errors import UnknownService

    async def ask() -> Answer:
        async with Client(home=home) as client:
            services = {view.name: view for view in await client.services()}
            if service not in services:
                known = ", ".join(sorted(services)) or "none"
                raise UnknownService(
                    f"no service {service!r} is offered in the federation", hint=f"services known: {known}"
                )
            x = load_query_input(input, services[service].input)
            with shown_progress() as on_progress:
                return await client.query(
                    service,
                    x,
                    parties=parties,
                    vote=vote,
                    reveal=reveal,
                    deadline_s=deadline,
                    engine=engine,
                    weights=weights,
                    copies=copies,
                    gamma=gamma,
                    on_progress=on_progress,
                )

    answer = anyio.run(ask)
    if as_json:
        print_json(answer_json(answer))
    else:
        _print_answer(answer)


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as `--json` prints it. Keys are only ever added."""
    committee, timings, traffic = answer.committee, answer.timings, answer.traffic
    return {
        "service": answer.service,
        "labels": answer.labels,
        "probabilities": None if answer.probabilities is None else answer.probabilities.tolist(),
        "classes": answer.classes,
        "committee": {
            "id": committee.id,
            "parties": committee.parties,
            "dealer": committee.dealer,
            "owners": committee.owners,
            "organizations": committee.organizations,
            "left_out": [
                {"owner": one.owner, "version": one.version, "reason": one.reason} for one in committee.left_out
            ],
        },
        "timings": {
            "negotiation_s": timings.negotiation_s,
            "deployment_s": timings.deployment_s,
            "offline_s": timings.offline_s,
            "online_s": timings.online_s,
            "total_s": timings.total_s,
        },
        "traffic": {
            "rounds": traffic.rounds,
            "bytes_sent_per_party": traffic.bytes_sent_per_party,
            "offline_bytes": traffic.offline_bytes,
        },
        "engine": answer.engine,
        "label_indices": answer.label_indices.tolist(),
        "top": None if answer.top is None else answer.top.tolist(),
        "session": answer.session,
        "attempts": answer.attempts,
        "dealt_ahead": timings.dealt_ahead,
    }


def _print_answer(answer: Answer) -> None:
    columns: tuple[str, ...] = (">input", "label")
    if answer.top is not None:
        columns += (">probability",)
    if answer.probabilities is not None:
        columns += ("second", ">probability")
    print_table(columns, (_row(answer, index) for index in range(len(answer.labels))), empty="no answers")
    committee, timings, traffic = answer.committee, answer.timings, answer.traffic

    def named(peer: str) -> str:
        return short_peer(peer, committee.organizations.get(peer, ""))

    missing = [f"model {short_hash(one.version)} of {named(one.owner)}: {one.reason}" for one in committee.left_out]
    print_fields(
        [
            ("committee", short_hash(committee.id) + (f", attempt {answer.attempts}" if answer.attempts > 1 else "")),
            ("parties", "\n".join(map(named, committee.parties))),
            ("dealer", named(committee.dealer)),
            ("owners", "\n".join(map(named, committee.owners))),
            *([("left out", "\n".join(missing))] if missing else []),
            ("engine", answer.engine),
            ("session", answer.session),
            (
                "time",
                f"{timings.total_s:.2f} s: committee {timings.negotiation_s:.2f}, deployment "
                f"{timings.deployment_s:.2f}, preprocessing {timings.offline_s:.2f}, rounds {timings.online_s:.2f}",
            ),
            (
                "traffic",
                f"{traffic.rounds} rounds; sent by each party: "
                f"{', '.join(map(size_text, traffic.bytes_sent_per_party))}; "
                f"preprocessing {size_text(traffic.offline_bytes)}",
            ),
        ]
    )


def _row(answer: Answer, index: int) -> list[object]:
    row: list[object] = [index, answer.labels[index]]
    if answer.top is not None:
        row.append(f"{answer.top[index]:.3f}")
    if answer.probabilities is not None:
        chances = answer.probabilities[index]
        others = [k for k in range(len(answer.classes)) if k != answer.label_indices[index]]
        second = max(others, key=lambda k: float(chances[k]))
        row += [answer.classes[second], f"{chances[second]:.3f}"]
    return row
