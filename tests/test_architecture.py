"""Who may import whom, and how long anything may be: the house rules, read off the source by `ast`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("domain", "infra", "resolvers", "schema")
FILE_MAX_LINES = 400
FUNCTION_MAX_LINES = 60

MODULES = ("domain.user", "domain.concert", "domain.booking", "domain.payment")
NOUNS = ("domain.base", *MODULES, "domain.my_page")
# For each part of the house, the longest matching name first: what it may import beside the standard library and
# the libraries that LIBRARIES gives its layer. A name stands for everything below it, too.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "domain.base": (),
    "domain.user": ("domain.base",),
    "domain.concert": ("domain.base",),
    "domain.payment": ("domain.base",),
    "domain.booking": ("domain.base",),
    "domain.my_page": ("domain.base", *MODULES),
    "domain.events": ("domain.base", *MODULES),
    "domain.ports": (*NOUNS, "domain.events", "domain.ports"),
    "domain.use_cases": (*NOUNS, "domain.events", "domain.ports", "domain.use_cases"),
    # The one allowed direction: concerts call bookings. Selling never touches the concert module.
    "domain.use_cases.booking": (
        "domain.base",
        "domain.booking",
        "domain.payment",
        "domain.user",
        "domain.events",
        "domain.ports",
        "domain.use_cases.keys",
        "domain.use_cases.sharing",
    ),
    "domain.use_cases.payment": (
        "domain.base",
        "domain.booking",
        "domain.payment",
        "domain.user",
        "domain.events",
        "domain.ports",
        "domain.use_cases.booking",
        "domain.use_cases.keys",
        "domain.use_cases.settlement",
    ),
    "domain.reactions": ("domain",),
    "schema": (*NOUNS, "schema"),
    "schema.root": ("schema", "resolvers"),
    "resolvers": ("domain", "schema", "resolvers"),
    "infra": ("domain", "infra"),
    "infra.graphql_app": ("domain", "infra", "schema", "resolvers"),
    "infra.app": ("domain", "infra", "schema", "resolvers"),
    "infra.cli": ("domain", "infra", "schema", "resolvers"),
}
# None: any library.
LIBRARIES: dict[str, frozenset[str] | None] = {
    "domain": frozenset(),
    "schema": frozenset({"strawberry"}),
    "resolvers": frozenset({"strawberry"}),
    "infra": None,
}


def sources(*folders: str) -> Iterator[tuple[str, Path, ast.Module]]:
    """Every Python file below these folders: its module name, its path, its tree."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "node_modules" in path.parts:
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, path, ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    """The modules a file imports, wherever in it; `from a import b` counts as a.b where that is a module of ours."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                found.add(below if is_our_module(below) else node.module)
    return found


def is_our_module(name: str) -> bool:
    """Whether a dotted name is a file or folder of the product."""
    path = ROOT.joinpath(*name.split("."))
    return name.split(".")[0] in LAYERS and (path.is_dir() or path.with_suffix(".py").is_file())


def covers(part: str, name: str) -> bool:
    """Whether `name` is this part of the house or below it."""
    return name == part or name.startswith(part + ".")


def forbidden(module: str, imports: set[str]) -> list[str]:
    """Which of its imports a module must not have."""
    layer = module.split(".")[0]
    rule = max((part for part in MAY_IMPORT if covers(part, module)), key=len, default=None)
    allowed = () if rule is None else (rule, *MAY_IMPORT[rule])
    libraries = LIBRARIES[layer]
    wrong = []
    for name in sorted(imports):
        top = name.split(".")[0]
        if top in LAYERS:
            is_allowed = any(covers(part, name) for part in allowed)
        else:
            is_allowed = top in sys.stdlib_module_names or libraries is None or top in libraries
        if not is_allowed:
            wrong.append(f"{module} imports {name}")
    return wrong


def too_long(name: str, source: str) -> list[str]:
    """The file, and each function in it, that is longer than the house allows."""
    wrong = []
    lines = source.count("\n")
    if lines > FILE_MAX_LINES:
        wrong.append(f"{name} has {lines} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_MAX_LINES:
                wrong.append(f"{name}: {node.name} has {length} lines")
    return wrong


def test_everyone_imports_only_what_the_house_allows() -> None:
    """Layers and modules know only what DESIGN.md lets them know."""
    wrong = [line for name, _, tree in sources(*LAYERS) for line in forbidden(name, imported(tree))]
    assert wrong == []


def test_files_and_functions_stay_short() -> None:
    """No file above 400 lines, no function above 60: what passes that is two things."""
    wrong = [
        line
        for _, path, _ in sources(*LAYERS, "tests", "bench")
        for line in too_long(str(path.relative_to(ROOT)), path.read_text())
    ]
    assert wrong == []


def test_all_python_of_the_product_lives_in_the_four_folders() -> None:
    """A newcomer finds every line at <layer>/<module>.py."""
    elsewhere = [path.name for path in ROOT.glob("*.py")]
    assert elsewhere == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("domain.booking", "import sqlalchemy", ["domain.booking imports sqlalchemy"]),
        ("domain.booking", "from domain import concert", ["domain.booking imports domain.concert"]),
        ("domain.booking", "from domain.base import Money\nimport re", []),
        ("domain.ports", "import domain.reactions", ["domain.ports imports domain.reactions"]),
        (
            "domain.use_cases.booking",
            "from domain.use_cases.concert import x",
            ["domain.use_cases.booking imports domain.use_cases.concert"],
        ),
        ("schema.booking", "from domain.ports import Deps", ["schema.booking imports domain.ports"]),
        ("schema.booking", "from resolvers.booking import x", ["schema.booking imports resolvers.booking"]),
        ("schema.root", "from resolvers import booking", []),
        (
            "resolvers.booking",
            "def f():\n    import infra.db\n    from sqlalchemy import select",
            ["resolvers.booking imports infra.db", "resolvers.booking imports sqlalchemy"],
        ),
        ("infra.relay", "from schema.root import build_schema", ["infra.relay imports schema.root"]),
        ("infra.graphql_app.http", "from schema.root import build_schema\nimport starlette", []),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str, wrong: list[str]) -> None:
    """The check sees what it is there to see, inside functions too."""
    assert forbidden(module, imported(ast.parse(source))) == wrong


def test_what_is_too_long_is_found() -> None:
    """One line at the limit passes, one past it is named."""
    body = "    x = 1\n" * (FUNCTION_MAX_LINES - 1)
    assert too_long("a.py", f"def f():\n{body}") == []
    assert too_long("a.py", f"async def f():\n{body}    x = 1\n") == ["a.py: f has 61 lines"]
    assert too_long("a.py", "x = 1\n" * FILE_MAX_LINES) == []
    assert too_long("a.py", "x = 1\n" * (FILE_MAX_LINES + 1)) == ["a.py has 401 lines"]
