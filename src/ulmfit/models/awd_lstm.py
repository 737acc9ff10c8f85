"""The paper's encoder: stacked LSTMs with locked, embedding-row and weight dropout (Merity et al. 2017)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ulmfit.compute import cpu_products
from ulmfit.config import EncoderConfig
from ulmfit.int8_rows import quantise_rows
from ulmfit.models.cuda_streams import LayerStreams
from ulmfit.models.dropout import embed, locked_dropout, locked_mask, weight_dropout
from ulmfit.models.encoder import LayerGroup, State, register_encoder
from ulmfit.models.int8_lstm import BLOCK_ROWS, Int8LstmWeights, gates_workspace, int8_lstm, quantise_lstm
from ulmfit.models.int8_stack import Int8StackWeights, int8_stack, quantise_stack
from ulmfit.models.lstm import for_one_step, launches_once, lstm
from ulmfit.models.lstm_int8_products import dtype_beside_int8
from ulmfit.models.lstm_products import LstmWeights, SharedWeights
from ulmfit.models.lstm_stack import lstm_stack
from ulmfit.models.shared_table import SharedTable
from ulmfit.models.tile_stack import tile_stack
from ulmfit.models.tile_weights import TileStackWeights, quantise_for_tiles

EMBEDDING_RANGE = 0.1


@dataclass(frozen=True, slots=True)
class AwdLstmWeights:
    """One step's weights: LSTM layers cast to the compute dtype with their weight dropout applied."""

    dtype: torch.dtype
    layers: tuple[LstmWeights | SharedWeights, ...]
    table: SharedTable | None
    """the embedding, where its gradient is sparse"""
    streams: LayerStreams
    """where each layer's weights were made"""


@dataclass(frozen=True, slots=True)
class Int8AwdLstmWeights:
    """The layers in int8, to predict on a CPU that no kernel is made for."""

    layers: tuple[Int8LstmWeights, ...]


AnyWeights: TypeAlias = AwdLstmWeights | Int8AwdLstmWeights | Int8StackWeights | TileStackWeights


