from __future__ import annotations

from pathlib import Path

import pytest

from aats.errors import LocalError
from aats.ids import NodeId
from aats.transport.keys import CurveKeys, Directory, Endpoint, ZapHandler

A, B = NodeId("a"), NodeId("clinic-2.site_1")


def test_a_directory_is_read_as_it_was_written(tmp_path: Path) -> None:
    keys = CurveKeys.generate()
    endpoints = [
        Endpoint(A, "tcp://127.0.0.1:5001", "ipc:///tmp/a b", keys.public, bytes(range(32))),
        Endpoint(B, "tcp://10.0.0.1:5001"),
    ]
    Directory(endpoints).save(tmp_path / "peers.toml")
    assert list(Directory.load(tmp_path / "peers.toml")) == endpoints


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a = 1", "'a' is no table"),
        ('["-"]\n', "'-' is no table"),
        ("[a]\nport = 'x'", "a.port"),
        ("[a]\ncontrol = 7", "a.control"),
        ("[a]\npublic_key = 'zz'", "a: non-hexadecimal"),
        ("[a]\ncurve_key = 'short'", "CURVE key of 5 bytes"),
        ("[a\n", "not a directory"),
    ],
)
def test_a_wrong_directory_is_named(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(text)
    with pytest.raises(LocalError, match=place):
        Directory.load(path)


def test_a_key_belongs_to_one_node() -> None:
    keys = CurveKeys.generate()
    directory = Directory([Endpoint(A, curve_key=keys.public)])
    with pytest.raises(LocalError, match="same CURVE key"):
        directory.add(Endpoint(B, curve_key=keys.public))
    fresh = CurveKeys.generate()
    directory.add(Endpoint(A, curve_key=fresh.public))
    assert directory.node_of(keys.public) is None
    assert directory.node_of(fresh.public) == A
    with pytest.raises(LocalError, match="no node"):
        directory.get(B)


def test_a_secret_key_is_kept_from_others(tmp_path: Path) -> None:
    keys, path = CurveKeys.generate(), tmp_path / "curve.key"
    keys.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert CurveKeys.load(path) == keys
    assert keys.secret.decode() not in repr(keys)
    with pytest.raises(LocalError, match="cannot write"):
        keys.save(path)
    path.chmod(0o644)
    with pytest.raises(LocalError, match="must be 600"):
        CurveKeys.load(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(LocalError, match="not a CURVE key"):
        CurveKeys.load(path)
    with pytest.raises(LocalError, match="cannot read"):
        CurveKeys.load(tmp_path / "none")


def request(domain: bytes, mechanism: bytes, *credentials: bytes) -> list[bytes]:
    return [b"1.0", b"7", domain, b"127.0.0.1", b"", mechanism, *credentials]


def test_the_door_opens_for_known_keys_in_their_domain_only() -> None:
    zap, key = ZapHandler(), bytes(32)
    zap.guard("b", lambda z85, address: A)
    welcome = zap.answer(request(b"b", b"CURVE", key))
    assert welcome is not None
    assert welcome[:5] == [b"1.0", b"7", b"200", b"OK", b"a"]
    for refused in (
        request(b"c", b"CURVE", key),
        request(b"b", b"NULL"),
        request(b"b", b"PLAIN", b"a", b"secret"),
        request(b"b", b"CURVE"),
        request(b"b", b"CURVE", b"short"),
    ):
        answer = zap.answer(refused)
        assert answer is not None
        assert answer[2] == b"400"
    assert zap.answer([b"1.0"]) is None
    assert zap.answer(request(b"b", b"CURVE", key)[1:]) is None
    zap.guard("b", None)
    answer = zap.answer(request(b"b", b"CURVE", key))
    assert answer is not None
    assert answer[2] == b"400"
