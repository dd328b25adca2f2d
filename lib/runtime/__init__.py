"""How things run: named random numbers, devices, processes, progress, and results that are kept.

Knows nothing of models. `Store.remember` is the one idea that all notebooks share.
"""

from lib.runtime.index import index

# Public name -> the module that has it. Nothing is imported before it is used: starting a notebook needs no torch.
__getattr__, __all__ = index(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "SharedCheckpoint": "checkpoint",
        "Runtime": "device",
        "choose_runtime": "device",
        "content": "keys",
        "digest": "keys",
        "key_of": "keys",
        "hash_of": "names",
        "named_rng": "names",
        "side_by_side": "processes",
        "progress": "progress",
        "batch_indices": "rng",
        "generator": "rng",
        "seed_of": "rng",
        "Store": "store",
    },
)
