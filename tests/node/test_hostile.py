"""What a hostile peer can say to a node: the node stands, and other people's packets live."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np
import pytest

from aats.advert import Notice, Role
from aats.identity import Identity
from aats.ids import EPOCH_STEP, CustodyKey, NodeId, PacketId, Version, new_packet_id, next_epoch
from aats.ledger.record import seal
from aats.lineage import Record, RecordKind
from aats.messages import (
    Accept,
    Alive,
    Ask,
    Custody,
    Flood,
    Message,
    Moved,
    Offer,
    ProbeAsk,
    ProbeReply,
    ProbeScores,
    Pull,
    RefusalReason,
    Refuse,
    Relay,
    RelayBody,
    Samples,
    SamplesAck,
    Summary,
    SummaryEntry,
    Superseded,
    Whereabouts,
)
from aats.node.commands import Command, ExpectPacket, RunTask, SaveCustody, SendMessage, Trace
from aats.node.core import NodeCore
from aats.node.custody import Status
from aats.node.events import LinkDown, MessageReceived, PacketReceived
from aats.packet import (
    Architecture,
    Cost,
    EstimateSource,
    Header,
    Owner,
    Plugin,
    SkillEstimate,
    Target,
)
from aats.payload import MODEL, pack
from aats.routing.agent import Action
from aats.routing.policy import Choice, Observation
from aats.testing.worlds import SKILL, SmallWorld, mesh, ring, small_world, tally_packet
from aats.wire import (
    MAX_OFFER_BYTES,
    encode_message,
    encode_row,
    sign_advert,
    sign_header,
    sign_mandate,
    sign_relay,
)


class Wanderer:
    """Picks any legal stop, asks one for a probe first."""

    name = "random"

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        return observation.legal()[:1]

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        return Choice(rng.choice(observation.legal()), "any")


class Fails:
    """A policy that does not work."""

    name = "fails"

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        return [10**9]

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        raise ZeroDivisionError("by a stranger's parameters")


class Plain:
    """Trains where there is data, verifies where that is done, ends at its owner."""

    name = "train"

    def arrive(
        self, header: Header, roles_here: Collection[Role], has_wanted_data: bool, now: float
    ) -> Action:
        if Role.OWNER in roles_here:
            return Action.FINISH if header.requirement_met or header.hops_left < 2 else Action.PASS
        if Role.MPVU in roles_here:
            return Action.VERIFY
        return Action.TRAIN if has_wanted_data else Action.PASS


def world(pairs: Iterable[tuple[int, int]] = tuple(ring(6)), **more: object) -> SmallWorld:
    return small_world(
        pairs,
        policies=lambda plugin: Fails() if plugin.name == "fails" else Wanderer(),
        agents=lambda kind: Plain(),
        **more,  # type: ignore[arg-type]
    )


def settled(small: SmallWorld) -> SmallWorld:
    """Run until everybody knows everybody."""
    small.world.start()
    small.world.run(5.0)
    return small


def under_way(small: SmallWorld, seed: int = 0) -> tuple[NodeId, Header]:
    """Send a packet out; return the node that works on it (not the owner) and its header."""
    header, payload = tally_packet(small, seed=seed, target=2.0)
    small.world.submit(small.owner, header, payload, at=1.0)
    small.world.start()

    def held() -> list[tuple[NodeId, Header]]:
        return [
            (name, row.header)
            for name, node in small.world.nodes.items()
            for row in node.store.rows.values()
            if row.status == Status.HELD and row.header.hop >= 3
        ]

    assert small.world.run(200.0, lambda: bool(held()))
    return held()[0]


def tell(small: SmallWorld, to: NodeId, sender: NodeId, message: Message) -> None:
    small.world.nodes[to].feed(MessageReceived(sender, message))


def neighbour_of(small: SmallWorld, node: NodeId, but: Collection[NodeId] = ()) -> NodeId:
    core = small.world.nodes[node].core
    assert isinstance(core, NodeCore)
    around = core.snapshot()["neighbours"]
    assert isinstance(around, dict)
    return next(NodeId(n) for n in sorted(around) if n not in but)


def copies(small: SmallWorld, packet: PacketId) -> list[NodeId]:
    return [
        name for name, node in small.world.nodes.items()
        if any(r.key.packet == packet and r.status in ("held", "worked")
               for r in node.store.rows.values())
    ]  # fmt: skip


# --- ending other people's packets ------------------------------------------------------------


def test_a_neighbour_cannot_end_a_packet_it_never_had() -> None:
    small = world(mesh(6))
    node, header = under_way(small)
    others = [n for n in small.nodes if n not in (node, *header.trail, header.mandate.owner.node)]
    assert others, "somebody has not had it yet"
    liar = others[0]
    epoch = next_epoch(header.epoch, liar)
    tell(small, node, liar, Superseded(replace(header.key, epoch=epoch)))
    assert node in copies(small, header.id)


def test_nobody_can_speak_in_the_name_of_one_who_had_the_packet() -> None:
    small = world(mesh(6))
    node, header = under_way(small)
    liar = next(n for n in small.nodes if n not in (node, *header.trail))
    epoch = next_epoch(header.epoch, header.trail[-1])
    tell(small, node, liar, Superseded(replace(header.key, epoch=epoch)))
    assert node in copies(small, header.id)


def test_the_node_that_handed_it_on_can_say_that_its_copy_is_newer() -> None:
    small = world(mesh(6))
    node, header = under_way(small)
    before = header.trail[-1]
    epoch = next_epoch(header.epoch, before)
    tell(small, node, before, Superseded(replace(header.key, epoch=epoch)))
    assert node not in copies(small, header.id)


@pytest.mark.parametrize("epoch", [1 << 60, (1 << 63) - 1, 2000 * EPOCH_STEP])
def test_an_epoch_out_of_all_reach_is_not_believed(epoch: int) -> None:
    small = world(mesh(6))
    node, header = under_way(small)
    before = header.trail[-1]
    far = epoch - epoch % EPOCH_STEP + next_epoch(0, before) % EPOCH_STEP
    tell(small, node, before, Superseded(replace(header.key, epoch=min(far, (1 << 63) - 1))))
    assert node in copies(small, header.id)


def advert_with(small: SmallWorld, node: NodeId, notices: tuple[Notice, ...]) -> Flood:
    core = small.world.nodes[node].core
    assert isinstance(core, NodeCore)
    advert = core._desk.links.adverts(small.world.now)[node][0]
    lie = replace(advert, seq=advert.seq + 1000, notices=notices)
    return Flood((sign_advert(lie, small.identities[node]),))


def test_only_its_owner_can_say_that_a_packet_is_home() -> None:
    small = world(mesh(6))
    node, header = under_way(small)
    liar = next(n for n in small.nodes if n not in (node, small.owner))
    tell(small, node, liar, advert_with(small, liar, (Notice(header.id, 0, done=True),)))
    assert node in copies(small, header.id)
    owner = advert_with(small, small.owner, (Notice(header.id, 0, done=True),))
    tell(small, node, liar, owner)
    assert node not in copies(small, header.id)


def test_a_flood_of_notices_about_packets_nobody_has_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aats.node.news.PACKETS_KEPT", 50)
    small = settled(world())
    core = small.world.nodes[small.nodes[2]].core
    assert isinstance(core, NodeCore)
    rng = random.Random(0)
    for _ in range(500):
        core._desk.news.hear(NodeId("n1"), new_packet_id(1, rng), 1, done=False)
    assert len(core._desk.news.snapshot()) <= 50


def test_a_refusal_that_calls_a_packet_old_without_reason_only_makes_it_go_elsewhere() -> None:
    small = world(mesh(6))
    offers: list[tuple[NodeId, NodeId, Offer]] = []

    def hook(node: object, what: object) -> None:
        if isinstance(what, SendMessage) and isinstance(what.message, Offer):
            offers.append((node.node, what.to, what.message))  # type: ignore[attr-defined]

    small.world.hooks.append(hook)
    header, payload = tally_packet(small, target=2.0)
    small.world.submit(small.owner, header, payload, at=1.0)
    small.world.start()
    assert small.world.run(200.0, lambda: any(o.key.hop == 3 for _, _, o in offers))
    node, to, offer = offers[-1]
    tell(small, node, to, Refuse(offer.key, RefusalReason.OLDER_EPOCH, "", 123_456_789))
    assert node in copies(small, header.id)


# --- offers -----------------------------------------------------------------------------------


def hostile_offer(
    small: SmallWorld, sender: NodeId, *, owner: NodeId | None = None, seed: int = 99,
    signed_by: Identity | None = None, hop: int = 1, **changes: object,
) -> Offer:  # fmt: skip
    """An offer by `sender`, well formed and signed, of a packet of its own."""
    me = small.identities[owner or sender]
    header, _ = tally_packet(small, seed=seed)
    keys = signed_by or me
    mandate = replace(header.mandate, owner=Owner(me.node, keys.public_key))
    for name in ("policy", "requirement", "architecture"):
        if name in changes:
            mandate = replace(mandate, **{name: changes.pop(name)})  # type: ignore[arg-type]
    mandate = replace(mandate, id=changes.pop("id", mandate.id))  # type: ignore[arg-type]
    maker = replace(keys, node=me.node)
    mandate = sign_mandate(mandate, maker)
    init = seal(
        Record(mandate.id, RecordKind.INIT, me.node, 0, 0, (), header.version, header.version),
        maker,
    )
    header = replace(header, mandate=mandate, hop=hop, chain=(init,), **changes)  # type: ignore[arg-type]
    header = sign_header(header, small.identities[sender])
    return Offer(header.key, header)


def commands_of(small: SmallWorld, node: NodeId, sender: NodeId, message: Message) -> list[Command]:
    core = small.world.nodes[node].core
    assert isinstance(core, NodeCore)
    return core.handle(MessageReceived(sender, message), small.world.now)


def refusal(commands: Iterable[Command]) -> Refuse | None:
    sent = [c.message for c in commands if isinstance(c, SendMessage)]
    return next((m for m in sent if isinstance(m, Refuse)), None)


def is_accepted(commands: Iterable[Command]) -> bool:
    return any(isinstance(c, SendMessage) and isinstance(c.message, Accept) for c in commands)


def test_a_well_formed_offer_is_accepted() -> None:
    small = settled(world())
    assert is_accepted(commands_of(small, NodeId("n2"), NodeId("n1"), hostile_offer(
        small, NodeId("n1"))))  # fmt: skip


TOP = (1 << 63) - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"hop": TOP},
        {"epoch": TOP},
        {"spent": Cost(seconds=1.7e308)},
        {"requirement": tuple(Target(f"s{i}", 0.5) for i in range(2000))},
        {"labels_used": {f"s{i}": [1.0] for i in range(2000)}},
        {"trail": tuple(NodeId(f"x{i}") for i in range(2000))},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_header_that_could_not_be_carried_on_is_refused(changes: dict[str, object]) -> None:
    small = settled(world())
    offer = hostile_offer(small, NodeId("n1"), **changes)  # type: ignore[arg-type]
    commands = commands_of(small, NodeId("n2"), NodeId("n1"), offer)
    assert refusal(commands) is not None
    assert not is_accepted(commands)


def test_a_refusal_fits_the_wire_whatever_it_quotes() -> None:
    small = settled(
        small_world(
            ring(6), policies=_no_policy, agents=lambda kind: Plain(),
        )
    )  # fmt: skip
    offer = hostile_offer(small, NodeId("n1"), policy=Plugin("x" * 16_000))
    answer = refusal(commands_of(small, NodeId("n2"), NodeId("n1"), offer))
    assert answer is not None
    assert len(encode_message(answer)) < 1000


def _no_policy(plugin: Plugin) -> Wanderer:
    from aats.errors import UnknownPluginError

    raise UnknownPluginError("aats.policies", plugin.name, ["random"])


def test_a_packet_in_the_name_of_another_owner_is_refused() -> None:
    small = settled(world())
    stranger = Identity.from_seed(NodeId("n0"), b"somebody else")
    offer = hostile_offer(small, NodeId("n1"), owner=small.owner, signed_by=stranger)
    answer = refusal(commands_of(small, small.owner, NodeId("n1"), offer))
    assert answer is not None
    assert answer.reason is RefusalReason.NOT_TRUSTED


def test_a_record_in_the_name_of_a_known_node_needs_its_key() -> None:
    small = settled(world())
    offer = hostile_offer(small, NodeId("n1"), hop=3)
    (init,) = offer.header.chain
    forger = Identity.from_seed(NodeId("n3"), b"not n3")
    lie = seal(
        Record(init.packet, RecordKind.TRAIN, forger.node, 1, 0, (init.id,), init.version,
               init.version),
        forger,
    )  # fmt: skip
    header = sign_header(replace(offer.header, chain=(init, lie)), small.identities[NodeId("n1")])
    answer = refusal(commands_of(small, NodeId("n2"), NodeId("n1"), Offer(header.key, header)))
    assert answer is not None
    assert answer.reason is RefusalReason.BAD_LINEAGE


def test_a_verdict_by_nobody_is_refused() -> None:
    small = settled(world())
    offer = hostile_offer(small, NodeId("n1"))
    lie = SkillEstimate(SKILL, "accuracy", 1.0, 1.0, 1.0, 100, NodeId("nobody"),
                        EstimateSource.MPVU, offer.header.version, bytes(64))  # fmt: skip
    header = sign_header(replace(offer.header, skills=(lie,)), small.identities[NodeId("n1")])
    answer = refusal(commands_of(small, NodeId("n2"), NodeId("n1"), Offer(header.key, header)))
    assert answer is not None
    assert answer.reason is RefusalReason.BAD_LINEAGE


def test_one_neighbour_cannot_take_all_the_room_with_offers_it_never_sends() -> None:
    small = settled(world())
    answers = [
        is_accepted(commands_of(small, NodeId("n2"), NodeId("n1"), hostile_offer(
            small, NodeId("n1"), seed=i)))
        for i in range(20)
    ]  # fmt: skip
    assert sum(answers) == 4
    assert is_accepted(
        commands_of(small, NodeId("n2"), NodeId("n3"), hostile_offer(small, NodeId("n3"), seed=50))
    )


def test_an_offer_by_one_who_is_no_neighbour_is_not_looked_at() -> None:
    small = settled(world())
    offer = hostile_offer(small, NodeId("n4"))
    assert commands_of(small, NodeId("n1"), NodeId("n4"), offer) == []


def test_a_packet_on_its_way_cannot_be_replaced_by_another_sender() -> None:
    small = settled(world())
    first = hostile_offer(small, NodeId("n1"), owner=NodeId("n1"))
    assert is_accepted(commands_of(small, NodeId("n2"), NodeId("n1"), first))
    second = sign_header(replace(first.header, holder=NodeId("n3")), small.identities[NodeId("n3")])
    commands = commands_of(small, NodeId("n2"), NodeId("n3"), Offer(first.key, second))
    assert refusal(commands) is not None
    assert not any(isinstance(c, ExpectPacket) for c in commands)


def test_a_key_taken_by_a_false_packet_does_not_swallow_the_true_one() -> None:
    small = settled(world())
    first = hostile_offer(small, NodeId("n1"))
    commands_of(small, NodeId("n2"), NodeId("n1"), first)
    core = small.world.nodes[NodeId("n2")].core
    assert isinstance(core, NodeCore)
    core.handle(PacketReceived(NodeId("n1"), first.key, 100), small.world.now)
    second = sign_header(replace(first.header, holder=NodeId("n3")), small.identities[NodeId("n3")])
    sent = commands_of(small, NodeId("n2"), NodeId("n3"), Offer(first.key, second))
    assert refusal(sent) is not None
    assert not any(isinstance(c, SendMessage) and isinstance(c.message, Custody) for c in sent)


def test_a_renewed_offer_counts_once() -> None:
    small = settled(world(tune=lambda config: replace(config, max_packets=1)))
    first = hostile_offer(small, NodeId("n1"))
    assert is_accepted(commands_of(small, NodeId("n2"), NodeId("n1"), first))
    newer = sign_header(
        replace(first.header, spent=Cost(seconds=1)), small.identities[NodeId("n1")]
    )
    assert is_accepted(commands_of(small, NodeId("n2"), NodeId("n1"), Offer(first.key, newer)))


def test_whatever_is_admitted_can_be_saved_and_offered_again() -> None:
    small = settled(world())
    node, sender = NodeId("n2"), NodeId("n1")
    label = "x" * 16_000
    offer = hostile_offer(
        small, sender,
        architecture=Architecture("tally", {f"k{i}": label for i in range(45)}),
    )  # fmt: skip
    assert len(encode_message(offer)) < MAX_OFFER_BYTES
    assert is_accepted(commands_of(small, node, sender, offer))
    core = small.world.nodes[node].core
    assert isinstance(core, NodeCore)
    for command in core.handle(PacketReceived(sender, offer.key, 100), small.world.now):
        if isinstance(command, SaveCustody):
            encode_row(command.row)


# --- a packet's own policy --------------------------------------------------------------------


def test_a_policy_that_fails_sends_the_packet_home_and_harms_no_other() -> None:
    small = world()
    bad, payload = tally_packet(small, seed=1, policy="fails")
    good, other = tally_packet(small, seed=2, target=0.5)
    small.world.submit(small.owner, bad, payload, at=1.0)
    small.world.submit(small.owner, good, other, at=1.0)
    small.world.start()
    assert small.world.run(600.0, lambda: len(small.world.deliveries) == 2)
    home = {d.header.id: d.header for d in small.world.deliveries}
    assert home[good.id].requirement_met
    assert not home[bad.id].requirement_met
    assert any('"policy.failed"' in line for line in small.world.lines)


# --- requests ---------------------------------------------------------------------------------


def batch() -> tuple[object, bytes]:
    made = pack({"x": np.zeros(4, np.float32)})
    return made.manifest, bytes(made.arena)


def samples_of(small: SmallWorld, src: NodeId, purpose: str = "verify") -> Relay:
    manifest, tensors = batch()
    body = Samples(purpose, 1, manifest, tensors)  # type: ignore[arg-type]
    return sign_relay(Relay(src, small.mpvu, "samples", 8, body), small.identities[src])


def tasks_in(commands: Iterable[Command]) -> int:
    return sum(isinstance(c, RunTask) for c in commands)


def test_samples_are_taken_from_whoever_signed_them_and_offers_them_only() -> None:
    small = settled(world())
    via = neighbour_of(small, small.mpvu)
    true = samples_of(small, NodeId("n1"))
    assert tasks_in(commands_of(small, small.mpvu, via, true)) == 1
    assert tasks_in(commands_of(small, small.mpvu, via, true)) == 0, "one at a time"
    forged = replace(true, src=NodeId("n2"))
    assert tasks_in(commands_of(small, small.mpvu, via, forged)) == 0
    assert tasks_in(commands_of(small, small.mpvu, via, replace(true, signature=b""))) == 0
    assert tasks_in(commands_of(small, small.mpvu, via, samples_of(small, small.owner))) == 0
    assert tasks_in(commands_of(small, small.mpvu, via, samples_of(small, NodeId("n2"), "x"))) == 0


def test_an_acknowledgement_that_nobody_waits_for_is_not_kept() -> None:
    small = settled(world())
    core = small.world.nodes[NodeId("n1")].core
    assert isinstance(core, NodeCore)
    before = len(core._requests._given)
    for i in range(100):
        ack = Relay(NodeId("n3"), NodeId("n1"), "", 8, SamplesAck(f"purpose {i}", 1))
        ack = sign_relay(ack, small.identities[NodeId("n3")])
        commands_of(small, NodeId("n1"), NodeId("n2"), ack)
    assert len(core._requests._given) == before


def test_word_of_a_packet_counts_only_if_it_is_signed() -> None:
    small = settled(world())
    key = CustodyKey(new_packet_id(1, random.Random(0)), 3)
    lie = Relay(NodeId("n3"), small.owner, "follow", 8, Whereabouts(key))
    found = commands_of(small, small.owner, NodeId("n1"), lie)
    assert [c.event for c in found if isinstance(c, Trace)] == ["message.rejected"]


def test_a_probe_is_answered_by_the_node_that_was_asked_and_by_no_other() -> None:
    small = world()
    asked: list[tuple[NodeId, Relay]] = []

    def hook(node: object, what: object) -> None:
        relay = getattr(what, "relay", None)
        if relay is not None and isinstance(relay.body, ProbeAsk):
            asked.append((node.node, relay))  # type: ignore[attr-defined]

    small.world.hooks.append(hook)
    header, payload = tally_packet(small, target=2.0)
    small.world.submit(small.owner, header, payload, at=1.0)
    small.world.start()
    assert small.world.run(100.0, lambda: bool(asked))
    node, relay = asked[-1]
    liar = next(n for n in small.nodes if n not in (node, relay.dst))
    lie = ProbeReply(ProbeScores(5.0, 1.0, 0.0, 0.0, 32))
    for src, signer in ((liar, liar), (relay.dst, liar)):
        answer = Relay(src, node, relay.request, 8, lie)
        answer = replace(sign_relay(replace(answer, src=signer), small.identities[signer]), src=src)
        found = commands_of(small, node, liar, answer)
        assert not [c for c in found if isinstance(c, Trace) and c.event == "probe.finished"]


# --- anything at all --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_no_message_in_any_order_stops_a_node(seed: int) -> None:
    """Messages that fit the types, from neighbours, about packets there are and are not."""
    rng = random.Random(seed)
    small = world(mesh(5), seed=seed)
    _, header = under_way(small, seed)
    keys = [header.key, header.key.next(), replace(header.key, hop=TOP, epoch=TOP),
            CustodyKey(new_packet_id(1, rng), rng.randrange(5))]  # fmt: skip
    for _ in range(200):
        small.world.run(small.world.now + rng.random())
        target, sender = rng.sample(small.nodes, 2)
        if small.world.nodes[target].core is None:
            continue
        message = any_message(small, sender, target, rng.choice(keys), rng)
        small.world.nodes[target].feed(MessageReceived(sender, message))
        if rng.random() < 0.02:
            small.world.nodes[target].feed(LinkDown(sender))


def any_message(
    small: SmallWorld, sender: NodeId, target: NodeId, key: CustodyKey, rng: random.Random
) -> Message:
    epoch = rng.choice([0, 1, EPOCH_STEP, TOP])
    bodies: list[RelayBody] = [
        SamplesAck("verify", 1), Whereabouts(key), ProbeReply(refused="no"),
        ProbeAsk(key.packet, small_version(), Architecture("tally"), (SKILL,), 1),
    ]  # fmt: skip
    request = rng.choice(["", f"probe/{key}/n1"])
    relay = Relay(sender, rng.choice([target, sender]), request, rng.randrange(3),
                  rng.choice(bodies))  # fmt: skip
    messages: list[Message] = [
        Accept(key, (bytes(32),)), Custody(key), Moved(key), Alive(key), Ask(key),
        Superseded(replace(key, epoch=epoch)),
        Refuse(key, rng.choice(list(RefusalReason)), "x" * 1000, epoch),
        Pull(()), Pull((NodeId("nobody"),)), Summary((SummaryEntry(NodeId("n1"), TOP),)),
        relay, sign_relay(relay, small.identities[sender]),
        advert_with(small, sender, (Notice(key.packet, epoch, done=rng.random() < 0.1),)),
        hostile_offer(small, sender, seed=rng.randrange(5)),
    ]  # fmt: skip
    return rng.choice(messages)


def small_version() -> Version:
    return pack({f"{MODEL}x": np.zeros(1, np.float32)}).manifest.version()


@pytest.mark.parametrize("pairs", [[(0, 1), (1, 2)], [(0, 1), (1, 2), (2, 3)]], ids=["one", "two"])
def test_a_packet_whose_visits_all_fail_does_not_spin(pairs: list[tuple[int, int]]) -> None:
    small = world(pairs)
    header, _ = tally_packet(small, budget=Cost(40, 1e9, 1e12, 1e12))
    bad = pack({f"{MODEL}other": np.zeros(3, np.float32)})
    version = bad.manifest.version(MODEL)
    header = replace(header, manifest=bad.manifest, version=version, base=version)
    small.world.submit(small.owner, header, bad, at=1.0)
    small.world.start()
    assert small.world.run(3000.0, lambda: bool(small.world.deliveries))
    (delivery,) = small.world.deliveries
    assert not delivery.header.requirement_met
    failed = [line for line in small.world.lines if '"visit.failed"' in line]
    assert 0 < len(failed) <= 40


def test_an_mpvu_that_gives_no_more_verdicts_does_not_hold_a_packet() -> None:
    small = world(ring(4), tune=lambda config: replace(config, query_budget=1))
    header, payload = tally_packet(small, target=0.999, budget=Cost(40, 1e9, 1e12, 1e12))
    small.world.submit(small.owner, header, payload, at=1.0)
    small.world.start()
    assert small.world.run(3000.0, lambda: bool(small.world.deliveries))
    assert sum('"query budget' in line for line in small.world.lines) <= 40
