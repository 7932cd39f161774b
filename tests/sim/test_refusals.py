"""What a node does not take, under cores that know different things."""

import random
from collections.abc import Collection

from aats.advert import Role
from aats.errors import UnknownPluginError
from aats.ids import NodeId
from aats.packet import Header, Plugin
from aats.routing.agent import Action
from aats.routing.policy import Choice, Observation
from aats.sim.link import LinkSpec
from aats.testing.worlds import ring, small_world, tally_packet


class First:
    """Picks the first legal stop."""

    name = "first"

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        return Choice(observation.legal()[0], "first")


class Goer:
    """Trains where it can, verifies where it can, ends at home when it may."""

    name = "train"

    def arrive(
        self, header: Header, roles_here: Collection[Role], has_wanted_data: bool, now: float
    ) -> Action:
        if Role.OWNER in roles_here and (header.requirement_met or header.hops_left < 2):
            return Action.FINISH
        if Role.MPVU in roles_here:
            return Action.VERIFY
        return Action.TRAIN if has_wanted_data else Action.PASS


def test_a_node_that_lacks_a_packets_policy_refuses_it_and_the_packet_goes_elsewhere() -> None:
    calls = 0

    def policies(plugin: Plugin) -> First:
        # n1 is the first that is offered the packet: the one call after the owner's own.
        nonlocal calls
        calls += 1
        if calls == 3:
            raise UnknownPluginError("aats.policies", plugin.name, [])
        return First()

    link = LinkSpec(NodeId("a"), NodeId("b"), 1e7, 0.02)
    small = small_world(ring(5), policies=policies, agents=lambda kind: Goer(), link=link)
    header, payload = tally_packet(small)
    small.world.submit(small.owner, header, payload, 1.0)
    small.world.start()
    assert small.world.run(600.0, lambda: bool(small.world.deliveries))
    refused = [line for line in small.world.lines if '"offer.refused"' in line]
    assert len(refused) == 1
    assert "unknown aats.policies" in refused[0]
    assert small.world.deliveries[0].header.requirement_met
