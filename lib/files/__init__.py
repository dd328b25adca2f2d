"""What others wrote: checkpoints of experts, pickles that run no code, data sets, and whose fine-tuning it is."""

from lib.files.experts import check_activation, load_published
from lib.files.lineages import one_lineage
from lib.files.pickled import read_tensors
from lib.files.sets import DataError, Source, read_contents
from lib.files.splits import choose_rows

__all__ = [
    "DataError",
    "Source",
    "check_activation",
    "choose_rows",
    "load_published",
    "one_lineage",
    "read_contents",
    "read_tensors",
]
