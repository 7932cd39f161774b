"""Routing policies, one a file; reached by name through the entry points `aats.policies`."""
