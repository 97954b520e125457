"""Folders of the embedded model and data; `make.py` beside this file produces both."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
DATA_DIR = Path(__file__).parent / "data"
