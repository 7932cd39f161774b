from __future__ import annotations

import re
import tracemalloc
import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from math import inf, nan
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgpack  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aats import advert as ad
from aats import messages as ms
from aats import wire
from aats.codec import KEPT
from aats.errors import SignatureError, WireError
from aats.identity import Identity, verify
from aats.ids import CustodyKey, NodeId, PacketId, Version, branch_name
from aats.lineage import Record
from aats.node import events as ev
from aats.node import tasks as tk
from aats.packet import Architecture, Cost, Errand, Header, Mandate, Plugin, VisitEntry
from aats.payload import Manifest, TensorSpec, pack
from tests.wire_samples import (
    ADVERT,
    ASK,
    CHILD,
    CLINIC,
    HEADER,
    KEY,
    MANDATE,
    MANIFEST,
    MPVU,
    OFFER,
    OWNER,
    RELAY,
    SAMPLE_OF,
    SIGNED,
    TRAIN,
)

GOLDEN = Path(__file__).parent / "golden"
KINDS = list(wire.TYPES.values())
MESSAGES: tuple[type, ...] = get_args(ms.Message)


def golden_path(kind: type) -> Path:
    code = {v: k for k, v in wire.TYPES.items()}[kind]
    return GOLDEN / f"v{wire.WIRE_VERSION}" / f"{code:02d}-{kind.__name__}.bin"


def frame(kind: type, body: Any) -> bytes:
    code = {v: k for k, v in wire.TYPES.items()}[kind]
    packed_body: bytes = msgpack.packb(body)
    return bytes((wire.WIRE_VERSION, code)) + packed_body


def body_of(value: Any) -> dict[str, Any]:
    body: dict[str, Any] = msgpack.unpackb(wire.encode(value)[2:])
    return body


# --- golden files -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_has_the_bytes_of_its_golden_file(kind: type) -> None:
    path = golden_path(kind)
    assert path.exists(), "a new kind: python -m tests.golden.write"
    data = path.read_bytes()
    assert wire.encode(SAMPLE_OF[kind]) == data
    assert wire.decode(data, (kind,)) == SAMPLE_OF[kind]


def test_no_golden_file_is_of_a_kind_that_is_gone() -> None:
    known = {golden_path(kind) for kind in KINDS}
    assert set((GOLDEN / f"v{wire.WIRE_VERSION}").iterdir()) == known


def test_every_member_of_the_unions_has_a_type_code() -> None:
    unions = (ms.Message, ms.RelayBody, ev.Event, tk.Task, tk.Result)
    assert {kind for union in unions for kind in get_args(union)} <= set(KINDS)


# --- round trips ------------------------------------------------------------------------------

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
ARRAYS = st.lists(st.lists(st.integers(-128, 127), max_size=4), max_size=3)


def packed(rows: list[list[int]]) -> tuple[Manifest, bytes]:
    payload = pack({f"model.{i}": np.array(row, dtype="i1") for i, row in enumerate(rows)})
    return payload.manifest, bytes(payload.arena)


NUMBERS = st.integers(0, 10**15)
BRANCHES = st.builds(branch_name, NUMBERS, NUMBERS, st.integers(0, 10**6 - 1))
SPECIAL: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    bytes: st.binary(max_size=8),
    bool: st.booleans(),
    NodeId: st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,6}", fullmatch=True),
    PacketId: st.tuples(st.uuids(), st.just("") | BRANCHES).map(lambda p: f"{p[0]}{p[1]}"),
    Version: st.binary(min_size=32, max_size=32).map(bytes.hex) | st.just(""),
    Any: JSON,
    Manifest: ARRAYS.map(lambda rows: packed(rows)[0]),
}


