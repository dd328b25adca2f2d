"""Run by `tests/runtime/test_mutations.py` in a copy of the tree: random edits of the code behind stored results.

What a routine's result depends on is not read off imports here, as the keys do it, but watched: which functions of the
study run when the routine does. An edit of any constant or operation in one of them must make another key.
"""

import ast
import functools
import json
import random
import sys
from pathlib import Path

import torch
from mini_t5 import mini_t5
from small_world import TASKS, World

from lib.adaptation.loop import adapt
from lib.adaptation.protocol import Protocol
from lib.language.activations import diagonal_fisher as text_fisher
from lib.language.activations import prompt_grams
from lib.runtime import keys
from lib.runtime.store import Store
from lib.vectors.fine_tuning import fine_tune
from lib.vectors.flat_model import FlatModel
from lib.vision.activations import diagonal_fisher, input_grams
from lib.vision.heads import feature_head, text_head
from lib.vision.models import load_clip
from lib.vision.training import image_accuracy, image_loss

ROOT = Path(keys.__file__).parents[2]
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.LtE, ast.Gt: ast.GtE}


def cases(root):
    """Every routine whose results the study keeps, on something small: name -> a call of the remembered routine."""
    world, store = World(root), Store(root / "results")
    model, theta0, images = world.model, world.theta0, world.inputs("train", "one")
    heads, labels = world.heads["one"], torch.arange(20) % 4
    given = heads, (images, labels), world.backbone.preprocess, world.study.runtime
    clip, t5 = load_clip(), FlatModel(mini_t5())
    prompts = torch.tensor([[5, 6, 1], [7, 1, 0]], dtype=torch.int32)
    point = world.objective(world.setting(TASKS)), theta0, world.task_vectors, world.layout
    exact = Protocol(hypergradient="exact", l2=0.1, clamp=True)
    rates = {"learning_rate": 0.1, "mask_learning_rate": 0.1}
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    keep = store.remember
    return {
        "expert": lambda: keep(fine_tune)(
            model, theta0, image_loss(*given, task="one", batch=4, seed=0), image_accuracy(*given),
            task="one", steps=8, learning_rate=1e-3, keep=(4,)),
        "AdaMerging": lambda: keep(adapt)(*point, steps=2, evaluate=world.held_out(), evaluate_every=1),
        "mask": lambda: keep(adapt)(*point, steps=2, learn_mask=True, protocol=exact, **rates),
        "head of text": lambda: keep(text_head)(clip, ["a", "b"], ["a photo of {}."]),
        "head of images": lambda: keep(feature_head)(
            "linear-probe", clip, pixels, torch.arange(8) % 2, 2, 20.0, world.study.runtime),
        "Fisher": lambda: keep(diagonal_fisher)(model, theta0, heads, images, world.backbone.preprocess, signs=1),
        "Gram": lambda: keep(input_grams)(model, theta0, images, world.backbone.preprocess, world.study.runtime),
        "Fisher of texts": lambda: keep(text_fisher)(t5, t5.initial(), prompts),
        "Gram of texts": lambda: keep(prompt_grams)(t5, t5.initial(), prompts, world.study.runtime),
    }  # fmt: skip


def watch(call):
    """The functions of `lib` that run in a call: {(file, first line)}."""
    seen, ours = set(), str(ROOT / "lib")

    def look(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            seen.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {(Path(name), line) for name, line in seen}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def edits(path, lines):
    """Where an edit would change what the functions that ran do: (kind, number of the node)."""
    tree, found = ast.parse(path.read_text()), []
    for number, node in enumerate(ast.walk(tree)):
        node.number = number
    for part in ast.walk(tree):
        if not isinstance(part, ast.FunctionDef):
            continue
        first = part.decorator_list[0].lineno if part.decorator_list else part.lineno
        if first not in lines and part.lineno not in lines:
            continue
        body = part.body[1:] if ast.get_docstring(part) is not None else part.body
        for node in (node for statement in body for node in ast.walk(statement)):
            if isinstance(node, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value is not None:
                found.append(("constant", node.number))
            elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
                found.append(("operator", node.number))
            elif isinstance(node, ast.Call) and node.keywords:
                found.append(("argument left out", node.number))
    return found


def edited(source, kind, number):
    """The source with one edit."""
    tree = ast.parse(source)
    node = next(node for count, node in enumerate(ast.walk(tree)) if count == number)
    if kind == "constant":
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    elif kind == "operator":
        node.op = SWAPPED[type(node.op)]()
    else:
        node.keywords.pop()
    return ast.unparse(tree)


def main(count, seed):
    """Print, as JSON, how many functions each case runs, and every edit after which an old key was found."""
    keys.STARTED = float("inf")
    found, ran = cases(Path.cwd() / "runs"), {}
    for name, call in found.items():
        ran[name] = watch(call)
    asked = []
    Store._get = lambda self, folder, *_: asked.append(folder.name)  # from now on only the key is wanted

    read = functools.cache(keys._source.__wrapped__)

    def key(call, changed=""):
        keys.code_of.cache_clear()
        keys._source = lambda name: keys_source(name) if name == changed else read(name)
        call()
        return asked.pop()

    keys_source = keys._source.__wrapped__
    before = {name: key(call) for name, call in found.items()}
    draw, stale, made = random.Random(seed), [], {}
    while sum(made.values()) < count:
        name = draw.choice(list(found))
        path = draw.choice(sorted({path for path, _ in ran[name]}))
        if module_of(path) in keys.RUNNING or path.name == "__init__.py":
            continue
        places = edits(path, {line for own, line in ran[name] if own == path})
        if not places:
            continue
        kind, number = draw.choice(places)
        source = path.read_text()
        path.write_text(edited(source, kind, number))
        if key(found[name], module_of(path)) == before[name]:
            stale.append([name, module_of(path), kind, number])
        path.write_text(source)
        made[kind] = made.get(kind, 0) + 1
    assert {name: key(call) for name, call in found.items()} == before, "without an edit the keys are the same"
    print(json.dumps({"ran": {name: len(seen) for name, seen in ran.items()}, "made": made, "stale": stale}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
