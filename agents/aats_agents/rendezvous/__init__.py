"""Rendezvous, one a file; reached by name through the entry points `aats.rendezvous`."""
