"""What the recipe asks of an encoder, and the registry that finds one by name.

A language model is an objective, not an architecture: whatever maps (tokens, state) to (outputs, state) and
names its layer groups can be pretrained, tuned and turned into a classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ulmfit.config import EncoderConfig
from ulmfit.errors import ConfigError

State: TypeAlias = tuple[Tensor, ...]
"""What an encoder carries from window to window: tensors whose second dimension is the batch."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Parameters that share one learning rate and are frozen together."""

    name: str
    parameters: tuple[Tensor, ...]
    stacked: int = 0
    """how many linear maps each matrix here stacks, as an LSTM's its four gates; 0 for lookup tables and heads"""


class Encoder(Protocol):
    """The contract. Time comes first in every sequence: tokens (time, batch), outputs (time, batch, size)."""

    embedding: nn.Embedding
    output_size: int

    def prepare(self, dtype: torch.dtype) -> Any:
        """The weights of one step: cast to the compute dtype, dropped out once, shared by the step's windows.

        int8 is asked for to predict, and while training to learn by products in it, with all else in bfloat16; an
        encoder that has no path in it may answer with weights in another dtype.
        """

    def __call__(
        self, tokens: Tensor, state: State | None, weights: Any, *, window: int | None = None
    ) -> tuple[Tensor, State]:
        """Outputs (time, batch, output_size) in the compute dtype, and the state at the end.

        For int8 they are in float32, or in bfloat16 where it learns.

        With `window`, as if called for one window of so many steps after another: what is drawn at random for a call
        is drawn for each window.
        """

    def layer_groups(self) -> list[LayerGroup]:
        """From the embedding up."""

    def parameters(self) -> Any:
        """All parameters, as on any `nn.Module`."""


_REGISTRY: dict[str, Callable[..., nn.Module]] = {}


def register_encoder(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Make an encoder class findable as `EncoderConfig(architecture=name)`; it is built with (config, vocab_size=)."""

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        _REGISTRY[name] = cls
        return cls

    return add


def build_encoder(config: EncoderConfig, *, vocab_size: int) -> Any:
    """The encoder that `config.architecture` names, with fresh weights. Raises ConfigError for an unknown name."""
    if config.architecture not in _REGISTRY:
        raise ConfigError(f"no encoder architecture {config.architecture!r}; there are {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[config.architecture](config, vocab_size=vocab_size)


def detach(state: State) -> State:
    """The same state with its history cut: the backward pass ends here."""
    return tuple(tensor.detach() for tensor in state)


def select_rows(state: State, rows: slice | list[int]) -> State:
    """The state of some sequences of the batch."""
    return tuple(tensor[:, rows].contiguous() for tensor in state)
