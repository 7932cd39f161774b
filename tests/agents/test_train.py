from __future__ import annotations

import math

import pytest

from aats.advert import Role
from aats.ids import NodeId, PacketId, Version
from aats.packet import (
    UNLIMITED,
    Architecture,
    EstimateSource,
    Header,
    Mandate,
    Owner,
    PacketKind,
    Plugin,
    SkillEstimate,
    Target,
)
from aats.routing.agent import Action, Agent
from aats_agents.train import TrainAgent


def packet(reference: float = 0.0, verdict: float = 0.0, deadline: float = math.inf) -> Header:
    mandate = Mandate(
        id=PacketId("p"), kind=PacketKind.TRAIN, owner=Owner(NodeId("home"), b""), created=0.0,
        deadline=deadline, requirement=(Target("digits", 0.9),), budget=UNLIMITED,
        architecture=Architecture("mlp"), method=Plugin("sequential"), policy=Plugin("minibatch"),
        seed=1,
    )  # fmt: skip
    found = {EstimateSource.REFERENCE: reference, EstimateSource.MPVU: verdict}
    skills = tuple(
        SkillEstimate("digits", "accuracy", v, v, v, 9, NodeId("x"), source, Version("v"))
        for source, v in found.items()
        if v
    )
    return Header(mandate, version=Version("v"), skills=skills)


NEW, READY, DONE, LATE = packet(), packet(0.95), packet(0.95, 0.92), packet(deadline=0.0)


@pytest.mark.parametrize(
    ("header", "roles", "has_data", "action"),
    [
        (NEW, (Role.DATA,), True, Action.TRAIN),
        (NEW, (Role.DATA,), False, Action.PASS),
        (NEW, (Role.OWNER,), False, Action.PASS),
        (NEW, (Role.OWNER, Role.DATA), True, Action.TRAIN),
        (NEW, (Role.MPVU,), False, Action.PASS),
        (READY, (Role.MPVU,), False, Action.VERIFY),
        (READY, (Role.MPVU, Role.DATA), True, Action.VERIFY),
        (READY, (Role.DATA,), True, Action.TRAIN),
        (READY, (Role.OWNER,), False, Action.PASS),
        (DONE, (Role.DATA,), True, Action.PASS),
        (DONE, (Role.OWNER,), False, Action.FINISH),
        (LATE, (Role.OWNER, Role.DATA), True, Action.FINISH),
        (LATE, (Role.MPVU,), False, Action.PASS),
    ],
)
def test_does_what_its_phase_asks_for(
    header: Header, roles: tuple[Role, ...], has_data: bool, action: Action
) -> None:
    agent: Agent = TrainAgent()
    assert agent.arrive(header, roles, has_data, 1.0) is action
