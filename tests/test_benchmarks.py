"""What can go wrong in a benchmark without anybody noticing: the arithmetic, the turns, the file and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parent.parent
sys.path.append(str(PROJECT))  # the benchmarks are no part of the package

from benchmarks.gate import Gate, Released  # noqa: E402
from benchmarks.measure import Outcome, measure, ratio, spread  # noqa: E402
from benchmarks.results import entry, merged, put_between, read, tables, write  # noqa: E402
from benchmarks.sides import MODULES, REQUIREMENTS  # noqa: E402
from benchmarks.texts import draw_documents, draw_ids, draw_lengths, words  # noqa: E402
from benchmarks.works import Task, Work, cpu_works, gpu_works  # noqa: E402


def outcome(*seconds: float, **given: Any) -> Outcome:
    return Outcome({}, repeat=2, units=10.0, seconds=list(seconds), versions={"torch": "2"}, peak_mib=[5.0], **given)


def work(**given: Any) -> Work:
    tasks = (Task("ulmfit", "step", {}), Task("fastai", "step", {}))
    return Work("steps", "a step", "tokens", tasks, goal={"fastai": (3.0, 6.0)}, **given)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_a_rate_is_the_units_of_all_repeats_over_their_seconds() -> None:
    assert outcome(4.0, 5.0).rates() == [5.0, 4.0]


def test_a_result_names_paths_as_the_project_s_own_and_no_machine_s() -> None:
    ours = Outcome({"folder": str(PROJECT / "build" / "data"), "batch": 4}, repeat=2, units=1.0, seconds=[1.0])
    kept = entry(work(), {"ulmfit": ours}, run={})["sides"]["ulmfit"]["settings"]
    assert kept == {"folder": "build/data", "batch": 4}


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 9.0, 1.0, 4.0]) == {"median": 3.5, "low": 1.0, "high": 9.0}


def test_the_ratio_is_that_of_the_medians_and_its_extremes_are_those_of_the_rounds() -> None:
    assert ratio([10.0, 12.0, 20.0], [2.0, 6.0, 5.0]) == {"median": 12 / 5, "low": 2.0, "high": 5.0}


# --- taking turns ---------------------------------------------------------------------------------------------------


def test_a_gate_lets_the_warm_up_pass_then_times_what_is_asked_for() -> None:
    answers: list[dict[str, Any]] = []
    done: list[int] = []
    requests = iter([{"do": "run", "repeat": 2}, {"do": "run", "repeat": 3}, {"do": "release"}])
    gate = Gate(requests, answers.append, warmup=4)

    with pytest.raises(Released):
        for number in gate.each(range(100)):
            done.append(number)
            gate.facts["units"] = 7

    assert done == list(range(4 + 2 + 3))
    ready, *runs = answers
    assert ready["ready"] and ready["facts"] == {"units": 7}
    assert len(runs) == 2 and all(run["seconds"] >= 0 and run["peak_mib"] > 0 for run in runs)


class Recorded:
    """A side that answers at once and notes what it was asked."""

    def __init__(self, name: str, log: list[str], *, fails_at: int | None = None) -> None:
        self.name, self.log, self.fails_at, self.runs = name, log, fails_at, 0
        self.versions = {"torch": "2"}

    def prepare(self, work: str, settings: dict[str, Any], *, warmup: int) -> dict[str, Any]:
        self.log.append(f"{self.name} prepare {settings.get('batch', '')}".strip())
        self.batch = settings.get("batch", 10)
        return {"ready": True, "facts": {"units": self.batch}}

    def run(self, repeat: int) -> dict[str, Any]:
        self.log.append(f"{self.name} run")
        self.runs += 1
        if self.batch == self.fails_at:
            return {"error": "OutOfMemoryError: too much"}
        return {"seconds": 1.0, "peak_mib": 1.0}

    def release(self) -> None:
        self.log.append(f"{self.name} release")


def test_sides_alternate_and_resident_work_is_prepared_once(capsys: pytest.CaptureFixture[str]) -> None:
    log: list[str] = []
    sides: Any = {name: Recorded(name, log) for name in ("ulmfit", "fastai")}
    outcomes = measure(work(), sides, rounds=3)
    assert [line for line in log if line.endswith("run")] == ["ulmfit run", "fastai run"] * 3
    assert log.count("ulmfit prepare") == log.count("ulmfit release") == 1
    assert [len(found.seconds) for found in outcomes.values()] == [3, 3]


def test_work_that_is_not_resident_has_the_machine_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    log: list[str] = []
    sides: Any = {name: Recorded(name, log) for name in ("ulmfit", "fastai")}
    measure(work(resident=False), sides, rounds=2)
    turn = [f"{name} {what}" for name in ("ulmfit", "fastai") for what in ("prepare", "run", "release")]
    assert log == turn * 2


def test_each_side_goes_into_the_rounds_with_its_best_batch_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tuple(Task(side, "step", {}, sweep={"batch": (8, 16, 32)}) for side in ("ulmfit", "fastai"))
    sides: Any = {"ulmfit": Recorded("ulmfit", []), "fastai": Recorded("fastai", [], fails_at=32)}
    outcomes = measure(Work("steps", "a step", "tokens", tasks), sides, rounds=2)
    assert outcomes["ulmfit"].settings["batch"] == 32
    assert outcomes["fastai"].settings["batch"] == 16
    assert outcomes["fastai"].sweep == {"8": 8.0, "16": 16.0, "32": "OutOfMemoryError: too much"}
    assert outcomes["fastai"].rates() == [16.0, 16.0]


def test_a_side_that_fails_is_recorded_and_the_other_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    sides: Any = {"ulmfit": Recorded("ulmfit", []), "fastai": Recorded("fastai", [], fails_at=10)}
    outcomes = measure(work(), sides, rounds=3)
    assert sides["fastai"].runs == 1 and sides["ulmfit"].runs == 3
    found = entry(work(), outcomes, run={})
    assert found["ratio"] == {} and found["sides"]["fastai"]["error"].startswith("OutOfMemoryError")
    assert "failed: OutOfMemoryError: too much" in tables([found])


def test_a_program_that_fails_says_so_and_serves_the_next_work() -> None:
    program = (
        "from benchmarks.gate import serve\n"
        "def bad(gate, settings): raise ValueError('no such\\nthing')\n"
        "def short(gate, settings): gate.step()\n"
        "def good(gate, settings):\n"
        "    print('chatter')\n"
        "    gate.forever(lambda: None)\n"
        "serve({'bad': bad, 'short': short, 'good': good}, lambda: {'python': '3'})"
    )
    asked = [
        {"do": "versions"},
        {"do": "prepare", "work": "bad", "settings": {}, "warmup": 1},
        {"do": "prepare", "work": "short", "settings": {}, "warmup": 1},
        {"do": "prepare", "work": "good", "settings": {}, "warmup": 1},
        {"do": "run", "repeat": 2},
        {"do": "release"},
    ]
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="".join(json.dumps(line) + "\n" for line in asked),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0] == {"python": "3"}
    assert answers[1] == {"error": "ValueError: no such"}
    assert "came to an end" in answers[3]["error"]
    assert answers[2] == answers[4] == answers[7] == {"released": True}
    assert answers[5]["ready"] and answers[6]["seconds"] >= 0


# --- the file and the tables ----------------------------------------------------------------------------------------


@pytest.fixture
def found() -> dict[str, Any]:
    outcomes = {"ulmfit": outcome(1.0, 2.0, 4.0), "fastai": outcome(8.0, 8.0, 8.0, sweep={"64": 2.5})}
    outcomes["fastai"].settings = {"batch": 64}
    return entry(work(), outcomes, run={"date": "2026-01-01", "command": "make bench", "hardware": {}})


def test_an_entry_keeps_every_sample_and_what_they_come_to(found: dict[str, Any]) -> None:
    ours, theirs = found["sides"]["ulmfit"], found["sides"]["fastai"]
    assert ours["seconds"] == [1.0, 2.0, 4.0] and ours["rate"] == {"median": 10.0, "low": 5.0, "high": 20.0}
    assert theirs["rate"]["median"] == 2.5 and theirs["versions"] == {"torch": "2"}
    assert found["ratio"] == {"fastai": {"median": 4.0, "low": 2.0, "high": 8.0}}
    assert found["goal"] == {"fastai": {"least": 3.0, "aim": 6.0}}


def test_results_come_back_as_written_and_a_new_run_replaces_its_own_work_alone(
    found: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "cpu.json"
    other, newer = {**found, "name": "other"}, {**found, "title": "again"}
    assert read(path) == []
    write(path, merged(merged([], found), other))
    write(path, merged(read(path), newer))
    assert read(path) == [newer, other]


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"format": "ulmfit-benchmarks", "version": 0, "entries": []}), encoding="utf-8")
    with pytest.raises(SystemExit, match="move it away"):
        read(path)


def test_a_row_tells_rates_batch_ratio_goal_and_memory(found: dict[str, Any]) -> None:
    row = tables([found]).splitlines()[2]
    assert row == (
        "| a step | 10 tokens/s (5 to 20) | fastai: 2.5 tokens/s (2.5 to 2.5), batch 64 | 4 x | 3 x, aim 6 x "
        "| 5 MiB; 5 MiB |"
    )


def test_a_goal_that_was_missed_stands_out(found: dict[str, Any]) -> None:
    assert "**4 x, missed**" in tables([{**found, "goal": {"fastai": {"least": 4.1, "aim": 6.0}}}])


def test_times_are_shown_as_seconds_a_unit_the_quick_end_first(found: dict[str, Any]) -> None:
    assert "100 ms (50 ms to 200 ms)" in tables([{**found, "show": "time"}])


def test_memory_has_a_table_of_its_own_with_the_peak_after_each_run(found: dict[str, Any]) -> None:
    found = {**found, "show": "memory"}
    found["sides"]["ulmfit"]["peak_mib"] = [1200.4, 1201.0]
    assert tables([found]).splitlines()[-1] == "| a step | 1,200, 1,201 |"


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    page = "before\n<!-- cpu table -->\nold\n<!-- end cpu table -->\nafter\n"
    assert put_between(page, "cpu table", "new") == (
        "before\n<!-- cpu table -->\n\nnew\n\n<!-- end cpu table -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="no <!-- gpu table -->"):
        put_between(page, "gpu table", "new")


def test_the_page_has_a_place_for_both_tables() -> None:
    page = (PROJECT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for marker in ("cpu table", "gpu table"):
        assert put_between(page, marker, "new") != page


# --- the work -------------------------------------------------------------------------------------------------------


def every_work() -> Iterator[Work]:
    for tiny in (False, True):
        yield from cpu_works("data", tiny=tiny)
        yield from gpu_works(device="cuda", tiny=tiny)


def test_every_work_has_our_side_and_peers_that_can_be_installed() -> None:
    for known in every_work():
        sides = [task.side for task in known.tasks]
        assert sides[0] == "ulmfit" and len(set(sides)) == len(sides)
        assert set(sides) <= MODULES.keys() and set(sides) <= {"ulmfit", *REQUIREMENTS}
        assert set(known.goal) <= set(sides)


def test_sides_of_a_training_step_are_given_the_same_sizes() -> None:
    for known in every_work():
        if known.tasks[0].work in ("language_model_step", "classifier_step", "predict_ids") and len(known.tasks) > 1:
            ours, theirs = known.tasks
            assert ours.settings == theirs.settings and ours.work == theirs.work
            assert ours.warmup == theirs.warmup
            if known.tasks[0].work != "predict_ids":
                assert ours.sweep == theirs.sweep


def test_a_work_beside_some_peers_has_our_side_and_theirs_alone() -> None:
    (many,) = (work for work in cpu_works("", tiny=True) if work.name == "cpu-predict-many")
    assert [task.side for task in many.beside(["sentence-transformers"]).tasks] == ["ulmfit", "sentence-transformers"]
    assert many.beside({task.side for task in many.tasks}) == many


def test_names_of_works_are_their_own() -> None:
    for works in (cpu_works("data", tiny=False), gpu_works(device="cuda", tiny=False)):
        names = [known.name for known in works]
        assert len(set(names)) == len(names)


def test_made_up_text_is_the_same_each_time_and_repeats_no_word_in_a_row() -> None:
    ids = draw_ids(20_000, vocab_size=500, seed=1)
    assert np.array_equal(ids, draw_ids(20_000, vocab_size=500, seed=1))
    assert (ids[1:] != ids[:-1]).all() and ids.min() >= 10 and ids.max() < 500
    lengths = draw_lengths(1000, seed=2)
    assert 150 < np.median(lengths) < 250 and lengths.max() <= 1400
    assert [len(document) for document in draw_documents(lengths, vocab_size=500, seed=3)] == lengths.tolist()


def test_our_tokenizer_leaves_made_up_words_whole() -> None:
    from ulmfit.text.tokenizer import Tokenizer
    from ulmfit.text.words import SPECIALS

    made_up = words(30_000)
    assert len(set(made_up)) == len(made_up) == 30_000 - 10
    tokenizer = Tokenizer((*SPECIALS, "x", "y", "z", *made_up))
    assert tokenizer.encode(" ".join(made_up)) == [tokenizer.begin_id, *range(10, 30_000)]
