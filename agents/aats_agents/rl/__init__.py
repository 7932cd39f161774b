"""Training of routing policies; needs the extra `rl`. What a packet carries needs none of it."""
