"""One value of every kind on the wire, the same for ever: what the golden files hold."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import numpy as np

from aats import advert as ad
from aats import messages as ms
from aats.identity import Identity
from aats.ids import CustodyKey, NodeId, Version, branch_name, new_packet_id
from aats.ledger.record import seal, sign_verdict
from aats.lineage import Record, RecordKind
from aats.node import events as ev
from aats.node import tasks as tk
from aats.packet import (
    Architecture,
    Cost,
    Errand,
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
from aats.payload import pack
from aats.wire import sign_advert, sign_header, sign_mandate

OWNER = Identity.from_seed(NodeId("owner"), b"golden")
CLINIC = Identity.from_seed(NodeId("clinic-1"), b"golden")
MPVU = Identity.from_seed(NodeId("mpvu"), b"golden")
PACKET = new_packet_id(1_700_000_000_000, random.Random(1))
KEY = CustodyKey(PACKET, 2, 1)
PAYLOAD = pack(
    {
        "model.0.weight": np.arange(6, dtype="<f4").reshape(2, 3),
        "model.0.bias": np.zeros(2, dtype="<f4"),
        "ref.oncology.y": np.array([0, 1, 1], dtype="<i8"),
    }
)
MANIFEST, TENSORS = PAYLOAD.manifest, bytes(PAYLOAD.arena)
VERSION = MANIFEST.version("model.")
BASE = Version("0a" * 32)
ARCHITECTURE = Architecture("mlp", {"sizes": [3, 2], "activation": "relu", "bias": True})

MANDATE = sign_mandate(
    Mandate(
        id=PACKET, kind=PacketKind.TRAIN, owner=Owner(OWNER.node, OWNER.public_key),
        created=1.7e9, deadline=inf,
        requirement=(Target("oncology", 0.9), Target("cardiology", 0.8, "auc", "any")),
        budget=Cost(30, 600, 1e9, inf), architecture=ARCHITECTURE,
        method=Plugin("sequential", {"lr": 0.05, "epochs": [1, 2], "warmup": None}),
        policy=Plugin("loss"), seed=(1 << 64) - 1, label="tumour model",
    ),
    OWNER,
)  # fmt: skip
INIT = seal(
    Record(PACKET, RecordKind.INIT, OWNER.node, 0, 0, (), BASE, BASE, "sequential", at=1.7e9),
    OWNER,
)
TRAIN = seal(
    Record(
        PACKET, RecordKind.TRAIN, CLINIC.node, 1, 1, (INIT.id,), BASE, VERSION, "sequential",
        steps=40, samples=320, seed=7, metrics={"oncology.accuracy": 0.94}, note="two epochs",
        at=1.7e9 + 5, seconds=1.5, wire_bytes=2e6, joules=3.25,
    ),
    CLINIC,
)  # fmt: skip
ESTIMATE = SkillEstimate(
    "oncology", "accuracy", 0.94, 0.9, 0.97, 90, CLINIC.node, EstimateSource.LOCAL, VERSION
)
VERDICT = sign_verdict(PACKET, ESTIMATE, MPVU)
HEADER = sign_header(
    Header(
        mandate=MANDATE, hop=2, epoch=1, spent=Cost(2, 12.5, 2e6, 3.25),
        skills=(ESTIMATE, VERDICT), version=VERSION, base=BASE, chain=(INIT, TRAIN),
        probe_bytes=512.0,
        journal=(VisitEntry(CLINIC.node, 1, "train", 0.125, 320, 3, 1.5),),
        labels_used={"oncology": [100.0, 220.0]}, trained={"visits": 1.0},
        manifest=MANIFEST, itinerary=(NodeId("clinic-2"), MPVU.node),
    ),
    CLINIC,
)  # fmt: skip
ADVERT = ad.Advert(
    origin=CLINIC.node, seq=12, public_key=CLINIC.public_key,
    roles=(ad.Role.DATA, ad.Role.COMPUTE),
    links=(ad.LinkAdvert(MPVU.node, 1e8, 0.002, 0.01),),
    data=(ad.DataAdvert("oncology", "ab12", 320, (100, 220), 0.9, 60.0, 3, NodeId("box")),),
    compute=ad.ComputeAdvert(5000.0, 1 << 33, 1, 0.002),
    policy=ad.NodePolicy(ad.ProbeMode.MINIBATCH, 1 << 20, (MPVU.node,)),
    notices=(ad.Notice(PACKET, 1, True),), incarnation=4, labels={"city": "Zuerich"},
)  # fmt: skip
SIGNED = sign_advert(ADVERT, CLINIC, 2.5)
ROW = ev.CustodyRow(KEY, "held", HEADER, OWNER.node, (MPVU.node,), CLINIC.node, (MPVU.node,))
ASK = ms.ProbeAsk(PACKET, VERSION, ARCHITECTURE, ("oncology",), 7, 0.05, MANIFEST, TENSORS)
SCORES = ms.ProbeScores(0.25, -0.5, 1.5, 3.0, 64, 0.1)
REPLY = ms.ProbeReply(SCORES, MANIFEST, TENSORS, "")
SAMPLES = ms.Samples("verify", 4, MANIFEST, TENSORS)
ACK = ms.SamplesAck("verify", 4)
HERE = ms.Whereabouts(KEY)
FRAME = ms.StreamFrame(
    3, 2, "activations", MANIFEST, TENSORS, {"loss": 0.5}, False,
    ms.StreamOpening(Header(MANDATE, hop=2), (CLINIC.node, MPVU.node)),
    {"joules": 2.5, "clinic-1>mpvu": 4096.0},
)  # fmt: skip
SPOKEN = tk.Spoken(CLINIC.node, "activations", MANIFEST, TENSORS, {"loss": 0.5}, 512, 1.5)
OFFER = ms.Offer(KEY, HEADER, (MPVU.node, NodeId("clinic-2")), NodeId("clinic-2"))
RELAY = ms.Relay(OWNER.node, MPVU.node, "probe/1", 8, ASK)
CHILD = sign_header(
    replace(
        HEADER, branch=branch_name(1, 1, 0), rendezvous=OWNER.node, chain=(),
        errand=Errand((NodeId("clinic-2"),), 2, True, 1.7e9 + 60),
    ),
    CLINIC,
)  # fmt: skip
FORKED = replace(HEADER, awaited=(CHILD.id,), merge_by=1.7e9 + 60, quorum=0.5)
VISIT_RESULT = tk.VisitResult(
    MANIFEST, (ESTIMATE,), "train", "fine", 0.125, 40, 320, 1.5, 0.5,
    {"oncology": [100.0, 220.0]}, {"visits": 2.0}, 1e9,
)  # fmt: skip

SAMPLE_OF = {
    type(value): value
    for value in (
        ms.Flood((SIGNED,)),
        ms.Summary((ms.SummaryEntry(CLINIC.node, 12), ms.SummaryEntry(MPVU.node, 1))),
        ms.Pull((CLINIC.node, MPVU.node)),
        OFFER,
        ms.Accept(KEY, tuple(t.digest for t in MANIFEST.tensors)),
        ms.Refuse(KEY, ms.RefusalReason.OLDER_EPOCH, "epoch 2 is alive", 2),
        ms.Custody(KEY),
        ms.Moved(KEY),
        ms.Alive(KEY),
        ms.Ask(KEY),
        ms.Superseded(KEY),
        RELAY,
        ASK, REPLY, SAMPLES, ACK, HERE, FRAME, SPOKEN,
        ms.StreamAck(4, {"joules": 2.5}),
        ms.StreamEnd("busy"),
        HEADER, MANDATE, TRAIN, ADVERT, ROW, VERDICT,
        ev.Started(4, (ROW,), {"seq": b"\x00\x01"}, (KEY, replace(KEY, hop=1))),
        ev.MessageReceived(OWNER.node, OFFER),
        ev.LinkUp(ad.LinkAdvert(MPVU.node, 1e8, 0.002)),
        ev.LinkDown(MPVU.node),
        ev.PacketReceived(OWNER.node, KEY, 2048),
        ev.TransferFailed(KEY, MPVU.node, "link down", True),
        ev.PacketSubmitted(HEADER),
        ev.TaskFinished(9, VISIT_RESULT, tk.Spending(1.5, 3.25)),
        ev.TaskFailed(9, "out of memory"),
        ev.DataChanged(ADVERT.data, ADVERT.compute),
        ev.TaskSpoke(9, SPOKEN),
        ev.Leaving(),
        tk.VisitTask(HEADER, CLINIC.node),
        tk.MergeTask(
            FORKED,
            Plugin("mean"),
            (tk.MergePart(tk.Beside(CHILD.key, MANIFEST), 320, (CLINIC.node,)),),
        ),
        tk.ProbeTask(ASK, REPLY, HEADER),
        tk.BatchTask(ASK),
        tk.VerifyTask(HEADER),
        tk.ContributeTask("verify", MPVU.node, 4),
        tk.AdoptTask(CLINIC.node, SAMPLES),
        VISIT_RESULT,
        tk.MergeResult(MANIFEST, (ESTIMATE,), "one left out", 0.25, 1.5, 0.5, (1,)),
        tk.ProbeResult(REPLY),
        tk.VerifyResult((ESTIMATE,), "cd" * 32),
        tk.ContributeResult(SAMPLES),
        tk.AdoptResult(True, "kept"),
        tk.FollowTask(Header(MANDATE, hop=2), OWNER.node, (CLINIC.node, MPVU.node), SPOKEN),
        tk.FollowResult(),
        tk.Lost(CLINIC.node),
    )
}  # fmt: skip
