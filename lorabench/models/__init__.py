"""From a name to a classifier with LoRA, quantised or not.

`description.inspect_model` refuses what it can before any weight is loaded, `build.build_classifier` makes the one
that is trained. Imports wings from `data` downward.
"""
