"""The routines behind the notebooks of the Concrete subspace study.

Reading order: `layout` (a model is a point in R^D), `task_vectors`, `fusion`, `concrete`, `adaptation`.
Importing this package changes nothing: devices, threads and seeds are chosen where they are used.
"""
