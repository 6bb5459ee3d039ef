"""The captured step: texts packed without padding, as CUDA graphs."""
