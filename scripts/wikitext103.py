"""Measure a base on WikiText-103: `python scripts/wikitext103.py BASE FILE.parquet...` prints JSON a file.

The files hold WikiText's own tokens. They are put back to text, which the base tokenises its own way: `@-@`, `@,@` and
`@.@` lose their marks and spaces, punctuation and contractions join the word before them, a heading ` = Title = `
becomes a line `Title.`, and each `<unk>` is a word outside every vocabulary, so one xxunk. Perplexities of different
tokens do not compare; `perplexity_a_wikitext_token` does, as it shares all of the text's bits out among WikiText's own
tokens, an end of line counted with each line.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from ulmfit.bundle import LanguageModelBundle
from ulmfit.errors import DataError
from ulmfit.predict import evaluate_language_model
from ulmfit.pretrained import find_bundle

UNKNOWN = "qxzunknownwordzxq"
_HEADING = re.compile(r"^(?:= )+(.*?)(?: =)+$")
_JOINED = re.compile(r" @([-,.])@ ")
_BEFORE = re.compile(r" ([.,:;!?)\]%]|n't|'(?:s|m|d|re|ve|ll)\b)")
_AFTER = re.compile(r"([(\[$£€]) ")


def as_text(article: str) -> str:
    """An article of WikiText-103 as text."""
    return "\n".join(filter(None, map(_line_as_text, article.splitlines())))


def _line_as_text(line: str) -> str:
    line = line.strip()
    heading = _HEADING.match(line)
    text = f"{heading[1]}." if heading else line
    text = _JOINED.sub(r"\1", text.replace("<unk>", UNKNOWN))
    return _AFTER.sub(r"\1", _BEFORE.sub(r"\1", text))


def wikitext_tokens(article: str) -> int:
    """How many tokens WikiText counts in an article, one for each end of line."""
    return len(article.split()) + article.count("\n") + (not article.endswith("\n"))


def main() -> None:
    """Measure and print."""
    bundle = LanguageModelBundle.load(find_bundle(sys.argv[1]))
    if bundle.tokenizer.encode(UNKNOWN)[1:] != [bundle.tokenizer.unknown_id]:
        raise DataError(f"{sys.argv[1]}: its vocabulary has no single token for an unknown word; use one of words")
    for name in sys.argv[2:]:
        articles = pq.read_table(name)["text"].to_pylist()
        with tempfile.TemporaryDirectory() as folder:
            mapped = Path(folder) / "text.jsonl"
            rows = (json.dumps({"text": as_text(article)}) for article in articles)
            mapped.write_text("\n".join(rows) + "\n", encoding="utf-8")
            measured = evaluate_language_model(bundle, [mapped])
        tokens = sum(map(wikitext_tokens, articles))
        for measures in measured["directions"].values():
            bits = measures["bits_per_character"] * measured["characters"]
            measures["perplexity_a_wikitext_token"] = 2 ** (bits / tokens)
        print(json.dumps({"file": name, "wikitext_tokens": tokens, **measured}), flush=True)


if __name__ == "__main__":
    main()
