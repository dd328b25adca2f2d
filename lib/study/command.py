"""`python -m lib merge`: from somebody's fine-tuned models to one merged model in a folder, with its card."""

from __future__ import annotations

import argparse
import glob
import inspect
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError

from lib.files.weights import SUFFIXES
from lib.runtime.device import choose_runtime
from lib.study.card import refuse_full
from lib.study.merge_files import TYPES, merge_files
from lib.study.own import FREE, NAMES, Choice, before_and_after, choose_method, merge_own, warnings_of
from lib.study.profiles import get_profile
from lib.study.study import Study
from lib.study.workspace import Workspace

TASK = "{task}"
LIBRARIES = ("open_clip", "hugging-face", "timm", "torchvision", "t5", "peft")
EPILOG = """examples:
  python -m lib merge --base base/ --experts 'runs/*/model.safetensors' --out merged/
  python -m lib merge --base timm:vit_small_patch16_224 --pretrained base.safetensors \\
      --experts 'runs/{task}/last.pth' --data ~/data --out merged/
  python -m lib merge --base google/flan-t5-base --experts 'adapters/{task}' --data hub --out merged/"""


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    whole = argparse.ArgumentParser(prog="python -m lib", allow_abbrev=False)
    commands = whole.add_subparsers(dest="command", required=True)
    merge = commands.add_parser(
        "merge", help="merge fine-tuned models into one", allow_abbrev=False, epilog=EPILOG,
        description="Merge models that were fine-tuned from one base into a single model, and write it as their own "
        "library reads it, with a card. With --data it is trained without labels, and scored; without, weights alone "
        "are merged, of any architecture and size, layer by layer. The same command continues a run that was stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    inputs = merge.add_argument_group("what is merged")
    inputs.add_argument("--base", required=True, help="the pre-trained model: a file or folder; with --data also "
                        "timm:NAME, a name of open_clip, or a T5 on the hub")  # fmt: skip
    inputs.add_argument("--pretrained", default="", help="weights of a base that is a name: a file or a library's tag")
    inputs.add_argument("--experts", required=True, nargs="+", metavar="PATH",
                        help="fine-tuned models: a pattern with * or {task}, or their paths")  # fmt: skip
    inputs.add_argument("--tasks", default="", help="names, separated by spaces; by default those that the paths show")
    inputs.add_argument("--data", metavar="FOLDER", help="a folder with a set per task; 'hub' downloads known ones")
    how = merge.add_argument_group("how")
    how.add_argument("--method", default="auto", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    how.add_argument("--scaling-factor", type=float, help="of a method that has one")
    how.add_argument("--labels", action="store_true", help="labelled validation examples may choose a scaling factor")
    how.add_argument("--no-gradients", action="store_true", help="do not train: of auto, take a method in closed form")
    how.add_argument("--steps", type=int, default=300, help="at most so many steps of the mask and of adaptation (300)")
    how.add_argument("--head", help="of image tasks: expert (timm's), text (CLIP's), class-mean or linear-probe")
    how.add_argument("--image-size", type=int, default=0, help="side in pixels; by default the model's own")
    how.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    output = merge.add_argument_group("what is written")
    output.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new folder")
    output.add_argument("--library", default="", choices=LIBRARIES, metavar="NAME",
                        help=f"which is to read it, one of {', '.join(LIBRARIES)}; else the experts'")  # fmt: skip
    output.add_argument("--dtype", choices=TYPES, default="same", help="of merged layers, without --data (the base's)")
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser().parse_args(words)
    given.command = shlex.join(["python", "-m", "lib", *words])
    try:
        given.out = given.out.expanduser().resolve()  # behind a link: a folder is put in its place
        refuse_full(given.out)
        base = Path(given.base).expanduser()
        whole = given.data is not None or not base.exists()
        folder = _merge_study(given) if whole else _merge_files(given, base)
    except (OSError, ValueError, SafetensorError) as error:  # the last of a full disk
        print(f"Nothing merged: {error}", file=sys.stderr)
        return 1
    print(f"The merged model and its card are in {folder}")
    return 0


def named(experts: Sequence[str], tasks: Sequence[str] = ()) -> tuple[str, dict[str, Path]]:
    """The experts' pattern with {task} in it, and each one's path by the name that its path shows.

    Args:
        experts: one pattern with {task} or *, or several paths that differ in one part.
        tasks: which of them, in this order; by default all, sorted.

    Raises:
        ValueError: if there are none, or the paths do not show one name each.
    """
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"--tasks names one twice: {' '.join(tasks)}")
    pattern = str(Path(experts[0]).expanduser())
    if len(experts) == 1 and TASK in pattern:
        if tasks:
            return pattern, {task: Path(pattern.replace(TASK, task)) for task in tasks}
        pattern = pattern.replace(TASK, "*")
    patterns = [pattern] if len(experts) == 1 else [str(Path(one).expanduser()) for one in experts]
    found = sorted({path for one in patterns for path in _matches(one) or [one] * (len(patterns) > 1)})
    if not found:
        raise ValueError(f"no file or folder is called {experts[0]}: check the pattern, and quote it")
    parts = [Path(path).parts for path in found]
    differ = [n for n, own in enumerate(zip(*parts, strict=False)) if len(set(own)) > 1] or [len(parts[0]) - 1]
    if len({len(own) for own in parts}) > 1 or len(differ) > 1 or any(not Path(path).exists() for path in found):
        raise ValueError(f"experts' paths must exist and differ in one part, the task's name: {', '.join(found[:5])}")
    (place,) = differ
    ends = next((suffix for suffix in SUFFIXES if all(own[place].endswith(suffix) for own in parts)), "")
    names = {own[place].removesuffix(ends): Path(path) for own, path in zip(parts, found, strict=True)}
    if odd := [task for task in tasks if task not in names]:
        raise ValueError(f"no expert is called '{odd[0]}'; there are {', '.join(names)}")
    general = str(Path(*parts[0][:place], TASK + ends, *parts[0][place + 1 :]))
    return general, {task: names[task] for task in tasks or names}


def _matches(pattern: str) -> list[str]:
    """The paths that a pattern of the shell means; brackets in a folder's name are no pattern."""
    if Path(pattern).exists():
        return [pattern]
    return glob.glob(pattern) or glob.glob(glob.escape(pattern).replace("[*]", "*"))


def _choose(given: argparse.Namespace, *, files: bool) -> Choice:
    """The method; whatever is given must have an effect on it, or it is refused before anything is read."""
    data, factor = given.data is not None, given.scaling_factor
    choice = choose_method(given.method, data=data, gradients=not given.no_gradients, labels=given.labels)
    able = [name for name, own in FREE.items() if "scaling_factor" in inspect.signature(own.merge).parameters]
    if factor is not None and choice.method not in able:
        raise ValueError(f"method '{choice.method}' has no --scaling-factor; these have one: {', '.join(able)}")
    if not math.isfinite(factor or 0) or given.steps < 1:
        raise ValueError("--scaling-factor must be a finite number such as 0.3, and --steps at least 1")
    idle = ("pretrained", "head", "image_size", "library", "labels", "no_gradients") if files else ()
    said = [name for name in idle if getattr(given, name)] + ["dtype"] * (not files and given.dtype != "same")
    if said:
        raise ValueError(f"--{said[0].replace('_', '-')} has no effect {'without' if files else 'with'} --data")
    return choice


def _merge_files(given: argparse.Namespace, base: Path) -> Path:
    choice = _choose(given, files=True)
    _, experts = named(given.experts, given.tasks.split())
    print(f"{len(experts)} experts: {', '.join(experts)}\nmethod {choice.method}: {choice.why}")
    factor = {} if given.scaling_factor is None else {"scaling_factor": given.scaling_factor}
    told = {"why": choice.why, "command": f"`{given.command}`"}
    method = choice.method.replace("-", "_")
    return merge_files(base, experts, given.out, method=method, dtype=given.dtype, about=told, **factor)


def _merge_study(given: argparse.Namespace) -> Path:
    from lib.study.export import check_library, export  # here, not above: timm, open_clip and transformers take long

    choice, data = _choose(given, files=False), given.data is not None
    workspace = _open(given)
    print(f"{len(workspace.study.profile.task_names)} experts, method {choice.method}: {choice.why}")
    check_library(workspace, given.library)
    merged = merge_own(workspace, choice, scaling_factor=given.scaling_factor)
    scores, notes = None, ["Not scored: no data was given."]
    if data:
        scores = before_and_after(workspace, merged.theta)
        notes = list(warnings_of(scores))
        print(100 * scores.groupby("method", sort=False)["accuracy"].mean().round(4).rename("held-out accuracy (%)"))
        print(*notes, sep="\n")
    about = merged.told | {"command": f"`{given.command}`"}
    return export(
        workspace, merged.theta, given.out, library=given.library, about=about, scores=scores, notes=notes, heads=data
    )


def _open(given: argparse.Namespace) -> Workspace:
    """The study of what was given."""
    from lib.language.registry import GLUE  # here, not above, as in `_merge_study`
    from lib.study.language import LanguageWorkspace
    from lib.study.vision import VisionWorkspace

    kind, model, pretrained = recognise(given.base, given.pretrained)
    tasks = given.tasks.split()
    pattern = given.experts[0]
    if len(given.experts) > 1 or "*" in pattern or not tasks:
        pattern, found = named(given.experts, tasks)
        tasks = tasks or list(found)
    root = "" if given.data in (None, "hub") else str(Path(given.data).expanduser())
    changed: dict[str, object] = {"model": model, "tasks": " ".join(tasks), "mask_steps": given.steps}
    changed |= {"adaptation_steps": given.steps, "evaluate_every": max(1, given.steps // 10)}
    if kind == "language":
        budgets = "flan-t5-base" if all(task in GLUE for task in tasks) else "tiny-t5"
        profile, space = get_profile(budgets, **changed, adapters=pattern), LanguageWorkspace
    else:
        head = given.head or ("expert" if model.startswith("timm:") else "text")
        changed |= {"pretrained": pretrained, "experts": pattern, "image_size": given.image_size, "head": head}
        profile, space = get_profile("your-own", **changed), VisionWorkspace
    study = Study(profile, given.seed, root, choose_runtime(given.device, "auto"), device=given.device)
    if kind == "vision" and given.data is None:  # tasks are names alone
        return VisionWorkspace(study, _tasks=dict.fromkeys(tasks))
    return space(study)


def recognise(base: str, pretrained: str = "") -> tuple[str, str, str]:
    """What a base is: "vision" or "language", and the profile's `model` and `pretrained`.

    Raises:
        ValueError: if a file or folder does not show its architecture.
    """
    folder = Path(base).expanduser()
    config = _json(folder / "config.json")
    if "t5" in str(config.get("model_type")) or ("t5" in base.lower() and not folder.exists()):
        return "language", str(folder) if folder.exists() else base, ""
    if config.get("architecture"):
        arguments = {name: own for name, own in config.get("model_args", {}).items() if name != "num_classes"}
        if isinstance(side := arguments.get("img_size"), list):  # timm writes height and width
            arguments["img_size"] = side[0]
        options = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return "vision", f"timm:{config['architecture']}" + f"({options})" * bool(options), str(folder)
    if folder.is_file() or (folder.is_dir() and not (folder / "open_clip_config.json").is_file()):
        raise ValueError(
            f"{base} does not show its architecture, which merging with data needs: name it, as in --base "
            f"timm:resnet50 --pretrained {base}"
        )
    return "vision", str(folder) if folder.exists() else base, pretrained


def _json(path: Path) -> Mapping[str, object]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
