"""`python -m eqtp`: the command line."""

from __future__ import annotations

from eqtp.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
