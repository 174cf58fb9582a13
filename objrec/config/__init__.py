"""The configuration: schema, composition, messages. All of objrec may import it; it imports nothing of objrec."""
