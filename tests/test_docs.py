"""README and the pages of docs/: links lead somewhere, and commands, parameters and code are those of the study."""

import ast
import importlib
import re
import shlex
import tomllib
from importlib.util import find_spec

import pytest

from lib.runtime.disk import ROOT
from lib.runtime.parameters import typed
from lib.study.profiles import PROFILES, SETTINGS, get_profile

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request):
    return request.param


def code_of(page):
    """What is written as code: fenced blocks, continued lines joined, and spans within a line."""
    text = page.read_text(encoding="utf-8")
    blocks = [block.replace("\\\n", " ") for _, block in FENCED.findall(text)]
    return "\n".join(blocks), re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def commands_of(page):
    """The lines of code, wherever they stand."""
    blocks, spans = code_of(page)
    return [*blocks.splitlines(), *spans]


def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    linked = set(re.findall(r"\]\(docs/([\w-]+)\.md", text))
    assert linked == {path.stem for path in PAGES} - {"README"}


def test_every_relative_link_leads_somewhere(page):
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links, "a page without a way out"
    for link in links:
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_every_file_that_is_named_is_there(page):
    _, spans = code_of(page)
    named = [
        span
        for span in spans
        if re.fullmatch(r"(lib|worlds|scripts|data|docs|figures|tests|benchmarks)/[\w./-]+", span)
    ]
    ours = [span for span in named if not span.startswith("data/cache")]
    assert not [span for span in ours if not (ROOT / span).exists()]


def test_every_make_target_is_in_the_makefile(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {target for line in commands_of(page) for target in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
    assert named <= targets


def test_every_module_that_is_run_is_there(page):
    for line in commands_of(page):
        for module in re.findall(r"(?:python|torchrun[^|;&]*?) -m ([\w.]+)", line):
            place = ROOT / module.replace(".", "/")
            ours = module.split(".")[0] in ("lib", "worlds", "scripts", "benchmarks")
            found = (
                place.with_suffix(".py").is_file() or (place / "__main__.py").is_file() if ours else find_spec(module)
            )
            assert found, line


def sections_of(page):
    """The TOML sections that a page shows, by name."""
    blocks = [block for language, block in FENCED.findall(page.read_text(encoding="utf-8")) if language == "toml"]
    return {name: section for block in blocks for name, section in tomllib.loads(block).items()}


def accepts(profile, fields):
    try:
        get_profile(profile, **fields)
    except ValueError:
        return False
    return True


def test_every_parameter_of_an_example_is_one_that_some_profile_takes(page):
    new = {name: section for name, section in sections_of(page).items() if "base" in section}
    for section in new.values():
        fields = {name: value for name, value in section.items() if name != "base"}
        assert accepts(section["base"], fields), section
    for line in commands_of(page):
        for profile in re.findall(r"\bprofile[= ]([\w.-]+)", line, re.IGNORECASE):
            assert profile in (*PROFILES, *new), line
        for text in re.findall(r'\bparams="([^"]*)"', line, re.IGNORECASE):
            given = dict(pair.split("=", 1) for pair in shlex.split(text))
            fields = {name: typed(value) for name, value in given.items() if name not in SETTINGS}
            named = re.findall(r"\bprofile=([\w.-]+)", line, re.IGNORECASE)
            assert any(accepts(profile, fields) for profile in named or PROFILES), line


def test_python_examples_import_what_is_there(page):
    added = set()  # what the page itself tells to add
    for language, block in FENCED.findall(page.read_text(encoding="utf-8")):
        nodes = list(ast.walk(ast.parse(block))) if language == "python" else []
        added |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("lib", "worlds"):
                for name in {alias.name for alias in node.names} - added:
                    there = hasattr(importlib.import_module(node.module), name)
                    assert there or find_spec(f"{node.module}.{name}"), f"{node.module} has no {name}"
