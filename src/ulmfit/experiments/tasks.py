"""The data of an experiment: where its files lie, how they are read, and the splits and draws made of them, once."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ulmfit.errors import ConfigError, DataError
from ulmfit.experiments.official_csv import read_official_csv
from ulmfit.text.corpus import split_documents
from ulmfit.text.parts import output_errors, renamed_when_whole
from ulmfit.text.sources import read_records, source_files

Measure = Literal["valid", "test"]

DATA_VARIABLE, DATA_DEFAULT = "ULMFIT_DATA", "../shared/data"
SPLIT_SEED = 2018
"""of the splits, which are the same in all runs; the draws of labels have the run's own seed"""
TEST_SHARE = 0.2
"""of the labelled documents, where no test file was given"""
VALID_SHARE, FEW_VALID_SHARE, FEW_DOCUMENTS = 0.1, 0.25, 2_000
"""held out to measure epochs on: a tenth as in the paper, a quarter of fewer documents than this"""

Example = tuple[str, str]
"""text, label"""


@dataclass(frozen=True, slots=True)
class Source:
    """One split: a file or folder with columns, or an official csv file whose classes are named here."""

    path: Path
    text_column: str = "text"
    label_column: str = "label"
    classes: tuple[str, ...] = ()

    def labelled(self) -> Iterator[Example]:
        """(text, label) of every document; DataError as the readers raise it."""
        if self.classes:
            return read_official_csv(self.path, classes=self.classes)
        records = read_records([self.path], text_column=self.text_column, label_column=self.label_column)
        return ((record.text, record.label or "") for record in records)

    def texts(self) -> Iterator[str]:
        """The texts alone."""
        if self.classes:
            return (text for text, _ in self.labelled())
        return (record.text for record in read_records([self.path], text_column=self.text_column))

    def files(self, *, labelled: bool) -> list[list[Any]]:
        """Names and sizes, by which the data are known again."""
        paths = [self.path] if self.classes else source_files([self.path], labelled=labelled)
        return [[path.name, path.stat().st_size] for path in paths if path.is_file()]


@dataclass(frozen=True, slots=True)
class Task:
    """A labelled data set, with its test set and more text where there are any."""

    name: str
    title: str
    train: Source
    test: Source | None = None
    unlabelled: tuple[Source, ...] = ()

    @property
    def flags(self) -> list[str]:
        """How a command names it; files by their names, wherever they lie."""
        if self.name in TASK_NAMES:
            return ["--data", self.name]
        words = ["--data", self.train.path.name]
        if self.unlabelled:
            words += ["--unlabelled", *(source.path.name for source in self.unlabelled)]
        if self.test is not None:
            words += ["--test", self.test.path.name]
        columns = (("text", self.train.text_column), ("label", self.train.label_column))
        return words + [word for name, column in columns if column != name for word in (f"--{name}-column", column)]


_DBPEDIA = (
    *("Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation", "Building"),
    *("NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork"),
)
_STARS = tuple(f"{count} star{'s' * (count > 1)}" for count in range(1, 6))
OFFICIAL_CSV = {
    "dbpedia": ("DBpedia", "dbpedia_csv", _DBPEDIA),
    "yelp_polarity": ("Yelp polarity", "yelp_review_polarity_csv", ("negative", "positive")),
    "yelp_full": ("Yelp full", "yelp_review_full_csv", _STARS),
}
"""data sets read from the official csv files: title, folder, classes; tested on made data of this format, never run"""
PARQUET = {"imdb": ("IMDb", ("unsup",)), "trec6": ("TREC-6", ()), "ag_news": ("AG News", ())}
"""data sets of one parquet file a split: title, splits without labels"""
TASK_NAMES = (*PARQUET, *OFFICIAL_CSV)


