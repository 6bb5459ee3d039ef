"""One run from start to finish: it is put together, goes through its epochs, keeps its best adapter and is recorded.

The topmost wing, which may import all others. The commands enter it by `start.start` and `predict_file.predict_file`, Python by `start.start` and `predictor.Predictor`.
"""
