"""Tables against numbers worked out by hand and by scipy; figures and reports as files that others can read."""

import json
import statistics
from xml.etree import ElementTree

import pytest
from scipy import stats

from ulmfit.errors import DataError
from ulmfit.experiments.lines import append_line
from ulmfit.experiments.recipes import experiment_named
from ulmfit.experiments.report import write_report
from ulmfit.experiments.tables import paired_tests, tables_of

ERRORS = {"without": [0.10, 0.12, 0.17, 0.11], "with": [0.08, 0.09, 0.10]}


def line(experiment, row, seed, error, *, task="imdb", labels=None, **changed):
    measure = experiment_named(experiment).measure
    last = {"last_error": error + 0.01} if measure == "valid" else {}
    return {
        "experiment": experiment,
        "task": task,
        "row": row,
        "labels": labels,
        "seed": seed,
        "measure": measure,
        "error": error,
        **last,
        "epochs": [{"error": error + 0.02}, {"error": error}, {"error": error + 0.01}],
        "language_models": {"forward": {"epochs": [{"perplexity": 50.0}, {"perplexity": 40.0 + seed}]}},
        "hardware": {"device": "A fine processor"},
        **changed,
    }


def lines_of(experiment="pretraining", errors=ERRORS, **changed):
    return [
        line(experiment, row, seed, error, **changed)
        for row, row_s in errors.items()
        for seed, error in enumerate(row_s)
    ]


def test_means_deviations_counts_and_the_paper_s_numbers():
    (table,) = tables_of(lines_of())
    cells = {cell.row: cell for cell in table.cells}
    for row, errors in ERRORS.items():
        percent = [100 * error for error in errors]
        assert cells[row].mean == pytest.approx(sum(percent) / len(percent))
        assert cells[row].deviation == pytest.approx(statistics.stdev(percent))
        assert cells[row].n == len(errors)
        assert cells[row].last == pytest.approx(cells[row].mean + 1)
    assert (cells["without"].paper, cells["with"].paper) == (5.63, 5.00)
    assert cells["with"].perplexity == pytest.approx(41.0)


def test_differences_are_over_runs_of_the_same_seed():
    (table,) = tables_of(lines_of())
    difference = table.cells[0].difference
    assert difference.pairs == 3
    assert difference.mean == pytest.approx((2 + 3 + 7) / 3)
    assert difference.p_t == pytest.approx(stats.ttest_rel([10, 12, 17], [8, 9, 10]).pvalue)
    assert difference.p_wilcoxon == pytest.approx(stats.wilcoxon([2, 3, 7]).pvalue)
    assert table.cells[1].difference is None


def test_seeds_are_matched_whatever_the_order_of_lines_and_a_line_twice_counts_once():
    lines = lines_of()
    assert tables_of([*reversed(lines), *lines]) != []
    (table,), (turned,) = tables_of(lines), tables_of([*reversed(lines), *lines])
    for cell, other in zip(table.cells, turned.cells, strict=True):
        assert (cell.row, cell.n) == (other.row, other.n)
        assert cell.mean == pytest.approx(other.mean)
    assert turned.cells[0].difference.p_t == pytest.approx(table.cells[0].difference.p_t)


@pytest.mark.parametrize("gaps", [[], [1.0], [2.0, 2.0, 2.0], [0.0, 0.0]])
def test_where_a_test_has_nothing_to_say_it_says_nothing(gaps):
    assert paired_tests(gaps) == (None, None)


def test_one_run_has_no_deviation_and_no_p():
    (table,) = tables_of(lines_of(errors={"without": [0.2], "with": [0.1]}))
    assert [cell.deviation for cell in table.cells] == [None, None]
    assert (table.cells[0].difference.mean, table.cells[0].difference.p_t) == (pytest.approx(10), None)


