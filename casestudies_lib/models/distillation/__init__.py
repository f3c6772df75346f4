"""Distillation between two language models that differ in width, depth and tokenizer: models, losses, evaluation."""
