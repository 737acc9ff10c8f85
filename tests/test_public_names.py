"""What `import ulmfit` offers."""

from __future__ import annotations

import importlib

import pytest

import ulmfit


def test_the_public_names_are_sorted_and_each_is_there():
    assert sorted(ulmfit.__all__) == ulmfit.__all__
    for name in ulmfit.__all__:
        assert getattr(ulmfit, name).__name__ == name


def test_each_public_name_is_the_one_of_its_home_module():
    for name in ulmfit.__all__:
        thing = getattr(ulmfit, name)
        assert getattr(importlib.import_module(thing.__module__), name) is thing


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        ulmfit.no_such_name  # noqa: B018
