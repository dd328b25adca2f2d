"""A merged model of a study, out of the study: into a folder that the experts' own library reads, with its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from lib.language.export import low_rank, write_adapter
from lib.language.lora import save_adapter
from lib.study.card import CARD, hash_of, model_card, new_folder
from lib.study.inputs import experts_of
from lib.study.language import LanguageWorkspace
from lib.study.vision import VisionWorkspace
from lib.study.workspace import Workspace
from lib.vision.export import libraries_of, library_for, write_backbone, write_heads


def export(
    workspace: Workspace,
    theta: Tensor,
    folder: str | Path,
    *,
    library: str = "",
    about: Mapping[str, object] | None = None,
    scores: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
    heads: bool = True,
) -> Path:
    """Write a merged model for the library that its experts came from, with a card.

    An image model is written whole (a CLIP with its text tower), with the tasks' heads beside it, and with BatchNorm
    statistics that are estimated anew. A text model is one adapter of peft where the merged change has low rank, else
    all weights of T5. See `lib.vision.export` for what each library reads.

    Args:
        workspace: an open study.
        theta: merged parameters [D].
        folder: a new one.
        library: "open_clip", "hugging-face", "timm" or "torchvision", for text "t5" or "peft"; by default the experts'.
        about: what the card says of the method: its name, objective, coefficients, and so on.
        scores: held-out scores for the card, rows of `workspace.evaluate`.
        notes: sentences for the card.
        heads: whether the heads of an image model's tasks are written beside it; they may need data.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder is not empty, or the model cannot be written for the library.
    """
    folder = Path(folder).expanduser()
    check_library(workspace, library)
    with new_folder(folder) as inside:
        if isinstance(workspace, LanguageWorkspace):
            written = _write_text(workspace, theta, inside, library)
        else:
            written = _write_image(workspace, theta, inside, library, heads)
        told = {"library": written, "base": base_of(workspace)} | told_of(workspace) | dict(about or {})
        (inside / CARD).write_text(model_card(told, scores, notes), encoding="utf-8")
    return folder


def check_library(workspace: Workspace, library: str) -> None:
    """Refuse a library that cannot hold the model, before hours of training instead of after.

    Raises:
        ValueError: saying which can.
    """
    if not isinstance(workspace, LanguageWorkspace):
        library_for(workspace.backbone, workspace.study.profile.model, library)
    elif library not in ("", "t5", "peft"):
        raise ValueError(f"a T5 cannot be written for {library}; for t5 and peft it can")
    elif library == "t5" and workspace.study.profile.task_vector == "adapter":
        mend = "set task_vector='weights' to write a whole T5"
        raise ValueError(f"adapters were merged by their own parameters: {mend}")


def base_of(workspace: Workspace) -> str:
    """The pre-trained model in words."""
    profile = workspace.study.profile
    return " ".join(
        filter(None, [profile.model or f"the study's {profile.family} model", getattr(profile, "pretrained", "")])
    )


def told_of(workspace: Workspace) -> dict[str, object]:
    """What a card says of a study: experts with hashes, lineage, seed."""
    profile = workspace.study.profile
    places = experts_of(profile)
    experts = {
        task: f"sha256 {hash_of(place)}" if place.exists() else f"hub: {place}" for task, place in places.items()
    }
    trained = {task: f"trained here, {profile.fine_tuning_steps} steps" for task in profile.task_names}
    return {"experts": experts or trained, "lineage": profile.lineage, "seed": workspace.study.seed}


def _write_image(workspace: VisionWorkspace, theta: Tensor, folder: Path, library: str, with_heads: bool) -> str:
    profile = workspace.study.profile
    if with_heads:  # first: making them moves the model
        write_heads(workspace.heads, {name: task.class_names for name, task in workspace.tasks.items()}, folder)
    workspace.place(theta)
    folders = experts_of(profile).values()
    if not library and any((place / "config.json").is_file() or not place.exists() for place in folders):
        library = next((name for name in libraries_of(workspace.backbone, profile.model) if name == "hugging-face"), "")
    return write_backbone(workspace.backbone, profile.model, folder, library)


def _write_text(workspace: LanguageWorkspace, theta: Tensor, folder: Path, library: str) -> str:
    module, profile = workspace.model.move_to(theta.to(workspace.study.runtime.device)), workspace.study.profile
    merged = {name: layer.cpu() for name, layer in workspace.layout.views(theta.detach().cpu()).items()}
    if profile.task_vector == "adapter":
        save_adapter(module, merged, folder)
        return "peft"
    factors = {} if library == "t5" else low_rank(dict(workspace.t5.model.named_parameters()), merged)
    if library == "peft" and not factors:
        raise ValueError("the merged change has no low rank, so no adapter can hold it: leave library='peft' out")
    if factors:
        write_adapter(factors, str(getattr(workspace.t5.model, "name_or_path", "") or profile.model), folder)
        return "peft"
    module.save_pretrained(folder)
    workspace.t5.tokenizer.save_pretrained(folder)
    return "t5"
