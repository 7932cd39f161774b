import math
import random

import pytest

from aats.sim.kernel import Kernel


def test_equal_times_run_in_the_order_they_were_planned() -> None:
    kernel, seen = Kernel(), []
    for i in range(20):
        kernel.at(1.0, lambda i=i: seen.append(i))
    kernel.run(2.0)
    assert seen == list(range(20))


@pytest.mark.parametrize("seed", range(5))
def test_time_never_goes_back(seed: int) -> None:
    rng, kernel, seen = random.Random(seed), Kernel(), []

    def act(depth: int) -> None:
        seen.append(kernel.now)
        if depth:
            for _ in range(2):
                kernel.after(rng.choice([0.0, 0.5, rng.random()]), lambda: act(depth - 1))

    kernel.after(0.1, lambda: act(6))
    kernel.run(math.inf)
    assert seen == sorted(seen)
    assert len(seen) == kernel.steps == 2**7 - 1


def test_a_cancelled_timer_does_nothing() -> None:
    kernel, seen = Kernel(), []
    timer = kernel.at(1.0, lambda: seen.append(1))
    kernel.at(2.0, lambda: seen.append(2))
    timer.cancel()
    assert kernel.next_at() == 2.0
    kernel.run(3.0)
    assert seen == [2]


def test_run_stops_at_the_time_given_or_when_told() -> None:
    kernel, seen = Kernel(), []
    for t in range(10):
        kernel.at(float(t), lambda t=t: seen.append(t))
    assert not kernel.run(3.5)
    assert kernel.now == 3.5
    assert kernel.run(9.0, lambda: len(seen) == 6)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert kernel.now == 5.0


def test_a_past_time_means_now_and_infinity_is_refused() -> None:
    kernel = Kernel()
    kernel.run(5.0)
    assert kernel.at(1.0, lambda: None).at == 5.0
    with pytest.raises(ValueError, match="not finite"):
        kernel.at(math.inf, lambda: None)