def values(hint: Any, bounds: tuple[Any, Any] | None = None) -> st.SearchStrategy[Any]:
    """Return a strategy for any annotation of the contracts, within what the wire allows."""
    if hint in SPECIAL:
        return SPECIAL[hint]
    if hint is int:
        low, high = bounds or (0, (1 << 63) - 1)
        return st.integers(low, high)
    if hint is float:
        low, high = bounds or (None, None)
        top = None if high == inf else high
        return st.floats(low, top, allow_nan=False, allow_infinity=high == inf)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if isinstance(hint, type) and is_dataclass(hint):
        return whole(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of(*(st.none() if a is type(None) else values(a) for a in arguments))
    item = values(arguments[-1] if origin is dict else arguments[0])
    if origin is dict:
        return st.dictionaries(TEXT, item, max_size=2)
    many = st.lists(item, max_size=2)
    return many.map(tuple) if origin is tuple else many


def whole(kind: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    if {"manifest", "tensors"} <= hints.keys():
        rest = {n: values(h) for n, h in hints.items() if n not in ("manifest", "tensors")}
        return st.builds(
            lambda payload, others: kind(manifest=payload[0], tensors=payload[1], **others),
            ARRAYS.map(packed),
            st.fixed_dictionaries(rest),
        )
    parts = {}
    for f in fields(kind):
        strategy = values(hints[f.name], wire._RANGES.get((kind, f.name)))
        if f.default is not MISSING:
            strategy = st.just(f.default) | strategy
        parts[f.name] = strategy
    if kind is Header:
        parts["spent"] = st.just(Cost(1.0, 2.0, 3.0, 4.0))
        trunk = {"branch": st.just(""), "errand": st.none(), "rendezvous": st.just("")}
        child = {"branch": BRANCHES, "errand": whole(Errand), "rendezvous": SPECIAL[NodeId]}
        child["awaited"] = st.just(())
        return st.builds(kind, **(parts | trunk)) | st.builds(kind, **(parts | child))
    if kind is Mandate:
        parts["id"] = st.uuids().map(str)
    if kind is ms.Offer:
        return st.builds(ms.Offer, **parts).map(
            lambda o: replace(o, key=replace(o.key, packet=o.header.id))
        )
    return st.builds(kind, **parts)


@pytest.mark.parametrize(
    "kind",
    [*MESSAGES, Header, Record, ad.Advert, ev.CustodyRow, *get_args(ev.Event)],
    ids=lambda kind: kind.__name__,
)
def test_any_value_comes_back_and_has_one_encoding(kind: type) -> None:
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(whole(kind))
    def comes_back(value: Any) -> None:
        data = wire.encode(value)
        again = wire.decode(memoryview(data), (kind,))
        assert again == value
        assert wire.encode(again) == data

    comes_back()


@pytest.mark.parametrize(
    "change",
    [
        {"branch": "~1-2"}, {"branch": "/../x"}, {"branch": "~1-2-3-4"}, {"rendezvous": ""},
        {"errand": None}, {"branch": ""}, {"awaited": (HEADER.id,)},
    ],
    ids=str,
)  # fmt: skip
def test_a_child_has_branch_errand_and_rendezvous(change: dict[str, Any]) -> None:
    wire.encode(CHILD)
    with pytest.raises(WireError):
        wire.encode(replace(CHILD, **change))


def test_a_mandate_has_no_childs_id() -> None:
    with pytest.raises(WireError, match="is the id of a child"):
        wire.encode(replace(MANDATE, id=CHILD.id))


@pytest.mark.parametrize(
    ("encode", "decode", "kind"),
    [
        (wire.encode_message, wire.decode_message, ms.Offer),
        (wire.encode_header, wire.decode_header, Header),
        (wire.encode_record, wire.decode_record, Record),
        (wire.encode_row, wire.decode_row, ev.CustodyRow),
        (wire.encode_advert, wire.decode_advert, ad.Advert),
        (wire.encode_event, wire.decode_event, ev.TaskFinished),
        (wire.encode_task, wire.decode_task, tk.VisitTask),
    ],
)
def test_named_pairs(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], kind: type
) -> None:
    data = encode(SAMPLE_OF[kind])
    assert decode(data) == SAMPLE_OF[kind]
    other = wire.encode(SAMPLE_OF[tk.AdoptResult])
    with pytest.raises(WireError, match=r"type code 74 is not one of .*\(\d+\)"):
        decode(other)


def test_equal_values_have_equal_bytes_whatever_their_order_and_type() -> None:
    one = replace(MANDATE, method=Plugin("m", {"a": 1, "b": {"c": 2, "d": 3}}))
    two = replace(MANDATE, method=Plugin("m", {"b": {"d": 3, "c": 2}, "a": 1}))
    assert wire.encode(one) == wire.encode(two)
    ints = replace(HEADER, spent=Cost(2, 12.5, 2_000_000, 3.25), trained={"visits": 1})
    floats = replace(HEADER, spent=Cost(2.0, 12.5, 2e6, 3.25), trained={"visits": np.float64(1)})
    assert wire.encode(ints) == wire.encode(floats)


def test_a_field_added_later_with_a_default_is_not_needed() -> None:
    body = body_of(ms.Refuse(KEY, ms.RefusalReason.FULL))
    assert body.keys() == {"key", "reason"}


def test_typical_header_is_a_few_kilobytes() -> None:
    manifest = pack({f"model.l{i}.w": np.zeros((8, 8), "f4") for i in range(30)}).manifest
    header = replace(HEADER, manifest=manifest, chain=(TRAIN,) * 20)
    assert len(wire.encode_header(header)) < 17_000


# --- hostile bytes ----------------------------------------------------------------------------


def refused_or_sound(data: bytes) -> None:
    try:
        message = wire.decode_message(data)
    except WireError:
        return
    assert wire.decode_message(wire.encode_message(message)) == message


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_wire_errors_only(data: bytes) -> None:
    refused_or_sound(data)
    for kind in KINDS:
        code = {v: k for k, v in wire.TYPES.items()}[kind]
        with pytest.raises(WireError):
            wire.decode(bytes((1, code)) + b"\xc1" + data, (kind,))


@settings(deadline=None)
@given(st.sampled_from(MESSAGES), JSON)
def test_random_structures_raise_wire_errors_only(kind: type, body: Any) -> None:
    refused_or_sound(frame(kind, body))


@settings(deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_changed_messages_raise_wire_errors_only(kind: type, data: st.DataObject) -> None:
    raw = bytearray(wire.encode(SAMPLE_OF[kind]))
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, len(raw) * 8 - 1))
        raw[bit // 8] ^= 1 << bit % 8
    refused_or_sound(bytes(raw))


@pytest.mark.parametrize("kind", [ms.Offer, ms.Flood, ms.Relay], ids=lambda kind: kind.__name__)
def test_every_truncation_and_any_addition_is_refused(kind: type) -> None:
    data = wire.encode(SAMPLE_OF[kind])
    for end in range(len(data)):
        with pytest.raises(WireError):
            wire.decode_message(data[:end])
    with pytest.raises(WireError):
        wire.decode_message(data + b"\x00")


@pytest.mark.parametrize(
    "claim",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 4 G elements
        b"\xdf\xff\xff\xff\xff",  # a map of 4 G entries
        b"\xdb\xff\xff\xff\xff",  # 4 GiB of text
        b"\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
        b"\xc9\xff\xff\xff\xff\x00",  # 4 GiB of extension
        b"\xdd\x00\x00\x3f\xff" * 4000,  # lists in lists, each of a legal length
        b"\xdc\xff\xff" * 20_000,
        b"\x91" * 100_000,
    ],
    ids=["list", "map", "text", "bytes", "ext", "nested", "nested16", "deep"],
)
def test_claims_cost_no_memory(claim: bytes) -> None:
    data = bytes((1, 1)) + b"\x81\xa7adverts" + claim
    wire.encode(SAMPLE_OF[ms.Flood])  # compiled before we measure
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            wire.decode_message(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) + 100_000


