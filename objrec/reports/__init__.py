"""Self-contained HTML pages: one writer, one base template, one style sheet. Templates are beside their writers."""
