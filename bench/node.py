"""The peers that run on Node: installed once by npm from their lock file, left out where there is no npm."""

import shutil
import subprocess

from bench.programs import ROOT

FOLDER = ROOT / "bench" / "peers" / "node"
INSTALL_LIMIT_S = 300.0


def why_not() -> str | None:
    """None once Node's peers can run; what keeps them from it where they can't."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not installed"
    installed = FOLDER / "node_modules" / ".package-lock.json"
    lock = FOLDER / "package-lock.json"
    if installed.is_file() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return None
    try:
        done = subprocess.run(
            ["npm", "ci", "--loglevel=error"],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=INSTALL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"npm ci took more than {INSTALL_LIMIT_S:.0f} s"
    return None if done.returncode == 0 else f"npm ci failed: {done.stderr.strip()[-200:]}"


def command(script: str, *arguments: str) -> list[str]:
    """How to start one of them."""
    return ["node", str(FOLDER / script), *arguments]