def task_named(name: str) -> Task:
    """A data set of the paper, in the folder that `ULMFIT_DATA` names; ConfigError where there is none."""
    folder = Path(os.environ.get(DATA_VARIABLE, DATA_DEFAULT))
    if name in OFFICIAL_CSV:
        title, place, classes = OFFICIAL_CSV[name]
        train, test = (Source(folder / place / f"{split}.csv", classes=classes) for split in ("train", "test"))
        task = Task(name, title, train, test)
    elif name in PARQUET:
        title, more = PARQUET[name]
        train, test, *rest = (Source(folder / name / f"{split}.parquet") for split in ("train", "test", *more))
        task = Task(name, title, train, test, tuple(rest))
    else:
        raise ConfigError(f"no data set {name!r}; give one of {', '.join(TASK_NAMES)}, or a labelled file")
    if not task.train.path.is_file():
        raise ConfigError(
            f"{task.train.path}: no such file, so {name} cannot be read; set {DATA_VARIABLE} to the folder of data "
            "sets, or give a labelled file of your own"
        )
    return task


def task_of_files(
    labelled: Path,
    *,
    unlabelled: Sequence[Path] = (),
    test: Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
) -> Task:
    """A user's own files; its name is the labelled file's. ConfigError where that is a data set's of the paper."""
    name = labelled.name.split(".")[0]
    if name in TASK_NAMES:
        raise ConfigError(f"{labelled}: a file of yours may not be called {name!r}, a data set of the paper; rename it")
    return Task(
        name=name,
        title=labelled.name,
        train=Source(labelled, text_column, label_column),
        test=None if test is None else Source(test, text_column, label_column),
        unlabelled=tuple(Source(path, text_column) for path in unlabelled),
    )


