from __future__ import annotations

import json
import tarfile
from dataclasses import fields, replace
from pathlib import Path

import pytest

from aats.errors import ScenarioError
from aats_envs.family import Family
from aats_envs.pool import Pool
from aats_envs.presets import PRESETS, preset

TRIANGLE = """<?xml version="1.0"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">
{nodes}{edges}</graph></graphml>"""


def graphml(nodes: int) -> str:
    return TRIANGLE.format(
        nodes="".join(f'<node id="{i}"/>' for i in range(nodes)),
        edges="".join(f'<edge source="{i}" target="{(i + 1) % nodes}"/>' for i in range(nodes)),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_back_from_json(name: str) -> None:
    family = PRESETS[name]
    assert Family.from_dict(json.loads(json.dumps(family.to_dict()))) == family


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nodez": [8, 9]}, "did you mean 'nodes'"),
        ({"tasks": [{"fit": ["digits"]}]}, "did you mean 'fits'"),
        ({"tasks": [{"fits": []}]}, "at least one fit"),
        ({"bad": [0.5, 1.5]}, r"family\.bad\[1\]"),
        ({"alpha": [2.0, 1.0]}, "low comes before high"),
        ({"nodes": [4, 9]}, "8-256"),
        ({"nodes": [8, 8], "mpvus": [1, 6]}, "two data nodes"),
        ({"tasks": []}, "at least one task"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        Family.from_dict(values)


def test_an_unknown_preset_or_graph_is_named() -> None:
    with pytest.raises(ScenarioError, match="did you mean 'noisy'"):
        preset("noisi")
    with pytest.raises(ScenarioError, match="did you mean 'tree'"):
        Pool(Family(graphs=("trees",)), 1)


def test_held_out_families_are_not_the_one_trained_on() -> None:
    train = PRESETS["train"]
    for name in ("large", "zoo", "noisy", "skewed", "clean", "churn", "liars", "slow-links"):
        differing = [f.name for f in fields(Family)
                     if getattr(PRESETS[name], f.name) != getattr(train, f.name)]  # fmt: skip
        assert "seed" in differing, name


def test_the_zoo_needs_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AATS_DATA", raising=False)
    with pytest.raises(ScenarioError, match="AATS_DATA"):
        preset("zoo")
    with pytest.raises(ScenarioError, match=r"no topology-zoo.*is there"):
        preset("zoo", data=str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_the_zoo_is_read_from_a_folder_or_a_tarball(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "topology-zoo"
    folder.mkdir()
    for nodes in (5, 12, 20, 90):
        (folder / f"Net{nodes}.graphml").write_text(graphml(nodes))
    if packed:
        with tarfile.open(folder / "topology-zoo-graphml.tar.gz", "w:gz") as tarball:
            for file in sorted(folder.glob("*.graphml")):
                tarball.add(file, f"graphml/{file.name}")
                file.unlink()
    pool = Pool(preset("zoo", data=str(tmp_path)), 12)
    assert {ground.name for ground in pool.grounds} == {"Net12", "Net20"}


def test_a_pool_follows_from_the_familys_seed() -> None:
    family = PRESETS["train"]
    first, again = Pool(family, 4), Pool(family, 4)
    other = Pool(replace(family, seed=9), 4)
    for a, b in zip(first.grounds, again.grounds, strict=True):
        assert a.layout == b.layout
        assert a.size_bytes == b.size_bytes
    assert [g.layout for g in other.grounds] != [g.layout for g in first.grounds]
