"""`python -m lwmm_hub` is `lwmm-hub`."""

from lwmm_hub.cli import main

main()
