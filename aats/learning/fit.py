"""A fit: the constants of learning for one skill, where they come from, and how good they are.

Kept as versioned JSON and checked as it is read. Some ship with the package (`SHIPPED`); more
are made by `aats.learning.calibrate`. NumPy only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from aats.errors import ScenarioError, nearest
from aats.learning.dynamics import Dynamics

FIT_VERSION = 1
"""Of the file; raised when a field comes, goes or changes its meaning."""
SHIPPED = Path(__file__).parent / "fits"
"""Folder of the fits that ship: `classic` (the published constants), `digits` (an MLP on
handwritten digits), `departments-oncology` and `departments-diabetes` (the hospitals' model)."""
BOUNDS: dict[str, tuple[float, float]] = {
    "tau": (1.0, 5e3),
    "maturity": (-1.0, 20.0),
    "forget": (5.0, 1e4),
    "retain": (5.0, 1e4),
    "hold": (0.0, 8.0),
    "harm": (0.0, 5.0),
    "sway": (0.0, 10.0),
    "blend": (0.01, 100.0),
    "settle": (2.0, 5e3),
    "ceiling": (0.5, 1.0),
    "start": (1e-6, 0.5),
    "novelty": (0.0, 2.0),
    "link_a": (0.05, 10.0),
    "link_b": (-10.0, 10.0),
    "visit_noise": (0.0, 1.0),
    "trial": (0.1, 100.0),
    "probe_gain": (0.0, 100.0),
    "probe_toll": (-5.0, 5.0),
    "alignment": (-1.0, 1.0),
    "pull": (0.0, 10.0),
    "lean": (0.0, 10.0),
    "surprise": (0.0, 10.0),
    "norm": (0.0, 100.0),
    "norm_wrong": (0.0, 100.0),
    "probe_gain_noise": (0.0, 5.0),
    "alignment_noise": (0.0, 2.0),
    "loss_noise": (0.0, 10.0),
    "surprise_noise": (0.0, 10.0),
    "norm_noise": (0.0, 100.0),
}
"""Of each field of `Dynamics`, what is allowed."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """How well the real gain of a next stop is predicted, on deals the fit has not seen.

    The gain is that of mean knowledge. NaN where there was nothing to tell from.
    """

    r2: float
    """Share of its variance that is explained."""
    rho: float
    """Rank correlation over the nodes tried from one state, the mean over states."""
    captured: float
    """(Gain of the node predicted best - mean) / (best - mean), over all states."""
    open_loop_r2: float
    """Of mean knowledge over whole walks that are predicted from their start."""
    open_loop_mae: float


@dataclass(frozen=True, slots=True)
class Quality:
    """What a fit is worth."""

    known: Prediction
    """With the number of wrong labels known."""
    probed: Prediction
    """With only what one probe of the node tells of it."""
    accuracy_mae: float
    """Mean error of the accuracy that follows from knowledge."""
    gain_sd: float
    """Standard deviation of the real gain: what `r2` is a share of."""
    hops: int
    """Visits that were predicted."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The constants of one skill's learning, with their provenance."""

    name: str
    skill: str
    dynamics: Dynamics
    epochs: float
    """Of the visits fitted on: `scale` of `moved` is a visit's epochs over these."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Architecture, method, source and partition."""
    seed: int = 0
    hops: int = 0
    """Visits fitted on."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages used."""
    quality: Quality | None = None
    """None for constants that were published and not fitted here."""

    def save(self, path: Path) -> None:
        """Write the fit as JSON."""
        found = {"version": FIT_VERSION, **asdict(self)}
        found["quality"] = _without_nan(found["quality"])
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def load_fit(name: str | Path) -> Fit:
    """Return a fit that ships, by its name, or one from a `.json` file.

    Raises:
        ScenarioError: If there is none, or it is of another version, or a key in it is unknown,
            missing or out of range; names the key.
    """
    path = Path(name)
    if path.suffix != ".json":
        path = SHIPPED / f"{name}.json"
        if not path.is_file():
            shipped = sorted(p.stem for p in SHIPPED.glob("*.json"))
            raise ScenarioError(
                "fit", str(name), f"known fits are {', '.join(shipped)}; or name a .json file",
                nearest(str(name), shipped),
            )  # fmt: skip
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScenarioError("fit", str(path), f"it cannot be read: {error}") from error
    return _fit(found, path)


def _fit(found: Any, path: Path) -> Fit:
    if not isinstance(found, dict) or found.get("version") != FIT_VERSION:
        version = found.get("version") if isinstance(found, dict) else found
        raise ScenarioError(f"{path}: version", version, f"this reads version {FIT_VERSION}")
    content = {key: value for key, value in found.items() if key != "version"}
    _check_keys(content, {f.name for f in fields(Fit)}, str(path))
    constants, quality = content["dynamics"], content["quality"]
    _check_keys(constants, set(BOUNDS), f"{path}: dynamics")
    for key, (low, high) in BOUNDS.items():
        value = constants[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            place = f"{path}: dynamics.{key}"
            raise ScenarioError(place, value, f"allowed is a number in {low:g} to {high:g}")
    if not isinstance(content["epochs"], int | float) or not 0 < content["epochs"] < math.inf:
        raise ScenarioError(f"{path}: epochs", content["epochs"], "allowed is a number above 0")
    content["dynamics"] = Dynamics(**{key: float(value) for key, value in constants.items()})
    content["quality"] = None if quality is None else _quality(quality, f"{path}: quality")
    return Fit(**content)


def _quality(found: Any, place: str) -> Quality:
    _check_keys(found, {f.name for f in fields(Quality)}, place)
    for key in ("known", "probed"):
        _check_keys(found[key], {f.name for f in fields(Prediction)}, f"{place}.{key}")
    known, probed = (
        Prediction(**{k: math.nan if v is None else v for k, v in found[key].items()})
        for key in ("known", "probed")
    )
    return Quality(**{**found, "known": known, "probed": probed})


def _check_keys(found: Any, wanted: set[str], place: str) -> None:
    if not isinstance(found, dict):
        raise ScenarioError(place, found, "a table is wanted")
    for key in found:
        if key not in wanted:
            known = f"known keys are {', '.join(sorted(wanted))}"
            raise ScenarioError(f"{place}.{key}", found[key], known, nearest(key, wanted))
    for key in sorted(wanted):
        if key not in found:
            raise ScenarioError(f"{place}.{key}", None, "the key is missing")


def _without_nan(found: Any) -> Any:
    """Return None for NaN, which JSON has not."""
    if isinstance(found, dict):
        return {key: _without_nan(value) for key, value in found.items()}
    return None if isinstance(found, float) and math.isnan(found) else found
