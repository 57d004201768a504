"""Fine-tuning the trained sentence model, in NumPy with `multihead`'s backward."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))  # of adam and nn
