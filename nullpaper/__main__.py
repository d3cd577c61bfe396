"""``python -m nullpaper``: the same as the console command."""

from __future__ import annotations

from nullpaper.cli import main

if __name__ == "__main__":
    main(prog_name="nullpaper")
