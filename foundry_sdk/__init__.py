"""Pretrain and finetune language models from typed specs and plugins."""
