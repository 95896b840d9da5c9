"""The console scripts: parsing and printing."""
