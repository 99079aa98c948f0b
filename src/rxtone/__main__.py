"""`python -m rxtone` is the command `rxtone`."""

from rxtone.cli import main

if __name__ == "__main__":
    main()
