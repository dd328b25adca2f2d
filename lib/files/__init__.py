"""What others wrote: weights and experts, pickles that run no code, data sets, and whose fine-tuning it is."""

from lib.runtime.index import index

__getattr__, __dir__, __all__ = index(
    __name__,
    {
        "contents": "read_contents",
        "experts": "load_published",
        "folders": "DataError",
        "lineages": "one_lineage",
        "pickled": "read_tensors",
        "registry": "read_registry",
        "sets": "Source find_source",
        "splits": "choose_rows",
        "weights": "fit read_weights",
    },
)
