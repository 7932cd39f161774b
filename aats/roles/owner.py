"""What an owner does: make a packet out of a wish, and sign it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import inf
from pathlib import Path

from aats.identity import Identity
from aats.ids import PacketId, new_packet_id
from aats.learning.method import prepared
from aats.learning.weights import initial_payload
from aats.packet import (
    METHOD,
    POLICY,
    UNLIMITED,
    Architecture,
    Cost,
    Header,
    Mandate,
    Owner,
    PacketKind,
    Plugin,
    Target,
)
from aats.payload import MODEL, Payload
from aats.roles.data import Batch
from aats.wire import sign_mandate


def make_packet(
    owner: Identity,
    architecture: Architecture,
    requirement: tuple[Target, ...],
    *,
    created: float,
    kind: PacketKind = PacketKind.TRAIN,
    method: Plugin = METHOD,
    policy: Plugin = POLICY,
    rendezvous: Plugin | None = None,
    budget: Cost = UNLIMITED,
    deadline: float = inf,
    reference: Mapping[str, Batch] | None = None,
    payload: Payload | None = None,
    weights: Path | None = None,
    seed: int = 0,
    label: str = "",
    packet: PacketId | None = None,
) -> tuple[Header, Payload]:
    """Return a signed packet, ready to be submitted at its owner's node.

    Args:
        owner: The identity of the node that the packet comes home to.
        architecture: The model to train.
        requirement: What it shall be able to do.
        created: Now, in seconds of the network's clock (live: Unix seconds).
        kind: What the packet carries.
        method: What a visit does.
        policy: How it picks its next stop.
        rendezvous: How it works at several nodes at one moment, if it does.
        budget: What it may spend.
        deadline: When it goes home whatever it has, in seconds of the same clock.
        reference: Per skill the owner's small trusted set (x, y), sent along to judge visits.
        payload: Its tensors; None for a model and the reference set.
        weights: The `.safetensors` file that the model starts from; None for a fresh one.
        seed: Of everything random about it.
        label: A name for people.
        packet: Its id; None for one made of `created` and `seed`.

    Raises:
        ModelError: If the architecture is unknown, its config wrong, or the file of another, or
            the method refuses the initial weights.
    """
    made = payload or initial_payload(architecture, seed, reference, weights)
    tensors = prepared(method, architecture, made, seed)
    mandate = Mandate(
        id=packet or new_packet_id(int(created * 1000), random.Random(seed)),
        kind=kind,
        owner=Owner(owner.node, owner.public_key),
        created=created,
        deadline=deadline,
        requirement=requirement,
        budget=budget,
        architecture=architecture,
        method=method,
        policy=policy,
        rendezvous=rendezvous,
        seed=seed,
        label=label,
    )
    version = tensors.manifest.version(MODEL)
    header = Header(
        sign_mandate(mandate, owner), version=version, base=version, manifest=tensors.manifest
    )
    return header, tensors
