"""The settings as a table for people."""

from enum import StrEnum

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from infra.settings.model import GROUPS, variable


def settings_table() -> str:
    """The settings as Markdown, one table per group, for the README."""
    blocks: list[str] = []
    for group in GROUPS:
        rows = [_table_row(name, field) for name, field in group.model_fields.items()]
        blocks.append(
            "\n".join(
                [
                    f"### {group.__doc__}",
                    "",
                    "| Variable | Default | Allowed | Meaning |",
                    "|---|---|---|---|",
                    *rows,
                ]
            )
        )
    return "\n\n".join(blocks) + "\n"


def _table_row(name: str, field: FieldInfo) -> str:
    if field.default_factory:
        default = "by `FRONTROW_ENV`"
    elif isinstance(field.default, bool):
        default = f"`{field.default:d}`"
    else:
        default = "empty" if field.default in (None, ()) else f"`{field.default}`"
    return f"| `{variable(name)}` | {default} | {_allowed(field)} | {field.description} |"


def _allowed(field: FieldInfo) -> str:
    if isinstance(field.annotation, type) and issubclass(field.annotation, StrEnum):
        return ", ".join(f"`{value}`" for value in field.annotation)
    if field.annotation is bool:
        return "`1`, `0`"
    lowest = next((f"{bound.ge:,}" for bound in field.metadata if isinstance(bound, Ge)), None)
    above = next((f"over {bound.gt:,}" for bound in field.metadata if isinstance(bound, Gt)), None)
    highest = next((f"{bound.le:,}" for bound in field.metadata if isinstance(bound, Le)), None)
    return f"{lowest or above} to {highest}" if highest else ""
