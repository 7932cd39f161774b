import os
from pathlib import Path

import numpy as np
import pytest

from aats.errors import DataError
from aats.learning.heart import FEATURES, FILES, HOSPITALS, Heart, read_heart


@pytest.fixture
def heart() -> Heart:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("AATS_DATA", beside))
    if not (root / "uci-heart").is_dir():
        pytest.skip("no UCI heart files: set AATS_DATA to the folder that holds uci-heart")
    return read_heart(str(root))


def test_sizes_are_those_flamby_publishes(heart: Heart) -> None:
    train = [int((~heart.is_test[heart.hospital == s]).sum()) for s in range(4)]
    test = [int(heart.is_test[heart.hospital == s].sum()) for s in range(4)]
    assert train == [199, 172, 30, 85]
    assert test == [104, 89, 16, 45]
    assert heart.x.shape == (740, len(FEATURES)) == (740, 13)


def test_positive_rates_of_the_test_rows_are_those_of_flamby(heart: Heart) -> None:
    rates = [100 * heart.y[heart.is_test & (heart.hospital == s)].mean() for s in range(4)]
    assert np.round(rates, 1).tolist() == [46.2, 37.1, 93.8, 77.8]


def test_each_hospital_is_scaled_by_its_own_training_rows(heart: Heart) -> None:
    data = heart.by_hospital()
    for site in range(len(HOSPITALS)):
        train = data.x[(data.group_of == site) & ~data.is_test]
        np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
        deviations = train.std(axis=0, ddof=1)
        assert np.all(np.isclose(deviations, 1, atol=1e-4) | (deviations == 0))


def test_pooled_rows_are_scaled_by_all_training_rows(heart: Heart) -> None:
    pooled = heart.pooled()
    np.testing.assert_allclose(pooled.x[~pooled.is_test].mean(axis=0), 0, atol=1e-5)
    assert not np.array_equal(pooled.x, heart.by_hospital().x)


def test_missing_files_name_the_repository_and_the_four_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="UCI Machine Learning Repository") as missing:
        read_heart(str(tmp_path))
    assert all(file in str(missing.value) for file, _ in FILES.values())


def test_an_edited_copy_is_refused_by_its_md5(tmp_path: Path) -> None:
    for file, _ in FILES.values():
        (tmp_path / file).write_text(
            "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n"
        )
    with pytest.raises(DataError, match=r"md5 .* the original has 2d91a8ff"):
        read_heart(str(tmp_path))
