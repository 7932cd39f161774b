from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aats.errors import WireError
from aats.payload import (
    ALIGNMENT,
    ITEM_SIZE,
    MAX_NAME,
    MAX_RANK,
    MAX_TENSORS,
    NUMPY_DTYPE,
    Array,
    Manifest,
    Payload,
    TensorSpec,
    digest,
    layout,
    pack,
)

DTYPES = st.sampled_from([np.dtype(v) for k, v in NUMPY_DTYPE.items() if k != "bf16"])
NAMES = st.from_regex(r"(model|ref|state)\.[a-z0-9.]{1,8}", fullmatch=True)
ARRAYS = st.dictionaries(
    NAMES,
    DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=5,
)


@settings(deadline=None)
@given(ARRAYS)
def test_packed_arrays_come_back(arrays: dict[str, Array]) -> None:
    payload = pack(arrays)
    payload.manifest.check(limit_bytes=1 << 20)
    payload.verify()
    again = payload.arrays()
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        assert again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()
    assert len(payload.arena) == payload.manifest.total
    assert all(t.offset % ALIGNMENT == 0 for t in payload.manifest.tensors)


@settings(deadline=None)
@given(ARRAYS)
def test_version_depends_on_content_only(arrays: dict[str, Array]) -> None:
    payload = pack(arrays)
    elsewhere = pack({"state.first": np.zeros(100, "u1"), **arrays})
    assert payload.manifest.version("model.") == elsewhere.manifest.version("model.")
    assert len(payload.manifest.version()) == 64
    only = {name: a for name, a in arrays.items() if name.startswith("model.")}
    assert pack(only).manifest.version() == payload.manifest.version("model.")


BASE = {"model.a": np.arange(6, dtype="<f4"), "model.b": np.zeros(2, "<f4")}


@pytest.mark.parametrize(
    "other",
    [
        {"model.a": BASE["model.a"].reshape(2, 3), "model.b": BASE["model.b"]},
        {"model.a": BASE["model.a"].view("<i4"), "model.b": BASE["model.b"]},
        {"model.c": BASE["model.a"], "model.b": BASE["model.b"]},
        {"model.b": BASE["model.b"], "model.a": BASE["model.a"]},
        {"model.a": BASE["model.a"] + 1, "model.b": BASE["model.b"]},
        {"model.a": BASE["model.a"]},
        {**BASE, "model.c": np.zeros(0, "<f4")},
    ],
    ids=["shape", "dtype", "name", "order", "value", "fewer", "more"],
)
def test_version_sees_every_part_of_the_content(other: dict[str, Array]) -> None:
    assert pack(other).manifest.version("model.") != pack(BASE).manifest.version("model.")


def test_order_of_bytes_and_of_memory_does_not_matter() -> None:
    little = np.arange(6, dtype="<f4").reshape(2, 3)
    for same in (little.astype(">f4"), np.asfortranarray(little), np.tile(little, (1, 2))[:, :3]):
        assert pack({"model.a": same}).manifest == pack({"model.a": little}).manifest


def test_bfloat16_travels_as_raw_bits() -> None:
    bits = np.array([0x3F80, 0xC000], dtype="<u2")
    payload = pack({"model.a": bits}, dtypes={"model.a": "bf16"})
    (spec,) = payload.manifest.tensors
    assert (spec.dtype, spec.size) == ("bf16", 4)
    assert payload.array(spec).tolist() == bits.tolist()
    with pytest.raises(TypeError):
        pack({"model.a": bits.astype("f4")}, dtypes={"model.a": "bf16"})


def test_unlisted_dtypes_are_refused() -> None:
    for dtype in ("c8", "O", "M8[s]", "u8"):
        with pytest.raises(KeyError):
            pack({"model.a": np.zeros(1, dtype)})


def test_arrays_are_views_of_the_arena() -> None:
    payload = pack(BASE)
    payload.arrays("model.")["model.a"][0] = 9
    with pytest.raises(WireError, match=r"tensor 'model\.a' does not fit its digest"):
        payload.verify()


def test_a_known_tensor_is_not_missing() -> None:
    manifest = pack(BASE).manifest
    assert manifest.missing([]) == manifest.tensors
    assert manifest.missing([manifest.tensors[0].digest]) == manifest.tensors[1:]
    assert manifest.missing(t.digest for t in manifest.tensors) == ()


def test_empty_payload() -> None:
    assert pack({}).manifest == Manifest() == layout({})
    Payload().verify()
    Manifest().check(limit_bytes=0)


def test_equal_bytes_have_equal_digests_whatever_holds_them() -> None:
    data = bytes(range(64))
    assert digest(data) == digest(memoryview(data)) == digest(np.frombuffer(data, "u1"))
    assert len(digest(data)) == 32


# --- lies -------------------------------------------------------------------------------------

GOOD = pack(BASE).manifest
A, B = GOOD.tensors


def lie(**change: Any) -> Manifest:
    return replace(GOOD, tensors=(A, B._replace(**change)))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (replace(GOOD, total=-1), "total -1 bytes, allowed are 0-4096"),
        (replace(GOOD, total=4097), "total 4097 bytes, allowed are 0-4096"),
        (Manifest((A,) * (MAX_TENSORS + 1), 100), "16385 tensors, allowed are 16384"),
        (lie(dtype="object"), "tensor 'model.b': dtype 'object', allowed are f64"),
        (lie(name="model.a"), "tensor 'model.a': name too long, repeated"),
        (lie(name="n" * (MAX_NAME + 1)), "name too long"),
        (lie(name="model.\0b"), "or not printable"),
        (lie(shape=(-2, -1)), "shape .-2, -1., allowed"),
        (lie(shape=(2,) + (1,) * MAX_RANK), "allowed are up to 8 sizes"),
        (lie(shape=(3,)), r"8 bytes do not fit f32\[3\]"),
        (lie(size=9), r"9 bytes do not fit f32\[2\]"),
        (lie(shape=(1 << 62, 1 << 62)), "8 bytes do not fit"),
        (lie(dtype="f64"), r"8 bytes do not fit f64\[2\]"),
        (lie(offset=0), "offset 0 overlaps"),
        (lie(offset=65), "offset 65 overlaps, is unaligned"),
        (lie(offset=128), "offset 128 overlaps, is unaligned or outside"),
        (lie(offset=-64), "offset -64 overlaps"),
        (replace(GOOD, total=GOOD.total - 1), "tensor 'model.b': offset 64 .*outside"),
        (lie(digest=b""), "digest of 0 bytes, must be 32"),
        (lie(digest=b"x" * 33), "digest of 33 bytes, must be 32"),
    ],
)
def test_every_lie_of_a_manifest_is_named(manifest: Manifest, message: str) -> None:
    GOOD.check(limit_bytes=4096)
    with pytest.raises(WireError, match=f"^manifest: .*{message}"):
        manifest.check(limit_bytes=4096)


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            TensorSpec,
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from([*ITEM_SIZE, "f8"]),
            st.lists(st.integers(-1, 3), max_size=3).map(tuple),
            st.sampled_from([-64, 0, 1, 64, 128, 192]),
            st.integers(-1, 64),
            st.just(b"d" * 32),
        ),
        max_size=3,
    ),
    st.integers(-1, 256),
)
def test_a_checked_manifest_fits_its_arena(tensors: list[TensorSpec], total: int) -> None:
    manifest = Manifest(tuple(tensors), total)
    try:
        manifest.check(limit_bytes=256)
    except WireError:
        return
    payload = Payload(manifest, memoryview(bytearray(total)))
    assert sum(array.nbytes for array in payload.arrays().values()) <= total
