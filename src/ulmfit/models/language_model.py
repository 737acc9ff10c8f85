"""The language model: an encoder, a decoder tied to its embedding, its loss, and its move to another vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ulmfit.config import LanguageModelConfig
from ulmfit.models.dropout import locked_dropout
from ulmfit.models.encoder import Encoder, LayerGroup, State, build_encoder
from ulmfit.models.softmax_loss import linear_cross_entropy


@dataclass(frozen=True, slots=True)
class LanguageModelLoss:
    """One window's losses and the state it ends with."""

    total: Tensor
    """what is differentiated: mean cross entropy plus the regularisers"""
    cross_entropy: Tensor
    """summed over the window's tokens, float32"""
    state: State


class LanguageModel(nn.Module):
    """Predicts each next token: softmax(outputs @ embedding.T + bias)."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder = build_encoder(config.encoder, vocab_size=config.vocab_size)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))

    @property
    def decoder_weight(self) -> Tensor:
        """The embedding itself (vocabulary, size): tied weights are one tensor with two uses (Press & Wolf 2017)."""
        return self.encoder.embedding.weight

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None,
        *,
        dtype: torch.dtype = torch.float32,
        activation_regularisation: float = 0.0,
        temporal_regularisation: float = 0.0,
    ) -> LanguageModelLoss:
        """Loss of one window, tokens and targets (time, batch); the caller detaches the state between windows.

        AR is alpha times the mean square of the dropped outputs, TAR beta times that of the raw outputs' change from
        one step to the next (Merity et al. 2017, section 4.4).
        """
        raw, after = self.encoder(tokens, state, self.encoder.prepare(dtype))
        outputs = locked_dropout(raw, self.config.output_dropout, training=self.training)
        cross_entropy = linear_cross_entropy(
            outputs.flatten(0, 1),
            self.decoder_weight,
            self.decoder_bias,
            targets.flatten(),
            drawn=dtype == torch.int8,
        )
        total = cross_entropy / targets.numel()
        if activation_regularisation:
            total = total + activation_regularisation * outputs.float().pow(2).mean()
        if temporal_regularisation and len(raw) > 1:
            total = total + temporal_regularisation * (raw[1:] - raw[:-1]).float().pow(2).mean()
        return LanguageModelLoss(total, cross_entropy.detach(), after)

    def next_token_logits(
        self, tokens: Tensor, state: State | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, State]:
        """Logits (batch, vocabulary) for the token after the last one of tokens (time, batch), and the state there."""
        outputs, after = self.encoder(tokens, state, self.encoder.prepare(dtype))
        return functional.linear(outputs[-1].float(), self.decoder_weight, self.decoder_bias), after

    def layer_groups(self) -> list[LayerGroup]:
        """The recurrent layers from the bottom up, then the tied embedding and decoder as the last group.

        The decoder is what a new vocabulary changes most, so it learns fastest and is unfrozen first.
        """
        embedding, *layers = self.encoder.layer_groups()
        return [*layers, LayerGroup("embedding_and_decoder", (*embedding.parameters, self.decoder_bias))]


def transfer_vocabulary(model: LanguageModel, rows: Tensor) -> LanguageModel:
    """The same language model over another vocabulary; `model` is left as it was.

    `rows` (new vocabulary,) holds for each new token its index in the old vocabulary, or -1 where the old one lacks
    it: such a token starts as the mean of all old rows, its decoder bias as the mean bias (ULMFiT's scripts).
    """
    config = model.config.model_copy(update={"vocab_size": len(rows)})
    with torch.random.fork_rng(devices=[]):
        moved = LanguageModel(config)
    known = (rows >= 0).to(model.decoder_weight.device)
    source = rows.clamp(min=0).to(model.decoder_weight.device)
    with torch.no_grad():
        weight, bias = model.decoder_weight, model.decoder_bias
        tensors = dict(model.state_dict())
        tensors["encoder.embedding.weight"] = torch.where(known.unsqueeze(1), weight[source], weight.mean(0))
        tensors["decoder_bias"] = torch.where(known, bias[source], bias.mean())
    moved.load_state_dict(tensors)
    return moved.to(weight.device)
