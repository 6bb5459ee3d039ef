"""What one optimizer step computes, and what one evaluation: plain eager code that works under any strategy.

Training sees any step as an `execution.Execution`, and evaluates by `evaluation.predict_logits`. Imports wings from
`checkpoint` downward, never `packed`, which builds on this one.
"""
