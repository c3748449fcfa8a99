"""`python -m mobilenet <verb>` is the same as `mobilenet <verb>`."""

import sys

from mobilenet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
