"""Tokenizers of Hugging Face folders: which kind a folder holds, its vocabulary, and what GGUF's keys say of it."""
