from __future__ import annotations

from pathlib import Path

import pytest

from aats.errors import LocalError
from aats.identity import FILE_HEADER, Identity, verify
from aats.ids import NodeId

NODE = NodeId("clinic-1")


def test_signature_holds_for_key_and_data_only() -> None:
    one, other = Identity.generate(NODE), Identity.generate(NODE)
    signature = one.sign(b"data")
    assert verify(one.public_key, b"data", signature)
    assert not verify(one.public_key, b"datb", signature)
    assert not verify(other.public_key, b"data", signature)


@pytest.mark.parametrize(
    ("key", "signature"), [(b"", b""), (b"k" * 31, b"s" * 64), (b"\xff" * 32, b"s" * 63)]
)
def test_malformed_key_or_signature_does_not_hold(key: bytes, signature: bytes) -> None:
    assert not verify(key, b"data", signature)


def test_seed_gives_the_same_key_for_ever_and_another_per_node() -> None:
    key = Identity.from_seed(NODE, b"seed").public_key
    assert key == Identity.from_seed(NODE, b"seed").public_key
    assert key.hex() == "180a44864bf9ef4ff69028108f263f83e49b8fb8a3fe6e446a42c88c82499182"
    assert key != Identity.from_seed(NodeId("clinic-2"), b"seed").public_key
    assert key != Identity.from_seed(NODE, b"seee").public_key
    # Seed and name are not one string: no pair of them runs into another.
    assert (
        Identity.from_seed(NodeId("bc"), b"a").public_key
        != Identity.from_seed(NodeId("c"), b"ab").public_key
    )


def test_secret_is_not_shown() -> None:
    identity = Identity.from_seed(NODE, b"seed")
    assert "rivate" not in repr(identity)


def test_key_file_comes_back_and_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    identity = Identity.generate(NODE)
    identity.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = Identity.load(NODE, path)
    assert again == identity
    assert verify(identity.public_key, b"x", again.sign(b"x"))


def test_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    Identity.generate(NODE).save(path)
    before = path.read_bytes()
    with pytest.raises(LocalError, match="never overwritten"):
        Identity.generate(NODE).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must be"),
        ("other header\n" + "00" * 32, "first line must be"),
        (FILE_HEADER, "line 2 must be 64 hex digits"),
        (FILE_HEADER + "\n" + "00" * 31 + "\n", "line 2 must be 64 hex digits"),
        (FILE_HEADER + "\n" + "zz" * 32 + "\n", "line 2 must be 64 hex digits"),
        (FILE_HEADER + "\n" + "00" * 32 + "\nmore\n", "and the last"),
        ("\xfc", "not ASCII"),
    ],
)
def test_what_is_no_key_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "node.key"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(LocalError, match=message) as caught:
        Identity.load(NODE, path)
    assert str(path) in str(caught.value)


def test_key_file_that_others_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    Identity.generate(NODE).save(path)
    path.chmod(0o640)
    with pytest.raises(LocalError, match="mode 0640, must be 0600"):
        Identity.load(NODE, path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "node.key"
    with pytest.raises(LocalError, match="No such file"):
        Identity.load(NODE, path)
    with pytest.raises(LocalError, match="No such file"):
        Identity.generate(NODE).save(path)
