"""`python -m diffcf` is `diffcf`."""

from diffcf.cli import main

raise SystemExit(main())
