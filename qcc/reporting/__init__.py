"""Pages about searches and artifacts: self-contained HTML, without scripts or anything fetched."""
