"""UCI Heart Disease, four hospitals, prepared as FLamby's Fed-Heart-Disease does.

Source: github.com/owkin/FLamby, `datasets/fed_heart_disease` (commit edacf54d). Steps: `?` is
missing; the columns slope, ca and thal go, then every row with a missing cell; a patient is
positive if the last column is not 0; each hospital is split 66 / 34 at random, stratified unless
a class has two rows or fewer (Switzerland); chest pain and rest ECG become indicators without
their first level, which leaves 13 features (FLamby's README says 16). Site data are scaled with
the mean and sample deviation of the same hospital's training rows, pooled data with those of all
training rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aats.errors import DataError
from aats.learning.datasets import BoolArray, Dataset, FloatArray, IntArray, data_file

FILES = {
    "cleveland": ("processed.cleveland.data", "2d91a8ff69cfd9616aa47b59d6f843db"),
    "hungarian": ("processed.hungarian.data", "22e96bee155b5973568101c93b3705f6"),
    "switzerland": ("processed.switzerland.data", "9a87f7577310b3917730d06ba9349e20"),
    "va": ("processed.va.data", "4249d03ca7711e84f4444768c9426170"),
}
"""Hospital -> file name and the md5 that FLamby checks."""

HOSPITALS = tuple(FILES)
ORIGIN = (
    "Get the Heart Disease data (Janosi, Steinbrunn, Pfisterer and Detrano 1988, CC BY 4.0) from "
    "the UCI Machine Learning Repository, archive.ics.uci.edu/dataset/45/heart+disease: "
    + ", ".join(name for name, _ in FILES.values())
)

NUM_COLUMNS = 14
KEPT = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
NUMERIC = {0: "age", 1: "sex", 3: "trestbps", 4: "chol", 5: "fbs", 7: "thalach", 8: "exang",
           9: "oldpeak"}  # fmt: skip
INDICATORS = {2: ("cp", (2.0, 3.0, 4.0)), 6: ("restecg", (1.0, 2.0))}
FEATURES = (
    *NUMERIC.values(),
    *(f"{name}={level:g}" for name, levels in INDICATORS.values() for level in levels),
)
CLASSES = ("no disease", "disease")
TRAIN_SHARE = 0.66
FLAMBY_SPLIT = 43
"""FLamby's `random_state` for the split into training and test rows."""
TINY = 1e-9
"""Added to every deviation: serum cholesterol is 0 for all of Switzerland."""


@dataclass(frozen=True, slots=True)
class Heart:
    """The 740 complete rows, unscaled, hospitals one after another in the order of `HOSPITALS`."""

    x: FloatArray
    """[740, 13]."""
    y: IntArray
    hospital: IntArray
    """[740] index into `HOSPITALS`."""
    is_test: BoolArray

    def by_hospital(self) -> Dataset:
        """Return all rows, each scaled with its own hospital's training rows."""
        x = np.empty_like(self.x)
        for site in range(len(HOSPITALS)):
            rows = self.hospital == site
            x[rows] = _scale(self.x[rows], self.x[rows & ~self.is_test])
        return self._dataset(x)

    def pooled(self) -> Dataset:
        """Return all rows scaled with the training rows of all hospitals."""
        return self._dataset(_scale(self.x, self.x[~self.is_test]))

    def _dataset(self, x: FloatArray) -> Dataset:
        return Dataset(
            "heart", x, self.y, FEATURES, CLASSES, HOSPITALS, self.hospital, self.is_test
        )


def read_heart(root: str = "", *, split: int = FLAMBY_SPLIT) -> Heart:
    """Read the four files.

    Args:
        root: Folder with the files named in `FILES`, or with uci-heart/; "" for `$AATS_DATA`.
        split: Random state of the training and test split; 43 is FLamby's.

    Raises:
        DataError: If a file is missing, or is not the one FLamby uses (md5), which many copies
            in circulation are not.
    """
    xs, ys, hospitals, tests = [], [], [], []
    for site, name in enumerate(HOSPITALS):
        x, y = _complete_rows(_read(root, name))
        xs.append(x)
        ys.append(y)
        hospitals.append(np.full(len(y), site, dtype=np.int64))
        tests.append(_test_rows(y, split))
    return Heart(
        np.concatenate(xs), np.concatenate(ys), np.concatenate(hospitals), np.concatenate(tests)
    )


def _read(root: str, hospital: str) -> bytes:
    file, md5 = FILES[hospital]
    path = data_file("uci-heart", root, file, ORIGIN)
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"data 'heart': {path} has md5 {found}, the original has {md5}: an edited copy "
            f"(a header line, CRLF ends, binarised labels). {ORIGIN}"
        )
    return content


def _complete_rows(content: bytes) -> tuple[FloatArray, IntArray]:
    cells = [line.split(",") for line in content.decode("ascii").splitlines() if line]
    table = np.array([[np.nan if cell == "?" else float(cell) for cell in row] for row in cells])
    table = table[:, [*KEPT, NUM_COLUMNS - 1]]
    table = table[~np.isnan(table).any(axis=1)]
    columns = [table[:, c] for c in NUMERIC]
    columns += [table[:, c] == level for c, (_, levels) in INDICATORS.items() for level in levels]
    return np.stack(columns, axis=1).astype(np.float32), (table[:, -1] != 0).astype(np.int64)


def _test_rows(y: IntArray, split: int) -> BoolArray:
    from sklearn.model_selection import train_test_split

    counts = np.bincount(y, minlength=2)
    _, test = train_test_split(
        np.arange(len(y)), train_size=TRAIN_SHARE, test_size=1 - TRAIN_SHARE, random_state=split,
        shuffle=True, stratify=y if counts.min() > 2 else None,
    )  # fmt: skip
    mask: BoolArray = np.zeros(len(y), dtype=np.bool_)
    mask[test] = True
    return mask


def _scale(x: FloatArray, by: FloatArray) -> FloatArray:
    mean = by.mean(axis=0, dtype=np.float64)
    deviation = by.std(axis=0, ddof=1, dtype=np.float64) + TINY
    scaled: npt.NDArray[np.float64] = (x - mean) / deviation
    return scaled.astype(np.float32)
