"""Gymnasium environments in which routing policies learn; import name `aats_envs`."""
