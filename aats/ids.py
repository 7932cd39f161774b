"""Names of things: nodes, packets, versions, and the key under which custody is held."""

from __future__ import annotations

import random
import re
import uuid
from dataclasses import dataclass
from typing import NewType

from blake3 import blake3

NodeId = NewType("NodeId", str)
"""A node's name, bound to its Ed25519 key: 1-64 of letters, digits, '.', '_', '-'."""

PacketId = NewType("PacketId", str)
"""UUIDv7 in canonical text form; of a child of a fork, with its branch behind it."""

Version = NewType("Version", str)
"""Content hash (BLAKE3, 64 hex digits) of a model's tensors."""

NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BRANCH = re.compile(r"~([0-9]{1,16})-([0-9]{1,16})-([0-9]{1,6})")
"""A child's branch: hop and epoch of the fork, and its number there."""


def node_id(text: str) -> NodeId:
    """Return `text` as a node id.

    Raises:
        ValueError: If it is not 1-64 letters, digits, '.', '_' or '-'.
    """
    if not NODE_ID.fullmatch(text):
        raise ValueError(
            f"node id {text!r}: allowed are 1-64 letters, digits, '.', '_', '-', "
            "the first a letter or digit"
        )
    return NodeId(text)


def new_packet_id(created_ms: int, rng: random.Random) -> PacketId:
    """Return a UUIDv7 (RFC 9562, section 5.7) from a time in milliseconds and `rng`."""
    value = (created_ms & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | rng.getrandbits(12) << 64
    value |= 0b10 << 62 | rng.getrandbits(62)
    return PacketId(str(uuid.UUID(int=value)))


def branch_name(hop: int, epoch: int, number: int) -> str:
    """Return the branch of one child of a fork: no two forks of a packet give the same one."""
    return f"~{hop}-{epoch}-{number}"


def trunk_of(packet: PacketId) -> PacketId:
    """Return the id that a packet and all its children have in common."""
    return PacketId(packet.partition("~")[0])


@dataclass(frozen=True, slots=True, order=True)
class CustodyKey:
    """What custody is keyed by: a packet may revisit a node, so the hop belongs to it.

    `epoch` starts at 0 and rises (`next_epoch`) when a spare copy is regenerated; of two copies
    of one packet the one with the higher epoch is the living one.
    """

    packet: PacketId
    hop: int
    epoch: int = 0

    def next(self) -> CustodyKey:
        """Return the key this packet has at its next node."""
        return CustodyKey(self.packet, self.hop + 1, self.epoch)

    def __str__(self) -> str:
        return f"{self.packet}.{self.hop}.{self.epoch}"


EPOCH_STEP = 10_000
"""Epochs of one generation; the last four digits tell who raised it."""


def next_epoch(epoch: int, node: NodeId) -> int:
    """Return the epoch to which `node` raises a packet.

    Two nodes that regenerate one packet without knowing of each other raise it to different
    epochs (but for one pair of nodes in ten thousand), so that one of the two copies wins.
    """
    return (epoch // EPOCH_STEP + 1) * EPOCH_STEP + _tie(node)


def raised_by(epoch: int, node: NodeId) -> bool:
    """Return whether an epoch can be one that `node` raised."""
    return epoch % EPOCH_STEP == _tie(node)


def _tie(node: NodeId) -> int:
    return int.from_bytes(blake3(node.encode()).digest(8), "little") % EPOCH_STEP
