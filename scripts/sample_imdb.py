"""Draw the demo's sample from the IMDb Large Movie Review Dataset: `python scripts/sample_imdb.py` writes demo_data/.

Labelled reviews come from the official training set, unlabelled ones from its unsupervised part, test reviews from the
official test set; classes are balanced, the draw is seeded, and reviews that stand in two of the parts are left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / os.environ.get("ULMFIT_DATA", "../shared/data")
OUT = ROOT / "src/ulmfit/demo_data"
SIZES = {"train": 300, "unsup": 1500, "test": 1000}
MOST_WORDS = 130
"""reviews longer than this are left out, so that the demo takes minutes: 28 % of all are as short"""
SEED = 20180715


def main() -> None:
    """Write train, unlabelled and test parquet files and print their sizes."""
    generator = np.random.default_rng(SEED)
    seen: set[str] = set()
    OUT.mkdir(parents=True, exist_ok=True)
    for part in ("test", "train", "unsup"):
        table = pq.read_table(DATA / "imdb" / f"{part}.parquet")
        texts = table.column("text").to_pylist()
        labels = table.column("label").to_pylist() if part != "unsup" else [""] * len(texts)
        chosen: list[int] = []
        classes = sorted(set(labels))
        for name in classes:
            wanted = SIZES[part] // len(classes)
            for index in generator.permutation([i for i, label in enumerate(labels) if label == name]):
                if wanted and texts[index] not in seen and len(texts[index].split()) <= MOST_WORDS:
                    seen.add(texts[index])
                    chosen.append(int(index))
                    wanted -= 1
        chosen = [chosen[i] for i in generator.permutation(len(chosen))]
        columns = {"text": [texts[i] for i in chosen]}
        if part != "unsup":
            columns["label"] = [labels[i] for i in chosen]
        path = OUT / f"{'unlabelled' if part == 'unsup' else part}.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd", compression_level=19)
        print(path.name, len(chosen), path.stat().st_size)


if __name__ == "__main__":
    main()
