"""A language model goes on with a text: a look at what it has learnt, not a writing tool."""

from __future__ import annotations

import itertools

import torch

from ulmfit.bundle import LanguageModelBundle
from ulmfit.compute import choose_device, choose_dtype
from ulmfit.config import Direction
from ulmfit.errors import ConfigError
from ulmfit.models.sampling import continue_tokens
from ulmfit.text.batches import reverse_document
from ulmfit.text.tokenizer import Tokenizer


def generate(
    bundle: LanguageModelBundle,
    text: str,
    *,
    length: int = 60,
    temperature: float = 0.8,
    top_p: float = 0.9,
    seed: int = 0,
    direction: Direction | None = None,
    device: str = "auto",
) -> str:
    """The text with up to `length` tokens more, until the model ends it; a backward model writes what comes before.

    Tokens are drawn from the likeliest that have `top_p` of the probability, the less adventurous the lower the
    `temperature`; at 0 always the likeliest. The same seed gives the same text. Raises ConfigError for a value out of
    range and for a direction that the model does not read in; by default it is the model's first.
    """
    if length < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"length {length}, temperature {temperature:g}, top-p {top_p:g}: expected a length of 1 or more, "
            "a temperature of 0 or more, and a top-p above 0 and up to 1"
        )
    chosen = direction or bundle.directions[0]
    if chosen not in bundle.models:
        raise ConfigError(f"this model reads {' and '.join(bundle.directions)} only; pass that --direction")
    tokenizer = bundle.tokenizer
    place = choose_device(device)
    model = bundle.models[chosen].to(place).eval()
    ids = tokenizer.encode(text)
    backward = chosen == "backward"
    drawn = continue_tokens(
        model,
        reverse_document(torch.tensor(ids).numpy(), begin_id=tokenizer.begin_id).tolist() if backward else ids,
        temperature=temperature,
        top_p=top_p,
        generator=torch.Generator().manual_seed(seed),
        never=(tokenizer.padding_id, tokenizer.unknown_id),
        dtype=choose_dtype("auto", place),
    )
    # A begin token would open another document.
    more = list(itertools.takewhile(lambda token: token != tokenizer.begin_id, itertools.islice(drawn, length)))
    return _before(tokenizer, text, ids, more[::-1]) if backward else _after(tokenizer, text, ids, more)


def _after(tokenizer: Tokenizer, text: str, ids: list[int], more: list[int]) -> str:
    """The given text as it is, then what was drawn, spaced as if they had been one."""
    own, whole = tokenizer.decode(ids), tokenizer.decode([*ids, *more])
    rest = whole.removeprefix(own) if whole.startswith(own) else f" {tokenizer.decode(more)}"
    return text.rstrip() + rest if text.strip() else whole


def _before(tokenizer: Tokenizer, text: str, ids: list[int], more: list[int]) -> str:
    """What was drawn, then the given text as it is."""
    own, whole = tokenizer.decode(ids), tokenizer.decode([ids[0], *more, *ids[1:]])
    start = whole.removesuffix(own) if whole.endswith(own) else f"{tokenizer.decode(more)} "
    return start + text.lstrip() if text.strip() else whole
