import csv
import datetime
import decimal
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ulmfit.errors import OutputError
from ulmfit.text.sources import read_tables
from ulmfit.text.tables import TableWriter

SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.zst", ".tsv.bz2"]

nasty_text = st.text(
    st.one_of(
        st.sampled_from("\",;\t\n\r\\' |{}[]:\u2028\u0085\ufeff"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    )
)


def write(path: Path, *tables: dict[str, Any]) -> Path:
    with TableWriter(path) as writer:
        for table in tables:
            writer.write(pa.record_batch(table))
    return path


def read(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pa.Table.from_batches(read_tables(path)).to_pydict()
    return columns


def names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def problem(path: Path, *tables: dict[str, Any]) -> str:
    with pytest.raises(OutputError) as caught:
        write(path, *tables)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(rows=st.lists(st.tuples(nasty_text, nasty_text), min_size=1, max_size=6))
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str, rows: list[tuple[str, str]]) -> None:
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    assert read(write(tmp_path / f"a{suffix}", columns, columns)) == {name: row * 2 for name, row in columns.items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_lone_column_of_empty_texts_keeps_its_rows(tmp_path: Path, suffix: str) -> None:
    assert read(write(tmp_path / f"a{suffix}", {"text": ["", "a", ""]})) == {"text": ["", "a", ""]}


def test_csv_and_tsv_are_what_the_csv_module_reads(tmp_path: Path) -> None:
    columns = {"text": ['a "b"\n,\tc', "é"], "n": [1, None], "p": pa.array([0.1, 0.25], pa.float32())}
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with write(tmp_path / name, columns).open(encoding="utf-8", newline="") as file:
            assert list(csv.reader(file, delimiter=delimiter)) == [
                ["text", "n", "p"],
                ['a "b"\n,\tc', "1", "0.1"],
                ["é", "", "0.25"],
            ]


def test_jsonl_is_what_the_json_module_reads_and_keeps_unicode(tmp_path: Path) -> None:
    columns = {
        "text": ["é 😀\u2028", "b"],
        "n": [1, None],
        "p": pa.array([0.1, float("nan")], pa.float32()),
        "d": [1e300, float("inf")],
        "flag": [True, False],
        "tags": [["a", "b"], None],
        "meta": [{"x": [float("nan")]}, None],
        "kind": pa.array(["u", "v"]).dictionary_encode(),
        "raw": [b"\xff\x00", None],
        "day": [datetime.date(2020, 1, 2), None],
        "price": [decimal.Decimal("1.50"), None],
    }
    path = write(tmp_path / "a.jsonl", columns)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert "é 😀\u2028" in lines[0]
    assert [json.loads(line) for line in lines[:-1]] == [
        {
            **{"text": "é 😀\u2028", "n": 1, "p": 0.1, "d": 1e300, "flag": True, "tags": ["a", "b"]},
            **{"meta": {"x": [None]}, "kind": "u", "raw": "/wA=", "day": "2020-01-02", "price": "1.50"},
        },
        {
            **{"text": "b", "n": None, "p": None, "d": None, "flag": False, "tags": None},
            **{"meta": None, "kind": "v", "raw": None, "day": None, "price": None},
        },
    ]


def test_values_of_every_type_can_be_written_as_csv(tmp_path: Path) -> None:
    columns = {
        "text": pa.array(["a"], pa.string_view()),
        "tags": [["a", "é"]],
        "meta": [{"x": 1}],
        "raw": [b"\xff\x00"],
        "kind": pa.array(["u"]).dictionary_encode(),
        "day": [datetime.date(2020, 1, 2)],
        "price": [decimal.Decimal("1.50")],
        "none": pa.nulls(1),
    }
    with write(tmp_path / "a.csv", columns).open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1] == ["a", '["a", "é"]', '{"x": 1}', "/wA=", "u", "2020-01-02", "1.50", ""]


def test_a_jsonl_file_passes_through_with_its_nested_and_mixed_values(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "meta": {"b": [1, {"c": None}]}, "mixed": 1, "big": 2**70},
        {"text": "b", "meta": None, "mixed": "1", "big": None},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with TableWriter(tmp_path / "out.jsonl") as writer:
        for batch in read_tables(source):
            writer.write(batch.append_column("label", pa.array(["x"] * len(batch))))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [{**row, "label": "x"} for row in rows]


def test_parquet_keeps_types_and_joins_small_batches(tmp_path: Path) -> None:
    batch = pa.record_batch({"text": ["a"] * 100, "tags": [["x"]] * 100, "p": pa.array([0.5] * 100, pa.float32())})
    path = tmp_path / "a.parquet"
    with TableWriter(path) as writer:
        for _ in range(700):
            writer.write(batch)
    assert pq.read_table(path).equals(pa.Table.from_batches([batch] * 700))
    assert pq.ParquetFile(path).num_row_groups == 2


def test_a_table_without_batches_is_a_file_without_rows(tmp_path: Path) -> None:
    assert write(tmp_path / "a.csv").read_bytes() == write(tmp_path / "a.jsonl").read_bytes() == b""
    assert pq.read_table(write(tmp_path / "a.parquet")).num_rows == 0


# --- standard output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["-", None, Path("-")])
def test_standard_output_is_the_stream_given_and_jsonl_unless_told(path: Any) -> None:
    stream = io.StringIO()
    with TableWriter(path, stream=stream) as writer:
        writer.write(pa.record_batch({"text": ["é\n"], "label": ["a"]}))
        assert stream.getvalue() == '{"text": "é\\n", "label": "a"}\n'
    assert not stream.closed
    stream = io.StringIO()
    with TableWriter(path, stream=stream, format="tsv") as writer:
        writer.write(pa.record_batch({"text": ["é" * 9999], "label": ["a"]}))
    assert stream.getvalue() == f'"text"\t"label"\n"{"é" * 9999}"\t"a"\n'


def test_parquet_does_not_go_to_standard_output() -> None:
    with pytest.raises(OutputError, match="parquet is not text"):
        TableWriter("-", stream=io.StringIO(), format="parquet")


def test_a_closed_pipe_and_a_narrow_encoding_are_explained() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    pipe = os.fdopen(writing, "w")
    with (
        pytest.raises(OutputError, match="standard output: cannot be written"),
        TableWriter("-", stream=pipe) as writer,
    ):
        writer.write(pa.record_batch({"text": ["a"]}))
    with pytest.raises(BrokenPipeError):
        pipe.close()
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.raises(OutputError, match="PYTHONIOENCODING=utf-8"), TableWriter("-", stream=narrow) as writer:
        writer.write(pa.record_batch({"text": ["é"]}))


# --- all or nothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_appears_only_when_it_is_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with TableWriter(path) as writer:
        writer.write(pa.record_batch({"text": ["a"]}))
        assert not path.exists()
        assert [name[0] for name in names_in(tmp_path)] == ["."]
    assert names_in(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_earlier_file_stays_alone(
    tmp_path: Path, suffix: str, stop: type[BaseException]
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("earlier")
    with pytest.raises(stop), TableWriter(path) as writer:
        writer.write(pa.record_batch({"text": ["a"]}))
        raise stop
    assert path.read_text() == "earlier"
    assert names_in(tmp_path) == [path.name]


def test_a_file_can_be_read_while_it_is_rewritten(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", {"text": [str(number) for number in range(9999)]})
    with TableWriter(path) as writer:
        for batch in read_tables(path):
            writer.write(batch.append_column("label", batch.column("text")))
    assert read(path)["label"] == [str(number) for number in range(9999)]


def test_through_a_link_the_file_is_replaced_and_the_mode_is_that_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "a.csv")
    write(tmp_path / "link.csv", {"text": ["a"]})
    assert (tmp_path / "link.csv").is_symlink()
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "real" / "a.csv").stat().st_mode == plain.stat().st_mode


# --- what is wrong, and the way out ---------------------------------------------------------------------------------


def test_an_unknown_suffix_lists_those_that_can_be_written(tmp_path: Path) -> None:
    for name in ("a.txt", "a.xlsx", "a"):
        assert "expected .csv, .tsv, .jsonl, .ndjson, .json, .parquet" in problem(tmp_path / name)


def test_a_place_that_cannot_be_written_is_named_before_the_first_row(tmp_path: Path) -> None:
    assert "is a folder" in problem(tmp_path.joinpath("a.csv").mkdir() or tmp_path / "a.csv")
    assert f"there is no folder {tmp_path / 'none'}. Make it first." in problem(tmp_path / "none" / "a.csv")
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written (Permission denied)" in problem(tmp_path / "b.csv")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_named_and_leaves_nothing_behind(
    full_disk: Callable[[int], AbstractContextManager[None]], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("earlier")
    noise = [os.urandom(500).hex() for _ in range(2000)]
    with full_disk(100_000):
        assert f"{path}: cannot be written (File too large)" in problem(path, {"text": noise}, {"text": noise})
    assert path.read_text() == "earlier"
    assert names_in(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_of_other_columns_do_not_share_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    message = problem(path, {"text": ["a"], "n": [1]}, {"text": ["b"], "m": [1]})
    assert "rows with columns text, m follow rows with text, n" in message
    assert "a column changes its type" in problem(path, {"text": ["a"], "n": [1]}, {"text": ["b"], "n": ["x"]})
    write(path, {"text": ["a"], "n": [1]}, {"n": [2], "text": ["b"]})
    assert {name: [str(value) for value in column] for name, column in read(path).items()} == {
        "text": ["a", "b"],
        "n": ["1", "2"],
    }


def test_jsonl_rows_may_have_different_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": ["a"], "n": [1]}, {"text": ["b"], "m": ["x"]})
    assert path.read_text() == '{"text": "a", "n": 1}\n{"text": "b", "m": "x"}\n'


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["label", "label"])
    for suffix in SUFFIXES:
        with pytest.raises(OutputError, match="two columns would be named 'label'"):  # noqa: SIM117
            with TableWriter(tmp_path / f"a{suffix}") as writer:
                writer.write(batch)
    assert not names_in(tmp_path)
