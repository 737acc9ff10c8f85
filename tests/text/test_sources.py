import bz2
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ulmfit.errors import DataError
from ulmfit.text.formats import JSON_TEXT
from ulmfit.text.sources import Record, read_records, read_tables, source_files

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / os.environ.get("ULMFIT_DATA", "../shared/data")

# Any text that a UTF-8 file can hold, with the characters that break careless readers made likely.
nasty_text = st.text(
    st.one_of(
        st.sampled_from("\",;\t\n\r\\' |{}[]:\u2028\u0085\ufeff"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    )
)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def write_csv(path: Path, header: list[str], rows: list[list[str]], **dialect: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, **dialect)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: list[Any], **options: Any) -> Path:
    path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def pairs(*paths: Path, **columns: str) -> list[tuple[str, str | None]]:
    return [(record.text, record.label) for record in read_records(paths, **columns)]


def texts(*paths: Path) -> list[str]:
    return [record.text for record in read_records(paths)]


def problem(read: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    return message


def problem_of(*paths: Path, **columns: str) -> str:
    return problem(lambda: pairs(*paths, **columns))


# --- formats against their reference readers ------------------------------------------------------------------------


@same_folder
@given(rows=st.lists(st.tuples(nasty_text, nasty_text), min_size=1, max_size=8))
def test_csv_texts_equal_those_of_the_csv_module(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = write_csv(tmp_path / "a.csv", ["text", "other"], [list(row) for row in rows])
    with path.open(encoding="utf-8", newline="") as file:
        assert texts(path) == [row["text"] for row in csv.DictReader(file)] == [text for text, _ in rows]


@same_folder
@given(rows=st.lists(nasty_text, min_size=1, max_size=8))
def test_one_column_csv_keeps_every_text(tmp_path: Path, rows: list[str]) -> None:
    assert texts(write_csv(tmp_path / "a.csv", ["text"], [[row] for row in rows])) == rows


@same_folder
@given(rows=st.lists(st.tuples(nasty_text, nasty_text), min_size=1, max_size=8))
def test_tsv_texts_equal_those_of_the_csv_module(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = write_csv(tmp_path / "a.tsv", ["text", "other"], [list(row) for row in rows], delimiter="\t")
    assert texts(path) == [text for text, _ in rows]


@same_folder
@given(rows=st.lists(nasty_text, min_size=1, max_size=8), escaped=st.booleans())
def test_jsonl_texts_equal_those_of_the_json_module(tmp_path: Path, rows: list[str], escaped: bool) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": row} for row in rows], ensure_ascii=escaped)
    assert texts(path) == rows


@same_folder
@given(rows=st.lists(st.none() | nasty_text, min_size=1, max_size=8))
def test_parquet_texts_equal_those_of_pyarrow(tmp_path: Path, rows: list[str | None]) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": pa.array(rows, pa.string())})
    assert texts(path) == [row or "" for row in pq.read_table(path)["text"].to_pylist()]


@same_folder
@given(text=nasty_text)
def test_a_txt_file_is_one_document_unchanged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    assert texts(path) == [text.removeprefix("\ufeff")]


def test_records_carry_their_file_and_their_row_from_zero(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "a.csv", ["text"], [["one"], ["two"]])
    document = tmp_path / "b.txt"
    document.write_text("three")
    assert list(read_records([document, table])) == [
        Record("three", None, str(document), 0),
        Record("one", None, str(table), 0),
        Record("two", None, str(table), 1),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".JSONL"])
def test_json_lines_are_known_by_all_their_suffixes(tmp_path: Path, suffix: str) -> None:
    assert texts(write_lines(tmp_path / f"a{suffix}", [{"text": "x"}])) == ["x"]


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_compressed_files_read_like_plain_ones(tmp_path: Path, name: str, suffix: str) -> None:
    plain = tmp_path / name
    if name == "a.csv":
        write_csv(plain, ["text", "n"], [[f"row\n{number}", "1"] for number in range(5000)])
    else:
        write_lines(plain, [{"text": f"row {number}"} for number in range(5000)])
    packed = tmp_path / (name + suffix)
    packed.write_bytes(COMPRESSORS[suffix](plain.read_bytes()))
    assert texts(packed) == texts(plain)


def test_a_gz_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n'))
    assert texts(path) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "body"),
    [("a.csv", b"text\nx\n"), ("a.csv", b'"text"\nx\n'), ("a.jsonl", b'{"text": "x"}\n'), ("a.txt", b"x")],
)
def test_a_byte_order_mark_is_dropped(tmp_path: Path, name: str, body: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + body)
    assert texts(path) == ["x"]


