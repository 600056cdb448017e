"""Why a model does what it does: maps, windows, backgrounds."""
