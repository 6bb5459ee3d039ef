"""One run from start to finish: it is put together, goes through its epochs, keeps its best adapter and is recorded.

The topmost wing, which may import all others. Commands and Python enter it by `start.start`, and use a finished run by
`predict_file.predict_file` and `predictor.RowPredictor`.
"""