def test_the_markdown_is_a_table_with_all_of_it():
    (table,) = tables_of(lines_of(), {"imdb": "IMDb"})
    text = table.as_markdown()
    rows = [[part.strip() for part in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")]
    p = stats.ttest_rel([10, 12, 17], [8, 9, 10]).pvalue
    assert text.startswith("## Table 4: pretraining: IMDb\n")
    assert rows[0] == [
        *("row", "validation error, %", "runs", "last epoch", "perplexity", "paper", "against with", "p (t, pairs)")
    ]
    assert rows[2] == ["without", "12.50 ± 3.11", "4", "13.50", "41.5", "5.63", "+4.00", f"{p:.3f} (3)"]
    assert rows[3] == ["with", "9.00 ± 1.00", "3", "10.00", "41.0", "5.00", "-", "-"]
    assert "A fine processor" in text


def test_columns_with_nothing_in_them_are_left_out():
    lines = lines_of("low-shot", {"tf-idf": [0.3, 0.2]}, labels=100, language_models={})
    (table,) = tables_of(lines)
    assert "| row | labels | test error, % | runs |" in table.as_markdown()
    assert "| tf-idf | 100 | 25.00 ± 7.07 | 2 |" in table.as_markdown()


def test_the_paper_s_numbers_stand_beside_all_labels_alone():
    lines = lines_of("results", {"both": [0.05]}) + lines_of("results", {"both": [0.15]}, labels=100)
    (table,) = tables_of(lines)
    assert [(cell.labels, cell.paper) for cell in table.cells] == [(100, None), (None, 4.6)]


def test_a_user_s_own_task_has_none_of_the_paper_s_numbers():
    (table,) = tables_of(lines_of(task="reviews"))
    assert [cell.paper for cell in table.cells] == [None, None]


# --- files ----------------------------------------------------------------------------------------------------------

FIGURES = {
    "pretraining": lines_of(),
    "classifier-tuning": lines_of("classifier-tuning", {"full": [0.1, 0.2], "freez + discr + stlr": [0.05, 0.06]}),
    "low-shot": [
        line("low-shot", row, seed, 0.3 / (1 + place + seed) + (0.001 if row == "supervised" else 0), labels=labels)
        for row in ("from scratch", "supervised", "semi-supervised", "tf-idf")
        for place, labels in enumerate((100, 1000, None))
        for seed in range(3)
    ],
    "forgetting": lines_of("forgetting", {"full": [0.2, 0.25], "ULMFiT": [0.1, 0.12]}),
    "multi-task": lines_of("multi-task", {"weight 0": [0.0], "weight 1": [0.1]}, labels=500)
    + lines_of("multi-task", {"weight 0": [0.1], "weight 1": [0.0]}),
}


@pytest.fixture
def folder(tmp_path):
    for lines in FIGURES.values():
        for each in lines:
            append_line(tmp_path, each)
    return tmp_path


def test_a_report_has_every_table_as_markdown_and_json(folder, monkeypatch):
    monkeypatch.setattr("ulmfit.experiments.report.can_draw", lambda: False)
    written = write_report(folder)
    text = (folder / "tables.md").read_text(encoding="utf-8")
    values = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
    assert sorted(table["experiment"] for table in values) == sorted(FIGURES)
    assert all(experiment_named(name).title in text for name in FIGURES)
    assert not written.drawn and "![" not in text
    pretraining = next(table for table in values if table["experiment"] == "pretraining")
    assert pretraining["cells"][0]["difference"]["pairs"] == 3
    forgetting = next(table for table in values if table["experiment"] == "forgetting")
    assert forgetting["curves"]["full"] == [pytest.approx([22, 20, 21]), pytest.approx([27, 25, 26])]


def test_figures_are_pictures_in_grey_with_every_row_s_name(folder):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    written = write_report(folder)
    assert written.drawn
    for name, lines in FIGURES.items():
        png, svg = (folder / "figures" / f"{name}-imdb{suffix}" for suffix in (".png", ".svg"))
        assert f"(figures/{name}-imdb.png)" in (folder / "tables.md").read_text(encoding="utf-8")
        pixels = imread(png)
        assert min(pixels.shape[:2]) > 200
        assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
        assert pixels[..., :3].min() < 0.1 < pixels[..., :3].max()
        texts = [node.text or "" for node in ElementTree.parse(svg).iter() if node.tag.endswith("text")]
        for row in {each["row"] for each in lines}:
            assert any(text == row or text.startswith(f"{row} (") for text in texts), (name, row, texts)


def test_names_at_the_ends_of_lines_do_not_overlap(folder):
    pytest.importorskip("matplotlib")
    write_report(folder)
    heights = []
    names = ("from scratch", "supervised", "semi-supervised", "tf-idf")
    for node in ElementTree.parse(folder / "figures" / "low-shot-imdb.svg").iter():
        if node.tag.endswith("text") and node.text in names:
            heights.append(float(node.get("y")))
    assert len(heights) == len(names)
    gaps = [after - before for before, after in zip(sorted(heights), sorted(heights)[1:], strict=False)]
    assert min(gaps) > 8


def test_the_same_results_give_the_same_figures(folder):
    pytest.importorskip("matplotlib")
    write_report(folder)
    before = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    write_report(folder)
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == before


def test_a_folder_without_results_is_named_with_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"results\.jsonl: no results there yet; run ulmfit experiment NAME"):
        write_report(tmp_path)
