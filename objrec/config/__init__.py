"""The configuration: schema, composition, messages. Everything else in objrec may import it; it imports nothing of objrec."""
