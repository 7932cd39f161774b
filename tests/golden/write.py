"""Write the golden files that are missing: `python -m tests.golden.write`. Never edits one."""

from __future__ import annotations

from aats import wire
from tests.test_wire import golden_path
from tests.wire_samples import SAMPLE_OF

if __name__ == "__main__":
    for sample_kind, sample in SAMPLE_OF.items():
        path = golden_path(sample_kind)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wire.encode(sample))