@register_encoder("awd_lstm")
class AwdLstm(nn.Module):
    """Embedding and LSTM layers of sizes embedding -> hidden ... -> embedding, so that the decoder can be tied."""

    def __init__(self, config: EncoderConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.output_size = config.embedding_size
        self.embedding = nn.Embedding(vocab_size, config.embedding_size)
        nn.init.uniform_(self.embedding.weight, -EMBEDDING_RANGE, EMBEDDING_RANGE)
        sizes = [config.embedding_size, *[config.hidden_size] * (config.layers - 1), config.embedding_size]
        # nn.LSTM holds the parameters under the names the field knows; the kernels are called by `lstm`.
        self.lstms = nn.ModuleList(nn.LSTM(size, after) for size, after in itertools.pairwise(sizes))

    def prepare(self, dtype: torch.dtype) -> AnyWeights:
        """Cast every layer once and drop hidden-to-hidden weights: one mask a step (Merity et al. 2017, section 2)."""
        by_int8 = dtype == torch.int8 and self.training
        in_int8 = dtype == torch.int8 and not self.training
        if by_int8:
            dtype = dtype_beside_int8(
                [weight for layer in self.lstms for weight in layer.parameters() if weight.dim() > 1]
            )
        layers = []
        streams = LayerStreams(len(self.lstms), self.embedding.weight.device)
        for depth, layer in enumerate(self.lstms):
            with streams.at(depth):
                input_weight, hidden_weight, input_bias, hidden_bias = (
                    getattr(layer, name).to(torch.float32 if in_int8 else dtype)
                    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
                )
                dropped = weight_dropout(hidden_weight, self.config.dropouts.weight, training=self.training)
            layers.append(LstmWeights(input_weight, dropped, input_bias, hidden_bias))
        if in_int8 and self.embedding.weight.is_cuda:
            streams.join(part for layer in layers for part in layer)
            return quantise_stack(self.embedding.weight, layers)
        if in_int8 and cpu_products() is not None:
            return quantise_for_tiles(self.embedding.weight, layers)
        if in_int8:
            return Int8AwdLstmWeights(
                tuple(quantise_lstm(layer, embeddings=depth == 0) for depth, layer in enumerate(layers))
            )
        sparse = self.embedding.sparse and torch.is_grad_enabled()
        table = SharedTable(self.embedding.weight) if sparse else None
        return AwdLstmWeights(dtype, tuple(for_one_step(layer, in_int8=by_int8) for layer in layers), table, streams)

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        weights: AnyWeights | None = None,
        *,
        window: int | None = None,
    ) -> tuple[Tensor, State]:
        """(time, batch) ids -> raw outputs of the last layer (time, batch, embedding_size), and the state.

        The state is h and c of each layer in turn, each (1, batch, size); None starts from zeros. Masks of dropout last
        for `window` steps, or for all of them where it is None.
        """
        weights = weights or self.prepare(torch.float32)
        if isinstance(weights, Int8StackWeights):
            return int8_stack(tokens, state, weights)
        if isinstance(weights, TileStackWeights):
            return tile_stack(tokens, state, weights)
        if isinstance(weights, Int8AwdLstmWeights):
            return self._forward_int8(tokens, state, weights)
        dropouts, training = self.config.dropouts, self.training
        streams = self._streams(tokens, weights)
        streams.enter(tokens, state)
        with streams.at(0):
            outputs = embed(
                tokens,
                self.embedding.weight,
                dropouts.embedding,
                training=training,
                window=window,
                table=weights.table,
            )
            outputs = locked_dropout(outputs.to(weights.dtype), dropouts.input, training=training, window=window)
        shared = [layer for layer in weights.layers if isinstance(layer, SharedWeights)]
        if shared:
            return self._forward_side_by_side(outputs, state, shared, window)
        after: list[Tensor] = []
        for depth, layer in enumerate(weights.layers):
            with streams.at(depth):
                if depth > 0:
                    outputs = streams.lift(outputs, depth)
                    outputs = locked_dropout(outputs, dropouts.hidden, training=training, window=window)
                before = None if state is None else (state[2 * depth], state[2 * depth + 1])
                outputs, (hidden, cell) = lstm(outputs, before, layer)
            after += [hidden, cell]
        end = tuple(after)
        streams.leave(tokens, end)
        return outputs, end

    def _forward_side_by_side(
        self, inputs: Tensor, state: State | None, layers: list[SharedWeights], window: int | None
    ) -> tuple[Tensor, State]:
        """The layers on threads of their own, to learn on a CPU."""
        time, batch, _ = inputs.shape
        sizes = [layer.hidden_weight.shape[1] for layer in layers]
        if state is None:
            state = tuple(inputs.new_zeros(1, batch, size) for size in sizes for _ in range(2))
        rate, training = self.config.dropouts.hidden, self.training
        masks = [
            locked_mask(inputs, (time, batch, size), rate, training=training, window=window) for size in sizes[:-1]
        ]
        return lstm_stack(inputs, state, layers, [None, *masks], window=window)

    def _streams(self, tokens: Tensor, weights: AwdLstmWeights) -> LayerStreams:
        """Side by side where one layer alone leaves the device idle, one after the other elsewhere."""
        if launches_once(tokens.shape[1], self.config.hidden_size, weights.dtype, tokens.device):
            return weights.streams
        weights.streams.join(part for layer in weights.layers if isinstance(layer, LstmWeights) for part in layer)
        return LayerStreams(1, tokens.device)

    def _forward_int8(self, tokens: Tensor, state: State | None, weights: Int8AwdLstmWeights) -> tuple[Tensor, State]:
        """The same without dropout and in int8; outputs are float32, the state is as `int8_lstm` has it."""
        scale: Tensor | None
        inputs, scale = self._quantised_embeddings(tokens)
        workspace = gates_workspace(tokens, weights.layers)
        after: list[Tensor] = []
        for depth, layer in enumerate(weights.layers):
            before = None if state is None else (state[2 * depth], state[2 * depth + 1])
            last = depth == len(weights.layers) - 1
            inputs, end = int8_lstm(inputs, scale, before, layer, exact=last, workspace=workspace)
            scale = None
            after += end
        return inputs, tuple(after)

    def _quantised_embeddings(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(time, batch) -> (time, batch, embedding_size) in int8 and a scale for each; some at a time, in the cache."""
        table = self.embedding.weight.detach()
        parts = [quantise_rows(functional.embedding(ids, table)) for ids in torch.split(tokens.flatten(), BLOCK_ROWS)]
        rows, scales = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return rows.view(*tokens.shape, -1), scales.view(tokens.shape)

    def layer_groups(self) -> list[LayerGroup]:
        """Embedding, then one group per LSTM layer."""
        groups = [LayerGroup("embedding", (self.embedding.weight,))]
        for depth, layer in enumerate(self.lstms):
            groups.append(LayerGroup(f"lstm_{depth}", tuple(layer.parameters()), stacked=4))
        return groups
