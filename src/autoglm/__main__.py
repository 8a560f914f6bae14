"""`python -m autoglm`, as `autoglm`."""

from autoglm.cli import main

main()
