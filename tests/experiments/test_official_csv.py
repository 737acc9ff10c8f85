"""The official csv files are read as they were written."""

import csv

import pytest

from ulmfit.errors import DataError
from ulmfit.experiments.official_csv import read_official_csv

ROWS = {
    "yelp": [("negative", ['Cold food, and a "waiter" who shouted.\nNever again.']), ("positive", ["Fine — é ü."])],
    "dbpedia": [("positive", ["Oak, the", 'A tree; it says "oak".']), ("negative", ["", "No title."])],
}


def write_officially(path, rows):
    """As the data sets' readme says: every field in quotes, quotes doubled, a new line as a backslash and n."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for label, fields in rows:
            writer.writerow(
                [("negative", "positive").index(label) + 1, *(field.replace("\n", "\\n") for field in fields)]
            )
    return path


@pytest.mark.parametrize("name", ROWS)
def test_rows_come_back_with_their_text_and_class(tmp_path, name):
    path = write_officially(tmp_path / "train.csv", ROWS[name])
    found = list(read_official_csv(path, classes=("negative", "positive")))
    assert found == [(" ".join(fields), label) for label, fields in ROWS[name]]


def test_a_review_of_half_a_million_characters_is_one_row(tmp_path):
    path = write_officially(tmp_path / "train.csv", [("positive", ["good " * 100_000])])
    assert list(read_official_csv(path, classes=("negative", "positive"))) == [("good " * 100_000, "positive")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"3","text"\n', "row 1 has the class '3'; expected a number from 1 to 2"),
        ('"1","text"\n"class","text"\n', "row 2 has the class 'class'"),
        ('"1"\n', "row 1 has 1 fields; expected the class and a text"),
        ("", "no rows"),
        ("\xff\xfe", "cannot be read near row 1"),
    ],
)
def test_what_is_not_of_this_form_is_named(tmp_path, content, message):
    path = tmp_path / "test.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        list(read_official_csv(path, classes=("negative", "positive")))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.csv: no such file"):
        list(read_official_csv(tmp_path / "absent.csv", classes=("negative", "positive")))
