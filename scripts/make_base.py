"""Make a shipped base from pretrained language models: `python scripts/make_base.py forward/ [backward/] --out DIR`.

Gathers the directions into one bundle with int8 rows, measures it as stored, and writes the model card.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from ulmfit.bundle import LanguageModelBundle
from ulmfit.merging import merged
from ulmfit.predict import evaluate_language_model


def main() -> None:
    """Gather, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="folders of `ulmfit pretrain`, one direction each")
    parser.add_argument("--out", type=Path, required=True, help="new folder of the base")
    parser.add_argument("--measure", type=Path, nargs="*", default=[], help="text to measure perplexity on")
    parser.add_argument(
        "--facts", type=Path, required=True, help="JSON: title, data, command, results, notes of the card"
    )
    arguments = parser.parse_args()
    both = merged({str(folder): LanguageModelBundle.load(folder) for folder in arguments.models})
    given = json.loads(arguments.facts.read_text(encoding="utf-8"))
    facts = {**both.facts, "results": {}, **given}
    with tempfile.TemporaryDirectory() as temporary:
        stored = Path(temporary) / "stored"
        both.save(stored, storage="int8")
        bundle = LanguageModelBundle.load(stored)
    for path in arguments.measure:
        measured = evaluate_language_model(bundle, [path])
        for direction, measures in measured["directions"].items():
            name = f"{path.parent.name} {path.stem}, {direction}"
            facts["results"][name] = {key: round(value, 4) for key, value in measures.items()}
            print(name, facts["results"][name])
    replace(both, facts=facts).save(arguments.out, storage="int8")


if __name__ == "__main__":
    main()
