"""Drawing the next token, and the one after it: temperature and nucleus sampling as functions of logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.models.language_model import LanguageModel


def draw_probabilities(logits: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Logits (..., vocabulary) -> the probabilities to draw from, of the same shape, in float32.

    They are softmax(logits / temperature), cut to the nucleus: the fewest likeliest tokens that have `top_p` of it all
    together, made to sum to 1 again (Holtzman et al. 2020, section 3.1). Temperature 0 is the limit: the likeliest one.
    """
    if temperature == 0:
        return functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    # The largest logit is taken off first: divided by a tiny temperature, nothing may overflow.
    relative = logits.float() - logits.amax(-1, keepdim=True).float()
    ordered, tokens = (relative / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # what likelier tokens have; 0 at the first, which always stays
    kept = ordered.where(before < top_p, 0.0)
    return torch.zeros_like(kept).scatter(-1, tokens, kept / kept.sum(-1, keepdim=True))


@torch.no_grad()
def continue_tokens(
    model: LanguageModel,
    tokens: Sequence[int],
    *,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
    never: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> Iterator[int]:
    """One token after the other that `tokens` go on with, without end, drawn by `generator`; none of `never`.

    The model must be in evaluation mode, the generator on the CPU. The model's weights are prepared once, and what was
    read is carried as state, so every token costs the same.
    """
    device = model.decoder_weight.device
    weights = model.encoder.prepare(dtype)
    read, state = torch.tensor(tokens, device=device).unsqueeze(1), None
    while True:
        outputs, state = model.encoder(read, state, weights)
        logits = functional.linear(outputs[-1, 0].float(), model.decoder_weight, model.decoder_bias).cpu()
        logits[list(never)] = -torch.inf
        probabilities = draw_probabilities(logits, temperature=temperature, top_p=top_p)
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        yield int(drawn)
        read = drawn.to(device).unsqueeze(1)
