"""The model card says what its config and facts say, and nothing of it is lost."""

import copy

import pytest

from ulmfit.card import model_card
from ulmfit.config import ClassifierConfig

VALUES = {
    "kind": "classifier",
    "model": ClassifierConfig(vocab_size=12_345).model_dump(mode="json"),
    "labels": ["negative", "positive"],
    "storage": "int8",
    "weights": {"forward": ["a.safetensors"], "backward": ["b.safetensors"]},
    "facts": {
        "title": "Film reviews",
        "base": "someone/films",
        "data": {"documents": 25_000, "licence_of_the_text": "CC BY 4.0", "shares": [0.25, 0.75], "none": None},
        "training": {"seed": 17, "compute dtype": "bfloat16", "resumed": False},
        "results": {"classify forward": {"accuracy": 0.94321, "valid_loss": 0.1876}, "perplexity": 31.1266},
        "hardware": {"device": "A Processor", "threads": 6},
        "command": "ulmfit train films.csv --out films",
        "notes": "To be taken with salt.",
    },
}
"""as in config.json"""


def section(card, heading):
    """The lines under a heading."""
    return card.split(f"\n## {heading}\n\n")[1].split("\n\n## ")[0].strip().splitlines()


def test_a_card_tells_what_the_model_is():
    card = model_card(VALUES)
    assert card.startswith("# Film reviews\n\nA forward and backward classifier made by `ulmfit`.\n")
    assert section(card, "Model") == [
        "- encoder: awd_lstm, embedding 400, hidden 1152, 3 layers",
        "- vocabulary: 12,345 tokens",
        "- stored as int8 in safetensors",
        "- started from: someone/films",
        "- classes: negative, positive",
    ]


def test_every_fact_given_is_in_the_card_under_its_heading():
    card = model_card(VALUES)
    assert section(card, "Data") == [
        "- documents: 25,000",
        "- licence of the text: CC BY 4.0",
        "- shares: 0.25, 0.75",
        "- none: none",
    ]
    assert section(card, "Training") == ["- seed: 17", "- compute dtype: bfloat16", "- resumed: false"]
    assert section(card, "Results") == [
        "- classify forward: accuracy 0.9432, valid_loss 0.1876",
        "- perplexity: 31.13",
    ]
    assert section(card, "Hardware") == ["- device: A Processor", "- threads: 6"]
    assert section(card, "Command") == ["```", "ulmfit train films.csv --out films", "```"]
    assert section(card, "Notes") == ["To be taken with salt."]


@pytest.mark.parametrize("heading", ["data", "training", "results", "hardware", "command", "notes"])
def test_what_is_not_known_has_no_heading(heading):
    values = copy.deepcopy(VALUES)
    del values["facts"][heading]
    assert f"## {heading.capitalize()}" not in model_card(values)


def test_a_language_model_in_one_direction_without_facts_has_a_card():
    values = {**VALUES, "kind": "language_model", "weights": {"backward": []}, "facts": {}}
    del values["labels"]
    card = model_card(values)
    assert card.startswith("# Language model\n\nA backward language model made by `ulmfit`.\n")
    assert "classes" not in card and "started from" not in card
    assert card.count("\n## ") == 1
