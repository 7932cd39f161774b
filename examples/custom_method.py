"""A training method of your own: what one visit does to the model.

    python examples/custom_method.py

A method is a class with a `plan` (how much work here) and a `train` (a loop over minibatches).
Installed as a plug-in, every node and the simulated world know it by name; in your package's
pyproject.toml:

    [project.entry-points."aats.methods"]
    sign-sgd = "my_package.methods:SignSgd"

Here it is made known in this process only, checked, and carried by a packet round five nodes of a
simulated network. It minimises `work.loss`, so the mandate may add measures against forgetting:
here `distil`, which the method knows nothing of.
"""

from dataclasses import dataclass

import torch

from aats.compose import compose, measure_on
from aats.config import build
from aats.learning.method import Carry, Plan, Stop, Work, local, passes
from aats.simulate import simulate
from aats.testing import check_method


@dataclass(frozen=True)
class SignSgd:
    """Each weight goes a fixed step against the sign of its gradient (signSGD)."""

    lr: float = 0.002
    epochs: float = 3.0
    batch_size: int = 32

    def plan(self, stop: Stop) -> Plan | None:
        """Return work in proportion to the node's rows."""
        return passes(stop, self.epochs, self.batch_size)

    def train(self, model: torch.nn.Module, work: Work) -> Carry:
        """Take the steps; the share of weights that moved up goes into the packet's numbers."""
        up = 0.0
        for skill, x, y in work:
            model.zero_grad()
            work.loss(model, torch.from_numpy(x), torch.from_numpy(y), skill).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(self.lr * p.grad.sign())
                    up += float((p.grad < 0).float().mean())
        each = work.steps * len(list(model.parameters()))
        return Carry(trained={"sign-sgd.up": up / each}, note=f"{up / each:.0%} went up")


SCENARIO = {
    "scenario": {"name": "custom-method", "seed": 3},
    "topology": {"generator": {"name": "ring"}, "names": ["owner", "a", "b", "c", "d", "e"]},
    "node": {"contributes_to": ["owner"]},
    "nodes": {"owner": {"roles": ["owner", "mpvu"], "contributes_to": []}},
    "data": {"skills": {"digits": {
        "source": "digits", "partition": {"name": "dirichlet", "alpha": 0.5}, "test": 0.2,
    }}},
    "packets": [{
        "name": "reader", "owner": "owner", "policy": "cycle",
        "requirement": [{"skill": "digits", "value": 0.85}],
        "model": {"name": "mlp", "features": 64, "hidden": [32], "classes": 10},
        "method": {"name": "sign-sgd", "lr": 0.002, "distil": 0.3},
        "budget": {"hops": 60},
    }],
}  # fmt: skip


def main() -> None:
    """Check the method, send one packet out, and show what its signed history says."""
    check_method(SignSgd())
    local("sign-sgd", SignSgd)
    scenario = build(SCENARIO)
    plan = compose(scenario)
    ((header, payload),) = simulate(scenario, plan, lambda event: None).values()
    for record in header.chain:
        found = [
            f"{name.rpartition('.')[2]} {record.metrics[name]:.3f}"
            for name in ("digits.accuracy.reference", "digits.accuracy.mpvu")
            if name in record.metrics
        ]
        print(f"{record.kind:<7} {record.node:<6} {record.samples:>4} rows ", *found, record.note)
    accuracy = measure_on(header, payload, plan.test)["digits"]["value"]
    print(f"accuracy on rows that no node holds: {accuracy:.3f}, met: {header.requirement_met}")


if __name__ == "__main__":
    main()
