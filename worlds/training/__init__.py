"""How the models in `data/` were trained: the tiny CLIP, a ConvNet and a ViT, the tiny T5 (`make pretrain`)."""