# --- splits on disk -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task's splits as parquet files in one folder, the same for every run.

    `train` is all that may be learnt from; `learn` and `valid` are its two parts where epochs are measured; `test` is
    looked at for results alone. Language models are tuned on the texts of `train` and `unlabelled`.
    """

    folder: Path
    name: str
    title: str
    fingerprint: str
    classes: list[str]
    """sorted, as a classifier has them"""
    counts: dict[str, int]
    """documents of each split"""
    characters: int
    """of the text to tune on"""
    flags: list[str]
    """how a command names the task"""

    def split(self, name: str) -> Path:
        """The file of a split."""
        return self.folder / f"{name}.parquet"

    @property
    def texts(self) -> list[Path]:
        """All the task's text but the test set's."""
        return [self.split(name) for name in ("train", "unlabelled") if self.counts[name]]

    def pool(self, measure: Measure) -> str:
        """The split whose labels may be used where results are measured so."""
        return "learn" if measure == "valid" else "train"

    def size(self, measure: Measure, labels: int | None) -> int:
        """How many labelled documents a run has that asks for so many (None: all)."""
        everything = self.counts[self.pool(measure)]
        return everything if labels is None else min(labels, everything)

    def draw_path(self, measure: Measure, labels: int | None, *, seed: int) -> Path:
        """Where a draw lies, made or not."""
        pool = self.pool(measure)
        if labels is None or labels >= self.counts[pool]:
            return self.split(pool)
        return self.folder / f"{pool}-{labels}-{seed}.parquet"

    def draw(self, measure: Measure, labels: int | None, *, seed: int) -> Path:
        """A file of so many labelled documents, drawn by the seed, classes in their shares; all of them if None."""
        path = self.draw_path(measure, labels, seed=seed)
        if labels is not None and path != self.split(self.pool(measure)) and not path.exists():
            table = pa.parquet.read_table(self.split(self.pool(measure)))
            drawn = _drawn(table.column("label").to_pylist(), labels, seed=seed)
            _write(path, table.take(pa.array(drawn)))
        return path


def valid_share(documents: int) -> float:
    """The share of the labelled documents that is held out to measure epochs on."""
    return VALID_SHARE if documents >= FEW_DOCUMENTS else FEW_VALID_SHARE


@dataclass(frozen=True, slots=True)
class Limits:
    """The most documents to take, drawn by chance; None takes all."""

    labelled: int | None = None
    texts: int | None = None
    """to tune on, the labelled ones among them"""
    test: int | None = None


def prepare(task: Task, folder: Path, *, limits: Limits = Limits()) -> Prepared:
    """The task's splits in `folder`, made once, within the limits.

    Raises DataError where the folder holds the splits of other data, or a class has too few documents.
    """
    origin = {
        "train": task.train.files(labelled=True),
        "test": task.test.files(labelled=True) if task.test else None,
        "unlabelled": [source.files(labelled=False) for source in task.unlabelled],
        "limits": asdict(limits),
    }
    facts = folder / "task.json"
    if facts.exists():
        known = json.loads(facts.read_text(encoding="utf-8"))
        if known["origin"] != origin:
            raise DataError(f"{folder}: holds the splits of other data of the name {task.name!r}; choose another --out")
        return Prepared(folder=folder, **known["prepared"])
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    splits = _splits(task, limits)
    for name, rows in splits.items():
        _write(folder / f"{name}.parquet", _table(rows, labelled=name != "unlabelled"))
    kept = splits["train"] + splits["unlabelled"]
    prepared = Prepared(
        folder=folder,
        name=task.name,
        title=task.title,
        fingerprint=_fingerprint(splits),
        classes=sorted({label for _, label in splits["train"]}),
        counts={name: len(rows) for name, rows in splits.items()},
        characters=sum(len(text) for text, _ in kept),
        flags=task.flags,
    )
    values = {name: value for name, value in asdict(prepared).items() if name != "folder"}
    with renamed_when_whole(facts) as file:
        file.write(json.dumps({"origin": origin, "prepared": values}, indent=1).encode())
    return prepared


def _splits(task: Task, limits: Limits) -> dict[str, list[Example]]:
    train = list(task.train.labelled())
    _check_classes(train, task.train.path)
    if task.test is None:
        train, test = _parted(train, TEST_SHARE)
    else:
        test = list(task.test.labelled())
        known = {label for _, label in train}
        for _, label in test:
            if label not in known:
                raise DataError(f"{task.test.path}: the label {label!r} is not among the training labels")
    unlabelled = [(text, "") for source in task.unlabelled for text in source.texts()]
    if limits.labelled is not None and limits.labelled < len(train):
        chosen = _drawn([label for _, label in train], limits.labelled, seed=SPLIT_SEED)
        # What is not learnt from as labelled text is still text of the domain.
        others = np.setdiff1d(np.arange(len(train)), chosen)
        unlabelled = [(train[index][0], "") for index in others] + unlabelled
        train = [train[index] for index in chosen]
    if limits.texts is not None:
        unlabelled = _some(unlabelled, max(0, limits.texts - len(train)))
    if limits.test is not None:
        test = _some(test, limits.test)
    learn, valid = _parted(train, valid_share(len(train)))
    return {"train": train, "learn": learn, "valid": valid, "test": test, "unlabelled": unlabelled}


def _check_classes(rows: list[Example], path: Path) -> None:
    counts = Counter(label for _, label in rows)
    rarest, count = min(counts.items(), key=lambda item: item[1])
    if len(counts) < 2 or count < 3:
        found = f"all {count} documents have" if len(counts) < 2 else f"{count} documents have"
        raise DataError(
            f"{path}: {found} the label {rarest!r}; an experiment needs two classes, and three documents of each"
        )


def _parted(rows: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Two parts in which the classes keep their shares."""
    first, second = split_documents(
        len(rows), valid_share=share, seed=SPLIT_SEED, labels=_numbers([label for _, label in rows])
    )
    return [rows[index] for index in first], [rows[index] for index in second]


def _some(rows: list[Example], most: int) -> list[Example]:
    """So many at most, drawn by chance, in their order."""
    if len(rows) <= most:
        return rows
    order = np.random.default_rng([SPLIT_SEED, 1]).permutation(len(rows))
    return [rows[index] for index in sorted(order[:most])]


def _drawn(labels: Sequence[str], count: int, *, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of so many documents in which the classes keep their shares, each of them there."""
    return split_documents(len(labels), valid_share=count / len(labels), seed=seed, labels=_numbers(labels))[1]


def _numbers(labels: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)


def _table(rows: Iterable[Example], *, labelled: bool) -> Any:
    texts, labels = zip(*rows, strict=True) if rows else ((), ())
    columns = {"text": pa.array(texts, pa.string())}
    return pa.table(columns | ({"label": pa.array(labels, pa.string())} if labelled else {}))


def _write(path: Path, table: Any) -> None:
    with renamed_when_whole(path) as file:
        pa.parquet.write_table(table, file, compression="zstd")


def _fingerprint(splits: dict[str, list[Example]]) -> str:
    digest = hashlib.sha256()
    for name, rows in splits.items():
        digest.update(json.dumps([name, rows]).encode())
    return digest.hexdigest()[:20]
