"""Self-training: a classifier labels unlabelled documents, and a second one learns from the surest of them as well.

The oldest way to use unlabelled text (Scudder 1965, Yarowsky 1995), on top of a language model that has read the same
text. The second classifier starts from the tuned language model again, so that it is not bound to the first one's
mistakes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulmfit.config import ClassifySettings, Phase, UnfreezingPlan
from ulmfit.errors import CheckpointError
from ulmfit.learning.labelled_text import LabelledText
from ulmfit.learning.setting import Setting
from ulmfit.text.corpus import Corpus
from ulmfit.text.parts import renamed_when_whole
from ulmfit.training.events import Note
from ulmfit.training.schedules import phases_over_more

CHOSEN = "self-training.json"


@dataclass(frozen=True, slots=True)
class Labels:
    """Documents of a corpus and the class that each is taken for."""

    documents: NDArray[np.int64]
    """(chosen,), rising"""
    classes: NDArray[np.int32]
    """(chosen,)"""


def with_surest(
    setting: Setting,
    source: LabelledText,
    unlabelled: Corpus,
    settings: ClassifySettings,
    *,
    vote: Callable[[NDArray[np.int64]], Tensor],
) -> LabelledText | None:
    """The labelled text and, with the labels that a vote gives them, the surest of some unlabelled documents.

    The vote is on documents of `unlabelled`: probabilities (documents, classes), of which the leading process' count.
    What is measured on stays as it is. None where all unlabelled documents are empty or labelled, which is told. What
    was chosen is kept in the run's folder, so that a resumed run goes on with the same; CheckpointError where it cannot
    be read.
    """
    path = setting.folder.work / CHOSEN
    processes = setting.processes
    known = processes.agree(_written(path, unlabelled, source) if processes.leads and setting.resume else None)
    if known is None:
        pool = candidates(unlabelled, source.corpus, most=settings.self_training_documents, seed=setting.run.seed)
        if len(pool) == 0:
            setting.tell(Note("no self-training: there is no unlabelled text but the labelled"))
            return None
        places, classes = surest(vote(pool), settings.self_training)
        known = processes.agree([pool[places].tolist(), classes.tolist()])
        if processes.leads:
            with renamed_when_whole(path) as file:
                file.write(json.dumps(known).encode())
    labels = Labels(np.array(known[0], dtype=np.int64), np.array(known[1], dtype=np.int32))
    counts = np.bincount(labels.classes, minlength=len(source.corpus.label_names))
    told = ", ".join(f"{count:,} {name}" for name, count in zip(source.corpus.label_names, counts, strict=True))
    setting.tell(Note(f"self-training on {len(labels.documents):,} unlabelled texts, the surest: {told}"))
    return joined(source, unlabelled, labels)


def taught(settings: ClassifySettings, *, documents: float, of: float) -> ClassifySettings:
    """How the second classifier learns, from `of` documents where the first one had `documents`."""
    phases: Sequence[Phase] | UnfreezingPlan | None = settings.self_training_phases
    if phases is None or of * _epochs(phases) < documents * _epochs(settings.phases):
        phases = phases_over_more(settings.phases, documents=documents, of=of)
    batch_size = settings.self_training_batch_size or settings.batch_size
    return settings.model_copy(update={"phases": phases, "batch_size": batch_size})


def _epochs(phases: Sequence[Phase] | UnfreezingPlan) -> int:
    return phases.epochs if isinstance(phases, UnfreezingPlan) else sum(phase.epochs for phase in phases)


def candidates(unlabelled: Corpus, labelled: Corpus, *, most: int, seed: int) -> NDArray[np.int64]:
    """Some documents, drawn by the seed, rising: none that is empty, and none that is labelled."""
    taken = {labelled.document(place).tobytes() for place in range(len(labelled))}
    order = np.random.default_rng([seed, 0x5E1F]).permutation(len(unlabelled))
    chosen: list[int] = []
    for place in order.tolist():
        ids = unlabelled.document(place)
        if len(chosen) == most:
            break
        if len(ids) > 1 and ids.tobytes() not in taken:
            chosen.append(place)
    return np.sort(np.array(chosen, dtype=np.int64))


def surest(probabilities: Tensor, share: float) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rows of (documents, classes), rising, and their likeliest classes: of each class the surest share, rounded up.

    By class, so that one that the classifier is less sure of does not vanish.
    """
    confidence, classes = probabilities.max(1)
    chosen = []
    for number in range(probabilities.shape[1]):
        (places,) = torch.nonzero(classes == number, as_tuple=True)
        most = -(-len(places) * round(share * 10_000) // 10_000)
        order = torch.sort(confidence[places], descending=True, stable=True).indices
        chosen.append(places[order[:most]])
    rows = torch.cat(chosen).sort().values
    return rows.numpy(), classes[rows].numpy().astype(np.int32)


def joined(source: LabelledText, unlabelled: Corpus, labels: Labels) -> LabelledText:
    """All to learn from in one corpus: the labelled documents first, in their places."""
    corpus = source.corpus
    assert corpus.labels is not None
    documents = [*corpus.documents(np.arange(len(corpus))), *unlabelled.documents(labels.documents)]
    whole = Corpus.from_documents(
        documents,
        vocab_size=corpus.vocab_size,
        labels=np.concatenate([corpus.labels, labels.classes]),
        label_names=corpus.label_names,
    )
    added = np.arange(len(corpus), len(whole), dtype=np.int64)
    return replace(source, corpus=whole, documents=np.concatenate([source.documents, added]))


def _written(path: Path, unlabelled: Corpus, source: LabelledText) -> list[Any] | None:
    """What was chosen before the run was killed, checked; None where it had not come so far."""
    if not path.is_file():
        return None
    try:
        documents, classes = known = json.loads(path.read_text(encoding="utf-8"))
        sound = len(documents) == len(classes) and all(
            type(place) is int and 0 <= place < limit
            for values, limit in ((documents, len(unlabelled)), (classes, len(source.corpus.label_names)))
            for place in values
        )
    except (OSError, ValueError, TypeError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path}: damaged; delete it and pass --resume again, or start anew in another --out")
    return list(known)