def test_line_ends_of_windows_and_blank_lines_make_no_rows(tmp_path: Path) -> None:
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    table.write_bytes(b'text,n\r\n"a\r\nb",1\r\n\r\nc,2\r\n')
    lines.write_bytes(b'{"text": "a\\r\\nb"}\r\n\r\n{"text": "c"}')
    assert texts(table) == texts(lines) == ["a\r\nb", "c"]


def test_rows_longer_than_a_read_block_are_whole(tmp_path: Path) -> None:
    long = 'long, "text"\n' * 400_000
    rows = [["short " * 100, "1"]] * 5000 + [[long, "2"], ["short", "3"], [long, "4"], ["end", "5"]]
    table = write_csv(tmp_path / "a.csv", ["text", "n"], rows)
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "short"}, {"text": long}])
    assert texts(table) == [text for text, _ in rows]
    assert texts(write_csv(tmp_path / "b.csv", ["text"], [[long]])) == [long]
    assert texts(lines) == ["short", long]


def test_many_csv_blocks_keep_all_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulmfit.text.formats._CSV_BLOCKS", (256,))
    rows = [f'line {number}\n"quoted", and more' for number in range(3000)]
    assert texts(write_csv(tmp_path / "a.csv", ["n", "text"], [["0", row] for row in rows])) == rows


def test_a_surrogate_without_its_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "cut \\ud83d", "meta": ["\\uDE00"]}\n{"text": "whole \\ud83d\\ude00"}\n')
    assert texts(path) == ["cut \ufffd", "whole \U0001f600"]
    assert pa.Table.from_batches(read_tables(path))["meta"][0].as_py() == '["\ufffd"]'


def test_columns_named_oddly_are_found(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"a.b": ["x"], "c": [{"text": "no"}], "text": ["y"]})
    assert [record.text for record in read_records([path], text_column="a.b")] == ["x"]
    assert texts(path) == ["y"]


def test_unnamed_columns_that_spreadsheets_add_do_no_harm(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["label", "text", "", ""], [["ham", "a\nb", "", ""]])
    assert pairs(path, label_column="label") == [("a\nb", "ham")]


STRING_TYPES = [pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]


@pytest.mark.parametrize("kind", [*STRING_TYPES, pa.dictionary(pa.int32(), pa.string())])
def test_parquet_text_may_have_any_string_type(tmp_path: Path, kind: Any) -> None:
    column = pa.array(["ä", None], pa.string()).cast(kind)
    path = write_parquet(tmp_path / "a.parquet", {"text": column})
    assert texts(path) == ["ä", ""]
    assert pa.Table.from_batches(read_tables(path))["text"].to_pylist() == ["ä", ""]


# --- labels and nulls -----------------------------------------------------------------------------------------------


def test_csv_values_are_never_taken_for_numbers_or_nulls(tmp_path: Path) -> None:
    rows = [["NA", "007"], ["null", "1"], ["", "1.0"], ["3", "true"]]
    path = write_csv(tmp_path / "a.csv", ["text", "label"], rows)
    assert pairs(path, label_column="label") == [(text, label) for text, label in rows]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([1, 0], ["1", "0"]), ([True, False], ["true", "false"]), ([1.0, 2.5], ["1", "2.5"]), (["1", "a"], ["1", "a"])],
)
def test_labels_become_the_same_strings_from_parquet_and_jsonl(
    tmp_path: Path, labels: list[Any], expected: list[str]
) -> None:
    table = write_parquet(tmp_path / "a.parquet", {"text": ["x", "y"], "label": labels})
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "x", "label": labels[0]}, {"text": "y", "label": labels[1]}])
    coded = write_parquet(tmp_path / "b.parquet", {"text": ["x", "y"], "label": pa.array(expected).dictionary_encode()})
    for path in (table, lines, coded):
        assert [label for _, label in pairs(path, label_column="label")] == expected


def test_null_text_is_empty_text_in_every_format(tmp_path: Path) -> None:
    assert texts(write_lines(tmp_path / "a.jsonl", [{"text": None}, {"text": "x"}, {"n": 1}])) == ["", "x", ""]
    assert texts(write_csv(tmp_path / "a.csv", ["text", "n"], [["", "1"]])) == [""]
    assert texts(write_parquet(tmp_path / "a.parquet", {"text": pa.nulls(2)})) == ["", ""]


