"""Real data sets by name, as plain arrays: the sources behind `data.source` in a scenario.

A source is a function that returns a `Dataset`; third parties add theirs under the entry-point
group `aats.data`. Features are scaled by fixed figures that belong to the schema (each function
says which), so every site scales alike without telling anyone about its rows. Where those figures
are the mean and deviation of the published table, they were taken over all its rows, test rows
included and labels not, the way scikit-learn ships the diabetes table. The heart data are the
exception: each hospital scales by its own training rows, as the benchmark they come from does.
Text is not scaled: its features are token ids.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt

from aats import plugins
from aats.errors import DataError, UnknownPluginError, nearest
from aats.roles.data import Features, schema_digest

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

GROUP = "aats.data"
DATA_VARIABLE = "AATS_DATA"
"""Environment variable: a folder whose sub-folders hold the files of sources that need some."""

_TYPES = {np.dtype(np.float32): "f32", np.dtype(np.int64): "i64"}

DIABETES_MEDIAN = 140.5
"""Median disease progression of the 442 patients; above it counts as high."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of one table or one set of images, with labels.

    Raises:
        DataError: If shapes, labels or groups do not fit together, or a value is not finite.
    """

    name: str
    x: Features
    """[n, ...] float32, scaled; or int64 tokens."""
    y: IntArray
    """[n] int64, 0 .. number of classes - 1."""
    features: tuple[str, ...]
    """One name a feature; for images one name for the whole."""
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    """Names of the sites the rows come from; empty if the source knows none."""
    group_of: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[n] index into `groups`, or empty."""
    is_test: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """[n] True for the rows the publisher set aside as the test set, or empty."""

    def __post_init__(self) -> None:
        n = len(self.y)
        if self.x.dtype not in _TYPES or self.y.dtype != np.int64 or len(self.x) != n:
            raise DataError(
                f"{self.name}: x is {self.x.dtype} of {len(self.x)} rows, y {self.y.dtype} of {n}; "
                "wanted are float32 (or int64 tokens) and int64 of equal length"
            )
        if n and not 0 <= self.y.min() <= self.y.max() < len(self.classes):
            raise DataError(
                f"{self.name}: labels {self.y.min()}-{self.y.max()} for {len(self.classes)} classes"
            )
        if not np.isfinite(self.x).all():
            raise DataError(f"{self.name}: x holds NaN or infinity")
        if len(self.group_of) not in (0, n) or len(self.is_test) not in (0, n):
            raise DataError(f"{self.name}: group_of and is_test need {n} entries or none")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def schema(self) -> str:
        """Digest of feature names and types, sample shape included."""
        shape = ",".join(map(str, self.x.shape[1:]))
        kind = _TYPES[self.x.dtype]
        return schema_digest([*(f"{name}:{kind}" for name in self.features), f"[{shape}]"])

    @property
    def digest(self) -> str:
        """Digest (16 hex digits) of the rows themselves: what a published figure names."""
        content = blake3.blake3(np.ascontiguousarray(self.x).tobytes())
        content.update(self.y.tobytes())
        return content.hexdigest(length=8)

    def take(self, rows: npt.ArrayLike) -> Dataset:
        """Return the data set with only `rows` (indices or a mask), in that order."""
        chosen = np.asarray(rows)
        return Dataset(
            self.name, self.x[chosen], self.y[chosen], self.features, self.classes, self.groups,
            self.group_of[chosen] if len(self.group_of) else self.group_of,
            self.is_test[chosen] if len(self.is_test) else self.is_test,
        )  # fmt: skip


Source = Callable[..., Dataset]
"""A function with keyword arguments (JSON values) and defaults for all that can have one."""


def load_dataset(name: str, *, root: str = "", **params: Any) -> Dataset:
    """Return the data set of a built-in source or of an `aats.data` entry point.

    Args:
        name: Of the source.
        root: Folder with data files, for a source that reads some; others never see it.
        **params: Of the source.

    Raises:
        UnknownPluginError: If no source has that name.
        DataError: If a parameter is unknown or missing, or the source's files are missing or
            malformed.
    """
    source = SOURCES.get(name) or _plugged(name)
    if root and "root" in inspect.signature(source).parameters:
        params["root"] = root
    try:
        inspect.signature(source).bind(**params)
    except TypeError as wrong:
        known = inspect.signature(source).parameters
        hint = "".join(nearest(p, known) for p in params if p not in known)
        allowed = ", ".join(known) or "none"
        raise DataError(f"data {name!r}: {wrong}; parameters: {allowed}{hint}") from wrong
    return source(**params)


