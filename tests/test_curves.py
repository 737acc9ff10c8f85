"""The picture beside a run, and the note where it cannot be drawn."""

import sys

import pytest

from ulmfit.config import PretrainConfig
from ulmfit.curves import draw_perplexity
from ulmfit.pipeline import pretrain
from ulmfit.training.events import Note

RECORDS = [
    {"stage": f"pretrain {direction}", "epoch": epoch, "perplexity": 50 / epoch}
    for direction in ("forward", "backward")
    for epoch in (1, 2, 3)
]


def test_perplexity_is_drawn_as_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw_perplexity(RECORDS, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("there", [True, False])
def test_a_run_draws_its_curve_or_says_what_is_missing(tiny, tmp_path, monkeypatch, there):
    if there:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    events = []
    training = {**tiny.LANGUAGE_MODEL, "phases": [{"rate": 0.02}]}
    config = PretrainConfig().override(tiny.settings("pretrain", pretrain__training=training))
    pretrain([tiny.general], config=config, out=tmp_path / "base", report=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert (tmp_path / "base/curve.png").exists() == there
    assert any("pip install 'ulmfit[plots]'" in note for note in notes) != there
