"""Packaging: what is installed is pinned, comes from anywhere, and holds the four folders of the product."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = ["base.txt", "build.txt", "dev.txt"]
FOLDERS = ["domain", "infra", "resolvers", "schema"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(lock: str) -> dict[str, str]:
    """The pinned release of each distribution in a lock file, by normalised name."""
    text = (ROOT / "requirements" / lock).read_text()
    return {
        normal(name): release for name, release in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    }


def normal(requirement: str) -> str:
    """The distribution that a requirement asks for, as packaging compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0].lower())  # type: ignore[index]


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_name_no_host(lock: str) -> None:
    """They install from whichever index a machine is set up for."""
    assert (
        re.findall(r"://|--\w*index|--find-links|^-[ir] ", (ROOT / "requirements" / lock).read_text(), re.M)
        == []
    )


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_pin_everything_with_hashes(lock: str) -> None:
    """Every entry is one exact release with at least one hash."""
    text = (ROOT / "requirements" / lock).read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n", "", text, flags=re.M).strip())
    pinned = re.compile(
        r"[\w.-]+(\[[\w,-]+\])?==[\w.]+( ; [^\n]+?)?( \\\n    --hash=sha256:[0-9a-f]{64})+\s*"
    )
    assert [entry for entry in entries if not pinned.fullmatch(entry)] == []
    assert len(entries) == len(locked(lock)) > 0


def test_lock_files_hold_what_the_project_asks_for() -> None:
    """A dependency that is added without `make lock` is missed here, not on a fresh machine."""
    extras = PROJECT["optional-dependencies"]
    asked = {normal(each) for each in PROJECT["dependencies"]}
    asked_by_developers = {normal(each) for each in [*extras["test"], *extras["dev"]]} - {"frontrow"}
    assert asked - locked("base.txt").keys() == set()
    assert asked_by_developers - locked("dev.txt").keys() == set()
    assert "hatchling" in locked("build.txt")


def test_lock_files_agree_with_each_other() -> None:
    """What serves is what was tested: the development lock only adds."""
    development = locked("dev.txt")
    assert locked("base.txt").items() <= development.items()
    assert locked("build.txt").items() <= development.items()


def test_what_we_wrap_is_pinned_exactly() -> None:
    """Our own backends and wrapper lean on one release of each."""
    pins = {normal(each): each for each in PROJECT["dependencies"]}
    assert pins["broadcaster"] == "broadcaster==0.3.1"
    assert pins["pybreaker"] == "pybreaker==1.4.1"


def test_nothing_installs_the_other_schema() -> None:
    """PyPI's `schema` would stand where our folder of that name does."""
    assert "schema" not in locked("dev.txt")


def test_the_wheel_holds_the_four_folders_and_nothing_else(tmp_path: Path) -> None:
    """Migrations and the printed schema are files of the product too."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kept = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == kept
