"""Pages for people: plain HTML and one style sheet, no scripts, nothing from elsewhere."""