@pytest.mark.parametrize("missing", [None, "", " ", float("nan")])
def test_a_row_without_a_label_is_named(tmp_path: Path, missing: Any) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x", "label": 1.5}, {"text": "y", "label": missing}])
    message = problem_of(path, label_column="label")
    assert str(path) in message and "line 2 has no label" in message


def test_a_table_row_without_a_label_is_counted_across_batches(tmp_path: Path) -> None:
    labels = ["a"] * 5000 + [None]
    table = write_parquet(tmp_path / "a.parquet", {"text": ["x"] * 5001, "label": labels})
    assert "row 5001 has no label" in problem_of(table, label_column="label")
    sheet = write_csv(tmp_path / "a.csv", ["text", "label"], [["x", label or ""] for label in labels])
    assert "row 5001 has no label" in problem_of(sheet, label_column="label")


def test_a_nested_label_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x", "label": ["a", "b"]}])
    assert "line 1: the label is a list" in problem_of(path, label_column="label")


# --- folders --------------------------------------------------------------------------------------------------------


def make_folder(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_labels_of_a_folder_are_the_names_of_its_folders(tmp_path: Path) -> None:
    files = {"pos/2.txt": "good", "pos/1.txt": "great", "neg/deep/3.txt": "bad", "readme.txt": "no", "pos/.x.txt": "no"}
    root = make_folder(tmp_path, {**files, ".git/4.txt": "no", "pos/notes.md": "no"})
    assert pairs(root, label_column="label") == [("bad", "neg"), ("great", "pos"), ("good", "pos")]
    assert [path.relative_to(root).as_posix() for path in source_files([root], labelled=True)] == [
        "neg/deep/3.txt",
        "pos/1.txt",
        "pos/2.txt",
    ]


def test_an_unlabelled_folder_gives_all_its_files_sorted(tmp_path: Path) -> None:
    files = {"b/2.txt": "two", "a.txt": "one", "b/.hidden/3.txt": "no", "c.jsonl": '{"text": "three"}'}
    root = make_folder(tmp_path, files)
    assert pairs(root) == [("one", None), ("two", None), ("three", None)]
    assert source_files([root, root / "a.txt"]) == [root / "a.txt", root / "b/2.txt", root / "c.jsonl", root / "a.txt"]


def test_tables_in_a_labelled_folder_bring_their_own_labels(tmp_path: Path) -> None:
    write_csv(tmp_path / "1.csv", ["text", "label"], [["x", "a"]])
    write_parquet(tmp_path / "2.parquet", {"label": ["b"], "text": ["y"]})
    assert pairs(tmp_path, label_column="label") == [("x", "a"), ("y", "b")]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"store/1.txt": "one", "data/pos/2.txt": "two"}) / "data"
    (root / "neg").symlink_to(tmp_path / "store", target_is_directory=True)
    (root / "pos" / "again").symlink_to(root, target_is_directory=True)
    assert pairs(root, label_column="label") == [("one", "neg"), ("two", "pos")]


def test_an_empty_document_is_an_empty_text(tmp_path: Path) -> None:
    assert texts(make_folder(tmp_path, {"a.txt": ""})) == [""]


# --- what is wrong, and the way out ---------------------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\nx\n")
    assert f"Did you mean {tmp_path / 'train.csv'}?" in problem_of(tmp_path / "trian.csv")
    assert "no such file or folder" in problem_of(tmp_path / "nowhere" / "a.csv")
    assert "no files or folders given" in problem_of()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "the file is empty" in problem_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "body"),
    [("a.csv", "text\n"), ("a.csv", "text"), ("a.csv", "\n\n"), ("a.tsv", "text\tn\n"), ("a.jsonl", "\n  \n")],
)
def test_a_file_without_rows_is_named(tmp_path: Path, name: str, body: str) -> None:
    path = tmp_path / name
    path.write_text(body)
    assert problem_of(path) == f"{path}: no rows; expected at least one text."
    assert problem(lambda: list(read_tables(path))) == problem_of(path)


def test_a_parquet_without_rows_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})
    assert "no rows" in problem_of(path)


