"""The classifier: documents of any length read in windows that carry state, concat pooling, and a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit.config import ClassifierConfig, HeadConfig
from ulmfit.models.encoder import Encoder, LayerGroup, State, build_encoder, detach, select_rows
from ulmfit.models.pool_kernel import pool_window, pools_in_one_pass
from ulmfit.models.softmax_loss import linear_cross_entropy

BLOCK_STEPS, BLOCK_TOKENS = {"cuda": 210, "cpu": 350}, {"cuda": 2**17, "cpu": 2**13}
"""steps that are read at once, and tokens, if they are whole windows: a GPU's host launches less, and the layers of a
stack on a CPU wait less for each other"""
INT8_BLOCK_STEPS = 64
"""on a GPU, where a launch reads them through all layers, and shorter blocks have less padding"""


class ConcatPool:
    """Running [h_T, maximum, mean] over the real tokens of each document (ULMFiT, section 3.3).

    Holds three vectors a document, whatever its length. `add` takes window after window; rows must be sorted by
    length, longest first, so that the documents still running are the first rows.
    """

    def __init__(self, lengths: Tensor, *, size: int) -> None:
        self.lengths = lengths.float()
        shape = (len(lengths), size)
        self.last = torch.zeros(shape, device=lengths.device)
        self.maximum = torch.full(shape, -math.inf, device=lengths.device)
        self.sum = torch.zeros(shape, device=lengths.device)

    def add(self, outputs: Tensor, remaining: Tensor | None) -> None:
        """`outputs` (time, rows, size) of the first `rows` documents; `remaining` (rows,) tokens each has from here.

        None says that all of these documents go on after the window.
        """
        time, rows, _ = outputs.shape
        if pools_in_one_pass(outputs) and not self.sum.requires_grad:
            pool_window(outputs, remaining, self.maximum, self.sum, None if remaining is None else self.last)
            return
        outputs = outputs.float()
        if remaining is None:
            maximum, total = outputs.amax(0), outputs.sum(0)
        else:
            real = torch.arange(time, device=outputs.device).unsqueeze(1) < remaining
            maximum = outputs.masked_fill(~real.unsqueeze(2), -math.inf).amax(0)
            total = (outputs * real.unsqueeze(2)).sum(0)
            at_end = remaining.clamp(max=time) - 1
            self.last = _first_rows(outputs[at_end, torch.arange(rows, device=outputs.device)], self.last)
        self.maximum = _first_rows(torch.maximum(_first(self.maximum, rows), maximum), self.maximum)
        self.sum = _first_rows(_first(self.sum, rows) + total, self.sum)

    def restart(self, rows: list[int], lengths: Tensor) -> None:
        """Let other documents of these lengths begin in some rows."""
        self.lengths[rows] = lengths.float()
        self.maximum[rows] = -math.inf
        self.sum[rows] = 0

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""
        self.lengths, self.last, self.maximum, self.sum = (
            tensor[rows] for tensor in (self.lengths, self.last, self.maximum, self.sum)
        )

    def result(self) -> Tensor:
        """(documents, 3 * size) in float32."""
        return torch.cat([self.last, self.maximum, self.sum / self.lengths.unsqueeze(1)], dim=1)


def _first(whole: Tensor, rows: int) -> Tensor:
    """The first rows; all of them without a slice, whose backward pass would write zeros and a copy."""
    return whole if rows == len(whole) else whole[:rows]


def _first_rows(rows: Tensor, whole: Tensor) -> Tensor:
    """`whole` with other first rows."""
    return rows if len(rows) == len(whole) else torch.cat([rows, whole[len(rows) :]])


@dataclass(frozen=True, slots=True)
class Encoded:
    """What reading a batch of documents gives."""

    pooled: Tensor
    """(batch, 3 * output_size), float32, in the order the documents came"""
    language_model_loss: Tensor
    """summed cross entropy of the next tokens read with gradient (0 where it was not asked for)"""
    predicted_tokens: int


def encode_documents(
    encoder: Encoder,
    tokens: Tensor,
    lengths: Tensor,
    *,
    window: int,
    horizon: int,
    dtype: torch.dtype = torch.float32,
    weights: Any = None,
    decoder_bias: Tensor | None = None,
) -> Encoded:
    """Read documents in windows that carry state and pool all of their outputs: BPT3C (ULMFiT, section 3.3).

    Shapes: tokens (time, batch), padded on the right; lengths (batch,), at least 1 each, on the CPU, so that no
    window waits for the device. Gradients flow through the windows that hold a document's last `horizon` tokens,
    counted for each document by itself; earlier windows are pooled as constants. A document's result does not
    depend on the others in its batch. `weights` are what `encoder.prepare` gave, made here in `dtype` where
    they are not given. With `decoder_bias`, the loss of predicting each next token with the tied decoder is summed over
    the windows with gradient: the auxiliary loss of multi-task learning. No documents give no rows.
    """
    if not len(lengths):
        # Read though there is nothing to read: the table's gradient must be sparse here where it is for others.
        nothing = encoder.embedding(tokens).sum()
        return Encoded(nothing + nothing.new_zeros(0, 3 * encoder.output_size), torch.zeros_like(nothing), 0)
    order = torch.argsort(lengths, descending=True, stable=True)
    sizes = lengths[order]
    device = tokens.device
    sorted_already = torch.equal(order, torch.arange(len(order)))
    if not sorted_already:
        tokens = tokens[:, order.to(device)]
    first_with_gradient = (sizes - horizon).clamp(min=0) // window
    edges = {window * first for first in first_with_gradient.tolist()}
    on_device = sizes.to(device, non_blocking=True)
    weights = weights or encoder.prepare(dtype)
    own = torch.bfloat16 if dtype == torch.int8 else dtype
    decoder = None if decoder_bias is None else (encoder.embedding.weight.to(own), decoder_bias.to(own))
    pool = ConcatPool(on_device, size=encoder.output_size)
    state: State | None = None
    auxiliary, predicted = torch.zeros((), device=device), 0
    predicts = dtype == torch.int8 and not torch.is_grad_enabled()
    most = INT8_BLOCK_STEPS if predicts else BLOCK_STEPS.get(device.type, 1)
    for start, end, rows in _blocks(sizes, window, most, edges=edges, device=device):
        constant = int((window * first_with_gradient[:rows] > start).sum())
        if state is not None and state[0].shape[1] != rows:
            state = select_rows(state, slice(rows))
        with torch.set_grad_enabled(torch.is_grad_enabled() and constant < rows):
            outputs, state = encoder(tokens[start:end, :rows], state, weights, window=window)
        if 0 < constant < rows:
            outputs = _cut_rows(outputs, constant)
            state = tuple(_cut_rows(tensor, constant) for tensor in state)
        elif constant:
            state = detach(state)
        all_go_on = int(sizes[rows - 1]) > end
        pool.add(outputs, None if all_go_on else on_device[:rows] - start)
        if decoder is not None and constant < rows:
            targets, count = _next_tokens(tokens, sizes, start=start, end=end, rows=rows, skip=constant)
            hidden = outputs[: len(targets), constant:].flatten(0, 1)
            auxiliary = auxiliary + linear_cross_entropy(hidden, *decoder, targets.flatten(), drawn=dtype == torch.int8)
            predicted += count
    pooled = pool.result()
    return Encoded(pooled if sorted_already else pooled[torch.argsort(order).to(device)], auxiliary, predicted)


def _blocks(
    sizes: Tensor, window: int, most: int, *, edges: Collection[int], device: torch.device
) -> Iterator[tuple[int, int, int]]:
    """Start and end of the windows and the documents that reach there, `sizes` (batch,) being sorted.

    Some windows go together, of `most` steps if they are whole, but none that an edge parts. On a CPU, where padding is
    work, nor do they where a document ends but in the last of them.
    """
    tokens = BLOCK_TOKENS.get(device.type, 1)
    ends = set() if device.type == "cuda" else {window * -(-int(size) // window) for size in sizes}
    edges = ends.union(edges)
    start, time = 0, int(sizes[0])
    while start < time:
        rows = int((sizes > start).sum())
        together = max(1, min(most, tokens // rows) // window)
        end = min([time, start + together * window, *(edge for edge in edges if edge > start)])
        yield start, end, rows
        start = end


def _cut_rows(tensor: Tensor, count: int) -> Tensor:
    """The same values, the first `count` rows of the second dimension without their history."""
    return torch.cat([tensor[:, :count].detach(), tensor[:, count:]], dim=1)


def _next_tokens(tokens: Tensor, sizes: Tensor, *, start: int, end: int, rows: int, skip: int) -> tuple[Tensor, int]:
    """Targets (time, rows - skip) of some windows, -100 past each document's end, and how many there are."""
    targets = tokens[start + 1 : end + 1, skip:rows]
    left = (sizes[skip:rows] - 1 - start).clamp(min=0, max=len(targets))
    real = torch.arange(len(targets), device=tokens.device).unsqueeze(1) < left.to(tokens.device)
    return targets.where(real, -100), int(left.sum())


