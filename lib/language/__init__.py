"""Language: text-to-text tasks, T5 with LoRA adapters, and what plugs them into the loops that vision uses."""
