"""AATS: AI packets that carry a model to the data and work out their own next stop.

A packet has a header with its owner's return address and no destination, and a payload of raw
tensors. Node daemons hand it on over ZeroMQ; at each stop it trains on data that never leaves
the node, an MPVU signs how good it is, and its policy chooses the next stop. The same node
core runs live, simulated and in a learning environment.

Names are loaded when first used: `import aats` loads neither torch nor zmq.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aats.advert import (
        Advert,
        ComputeAdvert,
        DataAdvert,
        LinkAdvert,
        NodePolicy,
        ProbeMode,
        Role,
    )
    from aats.errors import AatsError, InfeasibleError, LocalError, RemoteError
    from aats.identity import Identity
    from aats.ids import CustodyKey, NodeId, PacketId, Version, new_packet_id, node_id
    from aats.lineage import Record, RecordKind
    from aats.packet import (
        UNLIMITED,
        Architecture,
        Cost,
        EstimateSource,
        Header,
        Mandate,
        Owner,
        PacketKind,
        Plugin,
        SkillEstimate,
        Target,
        VisitEntry,
    )
    from aats.payload import Manifest, Payload, TensorSpec, pack
    from aats.routing.policy import (
        Candidate,
        Choice,
        Observation,
        Phase,
        RoutePolicy,
        StopKind,
    )

__version__ = "0.1.0"

_HOMES = {
    "aats.advert": (
        "Advert", "ComputeAdvert", "DataAdvert", "LinkAdvert", "NodePolicy", "ProbeMode", "Role",
    ),
    "aats.errors": ("AatsError", "InfeasibleError", "LocalError", "RemoteError"),
    "aats.identity": ("Identity",),
    "aats.ids": ("CustodyKey", "NodeId", "PacketId", "Version", "new_packet_id", "node_id"),
    "aats.lineage": ("Record", "RecordKind"),
    "aats.packet": (
        "UNLIMITED", "Architecture", "Cost", "EstimateSource", "Header", "Mandate", "Owner",
        "PacketKind", "Plugin", "SkillEstimate", "Target", "VisitEntry",
    ),
    "aats.payload": ("Manifest", "Payload", "TensorSpec", "pack"),
    "aats.routing.policy": (
        "Candidate", "Choice", "Observation", "Phase", "RoutePolicy", "StopKind",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "UNLIMITED", "AatsError", "Advert", "Architecture", "Candidate", "Choice", "ComputeAdvert",
    "Cost", "CustodyKey", "DataAdvert", "EstimateSource", "Header", "Identity", "InfeasibleError",
    "LinkAdvert", "LocalError", "Mandate", "Manifest", "NodeId", "NodePolicy", "Observation",
    "Owner", "PacketId", "PacketKind", "Payload", "Phase", "Plugin", "ProbeMode", "Record",
    "RecordKind", "RemoteError", "Role", "RoutePolicy", "SkillEstimate", "StopKind", "Target",
    "TensorSpec", "Version", "VisitEntry", "__version__", "new_packet_id", "node_id", "pack",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'aats' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
