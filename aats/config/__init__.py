"""The scenario file: one TOML for every world. See `aats.config.scenario` for every key."""

from aats.config.load import build, load_scenario
from aats.config.scenario import (
    Budget,
    DataConfig,
    FaultConfig,
    FaultKind,
    HeldData,
    LiveConfig,
    MpvuConfig,
    NodeConfig,
    PacketConfig,
    Scenario,
    SimConfig,
    SkillConfig,
    TopologyConfig,
    TrainingConfig,
)

__all__ = [
    "Budget", "DataConfig", "FaultConfig", "FaultKind", "HeldData", "LiveConfig", "MpvuConfig",
    "NodeConfig", "PacketConfig", "Scenario", "SimConfig", "SkillConfig", "TopologyConfig",
    "TrainingConfig", "build", "load_scenario",
]  # fmt: skip
