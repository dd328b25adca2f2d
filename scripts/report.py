"""Write what README and docs say of results, and the notebooks' takeaways, from the saved tables: `make report`.

A block between `<!-- table: NAME -->` or `<!-- text: NAME -->` and `<!-- end -->` holds what `TABLES[NAME]` or
`TEXTS[NAME]` makes. Nobody types its numbers; a test fails when a block is not what the committed tables say, and when
a measured number stands outside of one.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat

from lib.runtime.disk import ROOT, atomic_path
from scripts import prose, tables
from scripts.claims import claims, cost
from scripts.takeaways import with_takeaways

PAGES = ("README.md", "docs/results.md", "docs/which-method.md", "docs/backbones.md", "docs/report.md")
BLOCK = re.compile(r"(<!-- (table|text): ([a-z- ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[Path], str]] = {
    "vision": tables.vision,
    "vision in short": partial(tables.vision, methods=tables.SHORT),
    "something per task": tables.per_task,
    "any base": tables.any_base,
    "few coefficients": tables.few,
    "real images": tables.real_images,
    "language": tables.language,
    "claims": claims,
    "cost": cost,
} | prose.TABLES
TEXTS = prose.TEXTS


def rendered(page: str, root: Path) -> str:
    """A page with its blocks made anew from the committed tables.

    Raises:
        ValueError: for a block that names no table or text.
    """

    def made(block: re.Match[str]) -> str:
        begin, kind, name, end = block.groups()
        known = TABLES if kind == "table" else TEXTS
        if name not in known:
            raise ValueError(f"there is no {kind} '{name}'; known: {', '.join(known)}")
        return begin + known[name](root) + end

    return BLOCK.sub(made, page)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__.splitlines()[0]).parse_args(arguments)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook, differs = with_takeaways(path)
        if differs:
            nbformat.write(notebook, path)
            print(f"{path.name}: takeaways written")
    for name in PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        if (new := rendered(page, ROOT)) != page:
            with atomic_path(ROOT / name) as temporary:
                temporary.write_text(new, encoding="utf-8")
        print(f"{name}: {len(BLOCK.findall(page))} blocks, {'written' if new != page else 'as they were'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
