"""From candidates to a data set: acquire, examine, select, record."""
