"""`python -m coral_lab.cli`, which is what `torchrun` takes."""

import sys

from coral_lab.cli.parsing import main

sys.exit(main())
