"""``python -m multihead``."""

from __future__ import annotations

from multihead.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
