from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_every_way_of_the_comparison_has_a_rate_of_the_common_grid() -> None:
    import methods
    from curve import RATES

    ways = {**methods.WAYS, **methods.VIEWS}
    assert set(methods.TUNED) == {methods.CENTRALISED, *ways}
    fashion = [methods.TUNED[name][1] for name in (methods.CENTRALISED, *methods.WAYS)]
    assert {*fashion} <= {*RATES}
