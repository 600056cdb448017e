"""``python -m shiftproof``, which is also what ``torchrun -m shiftproof`` starts."""

from shiftproof.cli.app import main

if __name__ == "__main__":
    main()
