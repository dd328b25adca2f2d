"""The command line: `python -m lib merge --help`."""

import sys

from lib.study.command import main

sys.exit(main())
