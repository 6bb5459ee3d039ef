"""Measurements beside the package: what a step and a run cost, and whether a killed run resumes."""