class Head(nn.Module):
    """Two blocks of BatchNorm, dropout and a linear layer, a ReLU between: (batch, inputs) -> (batch, classes)."""

    def __init__(self, inputs: int, config: HeadConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(inputs),
            nn.Dropout(config.input_dropout),
            nn.Linear(inputs, config.hidden_size),
            nn.ReLU(),
            nn.BatchNorm1d(config.hidden_size),
            nn.Dropout(config.hidden_dropout),
            nn.Linear(config.hidden_size, config.classes),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits, one a class."""
        logits: Tensor = self.layers(pooled)
        return logits


@dataclass(frozen=True, slots=True)
class Classified:
    """Logits (batch, classes) in float32, with the auxiliary language model loss per predicted token."""

    logits: Tensor
    language_model_loss: Tensor
    predicted_tokens: int


class Classifier(nn.Module):
    """Encoder, concat pooling and head, with the tied decoder's bias kept for multi-task learning."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder = build_encoder(config.encoder, vocab_size=config.vocab_size)
        self.head = Head(3 * self.encoder.output_size, config.head)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        with_language_model: bool = False,
        pooled: Tensor | None = None,
        gather: Callable[[Tensor], Tensor] = lambda pooled: pooled,
    ) -> Classified:
        """Read tokens (time, batch), padded on the right, lengths (batch,) on the CPU.

        Where these are a share of a batch, `gather` makes the whole batch's pooled rows of the share's: the head
        classifies all of them, so that its BatchNorm sees what it would see in one process. Where `pooled` says what
        reading these documents gives, none is read.
        """
        if pooled is not None:
            return Classified(self.head(gather(pooled)), pooled.new_zeros(()), 0)
        encoded = encode_documents(
            self.encoder,
            tokens,
            lengths,
            window=self.config.window,
            horizon=self.config.horizon,
            dtype=dtype,
            decoder_bias=self.decoder_bias if with_language_model else None,
        )
        predicted = encoded.predicted_tokens
        logits = self.head(gather(encoded.pooled))
        return Classified(logits, encoded.language_model_loss / max(1, predicted), predicted)

    def layer_groups(self) -> list[LayerGroup]:
        """The encoder's groups from the embedding up, then the head."""
        embedding, *layers = self.encoder.layer_groups()
        first = LayerGroup(embedding.name, (*embedding.parameters, self.decoder_bias))
        return [first, *layers, LayerGroup("head", tuple(self.head.parameters()))]

    def load_language_model(self, tensors: dict[str, Any]) -> None:
        """Take the encoder and the decoder's bias from a language model's state dict; the head stays fresh."""
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("head.")}
        self.load_state_dict({**tensors, **own})
