"""The README tells the same story as the code."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from graphql import build_schema, parse, validate

from infra.cli import main
from infra.settings import settings_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SCHEMA = build_schema((ROOT / "schema" / "schema.graphql").read_text())


def between(start: str, end: str) -> str:
    """What stands between two marks."""
    return README.split(f"<!-- {start} -->")[1].split(f"<!-- {end} -->")[0]


def test_the_settings_table_is_the_models() -> None:
    """Every setting with its default, its limits and its meaning."""
    assert between("settings", "end of settings").strip() == settings_table().strip()


DOCUMENTS = [
    text.replace('\\"', '"')
    for text in re.findall(
        r'(?:gql|SEATS=|MINE=) ?"((?:[^"\\]|\\.)*)"', between("walk-through", "end of walk-through")
    )
]


def test_the_walk_through_is_found() -> None:
    """Eight questions and two subscriptions."""
    assert len(DOCUMENTS) == 10


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_operation_of_the_walk_through_is_valid(document: str) -> None:
    """Whoever pastes it gets an answer."""
    assert validate(SCHEMA, parse(document)) == []


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_told_of(command: str) -> None:
    """In the table of commands, and its --help works."""
    assert f"| `frontrow {command}" in README
    assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:schema|resolvers|domain|infra|tests)/[\w./]*)`", README)))
)
def test_every_place_it_names_exists(path: str) -> None:
    """Files and folders move; the map moves with them."""
    assert (ROOT / path).exists()
