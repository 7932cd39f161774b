from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aats_envs.draw import draw
from aats_envs.network import KnowledgeNetwork
from aats_envs.pool import Pool
from aats_envs.presets import PRESETS
from aats_envs.rows import Deal, Subject, deal, library


def some(preset: str, number: int = 6) -> list[tuple[KnowledgeNetwork, Deal]]:
    family = PRESETS[preset]
    pool, rng = Pool(family, number), np.random.default_rng(3)
    networks = [draw(family, pool, rng) for _ in range(number)]
    return [(network, deal(network, 0, rng)) for network in networks]


def subject_of(row: int) -> Subject:
    return next(s for s in library()[1] if any(row in part for part in (*s.dealt, *s.trusted)))


@pytest.mark.parametrize("preset", ["train", "noisy", "healthcare", "skewed"])
def test_nodes_hold_what_the_network_counts(preset: str) -> None:
    for network, rows in some(preset):
        counts = network.clean + network.wrong
        assert np.array_equal(rows.held, counts.sum(axis=2))
        for node, skill in np.ndindex(*rows.held.shape):
            first, held = rows.first[node, skill], rows.held[node, skill]
            labels = rows.label[first : first + held]
            found = np.bincount(labels, minlength=counts.shape[2])
            assert np.array_equal(found, counts[node, skill])


def test_so_many_labels_are_wrong_as_the_network_says() -> None:
    for network, rows in some("noisy"):
        for skill in range(len(network.classes)):
            subject = subject_of(int(rows.trusted[skill][0][0]))
            # Which class of the table a label stands for, from rows that are right.
            x, y = rows.trusted[skill]
            stands_for = {
                int(label): next(c for c, part in enumerate(subject.trusted) if row in part)
                for row, label in zip(x, y, strict=True)
            }
            for node in np.flatnonzero(network.has_data):
                first, held = rows.first[node, skill], rows.held[node, skill]
                part = slice(first, first + held)
                wrong = sum(
                    row not in subject.dealt[stands_for[int(label)]]
                    for row, label in zip(rows.at[part], rows.label[part], strict=True)
                )
                assert wrong == network.wrong[node, skill].sum()


def test_nobody_holds_the_rows_that_packets_trust_or_mpvus_test_by() -> None:
    for network, rows in some("train"):
        trusted, test = (np.concatenate([x for x, _ in sets]) for sets in (rows.trusted, rows.test))
        assert not np.intersect1d(rows.at, trusted).size
        assert not np.intersect1d(rows.at, test).size
        assert not np.intersect1d(trusted, test).size
        for sets, sizes in ((rows.trusted, network.reference), (rows.test, network.test)):
            assert [len(x) for x, _ in sets] == [min(n, 500) for n in sizes]


def test_no_row_is_dealt_twice_before_all_of_its_class_were() -> None:
    for _, rows in some("healthcare"):
        at, times = np.unique(rows.at, return_counts=True)
        of = {int(row): n for row, n in zip(at, times, strict=True)}
        for subject in library()[1]:
            for part in subject.dealt:
                found = [of.get(int(row), 0) for row in part]
                if any(found):
                    assert max(found) - min(found) <= 1


def test_one_seed_gives_one_deal() -> None:
    (network, _), *_ = some("train", 1)
    first, second, other = (deal(network, 4, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first.at, second.at)
    assert first.start == second.start
    assert not np.array_equal(first.at, other.at)
    assert first.average_last == 4


def test_several_skills_are_of_several_tables() -> None:
    for network, rows in some("healthcare"):
        assert len(network.classes) == 2
        subjects = [subject_of(int(x[0])) for x, _ in rows.trusted]
        assert subjects[0] is not subjects[1]


def test_a_network_of_more_classes_than_any_table_is_refused() -> None:
    (network, _), *_ = some("small", 1)
    with pytest.raises(ValueError, match="11 classes"):
        deal(replace(network, classes=np.array([11])), 0, np.random.default_rng(0))
