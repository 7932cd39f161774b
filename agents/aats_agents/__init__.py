"""The self-routing AI objects: what a packet does at a stop, and how it picks the next one."""
