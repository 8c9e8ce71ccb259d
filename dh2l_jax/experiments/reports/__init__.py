"""A table as Markdown, CSV and figures."""
