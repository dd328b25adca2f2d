"""What a notebook opens: a profile, its workspace, its tables; and how notebooks are run and published."""

from lib.runtime.index import index

# Public name -> the module that has it. Nothing is imported before it is used: starting a notebook needs no torch.
__getattr__, __all__ = index(
    __name__,
    {
        "main_table": "evaluation",
        "methods_by_tasks": "evaluation",
        "paired_difference": "evaluation",
        "with_spread": "evaluation",
        "LanguageWorkspace": "language",
        "get_profile": "profiles",
        "merge_by_name": "recipes",
        "Study": "study",
        "open_study": "study",
        "VisionWorkspace": "vision",
    },
)