def test_other_version_names_both() -> None:
    data = bytearray(wire.encode(OFFER))
    data[0] = 7
    with pytest.raises(WireError, match="wire version 7, this node speaks version 1"):
        wire.decode_message(bytes(data))


def test_extension_types_are_refused() -> None:
    with pytest.raises(WireError):
        wire.decode_message(frame(ms.Pull, {"origins": [msgpack.ExtType(5, b"x")]}))


def test_repeated_key_is_refused() -> None:
    data = bytes((1, 3)) + b"\x82\xa7origins\x90\xa7origins\x90"
    with pytest.raises(WireError, match="a key is repeated"):
        wire.decode_message(data)


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (ms.Flood, wire.MAX_MESSAGE_BYTES),
        (ms.Relay, wire.MAX_MESSAGE_BYTES),
        (ms.Summary, 1 << 20),
        (Header, wire.MAX_HEADER_BYTES),
        (ad.Advert, wire.MAX_ADVERT_BYTES),
    ],
)
def test_too_long_is_refused_before_it_is_read(kind: type, limit: int) -> None:
    code = {v: k for k, v in wire.TYPES.items()}[kind]
    with pytest.raises(WireError, match=f"of {limit + 1} bytes, allowed are {limit}"):
        wire.decode(bytes((1, code)) + b"\xc1" * (limit - 1), (kind,))


