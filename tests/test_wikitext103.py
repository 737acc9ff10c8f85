"""scripts/wikitext103.py: WikiText's tokens back to text, and how many there were."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "wikitext103.py"

ARTICLE = (
    " = Storm = \n \n The second @-@ most intense storm ( 1 @,@ 200 km ) did n't <unk> its eye . \n = = Names = = \n"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wikitext103", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_marks_spaces_and_headings_become_those_of_text(script: ModuleType) -> None:
    storm = f"The second-most intense storm (1,200 km) didn't {script.UNKNOWN} its eye."
    assert script.as_text(ARTICLE) == f"Storm.\n{storm}\nNames."


def test_each_line_adds_a_token_for_its_end(script: ModuleType) -> None:
    assert script.wikitext_tokens(" a b \n \n c \n") == 3 + 3
    assert script.wikitext_tokens(" a b \n c") == 3 + 2
