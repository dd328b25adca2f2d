"""A small library of GPU routines for merging fine-tuned models, in rooms; each imports only from those above it here.

runtime       names and random numbers, devices, processes, progress, results that are kept; knows nothing of models
vectors       a model is a point in R^D: layout, task vectors, fine-tuning, files larger than memory
files         what others wrote: checkpoints, data sets, and whose fine-tuning an expert comes from
fusion        merging without training
concrete      the Concrete mask, its gradient, and the fast step that learns it
adaptation    objectives on unlabelled inputs, and the one loop: Algorithm 1
vision        image models, data, objective, scoring
language      the same for text
study         what a notebook opens: profiles, workspaces, recipes, tables
figures       drawn from saved tables alone
"""
