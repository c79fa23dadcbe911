"""`python -m florence_tagger`: the command line."""

from florence_tagger.cli import main

main(prog_name="python -m florence_tagger")
