"""Entry point of ``python -m llmrec_pl``."""

from llmrec_pl.cli import main

if __name__ == "__main__":
    main()
