"""The training packet: learn where there is wanted data, be verified, come home."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from aats.advert import Role
from aats.packet import Header
from aats.routing.agent import Action
from aats.routing.observe import phase
from aats.routing.policy import Phase


@dataclass(frozen=True, slots=True)
class TrainAgent:
    """Trains until every target is believed met, asks an MPVU, and returns with its verdict."""

    name = "train"

    def arrive(
        self, header: Header, roles_here: Collection[Role], has_wanted_data: bool, now: float
    ) -> Action:
        """Return what to do at this stop."""
        now_phase = phase(header, now)
        if now_phase is Phase.RETURN:
            return Action.FINISH if Role.OWNER in roles_here else Action.PASS
        if now_phase is Phase.VERIFY and Role.MPVU in roles_here:
            return Action.VERIFY
        return Action.TRAIN if has_wanted_data else Action.PASS
