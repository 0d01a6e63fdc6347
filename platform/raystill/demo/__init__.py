"""The demo: verifiable tasks and a small bundled teacher."""