def test_a_shard_without_rows_is_fine_beside_others(tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", {"text": pa.array([], pa.string())})
    write_parquet(tmp_path / "2.parquet", {"text": ["x"]})
    assert texts(tmp_path) == ["x"]


def test_a_missing_column_is_named_before_any_row_is_read(tmp_path: Path) -> None:
    good = write_csv(tmp_path / "1.csv", ["text", "label"], [["x", "a"]])
    sheet = write_csv(tmp_path / "2.csv", ["review", "sentiment"], [["x", "a"]])
    table = write_parquet(tmp_path / "a.parquet", {"review": ["x"], "sentiment": ["a"]})
    lines = write_lines(tmp_path / "a.jsonl", [{"review": "x", "sentiment": "a"}])
    for path in (sheet, table, lines):
        expected = f"{path}: no column 'text'; it has 'review', 'sentiment'. Pass --text-column."
        assert problem(lambda path=path: read_records([good, path])) == expected
        assert problem(lambda path=path: read_tables(path)) == expected
        assert problem_of(path, text_column="review", label_column="label").endswith("Pass --label-column.")
    assert "expected two" in problem_of(good, label_column="text")


def test_a_wrong_delimiter_is_suspected(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["text", "label"], [["x", "a"]], delimiter=";")
    assert "it has 'text;label'" in problem_of(path) and "separated by ';'" in problem_of(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["text", "x", "text"], [["a", "b", "c"]])
    assert "two columns are named 'text'" in problem_of(path)
    path = write_csv(tmp_path / "b.csv", ["text", "x", "x"], [["a", "b", "c"]])
    assert texts(path) == ["a"]
    assert "two columns are named 'x'" in problem(lambda: read_tables(path))


def test_an_unknown_suffix_lists_the_known_ones(tmp_path: Path) -> None:
    for name in ("a.xlsx", "a", "a.parquet.gz", "a.gz"):
        (tmp_path / name).write_text("x")
        assert ".csv, .tsv, .jsonl, .ndjson, .json, .parquet, .txt" in problem_of(tmp_path / name)


def test_a_folder_without_readable_files_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, {"notes.md": "x", ".a.txt": "x"})
    assert "no readable files in this folder" in problem_of(tmp_path)
    make_folder(tmp_path, {"a.txt": "x"})
    assert "expected a folder of .txt files per label" in problem_of(tmp_path, label_column="label")
    assert "a .txt file has no label" in problem_of(tmp_path / "a.txt", label_column="label")


def test_a_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not at all")
    assert problem_of(path).startswith(f"{path}: cannot be read as parquet (")
    columns = {"text": [str(n) * 50 for n in range(2000)]}
    whole = write_parquet(tmp_path / "b.parquet", columns, compression="zstd", write_page_checksum=True)
    data = bytearray(whole.read_bytes())
    data[300:1500] = b"\xff" * 1200
    whole.write_bytes(data)
    assert problem_of(whole).startswith(f"{whole}: cannot be read as parquet (")


