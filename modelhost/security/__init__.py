"""Who may do what: keys and their roles, and which addresses may be listened on without any. Knows no protocol."""
