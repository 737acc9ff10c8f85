"""What several tests of models compare with."""

import pytest
import torch


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
