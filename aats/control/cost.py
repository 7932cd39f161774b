"""What a way of learning sends, in bytes: closed formulas, before anything runs.

Sources: FL and the sequential variants as the keynote counts them ("Networked AI Learning", 2024:
14 GB x 10 participants x 100 rounds x 2 = 28 TB for Llama-2-7B); Snake Learning (arXiv 2405.03372);
split and in-network learning as the INL authors compare them (Entropy 25:920).
"""

from __future__ import annotations

FLOAT = 4
"""Bytes of a number on the wire, unless said otherwise."""


def averaging_bytes(model: float, participants: int, rounds: float) -> float:
    """Return bytes of federated averaging: every participant, down and up, in every round.

    Args:
        model: Bytes of the model.
        participants: Nodes of one round.
        rounds: Rounds.
    """
    return model * participants * rounds * 2


def chain_bytes(model: float, nodes: int, passes: float = 1) -> float:
    """Return bytes of a model that goes from node to node: one transfer for each visit."""
    return model * nodes * passes


def snake_bytes(slices: list[float], cycles: int, model: float = 0.0) -> float:
    """Return bytes of a Snake: a slice for each hop, once round for each cycle.

    Args:
        slices: Bytes of {first, middle, last} at each hop of a cycle.
        cycles: Cycles.
        model: Bytes of the whole model where nodes keep no copy between cycles (the reading in
            which each hop downloads the model and uploads a slice); 0 where they do.
    """
    return cycles * sum(part + model for part in slices)


def adapters_bytes(base: float, adapter: float, visits: int, *, cached: bool = True) -> float:
    """Return bytes of a LoRA chain: the chain grows by one adapter for each visit.

    Args:
        base: Bytes of the frozen model.
        adapter: Bytes of one visit's adapter.
        visits: Visits, each at another node.
        cached: Whether nodes hold the base before the packet comes.
    """
    return visits * ((0.0 if cached else base) + adapter * (visits + 1) / 2)


def split_bytes(
    samples: int, width: int, client: float, clients: int, epochs: int = 1, number: int = FLOAT
) -> float:
    """Return bytes of horizontal split learning: (2 p q + eta N J) s for each epoch.

    Args:
        samples: q, rows of an epoch over all clients.
        width: p, numbers at the cut for each row.
        client: eta N s, bytes of the clients' part.
        clients: J.
        epochs: Epochs.
        number: s, bytes of a number.
    """
    return epochs * (2 * width * samples * number + client * clients)


def in_network_bytes(
    samples: int, widths: list[int], epochs: int = 1, number: int = FLOAT
) -> float:
    """Return bytes of training over views: each view's code up and its error down, every row.

    Args:
        samples: q, rows of an epoch.
        widths: Numbers in each view's code, one entry for each link.
        epochs: Epochs.
        number: s, bytes of a number.
    """
    return epochs * 2 * sum(widths) * samples * number


def header_bytes(
    transfers: int, tensors: int, first: float = 1200.0, tensor: float = 120.0,
    record: float = 600.0,
) -> float:  # fmt: skip
    """Return bytes of headers with their signed chain, on top of tensors: a record more a hop.

    A journey of hundreds of visits moves more of these than of a small model. For packets that go
    one way: children of a fork carry two records of what was before it. The defaults are measured.

    Args:
        transfers: Hops over one link.
        tensors: Of the payload, each named with its digest.
        first: Bytes of the header as it leaves its owner, the offer's frame included.
        tensor: Bytes of one tensor's name, shape and digest.
        record: Bytes of one signed record and of one entry of the journal.
    """
    return transfers * (first + tensor * tensors) + record * transfers * (transfers - 1) / 2
