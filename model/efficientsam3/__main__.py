"""Run the command line with ``python -m efficientsam3``, as torchrun needs it."""

from .cli.app import app

if __name__ == "__main__":
    app()