def _plugged(name: str) -> Source:
    known = plugins.names(GROUP)
    if name not in known:
        raise UnknownPluginError(GROUP, name, {*known, *SOURCES})
    source: Source = plugins.load(GROUP, name)
    return source


def data_file(source: str, root: str, file: str, origin: str) -> Path:
    """Return the path of a source's file.

    Args:
        source: The source's folder under the root.
        root: Folder with the file or with the source's folder; "" for `$AATS_DATA`.
        file: File name.
        origin: Where a person gets the file, for the message.

    Raises:
        DataError: If it is not there.
    """
    base = root or os.environ.get(DATA_VARIABLE, "")
    if not base:
        raise DataError(
            f"data {source!r}: no folder given; set root, or {DATA_VARIABLE}, to the folder that "
            f"holds {file} or {source}/{file}. {origin}"
        )
    folder = Path(base).expanduser()
    for path in (folder / file, folder / source / file):
        if path.is_file():
            return path
    raise DataError(f"data {source!r}: {file} is neither in {folder} nor its {source}/. {origin}")


def breast_cancer() -> Dataset:
    """Return Wisconsin breast cancer: 569 patients, 30 features of cell nuclei.

    Class 1 is malignant (scikit-learn has it the other way round). Scaled by the mean and
    deviation of the published table. Street, Wolberg and Mangasarian 1993; UCI, CC BY 4.0.
    """
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    return Dataset(
        "breast-cancer", _scaled(table.data), (1 - table.target).astype(np.int64),
        tuple(map(str, table.feature_names)), ("benign", "malignant"),
    )  # fmt: skip


def diabetes() -> Dataset:
    """Return diabetes progression: 442 patients, 10 features, high or low after one year.

    The progression score is cut at its published median, 140.5. Scaled by the mean and deviation
    of the published table. Efron, Hastie, Johnstone and Tibshirani 2004.
    """
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    return Dataset(
        "diabetes", _scaled(table.data), (table.target > DIABETES_MEDIAN).astype(np.int64),
        tuple(map(str, table.feature_names)), ("low", "high"),
    )  # fmt: skip


def digits() -> Dataset:
    """Return handwritten digits: 1797 images of 8 x 8 pixels, grey levels 0-16 scaled to 0-1."""
    from sklearn.datasets import load_digits

    table = load_digits()
    return Dataset(
        "digits", (table.data / 16).astype(np.float32), table.target.astype(np.int64),
        tuple(map(str, table.feature_names)), tuple("0123456789"),
    )  # fmt: skip


def wine() -> Dataset:
    """Return wine cultivars: 178 wines, 13 chemical features, 3 cultivars.

    Scaled by the mean and deviation of the published table. Aeberhard and Forina 1992; UCI.
    """
    from sklearn.datasets import load_wine

    table = load_wine()
    return Dataset(
        "wine", _scaled(table.data), table.target.astype(np.int64),
        tuple(map(str, table.feature_names)), tuple(map(str, table.target_names)),
    )  # fmt: skip


FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FASHION_ORIGIN = (
    "Build it from github.com/zalandoresearch/fashion-mnist (MIT licence): an .npz with the arrays "
    "x_train, y_train, x_test, y_test; images 28 x 28 uint8."
)


def fashion_mnist(root: str = "", file: str = "fashion_mnist_15k.npz") -> Dataset:
    """Return Fashion-MNIST from an .npz: images [n, 1, 28, 28], grey levels scaled to 0-1.

    `is_test` marks the official test set. Xiao, Rasul and Vollgraf 2017.

    Raises:
        DataError: If the file is missing or has other arrays.
    """
    path = data_file("fashion-mnist", root, file, FASHION_ORIGIN)
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as held:
            x_train, y_train, x_test, y_test = (held[name] for name in names)
    except (OSError, ValueError, KeyError) as broken:
        raise DataError(f"data 'fashion-mnist': {path}: {broken}. {FASHION_ORIGIN}") from broken
    x: FloatArray = np.concatenate([x_train, x_test]).reshape(-1, 1, 28, 28).astype(np.float32)
    x /= 255
    return Dataset(
        "fashion-mnist", x, np.concatenate([y_train, y_test]).astype(np.int64),
        ("grey level",), FASHION_CLASSES,
        is_test=np.arange(len(x)) >= len(x_train),
    )  # fmt: skip


