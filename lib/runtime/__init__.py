"""How things run: named random numbers, devices, processes, progress, and results that are kept.

Knows nothing of models. `Store.remember` is the one idea that all notebooks share.
"""

from lib.runtime.index import index

__getattr__, __dir__, __all__ = index(
    __name__,
    {
        "checkpoint": "Checkpoint SharedCheckpoint",
        "device": "Runtime choose_runtime",
        "keys": "content digest key_of",
        "names": "hash_of named_rng",
        "processes": "side_by_side",
        "rng": "batch_indices generator seed_of",
        "store": "Store",
    },
)
