"""What others wrote: checkpoints of experts, pickles that run no code, data sets, and whose fine-tuning it is."""

from lib.runtime.index import index

# Public name -> the module that has it. Nothing is imported before it is used: the Snakefile reads profiles, which
# name lineages, and should not wait for torch.
__getattr__, __all__ = index(
    __name__,
    {
        "check_activation": "experts",
        "load_published": "experts",
        "one_lineage": "lineages",
        "read_tensors": "pickled",
        "read_registry": "registry",
        "DataError": "sets",
        "Source": "sets",
        "find_source": "sets",
        "read_contents": "sets",
        "choose_rows": "splits",
    },
)