def test_no_message_is_larger_than_a_frame() -> None:
    assert all(wire._limit(kind) <= wire.MAX_MESSAGE_BYTES for kind in MESSAGES)
    assert wire.MAX_MESSAGE_BYTES == (2 << 20) - (4 << 10)


def test_too_large_is_not_sent() -> None:
    payload = pack({"model.w": np.zeros(wire.MAX_MESSAGE_BYTES, "u1")})
    ask = replace(ASK, manifest=payload.manifest, tensors=bytes(payload.arena))
    with pytest.raises(WireError, match=r"Relay of \d+ bytes, allowed are"):
        wire.encode_message(replace(RELAY, body=ask))


def test_advert_of_64_kib_at_most_within_a_flood() -> None:
    long = replace(SIGNED, body=b"x" * (wire.MAX_ADVERT_BYTES + 1))
    with pytest.raises(WireError, match=r"Flood\.adverts\[1\]: advert of 65537 bytes"):
        wire.encode_message(ms.Flood((SIGNED, long)))


# --- types and ranges -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("header", "hop"), -1, r"Offer\.header\.hop: -1 is outside 0\.\."),
        (("header", "hop"), 1.0, r"Offer\.header\.hop: 1\.0 is no int"),
        (("header", "hop"), True, r"Offer\.header\.hop: True is no int"),
        (("header", "hop"), 1 << 63, r"Offer\.header\.hop: 9223372036854775808 is outside"),
        (("header", "spent", "bytes"), nan, r"header\.spent\.bytes: nan is outside"),
        (("header", "spent", "bytes"), inf, r"header: spent is not finite"),
        (("header", "spent", "bytes"), -1.0, r"header\.spent\.bytes: -1\.0 is outside"),
        (("header", "spent", "bytes"), 1, r"header\.spent\.bytes: 1 is no float"),
        (("header", "mandate", "deadline"), nan, r"mandate\.deadline: nan is outside"),
        (("header", "mandate", "created"), inf, r"mandate\.created: inf is outside"),
        (("header", "mandate", "kind"), "steal", "'steal' is not one of train, query, deploy"),
        (("header", "mandate", "id"), b"short", "is no packet id"),
        (("header", "version"), b"short", "is no version"),
        (("header", "holder"), "../etc", "'../etc' is no node id"),
        (("header", "holder"), "", "'' is no node id"),
        (("header", "signature"), "text", "'text' is no bytes"),
        (("header", "chain", 1, "metrics", "oncology.accuracy"), nan, r"chain\[1\]\.metrics\.on"),
        (("header", "labels_used", "oncology", 1), inf, r"labels_used\.oncology\[1\]: inf"),
        (
            ("header", "mandate", "method", "params", "lr"),
            nan,
            r"params\.lr: nan is no finite JSON",
        ),
        (("header", "journal", 0), [1], r"journal\[0\]: list is no map of VisitEntry"),
        (("header", "chain"), "x", r"chain: 'x' is no list"),
        (("header", "trained"), [], r"trained: list is no map"),
        (("header", "trained"), {b"x": 1.0}, r"trained: bytes is no str"),
        (("key", "packet"), b"\0" * 16, "key of packet 0.*, header of packet"),
        (("onward", 0), "a" * 65, r"onward\[0\]: .* is no node id"),
    ],
)
def test_wrong_values_are_named(place: tuple[Any, ...], value: Any, message: str) -> None:
    body = body_of(OFFER)
    inner: Any = body
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    with pytest.raises(WireError, match=message):
        wire.decode_message(frame(ms.Offer, body))


