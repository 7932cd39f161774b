"""Families by name: one to train on, others to be judged on that no training has seen."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from aats.errors import ScenarioError, nearest
from aats.learning.datasets import DATA_VARIABLE
from aats_envs.family import Family, Task

ZOO = "topology-zoo"
"""Folder under the data folder, or the start of a tarball's name in it."""

DIGITS = Task(supply=105)
"""Digits at an MLP of 32 hidden units; so many rows of a class are left to train on."""
DEPARTMENTS = Task(
    fits=("departments-oncology", "departments-diabetes"), classes=(2, 2), skills=(2, 2),
    model_bytes=(17e3, 20e3), model_share=0.2, row_bytes=(48, 128),
    reference=(60, 80), test=(40, 80), rows=(10, 40), supply=100, epochs=3.0, average_last=4,
)  # fmt: skip
"""Two departments of a hospital in one model that travels with its last four states."""
REAL = {"digits": DIGITS, "departments": DEPARTMENTS}
"""Tasks whose networks can be run with real data."""
ANY_DIGITS = replace(
    DIGITS, classes=(4, 10), skills=(1, 2), model_bytes=(5e3, 5e5), row_bytes=(64, 800),
    reference=(32, 128), test=(100, 500), rows=(25, 120), supply=0,
)  # fmt: skip
ANY_DEPARTMENTS = replace(
    DEPARTMENTS, fits=("departments-oncology",), skills=(1, 2), model_bytes=(5e3, 5e5),
    row_bytes=(40, 400), reference=(40, 120), rows=(10, 60), supply=0,
)  # fmt: skip
"""Of one law only: that of diabetes explains too little of real gains to learn much from."""
HOSPITALS = replace(
    DEPARTMENTS, model_bytes=(5e3, 5e5), row_bytes=(40, 400), rows=(10, 60), supply=0
)

TRAIN = Family(
    graphs=("random-geometric", "barabasi-albert", "watts-strogatz", "ring", "tree", "grid"),
    nodes=(8, 24),
    mpvus=(1, 2),
    data_share=(0.7, 1.0),
    skill_share=(0.6, 1.0),
    tasks=(ANY_DIGITS, ANY_DIGITS, ANY_DEPARTMENTS, HOSPITALS),
    alpha=(0.3, 5.0),
    shards=0.15,
    shard_classes=(1, 3),
    volume_spread=0.7,
    bad=(0.0, 0.45),
    wrong=(0.3, 0.9),
    honest=(0.0, 1.0),
    liars=(0.0, 0.15),
    stale=(0.0, 0.3),
    withheld=(0.0, 0.5),
    refused=(0.0, 0.3),
    samples_per_s=(50.0, 5000.0),
    speed_error=0.2,
    bandwidth_mbps=(5.0, 1000.0),
    latency_ms=(1.0, 30.0),
    outages=(0.0, 0.15),
    bounded=0.2,
    lures=0.5,
    randomised=0.4,
    novelty=(0.2, 1.2),
    harm=(1.0, 4.0),
)
"""What policies are trained on."""
SMALL = Family(tasks=(DIGITS,))
"""Sixteen nodes, a quarter of them bad: where something new is tried out."""
HELD_OUT = replace(
    SMALL,
    nodes=(16, 32),
    tasks=(ANY_DIGITS, ANY_DEPARTMENTS),
    alpha=(0.3, 1.0),
    seed=1,
)
"""What the families below have in common besides what each is for."""

PRESETS: dict[str, Family] = {
    "small": SMALL,
    "train": TRAIN,
    "digits": replace(SMALL, nodes=(12, 24), alpha=(0.2, 2.0), bad=(0.1, 0.4), seed=2),
    "healthcare": replace(
        SMALL, nodes=(16, 20), mpvus=(1, 1), tasks=(DEPARTMENTS,), alpha=(3.0, 8.0),
        bad=(0.25, 0.4), lures=1.0, wrong=(0.3, 0.4), honest=(0.0, 0.0), volume_spread=0.8,
        samples_per_s=(20.0, 2000.0), bandwidth_mbps=(100.0, 400.0), latency_ms=(4.0, 10.0), seed=3,
    ),
    "large": replace(HELD_OUT, nodes=(48, 128), mpvus=(2, 4)),
    "zoo": replace(HELD_OUT, nodes=(12, 64), zoo=ZOO, link_spread=1.0),
    "noisy": replace(HELD_OUT, bad=(0.5, 0.5), wrong=(0.5, 0.9)),
    "skewed": replace(HELD_OUT, alpha=(0.1, 0.1)),
    "clean": replace(HELD_OUT, bad=(0.0, 0.0)),
    "churn": replace(HELD_OUT, outages=(0.3, 0.5)),
    "liars": replace(HELD_OUT, bad=(0.3, 0.5), honest=(0.0, 0.0), liars=(0.3, 0.5)),
    "slow-links": replace(HELD_OUT, bandwidth_mbps=(0.5, 2.0), latency_ms=(20.0, 100.0)),
    "big-model": replace(HELD_OUT, tasks=(replace(ANY_DIGITS, model_bytes=(4e6, 4e7)),)),
}  # fmt: skip
"""By name. Only "train" is trained on; "small", "digits" and "healthcare" are like it."""


def preset(name: str, *, data: str = "") -> Family:
    """Return a family by name.

    Args:
        name: A key of `PRESETS`.
        data: Folder with the files that a family needs; the environment variable AATS_DATA if
            empty. Only "zoo" needs some: the GraphML files of the Internet Topology Zoo, in a
            folder `topology-zoo` or a tarball in it.

    Raises:
        ScenarioError: If there is no such preset, or its files are not there.
    """
    if name not in PRESETS:
        allowed = f"known families are {', '.join(PRESETS)}"
        raise ScenarioError("family", name, allowed, nearest(name, PRESETS))
    family = PRESETS[name]
    return replace(family, zoo=_zoo(data)) if family.zoo else family


def with_data(family: Family, task: str) -> Family:
    """Return a family whose networks real data can be had for: see `aats_envs.to_scenario`.

    Args:
        family: Any; its tasks are replaced but for the range of model sizes of a single one.
        task: A key of `REAL`.

    Raises:
        ScenarioError: If there are no such data.
    """
    if task not in REAL:
        raise ScenarioError("task", task, f"known are {', '.join(REAL)}", nearest(task, REAL))
    real = REAL[task]
    if len(family.tasks) == 1:
        real = replace(real, model_bytes=family.tasks[0].model_bytes)
    return replace(family, tasks=(real,))


def _zoo(data: str) -> str:
    base = data or os.environ.get(DATA_VARIABLE, "")
    if not base:
        allowed = f"give the folder that holds {ZOO}, or set {DATA_VARIABLE}"
        raise ScenarioError("family zoo", base, allowed)
    folder = Path(base).expanduser()
    places = [folder / ZOO, folder]
    tarballs = [file for place in places for file in sorted(place.glob(f"{ZOO}*.tar.gz"))]
    plain = [place for place in places if any(place.rglob("*.graphml"))]
    for found in (*plain, *tarballs):
        return str(found)
    raise ScenarioError("family zoo", str(folder), f"no {ZOO} with GraphML files is there")
