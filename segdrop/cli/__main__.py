"""`python -m segdrop.cli`."""

import sys

from .main import main

sys.exit(main())
