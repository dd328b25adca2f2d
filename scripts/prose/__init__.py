"""What README and docs say of the results, made from the committed tables: a function for each `<!-- text: NAME -->`.

A sentence that says which of two things is larger carries that as its condition, and is marked where the tables do not
bear it out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.prose import backbones, readme, results, which_method
from scripts.prose.evidence import on_evidence

TEXTS: dict[str, Callable[[Path], str]] = {
    "findings": on_evidence(readme.findings),
    "drawn tasks": on_evidence(results.drawn_tasks),
    "agreement": on_evidence(results.agreement),
    "bases": on_evidence(results.bases_setting),
    "mask on bases": on_evidence(results.bases),
    "mask on few coefficients": on_evidence(results.few),
    "heads alone": on_evidence(results.heads),
    "real images": on_evidence(results.real),
    "text tasks": on_evidence(results.text_tasks),
    "language": on_evidence(results.language),
    "scale": on_evidence(which_method.scale),
    "without data": on_evidence(which_method.without_data),
    "experts teach": on_evidence(which_method.experts_teach),
    "heads may change": on_evidence(which_method.heads),
    "which method on text": on_evidence(which_method.text),
    "which method on real images": on_evidence(which_method.real),
    "which base": on_evidence(which_method.base),
    "with a mask": on_evidence(which_method.mask),
    "how many images": on_evidence(which_method.images),
    "transformer": backbones.text,
}
TABLES: dict[str, Callable[[Path], str]] = {
    "which method": on_evidence(which_method.table),
    "transformer": backbones.table,
}
