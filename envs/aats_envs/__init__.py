"""Gymnasium environments in which routing policies learn; import name `aats_envs`.

Importing it registers `aats/KnowledgeNetwork-v0`, where Gymnasium is installed.
"""

from contextlib import suppress

with suppress(ImportError):  # drawing networks and simulating them does without
    from gymnasium.envs.registration import register

    register(
        "aats/KnowledgeNetwork-v0",
        entry_point="aats_envs.single:KnowledgeNetworkEnv",
        vector_entry_point="aats_envs.vector:KnowledgeNetworkVectorEnv",
        max_episode_steps=256,
    )
