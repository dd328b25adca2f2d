"""What a notebook opens: a profile, its workspace, its tables."""

from lib.runtime.index import index

__getattr__, __dir__, __all__ = index(
    __name__,
    {
        "evaluation": "main_table methods_by_tasks with_spread",
        "findings": "Findings interval judged listed mean_std",
        "language": "LanguageWorkspace",
        "per_task": "evaluate_per_task learn_surgeries",
        "profiles": "get_profile",
        "rates": "choose_rates",
        "recipes": "merge_by_name",
        "statistics": "compare_methods",
        "study": "Study open_study",
        "vision": "VisionWorkspace",
    },
)
