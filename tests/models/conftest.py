"""What several tests of models compare with."""

import pytest
import torch

from ulmfit.int8_rows import quantise_rows, restore_rows


@pytest.fixture(scope="session")
def lstm_by_equations():
    """(inputs, state, weights) -> what `lstm` gives: Hochreiter & Schmidhuber with forget gates, step after step."""

    def read(inputs, state, weights):
        hidden, cell = state[0][0], state[1][0]
        outputs = []
        for step in inputs:
            gates = step @ weights.input_weight.T + weights.input_bias + hidden @ weights.hidden_weight.T
            input_gate, forget_gate, candidate, output_gate = (gates + weights.hidden_bias).chunk(4, dim=1)
            cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
            hidden = output_gate.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs), (hidden.unsqueeze(0), cell.unsqueeze(0))

    return read


@pytest.fixture(scope="session")
def int8_lstm_by_equations():
    """(inputs, weights) -> outputs and cells at the end in float64.

    The weights go through int8 up to the peak, `together` with one scale for a row of both, and hidden vectors are
    rounded to 1/127 where they are multiplied.
    """

    def read(inputs, weights, *, together=False, peak=127):
        both = (weights.input_weight, weights.hidden_weight)
        parts = (torch.cat(both, 1),) if together else both
        restored = torch.cat([restore_rows(*quantise_rows(part, peak=peak)).double() for part in parts], 1)
        input_weight, hidden_weight = restored.split([weight.shape[1] for weight in both], 1)
        bias = (weights.input_bias + weights.hidden_bias).double()
        hidden = cell = torch.zeros(inputs.shape[1], hidden_weight.shape[1], dtype=torch.float64)
        outputs = []
        for step in inputs:
            rounded = (hidden * 127).round() / 127
            entry, forget, candidate, exit_ = (step @ input_weight.T + rounded @ hidden_weight.T + bias).chunk(4, 1)
            cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
            hidden = exit_.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs), cell

    return read