@pytest.mark.parametrize("cut", [lambda data: data[: len(data) // 2], lambda data: b"not gzip " * 10])
def test_damaged_compression_is_named(tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    for name, body in (("a.csv.gz", "text\n" + "x\n" * 9999), ("a.jsonl.gz", '{"text": "x"}\n' * 9999)):
        path = tmp_path / name
        path.write_bytes(cut(gzip.compress(body.encode())))
        assert problem_of(path).startswith(f"{path}: cannot be read as ")


@pytest.mark.parametrize("row", ["one", "one,two,three", '"one" and, "two, three'])
def test_a_ragged_csv_row_is_counted(tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    good = 'a,b\n\n"c\nd",e\n'
    path.write_text("text,label\n" + good * 500 + row + "\n" + good)
    whole = problem_of(path)
    assert "row 1001 has " in whole and "the header has 2" in whole
    monkeypatch.setattr("ulmfit.text.formats._CSV_BLOCKS", (512,))
    assert problem_of(path) == whole


def test_a_quote_left_open_does_not_swallow_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "a,b\n" * 100
    for name, body in {
        "last.csv": f'label,text\n{rows}c,"d\n{rows}',
        "lone.csv": 'text\na\n"b\nc\n',
        "other.csv": f'text,label\n{rows}c,"d\n{rows}',
    }.items():
        path = tmp_path / name
        path.write_text(body)
        row = 2 if name == "lone.csv" else 101
        assert f"row {row} opens a quote that is never closed" in problem_of(path)
        assert problem(lambda path=path: list(read_tables(path))) == problem_of(path)
    monkeypatch.setattr("ulmfit.text.formats._CSV_BLOCKS", (64, 128))
    assert "opens a quote that is never closed" in problem_of(tmp_path / "last.csv")


def test_a_last_value_of_several_lines_is_no_open_quote(tmp_path: Path) -> None:
    for end in ("", "\n", "\r\n", "\n\n", " \n", "\n" * 100):
        path = tmp_path / "a.csv"
        path.write_text(f'text\n"a\nb"{end}', newline="")
        assert [text.rstrip() for text in texts(path)] == ["a\nb"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{'text': 1}", "is not JSON (Expecting property name enclosed in double quotes, column 2)"),
        ('["text"]', "is a JSON list"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n\n' + line + "\n")
    message = problem_of(path)
    assert message.startswith(f"{path}: line 3 {found}") and "expected one object per line" in message


def test_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "x"}, {"text": 5}])
    assert "line 2: 'text' is int 5; expected text. Pass --text-column." in problem_of(lines)
    assert problem(lambda: list(read_tables(lines))) == problem_of(lines)
    table = write_parquet(tmp_path / "a.parquet", {"text": [1]})
    assert "column 'text' holds int64; expected text. Pass --text-column." in problem_of(table)


@pytest.mark.parametrize(
    ("name", "start", "bad", "line"),
    [
        ("a.txt", b"one\ntwo\n", b"caf\xe9 au lait", 3),
        ("a.csv", b"text\n" + "äöü\n".encode() * 400_000, b"caf\xe9\n", 400_002),
        ("a.csv", b"", b"te\xe9xt\na\n", 1),
        ("a.tsv", b"text\tx\n", b"a\tcaf\xe9\n", 2),
        ("a.jsonl", b'{"text": "a"}\n\n', b'{"text": "caf\xe9"}\n', 3),
        ("a.jsonl.gz", b'{"text": "a"}\n', b'{"text": "caf\xe9"}\n', 2),
        ("a.csv", b"text\n", "cut short: é".encode()[:-1], 2),
    ],
)
def test_bytes_that_are_not_utf8_are_located(tmp_path: Path, name: str, start: bytes, bad: bytes, line: int) -> None:
    path = tmp_path / name
    data = start + bad
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(UnicodeDecodeError) as reference:
        data.decode()
    message = problem_of(path)
    assert message.startswith(f"{path}: not UTF-8 at line {line}, byte {reference.value.start}. ")
    assert "iconv -f WINDOWS-1252 -t UTF-8" in message


def test_utf16_is_recognised(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.txt"):
        (tmp_path / name).write_text('text\n{"text": 1}\n', encoding="utf-16")
        assert "iconv -f UTF-16 -t UTF-8" in problem_of(tmp_path / name)


def test_bytes_in_parquet_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    bad = pa.array([b"x"] * 3000 + [b"caf\xe9"])
    unchecked = pa.Array.from_buffers(pa.string(), len(bad), bad.buffers())
    for name, column in (("binary", bad), ("string", unchecked)):
        path = write_parquet(tmp_path / f"{name}.parquet", {"text": column, "other": ["a"] * 3001})
        assert f"{path}: row 3001 of column 'text' is not UTF-8" in problem_of(path)
        assert problem(lambda path=path: list(read_tables(path))) == problem_of(path)


# --- tables for predict ---------------------------------------------------------------------------------------------


def table_of(path: Path | str, **options: Any) -> pa.Table:
    return pa.Table.from_batches(read_tables(path, **options))


def test_tables_keep_all_columns_of_parquet_as_they_are(tmp_path: Path) -> None:
    columns = {
        "id": pa.array([1, 2], pa.int16()),
        "text": ["x", None],
        "image": [b"\xff", None],
        "tags": [["a"], []],
        "score": pa.array([0.5, None], pa.float32()),
    }
    path = write_parquet(tmp_path / "a.parquet", columns)
    expected = pa.table({**columns, "text": ["x", ""]})
    assert table_of(path).equals(expected)


def test_tables_keep_all_columns_of_csv_as_strings(tmp_path: Path) -> None:
    rows = [["007", "a\nb", "NA"], ["1", "", "2020-01-01"]]
    path = write_csv(tmp_path / "a.csv", ["id", "text", "date"], rows)
    assert table_of(path).to_pydict() == {"id": ["007", "1"], "text": ["a\nb", ""], "date": ["NA", "2020-01-01"]}


def test_jsonl_columns_have_one_type_for_the_whole_file(tmp_path: Path) -> None:
    late = {"id": 2**53 + 1, "text": "last", "score": 1, "flag": True, "mixed": "a", "meta": {"b": [1]}, "new": "n"}
    rows = [{"id": 1, "text": None, "score": 0.5, "flag": None, "mixed": 1, "none": None}] * 3000 + [late]
    path = write_lines(tmp_path / "a.jsonl", rows)
    table = table_of(path)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("id", "int64"),
        ("text", "string"),
        ("score", "double"),
        ("flag", "bool"),
        ("mixed", "string"),
        ("none", "string"),
        ("meta", "string"),
        ("new", "string"),
    ]
    assert [field.name for field in table.schema if field.metadata == JSON_TEXT] == ["mixed", "meta"]
    assert table.slice(2999).to_pydict() == {
        "id": [1, 2**53 + 1],
        "text": ["", "last"],
        "score": [0.5, 1.0],
        "flag": [None, True],
        "mixed": ["1", '"a"'],
        "none": [None, None],
        "meta": [None, '{"b": [1]}'],
        "new": [None, "n"],
    }


def test_integers_too_large_for_a_column_are_kept_exactly(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a", "n": 2**70, "m": 2**60}, {"text": "b", "n": 1, "m": 0.5}])
    assert [json.loads(value) for value in table_of(path)["n"].to_pylist()] == [2**70, 1]
    assert [json.loads(value) for value in table_of(path)["m"].to_pylist()] == [2**60, 0.5]


def test_txt_files_are_rows_with_their_names(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"b.txt": "two\nlines", "a/1.txt": "one"})
    assert table_of(root, text_column="review").to_pydict() == {
        "file": [str(root / "a/1.txt"), str(root / "b.txt")],
        "review": ["one", "two\nlines"],
    }
    assert table_of(root / "b.txt").to_pydict() == {"file": [str(root / "b.txt")], "text": ["two\nlines"]}
    assert "pass another --text-column" in problem(lambda: read_tables(root, text_column="file"))


def test_long_documents_close_their_batch_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulmfit.text.sources._BATCH_CHARACTERS", 25)
    root = make_folder(tmp_path, {f"{number}.txt": "x" * 10 for number in range(7)})
    assert [len(batch) for batch in read_tables(root)] == [3, 3, 1]


def test_standard_input_gives_one_text_per_line(tmp_path: Path) -> None:
    lines = b"\xef\xbb\xbfone\r\n\n\xc3\xa4 two\nlast"
    assert table_of("-", stdin=io.BytesIO(lines)).to_pydict() == {"text": ["one", "", "ä two", "last"]}
    many = [str(number) for number in range(5000)]
    stdin = io.BytesIO("\n".join(many).encode())
    assert table_of(Path("-"), text_column="review", stdin=stdin)["review"].to_pylist() == many
    assert "standard input: no rows" in problem(lambda: list(read_tables("-", stdin=io.BytesIO())))
    bad = io.BytesIO(b"a\n" * 5000 + b"\xff\n")
    assert "standard input: line 5001 is not UTF-8" in problem(lambda: list(read_tables("-", stdin=bad)))


def test_standard_input_of_the_process_is_read_by_default() -> None:
    program = "from ulmfit.text.sources import read_tables; print([b.to_pydict() for b in read_tables('-')])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="a\nb\n",
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.stdout == "[{'text': ['a', 'b']}]\n"


# --- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulmfit.text.formats._CSV_BLOCKS", (1 << 17,))
    rows, text = 30_000, "some words of a text " * 50
    path = tmp_path / name
    if name == "a.csv":
        write_csv(path, ["text", "n"], [[text, str(number)] for number in range(rows)])
    elif name == "a.jsonl":
        write_lines(path, [{"text": text, "n": number} for number in range(rows)])
    else:
        # One row group, no dictionary: the worst case for a reader.
        columns = {"text": [f"{number} {text}" for number in range(rows)]}
        write_parquet(path, columns, row_group_size=rows, use_dictionary=False, compression="none")
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    arrow = 0
    for count, _ in enumerate(read_records([path]), 1):
        arrow = max(arrow, pa.total_allocated_bytes() - before) if count % 500 == 0 else arrow
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == rows
    assert path.stat().st_size > 30e6
    assert peak + arrow < 15e6


def test_the_movie_reviews_are_read_whole() -> None:
    path = DATA / "imdb" / "train.parquet"
    if not path.exists():
        pytest.skip("the shared IMDb data are not here")
    records = list(read_records([path], label_column="label"))
    reference = pq.read_table(path).to_pydict()
    assert [record.text for record in records] == reference["text"]
    assert [record.label for record in records] == reference["label"]