def test_missing_fields_are_named() -> None:
    body = body_of(OFFER)
    del body["header"]["mandate"]["owner"], body["header"]["mandate"]["budget"]
    with pytest.raises(WireError, match=r"header\.mandate: Mandate lacks budget, owner"):
        wire.decode_message(frame(ms.Offer, body))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (replace(HEADER, trained={"x": nan}), r"Header\.trained\.x: nan is outside"),
        (replace(HEADER, hop=-1), r"Header\.hop"),
        (replace(HEADER, version=Version("v1")), "'v1' is no version"),
        (replace(HEADER, version=Version("AB" * 32)), "is no version"),
        (replace(MANDATE, id=PacketId("p1")), "'p1' is no packet id"),
        (replace(MANDATE, label="x" * 20_000), "no str of at most 16384"),
        (replace(MANDATE, label="\ud800"), "lone surrogate"),
        (replace(MANDATE, method=Plugin("m", {"x": object()})), "object is no finite JSON"),
        (replace(MANDATE, method=Plugin("m", {"x": nan})), "nan is no finite JSON"),
        (replace(ASK, tensors=b"x"), "1 bytes of tensors, the manifest says"),
    ],
)
def test_what_none_would_take_does_not_leave(value: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.encode(value)


def test_deep_parameters_are_refused() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(WireError, match="nested deeper than 8"):
        wire.encode(replace(MANDATE, method=Plugin("m", {"x": deep})))
    body = body_of(MANDATE)
    body["method"]["params"] = {"x": deep}
    with pytest.raises(WireError, match="nested deeper than 8"):
        wire.decode(frame(Mandate, body), (Mandate,))


def test_infinity_is_a_budget_and_a_deadline() -> None:
    unlimited = replace(MANDATE, budget=Cost(inf, inf, inf, inf), deadline=inf)
    assert wire.decode(wire.encode(unlimited), (Mandate,)) == unlimited


def test_every_manifest_is_checked() -> None:
    spec = HEADER.manifest.tensors[0]
    lie = Manifest((TensorSpec(spec.name, "f32", (1 << 40,), 0, 1 << 42, spec.digest),), 1 << 42)
    body = body_of(HEADER)
    body["manifest"]["total"] = 1 << 42
    with pytest.raises(WireError, match=r"Header\.manifest: manifest: total 4398046511104 bytes"):
        wire.decode_header(frame(Header, body))
    with pytest.raises(WireError, match="total 4398046511104"):
        wire.encode_header(replace(HEADER, manifest=lie))


def test_another_packet_of_a_known_layout_is_the_same_as_before() -> None:
    wire.encode_header(HEADER)
    tensors = tuple(t._replace(digest=bytes([i]) * 32) for i, t in enumerate(MANIFEST.tensors))
    other = replace(HEADER, manifest=Manifest(tensors, MANIFEST.total))
    data = wire.encode_header(other)
    wire._packed.clear()
    assert wire.encode_header(other) == data
    assert wire.decode_header(data) == other
    assert wire.decode_header(wire.encode_header(HEADER)) == HEADER


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_known_layout_hides_no_wrong_digest(length: int) -> None:
    wire.encode_header(HEADER)
    first, *others = MANIFEST.tensors
    lie = Manifest((first._replace(digest=bytes(length)), *others), MANIFEST.total)
    with pytest.raises(WireError, match=f"digest of {length} bytes, must be 32"):
        wire.encode_header(replace(HEADER, manifest=lie))


@pytest.mark.parametrize("kind", [float, bool], ids=["float", "bool"])
def test_a_known_layout_hides_no_wrong_type(kind: type) -> None:
    wire.encode_header(HEADER)
    body = body_of(HEADER)
    body["manifest"]["offsets"][0] = kind(body["manifest"]["offsets"][0])
    with pytest.raises(WireError, match="an offset or the total is no int"):
        wire.decode_header(frame(Header, body))
    body = body_of(HEADER)
    body["manifest"]["shapes"][0] = [kind(1), *body["manifest"]["shapes"][0][1:]]
    with pytest.raises(WireError, match="a size that is no int"):
        wire.decode_header(frame(Header, body))


@pytest.mark.parametrize(
    "link",
    [
        ad.LinkAdvert(MPVU.node, 0.0, 0.1),
        ad.LinkAdvert(MPVU.node, 1e6, -0.1),
        ad.LinkAdvert(MPVU.node, 1e6, 0.1, 1.5),
        ad.LinkAdvert(MPVU.node, inf, 0.1),
    ],
)
def test_links_that_would_break_a_path_are_refused(link: ad.LinkAdvert) -> None:
    with pytest.raises(WireError, match=r"Advert\.links\[0\]\.(bandwidth_bps|latency_s|loss)"):
        wire.encode_advert(replace(ADVERT, links=(link,)))


# --- no destination ---------------------------------------------------------------------------

DESTINATIONS = [
    "destination", "dest", "dst", "to", "target", "target_node", "targets", "next", "next_hop",
    "next_stop", "nexthop", "goal", "sink", "deliver_to", "receiver", "recipient", "route_to",
]  # fmt: skip
RESEMBLES = re.compile(
    r"dest|dst|(^|_)to($|_)|target|next|goal|sink|deliver|receiver|recipient", re.IGNORECASE
)


def parts_of(kind: Any, found: set[type]) -> set[type]:
    """Return all dataclasses that a dataclass is made of."""
    if isinstance(kind, type) and is_dataclass(kind) and kind not in found:
        found.add(kind)
        for hint in get_type_hints(kind).values():
            parts_of(hint, found)
    for argument in get_args(kind):
        parts_of(argument, found)
    return found


def test_no_field_of_a_packet_is_or_resembles_a_destination() -> None:
    parts = parts_of(Header, set())
    assert {Header, Mandate, VisitEntry, Plugin, Architecture, Record, Manifest} <= parts
    for kind in parts:
        for field in fields(kind):
            assert not RESEMBLES.search(field.name), f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize("name", DESTINATIONS)
@pytest.mark.parametrize(
    "place", [(), ("mandate",), ("mandate", "method"), ("journal", 0), ("spent",)], ids=str
)
def test_a_header_with_a_destination_is_refused(place: tuple[Any, ...], name: str) -> None:
    body = body_of(HEADER)
    inner: Any = body
    for part in place:
        inner = inner[part]
    inner[name] = "clinic-7"
    with pytest.raises(WireError, match=f"has no field '{name}'"):
        wire.decode_header(frame(Header, body))


@pytest.mark.parametrize(
    "name", ["destination", "dest", "Destination", "DEST", "dst", "target_node", "next_hop",
             "next-stop", "nextHop", "final_destination"],
)  # fmt: skip
@pytest.mark.parametrize(
    "place",
    [
        ("mandate", "method", "params"),
        ("mandate", "policy", "params"),
        ("mandate", "architecture", "config"),
        ("trained",),
        ("labels_used",),
    ],
    ids=lambda place: ".".join(place),
)
def test_no_destination_is_smuggled_into_parameters(place: tuple[str, ...], name: str) -> None:
    body = body_of(HEADER)
    inner: Any = body
    for part in place:
        inner = inner.setdefault(part, {})
    inner[name] = "clinic-7"
    with pytest.raises(WireError, match=f"'{name}' is refused: a packet has no destination"):
        wire.decode_header(frame(Header, body))
    inner.pop(name)
    inner["deep"] = [{name: 1.0}]
    with pytest.raises(WireError):
        wire.decode_header(frame(Header, body))


def test_a_local_plugin_cannot_smuggle_one_either() -> None:
    with pytest.raises(WireError, match="key 'dest' is refused"):
        wire.encode(replace(MANDATE, policy=Plugin("loss", {"inner": [{"dest": "x"}]})))


# --- signatures -------------------------------------------------------------------------------


def test_mandate_is_signed_by_its_owner_alone() -> None:
    wire.check_mandate(MANDATE)
    wire.check_mandate(wire.decode_header(wire.encode_header(HEADER)).mandate)
    with pytest.raises(ValueError, match="cannot be signed by clinic-1"):
        wire.sign_mandate(MANDATE, CLINIC)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8}, {"deadline": 1.0}, {"label": "x"}, {"signature": b""},
        {"budget": Cost(31, 600, 1e9, inf)}, {"method": Plugin("sequential", {"lr": 0.06})},
        {"requirement": MANDATE.requirement[:1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_mandate_is_found(change: dict[str, Any]) -> None:
    wire.check_mandate(MANDATE)
    with pytest.raises(SignatureError, match="not signed by its owner owner"):
        wire.check_mandate(replace(MANDATE, **change))


def test_a_mandate_that_held_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_checked", set())
    monkeypatch.setattr(wire, "CHECKED_KEPT", 1)
    other = wire.sign_mandate(replace(MANDATE, label="other"), OWNER)
    computed: list[bytes] = []

    def counted(key: bytes, data: bytes, signature: bytes) -> bool:
        computed.append(signature)
        return verify(key, data, signature)

    monkeypatch.setattr(wire, "verify", counted)
    for mandate in (MANDATE, MANDATE, other, MANDATE):  # room for one: the last is forgotten
        wire.check_mandate(mandate)
    assert computed == [MANDATE.signature, other.signature, MANDATE.signature]


def test_header_is_signed_by_its_holder() -> None:
    assert HEADER.holder == CLINIC.node
    wire.check_header(HEADER, CLINIC.public_key)
    with pytest.raises(SignatureError, match="header not signed by clinic-1"):
        wire.check_header(HEADER, OWNER.public_key)
    for change in ({"hop": 3}, {"holder": OWNER.node}, {"chain": HEADER.chain[:1]}):
        with pytest.raises(SignatureError):
            wire.check_header(replace(HEADER, **change), CLINIC.public_key)


def test_signing_changes_nothing_of_what_is_remembered_of_a_value() -> None:
    before = wire.encode_header(HEADER)
    bare = wire.encode_header(replace(HEADER, signature=b""))
    again = wire.sign_header(HEADER, CLINIC)
    wire.check_header(HEADER, CLINIC.public_key)
    wire.check_mandate(HEADER.mandate)
    assert wire.encode_header(HEADER) == wire.encode_header(again) == before
    assert wire.encode_header(replace(HEADER, signature=b"")) == bare != before


def test_more_headers_than_are_remembered_keep_their_own_bytes() -> None:
    headers = [replace(HEADER, hop=hop) for hop in range(2 * KEPT)]
    for _ in range(2):
        for header in headers:
            assert wire.decode_header(wire.encode_header(header)) == header


def test_a_signature_stands_for_one_thing_only() -> None:
    with pytest.raises(SignatureError):
        wire.check_header(replace(HEADER, signature=TRAIN.signature), CLINIC.public_key)
    with pytest.raises(SignatureError):
        wire.check_advert(replace(SIGNED, signature=HEADER.signature), None)


def test_advert_comes_back_from_its_signed_form() -> None:
    assert SIGNED.age_s == 2.5
    assert wire.check_advert(SIGNED, CLINIC.public_key) == ADVERT
    assert wire.check_advert(SIGNED, None) == ADVERT
    assert wire.check_advert(replace(SIGNED, age_s=99.0), None) == ADVERT


def test_advert_of_another_key_or_envelope_is_refused() -> None:
    with pytest.raises(SignatureError, match="another key than the one known"):
        wire.check_advert(SIGNED, OWNER.public_key)
    with pytest.raises(SignatureError, match="seq 13: signed as clinic-1 seq 12"):
        wire.check_advert(replace(SIGNED, seq=13), None)
    with pytest.raises(SignatureError, match="signed as clinic-1"):
        wire.check_advert(replace(SIGNED, origin=OWNER.node), None)
    with pytest.raises(SignatureError, match="signature does not hold"):
        wire.check_advert(replace(SIGNED, signature=b"\0" * 64), None)
    forged = wire.encode_advert(replace(ADVERT, seq=12, labels={}))
    with pytest.raises(SignatureError, match="signature does not hold"):
        wire.check_advert(replace(SIGNED, body=forged), None)
    with pytest.raises(WireError):
        wire.check_advert(replace(SIGNED, body=b"rubbish"), None)


def test_advert_is_signed_by_its_origin_alone() -> None:
    with pytest.raises(ValueError, match="cannot be signed by owner"):
        wire.sign_advert(ADVERT, OWNER)
    stranger = Identity.from_seed(CLINIC.node, b"another")
    with pytest.raises(ValueError, match="cannot be signed"):
        wire.sign_advert(ADVERT, stranger)


def test_custody_key_is_small() -> None:
    assert len(wire.encode_message(ms.Custody(CustodyKey(KEY.packet, 3)))) < 64
