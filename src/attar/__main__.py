"""`python -m attar`: the command line, where the `attar` script is not on the path."""

from attar.cli.main import main

if __name__ == "__main__":
    main()
