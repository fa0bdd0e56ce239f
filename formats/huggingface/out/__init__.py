"""Hugging Face folders from any model: tensors by the architecture's inverted transforms, configuration and tokenizer rebuilt.

What GGUF's keys cannot say, the reader keeps under ``qconv.source.*`` (:mod:`.source`); where these keys are absent, everything is rebuilt by the
family's description alone.
"""
