"""Federated averaging with an optimiser at the meeting point (FedOpt: Reddi et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from aats.packet import Plugin
from aats_agents.rendezvous.fedavg import FedAvgRendezvous

ADAPTIVE = "adam", "yogi", "adagrad"


@dataclass(frozen=True, slots=True)
class FedOptRendezvous(FedAvgRendezvous):
    """Rounds as FedAvg's; what the mean adds is the gradient of an optimiser's step.

    Raises:
        ValueError: On a figure out of range or an unknown optimiser.
    """

    optimiser: str = "adam"
    """"adam", "yogi", "adagrad", or "avgm" (momentum only)."""
    lr: float = 0.03
    """The optimiser's learning rate; the clients' own is the method's. With "avgm" 1 is usual."""
    beta_1: float = 0.9
    """Momentum; "avgm" has no other parameter."""
    beta_2: float = 0.99
    tau: float = 0.001

    def __post_init__(self) -> None:
        FedAvgRendezvous.__post_init__(self)
        if self.optimiser not in (*ADAPTIVE, "avgm"):
            allowed = ", ".join((*ADAPTIVE, "avgm"))
            raise ValueError(f"optimiser is {self.optimiser!r}, allowed are {allowed}")
        if not self.lr > 0 or not self.tau > 0:
            raise ValueError(f"lr is {self.lr}, tau is {self.tau}; both must be above 0")
        if not 0 <= self.beta_1 < 1 or not 0 <= self.beta_2 < 1:
            raise ValueError(
                f"beta_1 is {self.beta_1}, beta_2 is {self.beta_2}; both are in 0-1 (not 1)"
            )

    @property
    def merge(self) -> str | Plugin:
        """The optimiser's rule."""
        common = {"lr": self.lr, "weighting": self.weighting}
        if self.optimiser == "avgm":
            return Plugin("avgm", {**common, "momentum": self.beta_1})
        betas = {"beta_1": self.beta_1, "beta_2": self.beta_2, "tau": self.tau}
        return Plugin(self.optimiser, {**common, **betas})
