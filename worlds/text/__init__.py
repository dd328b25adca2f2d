"""The eight procedural text tasks of the profile tiny-t5, one per task of GLUE, and the mixture that the T5 reads."""
