"""Runs as one page that opens from disk, as plots and as tables. `command.py` is the door: it reads runs (`runs.py`), puts
them side by side (`comparing.py`, `charts.py`, `hardest.py`), and writes the page (`page.py`) and the plots (`plots.py`)."""
