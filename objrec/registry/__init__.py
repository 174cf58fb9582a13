"""Models kept by content, the aliases that say which one serves, and the gate that decides whether a new one may."""
