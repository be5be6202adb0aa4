"""README's promises: its Python example runs, its commands are where the checks look for them, its links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))


def example() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found, "README.md has no Python block after <!-- example -->"
    return found.group(1)


def test_example_is_about_60_lines_and_compiles():
    assert 40 <= len(example().splitlines()) <= 75
    compile(example(), "README.md", "exec")


@pytest.mark.slow
def test_example_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-"], input=example(), cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "written" in done.stdout


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_commands_are_one_line(name):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- command: {name} -->\n```\n(.*?)```", text, re.DOTALL)
    assert found
    assert len(found.group(1).strip().splitlines()) == 1


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    folder = (ROOT / page).parent
    missing = [link for link in links if "://" not in link and not (folder / link).exists()]
    assert not missing
