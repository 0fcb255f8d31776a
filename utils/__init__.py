"""One job per file; imports nothing else of this project."""
