"""The tables of the paper, from their cells to Markdown, CSV and PNG."""
