"""The embedded data and models: worlds of pictures and texts that programs draw, and how the shipped models learned.

`images` and `text` draw and know nothing of models; `training` trains what `data/` ships, and stands on all of `lib`.
"""
