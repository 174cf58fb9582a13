"""What a step needs of Azure while it runs there: its identity, the vault, the registry, the endpoint, tracking."""
