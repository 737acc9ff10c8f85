"""`nn.LSTM` on `nn.LSTM`, and all that comes of a stack of layers, for tests of stacks of our own."""

import itertools

import torch
from torch import nn

from ulmfit.models.lstm_products import LstmWeights

TIME, BATCH, WINDOW = 33, 5, 8
NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def modules(sizes, dtype):
    torch.manual_seed(0)
    return nn.ModuleList(nn.LSTM(size, after) for size, after in itertools.pairwise(sizes)).to(dtype)


def weights_of(layer):
    return LstmWeights(*(getattr(layer, name) for name in NAMES))


def plainly(layers, inputs, state, masks):
    """The outputs and the state after, each layer above the first reading what its masks leave."""
    outputs, after = inputs, []
    for depth, layer in enumerate(layers):
        if depth > 0:
            mask = masks[depth - 1]
            outputs = outputs * (mask if len(mask) == 1 else mask.repeat_interleave(WINDOW, 0)[:TIME])
        outputs, end = layer(outputs, (state[2 * depth], state[2 * depth + 1]))
        after += end
    return outputs, after


def results(function, layers, dtype, given):
    """Outputs, state and the gradients of everything there is; `given` are inputs, state, masks and a probe."""
    inputs, state, masks, probe = given
    inputs, state = inputs.to(dtype).requires_grad_(), [tensor.to(dtype).requires_grad_() for tensor in state]
    outputs, after = function(layers, inputs, state, [mask.to(dtype) for mask in masks])
    loss = (outputs * probe.to(dtype)).sum() + sum(
        weight * tensor.sum() for weight, tensor in enumerate(after, 1) if tensor.requires_grad
    )
    leaves = [inputs, *state, *layers.parameters()]
    found = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])
    return [tensor.detach() for tensor in (outputs, *after, *found)]
