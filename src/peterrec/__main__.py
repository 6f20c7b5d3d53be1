"""``python -m peterrec``: the ``peterrec`` command."""

from peterrec.service.cli.main import main

if __name__ == "__main__":
    main()
