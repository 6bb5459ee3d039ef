"""Runs as one page, plots and tables. `command.py` is the door: it reads runs (`runs.py`), puts them side by side
(`comparing.py`, `charts.py`, `hardest.py`), and writes the page (`page.py`) and the plots (`plots.py`)."""