def synthetic(
    samples: int = 1000, features: int = 8, classes: int = 2, spread: float = 1.0, seed: int = 0
) -> Dataset:
    """Return a mixture of Gaussians, one a class, centres drawn from the unit normal.

    Args:
        samples: Rows; classes are equally frequent, up to one row.
        features: Dimensions.
        classes: Classes.
        spread: Standard deviation around each centre; larger is harder.
        seed: Of centres and rows.

    Raises:
        DataError: If a number is out of range.
    """
    if samples < classes or classes < 2 or features < 1 or spread <= 0:
        raise DataError(
            f"data 'synthetic': samples {samples}, features {features}, classes {classes}, spread "
            f"{spread}; wanted are samples >= classes >= 2, features >= 1, spread > 0"
        )
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, features))
    y = rng.permutation(np.arange(samples) % classes)
    x = centres[y] + spread * rng.standard_normal((samples, features))
    return Dataset(
        "synthetic", x.astype(np.float32), y.astype(np.int64),
        tuple(f"x{i}" for i in range(features)), tuple(f"class {i}" for i in range(classes)),
    )  # fmt: skip


def own_file(file: str, root: str = "", label: str = "label", classes: int = 0) -> Dataset:
    """Return the rows of a .csv or an .npz file of your own, unscaled.

    See `aats.learning.table` for the two forms. Scale alike at all nodes before, and name the
    number of classes where a node may lack the last of them.

    Args:
        file: Its path, relative to `root`; in a scenario or a node's file, to that file.
        root: Folder with the file.
        label: The column with the labels (.csv).
        classes: How many there are; 0: the greatest label plus one.

    Raises:
        DataError: If it is missing or is not of that form; says where.
    """
    from aats.learning.table import read_table

    path = data_file("file", root, file, "It is named by the source's parameter file.")
    return read_table(path, label, classes)


def own_text(file: str, root: str = "", length: int = 32) -> Dataset:
    """Return the text of a .txt or a .jsonl file of your own: rows of bytes and the next byte.

    A line of a .jsonl is `{"text": "...", "group": "..."}`; see `aats.learning.text`.

    Args:
        file: Its path, relative to `root`; in a scenario or a node's file, to that file.
        root: Folder with the file.
        length: Bytes of a row; the same at all nodes.

    Raises:
        DataError: If it is missing or is not of that form; says where.
    """
    from aats.learning.text import read_texts, text_rows

    path = data_file("text", root, file, "It is named by the source's parameter file.")
    return text_rows("text", read_texts(path), length)


def manual(length: int = 32) -> Dataset:
    """Return Python's language reference (it comes with Python): rows of bytes and the next byte.

    `groups` are its chapters. What it says depends on the version of Python. PSF licence.
    """
    from aats.learning.text import python_manual, text_rows

    return text_rows("manual", python_manual(), length)


def heart(root: str = "", split: int = 43) -> Dataset:
    """Return the four hospitals of UCI Heart Disease as FLamby prepares them.

    See `aats.learning.heart`; `groups` are the hospitals, `is_test` FLamby's test rows if
    `split`, the random state they are drawn by, is FLamby's own 43.
    """
    from aats.learning.heart import read_heart

    return read_heart(root, split=split).by_hospital()


def classes(number: int = 10, samples: int = 10_000) -> Dataset:
    """Rows whose one feature is their true class, for the surrogate of the simulated world.

    Labels that a partition makes wrong stay told apart from the truth.
    """
    y = np.arange(samples, dtype=np.int64) % number
    names = tuple(map(str, range(number)))
    return Dataset("classes", y[:, None].astype(np.float32), y, ("class",), names)


def _scaled(table: npt.NDArray[np.float64]) -> FloatArray:
    scaled: FloatArray = ((table - table.mean(axis=0)) / table.std(axis=0)).astype(np.float32)
    return scaled


SOURCES: dict[str, Source] = {
    "breast-cancer": breast_cancer,
    "classes": classes,
    "diabetes": diabetes,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "file": own_file,
    "heart": heart,
    "manual": manual,
    "synthetic": synthetic,
    "text": own_text,
    "wine": wine,
}
"""The built-in sources."""
