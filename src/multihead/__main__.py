"""``python -m multihead``."""

from __future__ import annotations

from multihead.cli import main

raise SystemExit(main())
