"""The scenario file: one TOML for every world. See `aats.config.scenario` for every key."""

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
    "TrainingConfig",
]  # fmt: skip
