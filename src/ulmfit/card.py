"""The model card of a bundle, written from its own config and the facts of the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(values: Mapping[str, Any]) -> str:
    """Markdown for the README.md of a bundle whose config.json holds `values`."""
    facts: Mapping[str, Any] = values["facts"]
    model = values["model"]
    encoder = model["encoder"]
    kind = values["kind"].replace("_", " ")
    directions = " and ".join(values["weights"])
    lines = [
        f"# {facts.get('title', kind.capitalize())}",
        "",
        f"A {directions} {kind} made by `ulmfit`.",
        "",
        "## Model",
        "",
        f"- encoder: {encoder['architecture']}, embedding {encoder['embedding_size']}, "
        f"hidden {encoder['hidden_size']}, {encoder['layers']} layers",
        f"- vocabulary: {model['vocab_size']:,} tokens",
        f"- stored as {values['storage']} in safetensors",
    ]
    if facts.get("base"):
        lines.append(f"- started from: {facts['base']}")
    if "labels" in values:
        lines.append(f"- classes: {', '.join(values['labels'])}")
    for heading in ("data", "training", "results", "hardware"):
        if facts.get(heading):
            lines += ["", f"## {heading.capitalize()}", "", *_bullets(facts[heading])]
    if facts.get("command"):
        lines += ["", "## Command", "", "```", str(facts["command"]), "```"]
    if facts.get("notes"):
        lines += ["", "## Notes", "", str(facts["notes"])]
    return "\n".join(lines) + "\n"


def _bullets(values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [f"- {_shown(values)}"]
    return [f"- {name.replace('_', ' ')}: {_shown(value)}" for name, value in values.items()]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return str(value)
