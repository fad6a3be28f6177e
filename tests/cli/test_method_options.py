"""Every field of every method is an option, with a help text from the docstring."""

from dataclasses import fields

import pytest
from typer.testing import CliRunner

from neurank.cli import app
from neurank.cli.method_options import make_method
from neurank.errors import MethodError
from neurank.rankers.registry import METHODS

OPTIONS = [(name, field) for name, made in METHODS.items() for field in fields(made)]


@pytest.mark.parametrize(("name", "field"), OPTIONS)
def test_an_option_reaches_its_field(name, field):
    assert getattr(make_method(name, {field.name: field.default}), field.name) == field.default


@pytest.mark.parametrize(("name", "field"), OPTIONS)
def test_an_option_is_explained(name, field):
    result = CliRunner().invoke(app, ["rank", "--help"], env={"COLUMNS": "300"})
    option = f"--{field.name.replace('_', '-')} "
    (line,) = [line for line in result.stdout.splitlines() if option in line]
    owners, _, said = line.partition("[")[2].partition("]")
    assert name in owners.split(", ")
    said = said.partition("[default")[0]
    assert len(said.split()) >= 3


def test_no_field_hides_an_option_of_the_command_itself():
    own = {"model", "data", "out", "weights", "method", "layers", "value", "removal", "split",
           "first", "batch_size", "seed", "json"}  # fmt: skip
    assert own.isdisjoint(field.name for _, field in OPTIONS)


def test_an_option_of_another_method_is_refused():
    with pytest.raises(MethodError, match=r"--passes is not an option of --method exact"):
        make_method("exact", {"passes": 2})
