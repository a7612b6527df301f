"""`python -m coral_lab` is the `coral-lab` command."""

import sys

from coral_lab.cli import main

sys.exit(main())
