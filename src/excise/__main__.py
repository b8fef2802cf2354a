"""`python -m excise` is `excise`."""

from excise.cli import main

raise SystemExit(main())
